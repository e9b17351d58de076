"""Training: exact gradients, the library's own numbers, the same weights from the same seed."""

import json
from pathlib import Path

import pytest
import torch
from bounds import EMBEDDED, FORWARD, close
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridlens.errors import InputError, ResultsError, UnknownNameError
from hybridlens.model import HybridLens
from hybridlens.tiny.architectures import SHAPES, build
from hybridlens.tiny.documents import Level
from hybridlens.tiny.forward import balance_loss, forward
from hybridlens.tiny.recipes import Recipe, Stage, learning_rate, recipe
from hybridlens.tiny.starting import build_from, read_start
from hybridlens.tiny.train import Settings, main, train

NAMES = tuple(SHAPES)
WAITS = NAMES[:3]
"""Whose runs are tried in parts: one of each kind of state."""
KINDS = {
    "tiny-qwen3": {"attention"}, "tiny-gated-attention": {"attention"}, "tiny-mamba2": {"ssm"},
    "tiny-deltanet": {"ssm"}, "tiny-falcon-h1": {"attention+ssm"},
}  # fmt: skip
"""What is in the layers of those that are not attention and a recurrence in turn."""
SMALL = Recipe(
    stages=(
        Stage(Level((96,), (2, 2), 2, 0.0), 2e-3, 1e-4),
        Stage(Level((112,), (1, 3), 2, 0.3), 1e-3, 2.0),
    ),
    steps=4,
    tokens_per_step=200,
    max_length=128,
    window=64,
    warmup=2,
    n_sentences=200,
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [3, 40, 270])
def test_training_runs_on_the_librarys_logits_and_gradients(name: str, length: int) -> None:
    """Weights are jittered so that no bias or norm is at its neutral start; 270 is beyond the window."""
    model = build(name, 60, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    tokens = torch.randint(4, 60, (2, length))

    def run(ours: bool) -> tuple[Tensor, list[Tensor]]:
        logits = forward(HybridLens(model), tokens)[0] if ours else model(tokens, use_cache=False).logits
        found = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
        return logits.detach(), list(found)

    (ours, our_gradients), (theirs, their_gradients) = run(True), run(False)
    close(ours, theirs, FORWARD)
    for got, want in zip(our_gradients, their_gradients, strict=True):
        close(got, want, 3 * EMBEDDED)


def test_balance_loss_is_one_when_even_and_the_number_of_experts_when_one_takes_all() -> None:
    """The two ends of its range, known by its formula (with one expert used)."""
    even = torch.eye(4).repeat(3, 1)[:, None].clone()
    close(balance_loss([even], 1), torch.tensor(1.0))
    one = torch.zeros(12, 1, 4)
    one[..., 2] = 1.0
    close(balance_loss([one], 1), torch.tensor(4.0))


@pytest.mark.parametrize("name", WAITS)
def test_one_seed_gives_one_model_also_when_the_run_is_interrupted(name: str, tmp_path: Path) -> None:
    """Every weight's bits after four steps over two levels; another seed differs, so this is not idle."""

    def bits(seed: int, folder: str, stops: tuple[int, ...]) -> list[Tensor]:
        model = None
        for stop in stops:
            model = train(Settings(name, seed, 4, 1), SMALL, tmp_path / folder, None, 1, stop_at=stop)
        assert model is not None
        return [parameter.detach().clone() for parameter in model.parameters()]

    whole, again = bits(3, "whole", (4,)), bits(3, "again", (4,))
    parts, other = bits(3, "parts", (1, 3, 4)), bits(4, "other", (4,))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert {line["stage"] for line in log} == {0, 1}


def test_a_work_folder_of_other_settings_is_refused_and_kept(tmp_path: Path) -> None:
    """The message names what differs, and the state on disk is the same bytes afterwards."""
    train(Settings("tiny-recurrentgemma", 0, 1, 1), SMALL, tmp_path, None)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ResultsError, match=r"'seed': 0.*this one has.*'seed': 1.*choose another --work folder"):
        train(Settings("tiny-recurrentgemma", 1, 1, 1), SMALL, tmp_path, None)
    assert (tmp_path / "state.pt").read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_is_a_hugging_face_folder(name: str, tmp_path: Path) -> None:
    """Loaded again through the Auto classes it gives the very same logits, with the real class."""
    model = train(Settings(name, 0, 1, 1), SMALL, tmp_path / "work", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer("It was a cold day.", return_tensors="pt").input_ids
    assert type(loaded) is type(model)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert tokenizer.model_max_length == SMALL.max_length
    made = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (made["seed"], made["steps_done"], made["window"]) == (0, 1, 64)
    assert made["parameters"] == sum(p.numel() for p in model.parameters())
    assert set(made["layers"]) == KINDS.get(name, {"attention", "ssm"})


def test_a_hybrid_starts_from_a_pure_models_weights(tmp_path: Path) -> None:
    """All but the mixers of layers 2 and 5 is the checkpoint's, bit for bit; the record names it and what is new."""
    plan = SMALL._replace(stages=(SMALL.stages[0]._replace(at_most=1), SMALL.stages[1]))
    pure = train(Settings("tiny-mamba2", 0, 2, 1), plan, tmp_path / "pure", None, keep_every=2, probe_every=100)
    start = read_start(tmp_path / "pure" / "step-00002")
    assert start.words.startswith("tiny-mamba2, seed 0, step 2, weights ")
    assert start.stage == 1
    vocabulary = pure.config.vocab_size
    model, anew = build_from("tiny-granite", start, vocabulary, seed=5)
    held, made = pure.state_dict(), model.state_dict()
    new = {key for key in made if key not in held}
    assert anew == (2, 5)
    assert {key.split(".")[2] for key in new} == {"2", "5"}
    assert all("self_attn" in key for key in new)
    assert all(torch.equal(made[key], held[key]) for key in made if key not in new)
    assert {key for key in held if key not in made} == {key for key in held if ".2.mamba." in key or ".5.mamba." in key}
    assert model.config.use_cache

    settings = Settings("tiny-granite", 5, 1, 1, start.words)
    train(settings, plan, tmp_path / "work", tmp_path / "out", probe_every=100, start=start)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["start"], record["layers_drawn_anew"], record["first_stage"]) == (start.words, [2, 5], 1)
    assert [kind == "attention" for kind in record["layers"]] == [False, False, True] * 2
    with pytest.raises(ResultsError, match=r"belongs to a run with .*'start': 'tiny-mamba2, seed 0"):
        train(Settings("tiny-granite", 5, 1, 1), plan, tmp_path / "work", None)
    with pytest.raises(InputError, match=r"is a granitemoehybrid model .* expected tiny-qwen3's qwen3"):
        build_from("tiny-qwen3", start, vocabulary, 0)
    with pytest.raises(InputError, match="has the very layers of tiny-mamba2"):
        build_from("tiny-mamba2", start, vocabulary, 0)
    with pytest.raises(InputError, match="is no checkpoint of a tiny model"):
        read_start(tmp_path)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """Thirty steps: the loss starts at about ln(725) = 6.6; an untrained model cannot get under 6."""
    plan = SMALL._replace(stages=SMALL.stages[:1])._replace(warmup=5, tokens_per_step=400)
    plan = plan._replace(stages=(plan.stages[0]._replace(advance_at=2.0),))
    train(Settings("tiny-recurrentgemma", 0, 30, 1), plan, tmp_path, None, probe_every=100)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) / 5 < losses[0] - 1.5


def test_a_level_ends_when_it_is_learned_or_after_its_steps(tmp_path: Path) -> None:
    """One whose bar is never reached takes its two steps and no more; the last has no end."""
    never = SMALL.stages[0]._replace(advance_at=2.0, at_most=2)
    plan = SMALL._replace(stages=(never, never, SMALL.stages[0], SMALL.stages[1]))
    train(Settings("tiny-lfm2", 0, 5, 1), plan, tmp_path, None, 1, stop_at=3)
    train(Settings("tiny-lfm2", 0, 7, 1), plan, tmp_path / "other", None, 1)
    stages = [json.loads(line)["stage"] for line in (tmp_path / "other" / "log.jsonl").read_text().splitlines()]
    assert stages[:4] == [0, 0, 1, 1]
    assert stages[4] == 2
    train(Settings("tiny-lfm2", 0, 5, 1), plan, tmp_path, None, 1)
    again = [json.loads(line)["stage"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert again == stages[:5], "where the level began is part of what is saved"


def test_learning_rate_rises_holds_and_falls() -> None:
    """Its three corners and the level's own rate."""
    plan = recipe("tiny-jamba")
    close(learning_rate(plan, 0, 0, 1000), plan.stages[0].rate / plan.warmup)
    close(learning_rate(plan, 3, 500, 1000), plan.stages[3].rate)
    assert learning_rate(plan, 3, 999, 1000) < 0.05 * plan.stages[3].rate


def test_bad_arguments_end_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Exit status 2, the user's own words, and nothing written."""
    assert main(["tiny-jambo", "--work", str(tmp_path / "w")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'tiny-jambo'" in said
    assert "close names: tiny-jamba" in said
    assert main(["tiny-jamba", "--steps", "0", "--work", str(tmp_path / "w")]) == 2
    assert "--steps 0" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    with pytest.raises(UnknownNameError, match="choose one of tiny-recurrentgemma, tiny-jamba, tiny-granite"):
        build("gpt", 10, 0)
