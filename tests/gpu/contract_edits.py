"""Edits on this device: as on the CPU, at every hook point; the same value written back; nnsight's trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpu.rows import Rows, off
from hybridlens import HybridLens
from hybridlens.recurrences.scan import use_kernels

if TYPE_CHECKING:
    from gpu.contract import Case


def change(x: Tensor, hook: Any) -> Tensor:
    """A value that differs everywhere."""
    if not x.is_floating_point():
        return (x + 1) % 4  # experts
    wave = 0.3 * torch.sin(torch.arange(x.numel(), device=x.device, dtype=torch.float32)).view(x.shape)
    return x * 1.5 + wave.to(x.dtype)


def edited(lens: HybridLens, ids: Tensor, phase: str, name: str) -> Tensor:
    """The logits with one point's value changed."""
    ids = ids.to(lens.device)
    with torch.no_grad():
        state = lens.prefill(ids[:, :-1]).state if phase == "decode" else None
        with lens.hooks([(name, change)]):
            return lens(ids) if state is None else lens.extend(state, ids[:, -1:]).logits


def edits(rows: Rows, case: Case) -> None:
    """The logits after an edit of each point, one at a time."""
    names = [name for name in case.here.hook_points if not name.endswith("ssm.hook_pattern")]
    for phase in ("prefill", "decode"):
        shares: dict[str, float] = {}
        for name in names:
            lenses = (case.here, case.truth, case.beside)
            got, exact, beside = (edited(lens, case.tokens, phase, name) for lens in lenses)
            if case.dtype == torch.float32:
                shares[name] = case.share(got, exact, beside)
            else:
                lost = off(edited(case.cpu, case.tokens, phase, name), exact)
                shares[name] = off(got, exact) / (3 * lost + 2.0**-6)
        worst = max(shares, key=lambda name: shares[name])
        what, about = f"{case.name} an edit of each point, {phase}", f"of {len(names)} {worst}"
        if case.dtype != torch.float32 and case.here.cfg.moe_layers:
            rows.add(what, f"{shares[worst]:.3g} ({about}); experts may differ")
        else:
            rows.most(what, shares[worst], 1.0, about)


def silent(rows: Rows, case: Case) -> None:
    """The value that was read written back, under the plain scans: not one bit changes."""
    ids = case.tokens.to(case.device)
    with torch.no_grad(), use_kernels("torch"):
        plain = case.here(ids)
        rows.judge(f"{case.name} the same call twice, bit for bit", torch.equal(case.here(ids), plain), "", "equal")
        moved = {}
        for name in case.here.hook_points:
            with case.here.hooks([(name, lambda x, hook: x.clone())]):
                got = case.here(ids)
            if not torch.equal(got, plain):
                moved[name] = off(got, plain)
    figure = f"{len(moved)} points change something: {dict(list(moved.items())[:2])}" if moved else "no point"
    rows.judge(f"{case.name} the same value back, bit for bit", not moved, figure, "no point")


def traced(rows: Rows, case: Case) -> None:
    """nnsight's trace reads what the cache holds."""
    ids, lens = case.tokens.to(case.device), case.here
    name = f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    with torch.no_grad(), use_kernels("torch"):
        cache = lens.run_with_cache(ids, [name])[1]
        with lens.trace(ids):
            value = lens.hook_dict[name].output.save()
    rows.judge(f"{case.name} a trace reads the cache's value", torch.equal(value, cache[name]), value.device, "equal")
