"""Windows by layer: each layer remembers what its own queries can still see, and no other layer's window decides it.

The reference is the untouched model reading every row alone from its beginning.
"""

import random

import pytest
import torch
from bounds import FORWARD, bound, close
from models import make, tokens

import hybridlens as hl
from analyses.kv_cache.dropping import drop, keep_last
from analyses.kv_cache.swapping import swap
from hybridlens.errors import InputError
from hybridlens.state import HybridState

MIXED = pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen3"])
WINDOW = 5


def last_logits(model, row):
    with torch.no_grad():
        return model(torch.tensor([row]), use_cache=False).logits[0, -1]


def layers_of(lens):
    """Layers with a window, and those without."""
    windowed = [layer for layer, attention in enumerate(lens.cfg.attentions) if attention.window is not None]
    return windowed, [layer for layer in lens.cfg.attention_layers if layer not in windowed]


@MIXED
@pytest.mark.parametrize("seed", range(3))
def test_ragged_chunked_cut_and_saved(family, seed, tmp_path):
    """Rows read in pieces of any lengths, taken apart, put together, written to a file and read again on the way."""
    model, rng = make(family, 3), random.Random(seed)
    lens = hl.HybridLens(model)
    rows = [[rng.randrange(3, 53) for _ in range(rng.randrange(6, 40))] for _ in range(4)]
    at, last, state, steps = [0] * 4, [torch.empty(0)] * 4, None, 0
    with torch.no_grad():
        while any(start < len(row) for start, row in zip(at, rows, strict=True)):
            take = [min(rng.choice([0, 1, 1, 2, 7, 13]), len(row) - start) for start, row in zip(at, rows, strict=True)]
            if not max(take):
                continue
            padded = [row[a : a + n] + [0] * (max(take) - n) for row, a, n in zip(rows, at, take, strict=True)]
            logits, state = lens.network(torch.tensor(padded), torch.tensor(take), state)
            for row, n in enumerate(take):
                last[row], at[row] = logits[row, n - 1] if n else last[row], at[row] + n
            steps += 1
            if steps % 3 == 0:
                state.save(tmp_path / "state")
                state = HybridState.load(tmp_path / "state")
            if steps % 4 == 1:
                state = HybridState.cat(state.split())
            if steps % 5 == 2:
                state = HybridState.cat([state.select([0]), state.select([1, 2]), state.select([3])])
    for row, ours in zip(rows, last, strict=True):
        close(ours, last_logits(model, row), FORWARD)


@MIXED
def test_a_layer_holds_no_more_than_its_window_needs(family):
    """Rows of one length: a window of 5 holds 4 keys for the next token, however long the text; the others hold all."""
    lens = hl.HybridLens(make(family, 3))
    windowed, full = layers_of(lens)
    assert windowed
    assert full
    with torch.no_grad():
        state = lens.prefill(tokens(2, 30)).state
        for _ in range(3):
            state = lens.extend(state, [[5], [6]]).state
            for layer in windowed:
                assert state.layers[layer]["attn"].slots == WINDOW - 1
                assert state.positions_in(layer)[0].tolist() == state.key_positions[0, -WINDOW + 1 :].tolist()
                assert lens.key_positions(state, 1, layer)[0].tolist() == list(
                    range(int(state.lengths[0]) - 4, int(state.lengths[0]) + 1)
                )
            for layer in full:
                assert state.layers[layer]["attn"].slots == int(state.lengths[0]) == state.key_positions.shape[1]
    with pytest.raises(InputError, match="each has its own key slots; give layer="):
        lens.key_positions(state)
    assert state.windows == lens.cfg.windows
    assert state.window is None


@MIXED
def test_dropped_keys_are_gone_in_the_layers_that_saw_them(family):
    """All but the newest two dropped, in layers with a window and without: as if every layer had a window of three."""
    model = make(family, 3)
    lens, ids = hl.HybridLens(model), tokens(1, 24, 2)
    with torch.no_grad():
        state = lens.prefill(ids[:, :-1]).state
        ours = lens.extend(keep_last(state, 2), ids[:, -1:])
        masked = []

        def only(x, hook):
            x[..., hook.slots.key_positions[0] < 21] = float("-inf")
            masked.append(hook.name)
            return x

        with lens.hooks([(lambda name: name.endswith("attn_scores"), only)]):
            expected = lens.extend(state, ids[:, -1:])
    assert len(masked) == lens.cfg.n_layers
    close(ours.logits, expected.logits, FORWARD)
    assert all(memory["attn"].slots == 3 for memory in keep_last(ours.state, 3).layers)


@MIXED
def test_places_are_looked_up_in_the_layers_meant(family):
    """A position that a window has passed can be dropped where it is held, and is refused where nobody holds it."""
    lens = hl.HybridLens(make(family, 3))
    windowed, full = layers_of(lens)
    with torch.no_grad():
        state, other = (lens.prefill(tokens(1, 20, seed)).state for seed in (1, 2))
        plain = lens.extend(state, [[7]]).logits
        everywhere = lens.extend(drop(state, [2]), [[7]]).logits
        there = lens.extend(drop(state, [2], layers=full), [[7]]).logits
        swapped = swap(state, other, layers=windowed)
    assert float((plain - there).abs().max()) > 10 * bound(float(plain.abs().max()), FORWARD)
    close(everywhere, there, FORWARD)
    with pytest.raises(
        InputError, match=r"position 2 given, but the cache of row 0 holds positions 16\.\.19 of its wi"
    ):
        drop(state, [2], layers=windowed)
    for layer in windowed:
        assert torch.equal(swapped.layers[layer]["attn"].k, other.layers[layer]["attn"].k)


def test_states_of_other_windows_are_told_apart():
    """Two models that differ in nothing but which layers have the window: their states are not exchanged."""
    kinds = (
        ["sliding_attention", "full_attention", "full_attention"],
        ["full_attention", "full_attention", "sliding_attention"],
    )
    one, other = (hl.HybridLens(make("gemma2", 3, layer_types=kind)) for kind in kinds)
    with torch.no_grad(), pytest.raises(InputError, match="the state is of a model gemma2:"):
        other.extend(one.prefill(tokens(1, 9)).state, [[5]])
