"""What top-k by entropy costs at real width in bfloat16: operations, time and memory, while reading and while decoding.

The models are those of `gpu.speed`. Operations are those that PyTorch dispatches, views counted apart; a scan kernel of
Triton's is none of them, so that the ratios are rather too high. A step's time is taken twice, since what is made for
lengths that come for the first time (plans of cuDNN's attention, see `hybridlens.mixers.any_length`) would count for
whichever run comes first.

How it fails: with memory short the blocks are smaller and the operations more; so it runs alone.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from operations import Operations
from torch import Tensor

from analyses.heads.entropy import focus_key
from analyses.heads.manipulation import MODES
from analyses.heads.sparsification import top_k
from analyses.heads.treatment import Treatment, treat
from gpu.rows import Rows, off, timed
from gpu.speed import configs, decoding, made, peak
from gpu.syncs import waits
from hybridlens import HybridLens, at_once
from hybridlens.decoding import Decoded, Decoding, Start, Twice, begin, decode
from hybridlens.fixed_steps import FixedSteps
from hybridlens.hooks import Edit
from hybridlens.mixers import attention
from hybridlens.tokens import TokenBatch

READING, STEP = 1.5, 1.15
"""How many times the operations of the untouched pass, and of the untouched step, top-k may take."""


def main(rows: Rows, argument: str) -> None:
    """One of the two models."""
    kind, config = configs(rows.cuda)[argument]
    lens = HybridLens(made(rows.device, kind, config))
    ids = torch.randint(4, config.vocab_size, (1, 4096 if rows.cuda else 96), device=rows.device)
    with torch.no_grad():
        for check in (exact, reading, steps, cut, first_time):
            with rows.check(check.__name__):
                check(rows, lens, ids)


def exact(rows: Rows, lens: HybridLens, ids: Tensor) -> None:
    """The formula of this device against float64, at scores of every size."""
    for size in (0.1, 1.0, 10.0, 100.0):
        scores = (torch.randn(1, 8, 64, ids.shape[1], device=rows.device) * size).bfloat16()
        scores[..., ids.shape[1] // 2 :] = float("-inf")
        wide = scores.double().softmax(-1)
        bits = torch.special.entr(wide).sum(-1) / torch.tensor(2.0).double().log().item()
        rows.most(f"entropy of scores of size {size}: off float64's", off(focus_key(scores), bits), 1e-5)


def judged(rows: Rows, what: str, kept: Operations, plain: Operations, times: float) -> None:
    """A row of operations with top-k against those without; judged where they are a GPU's."""
    ratio = max(kept.all / plain.all, kept.launches / plain.launches)
    about = f"{kept.all} against {plain.all}, of which {kept.launches} and {plain.launches} are no views"
    if rows.cuda:
        rows.most(f"operations, {what}: top-k ÷ without", ratio, times, about)
    else:
        rows.add(f"operations, {what}: top-k ÷ without", f"{ratio:.3g} ({about})")


def reading(rows: Rows, lens: HybridLens, ids: Tensor) -> None:
    """A prompt, at 4,096 tokens: operations, time and memory."""
    k = lens.cfg.n_heads // 2
    ways: dict[str, list[Any]] = {
        "without": [],
        "top-k": top_k(lens, k, "both"),
        "published top-k": top_k(lens, k, "both", semantics="published"),
        "top-k of the whole model, two passes": top_k(lens, k, "both", "model"),
    }
    about = f"reading {ids.shape[1]} tokens"
    plain, bare = Operations(), 0.0
    for name, edits in ways.items():
        run = partial(lens.prefill, ids, edits, last_only=True)
        seconds = timed(run, rows.device)
        with Operations() as found:
            run()
        if name == "without":
            plain, bare = found, seconds
            rows.add(f"{about} without top-k", f"{seconds * 1e3:.1f} ms")
        else:
            judged(rows, f"{about}, {name}", found, plain, 2 * READING if "two" in name else READING)
            rows.add(f"{about}: {name} ÷ without", f"{seconds / bare:.2f} ({seconds * 1e3:.1f} ms)")
        rows.add(f"{about}, {name}: memory", peak(rows, run))


def steps(rows: Rows, lens: HybridLens, ids: Tensor) -> None:
    """A decode step: operations, and time once all lengths have been met; the same captured."""
    count = 16 if rows.cuda else 4
    for batch in (1, 16):
        prompt = ids[:, :1024].expand(batch, -1)
        ways: dict[str, list[Any]] = {"without": [], "top-k": top_k(lens, lens.cfg.n_heads // 2)}
        first = decoding(rows, lens, prompt, count, [])
        seconds = {
            name: min(decoding(rows, lens, prompt, count, edits) for _ in range(2)) for name, edits in ways.items()
        }
        rows.add(f"a step, batch {batch}: its lengths new", f"{first * 1e3:.2f} ms")
        for name, took in seconds.items():
            rows.add(f"a step, batch {batch}, {name}: its lengths known", f"{took * 1e3:.2f} ms")
        rows.add(f"a step, batch {batch}: top-k ÷ without", f"{seconds['top-k'] / seconds['without']:.2f}")
        found = {name: operations(lens, prompt, edits) for name, edits in ways.items()}
        judged(rows, f"8 steps, batch {batch}", found["top-k"], found["without"], STEP)
        captured(rows, lens, prompt)


def captured(rows: Rows, lens: HybridLens, ids: Tensor) -> None:
    """Captured steps: time, waits, and whether they say what plain ones do; rows of several k and modes, too."""
    batch, n, network = ids.shape[0], lens.cfg.n_heads, lens.network
    start, bare = begin(network, TokenBatch(ids, None), (), "last_prompt_token"), 0.0
    mixed = [Treatment(1 + row % n, MODES[(row + 1) % len(MODES)]) for row in range(batch)]
    ways: dict[str, list[Edit]] = {
        "without": [],
        "top-k": top_k(lens, n // 2),
        "top-k of the whole model, a pass ahead": top_k(lens, n // 2, scope="model"),
        "each row under another k and mode": treat(lens, mixed, [(4, 12)] * batch, "decode"),
    }
    for name, edits in ways.items():
        with rows.check(f"a captured step, batch {batch}, {name}"), lens.editing(edits, "decode") as forward:
            passes = (forward.ahead, forward.now) if isinstance(forward, Twice) else (nullcontext,)
            steps = FixedSteps(network, start.state, 24, masked=False, passes=passes)
            run = partial(steps.read, ids[:, 0], None)
            each = timed(run, rows.device, runs=16, warm=3)
            bare = bare or each
            rows.add(f"a captured step, batch {batch}, {name}", f"{each * 1e3:.2f} ms, {each / bare:.2f} of without")
            with waits(rows.device) as found:
                run()
            rows.judge(f"a captured step, batch {batch}, {name}: waits", not found, dict(found) or 0, 0)
        if edits:
            with rows.check(f"8 captured steps, batch {batch}, {name}"):
                plain, fixed = (said(lens, start, edits, capture) for capture in (False, True))
                same = sum(a == b for a, b in zip(plain.tokens, fixed.tokens, strict=True))
                about = f"{same} (closest choice {float(plain.margins.min()):.2g})"
                rows.add(f"8 steps, batch {batch}, {name}: rows that say the same captured", about, batch)


def said(lens: HybridLens, start: Start, edits: list[Edit], capture: bool) -> Decoded:
    """Eight tokens of each row."""
    return decode(lens.network, start, Decoding(8, edits=lambda rows: edits, capture=capture))


def operations(lens: HybridLens, ids: Tensor, edits: list[Any]) -> Operations:
    """Those of eight tokens, what chooses them included."""
    start = begin(lens.network, TokenBatch(ids, None), (), "last_prompt_token")
    with Operations() as found:
        decode(lens.network, start, Decoding(8, edits=lambda batch: edits))
    return found


def cut(rows: Rows, lens: HybridLens, ids: Tensor) -> None:
    """The same heads in small blocks: what short memory changes."""
    edits, whole = top_k(lens, lens.cfg.n_heads // 2, "both"), at_once.PAYS
    once = lens.prefill(ids, edits, last_only=True).logits
    at_once.PAYS = 1 << 24 if rows.cuda else 1 << 12
    try:
        parts = lens.prefill(ids, edits, last_only=True).logits
        rows.add("logits in eight times as many blocks: off", f"{off(parts, once):.2g}")
    finally:
        at_once.PAYS = whole


def first_time(rows: Rows, lens: HybridLens, ids: Tensor) -> None:
    """A prompt of a length never met before; steps of such lengths, as they are and with cuDNN's attention."""
    part = ids[:, : ids.shape[1] * 3 // 4 - 1]
    once, again = (timed(lambda: lens.prefill(part, last_only=True), rows.device, 1, warm) for warm in (0, 1))
    rows.add(f"reading {part.shape[1]} tokens: the length new, and known", f"{once * 1e3:.1f} ms, {again * 1e3:.1f} ms")
    count, ours = 16 if rows.cuda else 2, attention.any_length
    for name, length, chosen in (
        ("as it is", ids.shape[1] // 5, ours),
        ("with cuDNN's attention", ids.shape[1] // 3, lambda device: nullcontext()),
    ):
        attention.any_length = chosen
        try:
            first, again = (decoding(rows, lens, ids[:, :length], count, []) for _ in range(2))
        finally:
            attention.any_length = ours
        rows.add(f"a step {name}: its lengths new, and known", f"{first * 1e3:.2f} ms, {again * 1e3:.2f} ms")
