"""`hybridlens plan` against what a run really does, and what it says and refuses."""

import json
from pathlib import Path

import pytest
from command_line import refused

import hybridlens as hl
from analyses.cli import main
from analyses.experiment.options.planning import PlanConfig
from analyses.heads.answering import answer_cells
from analyses.study.experiments import plan, rubrics_of
from analyses.study.plan_types import Planned, StudyPlan
from analyses.study.planning import PACKAGED, STANDING_IN, study_plan
from hybridlens.counting import MACHINES, Expense
from hybridlens.engine import Sweep, Tally
from tests.benchmarks import recipes

SMALL = {"lengths": (200,), "depths": (0, 100), "heads": (0, 4), "max_new_tokens": 4}
GOOGLE = "google/recurrentgemma-2b"


@pytest.mark.parametrize("model", ["tiny-jamba", "tiny-recurrentgemma"])
def test_a_plan_is_what_the_run_does(model, monkeypatch):
    """Tokens read and passes are equal, batches too; of tokens written a run has no more."""
    config = PlanConfig(model=model, experiment=("fig2",), gpu="cpu", **SMALL)
    planned = study_plan(config).whole
    lens, batches, written, tallies = hl.load(model), [], [], []
    say = Sweep._say

    def watched(sweep, rows):
        said = say(sweep, rows)
        batches.append(len(rows))
        written.append(sum(len(one.tokens) for one in said))
        return said

    monkeypatch.setattr(Sweep, "_say", watched)
    grid = plan(lens, config).cells
    limits = (config.max_new_tokens, config.memory, config.batch_size, tallies.append)
    cells = [cell for part in answer_cells(lens, grid, list(grid), rubrics_of(config, grid), *limits) for cell in part]
    assert planned.cells == len(cells) == len(grid)
    assert planned.tally == sum(tallies, Tally())
    assert planned.expense.read == planned.tally.prefilled == planned.tally.distinct < planned.tokens
    assert (planned.rows, planned.batches, planned.answers) == (max(batches), len(batches), sum(batches))
    assert 0 < sum(written) <= planned.expense.written == planned.answers * config.max_new_tokens


def test_experiments_together_answer_common_cells_once():
    found = study_plan(PlanConfig(model="tiny-jamba", experiment=("fig2", "fig3-jrt"), **SMALL))
    assert [part.experiment for part in found.parts] == ["fig2", "fig3-jrt", "together"]
    fig2, jrt, whole = found.parts
    assert max(fig2.cells, jrt.cells) < whole.cells < fig2.cells + jrt.cells
    assert whole.expense.operations < fig2.expense.operations + jrt.expense.operations
    assert found.to_pandas().shape == (3, 10)


def a_plan(memory: int, jobs: int | None, *seconds: float) -> StudyPlan:
    spent = Expense(1, 1, 1, 1, sum(seconds))
    part = Planned("fig2", 4, 4, 2, 9, Tally(9, 9), 4, 1, spent, seconds)
    return StudyPlan("m", "bfloat16", MACHINES["h100"], 104 * 10**9, memory, jobs, (part,), ())


def test_jobs_take_the_largest_portions_first():
    found = a_plan(10**9, 2, 3600.0, 7200.0, 3600.0, 10800.0)
    assert found.whole.hours == pytest.approx(7)
    assert [found.whole.hours_of(jobs) for jobs in (1, 2, 3, 9)] == pytest.approx([7, 4, 3, 3])
    assert found.table().rows[0][-1] == 4.0
    assert "hours a job" not in a_plan(10**9, None, 1.0).table().columns


def test_devices_hold_weights_budget_and_what_a_runtime_needs():
    assert a_plan(10**9, None, 1.0).gpus == 2
    assert a_plan(60 * 10**9, None, 1.0).gpus == 3  # 164 GB, of twice 80 less twice what is spared


def test_the_papers_models_are_known_without_a_network(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["--model", GOOGLE, "--experiment", "fig2", "--lengths", "300", "--depths", "0,100", "--heads", "0"]
    assert main(["plan", *words, "--dtype", "bfloat16", "--gpu", "h100", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "weights 5.4 GB" in said
    assert "1 device of 80.0 GB" in said
    assert f"Sizes of {GOOGLE} are those that come with hybridlens" in said
    assert f"Prompts are made with the tokenizer of {STANDING_IN}" in said
    assert "hours a job" in said
    assert "as long as it may be" in said
    wrong = refused(["plan", *words, "--revision", "main"], capsys)
    assert GOOGLE in wrong


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "h10"], "machine 'h10' does not exist"),
        (["--experiment", "fig"], "experiment 'fig' does not exist"),
        (["--experiment", "all,fig2"], "all stands for every experiment"),
        (["--experiment", "benchmarks"], "a plan has cells alone"),
        (["--experiment", "fig2,fig2"], "more than once"),
        (["--memory", "1MB", "--experiment", "fig2"], "give more memory or shorter prompts"),
        (["--lengths", "99999"], "--lengths 99999 given, expected at most 984"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, said, capsys):
    assert said in refused(["plan", "--model", "tiny-jamba", *words], capsys)


def test_packaged_configurations_are_of_the_sizes_that_the_paper_gives():
    """Weights without embeddings are those of the paper's appendix A."""
    from analyses.experiment.checkpoints import meta_lens

    sizes = {GOOGLE: 2_027_502_080, "google/recurrentgemma-9b": 7_531_401_216}
    sizes["ai21labs/AI21-Jamba-Mini-1.6"] = 51_033_452_416
    assert {path.parent.relative_to(PACKAGED).as_posix() for path in PACKAGED.rglob("config.json")} == set(sizes)
    for name, size in sizes.items():
        assert meta_lens(str(PACKAGED / name)).n_parameters.non_embedding == size
        assert json.loads((Path(PACKAGED) / name / "config.json").read_text(encoding="utf-8"))["architectures"]


@pytest.mark.parametrize("name", ["sizes", "trials"])
def test_tables_of_the_recipes_are_what_the_code_says(name):
    page = recipes.PAGE.read_text(encoding="utf-8")
    assert recipes.held(name, page) == recipes.markdown(recipes.TABLES[name]())


def test_the_table_of_whole_grids_has_a_row_for_each_experiment_of_each_model():
    """Its numbers take a minute; those that a plan shares with the other tables are compared."""
    rows = [line.split(" | ") for line in recipes.held("studies", recipes.PAGE.read_text(encoding="utf-8")).split("\n")]
    trials = recipes.held("trials", recipes.PAGE.read_text(encoding="utf-8"))
    found = [(row[0].removeprefix("| "), row[1], row[2]) for row in rows[2:]]
    for model in recipes.MODELS:
        gpus = next(line.split(" | ")[1] for line in trials.split("\n") if model in line)
        names = ("fig2", "fig3-jrt", *(("table1",) if "gemma" in model else ()), "together")
        assert [row for row in found if row[0] == model] == [(model, gpus, name) for name in names]


def test_the_example_of_the_recipes_runs():
    page = recipes.PAGE.read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    exec(compile(page.split("```python\n")[1].split("```")[0], "recipes.py", "exec"), scope)
    assert scope["plan"].whole.experiment == "fig2"
