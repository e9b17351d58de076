"""The command of the static head circuits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyses.commands import shared
from analyses.commands.shared import Device, Dtype, Model, Seed
from analyses.options import parse_list
from hybridlens.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from hybridlens.model import HybridLens

TEXT_ROWS = 8
"""Rows of filler text that the linearisation is measured on."""

TEXT_TOKENS = 256


def circuits(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; results/MODEL-circuits by default.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Print every head by this score, such as copying; the best of each by default.")
    ] = None,
    sample: Annotated[int, typer.Option(help="Tokens among which shares are taken.")] = 2048,
    distances: Annotated[
        str | None, typer.Option(help="From query to key, like 1,16,256, for matching under rotary embedding.")
    ] = None,
    measure: Annotated[
        bool | None,
        typer.Option(
            help="Run the model on filler text for the linear paths and their error; by default only embedded models "
            "are run. Otherwise weights are read straight from the files, and no model is made."
        ),
    ] = None,
    memory: shared.Memory = "2GB",
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """What each attention head does, from its weights: copying, matching, previous token, composition, induction."""
    import hybridlens as hl
    from analyses.checkpoints import check_device, open_model, quieten
    from analyses.circuits.folder import CircuitsConfig, run
    from analyses.circuits.report import write_circuits_report
    from analyses.circuits.results import METRICS
    from analyses.tables import circuits_table, ranking_table
    from hybridlens.engine import parse_memory
    from hybridlens.errors import UnknownNameError, closest
    from hybridlens.tiny import names

    if metric is not None and metric not in METRICS:
        near = closest(metric, METRICS)
        raise UnknownNameError(f"--metric {metric!r} does not exist{near}; expected one of {', '.join(METRICS)}")
    config = CircuitsConfig(
        model=model,
        sample_size=sample,
        distances=None if distances is None else parse_list("--distances", distances),
        seed=seed,
        memory=parse_memory(memory),
        command=shared.command_line(),
    )
    folder = Path("results") / f"{Path(model).name}-circuits" if out is None else out
    lens = open_model(model, device, dtype) if (model in names() if measure is None else measure) else None
    quieten()
    if lens is None and check_device(device) == "auto":
        raise InputError("--device auto spreads a model, but weights are read from files here; name one device")
    source = hl.load_weights(model, device=device) if lens is None else lens
    tokens = None if lens is None else _text(lens, seed)
    with shared.progress_bar(model, "stage", folder) as progress:
        result = run(source, config, folder, tokens, progress)
    report = write_circuits_report(folder, result.circuits, result.record, _patterns(lens, seed))
    if metric is not None:
        typer.echo(ranking_table(result.circuits.ranking(metric)))
    else:
        typer.echo(circuits_table(result.circuits))
    typer.echo(f"report: {report}")


def _text(lens: HybridLens, seed: int) -> Int[Tensor, "batch pos"]:
    """Filler text to measure on."""
    from analyses.rankings.ability import filler_tokens

    return filler_tokens(lens, min(TEXT_TOKENS, lens.cfg.n_ctx or TEXT_TOKENS), TEXT_ROWS, seed)


def _patterns(lens: HybridLens | None, seed: int):
    """The heads' attention on one needle prompt, for the report; None where no model was loaded."""
    if lens is None or lens.tokenizer is None:
        return None
    from analyses.needle_heads import look
    from hybridlens import niah

    length = niah.shortest_length(lens.tokenizer, seed=seed)
    (prompt,) = niah.grid(lens.tokenizer, [length], [50], seed=seed)
    answer = lens.generate([list(prompt.tokens)], max_new_tokens=20)
    return look(lens, prompt.tokens, answer.tokens[0, : int(answer.lengths[0])].tolist(), prompt.needle_spans)
