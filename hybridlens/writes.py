"""What the parts of a layer added to the stream in a run, told apart: experts and biases.

Heads say it of themselves (`hybridlens.stream.HeadWrites`). Here is the rest of what a part's write is the sum of, from
what a run held at hook points: each expert of a mixture, weighed by the router, the expert that all tokens go to, and
the bias of an output projection. A norm behind the part is gone through with its scale as it was in the run, so that
heads or experts, the shared expert and the bias add up to what reached the stream.

How it fails: a value that is needed and was not kept is a `KeyError`; `bias_points` and `expert_points` say which are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from hybridlens.blocks import Block
from hybridlens.mlps import Mixture
from hybridlens.stream import WritesBias


class ExpertAdds(NamedTuple):
    """What an expert of a mixture added to the stream."""

    expert: int | None
    """Which; None for the one that all tokens go to."""
    tokens: Int[Tensor, "chosen_token"] | slice
    """Which of all tokens were sent to it, in the order of the rows."""
    out: Float[Tensor, "chosen_token d_model"]
    """Float32."""


def bias_points(block: Block, part: str) -> tuple[str, ...]:
    """The hook points, in its layer, that hold what `bias_added` needs: the scale of a norm behind the part."""
    number = block.number_of(part)
    return () if block.branches[number - 1].norm_after is None else (f"ln{number}_post.hook_scale",)


def bias_added(
    block: Block, part: str, seen: Mapping[str, Tensor]
) -> Float[Tensor, "d_model"] | Float[Tensor, "*batch d_model"] | None:
    """What a part adds whatever it reads; None for nothing. At each position, where a norm stands behind it.

    Args:
        block: the layer.
        part: one of its parts.
        seen: values of the points of `bias_points`.
    """
    module, after = block.parts[part], block.branches[block.number_of(part) - 1].norm_after
    bias = module.out_bias() if isinstance(module, WritesBias) else None
    if bias is None or after is None:
        return bias
    return after.at(bias, seen[bias_points(block, part)[0]])


def expert_points(block: Block) -> tuple[str, ...]:
    """The hook points, in its layer, that hold what `experts_add` needs."""
    routed = ("mlp.hook_expert_indices", "mlp.hook_expert_weights")
    return (block.read_point("mlp"), *routed, "hook_mlp_out", *bias_points(block, "mlp"))


def experts_add(block: Block, seen: Mapping[str, Tensor]) -> Iterator[ExpertAdds]:
    """What the experts of a layer's mixture added, one after the other; last, the one that all tokens go to.

    An expert that no token was sent to is not among them.

    Args:
        block: a layer whose MLP is a `Mixture`.
        seen: values of the points of `expert_points`, [*batch …].
    """
    number, moe = block.number_of("mlp"), block.parts["mlp"]
    assert isinstance(moe, Mixture)
    branch = block.branches[number - 1]
    x = seen[block.read_point("mlp")]
    x = (x if branch.norm is None else branch.norm.norm.weighted(x, seen["hook_mlp_out"].dtype)).flatten(0, -2)
    scale = None if branch.norm_after is None else seen[f"ln{number}_post.hook_scale"].flatten(0, -2)

    def added(out: Tensor, tokens: Tensor | slice) -> Tensor:
        """What reaches the stream of an expert's output for some of the tokens."""
        out = out if branch.norm_after is None or scale is None else branch.norm_after.at(out, scale[tokens])
        return out.float()

    routed = (seen[f"mlp.hook_expert_{what}"].flatten(0, -2) for what in ("indices", "weights"))
    for written in moe.expert_writes(x, *routed):
        yield ExpertAdds(written.expert, written.tokens, added(written.out, written.tokens))
    if moe.cfg.shared_expert:
        every = slice(None)
        yield ExpertAdds(None, every, added(moe.shared_write(x), every))
