"""The hook-point namespace and its rules, name by name, for both families and both phases.

The names, axes and layers are written out here a second time, from the specification; values are compared
with `hf_reference`, which takes them from the untouched Hugging Face model.
"""

import pytest
import torch
from bounds import FORWARD, apart, close, quotient
from hf_reference import activations
from models import FAMILIES, make, tokens

from hybridlens import HybridLens, HybridLensError
from hybridlens.hooks import HookPoint

EVERY = {
    "hook_resid_pre": "b p d", "ln1.hook_scale": "b p 1", "ln1.hook_normalized": "b p d",
    "hook_mixer_out": "b p d", "hook_resid_mid": "b p d", "ln2.hook_scale": "b p 1",
    "ln2.hook_normalized": "b p d", "hook_mlp_out": "b p d", "hook_resid_post": "b p d",
}  # fmt: skip
ATTENTION = {
    "attn.hook_q": "b p h e", "attn.hook_k": "b p g e", "attn.hook_v": "b p g e",
    "attn.hook_attn_scores": "b h p k", "attn.hook_pattern": "b h p k", "attn.hook_z": "b p h e",
    "attn.hook_result": "b p h d", "hook_attn_out": "b p d",
}  # fmt: skip
ROTARY = {"attn.hook_rot_q": "b p h e", "attn.hook_rot_k": "b p g e"}
SSM = {
    "ssm.hook_in": "b p c", "ssm.hook_conv": "b p c", "ssm.hook_gate": "b p c", "ssm.hook_y": "b p c",
    "ssm.hook_pattern": "b h p k", "hook_ssm_out": "b p d",
}  # fmt: skip
RG_LRU = {
    "ssm.hook_input_gate": "b p c", "ssm.hook_recurrence_gate": "b p c", "ssm.hook_decay": "b p c",
    "ssm.hook_write": "b p c", "ssm.hook_state": "b p c",
}  # fmt: skip
MAMBA = {
    "ssm.hook_dt": "b p c", "ssm.hook_B": "b p n", "ssm.hook_C": "b p n", "ssm.hook_decay": "b p c n",
    "ssm.hook_write": "b p c n", "ssm.hook_state": "b p c n",
}  # fmt: skip
DENSE = {"mlp.hook_pre": "b p f", "mlp.hook_pre_linear": "b p f", "mlp.hook_post": "b p f"}
MOE = {"mlp.hook_router_logits": "b p x", "mlp.hook_expert_weights": "b p r", "mlp.hook_expert_indices": "b p r"}
MODEL = {
    "hook_embed": "b p d", "ln_final.hook_scale": "b p 1", "ln_final.hook_normalized": "b p d",
    "hook_logits": "b p v",
}  # fmt: skip
LAYERS = {
    "recurrentgemma": [SSM | RG_LRU | DENSE, SSM | RG_LRU | DENSE, ATTENTION | ROTARY | DENSE, SSM | RG_LRU | DENSE],
    "jamba": [SSM | MAMBA | DENSE, ATTENTION | MOE, SSM | MAMBA | DENSE, SSM | MAMBA | MOE],
}
SIZES = {
    "recurrentgemma": {"d": 32, "h": 4, "g": 1, "e": 8, "c": 24, "f": 48, "v": 53, "1": 1},
    "jamba": {"d": 32, "h": 4, "g": 2, "e": 8, "c": 64, "n": 5, "f": 40, "x": 4, "r": 2, "v": 53, "1": 1},
}
BATCH, LENGTH = 2, 11  # longer than RecurrentGemma's window of 7


def names_of(family):
    axes = dict(MODEL)
    for layer, extra in enumerate(LAYERS[family]):
        axes |= {f"blocks.{layer}.{name}": letters for name, letters in (EVERY | extra).items()}
    return axes


CASES = [(family, name) for family in FAMILIES for name in sorted(names_of(family))]
READ_ONLY = "ssm.hook_pattern"


class Phase:
    """One forward pass of a family in one phase: how to run it, and the truth about it."""

    def __init__(self, family, phase):
        self.model = make(family)
        self.lens = HybridLens(self.model)
        self.tokens = tokens(BATCH, LENGTH)
        self.phase = phase
        self.truth = activations(self.model, self.tokens)
        with torch.no_grad():
            state = self.lens.prefill(self.tokens[:, :-1]).state
        self.state = state if phase == "decode" else None
        self.new = self.tokens[:, -1:] if phase == "decode" else self.tokens
        held = state.key_positions if phase == "decode" else torch.zeros(BATCH, 0, dtype=torch.long)
        start = LENGTH - self.new.shape[1]
        self.key_positions = torch.cat([held, torch.arange(start, LENGTH).expand(BATCH, -1)], dim=1)

    def run(self, fwd=(), bwd=()):
        with self.lens.hooks(fwd, bwd):
            return self.lens.network(self.new, None, self.state)

    def read(self, names):
        kept = {}
        with torch.no_grad():
            out = self.run([(names, lambda x, hook: kept.__setitem__(hook.name, x.clone()))])
        return kept, out

    def expected(self, name, axes):
        """The truth at this phase's positions: all of them, or the last one with the keys held."""
        value = self.truth[name]
        if self.phase == "prefill":
            return value
        value = value.narrow(axes.split().index("p"), LENGTH - 1, 1)
        if "k" in axes.split():
            keys = self.key_positions[0] if "attn" in name else torch.tensor([LENGTH - 1])
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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_are_those_of_the_specification(family):
    lens = HybridLens(make(family))
    assert {name: " ".join(spec.axes) for name, spec in lens.hook_points.items()} == names_of(family)
    for name, spec in lens.hook_points.items():
        assert spec.layer == (int(name.split(".")[1]) if name.startswith("blocks") else None)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_fire_once_in_the_order_listed(phases, family, phase):
    case, fired = phases(family, phase), []
    with torch.no_grad():
        case.run([(lambda name: True, lambda x, hook: fired.append(hook.name))])
    assert fired == list(case.lens.hook_points)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_read_is_true(phases, family, name, phase):
    """Equal to the untouched model's value at every entry, so a wrong layer, order or scale cannot pass."""
    case, axes = phases(family, phase), names_of(family)[name]
    value = case.read([name])[0][name]
    sizes = SIZES[family] | {"b": BATCH, "p": case.new.shape[1]}
    sizes["k"] = case.key_positions.shape[1] if "attn" in name else case.new.shape[1]
    if name.endswith(READ_ONLY):
        sizes["h"] = 4 if family == "recurrentgemma" else 1
    assert value.shape == tuple(sizes[axis] for axis in axes.split())
    close(value, case.expected(name, axes), FORWARD)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_writing_the_same_value_back_changes_no_bit(phases, family, name, phase):
    case = phases(family, phase)
    with torch.no_grad():
        plain, hooked = case.run(), case.run([(name, lambda x, hook: x.clone())])
    assert torch.equal(plain.logits, hooked.logits)
    before, after = plain.state.tensors(), hooked.state.tensors()
    assert all(torch.equal(before[key], after[key]) for key in before)


def change(x, hook):
    """A value that differs everywhere."""
    if not x.is_floating_point():
        return (x + 1) % 4
    return x * 1.5 + 0.3 * torch.sin(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(("family", "name"), [case for case in CASES if not case[1].endswith(READ_ONLY)])
def test_edit_is_causal(phases, family, name, phase):
    """A new value changes the logits and what follows, and not one bit of what comes before."""
    case = phases(family, phase)
    order = list(case.lens.hook_points)
    before, plain = case.read(order)
    after = {}
    with torch.no_grad():
        edited = case.run([(name, change), (order, lambda x, hook: after.__setitem__(hook.name, x.clone()))])
    assert apart(plain.logits, edited.logits)
    for other in order[: order.index(name)]:
        assert torch.equal(before[other], after[other]), f"an edit of {name} reached back to {other}"
    wanted = change(before[name], None)
    close(after[name], wanted)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_attention_is_read_only(phases, family, phase):
    case = phases(family, phase)
    name = next(name for name in case.lens.hook_points if name.endswith(READ_ONLY))
    with pytest.raises(HybridLensError, match=r"ssm.hook_pattern.*read-only"):
        case.run([(name, lambda x, hook: x + 1)])
    assert not any(point.has_hooks() for point in case.lens.hook_dict.values())


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_name(phases, family, phase):
    """Each backward hook sees the derivative of the loss: compared with a finite difference along a random line.

    Only one position is moved, since an edited state persists and so moving all positions at once would hide
    the effect of each on the later ones. Expert indices are integers and have no derivative.
    """
    case = phases(family, phase)
    weights = torch.randn(BATCH, case.new.shape[1], 53)
    grads = {}
    names = [n for n in case.lens.hook_points if not n.endswith((READ_ONLY, "expert_indices"))]
    with case.lens.hooks(bwd_hooks=[(names, lambda g, hook: grads.__setitem__(hook.name, g.clone()))]):
        terms = case.lens.network(case.new, None, case.state).logits * weights
        terms.sum().backward()
    case.model.zero_grad()
    position = case.new.shape[1] // 2
    for name in names:
        axis = case.lens.hook_points[name].axes.index("p")

        def moved(step, name=name, axis=axis):
            def move(x, hook):
                direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
                only = torch.zeros_like(x)
                only.select(axis, position).copy_(direction.select(axis, position))
                return x + step * only

            with torch.no_grad():
                return float((case.run([(name, move)]).logits.double() * weights).sum())

        grad = grads[name]
        direction = torch.randn(grad.shape, generator=torch.Generator().manual_seed(1)).select(axis, position)
        slope = float((grad.select(axis, position) * direction).nan_to_num(0.0).double().sum())
        step = 2e-3
        measured = (moved(step) - moved(-step)) / (2 * step)
        assert grad.abs().sum() > 0, name
        # Roundings of the terms are independent, so that of their sum is of the size of their norm. What a step of this
        # size takes a curve away from its tangent is 0.03 of its slope at the most.
        rounding = quotient(float(terms.detach().norm()), step)
        close(measured, slope, extra=rounding + 0.03 * abs(slope), dtype=torch.float32, what=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_costly_points_are_computed_only_when_asked_for(family, monkeypatch):
    """With nothing hooked no scores, per-head results, per-token states or hidden attention come to exist."""
    lens, computed = HybridLens(make(family)), []
    real = HookPoint.__call__

    def spy(point, x):
        if point.lazy:
            computed.append(point.name)
        return real(point, x)

    monkeypatch.setattr(HookPoint, "__call__", spy)
    lens(tokens(1, 9))
    lens.run_with_cache(tokens(1, 9), ["blocks.1.hook_resid_pre"])
    lens.generate(tokens(1, 9), 2)
    assert computed == []
    pattern = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_pattern"
    lens.run_with_cache(tokens(1, 9), [pattern])
    assert pattern in computed
    assert all(".attn." in name and not name.endswith("hook_result") for name in computed)
