"""Figure 2 for 20 prompts, at real width in bfloat16: our engine against the plain way, and the memory it takes.

The models are those of `gpu.speed`. The prompts are one haystack of random ids at four lengths with a needle at five
depths, so that they share beginnings as the paper's do. Every prompt is answered under every k, in the version that
keeps the most focused heads while answering and in the one that does so while reading, too. The plain way is
`benchmarks.plain`: the library's own model and `generate`, one prompt at a time; two of its cells of each version are
timed and stand for all others of theirs.

How it fails: that time is the library's loop over tokens, a loop of launches, so that it hangs on the processor too.
"""

from __future__ import annotations

import time

import torch
from benchmarks import plain

from analyses.heads.answering import Treated, treatments, work_of
from analyses.heads.treatment import Treatment
from gpu.contract import forget
from gpu.rows import Rows, settle
from gpu.speed import GB, configs, made
from hybridlens import HybridLens
from hybridlens.engine import Answer, Sweep
from hybridlens.niah import Prompt
from hybridlens.results import CellKey

FLOOR = 20
"""How many times faster than the plain way, at least."""

NEEDLE, NEW, BOUNDARY = 24, 40, "first_new_token"
"""Tokens of the needle and of an answer; the plain way's boundary: the first new token comes out of the prefill."""

VERSIONS = ("generation", "prefill")


def main(rows: Rows, argument: str) -> None:
    """One of the two models."""
    kind, config = configs(rows.cuda)[argument]
    lens = HybridLens(made(rows.device, kind, config))
    lens.hf_model.generation_config.pad_token_id = 0
    cells = grid(lens, 1000 if rows.cuda else 60)
    answers: dict[CellKey, Answer] = {}
    with rows.check("ours"):
        seconds = ours(rows, lens, cells, answers)
        theirs(rows, lens, cells, answers, seconds)
    with rows.check("captured"):
        if not rows.late("the generation version in plain and captured steps", 10 if rows.cuda else 30):
            both_ways(rows, lens, {key: prompt for key, prompt in cells.items() if key.phase == "generation"})


def grid(lens: HybridLens, longest: int) -> dict[CellKey, Prompt]:
    """All cells: 20 prompts under six k or more in both versions."""
    n, drawn = lens.cfg.n_heads, torch.Generator().manual_seed(0)
    hay = torch.randint(4, lens.cfg.d_vocab, (longest,), generator=drawn).tolist()
    needle = torch.randint(4, lens.cfg.d_vocab, (min(NEEDLE, longest // 10),), generator=drawn).tolist()
    cells: dict[CellKey, Prompt] = {}
    for quarter in range(4):
        length = longest * (7 + quarter) // 10
        for depth in range(5):
            at = (length - len(needle)) * depth // 4
            ids = tuple(hay[:at] + needle + hay[at : length - len(needle)])
            span = (at, at + len(needle))
            prompt = Prompt("", ids, length, 25 * depth, span, (span,), "base", False, "clean", False)
            for version in VERSIONS:
                for k in kept(n):
                    cells[CellKey("fig2", version, k, length, 25 * depth, False, boundary=BOUNDARY)] = prompt
    return cells


def kept(n_heads: int) -> list[int]:
    """The numbers of heads kept: all up to ten heads, else nine of them."""
    return list(range(n_heads + 1)) if n_heads <= 10 else [n_heads * part // 8 for part in range(9)]


def answered(
    lens: HybridLens, cells: dict[CellKey, Prompt], capture: bool | None = None
) -> tuple[dict[CellKey, Answer], Sweep]:
    """What all cells say, by the engine."""
    work = work_of(list(cells), cells, lens.cfg.n_heads)
    sweep = Sweep(lens, Treated(lens), BOUNDARY, NEW, capture=capture)
    found: dict[CellKey, Answer] = {}
    for batch in sweep.run([piece.job for piece in work]):
        for one in batch:
            found |= dict.fromkeys(work[one.job].keys, one.answer)
    return found, sweep


def ours(rows: Rows, lens: HybridLens, cells: dict[CellKey, Prompt], answers: dict[CellKey, Answer]) -> float:
    """Seconds of the whole, with steps captured on a GPU."""
    answered(lens, dict(list(cells.items())[: len(cells) // 20]))  # one prompt: kernels and plans are made here
    settle(rows.device)
    before = 0
    if rows.cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    found, sweep = answered(lens, cells)
    settle(rows.device)
    seconds = time.perf_counter() - began
    answers |= found
    shortest, longest = (f(len(prompt.tokens) for prompt in cells.values()) for f in (min, max))
    about = f"20 prompts of {shortest} to {longest} tokens, k = {', '.join(map(str, kept(lens.cfg.n_heads)))}"
    rows.add(f"{len(cells)} cells", f"{about}; both versions, {NEW} new tokens each")
    rows.add("ours", f"{seconds:.2f} s, {len(cells) / seconds:.1f} cells a second")
    tally = sweep.tally
    rows.add(
        "ours: reading", f"{tally.prefilled} tokens in {tally.passes} passes, {tally.distinct} distinct beginnings"
    )
    if rows.cuda:
        most = (torch.cuda.max_memory_allocated() - before) / GB
        rows.add("ours: memory", f"{most:.2f} GB at the peak beyond {before / GB:.1f} GB of weights")
        allowed = sweep.budget.memory
        rows.judge("ours: memory, of what it may hold", most * GB <= allowed, f"{most * GB / allowed:.0%}", "100%")
    return seconds


def both_ways(rows: Rows, lens: HybridLens, cells: dict[CellKey, Prompt]) -> None:
    """The version whose reading is shared by all k: in plain steps and in captured ones, what they say and when."""
    took: dict[bool, float] = {}
    said: dict[bool, dict[CellKey, Answer]] = {}
    for capture in (False, True):
        settle(rows.device)
        began = time.perf_counter()
        said[capture], _ = answered(lens, cells, capture)
        settle(rows.device)
        took[capture] = time.perf_counter() - began
    about = f"{took[False]:.2f} s plain, {took[True]:.2f} s captured, {took[False] / took[True]:.1f} × as fast"
    rows.add(f"generation version, {len(cells)} cells", about)
    same = sum(one.tokens == said[True][key].tokens for key, one in said[False].items())
    rows.add("generation version: cells that say the same captured", same, len(cells))


def theirs(
    rows: Rows, lens: HybridLens, cells: dict[CellKey, Prompt], answers: dict[CellKey, Answer], seconds: float
) -> None:
    """Two cells of each version the plain way, and how many times longer all would take."""
    n, took = lens.cfg.n_heads, {version: list[float]() for version in VERSIONS}
    same = compared = 0
    middle = kept(n)[len(kept(n)) // 2]
    for turn in range(2):
        for version in VERSIONS:
            if turn and rows.end - time.monotonic() < 1.2 * took[version][0] + 10:
                continue  # the row says how many cells there were
            chosen = [key for key in cells if key.phase == version and key.k == middle]
            key = chosen[(2 + 7 * turn) % len(chosen)]
            began = time.perf_counter()
            tokens = plain.said(
                lens.hf_model, cells[key].tokens, *(stage(one, n) for one in treatments(key, n)), new=NEW
            )
            took[version].append(time.perf_counter() - began)
            same += tuple(tokens) == answers[key].tokens
            compared += 1
    forget(lens.hf_model)
    each = {version: sum(times) / len(times) for version, times in took.items()}
    count = {version: sum(key.phase == version for key in cells) for version in VERSIONS}
    for version in VERSIONS:
        about = f"mean of {len(took[version])} cells, which stand for {count[version]}"
        rows.add(f"the plain way, {version} version", f"{each[version]:.2f} s a cell ({about})")
    whole = sum(each[version] * count[version] for version in VERSIONS)
    faster, what = whole / seconds, "times faster than the plain way"
    about = f"{whole:.0f} s extrapolated from {compared} cells to {len(cells)}, ours {seconds:.2f} s"
    if rows.cuda:
        rows.judge(what, faster >= FLOOR, f"{faster:.0f} ({about})", f"≥ {FLOOR}")
    else:
        rows.add(what, f"{faster:.1f} ({about})", f"≥ {FLOOR} on a GPU")
    rows.add("cells that say the same the plain way", f"{same} of {compared}; in bfloat16 near ties fall either way")


def stage(treatment: Treatment | None, n_heads: int) -> plain.Stage:
    """A cell's treatment as the plain way takes it."""
    if treatment is None:
        return plain.Stage()
    return plain.Stage(treatment.k if treatment.k < n_heads else None, treatment.mode)
