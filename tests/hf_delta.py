"""The delta rule, and what stands around it, by plain loops in float64: what the families that have it share.

Nothing of hybridlens is used here.
"""

import torch
import torch.nn.functional as F

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Between a float64 loop and the model's float32: a few hundred roundings of values around 1."""


def convolution(x, conv):
    """Of channels [b p c], by taps: the last one meets the token itself; SiLU after."""
    weight, taps = conv.weight[:, 0].double(), conv.weight.shape[-1]
    out = torch.zeros_like(x) if conv.bias is None else conv.bias.double().expand(x.shape).clone()
    for t in range(x.shape[1]):
        for back in range(min(taps, t + 1)):
            out[:, t] += x[:, t - back] * weight[:, taps - 1 - back]
    return F.silu(out)


def results(got, model, module, heads, multiplier=1.0):
    """What each head's part of the output projection's input becomes."""
    read = got.inputs[module].unflatten(-1, (heads, -1))
    weight = model.get_parameter(f"{module}.weight").unflatten(-1, (heads, -1))
    return torch.stack([read[:, :, h] @ weight[:, h].T for h in range(heads)], dim=2) * multiplier


def written_by_heads(got, model, module, heads, multiplier=1.0):
    """The last points of a recurrent mixer, from its output projection."""
    written = got.outputs[module] * multiplier
    return {
        "ssm.hook_normed": got.inputs[module], "ssm.hook_result": results(got, model, module, heads, multiplier),
        "hook_ssm_out": written, "hook_mixer_out": written,
    }  # fmt: skip


def delta_rule(inner, conv, keys, beta, decay, width):
    """Every point of a delta rule between its input projections and its norm.

    Args:
        inner: queries, keys and values one behind the other [b p c], float64.
        conv: the module of their convolution.
        keys: heads of queries and keys.
        beta: write strengths [b p s].
        decay: [b p s], or by address channel [b p s m].
        width: of a value.
    """
    conv = convolution(inner, conv)
    heads = beta.shape[-1]
    size = (inner.shape[-1] - heads * width) // (2 * keys)
    q, k, v = conv.split([keys * size, keys * size, heads * width], dim=-1)
    q, k = (t.unflatten(-1, (keys, size)) for t in (q, k))
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    q, k = (t.repeat_interleave(heads // keys, dim=2) for t in (q / size**0.5, k))
    v = v.unflatten(-1, (heads, width))
    kept = decay[..., None] if decay.ndim == 3 else decay
    state = torch.zeros(v.shape[0], heads, width, size, dtype=torch.float64)
    recalls, writes, states = [], [], []
    for t in range(v.shape[1]):
        state = kept[:, t, :, None] * state
        recalls.append((state * k[:, t, :, None]).sum(-1))
        writes.append((beta[:, t, :, None] * (v[:, t] - recalls[-1]))[..., None] * k[:, t, :, None])
        state = state + writes[-1]
        states.append(state)
    states = torch.stack(states, dim=1)
    y = (states * q[..., None, :]).sum(-1)
    pattern = torch.zeros(v.shape[0], heads, v.shape[1], v.shape[1], dtype=torch.float64)
    for j in range(v.shape[1]):
        held = beta[:, j, :, None] * k[:, j]  # what a unit of v_j leaves at each address
        for t in range(j, v.shape[1]):
            if t > j:
                held = kept[:, t] * held
                held = held - beta[:, t, :, None] * (held * k[:, t]).sum(-1, keepdim=True) * k[:, t]
            pattern[:, :, t, j] = (held * q[:, t]).sum(-1)
    torch.testing.assert_close(torch.einsum("bspk,bksu->bpsu", pattern, v), y, rtol=1e-9, atol=1e-9)
    return {
        "ssm.hook_in": inner, "ssm.hook_conv": conv, "ssm.hook_v": v, "ssm.hook_k": k, "ssm.hook_q": q,
        "ssm.hook_beta": beta, "ssm.hook_decay": decay, "ssm.hook_recall": torch.stack(recalls, dim=1),
        "ssm.hook_write": torch.stack(writes, dim=1), "ssm.hook_state": states, "ssm.hook_y": y,
        "ssm.hook_pattern": pattern,
    }  # fmt: skip
