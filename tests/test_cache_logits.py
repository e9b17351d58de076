"""A cache's parts as logits: direct shares, norms in the middle, the logit lens.

References are plain loops, and the untouched model's own norm and unembedding.
"""

import pytest
import torch
from bounds import FORWARD, LAYER, close
from cached_runs import LENGTH, run

import hybridlens as hl
from hybridlens.errors import InputError


def logits_before_cap(lens, prompt):
    """Of the untouched model, its multiplier included."""
    kept, config = [], lens.hf_model.config
    handle = lens.hf_model.get_output_embeddings().register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        lens.hf_model(prompt, use_cache=False)
    handle.remove()
    return kept[0] * getattr(config, "lm_head_multiplier", 1.0) / getattr(config, "logits_scaling", 1.0)


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
