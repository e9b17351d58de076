"""States on this device: saved and loaded, moved to the CPU and back, selected, repeated, split and joined."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gpu.rows import Rows, off
from hybridlens import HybridState

if TYPE_CHECKING:
    from gpu.contract import Case

READ = 7
"""Tokens read before the state is looked at."""


def states(rows: Rows, case: Case) -> None:
    """Going on from a state that has been somewhere gives what going on from it at once does."""
    here = case.tokens.to(case.device)
    with torch.no_grad():
        state = case.here.prefill(here[:, :READ]).state
        places = {t.device.type for t in state.tensors().values()}
        rows.judge(f"{case.name} a state is on the device", places == {case.device}, places, case.device)
        straight = case.here.extend(state, here[:, READ:]).logits
        with tempfile.TemporaryDirectory() as folder:
            state.save(Path(folder) / "state.safetensors")
            loaded = HybridState.load(Path(folder) / "state.safetensors")
        same = all(torch.equal(loaded.tensors()[name], value.cpu()) for name, value in state.tensors().items())
        rows.judge(f"{case.name} a state loaded is the one saved, bit for bit", same, loaded.lengths.device, "equal")
        ways = {
            "saved, loaded, moved": loaded.to(case.device),
            "moved to the CPU and back": state.to("cpu").to(case.device),
            "split and joined": HybridState.cat(state.split()),
            "repeated and selected": state.repeat(2).select([0, 2]),
            "cloned": state.clone(),
        }
        for what, moved in ways.items():
            got = case.here.extend(moved, here[:, READ:]).logits
            bits = "bit for bit" if torch.equal(got, straight) else f"off the direct way by {off(got, straight):.1e}"
            case.logits(rows, f"a state {what}: {bits}", got, case.exact[:, READ:], case.nudged[:, READ:])
        on_cpu = case.cpu.extend(state.to("cpu"), case.tokens[:, READ:]).logits
        case.logits(rows, "a state gone on with on the CPU", on_cpu, case.exact[:, READ:], case.nudged[:, READ:])
        made = case.cpu.prefill(case.tokens[:, :READ]).state.to(case.device)
        got = case.here.extend(made, here[:, READ:]).logits
        case.logits(rows, "a state from the CPU gone on with", got, case.exact[:, READ:], case.nudged[:, READ:])
