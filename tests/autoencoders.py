"""Sparse autoencoders for the tests: random ones of every architecture, and their files as SAELens writes them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from hybridlens.sae import SaeConfig, SparseAutoencoder

ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
D_SAE, K = 14, 4


def weights(architecture: str, d_in: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights, about half of the features active."""
    rng = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=rng)

    own = {"standard": ["b_enc"], "topk": ["b_enc"], "jumprelu": ["b_enc", "threshold"],
           "gated": ["b_gate", "b_mag", "r_mag"]}[architecture]  # fmt: skip
    made = {"W_enc": drawn(d_in, D_SAE) / d_in**0.5, "W_dec": drawn(D_SAE, d_in), "b_dec": 0.3 * drawn(d_in)}
    made |= {name: 0.3 * drawn(D_SAE) for name in own}
    if architecture == "jumprelu":
        made["threshold"] = made["threshold"].abs()
    return made


def make(d_in: int, architecture: str = "standard", seed: int = 0, **changes) -> SparseAutoencoder:
    """A random autoencoder."""
    k = K if architecture == "topk" else None
    cfg = SaeConfig(architecture, d_in, D_SAE, k=k, **changes)
    return SparseAutoencoder(cfg, weights(architecture, d_in, seed)).requires_grad_(False)


def axis_sae(axes: list[int], d_in: int) -> SparseAutoencoder:
    """A feature for each of some axes, which is what an activation has there above 0."""
    rows = torch.eye(d_in)[axes]
    cfg = SaeConfig("standard", d_in, len(axes), apply_b_dec_to_input=False)
    return SparseAutoencoder(
        cfg, {"W_enc": rows.T, "W_dec": rows, "b_enc": torch.zeros(len(axes)), "b_dec": torch.zeros(d_in)}
    )


def config(architecture: str, d_in: int, **changes) -> dict:
    """cfg.json as SAELens 6 writes it."""
    held = {
        "architecture": architecture, "d_in": d_in, "d_sae": D_SAE, "dtype": "float32", "device": "cuda",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"model_name": "some/model", "hook_name": "blocks.1.hook_resid_post", "hook_head_index": None,
                     "prepend_bos": True, "sae_lens_version": "6.5.0", "dataset_path": "some/texts"},
    }  # fmt: skip
    if architecture == "topk":
        held |= {"k": K, "rescale_acts_by_decoder_norm": False}
    return held | changes


def saved(folder: Path, cfg: dict, tensors: dict[str, torch.Tensor]) -> Path:
    """A folder as SAELens leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder
