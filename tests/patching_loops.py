"""Patching by plain loops: one run of the whole model a patch, values copied entry by entry under a dense mask."""

import random
from functools import cache

import torch
from models import make_calm, make_smooth, tokens

import hybridlens as hl
from analyses.patching.metrics import LogitDifference
from analyses.patching.targets import Target
from analyses.patching.writers import Reader, readers_of

LENGTH = 19  # more than twice the window of the small RecurrentGemma
METRIC = LogitDifference(3, 7)


@cache
def small(family, dtype=torch.float32):
    return hl.HybridLens(make_calm(family, 3).to(dtype))


@cache
def smooth(family, dtype=torch.float32):
    return hl.HybridLens(make_smooth(family, 3).to(dtype))


def prompts(shared=5, length=LENGTH):
    """Two random prompts with a common beginning."""
    clean, corrupt = tokens(1, length, 1), tokens(1, length, 2)
    corrupt[:, :shared] = clean[:, :shared]
    return clean, corrupt


def followed(lens):
    """The readers of a model that paths and edges end at: none in a layer whose mixer a shared block feeds."""
    return [reader for reader in readers_of(lens) if reader.layer is None or not lens.cfg.layers[reader.layer].shared]


def whole_mixers(lens):
    """The whole inputs of attention layers, which are readers beside those of their heads."""
    return [Reader("mixer", layer) for layer in lens.cfg.attention_layers if not lens.cfg.layers[layer].shared]


def dense(index, size):
    """An index of a target as truth values over the whole axis."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(index) if isinstance(index, tuple) else index] = True
    return mask


def plain(lens, base, values, patch, metric=METRIC):
    """The metric under one patch: one run of the whole model, every hook point by itself."""

    def put(target):
        axes = lens.hook_points[target.hook].axes

        def fn(x, hook):
            mask = torch.ones(x.shape[1:], dtype=torch.bool)
            for axis, index in target.where.items():
                place = axes.index(axis) - 1
                mask &= dense(index, mask.shape[place]).view([-1 if i == place else 1 for i in range(mask.ndim)])
            x[0][mask] = values[target.hook][0][mask].to(x.dtype)
            return x

        return target.hook, fn

    with torch.no_grad():
        return metric(lens.run_with_hooks(base, [put(target) for target in patch]))[0].item()


def loop(lens, base, source, patches, metric=METRIC):
    """The metric under each patch, one plain run a patch."""
    names = sorted({target.hook for patch in patches for target in patch})
    with torch.no_grad():
        values = lens.run_with_cache(source, names)[1]
    return torch.tensor([plain(lens, base, values, patch, metric) for patch in patches], dtype=torch.float64)


def random_index(rng, size):
    kind = rng.choice(["int", "tuple", "slice"])
    if kind == "int":
        return rng.randrange(-size, size)
    if kind == "tuple":
        return tuple(rng.sample(range(size), rng.randint(1, min(4, size))))
    start = rng.randrange(size)
    return slice(start, rng.randint(start, size), rng.choice([None, 2]))


def random_patches(lens, n, seed=0, length=LENGTH):
    """Patches of no, one or two targets, at any points, with indices of all kinds on any of their axes."""
    rng = random.Random(seed)
    specs = [spec for spec in lens.hook_points.values() if not spec.read_only]
    patches = []
    for _ in range(n):
        targets = []
        for spec in rng.sample(specs, rng.choice([0, 1, 1, 1, 2])):
            sizes = {
                axis: length if size is None else size
                for axis, size in zip(spec.axes, spec.sizes, strict=True)
                if axis not in "b1"
            }
            chosen = rng.sample(sorted(sizes), rng.randint(0, len(sizes)))
            targets.append(Target(spec.name, {axis: random_index(rng, sizes[axis]) for axis in chosen}))
        patches.append(targets)
    return patches
