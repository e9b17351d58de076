"""One family's contract on this device: `hook-points.md`'s rules, with the untouched model and the CPU for truth.

In float32 a number may be as far from the CPU's as `bounds.bound` allows for a whole model, and eight times as far as
it goes when every weight moves by half a unit in its last place, as in `tests/test_contract.py`. In bfloat16 both sides
are set against the same weights in float32: ours may lose twice what the untouched model loses on the same device, and
one rounding. The figure is the worst share of what is allowed.

How it fails: with experts, a rounding can send a token elsewhere in bfloat16; where that has happened the row says so
and judges nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import models
import torch
from bounds import FORWARD, bound
from torch import Tensor

from gpu import contract_edits, contract_states
from gpu.rows import Rows, off
from hybridlens import HybridLens

LENGTH = 11
BF16 = torch.bfloat16


class Case:
    """A family's small random model on the CPU and on the device, in one dtype, and beside itself by rounding.

    Args:
        family: its name in `models`.
        device: where the other one goes.
        dtype: of both.
    """

    def __init__(self, family: str, device: str, dtype: torch.dtype) -> None:
        self.family, self.device, self.dtype = family, device, dtype
        rounded = models.make(family).to(dtype)
        self.truth = HybridLens(copy.deepcopy(rounded).float())
        self.beside = HybridLens(models.nudged(self.truth.hf_model))
        self.cpu, self.here = HybridLens(rounded), HybridLens(copy.deepcopy(rounded).to(device))
        self.tokens = models.tokens(2, LENGTH)
        self.name = f"{str(dtype).removeprefix('torch.')}"
        with torch.no_grad():
            self.exact = untouched(self.truth.hf_model, self.tokens)
            self.nudged = untouched(self.beside.hf_model, self.tokens)
            self.library = untouched(self.here.hf_model, self.tokens.to(device)).cpu()
        self.lost = off(self.library, self.exact)

    def share(self, got: Tensor, want: Tensor, beside: Tensor, steps: int = FORWARD) -> float:
        """How much of what is allowed in float32 is used up; infinite where one is finite and the other is not."""
        got, want, beside = (t.detach().cpu().double() for t in (got, want, beside))
        if got.shape != want.shape or not torch.equal(got.isfinite(), want.isfinite()):
            return float("inf")
        got, want, beside = (torch.where(want.isfinite(), t, 0.0) for t in (got, want, beside))
        allowed = bound(float(want.abs().max()), steps) + 8 * float((beside - want).abs().max())
        apart = float((got - want).abs().max())
        return apart / allowed if allowed > 0 else (0.0 if apart == 0 else float("inf"))

    def logits(
        self, rows: Rows, what: str, got: Tensor, exact: Tensor | None = None, near: Tensor | None = None
    ) -> None:
        """A row for logits: the share of what is allowed."""
        exact, near = self.exact if exact is None else exact, self.nudged if near is None else near
        if self.dtype == torch.float32:
            rows.most(f"{self.name} {what}", self.share(got, exact, near), 1.0, f"off by {off(got, exact):.1e}")
        else:
            lost = off(got, exact)
            about = f"off by {lost:.1e}, the untouched model by {self.lost:.1e}"
            rows.most(f"{self.name} {what}", lost / (2 * self.lost + 2.0**-8), 1.0, about)


def untouched(model: Any, ids: Tensor) -> Tensor:
    """The logits of the Hugging Face model, from nothing."""
    forget(model)
    return model(ids, use_cache=False).logits


def forget(model: Any) -> None:
    """Have RecurrentGemma's modules drop the states that they keep."""
    for module in model.modules():
        for name in ("conv1d_state", "recurrent_states"):
            if hasattr(module, name):
                setattr(module, name, None)


def main(rows: Rows, argument: str) -> None:
    """Both dtypes, the strict one first; cuDNN's TF32 is off but in one row that says what it costs."""
    torch.backends.cudnn.allow_tf32 = False
    for dtype in (torch.float32, BF16):
        name = str(dtype).removeprefix("torch.")
        with rows.check(f"{name} models"):
            case = Case(argument, rows.device, dtype)
            checks: Sequence[Callable[[Rows, Case], None]] = (
                forward, pieces, ragged, read, contract_states.states, generated, gradients,
                contract_edits.edits, contract_edits.silent, contract_edits.traced,
            )  # fmt: skip
            for check in checks:
                with rows.check(f"{name} {check.__name__}"):
                    check(rows, case)


def forward(rows: Rows, case: Case) -> None:
    """The whole prompt in one pass."""
    here = case.tokens.to(case.device)
    with torch.no_grad():
        got = case.here(here)
        rows.judge(
            f"{case.name} logits are on the device", got.device.type == case.device, got.device.type, case.device
        )
        case.logits(rows, "whole prompt", got)
        case.logits(rows, "whole prompt, the untouched model itself", case.library)
        if case.dtype == torch.float32 and rows.cuda:
            torch.backends.cudnn.allow_tf32 = True
            case.logits(rows, "whole prompt, cuDNN's defaults", case.here(here))
            torch.backends.cudnn.allow_tf32 = False


def pieces(rows: Rows, case: Case) -> None:
    """The prompt in chunks, and token by token."""
    here = case.tokens.to(case.device)
    for what, sizes in (("prefill in chunks of 4, 1, 6", (4, 1, 6)), ("prefill of 5, then steps", (5, *[1] * 6))):
        with torch.no_grad():
            state, first = case.here.prefill(here[:, : sizes[0]])
            parts, at = [first], sizes[0]
            for size in sizes[1:]:
                state, logits = case.here.extend(state, here[:, at : at + size])
                parts.append(logits)
                at += size
        case.logits(rows, what, torch.cat(parts, dim=1))


def ragged(rows: Rows, case: Case) -> None:
    """Rows of 11, 6 and 9 tokens together: each as the whole prompt has it."""
    lengths = [LENGTH, 6, 9]
    ids = case.tokens[[0, 1, 0]].to(case.device)
    with torch.no_grad():
        got = case.here.prefill(ids, lengths=lengths).logits
    whole = (0, 1, 0)
    real = torch.cat([got[row, :length] for row, length in enumerate(lengths)])
    exact, near = (
        torch.cat([t[r, :n] for r, n in zip(whole, lengths, strict=True)]) for t in (case.exact, case.nudged)
    )
    case.logits(rows, "ragged batch", real, exact, near)


def read(rows: Rows, case: Case) -> None:
    """Every hook point, in prefill and in a decode step, as on the CPU."""
    for phase in ("prefill", "decode"):
        lenses = (case.here, case.cpu, case.truth, case.beside)
        got, cpu, exact, beside = (everything(lens, case.tokens, phase) for lens in lenses)
        chosen = [name for name in got if "indices" in name]
        moved = [name for name in chosen if not torch.equal(got[name], exact[name])]
        shares = {
            name: case.share(got[name], exact[name], beside[name])
            if case.dtype == torch.float32
            else off(got[name], exact[name]) / (3 * off(cpu[name], exact[name]) + 2.0**-6)
            for name in got
            if name not in chosen
        }
        worst = max(shares, key=lambda name: shares[name])
        about = f"of {len(got)} points {worst}"
        if moved and case.dtype != torch.float32:
            rows.add(f"{case.name} every point, {phase}", f"{shares[worst]:.3g} ({about}); other experts at {moved[0]}")
        else:
            rows.most(f"{case.name} every point, {phase}", shares[worst], 1.0, about)
            rows.judge(f"{case.name} experts, {phase}", not moved, moved or "the same", "the same")


def everything(lens: HybridLens, ids: Tensor, phase: str) -> dict[str, Tensor]:
    """Every hook point's value, on the CPU."""
    kept: dict[str, Tensor] = {}
    keep = [(lambda name: True, lambda x, hook: kept.__setitem__(hook.name, x.detach().cpu().clone()))]
    ids = ids.to(lens.device)
    with torch.no_grad():
        state = lens.prefill(ids[:, :-1]).state if phase == "decode" else None
        with lens.hooks(keep):
            if state is None:
                lens(ids)
            else:
                lens.extend(state, ids[:, -1:])
    return kept


def gradients(rows: Rows, case: Case) -> None:
    """Of every weight, and at every hook point, as on the CPU in float32."""
    found = {}
    for name, lens in (("here", case.here), ("truth", case.truth), ("beside", case.beside), ("cpu", case.cpu)):
        at: dict[str, Tensor] = {}
        points = [n for n in lens.hook_points if not n.endswith(("ssm.hook_pattern", "expert_indices"))]
        back = [(points, lambda g, hook, at=at: at.__setitem__(hook.name, g.detach().cpu().clone()))]
        weight = torch.randn(2, LENGTH, models.VOCAB, generator=torch.Generator().manual_seed(2)).to(lens.device)
        with lens.hooks(bwd_hooks=back):
            (lens(case.tokens.to(lens.device)).float() * weight).sum().backward()
        at |= {n: w.grad.detach().cpu() for n, w in lens.hf_model.named_parameters() if w.grad is not None}
        lens.hf_model.zero_grad()
        found[name] = at
    got, exact = found["here"], found["truth"]
    infinite = [n for n in got if not bool(got[n].isfinite().all())]
    rows.judge(f"{case.name} gradients are finite", not infinite, infinite[:2] or f"{len(got)} tensors", "all")
    rows.judge(f"{case.name} gradients: those of the CPU", set(got) == set(exact), len(set(got) ^ set(exact)), 0)
    if case.dtype == torch.float32:
        shares = {n: case.share(got[n], exact[n], found["beside"][n], 3 * FORWARD) for n in got}
    else:
        shares = {n: off(got[n], exact[n]) / (3 * off(found["cpu"][n], exact[n]) + 2.0**-5) for n in got}
    worst = max(shares, key=lambda name: shares[name])
    if case.dtype == torch.float32 or not case.here.cfg.moe_layers:
        rows.most(f"{case.name} gradients", shares[worst], 1.0, worst)
    else:
        rows.add(f"{case.name} gradients", f"{shares[worst]:.3g} ({worst}); experts may differ")


def generated(rows: Rows, case: Case) -> None:
    """Greedy tokens of ours and of the untouched model, on the device, but for ties to the dtype's precision."""
    for row in range(2):
        ids = case.tokens[row : row + 1].to(case.device)
        model = case.here.hf_model
        forget(model)
        with torch.no_grad():
            mask = torch.ones_like(ids)
            out = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        forget(model)
        theirs = out[0, LENGTH:].tolist()
        ours = case.here.generate(ids, 12).tokens[0]
        ours = ours.tolist() if isinstance(ours, Tensor) else list(ours)
        first = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        what = f"{case.name} greedy text {row} is the untouched model's"
        if first is None:
            rows.judge(what, len(ours) == len(theirs), f"{len(ours)} and {len(theirs)} tokens", "equal")
            continue
        prefix = torch.cat([ids.cpu(), torch.tensor([theirs[:first]], dtype=torch.long)], dim=1)
        with torch.no_grad():
            logits = untouched(case.truth.hf_model, prefix)[0, -1]
        gap = float((logits[theirs[first]] - logits[ours[first]]).abs() / logits.norm()) * logits.numel() ** 0.5
        what = f"{what}, but for a tie at token {first}"
        if case.dtype != torch.float32 and case.here.cfg.moe_layers:
            rows.add(what, f"{gap:.3g} of a logit's size; experts may differ")
        else:
            rows.most(what, gap, 8 * case.lost + 1e-5, f"of a logit's size; {ours} and {theirs}")
