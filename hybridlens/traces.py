"""What a trace of a lens is made of: nnsight's view of the hook network, and its tracers, with what is ours in them.

The first trace wraps the hook network (never the Hugging Face model) once; every `HookPoint` then knows the handle
under which nnsight serves its activation. The modules of the Hugging Face model are served by hooks that stand on them
for one run (`hybridlens.hf_modules`), several prompts by rows of one batch (`hybridlens.invokes`), and a block whose
source cannot be read by running it where it is written (`hybridlens.inline`). A scan runs a copy of the model whose
weights are on the meta device, in the model's place.

How it fails: see `hybridlens.tracing`.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, no_type_check

import torch
from nnsight import NNsight
from nnsight.intervention.barrier import Barrier
from nnsight.intervention.editing import EditingTracer
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.interleaver import Event, Mediator
from nnsight.intervention.tracer import InterleavingTracer, Invoker
from nnsight.tracing.tracer import Tracer, WithBlockNotFoundError, dec, inc, skip_context, skippable
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hybridlens.choosing import Sampling
from hybridlens.decoding import Boundary, editing
from hybridlens.errors import InputError
from hybridlens.generation import generate
from hybridlens.hf_modules import handing_out
from hybridlens.hooks import Edit
from hybridlens.inline import InlineBlock, refuse
from hybridlens.interleaving import Live, ThreadInterleaver, request
from hybridlens.invokes import Prompts, RowBatcher, together
from hybridlens.mlps import HookedMoe
from hybridlens.network import HookedNetwork
from hybridlens.shapes import Lengths
from hybridlens.tokens import TokensLike

if TYPE_CHECKING:
    from hybridlens.tracing import TraceFront


class Place(Live, Envoy):
    """nnsight's handle of a hook point, or of another module of the network."""

    def edit(self, *, inplace: bool = False, backend: Any = None) -> Any:
        """Refused: edits belong to the whole lens.

        Raises:
            InputError: always.
        """
        raise InputError(f"an edit of {self.path} alone would act in no trace of the lens; use `with lens.edit()`")

    def of_all_rows(self, mask: Tensor, given: Tensor) -> Tensor:
        """A mask over an invoke's part of an activation as one over all of it; elsewhere as it is."""
        mediator: Any = Mediator.current(self.path)
        batcher: Any = self.interleaver.batcher
        if not isinstance(mask, Tensor) or batcher is None or not batcher.batching or mediator.batch_group is None:  # pyright: ignore[reportUnnecessaryIsInstance]
            return mask
        whole = given.new_zeros(given.shape, dtype=mask.dtype)
        place = batcher.own(whole, mediator.batch_group)
        place.copy_(mask.expand(place.shape))
        return whole


class Root(Place, NNsight):
    """The handle of the whole network: what ``lens.nnsight`` gives, and ``lens.edit()`` an edited copy of."""

    _batcher_class = RowBatcher
    lens: TraceFront

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return inputs[0].size if inputs else 0

    def _batch(self, invokes: list[Any], fn: Any) -> Any:
        return (together([inputs[0] for inputs, _ in invokes], self.lens.pad_token),), {}

    def interleave(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """As nnsight's, with what the run needs standing ready."""
        with fn.ready():
            return super().interleave(fn, *args, **kwargs)

    def trace(self, tokens: TokensLike | None = None, **words: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As ``lens.trace``, with the edits that this handle holds."""
        return self.lens.trace_by(self, tokens, **words)

    def scan(self, tokens: TokensLike | None = None, **words: Any) -> Any:
        """As ``lens.scan``, with the edits that this handle holds."""
        return self.trace(tokens, scan=True, **words)

    def session(self, **words: Any) -> Any:
        """As ``lens.session``."""
        return Session()

    def edit(self, *, inplace: bool = False, backend: Any = None) -> Any:
        """As ``lens.edit``.

        Raises:
            InputError: for `inplace`.
        """
        if inplace:
            raise InputError(
                "an edit with inplace=True would act in traces and not in plain runs; use `with lens.edit() as "
                "(tracer, edited):` and edited.trace(...), or give an hl.Edit to each run, or `with lens.hooks(...)`"
            )
        return Editing(self)


def wrap(lens: TraceFront) -> Root:
    """nnsight's view of the lens's network; made once, and known to every hook point."""
    return _wrapped(lens, lens.network, ThreadInterleaver(weakref.WeakValueDictionary()))


def _wrapped(lens: TraceFront, network: HookedNetwork, interleaver: ThreadInterleaver) -> Root:
    root: Any = Root(network, interleaver=interleaver, envoys=Place)
    object.__setattr__(root, "lens", lens)
    for name, point in network.points.items():
        point.envoy = root.get(name)
    return root


# What is run.


@dataclass(frozen=True)
class Plan:
    """What a trace is to run.

    Args:
        max_new_tokens: of a generation; None for one forward pass.
        edits: of all rows.
        boundary: of a generation.
        sampling: of a generation.
        stop_at_eos: of a generation.
        scan: on the meta device.
    """

    max_new_tokens: int | None
    edits: Sequence[Edit]
    boundary: Boundary
    sampling: Sampling | None
    stop_at_eos: bool
    scan: bool


class Run:
    """What a trace runs, and what stands ready for it.

    Args:
        lens: the lens.
        root: the handle that traces.
        plan: what it is to run.
    """

    def __init__(self, lens: TraceFront, root: Root, plan: Plan) -> None:
        self.lens, self.root, self.plan = lens, root, plan
        self.network = lens.network

    @contextmanager
    def ready(self) -> Generator[None]:
        """The length of the run, the first steps of its blocks included: hooks on the model's modules."""
        model, root = self.lens.hf_model, self.root
        twin: Any = None
        if self.plan.scan:
            self.network = weightless(self.network)
            model = self.network.wrapped[0]
            twin = _wrapped(self.lens, self.network, root.interleaver)
        with handing_out(model, self.network.following, root.interleaver):
            yield
        del twin  # its handles were needed as long

    def __call__(self, prompts: Prompts) -> Any:
        """Run the model over the prompts of all invokes."""
        plan, network, batch = self.plan, self.network, prompts.batch
        edits = [*plan.edits, *prompts.edits]
        if plan.max_new_tokens is None:
            tokens = batch.tokens.to("meta") if plan.scan else batch.tokens
            with editing(network, edits, "prefill") as forward:
                return forward(tokens, batch.lengths)
        return generate(
            network,
            batch,
            plan.max_new_tokens,
            edits,
            plan.boundary,
            stop_at_eos=plan.stop_at_eos,
            sampling=plan.sampling,
            tokenizer=self.lens.tokenizer,
            pad=self.lens.pad_token,
        )


def _as_it_comes(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def weightless(network: HookedNetwork) -> HookedNetwork:
    """A copy of a network and its model whose tensors have shapes and no values; it takes no memory worth naming."""
    memo: dict[int, Any] = {}
    for weight in network.wrapped[0].parameters():
        memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
    with _Bare():
        twin = copy.deepcopy(network, memo)
    for part in twin.modules():
        if isinstance(part, HookedMoe):  # which tokens go where is no matter of shapes
            part.parts.experts.forward = _as_it_comes
    return twin


class _Bare(TorchFunctionMode):
    """Copies of tensors that are made meanwhile are on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().to("meta")
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


# nnsight's tracers.


class LensTracer(InterleavingTracer):
    """A trace of a lens.

    Args:
        root: the handle that it is of.
        plan: what it is to run.
        prompts: what is given to `lens.trace`; None where the block's invokes bring them.
    """

    def __init__(self, root: Root, plan: Plan, prompts: Prompts | None) -> None:
        super().__init__(root, Run(root.lens, root, plan), *([] if prompts is None else [prompts]))
        self.root = root
        self._block: InlineBlock | None = None

    @no_type_check  # nnsight counts the frames between here and its user's
    def __enter__(self) -> LensTracer:
        """As nnsight's; without a source the block runs where it stands."""
        if self.root.interleaver.interleaving:
            raise InputError(
                "a trace was opened inside a trace of the same lens, whose forward pass is under way; end the first "
                "`with lens.trace(...)` before the second, or use run_with_cache or run_with_hooks inside it"
            )
        try:
            self.capture()
        except WithBlockNotFoundError:
            self._enter_inline()
            return self
        if skippable(self.node):
            skip_context(self)
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, exc_traceback: Any) -> bool:
        """As nnsight's."""
        if self._block is None:
            return super().__exit__(exc_type, exc_value, exc_traceback)
        block, self._block = self._block, None
        return block.exit(exc_value)

    def _enter_inline(self) -> None:
        if not self.args:
            raise refuse("a trace of several invokes")
        envoy, fn, args, batcher = self.root, self.fn, self.args, RowBatcher(self.root)

        def run(block: InlineBlock) -> None:
            block.batch_group = batcher.add(*args)
            envoy.interleaver.mediators.append(block)
            envoy.interleave(fn, batcher=batcher)

        self._block = InlineBlock(run)
        try:
            self._block.enter()
        except BaseException:
            self._block = None
            raise

    def invoke(
        self,
        tokens: TokensLike | None = None,
        *,
        lengths: Sequence[int] | Lengths | None = None,
        edits: Sequence[Edit] = (),
    ) -> Any:
        """One prompt, or several, of a trace that was opened without any; its block sees its own rows alone.

        Args:
            tokens: as `lens.trace` takes them; None to see the rows of all other invokes.
            lengths: real tokens of each row of a tensor padded on the right.
            edits: of its rows alone, whose numbers are counted from its first.
        """
        if tokens is None:
            return Invoker(self)
        check_ahead(edits)
        return Invoker(self, Prompts(self.root.lens.batch(tokens, lengths), edits))

    @property
    def result(self) -> Any:
        """What the run gives: logits and state of a forward pass, or a `Generation`; an invoke's rows of it."""
        return request(Event.VALUE, "result")

    def barrier(self, n: int) -> Barrier:
        """As nnsight's; what was written in place before it is the model's by then."""
        return FlushingBarrier(n)


class FlushingBarrier(Barrier):
    """A barrier that gives what blocks hold back to the model first."""

    def __call__(self) -> None:
        """Wait here until every block has arrived."""
        mediator: Any = Mediator.current("tracer.barrier()")
        mediator.flush()
        super().__call__()


class Session(Tracer):
    """Several traces whose values pass from one to the next unsaved."""

    def __init__(self) -> None:
        super().__init__()
        self._inline = False

    @no_type_check  # nnsight counts the frames between here and its user's
    def __enter__(self) -> Session:
        """As nnsight's; without a source the block runs where it stands."""
        try:
            self.capture()
        except WithBlockNotFoundError:
            self._inline = True
            inc()
            return self
        if skippable(self.node):
            skip_context(self)
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, exc_traceback: Any) -> bool:
        """As nnsight's."""
        if not self._inline:
            return super().__exit__(exc_type, exc_value, exc_traceback)
        dec()
        return False


class Editing(EditingTracer):
    """A block that acts in every trace of the edited copy that it gives."""

    @no_type_check  # nnsight counts the frames between here and its user's
    def __enter__(self) -> Any:
        """The tracer and the edited copy."""
        try:
            self.capture()
        except WithBlockNotFoundError:
            raise refuse("an edit that is kept") from None
        if skippable(self.node):
            skip_context(self)
        return self, self.envoy


def check_ahead(edits: Sequence[Edit]) -> None:
    """Refuse edits that act in a pass ahead, which a trace would count as one of its own.

    Raises:
        InputError: naming the first.
    """
    early = [edit.hook for edit in edits if edit.ahead]
    if early:
        raise InputError(
            f"an edit of {early[0]!r} acts in a pass ahead, which a trace would count as one of its own; give edits "
            "that act ahead (those of top_k with scope 'model') to prefill, extend or generate"
        )
