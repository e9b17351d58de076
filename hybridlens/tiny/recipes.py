"""How each tiny model is trained: sizes of steps, learning rates and the curriculum, as data.

Mechanism: a run stays on a level of the curriculum until the moving average of its answer-token accuracy
reaches the level's `advance_at`; the last level lasts to the end. Waiting matters: with levels that rise on a
schedule, Jamba stays at copying *some* fact rather than the one that is asked for. The models of the zoo are compared
with each other, so they share one recipe, in which a level also ends after `at_most` steps: what cannot learn a level
sees the later ones all the same, and all are trained on documents of the lengths that they are measured at.

How it fails: where there is no `at_most`, a run whose accuracy never reaches a level's bar stays on it; the log says
so.
"""

from typing import NamedTuple

from hybridlens.errors import UnknownNameError, closest
from hybridlens.tiny.documents import Level


class Stage(NamedTuple):
    """A level of the curriculum, its learning rate and when to leave it."""

    level: Level
    rate: float
    advance_at: float
    """Moving average of answer-token accuracy at which the next stage begins."""
    at_most: int | None = None
    """Steps after which it begins in any case; None to wait."""


class Recipe(NamedTuple):
    """Everything that a training run needs besides its seed."""

    stages: tuple[Stage, ...]
    steps: int
    """Steps in all, unless the command says otherwise."""
    tokens_per_step: int
    max_length: int
    """`model_max_length` of the tokenizer: the longest prompt the model is trained for."""
    window: int | None
    """Sliding window of the attention; answers further away are not trained on."""
    warmup: int = 100
    decay_from: float = 0.6
    """Share of the steps after which the learning rate falls linearly."""
    floor: float = 0.02
    """Share of the learning rate that is left at the end."""
    weight_decay: float = 0.02
    balance: float = 0.01
    """Weight of the experts' load-balancing loss."""
    clip: float = 1.0
    n_sentences: int = 40_000
    """Filler sentences that documents are cut from."""


HYBRIDS = ("tiny-granite", "tiny-qwen3.5", "tiny-falcon-h1", "tiny-lfm2")
"""The zoo's hybrids, beside the two embedded models."""

PURE = ("tiny-qwen3", "tiny-mamba2", "tiny-deltanet")
"""Its models of one kind of layer."""

ZOO = Recipe(
    stages=(
        Stage(Level((128, 160), (2, 2), 2, 0.0), 2e-3, 0.92, 700),
        Stage(Level((128, 160, 200), (2, 4), 3, 0.1), 2e-3, 0.95, 400),
        Stage(Level((128, 200, 256), (1, 6), 4, 0.3), 2e-3, 0.97, 300),
        Stage(Level((96, 160, 224, 256, 288, 304), (1, 8), 4, 0.4), 2e-3, 2.0),
    ),
    steps=2000,
    tokens_per_step=3200,
    max_length=256,
    window=None,
)
"""The zoo's one recipe: tiny-recurrentgemma's levels, with an end for each."""

RECIPES: dict[str, Recipe] = {
    "tiny-recurrentgemma": Recipe(
        stages=(
            Stage(Level((128, 160), (2, 2), 2, 0.0), 2e-3, 0.92),
            Stage(Level((128, 160, 200), (2, 4), 3, 0.1), 2e-3, 0.95),
            Stage(Level((128, 200, 256), (1, 6), 4, 0.3), 2e-3, 0.97),
            Stage(Level((96, 160, 224, 256, 288, 304), (1, 8), 4, 0.4), 2e-3, 2.0),
        ),
        steps=2750,
        tokens_per_step=3200,
        max_length=256,
        window=256,
    ),
    "tiny-jamba": Recipe(
        stages=(
            Stage(Level((112, 128, 160), (2, 2), 2, 0.0), 1.5e-3, 0.93),
            Stage(Level((160, 200), (2, 4), 3, 0.1), 1.2e-3, 0.95),
            Stage(Level((128, 200, 288), (1, 6), 4, 0.3), 1e-3, 0.97),
            Stage(Level((128, 224, 320, 416, 560), (1, 8), 5, 0.4), 1e-3, 2.0),
        ),
        steps=2200,
        tokens_per_step=2800,
        max_length=512,
        window=None,
    ),
    **dict.fromkeys(
        (*HYBRIDS, *PURE, "tiny-gated-attention"),
        ZOO,
    ),
}
"""The recipes of the tiny models, by name."""


def recipe(name: str) -> Recipe:
    """The recipe of a tiny model.

    Raises:
        UnknownNameError: for a name without one.
    """
    if name not in RECIPES:
        raise UnknownNameError(
            f"no tiny model is called {name!r}{closest(name, RECIPES)}; choose one of {', '.join(RECIPES)}"
        )
    return RECIPES[name]


def learning_rate(settings: Recipe, stage: int, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) of `steps`: warm-up, level, linear fall."""
    rise = min(1.0, (step + 1) / settings.warmup)
    start = settings.decay_from * steps
    fall = 1.0 if step < start else 1.0 - (1.0 - settings.floor) * (step - start) / max(1.0, steps - start)
    return settings.stages[stage].rate * rise * fall
