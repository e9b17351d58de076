"""Train a tiny model: ``python -m hybridlens.tiny.train NAME --seed S [--out DIR] [--steps N] [--from CHECKPOINT]``.

Mechanism: AdamW on the answers of generated documents (`hybridlens.tiny.documents`), with the curriculum and
settings of `hybridlens.tiny.recipes`, through the lens's own forward pass.
A batch is a function of seed and step, the model of the seed, and nothing else is drawn, so one seed on one
machine with one number of threads gives the same weights, whether or not the run was interrupted: its state
is written to the work folder every few hundred steps, and the same command goes on from there.

With ``--from`` a run starts from a checkpoint that another one kept, in which the layers of other kinds than NAME's are
replaced (`hybridlens.tiny.starting`): attention added midway. Its curriculum goes on at the level that the checkpoint
had reached, with a warm-up and documents of its own steps; give another seed for other documents than it has seen.

How it fails: another number of threads or another processor adds in another order, and the weights differ in
their last bits, then more. A work folder that belongs to other settings is refused.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig

from hybridlens.errors import HybridLensError, InputError, ResultsError
from hybridlens.model import HybridLens
from hybridlens.tiny.architectures import TinyModel, build
from hybridlens.tiny.documents import Batch, Source, make_source, write_batch
from hybridlens.tiny.forward import forward
from hybridlens.tiny.probe import probe
from hybridlens.tiny.recipes import RECIPES, Recipe, Stage, learning_rate, recipe
from hybridlens.tiny.starting import Start, build_from, read_start
from hybridlens.tiny.tokenizer import BOS_ID, EOS_ID, PAD_ID, build_tokenizer, words

SMOOTHING = 0.97
"""Memory of the moving average of accuracy, per step."""


@dataclasses.dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    stage: int = 0
    accuracy: float = 0.0
    """Moving average of answer-token accuracy since the stage began."""
    seconds: float = 0.0
    """Time spent in training steps so far."""
    stage_began: int = 0
    """Steps done when the stage began."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was asked for; a work folder belongs to one of these."""

    name: str
    seed: int
    steps: int
    threads: int
    start: str = ""
    """Which checkpoint it started from, and the digest of its weights; empty for none."""

    def values(self) -> dict[str, Any]:
        """As JSON values; of a run that started from nothing without `start`, as it was before there was any."""
        values = dataclasses.asdict(self)
        return values if self.start else {name: value for name, value in values.items() if name != "start"}


def loss_and_accuracy(lens: HybridLens, batch: Batch, balance: float) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Weighted next-token loss (plus the experts' balance), and accuracy on the answer tokens."""
    logits, uneven = forward(lens, batch.tokens[:, :-1])
    targets: Int[Tensor, "batch pos"] = batch.tokens[:, 1:]
    weights: Float[Tensor, "batch pos"] = batch.weights[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.reshape(-1), reduction="none").view_as(weights)
    loss = (losses * weights).sum() / weights.sum() + balance * uneven
    answers = weights == 1.0
    right = (logits.detach().argmax(-1) == targets) & answers
    return loss, right.sum() / answers.sum().clamp(min=1)


def make_optimizer(model: TinyModel, settings: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), eps=1e-8)


def train_step(
    lens: HybridLens,
    optimizer: torch.optim.AdamW,
    source: Source,
    settings: Settings,
    plan: Recipe,
    progress: Progress,
) -> tuple[float, float]:
    """One step of training; moves `progress` on.

    Returns:
        loss, and accuracy on the answer tokens.
    """
    stage = plan.stages[progress.stage]
    rate = learning_rate(plan, progress.stage, progress.step, settings.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    batch = write_batch(settings.seed, progress.step, source, stage.level, plan.tokens_per_step, plan.window)
    optimizer.zero_grad(set_to_none=True)
    loss, accuracy = loss_and_accuracy(lens, batch, plan.balance)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(lens.hf_model.parameters(), plan.clip)
    optimizer.step()
    progress.step += 1
    progress.accuracy = SMOOTHING * progress.accuracy + (1 - SMOOTHING) * accuracy.item()
    over = stage.at_most is not None and progress.step - progress.stage_began >= stage.at_most
    if over or progress.accuracy >= stage.advance_at:
        progress.stage, progress.accuracy, progress.stage_began = progress.stage + 1, 0.0, progress.step
    return loss.item(), accuracy.item()


def save_state(
    path: Path, settings: Settings, progress: Progress, model: TinyModel, optimizer: torch.optim.AdamW
) -> None:
    """Write all that a later run needs to go on, in one move."""
    state = {
        "settings": settings.values(),
        "progress": dataclasses.asdict(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_state(path: Path, settings: Settings, model: TinyModel, optimizer: torch.optim.AdamW) -> Progress:
    """Go back to where the run of this folder stood.

    Raises:
        ResultsError: when the folder belongs to other settings.
    """
    state = torch.load(path, weights_only=True)
    if state["settings"] != settings.values():
        raise ResultsError(
            f"{path} belongs to a run with {state['settings']}, this one has {settings.values()}; "
            "choose another --work folder or delete that one"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def _keep_lines(history: Path, n: int) -> None:
    """Cut a log back to `n` steps, one a line: what came after the last saved state is run again."""
    if history.exists():
        lines = history.read_text(encoding="utf-8").splitlines(keepends=True)
        history.write_text("".join(lines[:n]), encoding="utf-8")


def account(
    settings: Settings, model: TinyModel, plan: Recipe, history: Path, anew: Sequence[int] = ()
) -> dict[str, Any]:
    """What ``training.json`` says: how the run went and what came out, in JSON values.

    Args:
        settings: what was asked for.
        model: as trained.
        plan: its recipe.
        history: the run's log.
        anew: layers that a model which started from another's weights did not have from there.
    """
    lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    began: dict[int, int] = {}
    for line in lines:
        began.setdefault(line["stage"], line["step"])
    recent = [line["accuracy"] for line in lines[-100:]]
    return {
        **settings.values(),
        **({"layers_drawn_anew": list(anew), "first_stage": min(began)} if anew else {}),
        "steps_done": len(lines),
        "seconds": lines[-1]["seconds"],
        "stage_began_at_step": [began[stage] for stage in sorted(began)],
        "answer_accuracy_of_last_100_steps": round(sum(recent) / len(recent), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": layers_of(HybridLens(model)),
        "window": plan.window,
        "recipe": plan._asdict() | {"stages": [_as_dict(stage) for stage in plan.stages]},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def layers_of(lens: HybridLens) -> list[str]:
    """What mixes tokens in each layer: "attention", "ssm" (convolutions too), or "attention+ssm"."""
    cfg = lens.cfg
    kinds = (("attention", cfg.attention_layers), ("ssm", cfg.ssm_layers))
    return ["+".join(kind for kind, layers in kinds if layer in layers) for layer in range(cfg.n_layers)]


def _as_dict(stage: Stage) -> dict[str, Any]:
    return stage._asdict() | {"level": stage.level._asdict()}


def export(model: TinyModel, plan: Recipe, out: Path, account_of_run: dict[str, Any]) -> None:
    """Write the model, its tokenizer and ``training.json`` as a Hugging Face folder."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        do_sample=False,
        max_new_tokens=40,
        use_cache=model.config.use_cache,
    )
    model.save_pretrained(out)
    build_tokenizer(plan.max_length).save_pretrained(out)
    text = json.dumps(account_of_run, indent=2) + "\n"
    (out / "training.json").write_text(text, encoding="utf-8")


def train(
    settings: Settings,
    plan: Recipe,
    work: Path,
    out: Path | None,
    save_every: int = 100,
    keep_every: int = 0,
    probe_every: int = 100,
    stop_at: int | None = None,
    start: Start | None = None,
) -> TinyModel:
    """Run, or go on with, a training run.

    Args:
        settings: name, seed, number of steps and threads.
        plan: the recipe.
        work: folder of the run's state, its log (``log.jsonl``) and the kept checkpoints.
        out: where to write the finished model; None to write nothing.
        save_every: steps between states.
        keep_every: steps between checkpoints that are kept as Hugging Face folders, 0 for none.
        probe_every: steps between looks at the paper's needle.
        stop_at: leave off after this step, as an interruption would; None to go on to the end.
        start: the checkpoint to start from, which `settings` name; None to start from nothing.

    Returns:
        the trained model.
    """
    torch.set_num_threads(settings.threads)
    known = words()
    tokenizer = build_tokenizer(plan.max_length)
    source = make_source(tokenizer.backend_tokenizer, known, settings.seed, plan.n_sentences)
    anew: tuple[int, ...] = ()
    if start is None:
        model = build(settings.name, len(tokenizer), settings.seed)
    else:
        model, anew = build_from(settings.name, start, len(tokenizer), settings.seed)
    model.train()
    first = Progress() if start is None else Progress(stage=min(start.stage, len(plan.stages) - 1))
    lens, optimizer = HybridLens(model), make_optimizer(model, plan)
    work.mkdir(parents=True, exist_ok=True)
    state = work / "state.pt"
    progress = load_state(state, settings, model, optimizer) if state.exists() else first
    lengths = [plan.max_length * i // 4 for i in (2, 3, 4)]
    history = work / "log.jsonl"
    _keep_lines(history, progress.step)
    with history.open("a", encoding="utf-8") as log:
        while progress.step < (settings.steps if stop_at is None else stop_at):
            began = time.perf_counter()
            stage = progress.stage
            loss, accuracy = train_step(lens, optimizer, source, settings, plan, progress)
            progress.seconds += time.perf_counter() - began
            last = progress.step == settings.steps
            entry: dict[str, Any] = {
                "step": progress.step, "stage": stage, "loss": round(loss, 4), "accuracy": round(accuracy, 4),
                "mean_accuracy": round(progress.accuracy, 4), "seconds": round(progress.seconds, 1),
            }  # fmt: skip
            if progress.step % probe_every == 0 or last:
                entry["needle"] = probe(lens, source, lengths)
                print(json.dumps(entry), file=sys.stderr, flush=True)
            log.write(json.dumps(entry) + "\n")
            log.flush()
            if progress.step % save_every == 0 or last:
                save_state(state, settings, progress, model, optimizer)
            if keep_every and progress.step % keep_every == 0:
                kept = work / f"step-{progress.step:05d}"
                export(model, plan, kept, account(settings, model, plan, history, anew))
    if out is not None:
        export(model, plan, out, account(settings, model, plan, history, anew))
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m hybridlens.tiny.train", description="Train a tiny model.")
    parser.add_argument("name", help=", ".join(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the finished model (default: .training/NAME-SEED/final)")
    parser.add_argument("--work", type=Path, help="folder for the run's state and log (default: .training/NAME-SEED)")
    parser.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads; part of what fixes the weights")
    parser.add_argument("--save-every", type=int, default=100, help="steps between states to go on from")
    parser.add_argument("--keep-every", type=int, default=0, help="steps between checkpoints to keep (0: none)")
    parser.add_argument("--from", dest="start", type=Path, help="kept checkpoint to start from, its other layers anew")
    options = parser.parse_args(arguments)
    try:
        plan = recipe(options.name)
        steps = plan.steps if options.steps is None else options.steps
        if steps < 1 or options.threads < 1:
            raise InputError(f"got --steps {steps} and --threads {options.threads}; both have to be at least 1")
        work = options.work or Path(".training") / f"{options.name}-{options.seed}"
        out = options.out or work / "final"
        start = None if options.start is None else read_start(options.start)
        settings = Settings(options.name, options.seed, steps, options.threads, "" if start is None else start.words)
        train(settings, plan, work, out, options.save_every, options.keep_every, start=start)
    except HybridLensError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
