"""A lens as a torch module: cast, trained, saved and loaded like one.

A cast lens is compared, bit for bit, with one opened on a model that was cast before; what it held from before the
cast (a fingerprint, a state) would differ or be refused.
"""

import copy

import pytest
import torch
from models import FAMILIES, make, tokens
from torch.utils.data import Dataset
from transformer_lens.model_protocol import TrainableTransformerLensModel
from transformer_lens.tools.training import TrainConfig, train

import hybridlens as hl
from hybridlens.errors import InputError

IDS = tokens(2, 6)


@pytest.fixture
def lens():
    return hl.HybridLens(make("jamba", 4))


@torch.no_grad()
@pytest.mark.parametrize("family", [*FAMILIES, "mamba2", "kimi_linear"])
def test_a_cast_lens_is_one_of_a_cast_model(family):
    """Runs, caches, states and generation; there and back again in a wider type it is what it was."""
    model = make(family, 4)
    lens, plain = hl.HybridLens(copy.deepcopy(model)), hl.HybridLens(model)(IDS)
    held = lens.prefill(IDS).state
    assert torch.equal(lens(IDS), plain)
    assert lens.to(torch.bfloat16) is lens
    other = hl.HybridLens(model.to(torch.bfloat16))
    assert (lens.dtype, lens.cfg.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(lens(IDS), other(IDS))
    assert torch.equal(lens.run_with_cache(IDS)[1]["blocks.1.hook_resid_pre"], other(IDS, stop_at_layer=1))
    ours, theirs = (each.extend(each.prefill(IDS).state, IDS[:, :2]).logits for each in (lens, other))
    assert torch.equal(ours, theirs)
    assert torch.equal(lens.generate(IDS, 3).tokens, other.generate(IDS, 3).tokens)
    with pytest.raises(InputError, match="the state was made by other weights"):
        lens.extend(held, IDS)
    assert torch.equal(lens.float()(IDS), hl.HybridLens(model.float())(IDS))


@torch.no_grad()
@pytest.mark.parametrize("family", ["jamba", "qwen3_5", "kimi_linear"])
def test_in_float64(family):
    """It runs, experts too, and gives what the library gives, which rounds some to float32; back it is as it was."""
    lens = hl.HybridLens(make(family, 4))
    narrow, experts = lens(IDS), lens.hf_model.get_experts_implementation()
    wide = lens.double()(IDS)
    plain = lens.hf_model(IDS).logits
    assert wide.dtype == plain.dtype == torch.float64
    assert (wide - plain).abs().max() <= 64 * torch.finfo(torch.float32).eps * plain.abs().max()
    state = lens.prefill(IDS[:, :-2]).state
    assert torch.allclose(lens.extend(state, IDS[:, -2:]).logits, wide[:, -2:], rtol=1e-5, atol=1e-5)
    assert lens.generate(IDS, 3).tokens.shape == (len(IDS), 3)
    assert torch.equal(lens.float()(IDS), narrow)
    assert lens.hf_model.get_experts_implementation() == experts


def test_experts_of_a_model_given_in_float64():
    lens = hl.HybridLens(make("jamba", 4).double())
    with pytest.raises(InputError, match=r"float64.*call lens\.hf_model\.set_experts_implementation\('eager'\) first"):
        lens(IDS)
    lens.hf_model.set_experts_implementation("eager")
    assert lens(IDS).dtype == torch.float64


def test_the_ways_to_say_where(lens):
    for given in (("cpu",), (torch.device("cpu"), torch.float16), (torch.zeros(1).half(),)):
        lens.to(*given)
    assert (lens.dtype, lens.device.type) == (torch.float16, "cpu")
    assert lens.to(dtype=torch.float32, device="cpu").dtype == torch.float32
    assert [way().dtype for way in (lens.half, lens.bfloat16, lens.double, lens.float)] == [
        torch.float16, torch.bfloat16, torch.float64, torch.float32,
    ]  # fmt: skip
    assert lens.cpu() is lens
    for given, said in (
        ("nowhere", "device 'nowhere'"),
        (torch.int32, r"to\(torch.int32\) given, but weights have a dtype such as"),
        (torch.complex64, r"to\(torch.complex64\)"),
        (True, r"to\(True\) given, expected a device, a dtype, or both"),
        (3.5, r"to\(3.5\) given, expected a device, a dtype, or both"),
    ):
        with pytest.raises(InputError, match=said):
            lens.to(given)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="cuda"):
            lens.cuda()
    assert lens.dtype == torch.float32


class Counting(Dataset):
    """Rows that count up: what comes next can be learned."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return {"tokens": (torch.arange(8) + index) % 20 + 3}


def test_transformer_lens_trains_a_lens(lens):
    """Its own loop: the loss falls to less than half, of new runs too, and the Hugging Face model is what learned."""
    assert isinstance(lens, TrainableTransformerLensModel)
    batch = torch.stack([Counting()[i]["tokens"] for i in range(16)])
    with torch.no_grad():
        before = lens(batch, return_type="loss")
    config = TrainConfig(num_epochs=4, batch_size=4, lr=1e-2, device="cpu", print_every=None)
    assert train(lens, config, Counting()) is lens
    assert lens.training
    lens.eval()
    assert (lens.training, lens.hf_model.training) == (False, False)
    with torch.no_grad():
        after = lens(batch, return_type="loss")
        logits = lens.hf_model(batch).logits
    assert after < before / 2
    torch.testing.assert_close(lens.loss_fn(logits, batch), after, rtol=1e-4, atol=1e-4)


def test_dropout_is_refused_in_training(lens):
    lens.hf_model.config.attention_dropout = 0.1
    with pytest.raises(InputError, match=r"dropout \(attention_dropout = 0.1\), which a lens never applies"):
        lens.train()
    lens.hf_model.config.attention_dropout = 0.0
    lens.hf_model.extra = torch.nn.Dropout(0.2)
    with pytest.raises(InputError, match=r"dropout \(extra: 0.2\)"):
        lens.train()
    assert lens.eval() is lens
    assert not lens.training


@torch.no_grad()
def test_weights_are_the_models(lens):
    """Names, gradients and dictionaries; weights loaded into a lens are run, and those of another model refused."""
    assert [id(weight) for weight in lens.parameters()] == [id(weight) for weight in lens.hf_model.parameters()]
    assert dict(lens.named_parameters()).keys() == dict(lens.hf_model.named_parameters()).keys()
    assert len(list(lens.buffers())) == len(list(lens.named_buffers()))
    other = hl.HybridLens(make("jamba", 9))
    assert not torch.equal(lens(IDS), other(IDS))
    other.load_state_dict(lens.state_dict())
    assert torch.equal(lens(IDS), other(IDS))
    with pytest.raises(InputError, match="weights of another model given"):
        other.load_state_dict({"nothing": torch.zeros(2)})


def test_gradients_of_weights(lens):
    lens.requires_grad_(False)
    assert not any(weight.requires_grad for weight in lens.parameters())
    lens.requires_grad_()
    lens(IDS, "loss").backward()
    assert any(weight.grad is not None for weight in lens.parameters())
    lens.zero_grad()
    assert all(weight.grad is None for weight in lens.parameters())
