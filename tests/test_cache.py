"""The cache as TransformerLens' users know it: names, rows, positions, logits, the logit lens, states.

References are plain loops, rows run by themselves, and the untouched model's own norm and unembedding.
"""

import copy
from functools import cache

import pytest
import torch
from bounds import FORWARD, LAYER, close
from models import make_calm, tokens
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.utilities.slice import Slice

import hybridlens as hl
from hybridlens.errors import InputError, NotCachedError, RowsError, UnknownNameError

LENGTH = 8


@cache
def lens_of(family):
    return hl.HybridLens(make_calm(family, 5))


@cache
def run(family):
    """A lens, its prompts, their logits and the cache, hidden attention in it."""
    lens, prompt = lens_of(family), tokens(3, LENGTH, 5)
    with torch.no_grad():
        return lens, prompt, *lens.run_with_cache(prompt, lambda name: True)


def logits_before_cap(lens, prompt):
    """Of the untouched model, its multiplier included."""
    kept, config = [], lens.hf_model.config
    handle = lens.hf_model.get_output_embeddings().register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        lens.hf_model(prompt, use_cache=False)
    handle.remove()
    return kept[0] * getattr(config, "lm_head_multiplier", 1.0) / getattr(config, "logits_scaling", 1.0)


# Names.


def test_it_is_transformerlens_cache_and_knows_its_shorthands():
    lens, _, _, found = run("recurrentgemma")
    assert isinstance(found, ActivationCache)
    assert isinstance(found, hl.HybridCache)
    for key, name in (
        (("z", 2), "blocks.2.attn.hook_z"),
        ("z2", "blocks.2.attn.hook_z"),
        (("resid_post", -1), "blocks.3.hook_resid_post"),
        (("scale", 1, "ln2"), "blocks.1.ln2.hook_scale"),
        ("scale", "ln_final.hook_scale"),
        ("embed", "hook_embed"),
        (("embed", None), "hook_embed"),
        (("attn", 2), "blocks.2.attn.hook_pattern"),
        (("ssm_out", 0), "blocks.0.hook_ssm_out"),
        (("state", -4), "blocks.0.ssm.hook_state"),
        (("pattern", 1, "ssm"), None),
        (("pre", 2, "mlp"), "blocks.2.mlp.hook_pre"),
    ):
        if name is not None:
            assert found[key] is found.cache_dict[name], key
            assert key in found
    assert list(found) == list(found.keys()) == list(found.cache_dict)
    assert len(found) == len(found.values()) == len(found.items())
    assert repr(found).startswith(f"<HybridCache: {len(found)} activations of a recurrentgemma model, 3 rows, ")
    frame = found.to_pandas()
    assert frame.loc[frame["name"] == "blocks.2.attn.hook_z"].values.tolist() == [
        ["blocks.2.attn.hook_z", "b p h e", "3 × 8 × 4 × 8", "float32"]
    ]
    assert "h head" in frame.attrs["meanings"]["axes"]
    assert len(found._repr_html_()) < 12_000
    assert lens.run_with_cache([5, 6], "hook_embed", remove_batch_dim=True)[1].has_batch_dim is False
    _, _, _, found = run("mamba2")
    assert found["blocks.0.ssm.hook_x"] is found["blocks.0.ssm.hook_v"]  # an alias


def test_a_name_that_a_layer_lacks_says_which_layers_have_it():
    lens, prompt, _, found = run("recurrentgemma")
    for key in (("attn_out", 0), "blocks.0.hook_attn_out", ("attn_out", -4)):
        assert key not in found
        assert found.get(key) is None
        assert found.get(key, 7) == 7
        with pytest.raises(NotCachedError) as caught:
            found[key]
        assert (
            str(caught.value) == "hook point 'blocks.0.hook_attn_out' does not exist: layers with hook_attn_out are 2"
        )
        assert isinstance(caught.value, KeyError)
        assert isinstance(caught.value, UnknownNameError)
    for key, line in (
        (("z", 9), "layer 9 given, but the model has layers 0..3"),
        (("z", 1.5), "layer 1.5 given in"),
        (7, "7 names no activation; expected a hook point's name, or (name, layer)"),
        (("z", 2, "attn", 0), "names no activation; expected"),
        ("nonsense", "hook point 'hook_nonsense' does not exist"),
    ):
        with pytest.raises(NotCachedError, match=r"^[^\n]+$") as caught:
            found[key]
        assert line in str(caught.value)
    _, part = lens.run_with_cache(prompt, "hook_embed")
    with pytest.raises(NotCachedError, match=r"^blocks.2.attn.hook_z is not in this cache; run_with_cache keeps it if"):
        part["z", 2]
    _, plain = lens.run_with_cache(prompt)
    with pytest.raises(NotCachedError, match=r"names_filter names it$"):  # leaving it out would not do
        plain["blocks.0.ssm.hook_pattern"]


def test_stacks_are_of_the_layers_that_have_the_name():
    _, _, _, found = run("jamba")
    assert found.layers_with("z") == [1]
    assert found.layers_with("conv") == [0, 2, 3]
    assert found.layers_with("scale", "ln2") == [0, 1, 2, 3]
    stack, labels = found.stack_activation("ssm_out", return_labels=True)
    assert labels == ["0_ssm_out", "2_ssm_out", "3_ssm_out"]
    for entry, layer in zip(stack, (0, 2, 3), strict=True):
        assert torch.equal(entry, found["ssm_out", layer])
    assert torch.equal(found.stack_activation("ssm_out", 3), stack[:2])
    assert torch.equal(found.stack_activation("scale", 1, "ln1")[0], found["scale", 0, "ln1"])
    with pytest.raises(InputError, match=r"no layer before 1 has z; layers 1 have it"):
        found.stack_activation("z", 1)
    with pytest.raises(NotCachedError, match=r"'blocks.0.hook_nonsense' does not exist"):
        found.stack_activation("nonsense")


# Rows and positions.


@torch.no_grad()
def test_one_row_without_its_axis_gives_what_the_batch_gives():
    """Everything that stacks, at all positions, some, and one."""
    for family in ("jamba", "falcon_h1"):
        _, _, _, found = run(family)
        alone = found.apply_slice_to_batch_dim(1)
        assert type(alone) is hl.HybridCache
        assert not alone.has_batch_dim
        for pos in (None, (1, 3), [0, 5], -1, Slice(-1)):
            for name, arguments in (
                ("accumulated_resid", {"apply_ln": True}),
                ("accumulated_resid", {"layer": 1, "apply_ln": True}),
                ("decompose_resid", {"apply_ln": True}),
                ("get_full_resid_decomposition", {}),
                ("get_full_resid_decomposition", {"apply_ln": True, "project_output_onto": torch.ones(32, 2)}),
                ("stack_head_results", {"apply_ln": True, "incl_remainder": True}),
                ("stack_neuron_results", {"neuron_slice": (2,), "incl_remainder": True}),
            ):
                whole = getattr(found, name)(pos_slice=pos, **arguments)
                close(getattr(alone, name)(pos_slice=pos, **arguments), whole[:, 1], LAYER)
                every = getattr(found, name)(**arguments)
                close(whole, Slice(pos if not isinstance(pos, Slice) else -1).apply(every, 2), LAYER)


@torch.no_grad()
def test_positions_count_among_each_rows_own_tokens():
    """Rows of 4, 8 and 6 tokens, padded on either side: -1 is the last of each, as in the row run by itself."""
    lens = lens_of("jamba")
    rows = [tokens(1, n, n)[0] for n in (4, 8, 6)]
    mask = torch.stack([torch.arange(8) < len(row) for row in rows]).long()
    right = torch.stack([torch.cat([row, row.new_zeros(8 - len(row))]) for row in rows])
    left = torch.stack([torch.cat([row.new_zeros(8 - len(row)), row]) for row in rows])
    answers = torch.tensor([3, 4, 5])
    for given in ({"input_ids": right, "attention_mask": mask}, {"input_ids": left, "attention_mask": mask.flip(1)}):
        _, found = lens.run_with_cache(given)
        several = found.decompose_resid(pos_slice=[0, -1], apply_ln=True)
        stack = found.get_full_resid_decomposition(pos_slice=-1)
        shares = found.logit_attrs(stack, answers, pos_slice=-1)
        read = found.logit_lens(targets=answers)
        some = found.apply_slice_to_batch_dim([2, 0])
        close(some.decompose_resid(pos_slice=-1), found.decompose_resid(pos_slice=-1)[:, [2, 0]], LAYER)
        for row, one in enumerate(rows):
            logits, alone = lens.run_with_cache(one[None])
            close(several[:, row], alone.decompose_resid(pos_slice=[0, -1], apply_ln=True)[:, 0], FORWARD)
            close(stack[:, row], alone.get_full_resid_decomposition(pos_slice=-1)[:, 0], FORWARD)
            close(shares[:, row].sum(), logits[0, -1, answers[row]], FORWARD, scale=float(shares.abs().sum(0).max()))
            close(read.values[-1, row, 0], logits[0, -1, answers[row]], FORWARD)
            assert not found.apply_slice_to_batch_dim(row).has_batch_dim
        with pytest.raises(InputError, match=r"pos_slice 5 given, but a row has the positions 0\.\.3"):
            found.decompose_resid(pos_slice=5)


@torch.no_grad()
@pytest.mark.parametrize("choice", [[1.5], torch.ones(2), torch.tensor([[1, 2]]), [[1], [2, 3]]])
def test_choices_that_are_no_whole_numbers_in_a_row_are_refused(choice):
    """Cut to whole numbers, or with more axes, they would choose what nobody asked for."""
    _, cache = hl.HybridLens(make_calm("jamba")).run_with_cache(tokens(2, 4))
    for method in (cache.decompose_resid, cache.accumulated_resid, cache.stack_head_results):
        with pytest.raises(InputError, match=r"pos_slice = .* given, expected one index"):
            method(pos_slice=choice)


def test_a_run_that_kept_one_position_needs_no_choice_of_positions():
    lens, prompt, _, full = run("jamba")
    for pos in (Slice(-1), -1):
        _, found = lens.run_with_cache(prompt, pos_slice=pos)
        wanted = full.get_full_resid_decomposition(pos_slice=-1)
        shares = found.logit_attrs(found.decompose_resid(), 5)
        close(found.get_full_resid_decomposition(), wanted.unsqueeze(2) if pos == -1 else wanted, LAYER)
        expected = full.logit_attrs(full.decompose_resid(pos_slice=-1), 5, pos_slice=-1)
        close(shares, expected.unsqueeze(2) if pos == -1 else expected, LAYER)
    _, found = lens.run_with_cache(prompt, pos_slice=Slice(-1))
    with pytest.raises(InputError, match=r"pos_slice = 2 given, but this cache holds one position of each row"):
        found.decompose_resid(pos_slice=2)


def test_rows_are_dropped_and_chosen():
    lens, _, _, found = run("jamba")
    _, one = lens.run_with_cache(tokens(1, 4, 1))
    shapes = {name: value.shape for name, value in one.items()}
    for _ in range(2):  # a second time changes nothing
        assert one.remove_batch_dim() is one
        assert {name: value.shape for name, value in one.items()} == {name: s[1:] for name, s in shapes.items()}
    with pytest.raises(RowsError, match=r"remove_batch_dim needs one row, this cache has 3; choose with"):
        found.remove_batch_dim()
    with pytest.raises(AssertionError):  # as TransformerLens' is
        found.remove_batch_dim()
    with pytest.raises(InputError, match=r"batch_slice = 7 given, but there are 0\.\.2"):
        found.apply_slice_to_batch_dim(7)
    with pytest.raises(InputError, match=r"a cache of one prompt without an axis of rows"):
        one.apply_slice_to_batch_dim(0)
    with pytest.raises(InputError, match=r"device 'nowhere' cannot be used here"):
        one.to("nowhere")
    some = copy.copy(found)
    assert some.to("meta") is some
    assert all(value.device.type == "meta" for value in some.values())
    assert found["embed"].device.type == "cpu"
    some.model = None
    assert "blocks.0.hook_resid_pre" in some
    with pytest.raises(InputError, match=r"this cache's model was set to None"):
        some.decompose_resid()


def test_autodiff_is_toggled_as_there():
    with torch.no_grad():
        run("jamba")[-1].toggle_autodiff(mode=True)
        assert torch.is_grad_enabled()


# Logits.


@pytest.mark.parametrize("family", ["recurrentgemma", "mamba2", "falcon_h1", "gemma2", "granitemoehybrid"])
@torch.no_grad()
def test_shares_add_up_to_the_untouched_models_logit_before_the_cap(family):
    """One token for all, one a row, one a position, one for each; differences of logits too."""
    lens, prompt, _, found = run(family)
    before, stack = logits_before_cap(lens, prompt), found.get_full_resid_decomposition(expand_neurons=False)
    rows, places = torch.arange(3)[:, None], torch.arange(LENGTH)
    every = torch.randint(0, lens.cfg.d_vocab, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    for given, wanted in (
        (7, before[..., 7]),
        (every[:, 0], before[rows, places, every[:, :1]]),
        (every[0], before[:, places, every[0]]),
        (every[:1], before[:, places, every[0]]),
        (every, before[rows, places, every]),
    ):
        shares = found.logit_attrs(stack, given)
        close(shares.sum(dim=0), wanted, FORWARD, scale=float(shares.abs().sum(dim=0).max()))
        other = found.logit_attrs(stack, given, torch.as_tensor(given) * 0 + 3)
        close(other, shares - found.logit_attrs(stack, 3), LAYER, scale=float(shares.abs().max()))
    last = found.decompose_resid(pos_slice=-1)
    one = found.logit_attrs(last, every[2, 0], batch_slice=2, pos_slice=-1)
    close(one.sum(), before[2, -1, every[2, 0]], FORWARD, scale=float(one.abs().sum()))
    alone = found.logit_attrs(last[:, 2], int(every[2, 0]), batch_slice=2, pos_slice=-1, has_batch_dim=False)
    close(alone, one, LAYER)
    two = found.logit_attrs(last, every[[2, 0], 1], batch_slice=[2, 0], pos_slice=-1)
    close(two.sum(dim=0), before[[2, 0], -1, every[[2, 0], 1]], FORWARD, scale=float(two.abs().sum(dim=0).max()))


@torch.no_grad()
def test_transformerlens_own_attribution_runs_on_a_lens():
    """Its tool asks the cache; by parts or heads, what it finds adds up to the untouched model's logits."""
    analysis = pytest.importorskip("transformer_lens.tools.analysis")
    for family in ("recurrentgemma", "falcon_h1"):
        lens, prompt, _, _ = run(family)
        before = logits_before_cap(lens, prompt)[:, -1]
        for unit, some in (("component", "1_ssm_out"), ("head", "L1H2" if family == "falcon_h1" else "L2H2")):
            shares = analysis.direct_logit_attribution(lens, prompt, 4, 9, unit=unit)
            assert some in shares.labels
            size = float(shares.attribution.abs().sum(dim=0).max())
            close(shares.attribution.sum(dim=0), before[:, 4] - before[:, 9], FORWARD, scale=size)


def test_tokens_and_stacks_that_do_not_fit_are_refused():
    _, _, _, found = run("jamba")
    stack, last = found.decompose_resid(), found.decompose_resid(pos_slice=-1)
    for arguments, line in (
        ((stack, 53), "tokens 53..53 given, expected 0..52"),
        ((stack, 1.5), "tokens have dtype torch.float32 and shape [], expected whole numbers"),
        ((stack, torch.arange(5)), "tokens have shape [5], but the stack's rows and positions have [3, 8]; give one"),
        ((stack, torch.tensor([1, 2, 3]), 4), "tokens have shape [3] and incorrect_tokens [], expected the same"),
        (
            (last, 4),
            "the stack is of shape [3] beside its entries and the stream's width, but the norm's scale of shape",
        ),
        ((stack, " a"), "this lens has no tokenizer"),
        ((stack[0, 0, 0], 4), "residual_stack has shape [32], expected [entry, …, 32]"),
    ):
        with pytest.raises(hl.HybridLensError) as caught:
            found.logit_attrs(*arguments)
        assert line in str(caught.value)
    with pytest.raises(InputError, match=r"give the pos_slice and batch_slice that the stack was made with"):
        found.apply_ln_to_stack(stack[:, :2])


def test_texts_are_tokens_too():
    lens = hl.load("tiny-jamba")
    _, found = lens.run_with_cache("When Anna and Hugo went to Paris,")
    stack = found.decompose_resid(pos_slice=-1)
    anna, hugo = lens.to_single_token("Anna"), lens.to_single_token("Hugo")
    assert torch.equal(found.logit_attrs(stack, "Anna", "Hugo", -1), found.logit_attrs(stack, anna, hugo, -1))
    assert torch.equal(found.logit_attrs(stack, ["Anna"], pos_slice=-1), found.logit_attrs(stack, anna, None, -1))
    with pytest.raises(InputError, match=r"'Zyzzyva' is unknown to the tokenizer"):
        found.logit_attrs(stack, "Zyzzyva", pos_slice=-1)


@torch.no_grad()
def test_a_norm_in_the_middle_by_hand():
    """x / √(mean r² + ε) · (1 + w), with r the stream that the layer read; recomputed, with x's own."""
    lens, _, _, found = run("recurrentgemma")
    norm, stack = lens.hf_model.model.layers[2].channel_pre_norm, torch.randn(4, 3, LENGTH, lens.cfg.d_model)
    scale = (found["resid_mid", 2].double().pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    wanted = stack.double() / scale * (1 + norm.weight.double())
    close(found.apply_ln_to_stack(stack, 2, mlp_input=True).double(), wanted, dtype=torch.float32)
    one = found.apply_ln_to_stack(stack[:, 1, 3], 2, True, 3, 1, has_batch_dim=False)
    close(one.double(), wanted[:, 1, 3], dtype=torch.float32)
    some = found.apply_ln_to_stack(stack[:, :, 2:4], 2, True, (2, 4), [2, 0])
    close(some.double(), wanted[:, [2, 0], 2:4], dtype=torch.float32)
    close(found.apply_ln_to_stack(stack, 2, True, recompute_ln=True), norm(stack), LAYER)


# The logit lens.


@pytest.mark.parametrize("family", ["recurrentgemma", "falcon_h1", "gemma2"])
@torch.no_grad()
def test_the_logit_lens_reads_as_the_model_does(family):
    """The last entry is the model's own logits, cap and multiplier included; others the untouched norm and head's."""
    lens, _, logits, found = run(family)
    read = found.logit_lens(positions=None)
    assert torch.equal(read.values[-1], logits)
    model, config = lens.hf_model, lens.hf_model.config
    stem = model.model
    norm = getattr(stem, "final_norm", None) or getattr(stem, "final_layernorm", None) or stem.norm
    before = model.lm_head(norm(found["resid_pre", 1])) * getattr(config, "lm_head_multiplier", 1.0)
    cap = getattr(config, "logits_soft_cap", None) or getattr(config, "final_logit_softcapping", None)
    close(read.values[1], before if cap is None else cap * torch.tanh(before / cap), FORWARD)
    assert read.labels == (*(f"{i}_pre" for i in range(lens.cfg.n_layers)), "final_post")
    probs = read.values.softmax(-1)
    close(read.entropy, -(probs * probs.log()).sum(-1), FORWARD)


@torch.no_grad()
def test_what_the_logit_lens_keeps():
    lens, prompt, _, found = run("jamba")
    every = found.logit_lens(positions=None, return_type="log_probs").values
    last = every[:, :, -1]
    close(found.logit_lens(return_type="probs", vocab=[5, 0], chunk_size=2).values, last[..., [5, 0]].exp(), LAYER)
    top = found.logit_lens(top_k=4, return_type="log_probs")
    assert torch.equal(top.top_ids, last.topk(4).indices)
    read = found.logit_lens(targets=[9, 2], layers=[-1, 0], batch_slice=[0, 2])
    assert read.labels == ("final_post", "0_pre")
    for place, token in enumerate((9, 2)):
        ranks = (last[[-1, 0]][:, [0, 2]] > last[[-1, 0]][:, [0, 2], token, None]).sum(-1)
        assert torch.equal(read.rank_trajectory(token), ranks)
        assert torch.equal(read.target_ranks[..., place], ranks)
    nexts = found.logit_lens(positions=(0, -1), targets=prompt[:, 1:], chunk_size=5, return_type="log_probs")
    close(nexts.values[..., 0], every[:, :, :-1].gather(3, prompt[:, 1:].expand(5, 3, 7)[..., None])[..., 0], LAYER)
    assert nexts.rank_trajectory().shape == (5, 3, 7)
    halved = found.logit_lens(lens=lambda entry, number: entry * (number + 1), layers=[1], apply_ln=False)
    close(halved.values[0], lens.network.unembed(2 * found["resid_pre", 1])[:, -1], LAYER)
    assert repr(read) == "<LogitLens: logits of 2 states of the stream, 2 rows>"
    frame = read.to_pandas()
    assert list(frame.columns) == ["state", "row", "token", "logit", "rank"]
    line = frame[(frame["state"] == "0_pre") & (frame["row"] == 1) & (frame["token"] == 2)]
    assert line["logit"].item() == read.values[1, 1, 1]
    assert line["rank"].item() == read.target_ranks[1, 1, 1]
    assert list(top.to_pandas().columns) == ["state", "row", "place", "token", "log probability"]
    assert list(nexts.to_pandas().columns) == ["state", "row", "position", "token", "log probability", "rank"]
    assert len(nexts.to_pandas()) == 5 * 3 * 7
    for shown in (read, top, nexts, found.logit_lens(batch_slice=0, vocab=[1, 2]), found.logit_lens(batch_slice=0)):
        assert "hl-" in shown._repr_html_()
        assert len(shown._repr_html_()) < 20_000
    for arguments, line in (
        ({"top_k": 3, "vocab": [1]}, "more than one of vocab, targets and top_k was given"),
        ({"top_k": 54}, "top_k = 54 given, expected a whole number from 1 to 53"),
        ({"layers": [9]}, "layers [9] given, but there are the entries 0..4: 0_pre, 1_pre"),
        ({"targets": torch.arange(5)}, "targets have shape [5], but the states, rows and positions have [5, 3]"),
        ({"targets": []}, "targets are empty, expected one token at least"),
        ({"return_type": "odds"}, "return_type 'odds' does not exist; expected one of logits, log_probs, probs"),
        ({"chunk_size": 0}, "chunk_size = 0 given"),
    ):
        with pytest.raises(hl.HybridLensError) as caught:
            found.logit_lens(**arguments)
        assert line in str(caught.value)
    with pytest.raises(InputError, match=r"target 7 given, expected one of those asked for: 9, 2"):
        read.rank_trajectory(7)
    with pytest.raises(InputError, match=r"ranks are known of targets alone"):
        top.rank_trajectory()


# States.


def test_states_and_hidden_attention_are_those_of_the_hook_points():
    lens, prompt, _, found = run("mamba2")
    states = found.compute_ssm_state()
    assert torch.equal(states, torch.stack([found["state", i] for i in range(3)]))
    assert torch.equal(found.compute_ssm_state(1, time_step=-2), found["state", 1][:, -2])
    assert torch.equal(found.compute_ssm_effective_attention(-1), found["blocks.2.ssm.hook_pattern"])
    assert found.compute_ssm_effective_attention().shape == (3, 3, 4, LENGTH, LENGTH)
    assert found.ssm_layers() == [0, 1, 2]
    assert found.ssm_layers(type(lens.blocks[0].ssm)) == [0, 1, 2]
    assert found.ssm_layers(dict) == []
    with pytest.raises(InputError, match=r"include_dt_scaling=False was given, but hidden attention here is of each"):
        found.compute_ssm_effective_attention(0, False)
    _, _, _, found = run("jamba")
    assert list(found.compute_ssm_state()) == [0, 2, 3]
    assert list(found.compute_ssm_effective_attention()) == [0, 2, 3]
    with pytest.raises(
        InputError, match=r"no part of layer 1 holds a recurrent state; layers 0, 2, 3 have such a part"
    ):
        found.compute_ssm_state(1)
    with pytest.raises(InputError, match=r"layer 4 given, but the model has layers 0\.\.3"):
        found.compute_ssm_state(4)
    with pytest.raises(InputError, match=r"time_step = \[8\] given, but there are 0\.\.7"):
        found.compute_ssm_state(0, time_step=8)
    _, plain = lens.run_with_cache(prompt)
    with pytest.raises(NotCachedError, match=r"attention needs blocks.0.ssm.hook_pattern, .* names them$"):
        plain.compute_ssm_effective_attention()
    _, _, _, found = run("gemma2")
    with pytest.raises(InputError, match=r"compute_ssm_state needs recurrent states, but no layer of this gemma2"):
        found.compute_ssm_state()
    with pytest.raises(InputError, match=r"needs recurrent layers, but this gemma2 model has none"):
        found.compute_ssm_effective_attention()
    assert found.ssm_layers() == []
