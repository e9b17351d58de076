"""Mamba-2 and Qwen3-Next at real widths, a few layers of random weights in bfloat16, against the untouched model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from gpu.rows import Rows, timed
from gpu.speed import decoding, made, peak, precise
from hybridlens import HybridLens


def main(rows: Rows, argument: str) -> None:
    """Each family in turn, or those named."""
    wanted = argument.split(",") if argument else list(configs(rows.cuda))
    for name in wanted:
        kind, config = configs(rows.cuda)[name]
        with rows.check(name), torch.no_grad():
            one(rows, name, kind, config)
        if rows.cuda:
            torch.cuda.empty_cache()


def configs(cuda: bool) -> dict[str, tuple[type, Any]]:
    """Mamba-2 of 2.7B's width, Qwen3-Next-80B's layers with fewer experts, Falcon-H1-1.5B's width."""
    ends = {"vocab_size": 32000 if cuda else 500, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    mamba2: dict[str, Any] = {
        "hidden_size": 2560, "num_hidden_layers": 8, "num_heads": 80, "head_dim": 64, "state_size": 128, "n_groups": 1,
    }  # fmt: skip
    qwen: dict[str, Any] = {
        "hidden_size": 2048, "num_hidden_layers": 4, "num_experts": 32, "num_experts_per_tok": 10, "layer_types": kinds,
    }  # fmt: skip
    falcon: dict[str, Any] = {
        "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 2, "mamba_d_ssm": 3072, "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 256,
    }  # fmt: skip
    if not cuda:
        mamba2 |= {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "state_size": 16, "num_hidden_layers": 2}
        qwen |= {"hidden_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64,
                 "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
                 "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
        falcon |= {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "mamba_d_ssm": 64,
                   "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "num_hidden_layers": 2}  # fmt: skip
    return {
        "mamba2": (Mamba2ForCausalLM, Mamba2Config(**ends, **mamba2)),
        "qwen3_next": (Qwen3NextForCausalLM, Qwen3NextConfig(**ends, **qwen)),
        "falcon_h1": (FalconH1ForCausalLM, FalconH1Config(**ends, **falcon)),
    }


def one(rows: Rows, name: str, kind: type, config: Any) -> None:
    """Prefill and decoding of one model, and the untouched model's prefill."""
    model = made(rows.device, kind, config)
    lens = HybridLens(model)
    ids = torch.randint(4, config.vocab_size, (1, 2048 if rows.cuda else 96), device=rows.device)

    def ours() -> Tensor:
        return lens.prefill(ids, last_only=True).logits

    def theirs() -> Tensor:
        return model(ids, use_cache=True, logits_to_keep=1).logits[:, -1:]

    mine = timed(ours, rows.device)
    about = f"{mine * 1e3:.1f} ms, {peak(rows, ours)}"
    rows.add(f"{name}, {config.num_hidden_layers} layers: prefill of {ids.shape[1]} tokens", about)
    step = decoding(rows, lens, ids[:, :512], 32 if rows.cuda else 4, [])
    rows.add(f"{name}: a decode step", f"{step * 1e3:.2f} ms, {step / config.num_hidden_layers * 1e3:.2f} a layer")
    if rows.late(f"{name}: the untouched model", 8):
        return
    library = timed(theirs, rows.device, runs=1)
    rows.add(
        f"{name}: prefill, times faster than the untouched model", f"{library / mine:.2f} ({library * 1e3:.1f} ms)"
    )
    rows.add(f"{name}: the untouched model's prefill: memory", peak(rows, theirs))
    precise(rows, name, lens, ids[:, :256])
