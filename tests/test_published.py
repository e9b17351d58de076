"""Published configurations, opened through the door of `hybridlens.load` and made without memory for their weights."""

import json

import pytest
import torch
from published import PUBLISHED

from hybridlens import HybridLens
from hybridlens.families import family_for
from hybridlens.loading import read_config
from hybridlens.weights.fit import meta_model


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(name, tmp_path):
    """Parameter counts, the kinds of layers, sizes, and the shape of every hook point in a real forward pass."""
    given = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(given.fields))
    config = read_config(str(tmp_path))
    assert type(config).__name__ == given.config
    family = family_for(config, name)
    cfg = family.configure(config)
    assert "".join(kind[0] for kind in cfg.layer_types) == given.layers
    assert {field: getattr(cfg, field) for field in given.sizes} == given.sizes
    config._experts_implementation = "batched_mm"  # the only one whose shapes do not depend on values
    lens = HybridLens(meta_model(family, config, name))
    counts = lens.n_parameters
    assert counts[0] == pytest.approx(given.parameters, rel=0.01)
    assert counts[2] == pytest.approx(given.active or counts[0], rel=0.01)
    shapes = {}
    with torch.no_grad(), torch.device("meta"):
        ids, keep = torch.zeros(2, 5, dtype=torch.long), lambda x, hook: shapes.__setitem__(hook.name, x.shape)
        lens.run_with_hooks(ids, [(list(lens.hook_points), keep)])
    assert list(shapes) == list(lens.hook_points)
    for point, spec in lens.hook_points.items():
        sizes = dict(zip(spec.axes, spec.sizes, strict=True)) | {"b": 2, "p": 5, "k": 5}
        assert tuple(shapes[point]) == tuple(sizes[axis] for axis in spec.axes), point
