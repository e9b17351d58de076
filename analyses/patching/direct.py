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

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
from hybridlens.components import Block, Mixture, execution_device, resident
from jaxtyping import Float, Int
from torch import Tensor

from analyses.patching.alignment import one_prompt
from analyses.patching.direct_results import DirectAttribution
from analyses.patching.metrics import LogitDifference, check_tokens
from analyses.patching.writers import Writer
from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokensLike
from hybridlens.weights import Weights

LOGITS = 1 << 24
"""Logits held at once."""

Question: TypeAlias = int | LogitDifference
"""A token's logit, or the difference of two."""

Chosen: TypeAlias = Float[Tensor, "pos d_model"]
Directions: TypeAlias = Float[Tensor, "d_model question"]


def direct_logit_attribution(
    lens: HybridLens, prompt: TokensLike, questions: Sequence[Question], positions: Sequence[int] = (-1,)
) -> DirectAttribution:
    """What every part of the model adds to logits, or differences of logits, at some positions of a prompt.

    Memory grows with the positions asked for: of each layer, what it writes there is held.

    Args:
        lens: the model; hooks that are on it act, and should be none.
        prompt: one prompt.
        questions: tokens, each for its logit, or differences of two.
        positions: where; negative ones count from the end.

    Raises:
        InputError: several prompts, positions outside the prompt, tokens outside the vocabulary, or none of either.
        CheckpointError: the model is quantised, or its weights are not in memory.
    """
    tokens = one_prompt(lens, prompt, "attributed")
    chosen = _chosen(positions, tokens.shape[1])
    asked, weights = _asked(questions, lens.cfg.d_vocab), Weights.of_model(lens)
    with torch.no_grad():
        seen = _seen(lens, tokens, chosen)
        directions = weights.unembed(asked.tokens).T @ asked.mix.to(weights.cfg.device)
        found = list(_shares(lens, weights, seen, directions))
        before, after = _own(lens, seen[f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"], asked.tokens)
    scale = _wide(seen["ln_final.hook_scale"])
    return DirectAttribution(
        shares=torch.stack([_wide(share) for _, share in found]) / scale,
        writers=tuple(writer for writer, _ in found),
        positions=chosen,
        questions=tuple(q.words if isinstance(q, LogitDifference) else f"logit of token {q}" for q in questions),
        before_cap=_wide(before) @ _wide(asked.mix),
        logits=_wide(after) @ _wide(asked.mix),
        scale=scale[:, 0],
        model=lens.network.signature,
        tokens=tuple(tokens[0].tolist()),
    )


def _wide(x: Tensor) -> Tensor:
    return x.to("cpu", torch.float64)


def _chosen(positions: Sequence[int], length: int) -> tuple[int, ...]:
    if not positions:
        raise InputError("no positions were given, expected at least one")
    for position in positions:
        if not -length <= position < length:
            raise InputError(f"position {position} given, but the prompt has 0..{length - 1}")
    return tuple(position % length for position in positions)


class _Asked(NamedTuple):
    """Questions as sums over tokens."""

    tokens: Int[Tensor, "token"]
    mix: Float[Tensor, "token question"]
    """1 for the token asked about, -1 for the one it is compared with."""


def _asked(questions: Sequence[Question], vocabulary: int) -> _Asked:
    if not questions:
        raise InputError("no questions were given, expected tokens or LogitDifference(right, wrong), at least one")
    sides = [((q.right, 1.0), (q.wrong, -1.0)) if isinstance(q, LogitDifference) else ((q, 1.0),) for q in questions]
    tokens = sorted({token for side in sides for token, _ in side})
    check_tokens(tokens, vocabulary)
    mix = torch.zeros(len(tokens), len(questions))
    for number, side in enumerate(sides):
        for token, sign in side:
            mix[tokens.index(token), number] += sign
    return _Asked(torch.tensor(tokens), mix)


def _seen(lens: HybridLens, tokens: Tokens, chosen: Sequence[int]) -> dict[str, Tensor]:
    """What the run held at the chosen positions, by hook point, without the batch axis."""
    cfg, kept = lens.cfg, dict[str, Tensor]()
    names = ["hook_embed", "ln_final.hook_scale", f"blocks.{cfg.n_layers - 1}.hook_resid_post"]
    for layer, kind in enumerate(cfg.layer_types):
        points = ["attn.hook_z" if kind == "attention" else "hook_mixer_out"]
        points += ["hook_resid_mid", "mlp.hook_expert_indices", "mlp.hook_expert_weights"]
        names += [f"blocks.{layer}.{point}" for point in (points if layer in cfg.moe_layers else [points[0], MLP])]

    @reads_only
    def keep(tensor: Tensor, hook: HookPoint) -> None:
        kept[cast(str, hook.name)] = tensor[0, list(chosen)]

    with lens.hooks([(names, keep)]):
        lens.network(tokens, None, None, True)
    return kept


MLP = "hook_mlp_out"


def _shares(
    lens: HybridLens, weights: Weights, seen: Mapping[str, Tensor], directions: Directions
) -> Iterator[tuple[Writer, Float[Tensor, "pos question"]]]:
    """Every writer's share before the final norm's scale, in forward order."""
    cfg = lens.cfg

    def share(written: Tensor) -> Tensor:
        return written.float().to(directions.device) @ directions

    yield Writer("embed"), share(seen["hook_embed"])
    for layer, kind in enumerate(cfg.layer_types):
        name = f"blocks.{layer}"
        if kind == "attention":
            view = weights.attention(layer)
            heads = view.W_O @ directions
            z = seen[f"{name}.attn.hook_z"].float().to(directions.device)
            yield from ((Writer("head", layer, head), z[:, head] @ heads[head]) for head in range(cfg.n_heads))
            yield from _bias(Writer("attn_bias", layer), view.b_O, z.shape[0], directions)
        else:
            out, bias = seen[f"{name}.hook_mixer_out"], weights.recurrent(layer).parts.b_out
            yield Writer("ssm", layer), share(out if bias is None else out.float() - bias.to(out.device))
            yield from _bias(Writer("ssm_bias", layer), bias, out.shape[0], directions)
        if layer in cfg.moe_layers:
            yield from _experts(lens, layer, seen, directions)
        else:
            out, bias = seen[f"{name}.{MLP}"], weights.mlp_bias(layer)
            yield Writer("mlp", layer), share(out if bias is None else out.float() - bias.to(out.device))
            yield from _bias(Writer("mlp_bias", layer), bias, out.shape[0], directions)


def _bias(
    writer: Writer, bias: Float[Tensor, "d_model"] | None, positions: int, directions: Directions
) -> Iterator[tuple[Writer, Tensor]]:
    """A bias's share, the same at each position; none where there is no bias."""
    if bias is not None:
        yield writer, (bias.to(directions.device) @ directions).expand(positions, -1)


def _experts(
    lens: HybridLens, layer: int, seen: Mapping[str, Tensor], directions: Directions
) -> Iterator[tuple[Writer, Tensor]]:
    """The shares of a mixture's experts, computed one expert after the other."""
    name, block = f"blocks.{layer}", cast(Block, lens.blocks[layer])
    x = block.ln2(seen[f"{name}.hook_resid_mid"][None])[0]
    routed = (seen[f"{name}.mlp.hook_expert_{what}"] for what in ("indices", "weights"))
    shares = directions.new_zeros(lens.cfg.n_experts or 0, x.shape[0], directions.shape[1])
    for written in cast(Mixture, block.mlp).expert_writes(x, *routed):
        out = written.out.float().to(directions.device)
        shares[written.expert].index_add_(0, written.tokens.to(directions.device), out @ directions)
    yield from ((Writer("expert", layer, expert), share) for expert, share in enumerate(shares))


def _own(
    lens: HybridLens, resid: Chosen, tokens: Int[Tensor, "token"]
) -> tuple[Float[Tensor, "pos token"], Float[Tensor, "pos token"]]:
    """The model's own logits of some tokens, before any soft cap and after."""
    model, network = lens.hf_model, lens.network
    head = model.get_output_embeddings()
    x = network.ln_final(resid[None].to(execution_device(head, resid.device)))
    tokens = tokens.to(x.device)
    with resident(head):
        before = x[0] @ head.weight[tokens].T
    parts = x.split(max(1, LOGITS // lens.cfg.d_vocab), dim=1)
    return before, torch.cat([network.family.unembed(model, part)[0][:, tokens] for part in parts])
