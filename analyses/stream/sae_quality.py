"""How good a sparse autoencoder is where it stands: what the model loses by it, and how it describes activations.

Over texts, the mean cross-entropy of the next token in nats is taken three times: untouched, with the autoencoder's
reconstruction in the activation's place, and with the activation ablated. The share recovered is

    (ablated - spliced) ÷ (ablated - untouched)

1 for a perfect reconstruction and 0 for one that is worth no more than the ablation (Bricken et al. 2023; Gao et al.
2024 call it loss recovered). Beside it stand, over every token of the texts: L0, how many features are active at once;
the variance explained, 1 - Σ ‖x - x̂‖² ÷ Σ ‖x - x̄‖²; and how often each feature is active, so that those never
active on these texts (dead ones) are told.

How it fails: where ablating an activation costs no more than these texts can tell from nothing (twice the standard
error of the cost over the tokens predicted, or what the model's dtype rounds), there is no share: it is NaN, and the
summary says why. Tokens of a text are not independent, so that a cost a little above that may still be chance. "Dead"
is said of these texts alone. Where the autoencoder reads each head by itself, every head counts as an activation of its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.snapshot import keeping
from analyses.stream.reading import BATCH, LOGITS, Rows, batches, rows_of, token_point
from hybridlens.boundary import Positive, public
from hybridlens.display import Displayed, Table, number
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.splicing import Autoencoder
from hybridlens.tokens import TokensLike

Ablation: TypeAlias = Literal["zero", "mean"]
"""What the activation is set to: 0, or its mean over the tokens of the texts."""

ERRORS = 2.0
"""A cost is told from none where it is larger than so many of its standard errors."""


@dataclass(frozen=True, eq=False)
class SaeQuality(Displayed, Stored):
    """What a model loses by an autoencoder, and how that describes activations.

    Attributes:
        name: the hook point.
        untouched: mean cross-entropy of the next token, in nats.
        spliced: the same with the reconstruction in the activation's place.
        ablated: the same with the activation ablated.
        ablation: "zero" or "mean".
        resolution: costs of the ablation up to here are not told from none, in nats: twice the standard error of the
            mean cost over the tokens predicted, at least what the model's dtype rounds; infinite for one token.
        l0: features active at once, the mean.
        explained: share of the activations' variance that reconstructions hold; None where they do not vary.
        frequency: how often each feature is active, of all activations; float64.
        tokens: of the texts.
        model: signature of the architecture.
    """

    name: str
    untouched: float
    spliced: float
    ablated: float
    ablation: Ablation
    resolution: float
    l0: float
    explained: float | None
    frequency: Float[Tensor, "feature"]
    tokens: int
    model: str

    @property
    def cost(self) -> float:
        """What the ablation costs, in nats a token; below 0 where the model does better without the activation."""
        return self.ablated - self.untouched

    @property
    def recovered(self) -> float:
        """The share of the loss recovered; NaN where the ablation's cost is not told from none."""
        return (self.ablated - self.spliced) / self.cost if self.cost > self.resolution else float("nan")

    @property
    def dead(self) -> tuple[int, ...]:
        """Features that were never active on these texts."""
        return tuple((self.frequency == 0).nonzero()[:, 0].tolist())

    def summary(self) -> str:
        """The three losses, and the share recovered or why there is none."""
        share = f"{number(100 * self.recovered, 3)} % recovered"
        if not self.cost > self.resolution:
            error = number(self.resolution, 2)
            share = f"no share recovered, as ablating costs {number(self.cost, 2)}, not more than its error {error}"
        return (
            f"loss at {self.name} {number(self.untouched)} nats untouched, {number(self.spliced)} spliced, "
            f"{number(self.ablated)} ablated ({self.ablation}): {share}; L0 {number(self.l0, 3)}"
        )

    def table(self) -> Table:
        """What was measured."""
        rows = (
            ("loss, untouched (nats a token)", self.untouched),
            ("loss with the reconstruction", self.spliced),
            (f"loss with the activation ablated ({self.ablation})", self.ablated),
            ("cost of the ablation", self.cost),
            ("cost not told from none, up to", self.resolution),
            ("share of the loss recovered", self.recovered),
            ("features active at once (L0)", self.l0),
            ("share of variance explained", self.explained),
            ("features", len(self.frequency)),
            ("of these never active here", len(self.dead)),
            ("tokens", self.tokens),
        )
        return Table(("", "value"), rows)


@public
def loss_recovered(
    lens: HybridLens,
    sae: Autoencoder,
    name: str,
    texts: TokensLike,
    *,
    ablation: Ablation = "zero",
    d_in: Positive | None = None,
    batch_size: Positive = BATCH,
    progress: Callable[[int], None] | None = None,
) -> SaeQuality:
    """What the model loses by an autoencoder in an activation's place, and how that describes the activation.

    Args:
        lens: the model; hooks that are on it act, and should be none.
        sae: anything with `encode` and `decode`.
        name: the hook point.
        texts: of any lengths, at least two tokens in one of them.
        ablation: what the activation is set to for comparison.
        d_in: how many numbers the autoencoder reads; None for what it says of itself.
        batch_size: texts in one forward pass.
        progress: called with the number of texts done, in each of the three passes over them.

    Raises:
        UnknownNameError: there is no such point.
        InputError: a point or a width that does not fit (see `HybridLens.splice`), or texts without a second token.
    """
    name, rows = token_point(lens, name, "an autoencoder"), rows_of(lens, texts)
    if max(map(len, rows)) < 2:
        raise InputError("texts of one token given, expected at least two in one of them: the loss is of the next one")
    sums = _Sums()

    def run(look: Callable[[Rows], list[tuple[str, HookFunction]]]) -> Float[Tensor, "predicted"]:
        return _losses(lens, rows, batch_size, look, progress)

    with lens.splice(name, sae, d_in=d_in) as spliced:  # the error kept: the model is untouched, features can be read

        def look(read: Rows) -> list[tuple[str, HookFunction]]:
            points = (name, sums.activations), (spliced.features, sums.features), (spliced.error, sums.errors)
            return [(point, adding(read)) for point, adding in points]

        untouched = run(look)
    with lens.splice(name, sae, error=False, d_in=d_in):
        without = run(lambda read: [])
    mean = sums.total / sums.n if ablation == "mean" else torch.zeros_like(sums.total)

    @reads_only
    def ablate(x: Tensor, hook: HookPoint) -> Tensor:
        return mean.to(x.device, x.dtype).expand_as(x).clone()

    ablated = run(lambda read: [(name, ablate)])
    return SaeQuality(
        name, float(untouched.mean()), float(without.mean()), float(ablated.mean()), ablation,
        _resolution(untouched, ablated, lens.dtype), float(sums.active.sum() / sums.rows), sums.explained(),
        sums.active / sums.rows, sum(map(len, rows)), lens.network.signature,
    )  # fmt: skip


def _resolution(
    untouched: Float[Tensor, "predicted"], ablated: Float[Tensor, "predicted"], dtype: torch.dtype
) -> float:
    """The largest mean difference of two losses that is not told from none."""
    if len(untouched) < 2:
        return float("inf")
    error = float((ablated - untouched).std()) / len(untouched) ** 0.5
    return max(ERRORS * error, torch.finfo(dtype).eps * float(torch.maximum(untouched, ablated).mean()))


@public
@torch.no_grad()
def norm_scaling_factor(
    lens: HybridLens, name: str, texts: TokensLike, *, d_in: Positive | None = None, batch_size: Positive = BATCH
) -> float:
    """√d_in ÷ the mean length of activations: what `hybridlens.load_sae` asks for where files leave it out.

    Args:
        lens: the model.
        name: the hook point that the autoencoder was trained at.
        texts: like those that it was trained on, of any lengths.
        d_in: how many numbers it reads; None for all of a token's.
        batch_size: texts in one forward pass.

    Raises:
        UnknownNameError: there is no such point.
        InputError: a point without numbers for each token, a width that does not divide them, or activations of no
            length.
    """
    name, rows = token_point(lens, name, "an autoencoder"), rows_of(lens, texts)
    total, n, width = 0.0, 0, 0
    for read in batches(lens, rows, batch_size):
        kept: dict[str, Tensor] = {}
        with lens.hooks([(name, keeping(kept))]):
            lens.network(*read.batch, last_only=True)
        x = kept[name][read.valid.to(kept[name].device)].flatten(1).double()
        width = x.shape[1] if d_in is None else d_in
        if x.shape[1] % width:
            raise InputError(f"d_in {width} given, but {name!r} holds {x.shape[1]} numbers for each token")
        lengths = x.unflatten(1, (-1, width)).norm(dim=-1)
        total, n = total + float(lengths.sum()), n + lengths.numel()
    if total == 0.0:
        raise InputError(f"all activations at {name!r} are 0 on these texts, so that no factor scales them")
    return width**0.5 * n / total


class _Sums:
    """Sums over the tokens of the texts, float64 on the CPU."""

    def __init__(self) -> None:
        self.n, self.rows = 0, 0
        """Tokens, and rows of features."""
        self.total, self.squares, self.active = torch.zeros(()), 0.0, torch.zeros(())
        self.missed = 0.0

    def activations(self, read: Rows) -> HookFunction:
        """What adds activations up."""

        @reads_only
        def add(x: Tensor, hook: HookPoint) -> None:
            held = x[read.valid.to(x.device)].detach().to("cpu", torch.float64)
            self.n += len(held)
            self.total = self.total + held.sum(dim=0)
            self.squares += float(held.square().sum())

        return add

    def features(self, read: Rows) -> HookFunction:
        """What counts active features."""

        @reads_only
        def add(x: Tensor, hook: HookPoint) -> None:
            held = x[read.valid.to(x.device)].flatten(0, -2)
            self.rows += len(held)
            self.active = self.active + (held != 0).sum(dim=0).to("cpu", torch.float64)

        return add

    def errors(self, read: Rows) -> HookFunction:
        """What adds up squares of what is left out."""

        @reads_only
        def add(x: Tensor, hook: HookPoint) -> None:
            self.missed += float(x[read.valid.to(x.device)].double().square().sum())

        return add

    def explained(self) -> float | None:
        """1 - Σ ‖x - x̂‖² ÷ Σ ‖x - x̄‖²; None where activations do not vary."""
        varied = self.squares - float(self.total.square().sum()) / self.n
        return 1.0 - self.missed / varied if varied > 1e-12 * self.squares else None


@torch.no_grad()
def _losses(
    lens: HybridLens,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    look: Callable[[Rows], list[tuple[str, HookFunction]]],
    progress: Callable[[int], None] | None,
) -> Float[Tensor, "predicted"]:
    """The cross-entropy of each next token, in nats: float64 on the CPU."""
    found = list[Tensor]()
    size = max(1, min(batch_size, LOGITS // (lens.cfg.d_vocab * max(map(len, rows)))))
    for read in batches(lens, rows, size):
        with lens.hooks(look(read)):
            logits = lens.network(*read.batch).logits
        told = read.valid[:, 1:].to(logits.device)
        log = logits[:, :-1][told].float().log_softmax(dim=-1)
        following = read.batch.tokens[:, 1:].to(logits.device)[told]
        found.append(-log.gather(1, following[:, None])[:, 0].to("cpu", torch.float64))
        if progress is not None:
            progress(len(read.batch.tokens))
    return torch.cat(found)
