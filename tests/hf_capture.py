"""What the modules of an untouched Hugging Face model take in and give out, under the names of the hook points.

Nothing of hybridlens is used here.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as capped_attention_forward
from transformers.models.jamba.modeling_jamba import eager_attention_forward


class Capture:
    """Inputs and outputs of every module of a model in one forward pass, and attention's arguments.

    Attributes:
        inputs: the first input of each module, by its name.
        given: all of them.
        outputs: the first output of each.
        attention: queries, keys, values, mask, scale and pattern of each attention module.
        logits: of the model.
    """

    def __init__(self, model, tokens):
        self.inputs, self.given, self.outputs, self.attention = {}, {}, {}, {}
        names = {module: name for name, module in model.named_modules()}

        def attend(module, q, k, v, mask, scaling, **kwargs):
            cap = kwargs.get("softcap")
            if cap is None:
                out, pattern = eager_attention_forward(module, q, k, v, mask, scaling)
            else:
                out, pattern = capped_attention_forward(module, q, k, v, mask, scaling=scaling, softcap=cap)
            self.attention[names[module]] = (q, k, v, mask, scaling, pattern)
            return out, pattern

        AttentionInterface.register("hybridlens_test_capture", attend)
        AttentionMaskInterface.register("hybridlens_test_capture", eager_mask)
        before = model.config._attn_implementation
        model.set_attn_implementation("hybridlens_test_capture")
        handles = [module.register_forward_hook(self._keeper(name), with_kwargs=True) for module, name in names.items()]
        try:
            with torch.no_grad():
                self.logits = model(tokens, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
            model.set_attn_implementation(before)

    def _keeper(self, name):
        def keep(module, args, kwargs, output):
            given = args or tuple(kwargs.values())
            self.inputs[name], self.given[name] = given[0] if given else None, given
            whole = not isinstance(output, tuple) or name.endswith((".router", ".gate"))
            self.outputs[name] = output if whole else output[0]

        return keep


def norm(got, model, module, name):
    """Scale and normalised value of a norm of the stream."""
    x = got.inputs[module].float()
    norm = model.get_submodule(module)
    eps = getattr(norm, "eps", None) or norm.variance_epsilon
    weight = norm.weight if hasattr(norm, "variance_epsilon") else 1 + norm.weight
    return {
        f"{name}.hook_scale": torch.sqrt((x * x).mean(-1, keepdim=True) + eps),
        f"{name}.hook_normalized": got.outputs[module] / weight,
    }


def attention(got, model, module, block, rotary, multiplier=1.0, keys=1.0, cap=None, output="o_proj"):
    """Plain attention.

    Args:
        got: the capture.
        model: what was captured.
        module: the attention's name.
        block: the layer's name among hook points.
        rotary: whether queries and keys are turned.
        multiplier: of what is written.
        keys: of the keys.
        cap: of the scores; None for none.
        output: name of the projection to the stream.
    """
    q, k, v, mask, scaling, pattern = got.attention[module]
    heads, groups, width = q.shape[1], k.shape[1], q.shape[3]
    o_proj = model.get_submodule(f"{module}.{output}")
    shared, values = (t.repeat_interleave(heads // groups, dim=1) for t in (k, v))
    read = got.inputs[f"{module}.{output}"].unflatten(-1, (heads, width))
    scores = torch.stack([q[:, h] @ shared[:, h].transpose(1, 2) for h in range(heads)], 1) * scaling
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    forbidden = pattern.eq(0) & (mask < -1e30).expand_as(pattern)
    result = (
        torch.stack([read[:, :, h] @ o_proj.weight[:, h * width : (h + 1) * width].T for h in range(heads)], dim=2)
        * multiplier
    )
    out = {
        "attn.hook_q": got.outputs[f"{module}.q_proj"].unflatten(-1, (heads, -1))[..., :width],
        "attn.hook_k": got.outputs[f"{module}.k_proj"].unflatten(-1, (groups, width)) * keys,
        "attn.hook_v": got.outputs[f"{module}.v_proj"].unflatten(-1, (groups, width)),
        "attn.hook_attn_scores": scores.masked_fill(forbidden, float("-inf")),
        "attn.hook_pattern": pattern,
        "attn.hook_z": (pattern @ values).transpose(1, 2),
        "attn.hook_result": result,
        "hook_attn_out": got.outputs[f"{module}.{output}"] * multiplier,
        "hook_mixer_out": got.outputs[f"{module}.{output}"] * multiplier,
    }
    if rotary:
        out |= {"attn.hook_rot_q": q.transpose(1, 2), "attn.hook_rot_k": k.transpose(1, 2)}
    return {f"{block}.{name}": value for name, value in out.items()}


def dense_mlp(got, module, block, gate=1.0, names=("gate_proj", "up_proj", "down_proj")):
    """A gated MLP whose gate is multiplied by `gate`; `names` of its gate, up and down."""
    first, up, down = (f"{module}.{name}" for name in names)
    return {
        f"{block}.mlp.hook_pre": got.outputs[first] * gate,
        f"{block}.mlp.hook_pre_linear": got.outputs[up],
        f"{block}.mlp.hook_post": got.inputs[down],
    }


def residual(got, model, layer, norm1, norm2, mlp):
    """The stream of a layer with a mixer and an MLP, each behind a norm."""
    home, block = f"model.layers.{layer}", f"blocks.{layer}"
    out = {
        f"{block}.hook_resid_pre": got.inputs[home],
        f"{block}.hook_resid_mid": got.inputs[f"{home}.{norm2}"],
        f"{block}.hook_mlp_out": got.outputs[f"{home}.{mlp}"],
        f"{block}.hook_resid_post": got.outputs[home],
    }
    out |= norm(got, model, f"{home}.{norm1}", f"{block}.ln1")
    return out | norm(got, model, f"{home}.{norm2}", f"{block}.ln2")
