"""Surgery on recurrent memories: against plain loops over single entries, row by row."""

import random

import pytest
import torch
from bounds import FEW, LAYER, bound, close
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_loops import read, rows, same
from models import FAMILIES, make, tokens

from analyses import kv_cache
from hybridlens import HybridLens
from hybridlens.errors import InputError
from hybridlens.memory import Recurrent


@pytest.fixture(scope="module", params=[(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")])
def lens(request: pytest.FixtureRequest) -> HybridLens:
    family, dtype = request.param
    return HybridLens(make(family, 5, num_hidden_layers=6).to(getattr(torch, dtype)))


@pytest.fixture(scope="module", params=FAMILIES)
def exact(request: pytest.FixtureRequest) -> HybridLens:
    return HybridLens(make(request.param, 5, num_hidden_layers=6))


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10_000), parts=st.sampled_from(["conv", "recurrent", "both"]))
def test_recurrent_memories_against_plain_loops(lens: HybridLens, seed: int, parts: str) -> None:
    """Random layers, rows and channels: each number inside changed as said, each outside by no bit."""
    rng, cfg = random.Random(seed), lens.cfg
    state, other = read(lens, rows(seed)), read(lens, rows(seed + 1))
    before = state.clone()
    where = {
        "layers": rng.sample(cfg.ssm_layers, rng.randint(1, len(cfg.ssm_layers))), "rows": rng.sample(range(3), 2),
        "channels": rng.sample(range(cfg.d_channels), 5),
    }  # fmt: skip
    direction = torch.randn(cfg.d_channels, generator=torch.Generator().manual_seed(seed))

    def without(x: torch.Tensor, part: str) -> torch.Tensor:
        """One tap, or one of Mamba's columns, after the other."""
        unit, out = (direction / direction.norm()).double(), x.double().clone()
        columns = out if part == "conv" else out.reshape(cfg.d_channels, -1).T  # views
        for column in columns:
            column -= (column @ unit) * unit
        return out

    for changed, expected in (
        (kv_cache.zero_recurrent(state, parts, **where), lambda x, *_: 0.0 * x),
        (kv_cache.decay(state, 0.25, parts, **where), lambda x, *_: 0.25 * x),
        (kv_cache.swap_recurrent(state, other, parts, **where), lambda x, given, *_: given),
        (kv_cache.project_out(state, direction, parts, **where), lambda x, given, part: without(x, part)),
    ):
        for layer, (old, new) in enumerate(zip(state.layers, changed.layers, strict=True)):
            if "attn" in old:
                assert old["attn"] is new["attn"]
                continue
            old, new, theirs = old["ssm"], new["ssm"], other.layers[layer]["ssm"]
            for part in ("conv", "recurrent"):
                for row in range(3):
                    was, now, given_ = (getattr(x, part)[row] for x in (old, new, theirs))
                    inside = layer in where["layers"] and row in where["rows"] and parts in (part, "both")
                    wanted = torch.as_tensor(expected(was, given_, part)).to(now) if inside else was
                    meant = torch.zeros_like(was, dtype=torch.bool)
                    if inside:
                        meant.movedim(1 if part == "conv" else 0, 0)[where["channels"]] = True
                    assert torch.equal(now[~meant], was[~meant])
                    close(now[meant], wanted[meant], FEW, scale=float(was.abs().max()), dtype=lens.dtype)
    back = kv_cache.swap_recurrent(kv_cache.swap_recurrent(state, other, parts, **where), state, parts, **where)
    assert same(back, before)
    assert same(state, before)


def test_reset_is_an_unread_memory(exact: HybridLens) -> None:
    """What an unread row has, bit for bit; and after a reset everywhere the next token reads as from an empty state.

    RecurrentGemma scales position 0 otherwise, so there only the memory is compared.
    """
    state = read(exact, rows())
    fresh = kv_cache.reset(state)
    unread = exact.network.empty_state(3)
    for layer in exact.cfg.ssm_layers:
        ours, theirs = fresh.layers[layer]["ssm"], unread.layers[layer]["ssm"]
        assert isinstance(ours, Recurrent)
        assert isinstance(theirs, Recurrent)
        assert torch.equal(ours.conv, theirs.conv)
        assert torch.equal(ours.recurrent, theirs.recurrent)
    if exact.cfg.window is None:
        with torch.no_grad():
            nothing = kv_cache.keep(fresh, [])
            close(exact.extend(nothing, tokens(3, 4)).logits, exact.prefill(tokens(3, 4)).logits)


def test_convolution_inputs_by_position(exact: HybridLens) -> None:
    """The last taps of each row, by absolute position; an earlier one is refused with those that are held."""
    state = read(exact, rows())
    layer = exact.cfg.ssm_layers[-1]
    changed = kv_cache.zero_recurrent(state, "conv", layers=layer, rows=[0], positions=[10]).layers[layer]["ssm"].conv
    taps = exact.cfg.d_conv - 1
    expected = state.layers[layer]["ssm"].conv.clone()
    expected[0, taps - 2] = 0
    assert torch.equal(changed, expected)
    with pytest.raises(InputError, match=r"position 5 given, but the convolution of row 0 holds positions 9\.\.11"):
        kv_cache.zero_recurrent(state, "conv", positions=[5])
    with pytest.raises(InputError, match="a recurrent state has none"):
        kv_cache.decay(state, 0.5, positions=[10])


def test_direction_of_the_whole_mamba_state() -> None:
    """A direction [channel, state] is taken out of the state as one vector: what is left is at right angles to it."""
    lens = HybridLens(make("jamba", 5))
    state = read(lens, rows())
    direction = torch.randn(lens.cfg.d_channels, lens.cfg.d_state, generator=torch.Generator().manual_seed(1))
    layer = lens.cfg.ssm_layers[0]
    old, new = (s.layers[layer]["ssm"].recurrent for s in (state, kv_cache.project_out(state, direction)))
    unit = direction / direction.norm()
    taken, left = ((x * unit).sum(dim=(1, 2)) for x in (old, new))
    close(left, torch.zeros_like(left), LAYER, scale=float((old * unit).abs().max()))
    assert taken.abs().min() > 100 * bound(float((old * unit).abs().max()), LAYER)
    close(new + (old * unit).sum(dim=(1, 2))[:, None, None] * unit, old)
    with pytest.raises(InputError, match="direction of length 0"):
        kv_cache.project_out(state, 0 * direction)
    with pytest.raises(InputError, match=r"shape \[5\] given for the recurrent state of layer 0, expected \[64, 5\]"):
        kv_cache.project_out(state, direction[0])
