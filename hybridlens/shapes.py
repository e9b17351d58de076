"""The axis letters of the hook-point namespace, and the jaxtyping aliases built from them.

Every activation's axes are written once, as a string of letters (``"b h p k"``); `AXES` says what each
letter means and `HookPoint.sizes` gives its size at one point. Annotations use the long names, so
that a shape in a signature reads as it is spoken: ``Float[Tensor, "batch head query key"]``.

Nothing here checks a shape when the library is used: the tests do, by running with jaxtyping's
import hook, and so cost nothing at run time.
"""

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

AXES = {
    "b": "batch",
    "p": "pos",  # query positions of this call
    "k": "key",  # key slots held (attention) or tokens of this call (hidden attention)
    "d": "d_model",
    "i": "d_in",  # what a shared block's attention reads: the stream and the embedding
    "h": "head",  # query heads, or the channel blocks of a recurrent layer
    "g": "kv_head",
    "e": "d_head",
    "w": "d_value",  # of a head whose values are not as wide as its keys
    "l": "latent",  # what multi-head latent attention makes keys and values of
    "y": "shared_key",  # the part of its keys that all heads share
    "c": "channel",  # recurrent channels
    "n": "state",  # state size per channel (absent for RG-LRU)
    "s": "rec_head",  # recurrent (value) heads of a matrix state, or of channels that share B and C
    "u": "value",  # width of what one of them is written
    "m": "address",  # width of where it is written
    "f": "d_mlp",
    "x": "expert",
    "r": "chosen",  # experts used per token
    "v": "vocab",
    "a": "feature",  # of a sparse autoencoder that is spliced in
    "1": "one",
}

Tokens: TypeAlias = Int[Tensor, "batch pos"]
Positions: TypeAlias = Int[Tensor, "#batch pos"]
Lengths: TypeAlias = Int[Tensor, "batch"]
Valid: TypeAlias = Bool[Tensor, "batch pos"]
Resid: TypeAlias = Float[Tensor, "batch pos d_model"]
Logits: TypeAlias = Float[Tensor, "batch pos vocab"]
Queries: TypeAlias = Float[Tensor, "batch pos head d_head"]
Keys: TypeAlias = Float[Tensor, "batch pos kv_head d_head"]
HeldKeys: TypeAlias = Float[Tensor, "batch kv_head key d_head"]
HeldValues: TypeAlias = Float[Tensor, "batch kv_head key d_value"]
Mixed: TypeAlias = Float[Tensor, "batch pos head d_value"]
Pattern: TypeAlias = Float[Tensor, "batch head query key"]
AttentionMask: TypeAlias = Bool[Tensor, "#batch #head query key"]
KeptKeys: TypeAlias = Bool[Tensor, "batch kv_head key"]
KeyPositions: TypeAlias = Int[Tensor, "batch key"]
Channels: TypeAlias = Float[Tensor, "batch pos channel"]
States: TypeAlias = Float[Tensor, "batch pos channel *state"]
State: TypeAlias = Float[Tensor, "batch channel *state"]
ConvState: TypeAlias = Float[Tensor, "batch taps channel"]
