"""The hook-point namespace and its rules, name by name, for every family and both phases.

The names, axes and sizes are written out a second time in `contract_names`, from the specification; values are
compared with `hf_reference`, which takes them from the untouched Hugging Face model. A family without a case fails.
"""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from bounds import FORWARD, apart, close, near, quotient
from contract_names import LAYERS, names_of, shape_of
from hf_reference import activations
from models import EVERY_FAMILY, WITH_RECURRENCE, make, nudged, rounding, tokens

from hybridlens import HybridLens, HybridLensError
from hybridlens.families import FAMILIES
from hybridlens.hooks import HookPoint, reads_only

BATCH, LENGTH = 2, 11  # longer than RecurrentGemma's window of 7
TOGETHER = 8  # points that are moved in one batch
READ_ONLY = "ssm.hook_pattern"
BOTH = pytest.mark.parametrize("phase", ["prefill", "decode"])
FAMILY = pytest.mark.parametrize("family", EVERY_FAMILY)
PLACES = [(family, place) for family in EVERY_FAMILY for place in ("model", *range(len(LAYERS[family])))]
PLACE = pytest.mark.parametrize(("family", "place"), PLACES)


def moved(x, hook, start, step, line):
    """A value with two copies of the batch moved along a line at its position: up in the first, down in the second."""
    x = x.clone()
    x[start : start + 2 * BATCH].select(line.axis, line.position).add_(
        step * torch.cat([line.direction, -line.direction])
    )
    return x


def names_at(family, place):
    """The names of a layer, or of the whole model."""
    start = f"blocks.{place}."
    return [name for name in names_of(family) if name.startswith(start if place != "model" else ("hook_", "ln_final"))]


class Line(NamedTuple):
    """A line through the value of a point at one position, and the loss's gradient there."""

    axis: int  # of positions
    position: int
    direction: torch.Tensor
    grad: torch.Tensor

    @property
    def slope(self):
        """The loss's, along the line."""
        return float((self.grad * self.direction).double().sum())


class Phase:
    """One forward pass of a family in one phase: how to run it, and the truth about it."""

    def __init__(self, family, phase):
        self.model = make(family)
        self.lens = HybridLens(self.model)
        self.tokens = tokens(BATCH, LENGTH)
        self.phase, self._alone, self._states = phase, {}, {}
        self.truth = activations(self.model, self.tokens)
        self.beside = activations(nudged(self.model), self.tokens)
        with torch.no_grad():
            state = self.lens.prefill(self.tokens[:, :-1]).state
        self.state = state if phase == "decode" else None
        self.new = self.tokens[:, -1:] if phase == "decode" else self.tokens

    def key_positions(self, name):
        """Where the keys of a point stand, in rows that are alike; a layer holds those that its window needs."""
        held = torch.zeros(0, dtype=torch.long)
        if self.state is not None and ".attn." in name:
            held = self.state.positions_in(int(name.split(".")[1]))[0]
        return torch.cat([held, torch.arange(LENGTH - self.new.shape[1], LENGTH)])

    def run(self, fwd=(), bwd=()):
        with self.lens.hooks(fwd, bwd):
            return self.lens.network(self.new, None, self.state)

    def read(self, names):
        kept = {}
        with torch.no_grad():
            out = self.run([(names, lambda x, hook: kept.__setitem__(hook.name, x.clone()))])
        return kept, out

    def alone(self, name):
        """What a hook reads that nobody else is beside and that writes the same value back, and what the run gives."""
        if name not in self._alone:
            kept = []
            with torch.no_grad():
                out = self.run([(name, lambda x, hook: (kept.append(x.clone()), x.clone())[1])])
            (value,) = kept
            self._alone[name] = value, out
        return self._alone[name]

    def measured(self, lines, weights, largest):
        """Of each name the loss's slope along its line, by a central difference, and the step, `largest` at most.

        Rows of a batch do not see each other, so that several names are moved at once, up and down, each in rows of
        its own. Where a step changes which experts are taken, a smaller one is made.
        """
        found, steps = {}, dict.fromkeys(lines, largest)
        with torch.no_grad():
            chosen = self._moved(self.new, self.state, [])[1]
        while left := [name for name in lines if name not in found][:TOGETHER]:
            copies = 2 * len(left)
            with torch.no_grad():
                state = None if self.state is None else self._state_of(copies)
                moves = [
                    (name, partial(moved, start=2 * BATCH * i, step=steps[name], line=lines[name]))
                    for i, name in enumerate(left)
                ]
                logits, experts = self._moved(self.new.repeat(copies, 1), state, moves)
            losses = (logits.double().unflatten(0, (len(left), 2, BATCH)) * weights).flatten(2).sum(-1).tolist()
            for i, name in enumerate(left):
                rows = slice(2 * BATCH * i, 2 * BATCH * (i + 1))
                if all(torch.equal(now[rows], then.repeat(2, 1, 1)) for now, then in zip(experts, chosen, strict=True)):
                    found[name] = (losses[i][0] - losses[i][1]) / (2 * steps[name]), steps[name]
                else:
                    steps[name] /= 4
                    assert steps[name] > 1e-5, f"{name}: experts change at every step"
        return found

    def _state_of(self, copies):
        """What the tokens before leave behind, in so many copies of the rows."""
        if copies not in self._states:
            self._states[copies] = self.lens.prefill(self.tokens[:, :-1].repeat(copies, 1)).state
        return self._states[copies]

    def _moved(self, ids, state, moves):
        experts = []
        watch = [
            (name, lambda x, hook: experts.append(x.clone())) for name in self.lens.hook_points if "indices" in name
        ]
        with self.lens.hooks([*moves, *watch]):
            return self.lens.network(ids, None, state).logits, experts

    def amplified(self, name):
        """How far the model itself takes the rounding of its weights to this point: no two ways agree better."""
        apart = (self.truth[name].double() - self.beside[name].double()).abs()
        return 8 * float(apart.nan_to_num(0.0).max())  # masked scores are infinite in both

    def expected(self, name, axes):
        """The truth at this phase's positions: all of them, or the last one with the keys held."""
        value = self.truth[name]
        if self.phase == "prefill":
            return value
        value = value.narrow(axes.split().index("p"), LENGTH - 1, 1)
        if "k" in axes.split():
            keys = self.key_positions(name)
            value = value.index_select(axes.split().index("k"), keys)
        return value


@pytest.fixture(scope="module")
def phases():
    made = {}

    def get(family, phase):
        if (family, phase) not in made:
            made[family, phase] = Phase(family, phase)
        return made[family, phase]

    return get


def test_every_family_has_a_case():
    """A row in `hybridlens.families` that no small model and no list of names stands for is not tested at all."""
    assert {family.name for family in FAMILIES} == set(EVERY_FAMILY) == set(LAYERS)


@FAMILY
def test_the_names_are_those_of_the_specification(family):
    lens = HybridLens(make(family))
    assert {name: " ".join(spec.axes) for name, spec in lens.hook_points.items()} == names_of(family)
    for name, spec in lens.hook_points.items():
        assert spec.layer == (int(name.split(".")[1]) if name.startswith("blocks") else None)
        shape = shape_of(family, name, BATCH, LENGTH, LENGTH)
        assert all(size in (None, given) for size, given in zip(spec.sizes, shape, strict=True)), name


LACKING = {
    "mamba2": ("attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "ln2.hook_scale"),
    "mamba": ("attn.hook_pattern", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "ssm.hook_k", "ssm.hook_normed"),
    "falcon_h1": ("attn.hook_gate", "attn.hook_q_normed", "mlp.hook_router_logits", "ssm.hook_beta"),
    "qwen3_next": ("attn.hook_q", "ssm.hook_dt", "mlp.hook_shared_out", "ln1_post.hook_scale"),
}


@pytest.mark.parametrize("family", LACKING)
def test_what_a_layer_lacks_has_no_name(family):
    lens = HybridLens(make(family))
    for suffix in LACKING[family]:
        with pytest.raises(HybridLensError, match=f"'blocks.0.{suffix}' does not exist") as caught:
            lens.run_with_cache(tokens(1, 4), f"blocks.0.{suffix}")
        assert "\n" not in str(caught.value)
    if not lens.cfg.attention_layers:
        with pytest.raises(HybridLensError, match=f"no layer of this {family} model has attention"):
            lens.cfg.need_attention("ranking heads")


@BOTH
@FAMILY
def test_names_fire_once_in_the_order_listed(phases, family, phase):
    case, fired = phases(family, phase), []
    with torch.no_grad():
        case.run([(lambda name: True, lambda x, hook: fired.append(hook.name))])
    assert fired == list(case.lens.hook_points)


@BOTH
@PLACE
def test_read_is_true(phases, family, place, phase):
    """Equal to the untouched model's value at every entry, so a wrong layer, order or scale cannot pass."""
    case = phases(family, phase)
    for name in names_at(family, place):
        value, _ = case.alone(name)
        assert value.shape == shape_of(family, name, BATCH, case.new.shape[1], len(case.key_positions(name))), name
        expected = case.expected(name, names_of(family)[name]).to(value.dtype)
        close(value, expected, FORWARD, extra=case.amplified(name), what=name)


@BOTH
@PLACE
def test_writing_the_same_value_back_changes_no_bit(phases, family, place, phase):
    case = phases(family, phase)
    with torch.no_grad():
        plain = case.run()
    before = plain.state.tensors()
    for name in names_at(family, place):
        _, hooked = case.alone(name)
        assert torch.equal(plain.logits, hooked.logits), name
        after = hooked.state.tensors()
        assert all(torch.equal(before[key], after[key]) for key in before), name


def change(x, hook):
    """A value that differs everywhere."""
    if not x.is_floating_point():
        return (x + 1) % 4  # experts
    return x * 1.5 + 0.3 * torch.sin(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape)


@BOTH
@PLACE
def test_edit_is_causal(phases, family, place, phase):
    """A new value changes the logits and what follows, and not one bit of what comes before."""
    case = phases(family, phase)
    order = list(case.lens.hook_points)
    before, plain = case.read(order)
    for name in names_at(family, place):
        so_far = order[: order.index(name) + 1]
        if name.endswith(READ_ONLY):
            continue
        after = {}
        with torch.no_grad():
            edited = case.run([(name, change), (so_far, lambda x, hook, a=after: a.__setitem__(hook.name, x.clone()))])
        assert apart(plain.logits, edited.logits), name
        for other in so_far[:-1]:
            assert torch.equal(before[other], after[other]), f"an edit of {name} reached back to {other}"
        close(after[name], change(before[name], None), what=name)


@BOTH
@pytest.mark.parametrize("family", WITH_RECURRENCE)
def test_hidden_attention_is_read_only(phases, family, phase):
    case = phases(family, phase)
    name = next(name for name in case.lens.hook_points if name.endswith(READ_ONLY))
    with pytest.raises(HybridLensError, match=r"ssm.hook_pattern.*read-only"):
        case.run([(name, lambda x, hook: x + 1)])
    assert not any(point.has_hooks() for point in case.lens.hook_dict.values())


@BOTH
@FAMILY
def test_gradients_reach_every_name(phases, family, phase):
    """Each backward hook sees the derivative of the loss: compared with a finite difference along a random line.

    Only one position is moved, since an edited state persists and so moving all positions at once would hide
    the effect of each on the later ones. Expert indices are integers and have no derivative; the loss jumps where a
    step changes them, so that such a step is made smaller. The difference of two losses carries the rounding of all
    logits, as the model amplifies it, and the step divides that.
    """
    case = phases(family, phase)
    weights = torch.randn(BATCH, case.new.shape[1], 53, generator=torch.Generator().manual_seed(2))
    noise = max(6e-5, rounding(case.model, case.tokens) * float(weights.norm()))
    grads = {}
    names = [n for n in case.lens.hook_points if not n.endswith((READ_ONLY, "expert_indices"))]
    with case.lens.hooks(bwd_hooks=[(names, lambda g, hook: grads.__setitem__(hook.name, g.clone()))]):
        terms = case.lens.network(case.new, None, case.state).logits * weights
        terms.sum().backward()
    case.model.zero_grad()
    lines = {}
    for name in names:
        axis, grad = case.lens.hook_points[name].axes.index("p"), grads[name]
        assert grad.abs().sum() > 0, name
        position = case.new.shape[1] // 2
        direction = torch.randn(grad.shape, generator=torch.Generator().manual_seed(1)).select(axis, position)
        lines[name] = Line(axis, position, direction, grad.select(axis, position).nan_to_num(0.0))

    def given(name, step):
        """The bound. Roundings of the terms are independent, so that of their sum is of the size of their norm.

        What a step takes a curve away from its tangent, with its square, is 0.03 of its slope at the most, or 0.003 of
        the steepest one where the line happens to run along the slope; else a smaller step is made.
        """
        rounded = max(noise / (2 * step), quotient(float(terms.detach().norm()), step))
        curved = max(0.03 * abs(lines[name].slope), 0.003 * float(lines[name].grad.norm()))
        return {"extra": rounded + curved, "dtype": torch.float32}

    found = case.measured(lines, weights, 2e-3)
    bent = [name for name, (slope, step) in found.items() if not near(slope, lines[name].slope, **given(name, step))]
    for name, (slope, step) in (found | case.measured({n: lines[n] for n in bent}, weights, 5e-4)).items():
        close(slope, lines[name].slope, **given(name, step), what=name)


@FAMILY
def test_what_is_kept_is_differentiated_as_what_passes(phases, family):
    """By a tensor that a hook kept the gradient is a backward hook's, bit for bit: that of the point alone.

    One tensor may stand at several points, and go on past others: OLMo-hybrid's stream enters its attention and is
    added to, Zamba2's embedding is read again later, and heads before a norm are taken out of a sum and put back.
    """
    case, kept, grads = phases(family, "prefill"), {}, {}
    weights = torch.randn(BATCH, LENGTH, 53, generator=torch.Generator().manual_seed(3))
    names = [n for n in case.lens.hook_points if not n.endswith((READ_ONLY, "expert_indices"))]
    keep = reads_only(lambda x, hook: kept.__setitem__(hook.name, x))
    with case.lens.hooks([(names, keep)], [(names, lambda g, hook: grads.__setitem__(hook.name, g.clone()))]):
        loss = (case.lens.network(case.new).logits * weights).sum()
        found = torch.autograd.grad(loss, list(kept.values()))
    for name, gradient in zip(kept, found, strict=True):
        assert torch.equal(gradient, grads[name]), name
        assert gradient.abs().sum() > 0, name


@FAMILY
def test_costly_points_are_computed_only_when_asked_for(family, monkeypatch):
    """With nothing hooked no scores, per-head results, per-token states or hidden attention come to exist."""
    lens, computed = HybridLens(make(family)), []

    def spy(real):
        return lambda point, x: (point.lazy and computed.append(point.name), real(point, x))[1]

    for way in ("__call__", "edited"):
        monkeypatch.setattr(HookPoint, way, spy(getattr(HookPoint, way)))
    lens(tokens(1, 9))
    lens.run_with_cache(tokens(1, 9), ["blocks.1.hook_resid_pre"])
    lens.generate(tokens(1, 9), 2)
    assert computed == []
    for name in [name for name, spec in lens.hook_points.items() if spec.lazy]:
        computed.clear()
        lens.run_with_cache(tokens(1, 9), [name])
        beside = {"attn.hook_pattern": "attn.hook_attn_scores", "attn.hook_attn_scores": "attn.hook_pattern"}
        part = name.split(".", 2)[2]
        if names_of(family).get(name.replace(part, "ssm.hook_decay")) == "b p c n":
            beside |= {"ssm.hook_decay": "ssm.hook_write", "ssm.hook_write": "ssm.hook_decay"}
        assert set(computed) <= {name, name.replace(part, beside.get(part, part))}
        assert name in computed
