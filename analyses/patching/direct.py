"""Direct logit attribution: what each part of a model adds to a logit by itself.

The last residual stream is a sum of what every part wrote, and the logit before any soft cap is linear in it once the
final norm's scale is held at its value in the run (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"; nostalgebraist 2020, the logit lens). So every part has a share, and the shares, biases included, add up to
the logit. A soft cap (RecurrentGemma: 30 · tanh(logit ÷ 30)) comes after the sum, is no part of it, and squeezes large
logits together; the result holds the logits on both sides of it.

Shares of an attention layer are those of its heads, those of a mixture of experts those of its experts, weighed by the
router; an expert that no chosen position was sent to has share 0. Biases of output projections stand apart. Those of
earlier steps (queries, keys, values, the recurrent input) belong to the share of the part that they act in.

How it fails: in bfloat16 the residual stream is rounded after every addition, which no part is to blame for;
`remainder` holds what is missing. A share says what a part writes, and not what happens because of it: parts that
later parts listen to may have small shares and large effects. It changes with a token's direction: shares of one
logit hold what raises all logits alike, so that differences of logits are the clearer question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import torch
from annotated_types import MinLen
from jaxtyping import Float, Int
from torch import Tensor

from analyses.experiment.artefacts import Stored
from analyses.experiment.per_prompt import per_prompt
from analyses.patching.alignment import one_prompt, places_of
from analyses.patching.metrics import LogitDifference, check_tokens, named
from analyses.patching.results import largest
from analyses.patching.snapshot import captured
from analyses.patching.writers import Writer, head_writes
from hybridlens.blocks import Block
from hybridlens.boundary import public
from hybridlens.display import Piece, Table, many, number
from hybridlens.display.markup import cut, visible
from hybridlens.errors import InputError
from hybridlens.mlps import Mixture
from hybridlens.model import HybridLens
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokensLike, to_strings
from hybridlens.viz.plotted import Plotted
from hybridlens.weights import Weights
from hybridlens.writes import ExpertAdds, bias_added, bias_points, expert_points, experts_add

if TYPE_CHECKING:
    from hybridlens.viz.plot import Plot

LOGITS = 1 << 24
"""Logits held at once."""

Question: TypeAlias = int | LogitDifference
"""A token's logit, or the difference of two."""

Directions: TypeAlias = Float[Tensor, "d_model question"]
Share: TypeAlias = Float[Tensor, "pos question"]

_PARTS = {"mlp": ("expert", "shared_expert"), "ssm": ("ssm_head",)}
"""Kinds of writers that a whole is told apart into."""


@dataclass(frozen=True, eq=False)
class DirectAttribution(Plotted, Stored):
    """What each writer adds to some logits.

    Attributes:
        shares: by writer, position and question, in logits before any soft cap; float64, on the CPU.
        writers: every part of the model, in forward order.
        positions: of the prompt, from its start.
        questions: what was asked of each position, in words.
        before_cap: the model's own answers before any soft cap, in its own precision.
        logits: its answers after the cap; the same where there is none.
        scale: the final norm's at each position, by which what was written was divided.
        model: signature of the architecture.
        tokens: the prompt.
    """

    shares: Float[Tensor, "writer pos question"]
    writers: tuple[Writer, ...]
    positions: tuple[int, ...]
    questions: tuple[str, ...]
    before_cap: Float[Tensor, "pos question"]
    logits: Float[Tensor, "pos question"]
    scale: Float[Tensor, "pos"]
    model: str
    tokens: tuple[int, ...]

    @property
    def total(self) -> Share:
        """The sum of all shares."""
        return self.shares.sum(dim=0)

    @property
    def remainder(self) -> Share:
        """What the shares leave of the model's own answer before the cap: rounding."""
        return self.before_cap - self.total

    def of(self, writer: Writer) -> Share:
        """The share of a writer; of one with parts, that of all of them.

        `Writer("mlp", 3)` is then all its experts, `Writer("ssm", 3)` all its recurrent heads; biases stand apart.

        Raises:
            InputError: there is no such writer.
        """
        if writer in self.writers:
            return self.shares[self.writers.index(writer)]
        kinds = _PARTS.get(writer.kind, ())
        parts = [i for i, other in enumerate(self.writers) if other.layer == writer.layer and other.kind in kinds]
        if not parts:
            has = ", ".join(other.words for other in self.writers)
            raise InputError(f"there is no writer '{writer.words}'; there are {has}")
        return self.shares[parts].sum(dim=0)

    def top(self, n: int = 10, position: int = -1, question: int = 0) -> list[tuple[Writer, float]]:
        """The `n` writers with the largest shares of either sign, the largest first.

        Args:
            n: how many.
            position: which of `positions`, by its place among them.
            question: likewise.
        """
        shares = self.shares[:, position, question]
        return [(self.writers[i], float(shares[i])) for (i,) in largest(shares.abs(), n)]

    def summary(self) -> str:
        """What was asked, how much it is in all, and who adds most of it."""
        (writer, share), *_ = self.top(1)
        places = f"{many(len(self.questions), 'question')} at {many(len(self.positions), 'position')}"
        total = f"{number(float(self.total[-1, 0]), 3)} = {many(len(self.writers), 'share')}"
        return f"{places}; {cut(self.questions[0], 60)}: {total}, most {writer.words} {number(share, 3)}"

    def table(self) -> Table:
        """A row for each writer, position and question."""
        axes = {"writer": [one.words for one in self.writers], "position": self.positions, "question": self.questions}
        return Table.of({"share": self.shares}, axes, {"share": "in logits before any soft cap"})

    def view(self) -> tuple[Piece, ...]:
        """The largest shares of the first question at the last position, and the sum that they are of."""
        rows = [(writer.words, share) for writer, share in self.top(15)]
        own, capped = (float(x[-1, 0]) for x in (self.before_cap, self.logits))
        ends = f"all shares add up to {number(float(self.total[-1, 0]))}; the model's own is {number(own)}"
        note = ends if number(own) == number(capped) else f"{ends} before its soft cap, {number(capped)} after it"
        title = f"{self.questions[0]}, at position {self.positions[-1]}"
        return (Table(("part", "share"), rows, {"share": "logits"}, ("share",), title, note),)

    def plot(self, question: int = 0, most: int = 30) -> Plot:
        """The parts with the largest shares, down, at each position, across.

        Args:
            question: which, by its place.
            most: parts drawn.
        """
        from hybridlens.viz.heads import pair_heatmap
        from hybridlens.viz.plot import Plot
        from hybridlens.viz.positions import literal

        shares = self.shares[:, :, question]
        chosen = sorted(place for (place,) in largest(shares.abs().amax(dim=1), most))
        rows, columns = [literal(self.writers[i].words) for i in chosen], [f"position {p}" for p in self.positions]
        name = literal(f"share of the {self.questions[question]}", 80)
        return Plot(pair_heatmap(shares[chosen].tolist(), rows, columns, ("part", ""), name))


@per_prompt("prompt", shared={"questions": 2, "positions": 2})
@public
def direct_logit_attribution(
    lens: HybridLens,
    prompt: TokensLike,
    questions: Annotated[Sequence[Question], MinLen(1)],
    positions: Annotated[Sequence[int], MinLen(1)] = (-1,),
) -> DirectAttribution:
    """What every part of the model adds to logits, or differences of logits, at some positions of a prompt.

    Memory grows with the positions asked for: of each layer, what it writes there is held.

    Args:
        lens: the model; hooks that are on it act, and should be none.
        prompt: one prompt, or a list of them.
        questions: tokens, each for its logit, or differences of two; one list for all prompts, or one for each.
        positions: where; negative ones count from the end; likewise.

    Raises:
        InputError: several prompts, positions outside the prompt, tokens outside the vocabulary, or none of either; a
            model whose residual stream is no sum of what is written to it.
        CheckpointError: the model is quantised, or its weights are not in memory.
    """
    lens.cfg.need_sum("direct attribution")
    tokens = one_prompt(lens, prompt, "attributed")
    chosen = places_of(positions, tokens.shape[1])
    (asked, mix), weights = _asked(questions, lens.cfg.d_vocab), Weights.of_model(lens)
    seen = _seen(lens, tokens, chosen)
    with torch.no_grad():
        directions = weights.unembed(asked).T @ mix.to(weights.cfg.device)
        found = list(_shares(lens, seen, directions))
        before, after = _own(lens, seen[f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"], asked)
    scale = _wide(seen["ln_final.hook_scale"])
    return DirectAttribution(
        shares=torch.stack([_wide(share) for _, share in found]) / scale,
        writers=tuple(writer for writer, _ in found),
        positions=tuple(chosen),
        questions=tuple(_words(question, lens.tokenizer) for question in questions),
        before_cap=_wide(before) @ _wide(mix),
        logits=_wide(after) @ _wide(mix),
        scale=scale[:, 0],
        model=lens.network.signature,
        tokens=tuple(tokens[0].tolist()),
    )


def _words(question: Question, tokenizer: Any) -> str:
    """A question, with tokens as text where there is a tokenizer."""
    asked = (question.right, question.wrong) if isinstance(question, LogitDifference) else (question,)
    known = () if tokenizer is None else to_strings(asked, tokenizer)
    texts = tuple(text if text.isprintable() else visible(text) for text in known)
    if isinstance(question, LogitDifference):
        return replace(question, texts=question.texts or texts).words
    return f"logit of {named(asked, texts)[0]}"


def _wide(x: Tensor) -> Tensor:
    return x.to("cpu", torch.float64)


def _asked(
    questions: Sequence[Question], vocabulary: int
) -> tuple[Int[Tensor, "token"], Float[Tensor, "token question"]]:
    """Questions as sums over tokens: 1 for the token asked about, -1 for the one it is compared with."""
    sides = [((q.right, 1.0), (q.wrong, -1.0)) if isinstance(q, LogitDifference) else ((q, 1.0),) for q in questions]
    tokens = sorted({token for side in sides for token, _ in side})
    check_tokens(tokens, vocabulary)
    mix = [[sum(sign for asked, sign in side if asked == token) for side in sides] for token in tokens]
    return torch.tensor(tokens), torch.tensor(mix, dtype=torch.float32)


def _seen(lens: HybridLens, tokens: Tokens, chosen: Sequence[int]) -> dict[str, Tensor]:
    """What the run held at the chosen positions, by hook point, without the batch axis."""
    last = lens.cfg.n_layers - 1
    names = ["hook_embed", "ln_final.hook_scale", f"blocks.{last}.hook_resid_post"]
    for layer, block in enumerate(cast(Iterable[Block], lens.blocks)):
        for part, module in block.parts.items():
            heads = head_writes(lens, layer, part)
            points = [f"hook_{part}_out"] if heads is None else list(heads.points)
            points += [*bias_points(block, part), *(expert_points(block) if isinstance(module, Mixture) else ())]
            names += [f"blocks.{layer}.{point}" for point in dict.fromkeys(points)]
    return captured(lens, tokens, names, True, lambda tensor: tensor[0, list(chosen)])[0]


def _shares(
    lens: HybridLens, seen: Mapping[str, Tensor], directions: Directions
) -> Iterator[tuple[Writer, Float[Tensor, "pos question"]]]:
    """Every writer's share before the final norm's scale, in forward order."""

    def share(written: Tensor) -> Tensor:
        return written.float().to(directions.device) @ directions

    places = seen["hook_embed"]
    yield Writer("embed"), share(places)
    for layer in range(lens.cfg.n_layers):
        block, stem = cast(Block, lens.blocks[layer]), f"blocks.{layer}."
        here = {name.removeprefix(stem): tensor for name, tensor in seen.items() if name.startswith(stem)}
        for part, module in block.parts.items():
            heads, bias = head_writes(lens, layer, part), bias_added(block, part, here)
            if heads is not None:
                written = heads.written(heads.terms({p: here[p][None] for p in heads.points}).to(lens.dtype))[0]
                yield from ((Writer(heads.kind, layer, i), share(written[:, i])) for i in range(heads.n))
            elif isinstance(module, Mixture):
                yield from _experts(layer, module.cfg.n_experts or 0, experts_add(block, here), directions, len(places))
            else:
                out = here[f"hook_{part}_out"]
                yield Writer(part, layer), share(out if bias is None else out.float() - bias.float().to(out.device))
            if bias is not None:
                yield Writer(f"{part}_bias", layer), share(bias).expand(len(places), -1)


def _experts(
    layer: int, n_experts: int, added: Iterable[ExpertAdds], directions: Directions, n_places: int
) -> Iterator[tuple[Writer, Tensor]]:
    """The shares of a mixture's experts, and of the one that all tokens go to."""
    shares, shared = directions.new_zeros(n_experts, n_places, directions.shape[1]), list[Tensor]()
    for expert, tokens, out in added:
        share = out.to(directions.device) @ directions
        if isinstance(tokens, Tensor) and expert is not None:
            shares[expert].index_add_(0, tokens.to(directions.device), share)
        else:
            shared.append(share)
    yield from ((Writer("expert", layer, expert), share) for expert, share in enumerate(shares))
    yield from ((Writer("shared_expert", layer), share) for share in shared)


def _own(
    lens: HybridLens, resid: Float[Tensor, "pos d_model"], tokens: Int[Tensor, "token"]
) -> tuple[Float[Tensor, "pos token"], Float[Tensor, "pos token"]]:
    """The model's own logits of some tokens, before any soft cap and after."""
    network, found = lens.network, list[tuple[Tensor, Tensor]]()
    x = network.ln_final(resid[None])
    for part in x.split(max(1, LOGITS // lens.cfg.d_vocab), dim=1):
        before = network.uncapped(part)
        tokens = tokens.to(before.device)
        found.append((before[0][:, tokens], network.capped(before)[0][:, tokens]))
    before, after = (torch.cat(rows) for rows in zip(*found, strict=True))
    return before, after
