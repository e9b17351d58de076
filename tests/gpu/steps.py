"""Captured decode steps against plain ones, every family, small: the same tokens, logits to rounding, no waits.

In float32, where a slot, a position or a state that is one step off shows and rounding does not. On a CPU a captured
step is the list of its operations done again, which says the same but for the graph.

How it fails: two logits that agree to rounding may choose another token; the row says how close the closest choice was.
"""

from __future__ import annotations

import time
from typing import Any

import models
import torch

from gpu.rows import Rows, off, settle
from gpu.syncs import waits
from hybridlens import HybridLens
from hybridlens.decoding import Decoded, Decoding, begin, decode
from hybridlens.fixed_steps import FixedSteps
from hybridlens.tokens import TokenBatch

STEPS = 12
ENDS = tuple(range(0, models.VOCAB, 5))


def main(rows: Rows, argument: str) -> None:
    """Every family."""
    for family in models.EVERY_FAMILY:
        with rows.check(family), torch.no_grad():
            one(rows, family)


def one(rows: Rows, family: str) -> None:
    """Rows of three lengths that end at different steps; then logits of the same tokens, both ways."""
    lens = HybridLens(models.make(family).to(rows.device))
    network, ids = lens.network, models.tokens(3, 24).to(rows.device)
    lengths = torch.tensor([24, 9, 17])

    def said(**how: Any) -> Decoded:
        start = begin(network, TokenBatch(ids, lengths), (), "last_prompt_token")
        return decode(network, start, Decoding(STEPS, **how))

    for ends, ended in (((), "stay"), (ENDS, "stay"), (ENDS, "leave")):
        plain, fixed = (said(ends=ends, ended=ended, capture=capture) for capture in (False, True))
        about = f"closest choice {float(plain.margins.min()):.2g}"
        words = f"{family}: tokens, {'ends' if ends else 'no ends'}, rows {ended}"
        rows.judge(words, plain.tokens == fixed.tokens, about, "captured = plain")
    ahead = said(ends=ENDS, capture=False, ahead=3)
    now = said(ends=ENDS, capture=False, ahead=0)
    same = ahead.tokens == now.tokens and torch.equal(ahead.state.lengths, now.state.lengths)
    rows.judge(f"{family}: three steps ahead", same, "tokens and lengths", "as without")
    state = network(ids).state
    steps, logits = FixedSteps(network, state, STEPS, masked=False), list[torch.Tensor]()
    theirs = list[torch.Tensor]()
    for t in range(STEPS):
        out = network(ids[:, t : t + 1], None, state)
        state = out.state
        theirs.append(out.logits[:, 0].cpu())
        logits.append(steps.read(ids[:, t], None).cpu())
    rows.most(f"{family}: logits, captured against plain", off(torch.stack(logits), torch.stack(theirs)), 1e-4)
    timed(rows, family, lens, ids)


def timed(rows: Rows, family: str, lens: HybridLens, ids: torch.Tensor) -> None:
    """Seconds a step, and waits, without the steps in which one is recorded."""
    network, seconds = lens.network, list[float]()
    state = network(ids).state
    steps, one = FixedSteps(network, state, STEPS, masked=False), ids[:, 0]
    for _ in range(3):
        steps.read(one, None)
    state = network(ids[:, :1], None, state).state
    for run in (lambda: steps.read(one, None), lambda: network(ids[:, :1], None, state)):
        settle(rows.device)
        began = time.perf_counter()
        for _ in range(4):
            run()
        settle(rows.device)
        seconds.append((time.perf_counter() - began) / 4)
    with waits(rows.device) as found:
        steps.read(one, None)
    rows.judge(f"{family}: waits of a captured step", not found, dict(found) or 0, 0)
    rows.add(f"{family}: plain step ÷ captured", f"{seconds[1] / seconds[0]:.1f} ({seconds[0] * 1e3:.2f} ms captured)")
