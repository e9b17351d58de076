"""Where features of a sparse autoencoder are most active: the tokens, and the text around them.

How it fails: the most active tokens are the extreme ones; what a feature does on all others they do not show. Of one
text several tokens may stand among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from typing import Annotated

import torch
from annotated_types import MinLen
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.patching.alignment import token_strings
from analyses.stream.reading import BATCH, Rows, batches, rows_of, token_point
from hybridlens.boundary import Natural, Positive, public
from hybridlens.display import Displayed, Table, TokenText, listed, many, number, visible
from hybridlens.display.markup import cut
from hybridlens.errors import InputError
from hybridlens.hooks import HookFunction, HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.splicing import Autoencoder
from hybridlens.tokens import TokensLike

CONTEXT = 10
"""Tokens on either side that are shown."""


@dataclass(frozen=True)
class Example(Displayed):
    """A token at which a feature is active.

    Attributes:
        text: which text.
        position: of the token in it.
        token: it, as text.
        activation: how active the feature is.
        around: the tokens around it and itself, as text.
        values: how active the feature is at each of these.
    """

    text: int
    position: int
    token: str
    activation: float
    around: tuple[str, ...]
    values: tuple[float, ...]

    def summary(self) -> str:
        """Which token, where, and how active the feature is."""
        where = f"at position {self.position} of text {self.text}"
        return f"{cut(visible(self.token))!r} {where}, activation {number(self.activation, 3)}"

    def table(self) -> Table:
        """A row for each token around it."""
        return Table(("token", "activation"), tuple(zip(self.around, self.values, strict=True)))

    def view(self) -> tuple[TokenText]:
        """The tokens, coloured."""
        return (TokenText(self.around, self.values, "activation"),)


@dataclass(frozen=True)
class FeatureExamples(Displayed, Stored, text=True):
    """The tokens at which features are most active.

    Attributes:
        name: the hook point.
        features: which.
        examples: of each, the most active first; fewer where it is active at fewer tokens.
        tokens: how many tokens were looked at.
        model: signature of the architecture.
    """

    name: str
    features: tuple[int, ...]
    examples: tuple[tuple[Example, ...], ...]
    tokens: int
    model: str

    @public
    def of(self, feature: Natural) -> tuple[Example, ...]:
        """Those of one feature.

        Raises:
            InputError: it was not looked at.
        """
        if feature not in self.features:
            raise InputError(f"feature {feature} was not looked at; those that were are {listed(self.features)}")
        return self.examples[self.features.index(feature)]

    def summary(self) -> str:
        """Of which features, and the token at which the first is most active."""
        first = (
            f"; feature {self.features[0]} at {cut(visible(self.examples[0][0].token))!r}" if self.examples[0] else ""
        )
        return f"{many(len(self.features), 'feature')} at {self.name} over {many(self.tokens, 'token')}{first}"

    def table(self) -> Table:
        """A row an example."""
        columns = "feature", "text", "pos", "token", "activation", "around"
        rows = [
            (feature, one.text, one.position, one.token, one.activation, "".join(one.around))
            for feature, found in zip(self.features, self.examples, strict=True)
            for one in found
        ]
        return Table(columns, rows, {"around": "the tokens around it"})

    def view(self) -> tuple[TokenText | Table, ...]:
        """The first examples with their tokens coloured."""
        shown = [
            replace(*one.view(), title=f"feature {feature}, text {one.text}")
            for feature, found in zip(self.features, self.examples, strict=True)
            for one in found[:3]
        ]
        return (*shown[:9], self.table())


@public
def top_tokens(
    lens: HybridLens,
    sae: Autoencoder,
    name: str,
    features: Annotated[Sequence[Natural], MinLen(1)],
    texts: TokensLike,
    n: Positive = 10,
    *,
    context: Natural = CONTEXT,
    d_in: Positive | None = None,
    batch_size: Positive = BATCH,
    progress: Callable[[int], None] | None = None,
) -> FeatureExamples:
    """The tokens of texts at which features are most active; where heads are read apart, the most active head counts.

    Args:
        lens: the model; hooks that are on it act, and should be none.
        sae: anything with `encode` and `decode`.
        name: the hook point.
        features: which, by number.
        texts: of any lengths.
        n: how many tokens of each feature.
        context: tokens on either side that are kept.
        d_in: how many numbers the autoencoder reads; None for what it says of itself.
        batch_size: texts in one forward pass.
        progress: called with the number of texts done.

    Raises:
        UnknownNameError: there is no such point.
        InputError: a point or a width that does not fit (see `HybridLens.splice`), or a feature that is not there.
    """
    name, rows = token_point(lens, name, "an autoencoder"), rows_of(lens, texts)
    best: list[list[tuple[float, int, int, tuple[float, ...]]]] = [[] for _ in features]
    with lens.splice(name, sae, d_in=d_in) as spliced, torch.no_grad():
        for read in batches(lens, rows, batch_size):
            held: list[Tensor] = []
            with lens.hooks([(spliced.features, _keeping(held, list(features), name))]):
                lens.network(*read.batch, last_only=True)
            for number in range(len(features)):
                best[number] = nlargest(n, [*best[number], *_found(held[0][..., number], read, n, context)])
            if progress is not None:
                progress(len(read.batch.tokens))
    words = [token_strings(row, lens.tokenizer) for row in rows]

    def example(value: float, text: int, place: int, around: tuple[float, ...]) -> Example:
        nearby = words[text][max(0, place - context) : place + context + 1]
        return Example(text, place, words[text][place], value, tuple(nearby), around)

    examples = tuple(tuple(example(*one) for one in found) for found in best)
    return FeatureExamples(name, tuple(features), examples, sum(map(len, rows)), lens.network.signature)


def _keeping(held: list[Tensor], features: list[int], name: str) -> HookFunction:
    """A hook function that keeps some features, of each token the most active head's."""

    @reads_only
    def keep(x: Tensor, hook: HookPoint) -> None:
        wrong = next((feature for feature in features if feature >= x.shape[-1]), None)
        if wrong is not None:
            raise InputError(f"feature {wrong} asked for at {name!r}, expected 0..{x.shape[-1] - 1}")
        some = x[..., features].float()
        held.append((some if some.ndim == 3 else some.flatten(2, -2).amax(dim=2)).cpu())

    return keep


def _found(
    values: Float[Tensor, "batch pos"], read: Rows, n: int, context: int
) -> list[tuple[float, int, int, tuple[float, ...]]]:
    """The most active tokens of a batch, with what stands around them; (activation, text, position, around)."""
    valid = read.valid.cpu()
    alive = values.masked_fill(~valid, 0.0).flatten()
    strongest = alive.topk(min(n, len(alive))).indices.tolist()
    found: list[tuple[float, int, int, tuple[float, ...]]] = []
    for place in strongest:
        row, pos = divmod(place, values.shape[1])
        if float(values[row, pos]) > 0:
            end = int(valid[row].sum())
            around = values[row, max(0, pos - context) : min(end, pos + context + 1)]
            found.append((float(values[row, pos]), read.first + row, pos, tuple(around.tolist())))
    return found
