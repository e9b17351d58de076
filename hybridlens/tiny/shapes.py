"""The shapes of the tiny models: one configuration of a real Hugging Face class a name.

The zoo's shapes differ in what mixes tokens and in as little else as the classes allow: d_model 128, a vocabulary of
its own tokens with tied embedding, 1.0 to 1.2 million parameters (the MLP's width makes up for what a mixer takes), six
layers with attention in the third and the last where there are two kinds, eight heads of 16 over two key/value heads,
and 4,096 numbers of matrix state in each recurrent layer that has one.

How it fails: sizes are chosen so that a float32 checkpoint stays under 8 MB with a vocabulary of under 2,000 tokens,
which a test checks on the checked-in files.
"""

from typing import Any

from transformers import (
    FalconH1Config,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    PreTrainedConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    RecurrentGemmaConfig,
)

from hybridlens.tiny.tokenizer import BOS_ID, EOS_ID, PAD_ID

SPECIAL: dict[str, Any] = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}

WIDTH = 128
"""d_model of every tiny model."""

ATTENTION: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024}

COMMON: dict[str, Any] = {"hidden_size": WIDTH, "tie_word_embeddings": True, **SPECIAL}

IN_TURN = ["linear_attention", "linear_attention", "full_attention"] * 2
"""The layers of a hybrid of the zoo."""

ALONE = ["linear_attention"] * len(IN_TURN)
"""Those of a recurrence alone, in the hybrid's class: nothing but attention is gone. The library's cache counts tokens
in its attention layers and raises without any, so these say ``use_cache=False``; the lens keeps states of its own."""


def recurrent_gemma(vocab_size: int) -> PreTrainedConfig:
    """tiny-recurrentgemma: R R A R R A, 8 heads over one key/value head, window 256."""
    return RecurrentGemmaConfig(
        vocab_size=vocab_size,
        num_hidden_layers=6,
        hidden_size=WIDTH,
        intermediate_size=2 * 256,
        num_attention_heads=8,
        num_key_value_heads=1,
        lru_width=128,
        attention_window_size=256,
        conv1d_width=4,
        block_types=["recurrent", "recurrent", "attention"],
        **SPECIAL,
    )


def jamba(vocab_size: int) -> PreTrainedConfig:
    """tiny-jamba: attention at layers 2 and 6 of 8, four experts on odd layers."""
    return JambaConfig(
        vocab_size=vocab_size,
        num_hidden_layers=8,
        intermediate_size=128,
        attn_layer_period=4,
        attn_layer_offset=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_expand=2,
        **COMMON,
        **ATTENTION,
    )


def _granite(vocab_size: int, layers: list[str], mlp: int, **more: Any) -> PreTrainedConfig:
    """Mamba-2, 16 heads of 16 with 16 numbers of state for each, with or without rotary attention; no experts."""
    return GraniteMoeHybridConfig(
        vocab_size=vocab_size,
        num_hidden_layers=len(layers),
        layer_types=layers,
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=mlp,
        attention_multiplier=16**-0.5,
        position_embedding_type="rope",
        mamba_expand=2,
        mamba_n_heads=16,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_n_groups=1,
        mamba_chunk_size=64,
        **COMMON,
        **ATTENTION,
        **more,
    )


def granite(vocab_size: int) -> PreTrainedConfig:
    """tiny-granite: Mamba-2 in turn with attention."""
    return _granite(vocab_size, list(IN_TURN), 224)


def mamba2(vocab_size: int) -> PreTrainedConfig:
    """tiny-mamba2: Mamba-2 alone, in the hybrid's class."""
    return _granite(vocab_size, list(ALONE), 168, use_cache=False)


def _qwen3_5(vocab_size: int, layers: list[str], mlp: int, **more: Any) -> PreTrainedConfig:
    """Gated DeltaNet, 8 heads of 16 keys and 32 values, with or without gated attention."""
    return Qwen3_5TextConfig(
        vocab_size=vocab_size,
        num_hidden_layers=len(layers),
        layer_types=layers,
        intermediate_size=mlp,
        head_dim=16,
        linear_num_key_heads=8,
        linear_num_value_heads=8,
        linear_key_head_dim=16,
        linear_value_head_dim=32,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
        **COMMON,
        **ATTENTION,
        **more,
    )


def qwen3_5(vocab_size: int) -> PreTrainedConfig:
    """tiny-qwen3.5: gated DeltaNet in turn with gated attention."""
    return _qwen3_5(vocab_size, list(IN_TURN), 160)


def deltanet(vocab_size: int) -> PreTrainedConfig:
    """tiny-deltanet: gated DeltaNet alone, in the hybrid's class."""
    return _qwen3_5(vocab_size, list(ALONE), 96, use_cache=False)


def gated_attention(vocab_size: int) -> PreTrainedConfig:
    """tiny-gated-attention: gated attention alone, in the same class; no checkpoint of it is shipped.

    Others start from it: an attention model that is given recurrent layers (``--from``).
    """
    return _qwen3_5(vocab_size, ["full_attention"] * len(IN_TURN), 296)


def falcon_h1(vocab_size: int) -> PreTrainedConfig:
    """tiny-falcon-h1: Mamba-2 (8 heads of 16, 32 numbers of state each) beside attention in each of six layers."""
    return FalconH1Config(
        vocab_size=vocab_size,
        num_hidden_layers=6,
        intermediate_size=192,
        mamba_d_ssm=128,
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=32,
        mamba_n_groups=1,
        mamba_chunk_size=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        **COMMON,
        **ATTENTION,
    )


def lfm2(vocab_size: int) -> PreTrainedConfig:
    """tiny-lfm2: gated convolutions over three tokens in turn with attention."""
    return Lfm2Config(
        vocab_size=vocab_size,
        num_hidden_layers=len(IN_TURN),
        layer_types=["conv" if kind == "linear_attention" else kind for kind in IN_TURN],
        intermediate_size=288,
        block_auto_adjust_ff_dim=False,
        conv_L_cache=3,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        **COMMON,
        **ATTENTION,
    )


def qwen3(vocab_size: int) -> PreTrainedConfig:
    """tiny-qwen3: attention alone."""
    return Qwen3Config(
        vocab_size=vocab_size, num_hidden_layers=6, intermediate_size=336, head_dim=16, **COMMON, **ATTENTION
    )
