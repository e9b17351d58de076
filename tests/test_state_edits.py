"""Edits of matrix states through whole models, against plain loops: what persists, what follows, what stays frozen.

The loops take decays, addresses and values as hooks read them in the same pass, and no operator of hybridlens.
"""

import pytest
import torch
from models import make, tokens
from torch.testing import assert_close

from hybridlens import HybridLens

LENGTH = 13
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Between float64 loops and float32: some hundred roundings of values around 1."""
PARTS = ("v", "k", "q", "decay", "dt", "beta", "recall", "write", "state", "y")


def lens_of(family):
    return HybridLens(make(family, 2))


def captured(lens, hooks=(), ids=None, state=None):
    """What stands at the points of layer 0, edits included, and the run."""
    seen, names = {}, [f"blocks.0.ssm.hook_{part}" for part in PARTS]
    names = [name for name in names if name in lens.hook_points]
    with torch.no_grad(), lens.hooks([*hooks, (names, lambda x, hook: seen.__setitem__(hook.name, x.clone()))]):
        out = lens.network(tokens(2, LENGTH) if ids is None else ids, None, state)
    return {name.split("hook_")[1]: value for name, value in seen.items()}, out


def loop(seen, edits, start=None):
    """Recalls, writes, states and readouts less any skip, edits put in where they act: {(part, t): (value, mask)}."""
    v, k, q, decay = (seen[part].double() for part in ("v", "k", "q", "decay"))
    state = torch.zeros(*v[:, 0].shape, k.shape[-1], dtype=torch.float64) if start is None else start.double()
    recalls, writes, states, reads = [], [], [], []

    def edited(part, t, made):
        value, mask = edits.get((part, t), (made, torch.zeros(())))
        return torch.where(mask.bool(), value.double(), made)

    for t in range(v.shape[1]):
        state = decay[:, t, :, None, None] * state
        recall = edited("recall", t, (state * k[:, t, :, None]).sum(-1))
        if "beta" in seen:
            new = seen["beta"][:, t, :, None].double() * (v[:, t] - recall)
        else:
            new = seen["dt"][:, t, :, None].double() * v[:, t]
        write = edited("write", t, new[..., None] * k[:, t, :, None])
        state = edited("state", t, state + write)
        recalls.append(recall)
        writes.append(write)
        states.append(state)
        reads.append((state * q[:, t, :, None]).sum(-1))
    return {
        "recall": torch.stack(recalls, 1), "write": torch.stack(writes, 1), "state": torch.stack(states, 1),
        "read": torch.stack(reads, 1),
    }  # fmt: skip


def skip(lens, seen):
    """What the readout holds besides the state."""
    mixer = lens.blocks[0].ssm.parts.mixer
    return mixer.D.double()[:, None] * seen["v"].double() if hasattr(mixer, "D") else torch.zeros(())


def some(shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.6


def putting(values, masks):
    """A hook that puts values in where its masks say so, at some positions."""

    def put(x, hook):
        x = x.clone()
        for t, mask in masks.items():
            x[:, t] = torch.where(mask, values[t], x[:, t])
        return x

    return put


FAMILIES = ("mamba2", "falcon_h1", "qwen3_next")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["state", "write", "recall"])
def test_an_edit_acts_in_time_order(family, part):
    """Random entries at positions 3 and 7: everything later is what the loop makes of them, everything before stays.

    For the delta rule that means recalls and writes anew from the edited state.
    """
    lens = lens_of(family)
    if f"blocks.0.ssm.hook_{part}" not in lens.hook_points:
        assert part == "recall"
        assert family != "qwen3_next"
        return
    plain, _ = captured(lens)
    shape = plain[part][:, 0].shape
    masks = {t: some(shape, t) for t in (3, 7)}
    values = {t: torch.randn(shape, generator=torch.Generator().manual_seed(9 + t)) for t in masks}
    seen, out = captured(lens, [(f"blocks.0.ssm.hook_{part}", putting(values, masks))])
    truth = loop(plain, {(part, t): (values[t], masks[t]) for t in masks})
    assert_close(seen["y"].double(), truth["read"] + skip(lens, plain), **CLOSE)
    assert_close(out.state.layers[0]["ssm"].recurrent.double(), truth["state"][:, -1], **CLOSE)
    if part != "state":
        assert_close(seen["state"].double(), truth["state"], **CLOSE)
    if part == "recall":
        assert_close(seen["write"].double(), truth["write"], **CLOSE)
    assert torch.equal(seen["y"][:, :3], plain["y"][:, :3])
    assert not torch.allclose(seen["y"][:, 8:], plain["y"][:, 8:], atol=1e-3)


def test_edits_of_one_delta_layer_add_up():
    """Recalls, writes and states at once: each acts on what the earlier ones in time, and in the step, have left."""
    lens = lens_of("qwen3_next")
    plain, _ = captured(lens)
    edits, hooks = {}, []
    for number, (part, times) in enumerate({"recall": (2, 6), "write": (4, 6), "state": (5,)}.items()):
        shape = plain[part][:, 0].shape
        masks = {t: some(shape, 10 * number + t) for t in times}
        values = {t: torch.randn(shape, generator=torch.Generator().manual_seed(40 * number + t)) for t in times}
        edits |= {(part, t): (values[t], masks[t]) for t in times}
        hooks.append((f"blocks.0.ssm.hook_{part}", putting(values, masks)))
    seen, out = captured(lens, hooks)
    truth = loop(plain, edits)
    assert_close(seen["y"].double(), truth["read"], **CLOSE)
    assert_close(out.state.layers[0]["ssm"].recurrent.double(), truth["state"][:, -1], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edited_decay_persists(family):
    lens = lens_of(family)

    def forget(x, hook):
        x[:, 5] = 0.0

    plain, _ = captured(lens)
    seen, out = captured(lens, [("blocks.0.ssm.hook_decay", forget)])
    plain["decay"][:, 5] = 0.0
    truth = loop(plain, {})
    assert_close(seen["y"].double(), truth["read"] + skip(lens, plain), **CLOSE)
    assert_close(out.state.layers[0]["ssm"].recurrent.double(), truth["state"][:, -1], **CLOSE)


@pytest.mark.parametrize("pieces", [(13,), (4, 5, 4), (6, *(1,) * 7)])
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_entries_keep_their_values_whatever_came_before(family, pieces):
    """State 2 is changed, states 6 are frozen where a mask says so: read at once, in chunks, token by token."""
    lens, ids = lens_of(family), tokens(2, LENGTH)
    plain, _ = captured(lens)
    shape = plain["state"][:, 0].shape
    mask, noise = some(shape, 3), torch.randn(shape, generator=torch.Generator().manual_seed(3))
    truth = loop(plain, {("state", 2): (noise, torch.ones(())), ("state", 6): (plain["state"][:, 6], mask)})
    start, state, reads = 0, None, []
    for size in pieces:

        def act(x, hook, start=start, size=size):
            if start <= 6 < start + size:
                if not start <= 2 < start + size:  # an earlier piece was edited: the frozen value is the old one
                    x[:, 6 - start] = torch.where(mask, plain["state"][:, 6], x[:, 6 - start])
                frozen = torch.zeros_like(x, dtype=torch.bool)
                frozen[:, 6 - start] = mask
                hook.freeze(frozen)
            if start <= 2 < start + size:
                x[:, 2 - start] = noise

        seen, out = captured(lens, [("blocks.0.ssm.hook_state", act)], ids[:, start : start + size], state)
        reads.append(seen["y"])
        state, start = out.state, start + size
    assert_close(torch.cat(reads, 1).double(), truth["read"] + skip(lens, plain), **CLOSE)
    assert_close(state.layers[0]["ssm"].recurrent.double(), truth["state"][:, -1], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_at_padding_touch_nothing(family):
    """Of rows of 13, 4 and 9 tokens every point is overwritten at the padding alone, name by name.

    What is real stays, to rounding: where experts' tokens are computed together, their number is another.
    """
    lens, lengths = lens_of(family), [13, 4, 9]
    rows = [tokens(1, n, seed=n)[0].tolist() for n in lengths]
    real = torch.arange(13) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        plain_state, plain = lens.prefill(rows)
        for name, spec in lens.hook_points.items():
            if spec.read_only or "k" in spec.axes or name.endswith("expert_indices"):
                continue

            def spoil(x, hook):
                there = real.reshape(*real.shape, *[1] * (x.ndim - 2))
                return torch.where(there, x, x * 2 + 3)

            with lens.hooks([(name, spoil)]):
                state, logits = lens.prefill(rows)
            for row, length in enumerate(lengths):
                if name != "hook_logits":
                    assert_close(logits[row, :length], plain[row, :length], **CLOSE, msg=name)
            for mine, other in zip(state.layers, plain_state.layers, strict=True):
                if "ssm" in mine:
                    for key, value in mine["ssm"].tensors().items():
                        assert_close(value, other["ssm"].tensors()[key], **CLOSE, msg=f"{name}: {key}")


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_add_up_to_what_the_mixer_writes(family):
    """Recurrent heads and attention heads, less the bias; two mixers to what they add together."""
    lens, ids = HybridLens(make(family, 3)), tokens(2, 9)
    with torch.no_grad():
        cache = lens.run_with_cache(ids)[1]
    for layer, has in enumerate(lens.cfg.layers):
        block, parts = f"blocks.{layer}", []
        for mixer, there in (("ssm", has.ssm), ("attn", has.attn)):
            if there is None:
                continue
            out = cache[f"{block}.hook_{mixer}_out"]
            bias = lens.blocks[layer].parts[mixer].out_bias()
            total = cache[f"{block}.{mixer}.hook_result"].sum(2) + (0 if bias is None else bias)
            assert_close(total, out, rtol=1e-5, atol=1e-5)
            parts.append(out)
        assert_close(sum(parts), cache[f"{block}.hook_mixer_out"], rtol=1e-6, atol=1e-6)
