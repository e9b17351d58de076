"""What queries may see is a rule: masks of any queries and keys, and long passes in blocks, against float64."""

import math

import pytest
import torch
from models import FAMILIES, make, tokens

import hybridlens as hl
from hybridlens.mixers import attention
from hybridlens.mixers.attention import fused_attention
from hybridlens.passes import Pass
from hybridlens.shapes import Valid
from hybridlens.state import HybridState

BATCH, HEADS, GROUPS, WIDTH, NEW = 3, 4, 2, 8, 23
HELD = torch.tensor([[0, 1, 2, -1, -1], [4, 5, 6, 7, 8], [-1, -1, -1, -1, -1]])
READ = torch.tensor([3, 9, 0])
LENGTHS = torch.tensor([23, 11, 1])
WINDOWS = (None, 2, 7, 30)


def a_pass(continued: bool, ragged: bool) -> Pass:
    """Rows of 3, 9 and no tokens, or none at all, read on by up to 23."""
    state = HybridState("", READ, HELD, ()) if continued else None
    return Pass(torch.zeros(BATCH, NEW, dtype=torch.long), LENGTHS if ragged else None, state)


def may_see(run: Pass, window: int | None, row: int, query: int, key: int) -> bool:
    """By absolute positions, for queries that are no padding."""
    at, stands = int(run.positions.expand(BATCH, -1)[row, query]), int(run.key_positions[row, key])
    return 0 <= stands <= at and (window is None or stands > at - window)


def real(run: Pass) -> Valid:
    return torch.ones(BATCH, NEW, dtype=torch.bool) if run.valid is None else run.valid


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("continued", [False, True])
def test_masks_are_what_positions_say(continued: bool, ragged: bool, window: int | None) -> None:
    """Entry by entry for the whole, its blocks and their reach; what a block does not reach none of its queries see."""
    run = a_pass(continued, ragged)
    slots, there = run.slots(window), real(run)
    whole = slots.dense(run.device).expand(BATCH, 1, -1, -1)[:, 0]
    for row, query in there.nonzero().tolist():
        seen = [may_see(run, window, row, query, key) for key in range(whole.shape[2])]
        assert whole[row, query].tolist() == seen
    assert bool(whole.any(dim=2).all()), "a query that sees nothing has no softmax"
    for start, stop in [(0, 5), (1, 2), (5, 12), (12, 23), (22, 23)]:
        block = slots.block(start, stop)
        keys = block.key_positions.shape[1]
        assert torch.equal(block.dense(run.device).expand(BATCH, 1, -1, -1)[:, 0], whole[:, start:stop, :keys])
        near = slots.reached(start, stop)
        part = slots.part(start, stop, near)
        assert torch.equal(part.dense(run.device).expand(BATCH, 1, -1, -1)[:, 0], whole[:, start:stop, near])
        far = whole[:, start:stop].clone()
        far[:, :, near] = False
        assert not bool(far[there[:, start:stop]].any())
        if window is not None and start >= window - 1:
            assert part.key_positions.shape[1] == stop - start + window - 1


def exactly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax attention in float64, [b p h e]."""
    k, v = (held.double().repeat_interleave(HEADS // GROUPS, dim=1) for held in (k, v))
    scores = (q.double().transpose(1, 2) @ k.transpose(2, 3) * scale).masked_fill(~seen, -math.inf)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("continued", [False, True])
def test_blocks_give_what_the_whole_gives(
    continued: bool, ragged: bool, lost: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64: a sum of n terms of size 1 is off by n eps at most, and the softmax's by a few eps more."""
    run = a_pass(continued, ragged)
    slots, keys = run.slots(window), run.key_positions.shape[1]
    if lost:
        kept = torch.ones(BATCH, GROUPS, keys, dtype=torch.bool)
        kept[:, 0, 1:3] = kept[:, 1, 4] = False
        kept[:, :, -NEW] = True  # the first of the pass stays, so that nobody is left without a key
        slots = slots.without(kept, HEADS)
    q = torch.randn(BATCH, NEW, HEADS, WIDTH)
    k, v = torch.randn(2, BATCH, GROUPS, keys, WIDTH)
    seen = slots.dense(run.device)
    here = real(run)[:, :, None].expand(-1, -1, HEADS) & seen.any(dim=-1).transpose(1, 2).expand(BATCH, -1, HEADS)
    monkeypatch.setattr(attention, "FUSED_BLOCK", 4)
    blocks = fused_attention(q, k, v, slots, WIDTH**-0.5)
    expected = exactly(q, k, v, seen, WIDTH**-0.5)
    bound = 4 * (keys + WIDTH) * torch.finfo(torch.float32).eps * float(v.abs().max())
    assert here.sum() > BATCH * HEADS
    torch.testing.assert_close(blocks[here].double(), expected[here], rtol=0, atol=bound)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_reads_the_same_in_blocks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and after a state, ragged, gradients included; reading a pattern changes no bit, and sees all keys."""
    lens, ids, lengths = hl.HybridLens(make(family)), tokens(2, 40, seed=1), torch.tensor([40, 33])
    name = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern"

    def read() -> list[torch.Tensor]:
        state, logits = lens.prefill(ids[:, :9])
        after = lens.extend(state, ids[:, 9:], lengths=lengths - 9).logits
        whole, cache = lens.run_with_cache(ids, name)
        assert torch.equal(whole, lens(ids))
        (grad,) = torch.autograd.grad(whole.square().mean(), lens.hf_model.get_input_embeddings().weight)
        return [logits, after[0], after[1, :24], whole, cache[name], grad]

    once = read()
    monkeypatch.setattr(attention, "FUSED_BLOCK", 7)
    for got, expected in zip(read(), once, strict=True):
        size = float(expected.detach().abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=1000 * torch.finfo(torch.float32).eps * size)


def test_no_mask_of_a_long_prompt_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4,000 queries and keys with a window of 7 the kernel is given masks of a block by a block and a window."""
    masks: list[torch.Size] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def seen(*args: torch.Tensor, attn_mask: torch.Tensor, **options: object) -> torch.Tensor:
        masks.append(attn_mask.shape)
        return kernel(*args, attn_mask=attn_mask, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    with torch.no_grad():
        hl.HybridLens(make("recurrentgemma")).prefill(tokens(1, 4000), last_only=True)
    assert len(masks) == math.ceil(4000 / attention.FUSED_BLOCK)
    assert max(shape.numel() for shape in masks) <= attention.FUSED_BLOCK * (attention.FUSED_BLOCK + 7)


def test_the_last_logits_alone_are_unembedded() -> None:
    """One position of each row reaches the logits' hook point, its own last; the same as of all, in the same place."""
    lens, ids = hl.HybridLens(make("jamba")), tokens(2, 12)
    shapes: list[torch.Size] = []
    with torch.no_grad():
        whole = lens.prefill(ids, lengths=[12, 5]).logits
        note = hl.Edit("hook_logits", lambda x, hook: shapes.append(x.shape))
        last = lens.prefill(ids, [note], lengths=[12, 5], last_only=True).logits
    assert shapes == [last.shape] == [(2, 1, whole.shape[2])]
    eps = 1000 * torch.finfo(torch.float32).eps * float(whole[0].abs().max())
    torch.testing.assert_close(last[:, 0], torch.stack([whole[0, 11], whole[1, 4]]), rtol=0, atol=eps)
