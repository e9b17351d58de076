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


def opened(name, folder):
    """The configuration of a published model's text model, read from its file, and the family that it is of."""
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name].fields))
    config = read_config(str(folder))
    return config, family_for(config, name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(name, tmp_path):
    """Read as its file has it: the count is that of its card, and sizes and layers those that are stated apart."""
    published = PUBLISHED[name]
    config, family = opened(name, tmp_path)
    cfg, model = family.configure(config), meta_model(family, config, name)
    network = HookedNetwork(model, family, cfg)
    assert count(model) == pytest.approx(published.parameters, rel=0.01)
    assert cfg.layer_types == tuple(KIND[letter] for letter in published.layers)
    assert {field: getattr(cfg, field) for field in published.sizes} == published.sizes
    assert len(network.blocks) == len(published.layers)
    assert all(weight.device == torch.device("meta") for weight in model.parameters())


def test_each_family_has_a_published_configuration(tmp_path):
    """A family none of whose published configurations is looked at may refuse all of them."""
    assert {opened(name, tmp_path)[1].name for name in PUBLISHED} == {family.name for family in FAMILIES}
