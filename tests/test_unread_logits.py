"""Logits at all positions are the largest tensor of a pass over a long prompt: none are made that nobody asked for."""

import pytest
import torch
from models import make, tokens

import hybridlens as hl
from analyses.heads import entropy, needle_heads
from hybridlens.errors import HybridLensError
from hybridlens.mixers import attention

IDS = tokens(2, 9)
POINT = "blocks.1.hook_resid_post"


@pytest.fixture
def lens():
    return hl.HybridLens(make("recurrentgemma"))


@pytest.fixture
def unembedded(lens, monkeypatch):
    """Positions that are unembedded, a number for each time."""
    rows, own = [], lens.network.uncapped

    def counted(normed):
        rows.append(normed.shape[1])
        return own(normed)

    monkeypatch.setattr(lens.network, "uncapped", counted)
    return rows


def test_a_run_for_its_hooks_alone_unembeds_nothing_that_no_hook_hears(lens, unembedded):
    full, whole = lens.run_with_cache(IDS)
    unembedded.clear()
    nothing, cache = lens.run_with_cache(IDS, POINT, return_type=None)
    assert (nothing, unembedded) == (None, [])
    assert torch.equal(cache[POINT], whole[POINT])
    names = ["ln_final.hook_scale", "ln_final.hook_normalized"]
    _, normed = lens.run_with_cache(IDS, names, return_type=None)
    assert unembedded == []
    assert all(torch.equal(normed[name], whole[name]) for name in names)
    _, asked = lens.run_with_cache(IDS, "hook_logits", return_type=None)
    assert unembedded == [9]
    assert torch.equal(asked["hook_logits"], full)
    heard = []
    handle = lens.hf_model.lm_head.register_forward_hook(lambda module, given, out: heard.append(out.shape[1]))
    lens(IDS, return_type=None)
    handle.remove()
    assert heard == [9]


def test_the_last_tokens_logits_can_be_had_alone(lens, unembedded):
    """Of each row its own, also behind padding on either side; with a cache of everything else."""
    for options in ({}, {"lengths": [9, 5]}, {"lengths": [9, 5], "padding_side": "left"}):
        full = lens(IDS, **options)
        ends = [8, 4] if "padding_side" not in options and options else [8, 8]
        unembedded.clear()
        last, cache = lens.run_with_cache(IDS, ["hook_logits", POINT], last_only=True, **options)
        assert unembedded == [1]
        torch.testing.assert_close(last[:, 0], full[[0, 1], ends])
        assert torch.equal(cache["hook_logits"], last)
        assert cache[POINT].shape[1] == 9
    for options, line in (
        ({"return_type": "loss"}, "last_only = True given, which leaves out logits, where a loss is asked for"),
        ({"stop_at_layer": 1}, "where a residual stream is asked for"),
        ({"pos_slice": -1}, "hook_logits then holds the last position alone"),
    ):
        with pytest.raises(HybridLensError, match=line):
            lens.run_with_cache(IDS, last_only=True, **options)
    sliced = lens.run_with_cache(IDS, POINT, last_only=True, pos_slice=-1)[1][POINT]
    assert sliced.shape == (2, 1, 32)


def test_a_soft_cap_is_the_same_with_gradients_and_without(lens):
    """Without them it is taken in place; what a hook on the unembedding kept stays as it was."""
    capped = lens(IDS)
    with torch.no_grad():
        assert torch.equal(lens(IDS), capped)
        kept = []
        handle = lens.hf_model.lm_head.register_forward_hook(lambda module, given, out: kept.append(out))
        assert torch.equal(lens(IDS), capped)
        handle.remove()
        assert torch.equal(lens.network.capped(kept[0]), capped)
        assert not torch.equal(kept[0], capped)


def test_analyses_of_attention_unembed_nothing(lens, unembedded, monkeypatch):
    """Rankings, and looks, which read patterns a block of queries at a time with the numbers of the whole."""
    entropy.rank_heads(lens, IDS)
    prompt, answer = IDS[0].tolist(), [5, 6]
    whole = needle_heads.look(lens, prompt, answer, [(2, 4)])
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4 * 11 * 2)  # two queries of four heads over eleven keys
    blocks = needle_heads.look(lens, prompt, answer, [(2, 4)])
    torch.testing.assert_close(blocks.patterns, whole.patterns)
    torch.testing.assert_close(blocks.ranking.scores, whole.ranking.scores)
    assert torch.all(whole.patterns.sum(-1) > 0)
    assert unembedded == []
