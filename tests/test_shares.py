"""Shares of an experiment's work: a division of it, and together what one process finds, to the last bit."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_lens import benchmark_lens
from sharing import results, work

from analyses.circuits.experiment import CircuitsRun
from analyses.experiment.cluster.plan import place_of
from analyses.experiment.options.capacity import CapacityConfig
from analyses.experiment.options.circuits import CircuitsConfig
from analyses.experiment.options.crossover import CrossoverConfig
from analyses.experiment.options.patch import PatchConfig
from analyses.experiment.options.prompts import OwnPair
from analyses.experiment.options.rankings import RankingsConfig
from analyses.experiment.options.states import StatesConfig
from analyses.experiment.options.study import NiahConfig, StudyConfig
from analyses.experiment.parts import Part, share
from analyses.heads import answering
from analyses.heads.portions import Work, portions
from analyses.kv_cache.experiment import CrossoverRun
from analyses.patching.experiment import PatchRun
from analyses.states.experiment import StatesRun
from analyses.study.capacity import CapacityRun
from analyses.study.niah import NiahRun
from analyses.study.rankings.sweep import RankingsRun
from analyses.study.running import StudyRun
from hybridlens import niah
from hybridlens.decoding import BOUNDARIES, Boundary
from hybridlens.engine import Job

PROMPTS: dict[str, Any] = {"lengths": (110,), "depths": (0, 100), "max_new_tokens": 3, "batch_size": 2}
NIAH = NiahConfig(model="random", heads=(0, 4), control=False, **PROMPTS)
STUDY = StudyConfig(model="random", experiments=("fig2", "scope"), heads=(1,), control=False, **PROMPTS)
COMMON = niah.PAPER_NEEDLE.sentence
LETTER = niah.Needle("letter", COMMON, "What is it?", (niah.Rule("e", 2.0, "add"), niah.Rule(COMMON, 5.0, "set")))
"""What a random model says scores, so that a second look is wanted."""
RANKINGS = RankingsConfig(
    model="random", rankings=("copying", "matching"), counts=(0, 4, 8), draws=1, needles=(LETTER,), run_time=False,
    filler_rows=0, tasks=(), prompts=4, **PROMPTS,
)  # fmt: skip
PATCH = PatchConfig(model="random", sweeps=("attn_out", "ssm_out"), length=110, attribution=False)
CROSSOVER = CrossoverConfig(
    model="random", prompts=(OwnPair("one", "the first of the words", "the last of the words", (" a", " b")),),
    max_new_tokens=2,
)  # fmt: skip
CIRCUITS = CircuitsConfig(model="random", sample=10)
CAPACITY = CapacityConfig(model="random", facts=(1, 2), prompts=2, length=110, max_new_tokens=3, batch_size=2)
STATES = StatesConfig(model="random", length=110, depths=(50,), knockouts=False, probes=False)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 9))
def test_shares_are_a_division(sizes: list[int], shards: int) -> None:
    """Every part is in one share, in its order, and no share has more than the mean and one part."""
    parts = [Part(str(i), 1, size, lambda tell: None) for i, size in enumerate(sizes)]
    shares = [share(parts, k, shards) for k in range(shards)]
    assert sorted(int(part.name) for one in shares for part in one) == list(range(len(parts)))
    for one in shares:
        assert one == sorted(one, key=lambda part: int(part.name))
        assert sum(part.size for part in one) <= sum(sizes) / shards + max(sizes, default=0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from(BOUNDARIES)), max_size=60, unique=True),
    st.integers(1, 12),
)
def test_portions_are_whole_families(kinds: list[tuple[int, int, Boundary]], rows: int) -> None:
    """Each answer is in one portion, of one boundary; what is read under one treatment is parted only where wide."""
    made_of = [
        Work(Job((0,) * length, treatment, answering, ()), boundary, ())
        for treatment, length, boundary in kinds
        for answering in range(3)
    ]
    made = portions(made_of, rows)
    assert sorted(map(id, made_of)) == sorted(id(piece) for portion in made for piece in portion)
    for portion in made:
        assert len({piece.boundary for piece in portion}) == 1
    for family in {(piece.boundary, piece.job.reading) for piece in made_of}:
        of = [piece for piece in made_of if (piece.boundary, piece.job.reading) == family]
        holding = [portion for portion in made if any(piece in of for piece in portion)]
        assert len(holding) == 1 or (len(of) > 2 * rows and len(holding) <= len({len(p.job.tokens) for p in of}))
    for one, after in pairwise(made):
        assert one[0].boundary != after[0].boundary or len(one) + len(after) > rows


EXPERIMENTS = {
    "niah": (NiahRun, NIAH),
    "study": (StudyRun, STUDY),
    "rankings": (RankingsRun, RANKINGS),
    "patch": (PatchRun, PATCH),
    "crossover": (CrossoverRun, CROSSOVER),
    "circuits": (CircuitsRun, CIRCUITS),
    "states": (StatesRun, STATES),
    "capacity": (CapacityRun, CAPACITY),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shards_find_what_one_process_finds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards, the last first: cells and artefacts equal to the last bit, and the last job answers nothing.

    Margins are stored to a ten thousandth, texts come from a random model: other batches would show in them.
    """
    kind: Any
    kind, options = EXPERIMENTS[name]
    experiment = kind(benchmark_lens("jamba"), options)
    one, many = results(experiment, tmp_path / "one"), tmp_path / "many"
    waves = range(experiment.waves_of(options))
    totals = [[work(experiment, many, wave, number, 3).total for number in (2, 1, 0)] for wave in waves]
    assert all(any(wave) for wave in totals)
    assert any(sum(total > 0 for total in wave) > 1 for wave in totals)

    def refused(*args: Any) -> Any:
        raise AssertionError("the last job answers nothing")

    monkeypatch.setattr(answering, "answer_cells", refused)
    assert results(experiment, many, [place_of(many, str(number)) for number in range(3)]) == one


def test_a_killed_shard_answers_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the midst of its second portion: the first is kept, the second answered whole again, bit for bit."""
    experiment = NiahRun(benchmark_lens("jamba"), NIAH)
    one = results(experiment, tmp_path / "one")
    many, real, calls = tmp_path / "many", answering._cell, 0

    def killed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(answering, "_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        work(experiment, many, 0, 0, 1)
    kept = (place_of(many, "0") / "cells.jsonl").read_bytes()
    assert 0 < kept.count(b"\n") < 7
    work(experiment, many, 0, 0, 1)
    assert (place_of(many, "0") / "cells.jsonl").read_bytes().startswith(kept)
    assert results(experiment, many, [place_of(many, "0")]) == one
