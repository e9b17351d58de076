"""The words that every run takes: what comes out, where it begins and stops, how rows are padded.

Losses are compared with torch's cross entropy of each row alone and with TransformerLens' own; parts of a pass with
the whole pass, bit for bit; gradients with what autograd says of a tensor that a run kept.
"""

from functools import cache

import pytest
import torch
from models import FAMILIES, make, tokens
from torch.nn.functional import cross_entropy
from transformer_lens.utilities.lm_utils import lm_cross_entropy_loss

from hybridlens import HybridLens, load
from hybridlens.errors import InputError, UnknownNameError

IDS = tokens(2, 7)
RAGGED = [IDS[0].tolist(), IDS[1, :4].tolist()]
PADDED = {
    "right": torch.tensor([RAGGED[0], [*RAGGED[1], 5, 5, 5]]),
    "left": torch.tensor([RAGGED[0], [5, 5, 5, *RAGGED[1]]]),
}


@cache
def lens_of(family):
    return HybridLens(make(family, 4))


@pytest.fixture(params=FAMILIES)
def lens(request):
    return lens_of(request.param)


@pytest.fixture(scope="module")
def tiny():
    return load("tiny-jamba")


# Losses.


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_next_tokens(lens):
    logits = lens(IDS)
    loss, both, each = lens(IDS, "loss"), lens(IDS, "both"), lens(IDS, return_type="loss", loss_per_token=True)
    torch.testing.assert_close(loss, cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))
    torch.testing.assert_close(loss, lm_cross_entropy_loss(logits, IDS))
    torch.testing.assert_close(each, lm_cross_entropy_loss(logits, IDS, per_token=True))
    assert (torch.equal(both.logits, logits), torch.equal(both.loss, loss)) == (True, True)
    assert lens(IDS, None) is None
    assert torch.equal(lens.loss_fn(logits, IDS), loss)
    assert torch.equal(lens.loss_fn(logits, IDS, per_token=True), each)
    assert torch.equal(lens.run_with_hooks(IDS, return_type="loss"), loss)
    assert torch.equal(lens.run_with_cache(IDS, [], return_type="both")[0].loss, loss)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out_of_the_loss(lens, side):
    """Each row's losses stand at its own positions and are those of the row alone; the mean is over tokens."""
    with torch.no_grad():
        each = lens(RAGGED, "loss", loss_per_token=True, padding_side=side)
        alone = [lens(row, "loss", loss_per_token=True)[0] for row in RAGGED]
    assert each.shape == (2, 6)
    torch.testing.assert_close(each[0], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(each[1, -3:] if side == "left" else each[1, :3], alone[1], rtol=1e-4, atol=1e-5)
    assert each.isnan().sum() == 3
    logits, loss = lens(RAGGED, "both", padding_side=side)
    torch.testing.assert_close(loss, torch.cat(alone).mean(), rtol=1e-4, atol=1e-5)
    mask = torch.tensor([[1] * 7, [0, 0, 0, 1, 1, 1, 1] if side == "left" else [1, 1, 1, 1, 0, 0, 0]])
    assert torch.equal(lens.loss_fn(logits, PADDED[side], mask), loss)
    weight = lens.hf_model.get_input_embeddings().weight
    assert torch.autograd.grad(loss, weight)[0].isfinite().all()  # NaN at padding would spread


def test_a_loss_that_cannot_be_computed(lens):
    with pytest.raises(InputError, match="at least two tokens"):
        lens([[3], [4]], "loss")
    with pytest.raises(InputError, match="of which there is no loss"):
        lens(IDS, "loss", stop_at_layer=1)
    with pytest.raises(InputError, match=r"use lens.loss_fn\(logits, tokens\)"):
        lens(lens(IDS, stop_at_layer=1), "loss", start_at_layer=1)
    with pytest.raises(InputError, match=r"logits \[2, 6, 53\] given for tokens \[2, 7\]"):
        lens.loss_fn(lens(IDS)[:, :6], IDS)
    with pytest.raises(UnknownNameError, match="return_type 'loses' does not exist; close names: loss"):
        lens(IDS, "loses")


# Parts of a pass.


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 3, 4, -1, -4])
def test_stopping_and_starting(lens, layer):
    """The stream that enters a layer, and from there the same logits; layers on the other side are silent."""
    whole, kept = lens.run_with_cache(IDS)
    at = layer % 4 if layer != 4 else 4
    resid, below = lens.run_with_cache(IDS, stop_at_layer=layer)
    assert torch.equal(resid, kept[f"blocks.{at}.hook_resid_pre"] if at < 4 else kept["blocks.3.hook_resid_post"])
    logits, above = lens.run_with_cache(resid, start_at_layer=layer)
    assert torch.equal(logits, whole)
    assert [*below, *above] == list(kept)
    assert torch.equal(lens.run_with_hooks(resid, start_at_layer=layer, stop_at_layer=at), resid)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_stopping_and_starting_with_padding(lens, side):
    """Padding is NaN in the stream as in logits, and may be anything in one that is given."""
    resid = lens(RAGGED, stop_at_layer=2, padding_side=side)
    assert resid.isnan().any(dim=-1).sum() == 3
    logits = lens(resid, start_at_layer=2, lengths=[7, 4], padding_side=side)
    torch.testing.assert_close(logits, lens(RAGGED, padding_side=side), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stop_at_layer": 5}, "stop_at_layer = 5 given, expected a layer from 0 to 4, or -4 to -1"),
        ({"stop_at_layer": True}, "stop_at_layer = True given"),
        ({"stop_at_layer": 1.0}, "stop_at_layer = 1.0 given"),
        ({"start_at_layer": 2}, r"takes a residual stream \[batch, pos, 32\], a Tensor \[2, 7\] of torch.int64 given"),
    ],
)
def test_layers_that_are_none(lens, given, said):
    with pytest.raises(InputError, match=said):
        lens(IDS, **given)


def test_streams_that_cannot_be(lens):
    resid = lens(IDS, stop_at_layer=2)
    with pytest.raises(InputError, match=r"torch.float64, but the model is torch.float32"):
        lens(resid.double(), start_at_layer=2)
    with pytest.raises(InputError, match="stop_at_layer = 1 given, which comes before start_at_layer = 2"):
        lens(resid, start_at_layer=2, stop_at_layer=1)


@torch.no_grad()
def test_a_model_whose_layers_read_the_embedding_starts_with_it():
    """Zamba2: from the embedding on all is there; in the middle it is missing, and the mend that is named works."""
    lens = lens_of("zamba2")
    logits, resid = lens(IDS), lens(IDS, stop_at_layer=2)
    assert torch.equal(lens(lens(IDS, stop_at_layer=0), start_at_layer=0), logits)
    with pytest.raises(InputError, match=r"read the embedding.*'blocks.2.hook_resid_pre'"):
        lens(resid, start_at_layer=2)
    ours = lens.run_with_hooks(IDS, [("blocks.2.hook_resid_pre", lambda x, hook: resid)])
    assert torch.equal(ours, logits)


# Padding and BOS.


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("told", ["rows", "lengths", "mask"])
def test_rows_are_as_alone_on_whichever_side_they_are_padded(lens, side, told):
    given, options = {
        "rows": (RAGGED, {"padding_side": side}),
        "lengths": (PADDED[side], {"padding_side": side, "lengths": [7, 4]}),
        "mask": ({"input_ids": PADDED[side], "attention_mask": PADDED[side] * 0 + 1}, {}),
    }[told]
    if told == "mask":
        given["attention_mask"][1, slice(3) if side == "left" else slice(4, 7)] = 0
    logits = lens(given, **options)
    real = slice(3, 7) if side == "left" else slice(0, 4)
    for ours, row in ((logits[0], RAGGED[0]), (logits[1, real], RAGGED[1])):
        alone = lens(row)[0]
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    assert logits[1].isnan().all(dim=-1).sum() == 3


def test_a_side_that_is_none_or_the_other(lens):
    with pytest.raises(UnknownNameError, match="padding_side 'middle' does not exist; expected one of left, right"):
        lens(RAGGED, padding_side="middle")
    mask = {"input_ids": PADDED["left"], "attention_mask": [[1] * 7, [0] * 3 + [1] * 4]}
    assert lens(mask, padding_side="left").isnan().any()
    with pytest.raises(InputError, match="padding_side = 'right' given, but the rows come padded on the left"):
        lens(mask, padding_side="right")


@torch.no_grad()
def test_texts_with_and_without_bos(tiny):
    """None is the tokenizer's own way; ids are taken as they are."""
    text, bos = "Anna sat in the garden", tiny.tokenizer.bos_token_id
    usual = tiny.to_tokens(text)
    begins = usual[0, 0] == bos
    with_bos = usual if begins else torch.cat([torch.tensor([[bos]]), usual], dim=1)
    without = with_bos[:, 1:]
    assert torch.equal(tiny(text), tiny(usual))
    assert torch.equal(tiny(text, prepend_bos=True), tiny(with_bos))
    assert torch.equal(tiny(text, prepend_bos=False), tiny(without))
    assert torch.equal(tiny(without, prepend_bos=True), tiny(without))
    texts = [text, "Anna sat"]
    assert tiny(texts, prepend_bos=False, padding_side="left")[1, 0].isnan().all()


# Caches.


def test_gradients_in_a_cache_are_autograds(lens):
    """By tensors that a run kept; the weights get none, whether or not they take gradients."""
    names = ["hook_embed", "blocks.1.hook_resid_pre", "blocks.2.ln1.hook_normalized", "blocks.3.hook_mlp_out"]
    kept = {}
    with lens.hooks([(names, lambda x, hook: kept.setdefault(hook.name, x.view_as(x)))]):
        expected = torch.autograd.grad(lens(IDS, "loss"), list(kept.values()))
    for frozen in (False, True):
        lens.hf_model.requires_grad_(not frozen)
        loss, cache = lens.run_with_cache(IDS, names, return_type="loss", incl_bwd=True)
        assert all(weight.grad is None for weight in lens.hf_model.parameters())
        lens.hf_model.requires_grad_(True)
        assert sorted(cache) == sorted([*names, *(f"{name}_grad" for name in names)])
        for name, grad in zip(kept, expected, strict=True):
            torch.testing.assert_close(cache[f"{name}_grad"], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()))
    torch.testing.assert_close(loss.detach(), lens(IDS, "loss").detach())
    assert sum(point.has_hooks() for point in lens.hook_dict.values()) == 0


def test_the_last_position_of_each_row(lens):
    """`pos_slice=-1` in rows of different lengths: activations and gradients of the last token of each."""
    name = "blocks.2.hook_resid_pre"
    for side in ("left", "right"):
        how = {"return_type": "loss", "incl_bwd": True, "padding_side": side}
        whole = lens.run_with_cache(RAGGED, name, **how)[1]
        last = lens.run_with_cache(RAGGED, name, pos_slice=-1, **how)[1]
        for key in (name, f"{name}_grad"):
            at = [6, 6] if side == "left" else [6, 3]
            assert torch.equal(last[key], torch.stack([row[i] for row, i in zip(whole[key], at, strict=True)])[:, None])


def test_a_plain_dict_one_row_and_hooks_that_stay(lens):
    name = "blocks.1.hook_resid_pre"
    out, kept = lens.run_with_cache(IDS[:1], name, return_cache_object=False, remove_batch_dim=True)
    assert (type(kept), kept[name].shape, out.shape[0]) == (dict, (7, 32), 1)
    _, kept = lens.run_with_cache(input=IDS, names_filter=name, return_type=None, reset_hooks_end=False)
    lens(IDS[:, :3])
    assert kept[name].shape == (2, 3, 32)
    lens.hook_dict[name].ctx["left"] = 1
    lens.reset_hooks()
    lens.hook_dict[name].ctx["left"] = 1
    lens.run_with_cache(IDS, name)
    assert lens.hook_dict[name].ctx == {"left": 1}
    lens.run_with_hooks(IDS, clear_contexts=True)
    assert lens.hook_dict[name].ctx == {}
    assert not lens.hook_dict[name].has_hooks()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"incl_bwd": True}, "needs one number to differentiate: return_type='loss'"),
        ({"incl_bwd": True, "return_type": "loss", "loss_per_token": True}, "needs one number"),
        ({"incl_bwd": True, "return_type": "loss", "stop_at_layer": 1}, "of which there is no loss"),
        ({"remove_batch_dim": True}, "remove_batch_dim needs one prompt, 2 were given"),
    ],
)
def test_caches_that_cannot_be(lens, options, said):
    with pytest.raises(InputError, match=said):
        lens.run_with_cache(IDS, "hook_embed", **options)


def test_gradients_where_they_are_off(lens):
    with torch.no_grad(), pytest.raises(InputError, match="where gradients are off"):
        lens.run_with_cache(IDS, return_type="loss", incl_bwd=True)
    with pytest.raises(TypeError, match="return_typ"):
        lens.run_with_cache(IDS, return_typ="loss")
    with pytest.raises(TypeError, match="input"):
        lens(input=IDS, tokens=IDS)


# Caches filled by hooks.


@torch.no_grad()
@pytest.mark.parametrize("pos_slice", [None, -1, (1, 3), [0, 2]])
def test_caching_hooks_keep_what_a_cache_holds(lens, pos_slice):
    """Rows of different lengths, padded on the left: the same tensors as `run_with_cache`, of each row's own tokens."""
    rows = [IDS[0].tolist(), IDS[1, :4].tolist()]
    expected = lens.run_with_cache(rows, padding_side="left", pos_slice=pos_slice)[1]
    mine = {}
    cache, fwd, bwd = lens.get_caching_hooks(pos_slice=pos_slice, cache=mine)
    assert (cache is mine, bwd) == (True, [])
    with lens.hooks(fwd, bwd):
        lens(rows, padding_side="left")
    assert list(cache) == list(expected)
    for name, value in cache.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)
    if pos_slice == -1:
        alone = lens.run_with_cache(rows[1])[1]["blocks.2.hook_resid_pre"][0, -1]
        torch.testing.assert_close(cache["blocks.2.hook_resid_pre"][1, 0], alone)


@torch.no_grad()
def test_caching_hooks_in_steps_hold_the_step(lens):
    state = lens.prefill(IDS).state
    cache, fwd, _ = lens.get_caching_hooks(["blocks.2.hook_resid_pre"], pos_slice=-1)
    with lens.hooks(fwd):
        lens.extend(state, IDS[:, :2])
    whole = lens(torch.cat([IDS, IDS[:, :2]], dim=1), stop_at_layer=2)
    torch.testing.assert_close(cache["blocks.2.hook_resid_pre"], whole[:, -1:])


def test_added_caching_hooks_fill_a_cache_until_reset(lens):
    cache = lens.add_caching_hooks(["blocks.2.hook_resid_pre"], incl_bwd=True)
    lens(IDS, "loss").backward()
    assert sorted(cache) == ["blocks.2.hook_resid_pre", "blocks.2.hook_resid_pre_grad"]
    lens.reset_hooks()
    cache.clear()
    lens(IDS)
    assert cache == {}
    lens.hf_model.zero_grad()
