"""The circuits of one model as an experiment: `circuits.safetensors`, and a ranking for each metric.

Weights are read straight from the files, layer by layer, unless the model is run on filler text as well. What a killed
run had finished of the circuits is taken up again.

How it fails: see `analyses.experiment` and `analyses.circuits.running`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

import hybridlens as hl
from analyses.circuits.report import article_of, circuits_table
from analyses.circuits.results import HeadCircuits
from analyses.circuits.running import Stages, check_distances, circuits
from analyses.experiment.artefacts import Tensors
from analyses.experiment.checkpoints import check_device, meta_lens, open_model, quieten
from analyses.experiment.filler import linearising_text
from analyses.experiment.options.circuits import CircuitsConfig
from analyses.experiment.parts import Part, stage
from analyses.experiment.room import room
from analyses.experiment.running import Experiment, Progress, check_tokenizer, commit_facts, model_facts
from analyses.heads.needle_heads import Look, look
from analyses.heads.ranking import HeadRanking, ranking_table
from hybridlens import machine, niah, tiny
from hybridlens.checkpoint_files import CheckpointFiles
from hybridlens.config import LensConfig
from hybridlens.loading import checkpoint
from hybridlens.model import HybridLens
from hybridlens.progress import shown
from hybridlens.results import Folder, Manifest, hash_json
from hybridlens.viz.article import Article
from hybridlens.weights import Weights, digest


class Found(NamedTuple):
    """Everything that a run gives."""

    circuits: HeadCircuits
    rankings: dict[str, HeadRanking]


class CircuitsRun(Experiment[CircuitsConfig, Found]):
    """What each attention head does, from its weights.

    Args:
        source: a lens, or weights read from files.
        tokens: real text for the linearisation, see `analyses.circuits.circuits`; needs a lens.

    Raises:
        InputError: see `analyses.circuits.circuits`.
    """

    job = "circuits"
    waves = 2

    def __init__(
        self, source: HybridLens | Weights, options: CircuitsConfig, tokens: Int[Tensor, "batch pos"] | None = None
    ) -> None:
        self.source = source
        self.options = options
        self.tokens = tokens
        self.commit = None
        self.weights_hash = ""
        self.weights = source if isinstance(source, Weights) else Weights.of_model(source)
        self.check(options, self.weights.cfg)
        self.distances = check_distances(self.weights, options.distances)

    @classmethod
    def check(cls, options: CircuitsConfig, cfg: LensConfig) -> None:
        """See `Experiment`; shared blocks too."""
        super().check(options, cfg)
        cfg.need_stream_heads("circuits of heads")

    @classmethod
    def opened(cls, options: CircuitsConfig, device: str, dtype: str) -> CircuitsRun:
        """See `Experiment`; the model is loaded where it is to be run."""
        with shown():
            files = checkpoint(options.model, options.revision)
            cls.check(options, meta_lens(files).cfg)
            made = cls._made(files, options, device, dtype)
            made.weights_hash = digest(made.weights)
        made.commit = files.commit
        return made

    @classmethod
    def _made(cls, files: CheckpointFiles, options: CircuitsConfig, device: str, dtype: str) -> CircuitsRun:
        """With the model where it is to be run, else its weights alone."""
        if options.model in tiny.names() if options.measure is None else options.measure:
            lens = open_model(files, device, dtype)
            check_tokenizer(lens, options.model)
            return cls(lens, options, linearising_text(lens, options.seed))
        quieten()
        place = machine.choose(0).device if check_device(device) == "auto" else device
        return cls(hl.load_weights(files, device=place or "cpu"), options)

    def manifest(self) -> Manifest:
        """See `Experiment`."""
        options, cfg = self.options, self.weights.cfg
        text = None if self.tokens is None else hash_json(self.tokens.tolist())
        level = {} if options.level == "random" else {"level": options.level}  # runs before there were levels go on
        return Manifest(
            model=options.model,
            arguments={"sample": options.sample, "distances": list(self.distances), "text (its hash)": text, **level},
            seed=options.seed,
            max_score=0,
            config_hash=hash_json(self.weights.config.to_diff_dict()),
            weights_hash=self.weights_hash or digest(self.weights),
            job=self.job,
            command=options.command,
            settings={"memory": options.memory, "device": str(cfg.device)},
            facts={**commit_facts(self.commit, options.revision), **model_facts(cfg)},
        )

    def run(self, folder: Folder, progress: Progress) -> Found:
        """See `Experiment`."""
        options = self.options
        found = folder.take("circuits.safetensors", "circuits", HeadCircuits.load, lambda: circuits(
            self.source, self.tokens, model=options.model, sample_size=options.sample, distances=self.distances,
            seed=options.seed, memory=self._room(folder), level=options.level, stage=partial(_kept, folder),
            progress=progress,
        ))  # fmt: skip
        rankings = {
            metric: folder.take(f"rankings/{metric}.json", metric, HeadRanking.load, partial(found.ranking, metric))
            for metric in found.metrics
        }
        folder.drop("parts")
        return Found(found, rankings)

    def _room(self, folder: Folder) -> int:
        """Bytes for compositions."""
        return room(folder, self.options.memory, {self.weights.cfg.device}).here

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """See `Experiment`: the vocabulary and composition, then each layer; strengths come with the report."""
        options = self.options
        if folder.stored("circuits.safetensors", "circuits", HeadCircuits.load) is not None:
            return []
        stages = Stages(
            self.source, self.tokens, None, options.sample, self.distances, options.seed,
            self._room(folder), partial(_kept, folder), options.level,
        )  # fmt: skip
        if wave:
            return [stage(f"layer {n}", partial(_quietly, stages.layer, n)) for n in self.weights.cfg.attention_layers]
        return [stage(name, partial(_quietly, getattr, stages, name)) for name in ("shared", "composed")]

    def page(self, result: Found, record: Mapping[str, Any]) -> Article:
        """See `Experiment`."""
        return article_of(result.circuits, record, self._patterns())

    def table(self, result: Found) -> Iterable[str]:
        """See `Experiment`."""
        metric = self.options.metric
        yield circuits_table(result.circuits) if metric is None else ranking_table(result.circuits.ranking(metric))

    def _patterns(self) -> Look | None:
        """The heads' attention on one needle prompt; None where no model was loaded."""
        lens = self.source
        if isinstance(lens, Weights) or self.tokens is None or lens.tokenizer is None:
            return None
        length = niah.shortest_length(lens.tokenizer, seed=self.options.seed)
        (prompt,) = niah.grid(lens.tokenizer, [length], [50], seed=self.options.seed)
        answer = lens.generate([list(prompt.tokens)], max_new_tokens=20)
        return look(lens, prompt.tokens, answer.tokens[0, : int(answer.lengths[0])].tolist(), prompt.needle_spans)


def _kept(folder: Folder, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a stage of the circuits, from the folder or made now."""
    file = f"parts/{name}.safetensors"
    return folder.take(file, name, Tensors.load, lambda: Tensors(dict(make()))).named


def _quietly(make: Callable[..., object], *of: object) -> None:
    """A stage made without a graph of gradients."""
    with torch.no_grad():
        make(*of)
