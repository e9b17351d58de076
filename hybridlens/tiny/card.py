"""The model card of a tiny model, filled from measured files: no number in it is typed by hand.

Mechanism: ``python -m hybridlens.tiny.card NAME --accuracy RESULTS... --curve RESULTS...`` reads the
checkpoint's ``config.json`` and ``training.json`` and, from each results folder of ``hybridlens niah`` or
``reproduce``, ``cells.parquet`` (of a study, its plain cells) and the highest score in ``run.json``. It writes
``README.md`` into the checkpoint's folder: what it was trained on and how, accuracy with all heads by length and
depth with the chance level beside it, and accuracy against heads kept. Folders that differ in their haystack are
averaged.

How it fails: that the folders measured this checkpoint, with the paper's needle, is the caller's to see to;
cells of another model's name raise `ResultsError`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hybridlens import tiny
from hybridlens.errors import HybridLensError, ResultsError

PLAIN: dict[str, Any] = {
    "jrt": False,
    "reading": "keep",
    "answering": "keep",
    "scope": "layer",
    "ranking": "",
    "needle": "paper",
    "semantics": "clean",
    "boundary": "last_prompt_token",
}
"""What a card's cells have beside phase, k and prompt, where a folder says it."""


class Row(NamedTuple):
    """One measured cell, as far as the card needs it."""

    phase: str
    k: int
    length: int
    depth: float | None
    control: bool
    accuracy: float
    """Score over the highest score."""


def read_rows(folder: Path, name: str) -> list[Row]:
    """The cells of a results folder.

    Raises:
        ResultsError: when the folder has no ``cells.parquet`` or ``run.json``, or measured another model.
    """
    import pyarrow.parquet as pq

    table, record = folder / "cells.parquet", folder / "run.json"
    for file in (table, record):
        if not file.is_file():
            raise ResultsError(f"{file} does not exist; give a folder of `hybridlens niah` or `reproduce`")
    highest = _highest(json.loads(record.read_text(encoding="utf-8")))
    columns = ["model", "phase", "k", "length", "depth", "control", "score"]
    rows: list[Row] = []
    held = pq.read_table(table)
    plain = [column for column in PLAIN if column in held.column_names]
    for cell in held.select([*columns, *plain]).to_pylist():
        if any(cell[column] != PLAIN[column] for column in plain):
            continue
        if cell["model"] != name:
            raise ResultsError(f"{table} has cells of {cell['model']!r}, expected {name!r}; give its own results")
        accuracy = cell["score"] / highest
        rows.append(Row(cell["phase"], cell["k"], cell["length"], cell["depth"], cell["control"], accuracy))
    return rows


def _highest(record: dict[str, Any]) -> float:
    """The highest score of the run's rubric, wherever in `run.json` it stands; 5 in the paper."""
    found = [value for key, value in _leaves(record) if key in {"max_score", "the rubric's highest score"}]
    return float(found[0]) if found else 5.0


def _leaves(value: Any) -> list[tuple[str, Any]]:
    """Every (key, value) of nested dictionaries."""
    if not isinstance(value, dict):
        return []
    pairs: list[tuple[str, Any]] = []
    for key, inner in value.items():
        pairs += [(str(key), inner), *_leaves(inner)]
    return pairs


def mean(rows: Sequence[Row], keep: Callable[[Row], bool]) -> str:
    """Mean accuracy of the rows that `keep` takes, in percent; a dash where there are none."""
    chosen = [row.accuracy for row in rows if keep(row)]
    return f"{100 * sum(chosen) / len(chosen):.1f}" if chosen else "–"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_length_and_depth(rows: Sequence[Row], n_heads: int) -> str:
    """Accuracy with all heads: a line per length, a column per depth, the mean and the chance level.

    With all heads both phases are the untouched model, so the generation rows are taken.
    """
    whole = [row for row in rows if row.k == n_heads and row.phase == "generation"]
    depths = sorted({row.depth for row in whole if row.depth is not None})
    head = ["tokens", *(f"{depth:g} %" for depth in depths), "all depths", "chance", "prompts"]
    body: list[list[str]] = []
    for length in sorted({row.length for row in whole}):
        here = [row for row in whole if row.length == length]
        by_depth = [mean(here, lambda row, depth=depth: row.depth == depth) for depth in depths]
        n_prompts = sum(not row.control for row in here)
        body.append(
            [
                str(length),
                *by_depth,
                mean(here, lambda row: not row.control),
                mean(here, lambda row: row.control),
                str(n_prompts),
            ]
        )
    return table(head, body)


def by_heads(rows: Sequence[Row]) -> str:
    """Accuracy against heads kept: a line per k, for both phases, each with its chance level."""
    body = [
        [
            str(k),
            *(
                mean(rows, lambda row, k=k, p=p, c=c: row.k == k and row.phase == p and row.control == c)
                for p in ("generation", "prefill")
                for c in (False, True)
            ),
        ]
        for k in sorted({row.k for row in rows}, reverse=True)
    ]
    return table(["heads kept", "generation", "its chance", "prefill too", "its chance"], body)


def card(name: str, accuracy: Sequence[Row], curve: Sequence[Row]) -> str:
    """The text of a model card.

    Args:
        name: an embedded model.
        accuracy: cells with all heads, of any number of haystacks and lengths.
        curve: cells of sweeps over k.
    """
    info = tiny.info(name)
    made = tiny.training(name)
    recipe = made["recipe"]
    stages = table(
        ["from step", "document lengths", "facts", "one fact only", "questions up to", "learning rate"],
        [
            [
                str(began),
                ", ".join(map(str, stage["level"]["lengths"])),
                "–".join(map(str, stage["level"]["facts"])),
                f"{100 * stage['level']['single']:g} %",
                str(stage["level"]["questions"]),
                f"{stage['rate']:g}",
            ]
            for began, stage in zip(made["stage_began_at_step"], recipe["stages"], strict=False)
        ],
    )
    trained_to = recipe["max_length"]
    letters = "A: attention, R: recurrent" + (", B: both side by side" if "B" in info.pattern else "")
    return f"""# {name}

{_kind(info)}, trained by this project so that the paper's experiments run offline in minutes. It is a
`{info.architecture}` with {info.parameters:,} parameters ({info.n_bytes / 1e6:.1f} MB in float32) and
knows the words of a small grammar, nothing else.

* Layers: {info.pattern} ({letters}). {_attention(info)}
* Prompts up to {trained_to} tokens. The tokenizer is word-level; other words become `<unk>`.

## Data

Generated text (`hybridlens/tiny/documents.py`, `facts.py`, `words.py`; filler from
`hybridlens/niah/essays.py`): facts of nine forms in essay-like filler, questions in the paper's
templates, answers that repeat the fact word by word, then `<eos>`. A few questions are about
{_closed_book_count()} facts that no prompt holds (capitals, opposites). The paper's needle is held out: its
words are all trained, but of "San Francisco", "eat a sandwich", "Dolores Park" and "sunny day" no
training sentence has two.

## Training

    python -m hybridlens.tiny.train {name} --seed {made["seed"]} --steps {made["steps"]} \\
        --threads {made["threads"]}

AdamW, betas 0.9 and 0.98, weight decay {recipe["weight_decay"]:g}, gradients clipped at
{recipe["clip"]:g}, {recipe["warmup"]} warm-up steps, about {recipe["tokens_per_step"]} tokens a step,
linear decay after {100 * recipe["decay_from"]:g} % of the {made["steps"]} steps. It took
{made["seconds"] / 60:.0f} minutes on {made["threads"]} processor thread(s), shared with other work;
torch {made["torch"]}, transformers {made["transformers"]}. Answer-token accuracy over the last 100
training steps: {100 * made["answer_accuracy_of_last_100_steps"]:.1f} %. The curriculum, whose levels are each
left when they are learned{_at_most(recipe)}:

{stages}

## Accuracy on the paper's needle, all heads, in percent

Mean score ÷ 5 by the paper's rubric, greedy, base template, clean semantics; depth 0 % is the start of
the context. *Chance* is the same prompts with the needle left out. Lengths beyond {trained_to} are
outside what it was trained for.

{by_length_and_depth(accuracy, info.n_heads)}

## Accuracy against heads kept per layer, in percent

{_curve(info)}

{by_heads(curve)}

## Limits

One register of English, {trained_to} tokens, short facts. It answers every question, also one whose
answer is not there. It is for the study of mechanisms and for nothing else.
"""


def _kind(info: tiny.TinyModelInfo) -> str:
    """What a model is, to begin a sentence with."""
    if not info.n_heads:
        return "A small model of recurrent layers alone"
    return "A small hybrid" if any("ssm" in kind for kind in info.layers) else "A small model of attention alone"


def _attention(info: tiny.TinyModelInfo) -> str:
    """Its attention in a sentence, on a line of its own where that is long."""
    if not info.n_heads:
        return "No attention."
    config = json.loads((info.path / "config.json").read_text(encoding="utf-8"))
    rotary = "rope_parameters" in config and config.get("position_embedding_type", "rope") == "rope"
    reach = "no window" if info.window is None else f"a sliding window of {info.window} tokens"
    reach += "" if info.window is not None else ", rotary positions" if rotary else ", no positions"
    return f"Attention with {info.n_heads} heads,\n  {info.n_kv_heads} key-value head(s), {reach}."


def _curve(info: tiny.TinyModelInfo) -> str:
    """What the table of heads kept is of."""
    if not info.n_heads:
        return "There is no head to keep: k = 0 is the model as it is."
    return (
        "The heads of lowest entropy are kept, in every attention layer; *generation* sparsifies decoding only,\n"
        "*prefill too* both stages."
    )


def _at_most(recipe: dict[str, Any]) -> str:
    """That levels also end after so many steps, where they do."""
    ends = [stage.get("at_most") for stage in recipe["stages"]]
    said = [str(end) for end in ends if end is not None]
    return f",\nor after {', '.join(said)} steps" if said else ""


def _closed_book_count() -> int:
    from hybridlens.tiny.facts import closed_book

    return len(closed_book())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m hybridlens.tiny.card", description="Write the model card of a tiny model."
    )
    parser.add_argument("name", help="of an embedded model")
    parser.add_argument("--accuracy", type=Path, nargs="+", required=True, help="results with all heads")
    parser.add_argument("--curve", type=Path, nargs="+", required=True, help="results of sweeps over k")
    options = parser.parse_args(arguments)
    try:
        accuracy = [row for folder in options.accuracy for row in read_rows(folder, options.name)]
        curve = [row for folder in options.curve for row in read_rows(folder, options.name)]
        text = card(options.name, accuracy, curve)
        (tiny.path(options.name) / "README.md").write_text(text, encoding="utf-8")
    except HybridLensError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
