"""The hook-point namespace, family by family, written out a second time from the specification.

Nothing of hybridlens is used here: what a layer has, the axes of each name and every size are stated, so that a name
that goes missing, or moves to another axis, is noticed.
"""

ENDS = {"hook_resid_pre": "b p d", "hook_resid_post": "b p d"}
LN1 = {"ln1.hook_scale": "b p 1", "ln1.hook_normalized": "b p d"}
WITH_MLP = {
    "hook_resid_mid": "b p d", "ln2.hook_scale": "b p 1", "ln2.hook_normalized": "b p d", "hook_mlp_out": "b p d",
}  # fmt: skip
ATTENTION = {
    "attn.hook_q": "b p h e", "attn.hook_k": "b p g e", "attn.hook_v": "b p g e",
    "attn.hook_attn_scores": "b h p k", "attn.hook_pattern": "b h p k", "attn.hook_z": "b p h e",
    "attn.hook_result": "b p h d", "hook_attn_out": "b p d",
    "hook_mixer_out": "b p d",
}  # fmt: skip
ROTARY = {"attn.hook_rot_q": "b p h e", "attn.hook_rot_k": "b p g e"}
QK_NORM = {"attn.hook_q_normed": "b p h e", "attn.hook_k_normed": "b p g e"}
GATED = {"attn.hook_gate": "b p h e", "attn.hook_z_gated": "b p h e"}
DIAGONAL = {
    "ssm.hook_in": "b p c", "ssm.hook_conv": "b p c", "ssm.hook_gate": "b p c", "ssm.hook_y": "b p c",
    "ssm.hook_pattern": "b h p k", "hook_ssm_out": "b p d", "hook_mixer_out": "b p d",
}  # fmt: skip
RG_LRU = {
    "ssm.hook_input_gate": "b p c", "ssm.hook_recurrence_gate": "b p c", "ssm.hook_decay": "b p c",
    "ssm.hook_write": "b p c", "ssm.hook_state": "b p c",
}  # fmt: skip
MAMBA = {
    "ssm.hook_dt": "b p c", "ssm.hook_B": "b p n", "ssm.hook_C": "b p n", "ssm.hook_decay": "b p c n",
    "ssm.hook_write": "b p c n", "ssm.hook_state": "b p c n",
}  # fmt: skip
CONVOLUTION = DIAGONAL | {"ssm.hook_input_gate": "b p c", "ssm.hook_v": "b p c"}
MATRIX = {
    "ssm.hook_in": "b p wide", "ssm.hook_conv": "b p wide", "ssm.hook_v": "b p s u", "ssm.hook_k": "b p s m",
    "ssm.hook_q": "b p s m", "ssm.hook_decay": "b p s", "ssm.hook_write": "b p s u m", "ssm.hook_state": "b p s u m",
    "ssm.hook_y": "b p s u", "ssm.hook_gate": "b p c", "ssm.hook_normed": "b p c", "ssm.hook_result": "b p s d",
    "ssm.hook_pattern": "b s p k", "hook_ssm_out": "b p d", "hook_mixer_out": "b p d",
}  # fmt: skip
MAMBA2 = MATRIX | {"ssm.hook_dt": "b p s"}
LIGHTNING = {name: axes for name, axes in MATRIX.items() if name not in ("ssm.hook_in", "ssm.hook_conv")}
DELTA = MATRIX | {"ssm.hook_beta": "b p s", "ssm.hook_recall": "b p s u"}
DENSE = WITH_MLP | {"mlp.hook_pre": "b p f", "mlp.hook_pre_linear": "b p f", "mlp.hook_post": "b p f"}
NORMS_AFTER = {
    "ln1_post.hook_scale": "b p 1", "ln1_post.hook_normalized": "b p d", "ln2_post.hook_scale": "b p 1",
    "ln2_post.hook_normalized": "b p d",
}  # fmt: skip
MOE = WITH_MLP | {
    "mlp.hook_router_logits": "b p x", "mlp.hook_expert_weights": "b p r", "mlp.hook_expert_indices": "b p r",
}  # fmt: skip
SHARED = MOE | {"mlp.hook_shared_out": "b p d"}
MODEL = {
    "hook_embed": "b p d", "ln_final.hook_scale": "b p 1", "ln_final.hook_normalized": "b p d",
    "hook_logits": "b p v",
}  # fmt: skip


def alone(mlp: dict[str, str]) -> dict[str, str]:
    """What is left of an MLP's names where it is a layer's only branch."""
    return {name: axes for name, axes in mlp.items() if "ln2" not in name and name != "hook_resid_mid"}


GRIFFIN, FULL = DIAGONAL | RG_LRU | DENSE, ATTENTION | ROTARY | QK_NORM | GATED
NO_NORM_BEFORE = {"hook_mixer_in": "b p d", "hook_mlp_in": "b p d"}
"""Where branches read the stream as it is."""
OLMO = {name: axes for name, axes in (DENSE | NORMS_AFTER).items() if not name.startswith("ln2.")} | NO_NORM_BEFORE
KIMI = DELTA | {"ssm.hook_decay": "b p s m"}
LATENT = ATTENTION | {
    "attn.hook_kv_latent": "b p l", "attn.hook_k_shared": "b p y", "attn.hook_v": "b p g w", "attn.hook_z": "b p h w",
}  # fmt: skip
NO_LN1 = {("olmo_hybrid", 1)}
"""(family, layer) of layers whose mixers read the stream as it is."""
MAMBA_HEADS = MAMBA | {"ssm.hook_B": "b p s n", "ssm.hook_C": "b p s n"}
SHARED_BLOCK = {
    "ln_attn.hook_scale": "b p 1", "ln_attn.hook_normalized": "b p i", "ln_mlp.hook_scale": "b p 1",
    "ln_mlp.hook_normalized": "b p d", "mlp.hook_pre": "b p f", "mlp.hook_pre_linear": "b p f",
    "mlp.hook_post": "b p f", "hook_mlp_out": "b p d", "hook_shared_out": "b p d",
} | ATTENTION  # fmt: skip
LAYERS = {
    "recurrentgemma": [GRIFFIN, GRIFFIN, ATTENTION | ROTARY | DENSE, GRIFFIN],
    "jamba": [DIAGONAL | MAMBA | DENSE, ATTENTION | MOE, DIAGONAL | MAMBA | DENSE, DIAGONAL | MAMBA | MOE],
    "mamba2": [MAMBA2, MAMBA2],
    "llama": [ATTENTION | ROTARY | DENSE] * 2,
    "qwen3": [ATTENTION | ROTARY | QK_NORM | DENSE] * 3,
    "gemma2": [ATTENTION | ROTARY | DENSE | NORMS_AFTER] * 3,
    "gemma3": [ATTENTION | ROTARY | QK_NORM | DENSE | NORMS_AFTER] * 3,
    "falcon_h1": [ATTENTION | ROTARY | MAMBA2 | DENSE] * 2,
    "qwen3_next": [DELTA | DENSE, FULL | SHARED, DELTA | SHARED],
    "qwen3_5": [DELTA | DENSE, FULL | DENSE, DELTA | DENSE],
    "qwen3_5_moe": [DELTA | SHARED, FULL | SHARED, DELTA | SHARED],
    "mamba": [DIAGONAL | MAMBA] * 2,
    "falcon_mamba": [DIAGONAL | MAMBA] * 2,
    "bamba": [MAMBA2 | DENSE, ATTENTION | ROTARY | DENSE, MAMBA2 | DENSE],
    "nemotron_h": [MAMBA2, ATTENTION, alone(SHARED), {n: a for n, a in alone(DENSE).items() if "linear" not in n}],
    "granitemoehybrid": [MAMBA2 | SHARED, ATTENTION | SHARED, MAMBA2 | SHARED],
    "lfm2": [CONVOLUTION | DENSE, ATTENTION | ROTARY | QK_NORM | DENSE, CONVOLUTION | DENSE],
    "lfm2_moe": [CONVOLUTION | DENSE, ATTENTION | ROTARY | QK_NORM | MOE, CONVOLUTION | MOE],
    "kimi_linear": [KIMI | DENSE, LATENT | SHARED, KIMI | SHARED],
    "olmo_hybrid": [DELTA | DENSE, ATTENTION | ROTARY | QK_NORM | OLMO, DELTA | DENSE],
    "zamba": [DIAGONAL | MAMBA_HEADS, DIAGONAL | MAMBA_HEADS | SHARED_BLOCK] * 2,
    "zamba2": [MAMBA2, *[MAMBA2 | SHARED_BLOCK | ROTARY] * 3],
    "minimax": [LIGHTNING | MOE, ATTENTION | ROTARY | MOE, LIGHTNING | MOE],
}
"""What each layer of the small models of `models` has, besides the names of every layer."""
SIZES = {
    "recurrentgemma": {"h": 4, "g": 1, "e": 8, "c": 24, "f": 48},
    "jamba": {"h": 4, "g": 2, "e": 8, "c": 64, "n": 5, "f": 40, "x": 4, "r": 2},
    "llama": {"h": 4, "g": 2, "e": 8, "f": 40},
    "qwen3": {"h": 4, "g": 2, "e": 12, "f": 40},
    "gemma2": {"h": 4, "g": 2, "e": 12, "f": 40},
    "gemma3": {"h": 4, "g": 2, "e": 12, "f": 40},
    "mamba2": {"c": 64, "wide": 84, "s": 4, "u": 16, "m": 5},
    "falcon_h1": {"h": 4, "g": 2, "e": 8, "c": 24, "wide": 44, "s": 4, "u": 6, "m": 5, "f": 40},
    "qwen3_next": {"h": 4, "g": 2, "e": 16, "c": 20, "wide": 44, "s": 4, "u": 5, "m": 6, "f": 40, "x": 6, "r": 2},
    "qwen3_5": {"h": 4, "g": 2, "e": 24, "c": 20, "wide": 44, "s": 4, "u": 5, "m": 6, "f": 48},
    "qwen3_5_moe": {"h": 4, "g": 2, "e": 16, "c": 20, "wide": 44, "s": 4, "u": 5, "m": 6, "x": 6, "r": 2},
    "mamba": {"c": 64, "n": 5},
    "falcon_mamba": {"c": 48, "n": 5},
    "bamba": {"h": 4, "g": 2, "e": 8, "c": 32, "wide": 52, "s": 4, "u": 8, "m": 5, "f": 40},
    "nemotron_h": {"h": 4, "g": 2, "e": 12, "c": 24, "wide": 44, "s": 4, "u": 6, "m": 5, "f": 40, "x": 8, "r": 3},
    "granitemoehybrid": {"h": 4, "g": 2, "e": 8, "c": 64, "wide": 84, "s": 4, "u": 16, "m": 5, "x": 6, "r": 2},
    "lfm2": {"h": 4, "g": 2, "e": 8, "c": 32, "f": 48},
    "lfm2_moe": {"h": 4, "g": 2, "e": 8, "c": 32, "f": 40, "x": 6, "r": 2},
    "kimi_linear": {
        "h": 4,
        "g": 4,
        "e": 9,
        "w": 7,
        "l": 14,
        "y": 3,
        "c": 20,
        "wide": 60,
        "s": 4,
        "u": 5,
        "m": 5,
        "f": 40,
        "x": 6,
        "r": 2,
    },
    "olmo_hybrid": {"h": 4, "g": 2, "e": 8, "c": 20, "wide": 44, "s": 4, "u": 5, "m": 6, "f": 40},
    "zamba": {"h": 4, "g": 2, "e": 18, "c": 64, "n": 5, "s": 2, "f": 40, "i": 64},
    "zamba2": {"h": 4, "g": 4, "e": 16, "c": 64, "wide": 88, "s": 4, "u": 16, "m": 6, "f": 40, "i": 64},
    "minimax": {"h": 4, "g": 2, "e": 6, "c": 24, "s": 4, "u": 6, "m": 6, "x": 4, "r": 3},
}  # fmt: skip,
HIDDEN_GROUPS = {"recurrentgemma": 4, "zamba": 2} | dict.fromkeys(
    ("jamba", "mamba", "falcon_mamba", "lfm2", "lfm2_moe"), 1
)
"""Groups of channels in the hidden attention of a diagonal recurrence."""


def names_of(family: str, wide: str = "c") -> dict[str, str]:
    """The axes of every name of a family's small model; `wide` is the letter of the convolution's channels."""
    axes = dict(MODEL)
    for layer, extra in enumerate(LAYERS[family]):
        before = {} if (family, layer) in NO_LN1 else LN1
        axes |= {f"blocks.{layer}.{name}": letters for name, letters in (ENDS | before | extra).items()}
    return {name: letters.replace("wide", wide) for name, letters in axes.items()}


def shape_of(family: str, name: str, batch: int, new: int, keys: int) -> tuple[int, ...]:
    """The shape that a name's tensor must have.

    Args:
        family: whose small model.
        name: of the point.
        batch: rows.
        new: positions of the pass.
        keys: keys of attention, new ones included.
    """
    sizes = {"d": 32, "v": 53, "1": 1, "b": batch, "p": new} | SIZES[family]
    sizes["k"] = keys if ".attn." in name else new
    if name.endswith("ssm.hook_pattern") and family in HIDDEN_GROUPS:
        sizes["h"] = HIDDEN_GROUPS[family]
    return tuple(sizes[axis] for axis in names_of(family, "wide")[name].split())
