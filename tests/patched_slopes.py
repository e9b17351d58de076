"""Slopes of real patches by finite differences, for what gradients estimate."""

from functools import cache

import torch
from bounds import quotient
from models import ROWS, make_calm, make_smooth, tokens

import hybridlens as hl
from analyses.patching.metrics import LogitDifference
from analyses.patching.targets import Target

LENGTH = 17  # more than twice the window of the small RecurrentGemma
METRIC = LogitDifference(3, 7)


@cache
def small(family, dtype=torch.float32):
    return hl.HybridLens(make_calm(family, 3).to(dtype))


@cache
def smooth(family):
    return hl.HybridLens(make_smooth(family, 3))


def state_of(family):
    """The states of the second recurrent layer."""
    return f"blocks.{small(family).cfg.ssm_layers[1]}.ssm.hook_state"


def prompts(shared=4, length=LENGTH):
    """Two random prompts with a common beginning."""
    clean, corrupt = tokens(1, length, 1), tokens(1, length, 2)
    corrupt[:, :shared] = clean[:, :shared]
    return clean, corrupt


def dense(spec, targets, shape):
    """The entries of targets at one hook point as truth values."""
    union = torch.zeros(shape, dtype=torch.bool)
    for target in targets:
        mask = torch.ones(shape, dtype=torch.bool)
        for axis, index in target.where.items():
            place = spec.axes.index(axis) - 1
            chosen = torch.zeros(shape[place], dtype=torch.bool)
            chosen[list(index) if isinstance(index, tuple) else index] = True
            mask &= chosen.view([-1 if i == place else 1 for i in range(len(shape))])
        union |= mask
    return union


STENCIL = {-2.0: 1 / 12, -1.0: -8 / 12, 1.0: 8 / 12, 2.0: -1 / 12}


def near(family):
    """How far slopes go: a delta rule's unit vectors bend sooner."""
    return 0.001 if ROWS[family].bends else 0.005


def slope(lens, base, values, patch, metric=METRIC, h=0.005):
    """The derivative of the metric as the patch's entries set out for the other run's values; a row for each step."""
    by_hook = {}
    for target in patch:
        by_hook.setdefault(target.hook, []).append(target)

    def put(name, targets):
        def fn(x, hook):
            mask = dense(lens.hook_points[name], targets, x.shape[1:])
            way = torch.where(mask & (values[name][0] != x[0]), values[name][0] - x[0], 0.0)
            steps = h * torch.tensor(list(STENCIL)).view(-1, *[1] * (x.ndim - 1))
            return (x + steps * way).to(x.dtype)

        return name, fn

    with torch.no_grad():
        with lens.hooks([put(name, targets) for name, targets in by_hook.items()]):
            output = lens.network(base.expand(len(STENCIL), -1))
        value = metric.of(lens, output).double()
    return float(value @ torch.tensor(list(STENCIL.values())).double()) / h


def open_in(lens, prompt, h=0.005):
    """What `slope` leaves open: the rounding of logits, divided by the step."""
    with torch.no_grad():
        return quotient(float(lens(prompt).abs().max()), h)


def random_index(rng, size):
    kind = rng.choice(["int", "tuple", "slice"])
    if kind == "int":
        return rng.randrange(-size, size)
    if kind == "tuple":
        return tuple(rng.sample(range(size), rng.randint(1, min(5, size))))
    start = rng.randrange(size)
    return slice(start, rng.randint(start + 1, size), rng.choice([None, 2]))


def random_target(rng, spec, length=LENGTH):
    sizes = {a: length if n is None else n for a, n in zip(spec.axes, spec.sizes, strict=True) if a not in "b1"}
    chosen = rng.sample(sorted(sizes), rng.randint(0, len(sizes)))
    return Target(spec.name, {axis: random_index(rng, sizes[axis]) for axis in chosen})


def differentiable(lens):
    return [s for s in lens.hook_points.values() if not s.read_only and "expert_indices" not in s.name]


def hooks_on(lens):
    return sum(point.asked() for point in lens.hook_dict.values())


def untouched(lens):
    return hooks_on(lens) == 0 and all(weight.grad is None for weight in lens.hf_model.parameters())
