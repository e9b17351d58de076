"""The one way to run something long: stages in a locked folder that go on where they stopped, a report, a table.

An `Experiment` declares what it is (`manifest`), what it makes (`run`, stage by stage, each through `Folder.take` or
the cells' `Run`), how that reads as a page and as lines for a terminal. `conduct` does the rest, the same for all:
refuses another run's folder before anything is written, locks it, takes up what is there, marks it complete, and
writes the report where something is new: a result, or the code that draws it (`drawing`).

How it fails: whatever a model or its options rule out is refused before the folder is touched. A run that is stopped
raises `Stopped`, which says how to go on.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from analyses.experiment.drawing import drawing_code
from analyses.experiment.options.base import Options
from analyses.experiment.parts import Part, stage
from hybridlens.config import LensConfig
from hybridlens.display import Displayed, Piece, Table, Words, brief
from hybridlens.display.markup import cut
from hybridlens.effort import turn_to
from hybridlens.errors import InputError
from hybridlens.families.spec import eos_ids
from hybridlens.model import HybridLens
from hybridlens.niah import MAX_SCORE
from hybridlens.progress import hidden, shown, staged
from hybridlens.results import CellKey, Folder, Manifest, hash_json, write_atomic
from hybridlens.viz.article import REPORT, Article, render_article

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all, first before anything is done."""

LONGEST = 1 << 18
"""Tokens of the longest prompt for a model that states no context."""

O = TypeVar("O", bound=Options)  # noqa: E741 - the options' type
T = TypeVar("T")


class Stopped(KeyboardInterrupt):
    """A run that was stopped; its words say how to go on."""

    def __init__(self, folder: Path, cause: KeyboardInterrupt) -> None:
        super().__init__(f"stopped; what is done is kept in {folder}: the same command goes on from there")
        self.status = int(getattr(cause, "status", 130))
        """Of a process that ends with it: 130 for Ctrl-C, 143 for SIGTERM."""


@dataclass(frozen=True)
class Outcome(Displayed, Generic[T]):
    """A finished run."""

    folder: Path
    report: Path
    result: T
    record: dict[str, Any]
    """Its `run.json`."""
    damaged: tuple[str, ...]
    """One line for everything stored that could not be trusted and was made again."""

    def summary(self) -> str:
        """Where it is, and what it found."""
        found = self.result.summary() if isinstance(self.result, Displayed) else brief(self.result)
        return f"{cut(str(self.report), 60)}: {cut(found, 120)}"

    def table(self) -> Table:
        """The result's."""
        return self.result.table() if isinstance(self.result, Displayed) else super().table()

    def view(self) -> tuple[Piece, ...]:
        """What the result shows, and the report's place."""
        shown = self.result.view() if isinstance(self.result, Displayed) else ()
        return (*shown, Words(f"report: {self.report}"))


class Page(NamedTuple):
    """A report as a file."""

    text: str

    def save(self, path: Path) -> Path:
        """Write it, atomically; returns `path`."""
        return write_atomic(path, self.text.encode("utf-8"))

    @classmethod
    def load(cls, path: Path) -> Page:
        """Read it."""
        return cls(path.read_text(encoding="utf-8"))


class Experiment(ABC, Generic[O, T]):
    """What an experiment declares: its science alone.

    Args:
        lens: the model.
        options: the experiment's.
        weights_hash: digest of the model's weights; None to work it out.

    Raises:
        InputError: the model, or what of it the options need, rules the experiment out; or it has no tokenizer.
    """

    job: ClassVar[str]
    """The command's name."""
    unit: ClassVar[str] = "stage"
    """What its progress counts."""
    of_heads: ClassVar[bool] = True
    """Whether it is about attention heads, and so nothing for a model without any."""
    waves: ClassVar[int] = 1
    """See `waves_of`."""

    def __init__(self, lens: HybridLens, options: O, weights_hash: str | None = None) -> None:
        from analyses.experiment.checkpoints import lens_hash

        self.lens = lens
        self.options = options
        self.commit: str | None = None
        """Of a hub id: the one that was opened."""
        self.weights_hash = lens_hash(lens) if weights_hash is None else weights_hash
        self.check(options, lens.cfg)
        check_tokenizer(lens, options.model)

    @classmethod
    def waves_of(cls, options: O) -> int:
        """How often its work can be shared: parts of a wave need what the waves before have made."""
        return cls.waves

    @classmethod
    def opened(cls, options: O, device: str, dtype: str) -> Experiment[O, T]:
        """The experiment on the model that its options name, what its sizes rule out refused before it is loaded.

        Raises:
            HybridLensError: a checkpoint, device or dtype that cannot be used; or see `check` and the class.
        """
        from analyses.experiment.checkpoints import meta_lens, open_model, weights_hash
        from hybridlens.loading import checkpoint

        with shown():
            files = checkpoint(options.model, options.revision)
            cfg = meta_lens(files).cfg
            cls.check(options, cfg)
            cls.check_memory(options, cfg, dtype)
            lens = open_model(files, device, dtype)
            made = cls(lens, options, weights_hash(files, lens))
        made.commit = files.commit
        return made

    @classmethod
    def check(cls, options: O, cfg: LensConfig) -> None:
        """Refuse what a model's sizes rule out.

        Raises:
            InputError: an experiment on heads and no attention layer, or prompts that are longer than its context.
        """
        if cls.of_heads and not cfg.attention_layers:
            raise InputError(
                f"{options.model} has no attention layer, and {cls.job} is about attention; give a model that has some"
            )
        lengths: Any = getattr(options, "lengths", None) or getattr(options, "length", None) or 0
        new = int(getattr(options, "max_new_tokens", 0))
        longest = max(lengths, default=0) if isinstance(lengths, tuple) else lengths
        name = "--lengths" if isinstance(lengths, tuple) else "--length"
        if cfg.n_ctx is None and longest > LONGEST:
            raise InputError(
                f"{name} {longest} given, expected at most {LONGEST:,}: {options.model} states no context, and nothing "
                "longer is built"
            )
        if cfg.n_ctx is not None and longest and longest + new > cfg.n_ctx:
            raise InputError(
                f"{name} {longest} given, expected at most {cfg.n_ctx - new}: with {new} new tokens the context of "
                f"{options.model} is full at {cfg.n_ctx}"
            )

    @classmethod
    def check_memory(cls, options: O, cfg: LensConfig, dtype: str) -> None:
        """Refuse a budget too small for one row; nothing where the experiment has none."""

    @abstractmethod
    def manifest(self) -> Manifest:
        """What the run is."""

    def expected(self) -> Mapping[CellKey, str] | None:
        """Key -> prompt hash of every cell, in the order they are run; None where there are none."""
        return None

    @abstractmethod
    def run(self, folder: Folder, progress: Progress) -> T:
        """Make what the folder does not hold yet."""

    def parts(self, folder: Folder, wave: int) -> Sequence[Part]:
        """The work of one wave in parts that several processes can share; all in one where it is not divided.

        Parts depend on the experiment and on what earlier waves and sessions left, not on what is done of this one.
        Whatever they leave undone, `run` does.

        Args:
            folder: where they are made; adopted into the run's own, `run` finds what they made.
            wave: which, from 0.
        """
        return [stage(self.job, lambda: self.run(folder, lambda done, total: None))]

    @abstractmethod
    def page(self, result: T, record: Mapping[str, Any]) -> Article:
        """The report's contents."""

    @abstractmethod
    def table(self, result: T) -> Iterable[str]:
        """The result as text for a terminal."""

    def identity(
        self,
        arguments: Mapping[str, Any],
        settings: Mapping[str, Any],
        growing: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """The manifest of a run of this experiment on its lens.

        Args:
            arguments: what can change a result, beside model, dtype, weights and seed. Compared.
            settings: what changes none. Recorded.
            growing: see `Manifest`.
            facts: of the run, beside those of the model.
        """
        lens = self.lens
        return Manifest(
            model=self.options.model,
            arguments={**arguments, "dtype": str(lens.dtype).removeprefix("torch.")},
            seed=int(getattr(self.options, "seed", 0)),
            max_score=MAX_SCORE,
            config_hash=_config_hash(lens),
            weights_hash=self.weights_hash,
            job=self.job,
            command=self.options.command,
            settings={**settings, "device": str(lens.device)},
            facts={
                **commit_facts(self.commit, self.options.revision),
                **model_facts(lens.cfg),
                "parameters": lens.n_parameters.total,
                **(facts or {}),
            },
            growing=growing,
        )


def check_tokenizer(lens: HybridLens, model: str) -> None:
    """Refuse a lens without a tokenizer, which the prompts of every experiment are made with.

    Args:
        lens: the model.
        model: what results call it.

    Raises:
        InputError: saying so.
    """
    if lens.tokenizer is None:
        raise InputError(
            f"{model} has no tokenizer, which the prompts are made with; add its files (tokenizer.json and "
            "tokenizer_config.json) to the folder, or give HybridLens one"
        )


def _config_hash(lens: HybridLens) -> str:
    """Digest of a model's configuration, and of the tokens that end its answers where others are named for that."""
    config = lens.hf_model.config
    ends = lens.cfg.eos_token_ids
    return hash_json(config.to_diff_dict() if ends == eos_ids(config) else [config.to_diff_dict(), list(ends)])


def commit_facts(commit: str | None, revision: str | None) -> dict[str, Any]:
    """What a record says of where on the hub a model was had: nothing of what was not."""
    return {} if commit is None else {"commit": commit, **({} if revision is None else {"revision": revision})}


def model_facts(cfg: LensConfig) -> dict[str, Any]:
    """What a report says of a model: name -> JSON value."""
    return {
        "family": cfg.family,
        "layers": cfg.n_layers,
        "attention layers": list(cfg.attention_layers),
        "recurrent layers": list(cfg.ssm_layers),
        "layers with states": list(cfg.state_layers),
        "n_heads": cfg.n_heads,
        "key/value heads": cfg.n_kv_heads,
        "window": cfg.window,
    }


def conduct(
    experiment: Experiment[Any, T],
    path: Path,
    progress: Progress | None = None,
    shards: Sequence[Path] = (),
    opened: Callable[[], object] = lambda: None,
) -> Outcome[T]:
    """Make what a folder does not hold yet of an experiment, then its report.

    Args:
        experiment: what to run.
        path: made when it does not exist; a run of the same in it is gone on with.
        progress: see `Progress`; a bar is shown without, which goes on through the report.
        shards: other folders of the same run, whose work is taken over.
        opened: called when nothing has been refused, before anything is made.

    Raises:
        ResultsError: the folder holds something else, or cannot be used.
        Stopped: Ctrl-C or SIGTERM.
    """
    manifest, expected = experiment.manifest(), experiment.expected()
    try:
        with Folder.open(path, manifest, expected) as folder:
            opened()
            for shard in shards:
                folder.adopt(shard)
            with staged(experiment.job, progress) as tell, hidden():
                result = experiment.run(folder, tell)
                if folder.begun or not folder.complete or not _drawn(folder):
                    turn_to("report")
                    folder.begin()
                    folder.finish()
                    record = folder.record
                    page = experiment.page(result, record)
                    folder.note(finding=list(page.finding))
                    folder.put(REPORT, drawing_code(), Page(render_article(page, record)))
            return Outcome(path, path / REPORT, result, folder.record, tuple(folder.damaged))
    except KeyboardInterrupt as stop:
        raise Stopped(path, stop) from None


def _drawn(folder: Folder) -> bool:
    """Whether a report is there, whole and drawn by the code that there is now, or no other may be written."""
    if folder.made_of(REPORT, drawing_code()) is not False:
        return folder.stored(REPORT, drawing_code(), Page.load) is not None
    if os.access(folder.path, os.W_OK):
        return False
    folder.doubt(f"{REPORT} was drawn by another version of the code; the folder cannot be written, so it was left")
    return True


def result_of(experiment: Experiment[Any, T], path: Path | None = None, progress: Progress | None = None) -> T:
    """The result of an experiment alone, kept in `path`, or nowhere where that is None; errors as `conduct`."""
    if path is not None:
        return conduct(experiment, path, progress).result
    with TemporaryDirectory(prefix="hybridlens-") as folder:
        manifest, expected = experiment.manifest(), experiment.expected()
        opened = Folder.open(Path(folder), manifest, expected)
        with opened as held, staged(experiment.job, progress) as tell, hidden():
            return experiment.run(held, tell)
