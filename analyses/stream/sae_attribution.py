"""Direct attribution to features: what each feature of a sparse autoencoder adds to a logit by itself.

The logit before any soft cap is linear in the last residual stream once the final norm's scale is held
(`analyses.patching.direct`). An activation that is added to the stream, or stands in it, has the share x · v ÷ s, where
v is the logit's direction behind the norm and s the norm's scale; and x is what the autoencoder makes of it: a sum over
features of how active each is times its row of the decoder, a bias, and the error. So

    share of x  =  Σ_i share of feature i  +  share of the bias  +  share of the error

exactly; all of them are measured, and `remainder` is what rounding leaves. Rows of the decoder are taken from `decode`
itself, one feature at a time, so that any autoencoder will do whose decoder is affine.

How it fails: a feature's direct share says what it writes, not what later parts make of it: edit it in a splice to see
that. At a point whose activation is not what reaches the stream (a state, a head's value) there is no direct share, and
it is refused; so are a decoder that is not affine, and models whose stream is no sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import MinLen
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.alignment import one_prompt, places_of
from analyses.patching.direct import Question
from analyses.patching.metrics import LogitDifference, check_tokens
from analyses.patching.snapshot import captured
from analyses.stream.reading import token_point
from hybridlens.boundary import Natural, Positive, public
from hybridlens.display import Table, number
from hybridlens.errors import InputError
from hybridlens.model import HybridLens
from hybridlens.splicing import Autoencoder, decoded
from hybridlens.tokens import TokensLike
from hybridlens.viz.plotted import Plotted
from hybridlens.weights import Weights

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

AFFINE = 1e-3
"""How far, of what a decoder gives, its features may be from adding up; rounding in float32 is a hundredth of that."""

BLOCK = 256
"""Features decoded at once."""


@dataclass(frozen=True, eq=False)
class FeatureAttribution(Plotted, Stored):
    """What each feature adds to a logit, or a difference of logits. All tensors are float64, on the CPU.

    Attributes:
        name: the hook point.
        features: those that are active at one of the positions, by number.
        activations: how active each is.
        shares: what each adds, in logits before any soft cap.
        bias: what the decoder's bias adds.
        error: what the error adds: what the features leave out.
        total: what the activation itself adds.
        positions: of the prompt, from its start.
        question: what was asked, in words.
        tokens: the prompt.
        model: signature of the architecture.
    """

    name: str
    features: tuple[int, ...]
    activations: Float[Tensor, "pos active"]
    shares: Float[Tensor, "pos active"]
    bias: Float[Tensor, "pos"]
    error: Float[Tensor, "pos"]
    total: Float[Tensor, "pos"]
    positions: tuple[int, ...]
    question: str
    tokens: tuple[int, ...]
    model: str

    @property
    def remainder(self) -> Float[Tensor, "pos"]:
        """What features, bias and error leave of the activation's own share: rounding."""
        return self.total - (self.shares.sum(dim=1) + self.bias + self.error)

    @public
    def top(self, n: Positive = 10, position: int = -1) -> list[tuple[int, float]]:
        """The features with the largest shares of either sign: (feature, share), the largest first.

        Args:
            n: how many.
            position: which of `positions`, by its place among them.
        """
        shares = self.shares[position]
        order = shares.abs().argsort(descending=True)[:n].tolist()
        return [(self.features[i], float(shares[i])) for i in order]

    def summary(self) -> str:
        """How much of the activation's share is features'."""
        parts = (self.shares.sum(dim=1)[-1], self.bias[-1], self.error[-1], self.total[-1])
        features, bias, error, total = (number(float(part), 3) for part in parts)
        return (
            f"{self.question} at {self.name}, position {self.positions[-1]}: features {features}, bias {bias}, error "
            f"{error}, together {total}"
        )

    def table(self) -> Table:
        """A row for each position and feature."""
        values = {"activation": self.activations, "share": self.shares}
        meanings = {"share": f"what it adds to the {self.question}, before any soft cap"}
        return Table.of(values, {"pos": self.positions, "feature": self.features}, meanings)

    def view(self) -> tuple[Table]:
        """The strongest features at the last position, and what is beside them."""
        at = {feature: place for place, feature in enumerate(self.features)}
        rows: list[tuple[str, float | None, float]] = [
            (f"feature {feature}", float(self.activations[-1, at[feature]]), share) for feature, share in self.top()
        ]
        beside = (("decoder's bias", self.bias), ("error", self.error), ("all together", self.total))
        rows += [(said, None, float(share[-1])) for said, share in beside]
        title = f"{self.question}: shares at position {self.positions[-1]}"
        return (Table(("part", "activation", "share"), rows, heat=("share",), title=title),)

    def plot(self, most: Positive = 20) -> Plot:
        """The features with the largest shares, the bias and the error, down, at each position, across.

        Args:
            most: features drawn.
        """
        from hybridlens.viz.heads import pair_heatmap
        from hybridlens.viz.plot import Plot
        from hybridlens.viz.positions import literal

        largest = self.shares.abs().amax(dim=0).argsort(descending=True, stable=True)[:most].sort().values
        rows = [*(f"feature {self.features[i]}" for i in largest.tolist()), "decoder's bias", "error"]
        values = torch.cat([self.shares[:, largest].T, self.bias[None], self.error[None]])
        columns = [f"position {position}" for position in self.positions]
        name = literal(f"share of the {self.question}", 80)
        return Plot(pair_heatmap(values.tolist(), rows, columns, ("part", ""), name))


@public
def feature_attribution(
    lens: HybridLens,
    sae: Autoencoder,
    name: str,
    prompt: TokensLike,
    question: Question,
    positions: Annotated[Sequence[int], MinLen(1)] = (-1,),
    *,
    d_in: Positive | None = None,
) -> FeatureAttribution:
    """What each feature of an activation adds to a logit at the same position.

    Args:
        lens: the model; hooks that are on it act, and should be none.
        sae: anything with `encode` and an affine `decode`.
        name: a hook point of the stream, or of what a part writes to it.
        prompt: one prompt.
        question: a token, for its logit, or a difference of two.
        positions: where; negative ones count from the end.
        d_in: how many numbers the autoencoder reads; None for what it says of itself.

    Raises:
        UnknownNameError: there is no such point.
        InputError: a point that is not in the stream, several prompts, positions outside the prompt, tokens outside the
            vocabulary, a decoder that is not affine; a model whose residual stream is no sum.
        CheckpointError: the model is quantised, or its weights are not in memory.
    """
    lens.cfg.need_sum("direct attribution")
    name = token_point(lens, name, "direct attribution")
    point = name.rpartition(".")[2]
    written = point == "hook_embed" or point.startswith("hook_resid_") or point.endswith("_out")
    if lens.hook_dict[name].axes != ("b", "p", "d") or not written:
        raise InputError(
            f"what stands at {name!r} is not what is added to the stream; take a point of the stream or of a part's "
            "write, such as hook_resid_post or hook_mixer_out"
        )
    tokens = one_prompt(lens, prompt, "attributed")
    chosen = places_of(positions, tokens.shape[1])
    sides = ((question.right, 1.0), (question.wrong, -1.0)) if isinstance(question, LogitDifference) else (
        (question, 1.0),
    )  # fmt: skip
    check_tokens([token for token, _ in sides], lens.cfg.d_vocab)
    with lens.splice(name, sae, d_in=d_in) as spliced, torch.no_grad():
        points = [name, spliced.features, spliced.error, "ln_final.hook_scale"]
        seen = captured(lens, tokens, points, True, lambda x: x[0, chosen])[0]
        weights = Weights.of_model(lens)
        rows = weights.unembed(torch.tensor([token for token, _ in sides])).double().cpu()
        direction = (rows * torch.tensor([sign for _, sign in sides], dtype=torch.float64)[:, None]).sum(dim=0)
        x, features = seen[name], seen[spliced.features]
        scale = seen["ln_final.hook_scale"][:, 0].double().cpu()
        active = sorted({int(i) for i in features.nonzero()[:, -1].tolist()})
        parts = [_parts(sae, x[i], features[i], active, direction) for i in range(len(chosen))]
    shares, bias = (torch.stack(found) for found in zip(*parts, strict=True))
    error = seen[spliced.error].double().cpu() @ direction
    words = question.words if isinstance(question, LogitDifference) else f"logit of token {question}"
    return FeatureAttribution(
        name, tuple(active), features[:, active].double().cpu(), shares / scale[:, None], bias / scale, error / scale,
        (x.double().cpu() @ direction) / scale, tuple(chosen), words, tuple(tokens[0].tolist()), lens.network.signature,
    )  # fmt: skip


def _parts(
    sae: Autoencoder,
    x: Float[Tensor, "d_in"],
    features: Float[Tensor, "feature"],
    active: Sequence[Natural],
    direction: Float[Tensor, "d_in"],
) -> tuple[Float[Tensor, "active"], Float[Tensor, ""]]:
    """What each active feature decodes to, along a direction, and the bias.

    Raises:
        InputError: these do not add up to what all of them decode to.
    """
    like = x.to(features)
    nothing = decoded(sae, torch.zeros_like(features), like)
    found = torch.zeros(len(active), dtype=torch.float64)
    summed = nothing.double()
    for start in range(0, len(active), BLOCK):
        some = list(active[start : start + BLOCK])
        alone = torch.zeros(len(some), len(features), dtype=features.dtype, device=features.device)
        alone[range(len(some)), some] = features[some]
        added = (decoded(sae, alone, like.expand(len(some), -1)) - nothing).double()
        found[start : start + len(some)] = added.cpu() @ direction
        summed = summed + added.sum(dim=0)
    whole = decoded(sae, features, like).double()
    apart = float((summed - whole).norm())
    if apart > AFFINE * max(float(whole.norm()), float(summed.norm())):
        raise InputError(
            f"the autoencoder's decoder is not affine: its features add up to something {apart:.3g} away from what "
            "they decode to together; direct attribution needs one that is"
        )
    return found, nothing.double().cpu() @ direction
