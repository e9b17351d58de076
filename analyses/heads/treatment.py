"""What a row of a batch is under: which heads are kept, and what becomes of its attention to the needle.

A `Treatment` is a value; `treat` turns one for each row of a batch into edits, those of `sparsification.top_k`,
`sparsification.keep_each` and `manipulation.manipulate_rows`. Top-k ranks the unmanipulated pattern of all heads,
whichever edit stands first and whichever heads are kept anyway.

How it fails: the rows of a batch share scope and semantics, since these say how scores are read; other mixtures
raise `InputError`. Where any row's pattern is rewritten, rows of mode "keep" follow the explicit formula with it and
may differ from a run alone in the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analyses.heads.manipulation import Mode, is_causal, manipulate_rows
from analyses.heads.needle_slots import Needle
from analyses.heads.ranking import Scope
from analyses.heads.sparsification import Heads, heads_kept, keep_each, top_k
from hybridlens.boundary import Natural, public
from hybridlens.display import Displayed
from hybridlens.errors import InputError
from hybridlens.hooks import Edit, Phase
from hybridlens.model import HybridLens
from hybridlens.niah.prompt import SemanticsLike


@public
@dataclass(frozen=True)
class Treatment(Displayed):
    """What one row is under, in one phase.

    Raises:
        UnknownNameError: a mode, scope or semantics that does not exist.
    """

    k: Natural
    """Heads kept per layer by entropy; n_heads keeps all."""
    mode: Mode = "keep"
    """Of `manipulation.MODES`: what becomes of attention weights."""
    scope: Scope = "layer"
    """Where heads compete: "layer" or "model"."""
    semantics: SemanticsLike = "clean"
    """"clean" or "published": of the entropy and of the mode."""
    heads: Heads | None = None
    """Static: the (layer, head) pairs that may be kept, sorted; None: any. k = n_heads then drops no more."""

    def untouched(self, n_heads: int) -> bool:
        """Whether a model of `n_heads` heads a layer computes what it would without any edit."""
        return self.k == n_heads and self.mode == "keep" and self.heads is None

    @property
    def causal(self) -> bool:
        """Whether, while reading, what each query gets depends only on itself and what came before it."""
        return is_causal(self.mode, self.semantics)


def treat(lens: HybridLens, treatments: Sequence[Treatment], needles: Sequence[Needle], phase: Phase) -> list[Edit]:
    """The edits of a batch whose row i is under ``treatments[i]``, with its needle at ``needles[i]``.

    Args:
        lens: the model.
        treatments: one for each row; scope and semantics the same for all.
        needles: each row's needle positions, such as `Prompt.needle_spans`; ``()`` for a prompt without one, where
            omit leaves everything, and only, binary and null nothing (published, while answering: every mode leaves
            everything).
        phase: "prefill" while reading, "decode" while answering.

    Returns:
        edits for runs of exactly that batch; none where no row is touched.

    Raises:
        InputError: no row, not one needle for each, rows of other scopes or semantics, k out of range, heads that the
            model does not have, positions that are none, published semantics in float16, or a model without attention.
        UnknownNameError: a phase that does not exist.
    """
    if not treatments or len(treatments) != len(needles):
        raise InputError(
            f"{len(treatments)} treatments and {len(needles)} needles given; expected one of each for every row"
        )
    for field in ("scope", "semantics"):
        values = sorted({getattr(one, field) for one in treatments})
        if len(values) > 1:
            raise InputError(
                f"rows of {field} {' and '.join(map(repr, values))} given in one batch; "
                f"expected one {field} for all rows: run the others in a batch of their own"
            )
    scope, semantics = treatments[0].scope, treatments[0].semantics
    lens.cfg.need_attention("treating attention heads")
    heads_kept([treatment.k for treatment in treatments], lens.cfg.n_heads)
    rows = [_fewest(one) for one in treatments]
    modes = [one.mode for one in rows]
    ranked = top_k(lens, [one.k for one in rows], phase, scope, semantics)
    return (
        ranked
        + keep_each(lens, [one.heads for one in rows], phase)
        + manipulate_rows(lens, modes, needles, phase, semantics)
    )


def _fewest(one: Treatment) -> Treatment:
    """What comes to the same in the fewest steps: z is 0 under clean null as with no head kept, without a pattern."""
    null = one.mode == "null" and one.semantics == "clean"
    return replace(one, k=0, mode="keep", heads=None) if null or one.k == 0 or one.heads == () else one
