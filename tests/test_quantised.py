"""Layers whose weights are no plain matrix: right against the model itself, or refused by name.

Two kinds are made up here, after those that are in use: a layer of a class of its own that holds whole numbers
(bitsandbytes), and a plain layer whose weight is a tensor of a type of its own (torchao). The packages themselves run
where they are installed.
"""

from pathlib import Path

import pytest
import torch
from bounds import FORWARD, LAYER, close
from models import make, tokens
from torch import nn
from torch.nn import functional as F

import hybridlens as hl
from hybridlens.errors import CheckpointError, InputError

IDS = tokens(2, 6)
LINES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "attention_bias": False, "mlp_bias": False}


class Packed(nn.Module):
    """Whole numbers and a scale a row, as Linear8bitLt holds them; the input is rounded too where `rounds`."""

    def __init__(self, linear: nn.Linear, rounds: bool = False):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias, self.rounds = linear.bias, rounds

    def forward(self, x):
        if self.rounds:
            by = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
            x = (x / by).round() * by
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Whole(torch.Tensor):
    """Eight-bit numbers under a float's dtype; nothing but `linear` reads them, as in torchao."""

    @staticmethod
    def __new__(cls, packed, scale):
        return torch.Tensor._make_wrapper_subclass(cls, packed.shape, dtype=scale.dtype, device=packed.device)

    def __init__(self, packed, scale):
        self.packed, self.scale = packed, scale

    def __tensor_flatten__(self):
        return ["packed", "scale"], None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = (*args, None)[:3]
            return F.linear(x, weight.packed.to(x.dtype) * weight.scale, bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return Whole(args[0].packed, args[0].scale)
        raise NotImplementedError(f"Whole: {func}")


def subclassed(linear: nn.Linear) -> nn.Linear:
    packed = Packed(linear)
    linear.weight = nn.Parameter(Whole(packed.weight.data, packed.scale.data), requires_grad=False)
    return linear


KINDS = {"class": Packed, "tensor": subclassed, "rounding": lambda linear: Packed(linear, rounds=True)}


def quantised(family: str, kind: str):
    """A model whose linear maps in layers are all of a kind; dt_proj is left as it is, as the libraries do."""
    model = make(family)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and "layers" in name and "dt_proj" not in name:
            model.set_submodule(name, KINDS[kind](module))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["jamba", "recurrentgemma", "llama", "qwen3_5", "bamba"])
def test_logits_chunks_and_what_heads_write(family, kind):
    """A head's write was an error of torch; that of layers that round their input is refused by name."""
    model = quantised(family, kind)
    plain, lens = make(family), hl.HybridLens(model)
    with torch.no_grad():
        theirs = model(IDS).logits
        assert float((theirs - plain(IDS).logits).abs().max()) > 1e-3 * float(theirs.abs().max())
        steps = 4 * FORWARD if kind != "rounding" else 2**22  # a rounded input may fall to either side
        close(lens(IDS), theirs, steps)
        state = lens.prefill(IDS[:, :3]).state
        close(lens.extend(state, IDS[:, 3:]).logits[:, -1], theirs[:, -1], steps)
        layer = lens.cfg.attention_layers[0]
        result = f"blocks.{layer}.attn.hook_result"
        if kind == "rounding":
            with pytest.raises(InputError, match=r"is a Packed, which rounds what it reads.*edit hook_z"):
                lens.run_with_cache(IDS, result)
            return
        _, cache = lens.run_with_cache(IDS)
        bias = cache[f"blocks.{layer}.hook_attn_out"] - cache[result].sum(2)
        close(bias - bias[:1, :1], torch.zeros_like(bias), LAYER, scale=float(cache[result].abs().max()))
        same = lens.run_with_hooks(IDS, [(result, lambda x, hook: x * 1.0)])
        close(same, theirs, 4 * FORWARD)


@pytest.mark.parametrize("kind", ["class", "tensor"])
def test_weights_are_refused_and_gradients_flow(kind):
    model = quantised("jamba", kind)
    lens = hl.HybridLens(model)
    with pytest.raises(CheckpointError, match=r"unquantised|quantised"):
        _ = lens.blocks[1].attn.W_Q
    embed = model.get_input_embeddings().weight
    lens(IDS).logsumexp(-1).sum().backward()
    ours, embed.grad = embed.grad, None
    model(IDS).logits.logsumexp(-1).sum().backward()
    close(ours, embed.grad, 16 * FORWARD)


def test_states_belong_to_the_packed_weights():
    """Of a weight of a type of its own the numbers inside count."""
    lens = hl.HybridLens(quantised("jamba", "tensor"))
    with torch.no_grad():
        state = lens.prefill(IDS).state
        lens.hf_model.model.layers[1].self_attn.q_proj.weight.packed.add_(1)
        with pytest.raises(InputError, match="made by other weights"):
            lens.extend(state, IDS[:, :1])


def real(name: str):
    """A quantisation of a package, and whether its layers are linear in float32 on a CPU."""
    import transformers

    package = pytest.importorskip("bitsandbytes" if name.startswith("bits") else "torchao")
    if name == "bits 8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if name == "bits 4":
        return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    return transformers.TorchAoConfig(package.quantization.Int8WeightOnlyConfig())


@pytest.mark.parametrize("name", ["bits 8", "bits 4", "torchao 8"])
def test_a_folder_that_a_package_quantised(name, tmp_path: Path):
    """It opens as it was saved and runs as the library's; weights alone refuse it."""
    config, model = real(name), make("llama", **LINES)
    model.save_pretrained(tmp_path / "plain")
    theirs = type(model).from_pretrained(tmp_path / "plain", quantization_config=config, dtype=torch.float32).eval()
    theirs.save_pretrained(tmp_path / "packed")
    lens = hl.load(tmp_path / "packed", device="cpu")
    with torch.no_grad():
        close(lens(IDS), theirs(IDS).logits, FORWARD)
        if name == "torchao 8":
            _, cache = lens.run_with_cache(IDS)
            close(cache["result", 0].sum(2), cache["attn_out", 0], LAYER)
        else:
            with pytest.raises(InputError, match=r"o_proj is a Linear\dbit\w*, which rounds what it reads"):
                lens.run_with_cache(IDS, "blocks.0.attn.hook_result")
    with pytest.raises(CheckpointError, match="is quantised, so its stored numbers are not its weights"):
        hl.load_weights(tmp_path / "packed")
    with pytest.raises(CheckpointError, match="the model is quantised"):
        _ = lens.W_O
