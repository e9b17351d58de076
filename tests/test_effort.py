"""What shows progress moves with the work of passes, evenly, and ends where it should; never with the clock."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from models import make

import hybridlens as hl
from analyses.circuits import circuits
from analyses.experiment.running import conduct
from analyses.heads.answering import Treated
from analyses.study import niah
from hybridlens import tiny
from hybridlens.effort import LEAST, Ahead, Effort, foresee, layer_done, watched, watching
from hybridlens.engine import Job, Rehearsal, Sweep


def recorder() -> tuple[Effort, list[float]]:
    """An effort, and the shares that it has shown."""
    shares: list[float] = []
    return Effort(lambda effort: shares.append(effort.share)), shares


def test_every_layer_of_a_pass_tells_its_tokens() -> None:
    """Two rows of five tokens are ten in all layers together, and work as much as a pass does at least."""
    lens = hl.HybridLens(make("jamba", 3))
    moved: list[float] = []
    effort = Effort(lambda now: moved.append(now.tokens))
    with watching(effort):
        assert watched()
        lens.prefill([[3, 4, 5, 6, 7]] * 2)
    assert not watched()
    lens.prefill([[3, 4, 5]])
    assert len(moved) == lens.cfg.n_layers
    assert moved == pytest.approx([10 * n / lens.cfg.n_layers for n in range(1, lens.cfg.n_layers + 1)])


def test_stages_count_by_the_work_that_was_foreseen() -> None:
    """A part of one stage and 300, one of two stages and 100: by hand, in quarters."""
    effort, _ = recorder()
    effort.tell(0, 3)
    effort.foresee([Ahead(1, 300.0), Ahead(2, 100.0)])
    for done, more, share in ((0, 150, 150), (0, 100, 250), (0, 999, 300), (1, 0, 300), (1, 20, 320), (2, 0, 350)):
        effort.tell(done, 3)
        effort.add(0.0, float(more))
        assert effort.share == pytest.approx(share / 400)
    effort.tell(3, 3)
    assert effort.share == 1.0


def test_what_was_done_before_and_what_nobody_foresaw_count_as_the_mean() -> None:
    """Two stages done, two foreseen at 10 each, one more: fifths. Less work than foreseen never sets it back."""
    effort, shares = recorder()
    effort.tell(2, 5)
    effort.foresee([Ahead(2, 20.0), Ahead(0, 0.0)])
    assert effort.share == pytest.approx(2 / 5)
    effort.add(5.0, 5.0)
    assert effort.share == pytest.approx(2.5 / 5)
    effort.tell(4, 5)
    effort.foresee([])
    effort.tell(5, 5)
    assert effort.share == 1.0
    assert shares == sorted(shares)
    effort.turn_to("report")
    assert (effort.what, effort.share) == ("report", 0.0)


def test_circuits_move_within_their_stages() -> None:
    """A stage that goes through the vocabulary, a layer's heads or pairs of layers is no single jump."""
    effort, shares = recorder()
    lens = hl.HybridLens(make("recurrentgemma", 3))
    with watching(effort):
        circuits(lens, sample_size=2, progress=effort.tell)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 3 * (effort.total or 0)


def test_nobody_looking_costs_nothing() -> None:
    """Nothing is kept of what is told then."""
    foresee([Ahead(1, 1.0)])
    layer_done(5, 2)
    effort, shares = recorder()
    assert (effort.tokens, shares) == (0.0, [])


def test_a_sweep_takes_what_was_foreseen() -> None:
    """Prompts that share a beginning: read tokens and answering steps add up to the forecast where none ends early."""
    lens = hl.HybridLens(make("recurrentgemma", 3))
    shared = (5, 6, 7, 8) * 10
    jobs = [Job((*shared, *(9, 10) * (5 * n)), None, None) for n in range(1, 4)]
    given = (lens, Treated(lens), "last_prompt_token", 6)
    rehearsal = Rehearsal(*given)
    rehearsal.rehearse(jobs)
    # the trunk, all but its last token, is read with what the shortest adds; two passes add ten; one batch answers
    assert rehearsal.work == 49 + 2 * LEAST + 6 * LEAST
    effort, shares = recorder()
    with watching(effort):
        effort.tell(0, 3)
        effort.foresee([Ahead(3, rehearsal.work)])
        for batch in Sweep(*given).run(jobs):
            effort.tell(effort.done + len(batch), 3)
    assert shares == sorted(shares)
    assert shares[-2] == pytest.approx(1.0)  # all of the work, before the cells are told
    assert max(b - a for a, b in pairwise(shares)) < 49 / rehearsal.work


def test_a_command_moves_in_small_steps_through_cells_and_report(tmp_path: Path) -> None:
    """Few cells of long prompts: no large jump while they are read and answered, and the report moves as well."""
    name = tiny.names()[0]
    lens = hl.load(name)
    lists: dict[str, Any] = {"lengths": (200,), "depths": (0, 50), "heads": (2, 8)}
    options = niah.NiahConfig(model=name, control=False, max_new_tokens=2, **lists)
    shown: list[tuple[str, float]] = []
    effort = Effort(lambda now: shown.append((now.what, now.share)))
    with watching(effort):
        conduct(niah.NiahRun(lens, options, "0" * 64), tmp_path, effort.tell)
    cells = [share for what, share in shown if not what]
    assert cells == sorted(cells)
    assert cells[-1] == 1.0
    assert len(cells) > 5 * lens.cfg.n_layers
    assert max(b - a for a, b in pairwise(cells)) < 0.25
    report = [share for what, share in shown if what == "report"]
    assert len(report) > 5 * lens.cfg.n_layers
    assert max(b - a for a, b in pairwise(report)) < 0.25
