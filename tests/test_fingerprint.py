"""Which weights a model has: every way of changing them that users have changes the fingerprint, and nothing else does.

A fingerprint is 64 bits of SHA-256 over values, so that a changed one stays the same by chance once in 2**64.
"""

import copy
import hashlib
from types import SimpleNamespace

import pytest
import torch
from models import FAMILIES, make, tokens
from torch import nn

import hybridlens as hl
from hybridlens.errors import CheckpointError
from hybridlens.fingerprint import Fingerprint, fingerprint


@pytest.fixture(params=FAMILIES)
def model(request):
    return make(request.param)


def scaled(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)


def one_norm(model):
    with torch.no_grad():
        next(weight for weight in model.parameters() if weight.ndim == 1)[3] += 1e-3


class Adapter(nn.Module):
    """What adapters do: the layer's place is taken by one that holds it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def adapted(model):
    name = next(name for name, _ in model.named_modules() if name.endswith("o_proj"))
    parent = model.get_submodule(name.rpartition(".")[0])
    parent.o_proj = Adapter(parent.o_proj)


def trained(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(tokens(1, 4)).logits.sum().backward()
    optimizer.step()


def there_and_back(model):
    model.half()
    model.float()


def narrowed(model):
    weight = model.get_input_embeddings().weight
    weight.data = weight.data[:-1]


def loaded(model):
    model.load_state_dict({name: weight * 2 for name, weight in model.state_dict().items()})


def swapped(model):
    layers = model.model.layers
    layers[2], layers[3] = layers[3], layers[2]


CHANGES = {
    "in place": scaled,
    "one entry of a norm": one_norm,
    "an adapter": adapted,
    "a training step": trained,
    "more tokens": lambda model: model.resize_token_embeddings(60),
    "another dtype": lambda model: model.to(torch.bfloat16),
    "another dtype and back": there_and_back,
    "fewer rows": narrowed,
    "load_state_dict": loaded,
    "another parameter": lambda model: setattr(
        model.get_output_embeddings(), "weight", nn.Parameter(model.get_output_embeddings().weight.detach() + 1)
    ),
    "layers in another order": swapped,
    "data given anew": lambda model: setattr(model.lm_head.weight, "data", model.lm_head.weight.data * 3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen(model, name):
    """By the kept form as well, which is asked before and after and agrees with one made anew."""
    kept = Fingerprint(model)
    before = kept.now()
    assert before == kept.now() == fingerprint(model)
    CHANGES[name](model)
    after = kept.now()
    assert after == fingerprint(model)
    assert after != before
    assert kept.now() == after


def test_running_changes_nothing(model):
    """Neither the lens nor the model itself, with or without gradients, nor a copy's edit."""
    kept = Fingerprint(model)
    before = kept.now()
    lens = hl.HybridLens(model)
    lens(tokens(2, 8)).sum().backward()
    lens.generate(tokens(1, 4), max_new_tokens=3)
    with torch.no_grad():
        model(tokens(2, 8))
    other = make("jamba" if "Jamba" in type(model).__name__ else "recurrentgemma")
    scaled(other)
    assert kept.now() == before == fingerprint(model)
    assert fingerprint(other) != before


def test_the_same_weights_have_the_same_fingerprint(model, tmp_path):
    """Made twice, copied, saved and loaded; 16 digits."""
    before = fingerprint(model)
    assert len(before) == 16
    assert int(before, 16) >= 0
    assert fingerprint(copy.deepcopy(model)) == before
    model.save_pretrained(tmp_path)
    assert fingerprint(hl.load(tmp_path).hf_model) == before


def test_nothing_is_read_again_while_nothing_changes(model, monkeypatch):
    """Only the first answer reads weights."""
    kept = Fingerprint(model)
    before = kept.now()
    reads: list[str] = []
    real = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda: (reads.append("read"), real())[1])
    assert kept.now() == before
    assert reads == []
    assert kept.now(fresh=True) == before
    assert reads == ["read"]


def test_a_buffer_counts_too():
    """RecurrentGemma scales its embedding by one."""
    model = make("recurrentgemma")
    kept = Fingerprint(model)
    before = kept.now()
    model.model.normalizer = model.model.normalizer * 2
    assert kept.now() == fingerprint(model) != before


def test_what_torch_does_not_count_is_seen_when_asked_anew(model):
    """Written through `.data` in place: the docstring says that the kept form has to be told."""
    kept = Fingerprint(model)
    before = kept.now()
    model.lm_head.weight.data.mul_(2)
    assert kept.now(fresh=True) == fingerprint(model) != before


def test_weights_that_are_away_count_by_name_and_shape(model):
    """On meta there is nothing to read."""
    away = copy.deepcopy(model).to("meta")
    assert Fingerprint(away).now() == fingerprint(away) != fingerprint(model)
    assert fingerprint(away) == fingerprint(copy.deepcopy(model).to("meta"))


def test_packed_weights_count_as_what_they_stand_for(model):
    """bitsandbytes keeps two four-bit weights in a byte, and the shape before packing beside them."""
    lens = hl.HybridLens(model)
    before = lens.n_parameters
    name = next(name for name, _ in model.named_modules() if name.endswith("o_proj"))
    layer = model.get_submodule(name)
    shape = layer.weight.shape
    packed = nn.Parameter(torch.zeros(shape.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=shape)
    layer.weight = packed
    assert lens.n_parameters == before
    del packed.quant_state
    with pytest.raises(CheckpointError, match=rf"{name}\.weight is packed as uint8 and does not say how many weights"):
        _ = lens.n_parameters
    layer.weight = nn.Parameter(torch.zeros(1))
    layer.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))
    with pytest.raises(CheckpointError, match=rf"{name}\.qweight is packed as int32"):
        _ = lens.n_parameters
