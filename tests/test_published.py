"""Published configurations, through the door that `hybridlens.load` takes, without memory for any weight."""

import json

import pytest
import torch
from published import PUBLISHED

from hybridlens.families import FAMILIES, family_for
from hybridlens.loading import read_config
from hybridlens.network import HookedNetwork
from hybridlens.weights.counting import count
from hybridlens.weights.fit import meta_model

KIND = {"A": "attention", "S": "ssm", "H": "hybrid", "M": "mlp"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(name, tmp_path):
    """Read as its file has it: the count is that of its card, and sizes and layers those that are stated apart."""
    model = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(model.fields))
    config = read_config(str(tmp_path))
    family = family_for(config, name)
    cfg = family.configure(config)
    made = meta_model(family, config, name)
    network = HookedNetwork(made, family, cfg)
    assert count(made) == pytest.approx(model.parameters, rel=0.01)
    assert cfg.layer_types == tuple(KIND[letter] for letter in model.layers)
    assert {field: getattr(cfg, field) for field in model.sizes} == model.sizes
    assert len(network.blocks) == len(model.layers)
    assert all(weight.device == torch.device("meta") for weight in made.parameters())


def test_each_family_has_a_published_configuration():
    """A family none of whose published configurations is looked at may refuse all of them."""
    classes = {family.architecture.removesuffix("ForCausalLM") + "Config" for family in FAMILIES}
    assert classes == {model.config for model in PUBLISHED.values()}
