"""What a run of the needle experiment leaves beside its cells: its manifest, and the report's patterns and notes.

How it fails: like the parts it calls; a run without a cell that holds a needle has no pattern to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analyses import needle_heads
from analyses.niah_config import VERSIONS, NiahConfig
from analyses.runner import Grid
from hybridlens import niah
from hybridlens.model import HybridLens
from hybridlens.results import Cell, Manifest, hash_json
from hybridlens.viz import PatternFigure

ANSWER_TOKENS = 32
"""Tokens of the answer whose attention is drawn."""


def make_manifest(lens: HybridLens, config: NiahConfig, grid: Grid, weights_hash: str) -> Manifest:
    """What the run is: every argument with its defaults filled in, hashes, and facts of the model."""
    needle = config.hidden
    arguments: dict[str, Any] = {
        "lengths": list(dict.fromkeys(key.length for key in grid)),
        "depths": list(config.depths),
        "control": config.control,
        "needle": needle.sentence,
        "question": needle.question,
        "rubric": [list(rule) for rule in needle.rubric],
        "haystack": "built-in essays" if config.haystack is None else f"sha256 {config.haystack.hash[:16]}",
        "template": config.template,
        "jrt": config.jrt,
        "heads": list(dict.fromkeys(key.k for key in grid)),
        "phase": "both" if set(VERSIONS) <= set(config.phases) else " ".join(config.phases),
        "boundary": config.boundary,
        "semantics": config.semantics,
        "max_new_tokens": config.max_new_tokens,
        "dtype": str(lens.dtype).removeprefix("torch."),
    }
    return Manifest(
        model=config.model,
        arguments=arguments,
        seed=config.seed,
        max_score=niah.MAX_SCORE,
        config_hash=hash_json(lens.hf_model.config.to_diff_dict()),
        weights_hash=weights_hash,
        job="niah",
        command=config.command,
        settings={
            "batch_size": config.batch_size,
            "memory": config.memory,
            "device": str(lens.device),
            "haystack": None if config.haystack is None else config.haystack.name,
        },
        facts=model_facts(lens),
    )


def model_facts(lens: HybridLens) -> dict[str, Any]:
    """What a report says of a model: name -> JSON value."""
    cfg = lens.cfg
    return {
        "family": cfg.family,
        "layers": cfg.n_layers,
        "attention_layers": list(cfg.attention_layers),
        "n_heads": cfg.n_heads,
        "window": cfg.window,
        "parameters": lens.n_parameters.total,
    }


def needle_figures(lens: HybridLens, grid: Grid, cells: Sequence[Cell]) -> list[PatternFigure]:
    """Patterns of the heads that look at the needle most, on a well answered prompt near the grid's middle."""
    hidden = [cell for cell in cells if not cell.control]
    most = max(cell.k for cell in hidden)
    candidates = [cell for cell in hidden if cell.k == most]
    middle = sorted({cell.length for cell in hidden})[len({cell.length for cell in hidden}) // 2]
    best = min(candidates, key=lambda c: (-c.score, abs(c.length - middle), abs((c.depth or 0) - 50)))
    prompt = grid[best.key]
    answer = lens.generate([list(prompt.tokens)], ANSWER_TOKENS)
    ids = answer.tokens[0, : int(answer.lengths[0])].tolist()
    seen = needle_heads.look(lens, prompt.tokens, ids, prompt.needle_spans)
    title = f"{best.length} tokens, needle at depth {best.depth:g} %"
    return [needle_heads.figure(seen, title)]


def report_notes(lens: HybridLens, grid: Grid) -> list[str]:
    """What a reader of the report has to know of this model and grid."""
    window, longest = lens.cfg.window, max(key.length for key in grid)
    notes: list[str] = []
    if window is not None and longest > window:
        notes.append(
            f"Attention sees the last {window} tokens only, and the longest prompts have {longest}: a needle "
            "that has left the window can only come back through what recurrent layers and later tokens kept."
        )
    return notes
