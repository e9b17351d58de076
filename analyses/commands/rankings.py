"""The command that compares rankings of heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses.commands import shared
from analyses.commands.shared import BatchSize, Device, Dtype, Haystack, Lengths, Memory, Model, Seed, Template
from analyses.options import parse_list, read_needles


def rankings(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; results/MODEL-rankings by default.")] = None,
    names: Annotated[
        str | None, typer.Option("--rankings", help="Some of them, like entropy,copying; all when left out.")
    ] = None,
    counts: Annotated[
        str | None, typer.Option(help="Heads kept, like 0,4,8 or 0..16; from none to all when left out.")
    ] = None,
    scope: Annotated[
        str, typer.Option(help="model: so many heads of the model are kept; layer: so many of each layer.")
    ] = "model",
    phase: Annotated[
        str, typer.Option(help="both: heads are silent while reading and answering; generation: answering only.")
    ] = "both",
    draws: Annotated[int, typer.Option(help="Random rankings beside them.")] = 10,
    lengths: Lengths = None,
    depths: Annotated[str, typer.Option("--depths", help="Needle depths in percent, 0 the start.")] = "0,25,50,75,100",
    needles: Annotated[
        str | None, typer.Option("--needles", help="A JSON file, or built-in names like oslo,code; two by default.")
    ] = None,
    haystack: Haystack = None,
    template: Template = "base",
    batch_size: BatchSize = None,
    memory: Memory = "2GB",
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Which ranking of the heads keeps retrieval with the fewest: the best n of each are kept, n from none to all.

    Rankings made by running the model (entropy, retrieval score, needle mass, ablation) and from its weights alone
    (copying, matching, induction, retrieval strength), beside random ones and the paper's entropy at run time.
    """
    from analyses.checkpoints import meta_lens, open_model, weights_hash
    from analyses.rankings.config import RankingsConfig, counts_of
    from analyses.rankings.making import check_names, make_rankings
    from analyses.rankings.report import write_rankings_report
    from analyses.rankings.sweep import compare
    from analyses.rankings.words import sentences
    from analyses.tables import rankings_table
    from hybridlens.engine import parse_memory
    from hybridlens.niah import read_haystack
    from hybridlens.results import read_run

    config = RankingsConfig(
        model=model,
        rankings=None if names is None else tuple(name.strip() for name in names.split(",")),
        counts=None if counts is None else parse_list("--counts", counts),
        scope=scope,
        phase=phase,
        draws=draws,
        lengths=None if lengths is None else parse_list("--lengths", lengths),
        depths=parse_list("--depths", depths),
        needles=None if needles is None else tuple(read_needles(needles)),
        haystack=None if haystack is None else read_haystack(haystack),
        template=template,
        batch_size=batch_size,
        memory=parse_memory(memory),
        seed=seed,
        command=shared.command_line(),
    )
    check_names(config)
    bare = meta_lens(model)
    counts_of(bare, config)
    shared.check_memory(bare.cfg, dtype, config.memory, config.lengths, config.max_new_tokens)
    folder = Path("results") / f"{Path(model).name}-rankings" if out is None else out
    lens = open_model(model, device, dtype)
    digest = weights_hash(model, lens)
    made = make_rankings(lens, config, folder)
    with shared.progress_bar(model, "cell", folder) as progress:
        found = compare(lens, made, config, folder, digest, progress)
    report = write_rankings_report(folder, found, made, read_run(folder).record)
    typer.echo(rankings_table(found))
    for sentence in sentences(found):
        typer.echo(sentence)
    typer.echo(f"report: {report}")
