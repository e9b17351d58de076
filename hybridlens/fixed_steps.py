"""Decode steps of fixed shapes: the first runs as it is, the second is recorded, and all others are that one again.

A step of a small batch is hundreds of small kernels, whose launches take longer than their work; a recorded one is sent
as a whole (`hybridlens.recorded`). It gives what the plain step gives but for rounding: attention runs over all slots
that there is room for, under a mask.

How it fails: hook functions are Python, which a recorded step does not run again. Only those marked `capturable` may
act; others, traces, models on several devices and weights that are away are refused with `InputError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor

from hybridlens.devices import sent
from hybridlens.effort import layer_done
from hybridlens.errors import InputError
from hybridlens.fixed_state import FixedPass, FixedState, unfixed
from hybridlens.hook_functions import capturing
from hybridlens.hooks import Edit, resolve
from hybridlens.network import HookedNetwork
from hybridlens.recorded import Work, record
from hybridlens.state import HybridState, Memories
from hybridlens.visits import reading

ROOM = 256
"""Steps that a state has room for; then the oldest keys are dropped where a window allows, and room is made anew."""

FEWEST = 4
"""Steps that are worth the recording, where nobody asked for it."""


Attaching: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Has hooks act for the length of a pass."""


class FixedSteps:
    """A batch's decode steps from a state.

    Args:
        network: the model, with the hooks that act.
        state: what was read; it is not changed.
        steps: how many there may be, at least one; at most `ROOM` are.
        masked: whether some rows may read no more in the end.
        asked: whether it was asked for: a step that cannot be recorded raises then, and else runs as it is.
        passes: what is attached in each pass of a step, the last of which counts; others are passes ahead.

    Raises:
        InputError: a step reads a value of a tensor.
    """

    def __init__(
        self,
        network: HookedNetwork,
        state: HybridState,
        steps: int,
        masked: bool,
        asked: bool = True,
        passes: Sequence[Attaching] = (nullcontext,),
    ) -> None:
        self.network, self.asked, self.passes = network, asked, passes
        self.device = state.lengths.device
        self.fixed = FixedState(state, min(steps, ROOM), masked)
        self.tokens = torch.zeros(state.batch, 1, dtype=torch.long, device=self.device)
        self._recordable = True
        self._again: Work | None = None

    @property
    def full(self) -> bool:
        """Whether there is no room for another."""
        return self.fixed.taken == self.fixed.steps

    @property
    def view(self) -> HybridState:
        """The state that the steps write to, for its sizes; use `state` for anything else."""
        return self.fixed.view

    def read(self, tokens: Tensor, alive: Sequence[bool] | None) -> Tensor:
        """The logits [b v] after one more token of each row; the next step overwrites them.

        Args:
            tokens: [b].
            alive: which rows read theirs; None for all. Only where `masked`.
        """
        self.tokens.copy_(sent(tokens, self.device)[:, None])
        if self.fixed.reading is not None:
            now = torch.ones_like(self.fixed.reading) if alive is None else torch.tensor(alive)
            self.fixed.reading.copy_(sent(now, self.device))
        if self.fixed.taken == 0:
            logits = self._first()
        elif self._again is not None:
            logits = self._again()
            layer_done(tokens.shape[0], 1)
        else:
            logits = self._recorded() if self._recordable else self._step()
        self.fixed.taken += 1
        return logits

    def _recorded(self) -> Tensor:
        """A step that is recorded; its writes come last, so that one which cannot be is done over from its start."""
        try:
            self._again = record(self._step, self.device)
        except InputError as error:
            if self.asked:
                raise
            self._recordable = False
            warnings.warn(f"steps run one by one: {error}", RuntimeWarning, stacklevel=2)
            return self._step()
        return self._again() if self.device.type == "cuda" else self._logits  # elsewhere it was done meanwhile

    def state(self) -> HybridState:
        """After all that was read; no step may follow."""
        return self.fixed.state()

    def _first(self) -> Tensor:
        """A step as it is; on a GPU on a stream of its own, as those want it that are recorded later."""
        if self.device.type != "cuda":
            return self._step()
        here, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            logits = self._step()
        here.wait_stream(side)
        logits.record_stream(here)
        return logits

    def _step(self) -> Tensor:
        with capturing(), torch.no_grad():
            for attaching in self.passes[:-1]:  # they write the keys that the last one writes again
                self._pass(attaching)
            logits, layers = self._pass(self.passes[-1])
            self.fixed.advance(layers)
        self._logits = logits[:, 0]
        return self._logits

    def _pass(self, attaching: Attaching) -> tuple[Tensor, list[Memories]]:
        run = FixedPass(self.fixed)
        with attaching(), reading(run.positions, None):
            return self.network.through(self.tokens, run, self.fixed.view)


def why_not(network: HookedNetwork, state: HybridState, edits: Sequence[Edit]) -> str | None:
    """Why decode steps from a state cannot be captured, in a line; None where they can.

    Args:
        network: the model, before the edits are attached.
        state: what was read.
        edits: those that are to act.
    """
    acting = [edit for edit in edits if edit.acts_in("decode")]
    python = [edit for edit in acting if not getattr(edit.fn, "capturable", False) or edit.rows]
    if python:
        return (
            f"an edit of {python[0].hook!r} is Python, which a captured step runs once; mark its function with "
            "hybridlens.hooks.capturable if it is made of tensor operations alone, without rows="
        )
    latent = _unfolded_in(network)
    held = next((name for edit in acting for name in resolve(edit.hook, network.points) if name in latent), None)
    if held is not None:
        return (
            f"a captured step makes keys and values of latents anew, past edits of {held!r}; edit hook_kv_latent there"
        )
    hooked = network.observed
    if hooked is not None:
        return f"a hook, or a trace, acts at '{hooked}'; leave it out, or give an edit that is capturable"
    devices = {device.type for device in state.devices}
    if len(state.devices) > 1 or devices == {"meta"}:
        return f"the model is on {', '.join(sorted(map(str, state.devices)))}, expected one device that holds numbers"
    if any("_hf_hook" in vars(module) for module in network.wrapped[0].modules()):
        return "accelerate brings weights in as they are called for; load the model on one device as a whole"
    if any(unfixed(memory) for held in state.layers for memory in held.values()):
        return "a hook has changed keys or values of latent attention, which are held beside the latents"
    if torch.is_grad_enabled() and any(t.requires_grad for t in state.tensors().values()):
        return "the state holds a graph of gradients; give state.detach()"
    return None


def _unfolded_in(network: HookedNetwork) -> set[str]:
    """The hook points of keys and values that latent attention makes of what it holds."""
    layers = (layer for layer, has in enumerate(network.cfg.layers) if has.attn is not None and has.attn.latent)
    return {f"blocks.{layer}.attn.{name}" for layer in layers for name in ("hook_k", "hook_v")}


def captured(
    wanted: bool | None, network: HookedNetwork, state: HybridState, edits: Sequence[Edit], steps: int, more: str | None
) -> bool:
    """Whether decode steps are to be captured.

    Args:
        wanted: what was asked for; None for whether it can be, on a GPU, and pays.
        network: the model.
        state: what was read.
        edits: those that are to act.
        steps: how many there may be.
        more: another reason why not.

    Raises:
        InputError: it was asked for and cannot be.
    """
    if wanted is False or (wanted is None and (state.lengths.device.type != "cuda" or steps < FEWEST)):
        return False
    problem = more or why_not(network, state, edits)
    if problem is not None and wanted:
        raise InputError(f"capture=True given, but {problem}")
    return problem is None
