"""All circuits of a model: one pass over the vocabulary, then layer by layer, never a vocabulary-sized matrix.

Order: the two products of embedding and unembedding that all heads share; copying, matching and profile of each
attention layer; the linear paths of the recurrent layers; composition of every writer with every later head; the
strengths made of these. Only the layer at hand is in memory.

How it fails: see `hybridlens.weights`; what cannot be computed for this model or these arguments raises `InputError`
before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple, TypeAlias, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.composition import KINDS, Composition, compositions
from analyses.circuits.eigen import copying_share, matching_share, ov_eigenvalues, positivity, qk_eigenvalues
from analyses.circuits.gates import gate_errors
from analyses.circuits.labels import notes_of
from analyses.circuits.paths import LinearPath, measured_paths, paths_at_rest
from analyses.circuits.positions import profile
from analyses.circuits.results import HeadCircuits
from analyses.circuits.strength import LEVELS, beyond_writers, induction, induction_matching, retrieval
from analyses.circuits.sums import real_lengths, sums
from analyses.circuits.vocabulary import products, sample
from hybridlens.blocks import Block
from hybridlens.config import LensConfig
from hybridlens.effort import pieces
from hybridlens.errors import InputError, UnknownNameError, closest
from hybridlens.model import HybridLens
from hybridlens.progress import staged
from hybridlens.shapes import Lengths, Tokens, Valid
from hybridlens.tokens import TokensLike
from hybridlens.weights import Weights

SAMPLE = 2048
"""Tokens among which shares are taken."""

TINY = 1e-12
"""Under the root mean square of an embedding that is zero."""

BACK = 256
"""Distances of a profile where no window bounds it."""

MEMORY = 2 * 10**9
"""Bytes for composition."""


T = TypeVar("T")
Make: TypeAlias = Callable[[], Mapping[str, Tensor]]
Stage: TypeAlias = Callable[[str, Make], dict[str, Tensor]]


class Measured(NamedTuple):
    """The linear paths, and what else a run over real tokens gives to the static analysis."""

    paths: list[LinearPath]
    error: Float[Tensor, "ssm_layer"] | None = None
    means: Float[Tensor, "attn_layer d_model"] | None = None
    """Mean normalised input of each attention layer."""
    tokens: int = 0
    gate_error: Float[Tensor, "attn_layer head"] | None = None
    """Of output gates at rest, and of one scale for all tokens of norms behind attention; None where neither is."""


def circuits(
    source: HybridLens | Weights,
    tokens: TokensLike | None = None,
    lengths: Sequence[int] | Lengths | None = None,
    *,
    model: str = "",
    sample_size: int = SAMPLE,
    distances: Sequence[int] | None = None,
    seed: int = 0,
    memory: int = MEMORY,
    level: str = "random",
    stage: Stage = lambda name, make: dict(make()),
    progress: Callable[[int, int], None] | None = None,
) -> HeadCircuits:
    """The circuits of every attention head.

    Args:
        source: a lens, or weights (`hybridlens.load_weights` reads them from files).
        tokens: real text for the linearisation of recurrent layers and the mean input of attention layers: prompts as a
            lens takes them, of any lengths, all of whose tokens count. None for recurrent layers at rest and the
            vocabulary's mean. Needs a lens.
        lengths: real tokens of each row of a tensor padded on the right.
        model: what results call it; its family when left out.
        sample_size: tokens among which shares are taken.
        distances: from query to key, at which matching is taken; powers of two inside the window when left out, and
            only 0 without rotary embedding.
        seed: of the sample.
        memory: bytes for composition, beside the weights of a few layers.
        level: what K-composition has to exceed where it counts for induction: "random", what random directions would
            have, or "writers", the mean over the head's earlier writers. Give tokens with "writers": previous-token
            heads of a large model are seen at the mean of its stream and not at the vocabulary's.
        stage: takes a stage's name and what makes its tensors, and returns them: made now, or stored by an earlier
            computation of the same weights and arguments.
        progress: called with the stages done and their number; a bar is shown without.

    Raises:
        InputError: no attention layer, or shared blocks; a sample below 2 tokens; distances that no query can look
            back by; tokens without a lens.
        UnknownNameError: there is no such level.
        CheckpointError: weights that are missing or cannot be read.
    """
    stages = Stages(source, tokens, lengths, sample_size, distances, seed, memory, stage, level)
    cfg = stages.weights.cfg
    total, done = 4 + len(cfg.attention_layers), 0
    with staged("circuits", progress) as tell, torch.no_grad():

        def took(made: T) -> T:
            nonlocal done
            done += 1
            tell(done, total)
            return made

        tell(0, total)
        took(stages.shared)
        measured, sampled = stages.measured, took(stages.sampled)
        layers = [took(stages.layer(layer)) for layer in cfg.attention_layers]
        scores = {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}
        composed = took(stages.composed)
        strengths = took(stages.strengths(scores))
    return HeadCircuits(
        model=model or cfg.family,
        layers=cfg.attention_layers,
        ssm_layers=tuple(path.layer for path in measured.paths),
        sample=len(sampled[0]),
        distances=stages.distances,
        **{"matching_rotary": None, "matching_free": None, **scores},
        composition=composed,
        level=level,
        linearised=f"at the mean of {measured.tokens} tokens" if measured.tokens else "at rest",
        path_error=measured.error,
        gate_error=measured.gate_error,
        notes=notes_of(cfg, [path.layer for path in measured.paths], measured.gate_error),
        **strengths,
    )


class Stages:
    """What circuits are made of, each stage made when it is first asked for; arguments and errors as `circuits`.

    Attributes:
        weights: of the model.
        level: what K-composition has to exceed.
        distances: from query to key, ascending.
    """

    def __init__(
        self,
        source: HybridLens | Weights,
        tokens: TokensLike | None = None,
        lengths: Sequence[int] | Lengths | None = None,
        sample_size: int = SAMPLE,
        distances: Sequence[int] | None = None,
        seed: int = 0,
        memory: int = MEMORY,
        stage: Stage = lambda name, make: dict(make()),
        level: str = "random",
    ) -> None:
        self.weights = weights = source if isinstance(source, Weights) else Weights.of_model(source)
        weights.cfg.need_stream_heads("circuits of heads")
        if sample_size < 2:
            raise InputError(
                f"a sample of {sample_size} tokens given, expected at least 2: a token has to beat another"
            )
        if tokens is not None and isinstance(source, Weights):
            raise InputError("tokens were given with weights alone; give a lens, which can run them, or leave them out")
        if level not in LEVELS:
            raise UnknownNameError(
                f"level {level!r} does not exist{closest(level, LEVELS)}; there is {', '.join(map(repr, LEVELS))}"
            )
        self.level = level
        self.distances = check_distances(weights, distances)
        self._source, self._tokens, self._lengths = source, tokens, lengths
        self._sample, self._seed, self._memory, self._stage = sample_size, seed, memory, stage

    @cached_property
    def shared(self) -> dict[str, Tensor]:
        """What all heads share: products over the vocabulary."""
        return self._stage("vocabulary", lambda: products(self.weights)._asdict())

    @cached_property
    def measured(self) -> Measured:
        """The linear paths, made anew in every process."""
        source, tokens = self._source, self._tokens
        if tokens is None or isinstance(source, Weights):
            return Measured(paths_at_rest(self.weights, leave_out=True))
        return measure(source, self.weights, *source.batch(tokens, self._lengths))

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor]:
        """Embeddings and unembeddings of the sample."""
        chosen = sample(self.weights, self._sample, self._seed)
        return self.weights.embed(chosen), self.weights.unembed(chosen)

    def layer(self, layer: int) -> dict[str, Tensor]:
        """All scores of one attention layer's heads but composition."""
        layers = self.weights.cfg.attention_layers
        means = self.shared["mean"].expand(len(layers), -1) if self.measured.means is None else self.measured.means
        mean = means[layers.index(layer)]
        made = partial(_layer, self.weights, layer, self.shared, *self.sampled, mean, self.distances)
        return self._stage(f"layer-{layer}", made)

    @cached_property
    def composed(self) -> Composition:
        """Composition of every writer with every later head."""
        paths = self.measured.paths

        def made() -> dict[str, Tensor]:
            return compositions(self.weights, paths, KINDS, self._memory)._asdict()

        return Composition(**self._stage("composition", made))

    def strengths(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Induction and retrieval, from the scores of all layers."""
        paths, EE = self.measured.paths, self.shared["EE"]
        made = partial(_strengths, self.weights, self.composed, scores, paths, EE, self.distances, self.level)
        return self._stage("strength" if self.level == "random" else f"strength-{self.level}", made)


def check_distances(weights: Weights, distances: Sequence[int] | None) -> tuple[int, ...]:
    """The distances at which matching is taken, ascending.

    Raises:
        InputError: one is negative, given twice, or beyond the window; or any but 0 without rotary embedding.
    """
    cfg = weights.cfg
    if not weights.rotary:
        if distances is not None and tuple(distances) != (0,):
            raise InputError(f"distances {list(distances)} given, but the model has no rotary embedding: expected [0]")
        return (0,)
    most = (_window(cfg) or cfg.n_ctx or BACK) - 1
    if distances is None:
        return tuple(dict.fromkeys([*(1 << i for i in range(most.bit_length())), most]))
    if not distances or len(set(distances)) < len(distances) or not 0 <= min(distances) <= max(distances) <= most:
        raise InputError(f"distances {list(distances)} given, expected different ones of 0..{most}, the window's")
    return tuple(sorted(distances))


def _layer(
    weights: Weights, layer: int, shared: Mapping[str, Tensor], E: Tensor, U: Tensor, mean: Tensor, at: Sequence[int]
) -> dict[str, Tensor]:
    """All scores of one layer's heads but composition."""
    attention = weights.attention(layer)
    unit = E / E.square().mean(-1, keepdim=True).sqrt().clamp(min=TINY)
    done = pieces(2 * len(at) + 5)

    def took(made: T) -> T:
        done()
        return made

    def over(part: str) -> Tensor:
        by_distance = (took(qk_eigenvalues(attention, shared["EE"], distance, part)) for distance in at)
        return torch.stack([positivity(found) for found in by_distance], dim=-1)

    ov = took(ov_eigenvalues(attention, shared["UE"]))

    found = {
        "matching": over("all"),
        "copying": positivity(ov),
        "ov_eigenvalues": ov,
        "copying_share": took(copying_share(attention, E, U)),
        "matching_share": took(matching_share(attention, unit, at[0])),
        "qk_eigenvalues": took(qk_eigenvalues(attention, shared["EE"], at[0])),
        "profile": profile(attention, mean, min(_window(weights.cfg) or BACK, weights.cfg.n_ctx or BACK)),
    }
    if attention.rotary is not None:
        found["matching_rotary"] = over("rotary")
        if attention.rotary.dims < attention.W_Q.shape[-1]:
            found["matching_free"] = positivity(qk_eigenvalues(attention, shared["EE"], None, "free"))
    return {name: value.cpu() for name, value in found.items()}


def _window(cfg: LensConfig) -> int | None:
    """What every attention layer's queries see, the layer of the smallest window too; None for no window at all."""
    return min((attention.window for attention in cfg.attentions if attention.window is not None), default=None)


def _strengths(
    weights: Weights,
    composed: Composition,
    scores: Mapping[str, Tensor],
    paths: Sequence[LinearPath],
    EE: Tensor,
    at: Sequence[int],
    level: str,
) -> dict[str, Tensor]:
    """Induction and retrieval."""
    k = KINDS.index("k")
    lag_share = torch.stack([path.share for path in paths]).cpu() if paths else torch.zeros(0, weights.cfg.d_conv)
    lag = min(1, lag_share.shape[1] - 1) if paths else slice(0)
    if level == "random":
        beyond = composed.excess_heads[k], composed.excess_recurrent[k, ..., lag].flatten(2)
    else:
        beyond = beyond_writers(composed.heads[k], composed.recurrent[k, ..., lag].flatten(2))
    found = induction(*beyond, scores["profile"], lag_share, scores["copying"])
    layers = zip(map(weights.attention, weights.cfg.attention_layers), found.writer, strict=True)
    done, matches = pieces(len(found.writer)), list[Tensor]()
    for layer, writers in layers:
        matches.append(induction_matching(weights, layer, writers, paths, EE, at).cpu())
        done()
    match = torch.stack(matches)
    return {
        "lag_share": lag_share,
        "induction": found.strength,
        "induction_writer": found.writer,
        "induction_match": match,
        "retrieval": retrieval(match, scores["copying"]),
    }


def measure(lens: HybridLens, weights: Weights, tokens: Tokens, lengths: Lengths | None = None) -> Measured:
    """Means over real tokens, and how far the linear paths, and output gates at rest, are off there."""
    paths, error = measured_paths(lens, weights, tokens, lengths)

    def inputs(layer: int, seen: Mapping[str, Tensor], mask: Valid) -> dict[str, Tensor]:
        (read,) = seen.values()
        return {"input": read[mask].double().sum(0)}

    points = {layer: [_read(lens, layer)] for layer in lens.cfg.attention_layers}
    batch = lens.batch(tokens, lengths)
    totals = sums(lens, batch, weights.cfg.device, points, inputs).values()
    means = torch.stack([(total["input"] / total["tokens"]).float() for total in totals])
    gated = any(attention.gated or attention.normed_after for attention in lens.cfg.attentions)
    off = gate_errors(lens, weights, tokens, lengths) if gated else None
    return Measured(paths, error, means, int(real_lengths(batch).sum()), off)


def _read(lens: HybridLens, layer: int) -> str:
    """The hook point of what a layer's mixers read: the normalised stream, or the stream where no norm is before."""
    return f"blocks.{layer}.{cast(Block, lens.blocks[layer]).read_point('attn')}"
