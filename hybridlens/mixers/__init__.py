"""Mixers of tokens: each owns its memory and says what it writes and reads.

Modules:
    rotary: rotary position embedding, at work and as numbers
    writing: writes by head, at no change of a bit
    linear: a recurrent mixer's linear maps, as circuits see them
    named: the weights of mixers under names
    any_length: the fused kernel where every step has a new number of keys
    attention: attention with every intermediate; the fused kernel where nobody looks
    latent_attention: attention whose keys and values are unfolded from one latent a token
    recurring: what all recurrent mixers do alike
    gated_norm: norm and gate between a matrix state's readout and the output projection
    matrix_state: what mixers with a matrix state a head do alike
    rg_lru: RG-LRU
    mamba: Mamba
    mamba_heads: Mamba in heads: Zamba
    mamba2: Mamba-2
    gated_delta: gated DeltaNet
    lightning: lightning attention, whose heads decay by fixed numbers
    short_conv: LFM2's gated short convolutions
"""
