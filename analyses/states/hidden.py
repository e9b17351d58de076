"""Hidden attention: what each position reads out of each earlier token's value through the state, as attention has it.

y_t = Σ_j pattern[t, j] v_j, exact, the erasures of delta rules included (Ali et al. 2024, "The Hidden Attention of
Mamba Models"; Dao & Gu 2024 for matrix states); a diagonal state's is the mean over a block of channels.

How it fails: it grows with the square of the length. Rows do not sum to 1, and entries may be negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.experiment.per_prompt import per_prompt
from analyses.patching.alignment import one_prompt, places_of, token_strings
from analyses.states.flow import erasures
from analyses.states.watching import blank, chosen_layers, rows_of
from hybridlens.boundary import Natural, public
from hybridlens.errors import InputError
from hybridlens.hooks import HookPoint, reads_only
from hybridlens.model import HybridLens
from hybridlens.tokens import TokensLike
from hybridlens.viz.patterns import PatternFigure

KINDS = ("reads", "erasures")


@public
def hidden_attention(
    lens: HybridLens, prompts: TokensLike, layer: Natural
) -> Float[Tensor, "batch rec_head query key"]:
    """The hidden attention of one recurrent layer over some prompts.

    Of prompts of different lengths, rows of queries behind a prompt's last token are nan.

    Raises:
        InputError: a layer without states.
    """
    chosen_layers(lens, [layer], "hidden attention")
    rows = rows_of(lens, prompts)
    kept: list[Tensor] = []

    @reads_only
    def keep(pattern: Tensor, hook: HookPoint) -> None:
        kept.append(pattern.float().cpu())

    with torch.no_grad(), lens.hooks([(f"blocks.{layer}.ssm.hook_pattern", keep)]):
        lens.network(*rows.batch, None, True)
    return blank(kept[0], rows.real, 2)


@per_prompt("prompt", shared={"positions": 2})
@public
def hidden_figure(
    lens: HybridLens,
    prompt: TokensLike,
    layer: Natural,
    heads: Sequence[Natural] | None = None,
    positions: Sequence[int] | None = None,
    kind: str = "reads",
) -> PatternFigure:
    """A layer's hidden attention, or what it erases, over one prompt, ready for circuitsvis with tokens on its axes.

    Args:
        lens: the model; without a tokenizer token ids stand on the axes.
        prompt: one prompt, or a list of them.
        layer: with a state.
        heads: of the layer; all when left out.
        positions: those drawn, ascending; all when left out, which may be more than can be painted.
        kind: "reads" for hidden attention, "erasures" for what a delta rule takes away.

    Raises:
        InputError: a layer without states, heads or positions that are not there, more positions than
            can be painted, or erasures of a recurrence that erases nothing.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r} given, expected one of {list(KINDS)}")
    tokens = one_prompt(lens, prompt, "given")
    texts = token_strings(tokens[0].tolist(), lens.tokenizer)
    found = (hidden_attention if kind == "reads" else erasures)(lens, tokens, layer)[0]
    shown = list(range(tokens.shape[1])) if positions is None else sorted(set(places_of(positions, tokens.shape[1])))
    drawn = list(range(found.shape[0])) if heads is None else list(heads)
    for head in drawn:
        if head >= found.shape[0]:
            raise InputError(f"head {head} given, but layer {layer} has recurrent heads 0..{found.shape[0] - 1}")
    values = found[drawn][:, shown][:, :, shown].numpy().astype(np.float64)
    cropped = f"; positions {shown[0]} to {shown[-1]}, {len(shown)} of {tokens.shape[1]}" if positions else ""
    what = "what each position reads of each token" if kind == "reads" else "what each token takes away of each earlier"
    return PatternFigure(
        f"Layer {layer}: {what}", [texts[i] for i in shown], values, [f"L{layer} S{head}" for head in drawn],
        f"{what}, in units of its value{cropped}", shown,
    )  # fmt: skip
