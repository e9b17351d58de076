"""A short fine-tune of the module alone: attention's own weights, with the reduction in place, and nothing else.

What trains are the projections of the attention layers and the norms of their queries and keys; a bottleneck of keys
and values stays what it was made of the untouched weights, but the projections before and behind it move, so that every
narrow module (with rotary embedding: every one that holds the same pairs) is within reach. Rounding passes gradients
straight through. Documents, weights of tokens and the forward pass are those of the tiny models' training
(`hybridlens.tiny`), so only their tokenizer will do; AdamW, a tenth of the steps to warm up, then a linear fall.

A batch is a function of seed and step, so that a state (`Tuned`) says all that the rest depends on. The model's own
weights are the same after each function here as before, whatever happens.

How it fails: `InputError` for another tokenizer, a model in half precision, in which small steps are rounded away, or
weights that are no plain parameters.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.experiment.artefacts import Stored
from analyses.study.reduced.shapes import mixer_of
from hybridlens.display import Displayed, many
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.tiny.documents import Batch, Level, Source, make_source, write_batch
from hybridlens.tiny.tokenizer import build_tokenizer, words

WARM = 0.1
"""Share of the steps over which the rate rises."""

SENTENCES = 2000
"""Of the filler that documents are cut from."""

DECAY = 0.02
"""Of weights that are matrices, as in the tiny models' training."""


class TuningPlan(NamedTuple):
    """How a module is trained."""

    steps: int
    tokens: int
    """Of a step."""
    rate: float
    """Highest learning rate."""
    seed: int
    longest: int
    """Tokens of the longest documents; others have half and three quarters of them."""

    @property
    def level(self) -> Level:
        """What documents are made of: many facts or one, as at the end of the tiny models' training."""
        lengths = tuple(sorted({max(self.longest * i // 4, 96) for i in (2, 3, 4)}))
        return Level(lengths, (1, 8), 4, 0.4)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        rise = min(1.0, (step + 1) / max(1.0, WARM * self.steps))
        return self.rate * rise * (1.0 - step / self.steps)


@dataclass(frozen=True, eq=False)
class Tuned(Displayed, Stored):
    """Where a fine-tune stands.

    Attributes:
        step: steps done.
        weights: those that train, by their names in the Hugging Face model.
        first: running mean of each one's gradient; none before the first step.
        second: likewise of its square.
        losses: mean weighted loss of each step, in nats a token.
    """

    step: int
    weights: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    losses: tuple[float, ...]

    def summary(self) -> str:
        """How far it is."""
        trained = sum(weight.numel() for weight in self.weights.values())
        last = f", last loss {self.losses[-1]:.3f} nats a token" if self.losses else ""
        return f"{many(trained, 'weight')} trained for {many(self.step, 'step')}{last}"


def module_weights(lens: HybridLens) -> dict[str, nn.Parameter]:
    """The weights of all attention layers, by their names in the Hugging Face model.

    Raises:
        InputError: some are no plain parameters.
    """
    modules: list[nn.Module] = []
    for layer in lens.cfg.attention_layers:
        parts = mixer_of(lens, layer).parts
        modules += [part.module for part in (parts.q, parts.k, parts.v, parts.o, parts.q_norm, parts.k_norm) if part]
    own = {id(weight) for module in modules for weight in module.parameters()}
    found = {name: weight for name, weight in lens.hf_model.named_parameters() if id(weight) in own}
    odd = [name for name, weight in found.items() if not weight.is_floating_point() or weight.is_meta]
    if odd or not found:
        raise InputError(
            f"{odd[0] if odd else 'attention'} of this model has no weights that can be trained; load the model whole "
            "and unquantised, or give --steps 0"
        )
    return found


def check_tunable(lens: HybridLens) -> None:
    """Refuse what cannot be trained here.

    Raises:
        InputError: see the module.
    """
    if lens.dtype != torch.float32:
        kind = str(lens.dtype).removeprefix("torch.")
        raise InputError(
            f"the model is in {kind}, in which small steps of training are rounded away; give --dtype float32, or "
            "--steps 0 for no fine-tune"
        )
    tokenizer = lens.tokenizer
    if tokenizer is None or tokenizer.get_vocab() != build_tokenizer(16).get_vocab():
        raise InputError(
            "the fine-tune writes the tiny models' documents, which need their tokenizer, and this model has another; "
            "give --steps 0 for no fine-tune"
        )
    module_weights(lens)


def documents(lens: HybridLens, plan: TuningPlan) -> Source:
    """What the documents are made of."""
    return make_source(lens.tokenizer.backend_tokenizer, words(), plan.seed, SENTENCES)


def begin(lens: HybridLens) -> Tuned:
    """The state before the first step."""
    weights = {name: weight.detach().cpu().clone() for name, weight in module_weights(lens).items()}
    return Tuned(0, weights, {}, {}, ())


def tune(lens: HybridLens, edits: Sequence[Edit], plan: TuningPlan, source: Source, state: Tuned, stop: int) -> Tuned:
    """Go on with a fine-tune up to a step.

    Args:
        lens: the model, whose own weights stay.
        edits: of the reduction, made of the untouched weights; none for the control.
        plan: how it is trained.
        source: see `documents`.
        state: where it stands.
        stop: the step to end with.

    Raises:
        InputError: see `check_tunable`.
    """
    hooks = [(edit.hook, edit.function()) for edit in edits]
    losses = list(state.losses)
    with swapped(lens, state.weights) as weights, training(lens, weights.values()):
        optimizer = _optimizer(weights, state)
        with torch.enable_grad(), lens.hooks(hooks):
            for step in range(state.step, stop):
                for group in optimizer.param_groups:
                    group["lr"] = plan.rate_at(step)
                batch = write_batch(plan.seed, step, source, plan.level, plan.tokens, lens.cfg.window)
                optimizer.zero_grad(set_to_none=True)
                loss = _loss(lens, batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
                optimizer.step()
                losses.append(float(loss.detach()))
        held = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
        first, second = (
            {name: optimizer.state[w][part].cpu().clone() for name, w in weights.items() if w in optimizer.state}
            for part in ("exp_avg", "exp_avg_sq")
        )
    return Tuned(stop, held, first, second, tuple(losses))


@contextmanager
def swapped(lens: HybridLens, weights: Mapping[str, Tensor]) -> Generator[dict[str, nn.Parameter]]:
    """The model with other weights of its module, by name; its own are back afterwards, whatever happens."""
    own = module_weights(lens)
    kept = {name: weight.detach().clone() for name, weight in own.items()}
    try:
        _put(own, weights)
        yield own
    finally:
        _put(own, kept)


@contextmanager
def training(lens: HybridLens, weights: Any) -> Generator[None]:
    """Gradients for these weights alone, and none left behind."""
    chosen = {id(weight) for weight in weights}
    before = [(weight, weight.requires_grad, weight.grad) for weight in lens.hf_model.parameters()]
    try:
        for weight, _, _ in before:
            weight.requires_grad_(id(weight) in chosen)
        yield
    finally:
        for weight, flag, grad in before:
            weight.requires_grad_(flag)
            weight.grad = grad


@torch.no_grad()
def _put(own: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    for name, weight in own.items():
        weight.copy_(weights[name])


def _optimizer(weights: Mapping[str, nn.Parameter], state: Tuned) -> torch.optim.AdamW:
    """AdamW as the tiny models' training has it, where the state left it."""
    matrices = [weight for weight in weights.values() if weight.ndim >= 2]
    vectors = [weight for weight in weights.values() if weight.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), eps=1e-8)
    for name, mean in state.first.items():
        weight = weights[name]
        optimizer.state[weight] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": mean.to(weight.device, copy=True),
            "exp_avg_sq": state.second[name].to(weight.device, copy=True),
        }
    return optimizer


def _loss(lens: HybridLens, batch: Batch) -> Tensor:
    """The weighted cross entropy of the next token, as the tiny models are trained by."""
    logits = lens(batch.tokens[:, :-1].to(lens.device))
    targets, weights = (part[:, 1:].to(logits.device) for part in batch)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.reshape(-1), reduction="none").view_as(weights)
    return (losses * weights).sum() / weights.sum()
