"""The layers of Qwen3.5, with and without experts, under the names of the hook points.

They are Qwen3-Next's, but for the delta rule's projections: four, each flat. Nothing of hybridlens is used here.
"""

from hf_matrix_states import qwen3_next_layer


def qwen3_5_layer(got, model, layer):
    """Gated attention or the delta rule, and an MLP or experts with a shared one."""
    return qwen3_next_layer(got, model, layer, _flat)


def _flat(got, mixer, module):
    qkv, z, b, a = (got.outputs[f"{module}.in_proj_{name}"].double() for name in ("qkv", "z", "b", "a"))
    keys, values = mixer.num_k_heads * mixer.head_k_dim, mixer.num_v_heads * mixer.head_v_dim
    q, k, v = qkv[..., :keys], qkv[..., keys : 2 * keys], qkv[..., -values:]
    return tuple(t.unsqueeze(2) for t in (q, k, v, z, b, a))
