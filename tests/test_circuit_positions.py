"""The positional profile against a loop over distances, planted heads, and the pattern of the model itself.

The model's own pattern is the independent reference: where every token has the same content after the norm, all that
is left of a pattern is distance. Its rotary embedding, its mask and its softmax are none of this module's.
"""

from dataclasses import replace

import pytest
import torch
from bounds import FORWARD, LAYER, close, near
from models import FAMILIES, make, tokens

import hybridlens as hl
from analyses.circuits.positions import profile
from hybridlens.errors import InputError
from hybridlens.mixers.rotary import Turning
from hybridlens.weights import AttentionWeights, Weights

WINDOW = 16


def heads(rotary: Turning | None, n: int = 4, kv: int = 2, d: int = 24, e: int = 16, window: int | None = WINDOW):
    """A layer of random heads with biases."""
    q, k, v, o = (torch.randn(*s) for s in ((n, d, e), (kv, d, e), (kv, d, e), (n, e, d)))
    biases = torch.randn(n, e), torch.randn(kv, e)
    return AttentionWeights(5, q, k, v, o, *biases, None, None, rotary, window, e**-0.5)


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("dims", [0, 8, 16])
def test_a_loop_over_distances(kv, dims):
    """Queries turned one distance at a time, with some, all and no dimensions turning, with and without biases."""
    attention, content = heads(Turning(dims, 50.0) if dims else None, kv=kv), torch.randn(24) / 4
    for view in (attention, replace(attention, b_Q=None, b_K=None)):
        found = profile(view, content, WINDOW)
        assert found.dtype == torch.float32
        for h in range(4):
            one, at = view.head(h), view.kv_head(h)
            q, k = content @ one.W_Q, content @ one.W_K
            if view.b_Q is not None:
                q, k = q + view.b_Q[h], k + view.b_K[at]
            turned = [q if view.rotary is None else view.rotary.turned(q, x) for x in range(WINDOW)]
            scores = torch.stack([x @ k / 16**0.5 for x in turned])
            close(found[h], scores.softmax(0), FORWARD)
            if dims:
                assert found[h].std() > 1e-3


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2, "attention_bias": True}])
def test_the_pattern_of_the_model(changes):
    """With one content at all positions the model's pattern, at every query, is the profile of what it can see."""
    lens = hl.HybridLens(make("recurrentgemma", 3, attention_window_size=WINDOW, **changes))
    layer, length = lens.cfg.attention_layers[0], 40
    content = torch.randn(lens.cfg.d_model)
    same = [(f"blocks.{layer}.ln1.hook_normalized", lambda x, hook: content.expand_as(x))]
    seen: list[torch.Tensor] = []
    look = [(f"blocks.{layer}.attn.hook_pattern", lambda x, hook: seen.append(x.detach()))]
    with torch.no_grad():
        lens.run_with_hooks(tokens(1, length), same + look)
    (pattern,) = seen
    weights = Weights.of_model(lens).attention(layer)
    assert weights.window == WINDOW
    found = profile(weights, content, WINDOW)
    assert found.std() > 0.01  # not flat
    for query in range(length):
        held = min(query + 1, WINDOW)
        expected = found[:, :held] / found[:, :held].sum(1, keepdim=True)
        at = pattern[0, :, query, : query + 1].flip(-1)  # by distance
        close(at[:, :held], expected, FORWARD)
        assert not at[:, held:].any()


def test_planted_heads():
    """A query that equals the one key when it is turned back by a distance makes a head that peaks there alone."""
    rotary, n, window = Turning(32, 1e4), 3, 200
    content, key, wanted = torch.randn(24), torch.zeros(40), (0, 1, window - 1)
    key[:16] = 1.5
    write = (content / content.square().sum())[:, None]
    W_Q = torch.stack([write * rotary.turned(key, -distance) for distance in wanted])
    attention = replace(heads(rotary, n, 1, 24, 40, window), W_Q=W_Q, W_K=(write * key)[None], b_Q=None, b_K=None)
    found = profile(attention, content, window)
    assert tuple(found.argmax(1).tolist()) == wanted
    for h, distance in enumerate(wanted):
        away = torch.arange(window).sub(distance).abs() > 0
        assert found[h, distance] > 1.1 * found[h, away].amax()
    few = profile(attention, content, 50)
    close(few, found[:, :50] / found[:, :50].sum(1, keepdim=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_flat_without_rotary(family):
    """Jamba's heads know no distance, and a RecurrentGemma's whose rotary embedding is taken away neither."""
    weights = Weights.of_model(hl.HybridLens(make(family, 3)))
    attention = weights.attention(weights.cfg.attention_layers[0])
    content = torch.randn(weights.cfg.d_model)
    flat = torch.full((4, 7), 1 / 7)
    close(profile(replace(attention, rotary=None), content, 7), flat)
    assert near(profile(attention, content, 7), flat, LAYER) == (family == "jamba")


def test_bad_input():
    """One line that says what was given and what there is."""
    with pytest.raises(InputError, match=r"17 distances given for layer 5; expected 1\.\.16, the window"):
        profile(heads(None), torch.ones(24), 17)
    with pytest.raises(InputError, match="0 distances given for layer 5; expected 1 or more"):
        profile(heads(None, window=None), torch.ones(24), 0)
