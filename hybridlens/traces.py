"""What a trace of a lens goes over and runs: nnsight's view of the hook network.

The first trace wraps the hook network (never the Hugging Face model) once; every `HookPoint` then knows the handle
under which nnsight serves its activation. The modules of the Hugging Face model are served by hooks that stand on them
for one run (`hybridlens.hf_modules`), several prompts by rows of one batch (`hybridlens.invokes`). A scan runs a copy
of the network whose weights are on the meta device, in the network's place.

How it fails: see `hybridlens.tracing`.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from nnsight import NNsight
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from hybridlens.choosing import Sampling
from hybridlens.decoding import Boundary, editing
from hybridlens.errors import InputError
from hybridlens.generation import generate
from hybridlens.hf_modules import handing_out
from hybridlens.hooks import Edit
from hybridlens.interleaving import ROOT, Live, ThreadInterleaver
from hybridlens.invokes import Prompts, RowBatcher, together
from hybridlens.network import HookedNetwork
from hybridlens.slots import KeySlots
from hybridlens.tokens import TokensLike
from hybridlens.tracers import Editing, Session
from hybridlens.weightless import weightless

if TYPE_CHECKING:
    from hybridlens.tracing import TraceFront


class Place(Live, Envoy):  # pyright: ignore[reportIncompatibleMethodOverride]
    """nnsight's handle of a hook point, or of another module of the network."""

    def edit(self, *, inplace: bool = False, backend: Any = None) -> Any:
        """Refused: edits belong to the whole lens.

        Raises:
            InputError: always.
        """
        raise InputError(f"an edit of {self.path} alone would act in no trace of the lens; use `with lens.edit()`")

    def of_all_rows(self, mask: Tensor, given: Tensor) -> Tensor:
        """A mask over an invoke's part of an activation as one over all of it; elsewhere as it is."""
        group = self._group()
        if group is None or not hasattr(mask, "expand"):
            return mask
        whole = given.new_zeros(given.shape, dtype=mask.dtype)
        place = self._rows.own(whole, group)
        place.copy_(mask.expand(place.shape))
        return whole

    def own_positions(self, positions: Tensor) -> Tensor:
        """The positions of an invoke's tokens, of those of all rows."""
        group = self._group()
        return positions if group is None else positions[group[0] : sum(group), : self._rows.longest(group)]

    def own_slots(self, slots: KeySlots) -> KeySlots:
        """The slots of an invoke's rows, of those of all rows."""
        group = self._group()
        return slots if group is None else slots.select(torch.arange(group[0], sum(group)))

    def _group(self) -> list[int] | None:
        """First row and number of rows of the invoke whose block runs now; None where it sees all rows."""
        mediator: Any = Mediator.current(self.path)
        return mediator.batch_group if self._rows is not None and self._rows.batching else None

    @property
    def _rows(self) -> Any:
        return self.interleaver.batcher


class Root(Place, NNsight):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The handle of the whole network: what ``lens.nnsight`` gives, and ``lens.edit()`` an edited copy of."""

    _batcher_class = RowBatcher
    lens: TraceFront
    interleaver: ThreadInterleaver  # pyright: ignore[reportIncompatibleVariableOverride]

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return inputs[0].size if inputs else 0

    def _batch(self, invokes: list[Any], fn: Any) -> Any:
        return (together([inputs[0] for inputs, _ in invokes], self.lens.pad_token),), {}

    def take_in(self) -> None:
        """Serve points that were spliced in for the length of a block, too."""
        for name, point in tuple(self.lens.network.points.items()):
            if point.envoy is None:
                path: Any = f"{ROOT}.{name}"
                point.envoy = Place(point, path, self.interleaver)

    def interleave(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """As nnsight's, with what the run needs standing ready."""
        with fn.ready():
            return super().interleave(fn, *args, **kwargs)

    def trace(self, tokens: TokensLike | None = None, **words: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As ``lens.trace``, with the edits that this handle holds."""
        return self.lens.trace(tokens, **words).through(self)

    def scan(self, tokens: TokensLike | None = None, **words: Any) -> Any:
        """As ``lens.scan``, with the edits that this handle holds."""
        return self.trace(tokens, scan=True, **words)

    def session(self, backend: Any = None, tracer_cls: Any = None) -> Any:
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
    root = _wrapped(lens, lens.network, ThreadInterleaver(weakref.WeakValueDictionary()))
    root.take_in()
    return root


def _wrapped(lens: TraceFront, network: HookedNetwork, interleaver: ThreadInterleaver) -> Root:
    by_all: Any = Place
    root: Any = Root(network, interleaver=interleaver, envoys=by_all)
    object.__setattr__(root, "lens", lens)
    parts = dict(network.named_modules())
    for name, point in tuple(network.points.items()):
        if name in parts:  # what is spliced in for the length of a block is no part of the network
            point.envoy = root.get(name)
    return root


def _unplaced(network: HookedNetwork) -> list[str]:
    """Names of points that are no part of the network, but spliced in for the length of a block."""
    parts = dict(network.named_modules())
    return [name for name in network.points if name not in parts]


# What is run.


@dataclass(frozen=True)
class Plan:
    """What a trace is to run: what `TraceFront.trace` was given, under the same names.

    Raises:
        InputError: for a scan of a generation, and for edits that `admit` refuses.
    """

    max_new_tokens: int | None
    edits: Sequence[Edit]
    boundary: Boundary | None
    sampling: Sampling | None
    stop_at_eos: bool
    scan: bool

    def __post_init__(self) -> None:
        if self.scan and self.max_new_tokens is not None:
            raise InputError("a scan has no logits to choose tokens by; leave max_new_tokens or scan=True out")
        self.admit(self.edits)

    def admit(self, edits: Sequence[Edit]) -> None:
        """Refuse edits, of the trace or of an invoke, that would act in passes other than those they are meant for.

        Raises:
            InputError: naming the first that acts in a pass ahead, which a trace would count as one of its own; or
                that acts in one phase of a generation, where nobody said where the phases meet.
        """
        for edit in edits:
            if edit.ahead:
                raise InputError(
                    f"an edit of {edit.hook!r} acts in a pass ahead, which a trace would count as one of its own; give "
                    "edits that act ahead (those of top_k with scope 'model') to prefill, extend or generate"
                )
            if self.max_new_tokens is not None and self.boundary is None and edit.phase != "both":
                raise InputError(
                    f"an edit of {edit.hook!r} acts in {edit.phase} alone, and traces and generate begin decoding at "
                    'different tokens; give trace boundary="last_prompt_token", as generate has it, or '
                    '"first_new_token", as nnsight has it'
                )


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
            if spliced := _unplaced(self.network):
                raise InputError(
                    f"a scan uses no weights, and an autoencoder with weights of its own stands in the model "
                    f"({min(spliced)}); trace without scan=True, or leave the block of lens.splice(...) first"
                )
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
            plan.boundary or "first_new_token",
            stop_at_eos=plan.stop_at_eos,
            sampling=plan.sampling,
            tokenizer=self.lens.tokenizer,
            pad=self.lens.pad_token,
        )
