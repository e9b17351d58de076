"""The benchmarks experiment: lm-eval's own scores, what a stopped run keeps, and one line for what cannot be."""

import json
import logging
import sys

import pytest
from bounds import close
from lm_eval.evaluator import evaluate

import hybridlens as hl
from analyses.experiment.running import conduct
from analyses.heads.sparsification import top_k
from analyses.study.benchmarks import BenchmarkConfig, BenchmarkRun, check_tasks, default_ks, run_benchmarks, running
from analyses.study.benchmarks import tasks as benchmark_tasks
from analyses.study.benchmarks.harness import HarnessModel
from analyses.study.benchmarks.local_tasks import FOLDER
from analyses.study.benchmarks.results import BenchmarkResult, BenchmarkRow, mean_row
from hybridlens.errors import InputError, ResultsError, UnknownNameError

NAME = "tiny-recurrentgemma"
QUICK = ("tiny_facts", "tiny_grammar")

logging.getLogger("lm_eval").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def lens():
    return hl.load(NAME)


@pytest.fixture(scope="module")
def contrast(lens):
    tasks = ("tiny_retrieval", "tiny_facts", "tiny_grammar")
    return run_benchmarks(lens, BenchmarkConfig(model=NAME, tasks=tasks, limit=20))


@pytest.fixture
def own(tmp_path):
    """A folder with a group of two tasks, and a tag on them, whose items are those of the local tasks."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in QUICK:
        text = (FOLDER / f"{name}.yaml").read_text().replace(f"task: {name}", f"task: own_{name}\ntag: own_tag")
        (folder / f"own_{name}.yaml").write_text(text)
        (folder / f"{name}.jsonl").write_bytes((FOLDER / f"{name}.jsonl").read_bytes())
    (folder / "data.py").write_bytes((FOLDER / "data.py").read_bytes())
    (folder / "group.yaml").write_text(
        "group: own_group\ntask: [own_tiny_facts, own_tiny_grammar]\n"
        "aggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
    )
    return folder


def test_retrieval_falls_and_grammar_does_not(contrast):
    """H2's contrast on the tiny model, with room on both sides: k = 5 of 8 costs nothing, k = 0 costs retrieval."""
    assert contrast.ks == (8, 5, 0)
    assert contrast.of("tiny_retrieval", 8).value > 0.7
    assert contrast.difference("tiny_retrieval", 0).value < -40
    assert contrast.difference("tiny_retrieval", 0).interval.high < -20
    assert contrast.difference("tiny_grammar", 0).value > -5
    assert contrast.difference("tiny_retrieval", 0).value < contrast.difference("tiny_facts", 0).value
    assert abs(contrast.difference("tiny_facts", 5).value) < 5


def test_rows_are_lm_evals_own_scores(lens, contrast):
    """All tasks in one call of lm-eval, which is not how the experiment calls it."""
    found = evaluate(
        HarnessModel(lens, top_k(lens, 0, "both")), load(("tiny_retrieval", "tiny_facts")), limit=20, log_samples=True
    )
    for task in ("tiny_retrieval", "tiny_facts"):
        row = contrast.of(task, 0)
        assert (row.metric, row.n, row.higher_is_better) == ("acc", 20, True)
        close(row.value, found["results"][task]["acc,none"])
        close(row.stderr, found["results"][task]["acc_stderr,none"])
        assert row.scores == tuple(sample["acc"] for sample in found["samples"][task])


def load(names):
    loaded = benchmark_tasks.load_tasks(names)
    for task in loaded.tasks.values():
        task.set_config("num_fewshot", 0)
    return {"tasks": dict(loaded.tasks), "groups": dict(loaded.groups)}


def test_a_stopped_run_goes_on(lens, tmp_path, monkeypatch):
    """Stopped after the third of four pairs: only the fourth is run, and the end is that of a whole run."""
    ran = []
    run_one = running._run
    monkeypatch.setattr(running, "_run", lambda *args: ran.append((args[3].task_name, args[4])) or run_one(*args))
    config = BenchmarkConfig(model=NAME, tasks=QUICK, ks=(8, 0), limit=4)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conduct(BenchmarkRun(lens, config, "w"), tmp_path, stop)
    assert len(ran) == 3
    ran.clear()
    counts = []
    result = conduct(BenchmarkRun(lens, config, "w"), tmp_path, lambda done, total: counts.append((done, total))).result
    assert ran == [("tiny_grammar", 0)]
    assert counts == [(done, 4) for done in range(5)]
    assert BenchmarkResult.load(tmp_path / "benchmarks.json").rows == result.rows == run_benchmarks(lens, config).rows
    ran.clear()
    more = conduct(BenchmarkRun(lens, config.but(tasks=("tiny_facts",), ks=(1, 8)), "w"), tmp_path).result
    assert [(row.task, row.k) for row in more.rows] == [("tiny_facts", 1), ("tiny_facts", 8)]
    assert ran == [("tiny_facts", 1)]  # what was there has stayed


@pytest.mark.parametrize(
    ("change", "weights", "name"),
    [({"limit": 5}, "w", "limit 4, and this one has 5"), ({"semantics": "published"}, "w", 'semantics "clean"'),
     ({}, "x", "weights"), ({"model": "other"}, "w", 'model "tiny-recurrentgemma"')],
)  # fmt: skip
def test_another_run_is_refused(lens, tmp_path, change, weights, name):
    """And the folder stays as it was."""
    config = BenchmarkConfig(model=NAME, tasks=("tiny_grammar",), ks=(8,), limit=4)
    conduct(BenchmarkRun(lens, config, "w"), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(ResultsError, match=name):
        conduct(BenchmarkRun(lens, config.but(**change), weights), tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_scores_of_an_edited_task_are_not_believed(lens, own, tmp_path):
    """Its documents turned round: the scores are those of a new folder, and the stage is named."""
    config = BenchmarkConfig(model=NAME, tasks=("own_tiny_facts",), ks=(8,), limit=4, include=own)
    first = conduct(BenchmarkRun(lens, config, "w"), tmp_path / "run")
    items = [json.loads(line) for line in (own / "tiny_facts.jsonl").read_text().splitlines()]
    wrong = [item | {"label": (item["label"] + 1) % len(item["choices"])} for item in items]
    (own / "tiny_facts.jsonl").write_text("".join(json.dumps(item) + "\n" for item in wrong))
    benchmark_tasks._index.cache_clear()
    again = conduct(BenchmarkRun(lens, config, "w"), tmp_path / "run")
    fresh = conduct(BenchmarkRun(lens, config, "w"), tmp_path / "new")
    assert again.result.rows == fresh.result.rows != first.result.rows
    assert [line.split(" ")[0] for line in again.damaged] == ["benchmarks/own_tiny_facts-8.json"]


def test_results_are_read_back_or_refused(contrast, tmp_path):
    path = contrast.save(tmp_path / "benchmarks.json")
    assert BenchmarkResult.load(path) == contrast
    held = json.loads(path.read_text())
    held["rows"][0]["value"] = 1.5
    for text in (json.dumps(held), path.read_text()[:-40], "[]", "{}"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"saved BenchmarkResult|damaged BenchmarkResult"):
            BenchmarkResult.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        BenchmarkResult.load(tmp_path / "missing.json")


def test_groups_and_tags(lens, own):
    """A group's score is lm-eval's (weighted by size), a tag's the plain mean over its tasks."""
    config = {"ks": (8, 0), "limit": 20, "include": own}
    group = run_benchmarks(lens, BenchmarkConfig(model=NAME, tasks=("own_group",), **config))
    values = [group.of(f"own_{task}", 0).value for task in QUICK]
    assert group.of("own_group", 0).metric == "acc"
    close(group.of("own_group", 0).value, sum(values) / 2)  # of equal size here
    assert group.of("own_group", 0).n == 40
    found = evaluate(
        HarnessModel(lens, top_k(lens, 0, "both")), own_tasks(own), limit=20, bootstrap_iters=1000, log_samples=False
    )
    close(group.of("own_group", 0).stderr, found["results"]["own_group"]["acc_stderr,none"])
    tag = run_benchmarks(lens, BenchmarkConfig(model=NAME, tasks=("own_tag",), **config))
    assert tag.of("own_tag", 0).metric == "mean"
    close(tag.of("own_tag", 0).value, sum(values) / 2)
    close(tag.difference("own_tag", 0).value, 100 * (sum(values) / 2 - 1))


def own_tasks(folder):
    loaded = benchmark_tasks.load_tasks(("own_group",), folder)
    for task in loaded.tasks.values():
        task.set_config("num_fewshot", 0)
    return {"tasks": dict(loaded.tasks), "groups": dict(loaded.groups)}


def test_the_mean_of_a_tag_counts_each_task_once():
    """GLUE's rule: of a task with two scores their mean, so that it weighs no more than the others."""
    rows = [[BenchmarkRow("a", 0, "acc", 0.5, 0.1, 10)],
            [BenchmarkRow("b", 0, "f1", 0.2, None, 5), BenchmarkRow("b", 0, "acc", 0.4, 0.1, 5)]]  # fmt: skip
    close(mean_row("glue", 0, rows).value, 0.4)
    assert mean_row("glue", 0, rows).stderr is None
    close(mean_row("glue", 0, rows[:1] * 2).stderr, 0.1 / 2**0.5)


def test_examples_are_the_same_at_every_k(lens, monkeypatch):
    """A generator that went on from k to k would ask other questions of each."""
    asked = []
    answer = HarnessModel.loglikelihood
    monkeypatch.setattr(
        HarnessModel, "loglikelihood", lambda self, r: asked.append([i.args[0] for i in r]) or answer(self, r)
    )
    run_benchmarks(lens, BenchmarkConfig(model=NAME, tasks=("tiny_grammar",), ks=(8, 0), limit=3, num_fewshot=2))
    assert asked[0] == asked[1]
    assert asked[0][0].count("CONTEXT:") == 3
    run_benchmarks(lens, BenchmarkConfig(model=NAME, tasks=("tiny_grammar",), ks=(8,), limit=3, num_fewshot=2, seed=5))
    assert asked[2] != asked[0]


def test_lm_eval_is_kept_quiet(lens, capfd):
    """Its log, bars and warnings, unless they are asked for."""
    config = {"model": NAME, "tasks": ("tiny_grammar",), "ks": (8,), "limit": 2}
    run_benchmarks(lens, BenchmarkConfig(**config))
    assert capfd.readouterr() == ("", "")
    run_benchmarks(lens, BenchmarkConfig(**config, verbose=True))
    assert "2/2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ks": ()}, InputError, "--ks is empty"),
        ({"ks": (8, 5, 8)}, InputError, "--ks holds 8 more than once"),
        ({"ks": (-1,)}, InputError, "--ks -1 given"),
        ({"limit": 0}, InputError, "--limit 0 given, expected greater than or equal to 1"),
        ({"num_fewshot": -1}, InputError, "--num-fewshot -1 given"),
        ({"batch_size": 0}, InputError, "--batch-size 0 given"),
        ({"version": "decode"}, UnknownNameError, "version 'decode' does not exist; expected one of prefill"),
        ({"semantics": "clear"}, UnknownNameError, "close names: clean"),
        ({"fewshot_as_multiturn": True}, InputError, "without apply_chat_template"),
    ],
)
def test_bad_options_are_told_without_a_model(options, error, message):
    with pytest.raises(error, match=message):
        BenchmarkConfig(model=NAME, **options)


def test_what_the_model_cannot_do_is_told_before_data_is_loaded(lens, monkeypatch):
    monkeypatch.setattr(running, "load_tasks", None)
    with pytest.raises(InputError, match=r"k = 9 given, expected 0\.\.8: tiny-recurrentgemma has 8 heads"):
        run_benchmarks(lens, BenchmarkConfig(model=NAME, ks=(9,)))
    with pytest.raises(InputError, match="no chat template"):
        run_benchmarks(lens, BenchmarkConfig(model=NAME, apply_chat_template=True))


def test_default_ks():
    assert [default_ks(n) for n in (32, 8, 5, 3)] == [(32, 5, 0), (8, 5, 0), (5, 0), (3, 0)]


def test_tasks_are_checked_by_name(monkeypatch, tmp_path):
    """GLUE and MMLU are found without any data; an unknown name is told with close ones."""
    check_tasks(["tiny_facts", "glue", "mmlu", "mmlu_stem", "cola"])
    index = benchmark_tasks._index
    # All that lm-eval has takes a quarter of a minute to read.
    monkeypatch.setattr(benchmark_tasks, "_index", lambda part, include: index("paper", include))
    with pytest.raises(UnknownNameError, match="no task 'tiny_retreival'; close names: tiny_retrieval"):
        check_tasks(["tiny_facts", "tiny_retreival"])
    with pytest.raises(InputError, match="'glue' given more than once"):
        check_tasks(["glue", "mmlu", "glue"])
    with pytest.raises(InputError, match="no task given"):
        check_tasks([])
    with pytest.raises(InputError, match="holds no task"):
        check_tasks(["glue"], tmp_path)


def test_tasks_that_cannot_be_loaded(own, lens):
    """No network here, so GLUE's data are out of reach, and one line says so; overlaps and fixed examples likewise."""
    with pytest.raises(InputError, match=r"task 'cola' cannot be loaded \(.*hub, so connect") as caught:
        benchmark_tasks.load_tasks(["tiny_facts", "cola"])
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="task 'own_tiny_facts' is part of two of own_group, own_tag"):
        benchmark_tasks.load_tasks(["own_group", "own_tag"], own)
    fixed = own / "own_tiny_grammar.yaml"
    fixed.write_text(fixed.read_text() + "num_fewshot: 0\n")
    benchmark_tasks._index.cache_clear()
    with pytest.raises(InputError, match="num_fewshot 2 given, but task 'own_tiny_grammar' is made for none"):
        run_benchmarks(lens, BenchmarkConfig(model=NAME, tasks=("own_tiny_grammar",), num_fewshot=2, include=own))


def test_without_lm_eval_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"not installed; install hybridlens\[benchmarks\]"):
        check_tasks(["glue"])
