"""nnsight over the hook points: ``with lens.trace(tokens): lens.blocks[2].attn.hook_pattern.output``.

The part of `HybridLens` that traces; `hybridlens.traces` has the machinery, and is imported when first needed, since
nnsight takes seconds. A trace costs milliseconds, whatever the model, so inner loops are better written with hooks.

Threads may trace the same lens at once, each a run of its own (`hybridlens.interleaving`).

How it fails: as nnsight does, but where nnsight would be silent: a layer's ``output[0]`` (`hybridlens.first_row`), a
gradient that is None (`hybridlens.written`), a value of another invoke that is not there yet (`hybridlens.siblings`)
raise `HybridLensError`s that say what to type. Points are read in forward order, and reading one that has passed raises
nnsight's OutOfOrderError. A trace inside a trace of the same lens, an edit that would outlive its traces in some ways
of running only, and a scan of a generation raise `InputError`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from hybridlens.boundary import Length, public
from hybridlens.choosing import Sampling
from hybridlens.continuing import no_autocast
from hybridlens.decoding import Boundary
from hybridlens.hooks import Edit, HookPoint
from hybridlens.shapes import Lengths
from hybridlens.text import TokenFront
from hybridlens.tokens import TokensLike

if TYPE_CHECKING:
    from hybridlens.hf_modules import HFModule
    from hybridlens.traces import Root

Tracer: TypeAlias = Any
"""nnsight's InterleavingTracer, which is untyped."""

WRAPPING = threading.Lock()
"""Held while a lens is wrapped, so that threads which trace it first at the same moment wrap it once."""


class TraceFront(TokenFront):
    """Traces, scans, sessions and edits; `HybridLens` builds on it."""

    hook_dict: dict[str, HookPoint]
    _nnsight: Root | None = None

    @public
    def trace(
        self,
        tokens: TokensLike | None = None,
        *,
        lengths: Sequence[int] | Lengths | None = None,
        max_new_tokens: Length | None = None,
        edits: Sequence[Edit] = (),
        boundary: Boundary | None = None,
        sampling: Sampling | None = None,
        stop_at_eos: bool = True,
        scan: bool = False,
    ) -> Tracer:
        """nnsight's trace: inside the block, ``lens.blocks[2].attn.hook_pattern.output`` is live.

        Read points in forward order, assign to ``.output`` to edit, ``.save()`` what is to outlive the block. Blocks
        of layers have ``output`` and ``input`` as well, and so have modules of the Hugging Face model that run as a
        whole, under `model` and `lm_head`. With `max_new_tokens` the trace covers a generation, and ``tracer.iter``
        walks its forward passes as nnsight's does: step 0 reads the prompt and chooses the first new token, step i
        the one after i others.

        Args:
            tokens: the prompts; None where the block has a ``with tracer.invoke(prompt):`` for each, which sees its
                own rows alone.
            lengths: real tokens of each row of a tensor padded on the right.
            max_new_tokens: of a generation; None for one forward pass.
            edits: act in their phases and rows.
            boundary: of a generation, as are the next two; see `generate`. None is "first_new_token", as nnsight has
                it, and not the default of `generate`: where an edit acts in one phase alone, it has to be said.
            sampling: how tokens are drawn; None for the likeliest.
            stop_at_eos: a row ends with its end-of-text token.
            scan: run on the meta device: shapes without values, and no weight is used.

        Raises:
            InputError: for tokens that cannot be run, a scan of a generation, an edit of one phase in a generation
                without a boundary, or inside a trace of this lens.
        """
        from hybridlens.tracers import LensTracer
        from hybridlens.traces import Plan, Prompts, Run

        if max_new_tokens is not None:
            no_autocast(self.device)
        plan = Plan(max_new_tokens, edits, boundary, sampling, stop_at_eos, scan)
        prompts = None if tokens is None else Prompts(self._laid(tokens, lengths).batch)
        return LensTracer(Run(self, self.nnsight, plan), prompts)

    def scan(
        self,
        tokens: TokensLike | None = None,
        *,
        lengths: Sequence[int] | Lengths | None = None,
        edits: Sequence[Edit] = (),
    ) -> Tracer:
        """A trace on the meta device: shapes without values, and no weight is used; see `trace`."""
        return self.trace(tokens, lengths=lengths, edits=edits, scan=True)

    def session(self) -> Tracer:
        """Several traces whose values pass from one to the next without ``.save()``; what is saved outlives it."""
        return self.nnsight.session()

    @public
    def edit(self, inplace: bool = False) -> Tracer:
        """A block that acts in every trace of an edited copy: ``with lens.edit() as (tracer, edited):``.

        The block is written as one of a trace. ``edited.trace(...)`` then runs with it; the lens itself never does.

        Raises:
            InputError: for `inplace`: an edit that stayed would act in traces and not in plain runs.
        """
        return self.nnsight.edit(inplace=inplace)

    @property
    def model(self) -> HFModule:
        """The Hugging Face model below its unembedding, as traces know it: ``lens.model.layers[2].mamba.in_proj``.

        Inside a trace, modules that run as a whole have ``output``, ``input`` and ``inputs``. Elsewhere it is the
        module itself, to look at and to call; what is `model` here may be ``backbone`` in the Hugging Face model.
        """
        return self._theirs(self.hf_model.base_model)

    @property
    def lm_head(self) -> HFModule:
        """The Hugging Face model's unembedding, as `model` is; multipliers and soft caps come after it."""
        return self._theirs(self.hf_model.get_output_embeddings())

    def _theirs(self, module: Any) -> HFModule:
        from hybridlens.hf_modules import HFModule

        return HFModule(module, self.network.following, self.nnsight.interleaver)

    @property
    def nnsight(self) -> Root:
        """nnsight's view of the hook network, made when first asked for."""
        if self._nnsight is None:
            from hybridlens.traces import wrap

            with WRAPPING:
                self._nnsight = self._nnsight or wrap(self)
        return self._nnsight

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle keeps: all but nnsight's view, which a copy makes anew of itself."""
        return {**self.__dict__, "_nnsight": None}
