"""The kernels behind the scans: which is chosen, what its adapter does to the numbers, and what the override says.

No GPU is needed. The libraries are stood in for by functions that follow their documented conventions, with the
limits of the real ones; where triton is installed, `interpret_kernels.py` runs the real kernels in its interpreter.
"""

import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bounds import FORWARD, LAYER, close
from hypothesis import given
from hypothesis import strategies as st

from hybridlens.errors import InputError, UnknownNameError
from hybridlens.recurrences import diagonal, scan
from hybridlens.recurrences import mamba_scan as selective
from hybridlens.recurrences.kernels import choice as scan_kernels
from hybridlens.recurrences.kernels import libraries
from hybridlens.recurrences.kernels.choice import Case, Kernel, choose, use_kernels

FLOATS = frozenset({torch.float32})
ADAPTERS = ["accelerated_scan", "flash_linear_attention"]


def loop(decay, write, state, reverse=False):
    states = []
    order = range(decay.shape[1])
    for t in reversed(order) if reverse else order:
        state = decay[:, t] * state + write[:, t]
        states.append(state)
    return torch.stack(states[::-1] if reverse else states, 1)


def fake_accelerated_scan(forget, inputs):
    """[B, C, T], contiguous; zero before the first token."""
    B, C, T = forget.shape
    assert inputs.shape == (B, C, T)
    assert C <= 65535
    assert forget.is_contiguous()
    assert inputs.is_contiguous()
    forget, inputs = forget.transpose(1, 2), inputs.transpose(1, 2)
    return loop(forget, inputs, torch.zeros(B, C)).transpose(1, 2).contiguous()


def fake_hgrn(x, g, initial_state=None, output_final_state=False):
    """[B, T, D], contiguous; g is the logarithm of the decay."""
    assert x.is_contiguous()
    assert g.is_contiguous()
    assert initial_state.is_contiguous()
    return loop(g.exp(), x, initial_state), None


def fake_selective_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """[b, d, l], [b, n, l], one input dtype, float32 weights; no initial state, and y alone carries gradients."""
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == torch.float32
    assert u.shape == delta.shape
    assert B.shape == C.shape == (u.shape[0], A.shape[1], u.shape[2])
    dt, x, B, C = (t.float().transpose(1, 2) for t in (delta, u, B, C))
    y, _ = plain_selective(dt, A, B, C, x, torch.zeros(u.shape[0], *A.shape))
    return y.transpose(1, 2).to(u.dtype)


def plain_selective(dt, A, B, C, x, initial):
    states = loop(torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None], initial)
    return (states * C[:, :, None]).sum(-1), states[:, -1]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Stand-ins for all three libraries, and nothing remembered of what could be imported."""
    monkeypatch.setattr(scan_kernels, "_importable", {})
    for module, name, function in (
        ("accelerated_scan.scalar", "scan", fake_accelerated_scan),
        ("fla.ops.hgrn", "fused_recurrent_hgrn", fake_hgrn),
        ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", fake_selective_scan),
    ):
        fake = ModuleType(module)
        setattr(fake, name, function)
        monkeypatch.setitem(sys.modules, module, fake)


def pretend(monkeypatch, *names):
    """Only these packages are installed, and all of them can be imported."""
    monkeypatch.setattr(scan_kernels, "find_spec", lambda top: top if top in names else None)
    monkeypatch.setattr(scan_kernels, "import_module", lambda module: module)


ALL = ("hybridlens", "triton", "accelerated_scan", "fla", "mamba_ssm", "selective_scan_cuda")


@pytest.mark.parametrize(
    ("there", "linear", "selective"),
    [
        (ALL, "accelerated-scan", "mamba-ssm"),
        (("hybridlens", "triton", "fla", "mamba_ssm"), "flash-linear-attention", "triton"),
        (("hybridlens", "triton"), "triton", "triton"),
        (("hybridlens", "accelerated_scan", "fla"), None, None),
        (("hybridlens",), None, None),
    ],
)
def test_the_first_library_that_is_there_is_chosen(there, linear, selective, monkeypatch):
    """mamba_ssm without its compiled part, or a Triton library without triton, does not count as installed."""
    pretend(monkeypatch, *there)
    for operation, expected in (("linear", linear), ("selective", selective)):
        kernel = choose(Case(operation, "cuda", FLOATS, 8, 100))
        assert (kernel and kernel.name) == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "narrow"),
        ({"device": "cpu"}, None),
        ({"device": "mps"}, None),
        ({"dtypes": frozenset({torch.float64})}, None),
        ({"dtypes": frozenset({torch.float32, torch.bfloat16})}, "narrow"),
        ({"steps": 1}, None),
        ({"elements": 0}, None),
        ({"elements": 2**31}, "wide"),
        ({"states": 257}, "wide"),
        ({"operation": "selective"}, None),
    ],
)
def test_what_does_not_fit_is_passed_over(changed, expected, monkeypatch):
    """A made-up registry of a narrow kernel before a wide one; each case steps over one limit."""
    pretend(monkeypatch, "a", "b")
    narrow = Kernel("narrow", ("a",), linear=loop)
    monkeypatch.setattr(scan_kernels, "KERNELS", (
        narrow, narrow._replace(name="wide", modules=("b",), most_elements=2**40, most_states=999)))  # fmt: skip
    kernel = choose(Case("linear", "cuda", FLOATS, 8, 100)._replace(**changed))
    assert (kernel and kernel.name) == expected


def test_the_override_holds_for_its_block_and_its_thread_only(monkeypatch):
    """A global left behind, by an error too, would change every later run."""
    pretend(monkeypatch, *ALL)
    case = Case("linear", "cuda", FLOATS, 8, 100)
    with use_kernels("torch"):
        assert choose(case) is None
        with use_kernels("triton"):
            assert choose(case).name == "triton"
            assert choose(case._replace(device="cpu")) is None
            seen = []
            other = threading.Thread(target=lambda: seen.append(scan_kernels.wanted()))
            other.start()
            other.join()
            assert seen == ["auto"]
        assert choose(case) is None
    with pytest.raises(KeyError), use_kernels("torch"):
        raise KeyError
    assert choose(case).name == "accelerated-scan"
    with use_kernels("mamba-ssm"):
        assert choose(case) is None, "a kernel asked for by name gives way to the plain code only"


def test_a_kernel_that_cannot_be_had_says_so_in_one_line(monkeypatch):
    with pytest.raises(UnknownNameError, match=r"'trition'; there are auto, torch, .*close names: triton") as unknown:
        use_kernels("trition").__enter__()
    pretend(monkeypatch, "hybridlens", "triton", "mamba_ssm")
    with pytest.raises(InputError, match=r"'mamba-ssm' .* selective_scan_cuda is not installed; install") as missing:
        use_kernels("mamba-ssm").__enter__()
    assert "\n" not in f"{unknown.value}{missing.value}"
    assert scan_kernels.wanted() == "auto"


def test_a_library_that_breaks_on_import_is_left_out_with_one_warning(monkeypatch):
    """Asked for by name it raises; in a choice of our own it must not stop the run, nor warn at every layer."""
    pretend(monkeypatch, *ALL)

    def broken(module):
        if module == "accelerated_scan.scalar":
            raise OSError("undefined symbol")

    monkeypatch.setattr(scan_kernels, "import_module", broken)
    case = Case("linear", "cuda", FLOATS, 8, 100)
    with pytest.warns(RuntimeWarning, match="'accelerated-scan' is installed but cannot be imported") as caught:
        assert [choose(case).name for _ in range(3)] == ["flash-linear-attention"] * 3
    assert len(caught) == 1
    with use_kernels("accelerated-scan"), pytest.raises(InputError, match="undefined symbol"):
        choose(case)


def test_nothing_is_imported_before_it_is_chosen(tmp_path, monkeypatch):
    """Packages that say so when imported: looking whether they are there must not, choosing them must."""
    for name in ("triton", "accelerated_scan"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise OSError('{name} was imported')")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with use_kernels("accelerated-scan"):
        scan.linear_scan(torch.rand(1, 50, 4), torch.rand(1, 50, 4))
        with pytest.raises(InputError, match="triton was imported"):
            choose(Case("linear", "cuda", FLOATS, 8, 100))


def test_a_tensor_on_a_gpu_asks_for_a_kernel_and_one_on_a_cpu_never(monkeypatch):
    """Fake tensors have a device without there being one; a single token asks for none either."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    pretend(monkeypatch, *ALL)
    with FakeTensorMode():
        x = torch.empty(2, 9, 4, device="cuda", dtype=torch.bfloat16)
    assert scan.kernel_for("linear", x, x, steps=9).name == "accelerated-scan"
    assert scan.kernel_for("linear", x, steps=9, kernels="torch") is None
    monkeypatch.setattr(scan_kernels, "choose", None)  # calling it would fail
    assert scan.kernel_for("linear", x, steps=1) is None
    inputs = [torch.rand(2, 70, 4, requires_grad=True) for _ in range(2)]
    torch.autograd.grad(scan.linear_scan(*inputs).sum(), inputs)
    dt, B = torch.rand(2, 70, 4), torch.rand(2, 70, 3)
    selective.selective_scan(dt, -torch.rand(4, 3), B, B, dt)


def through(monkeypatch, **functions):
    """Let the scans on this CPU run through a kernel, and note the override that each call was under."""
    seen = []

    def chosen(operation, *tensors, steps, states=1, kernels=None):
        seen.append(kernels or scan_kernels.wanted())
        return Kernel("fake", (), **functions) if functions.get(operation) and steps > 1 else None

    monkeypatch.setattr(scan, "kernel_for", chosen)
    monkeypatch.setattr(selective, "kernel_for", chosen)
    return seen


@pytest.mark.parametrize("adapter", ADAPTERS)
@given(st.integers(1, 3), st.integers(2, 40), st.sampled_from([(), (1,), (3,), (3, 2)]), st.integers(0, 99))
def test_linear_adapters_are_the_loop(adapter, batch, length, extra, seed):
    """States and all three gradients, from either end, with decays that are 0, 1 and negative.

    Fails on a lost initial state, a wrong axis or sign, or a gradient through the logarithm of a decay of 0.
    """
    generator = torch.Generator().manual_seed(seed)
    decay = torch.rand(batch, length, *extra, generator=generator)
    decay = decay * torch.randint(-1, 2, decay.shape, generator=generator)
    decay[:, length // 2] = 1
    write = torch.randn(batch, length, *extra, generator=generator)
    initial = torch.randn(batch, *extra, generator=generator)
    inputs = [t.requires_grad_() for t in (decay, write, initial)]
    weight = torch.randn(batch, length, *extra, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        through(patch, linear=getattr(libraries, adapter))
        ours = scan.linear_scan(*inputs)
        got = torch.autograd.grad((ours * weight).sum(), inputs)
        back = scan.adjoint(decay.detach(), weight)
    truth = [t.detach().double().requires_grad_() for t in inputs]
    theirs = loop(*truth)
    want = torch.autograd.grad((theirs * weight).sum(), truth)
    for a, b in zip((ours, back, *got), (theirs, want[1], *want), strict=True):
        close(a, b.float(), FORWARD)


def test_a_backward_pass_runs_under_what_its_forward_pass_ran_under(monkeypatch):
    """On a GPU it runs in another thread, where a context variable has its default again."""
    seen = through(monkeypatch, linear=libraries.accelerated_scan)
    decay = torch.rand(1, 9, 2, requires_grad=True)
    with use_kernels("torch"):
        states = scan.linear_scan(decay, torch.randn(1, 9, 2))
        used = diagonal._Persist.apply(decay * 2, None, decay, decay, decay[:, 0])
    (states + used).sum().backward()
    assert set(seen) == {"torch"}
    assert len(seen) == 3


def selective_inputs(seed, length, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    dt, x = torch.rand(2, length, 3, generator=generator), torch.randn(2, length, 3, generator=generator)
    dt[:, length // 2] = 0  # padding
    B, C = torch.randn(2, 2, length, 4, generator=generator)
    A, initial = -8 * torch.rand(3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    return [dt.to(dtype), A, B.to(dtype), C.to(dtype), x.to(dtype), initial]


@given(st.integers(2, 30), st.integers(0, 99))
def test_the_mamba_adapter_is_the_loop(length, seed):
    """y, the last state and six gradients, those to the initial and from the last state as well.

    The library has neither: a wrong version loses the initial state, or everything that comes back from the last.
    """
    inputs = [t.requires_grad_() for t in selective_inputs(seed, length)]
    truth = [t.detach().double().requires_grad_() for t in inputs]
    with pytest.MonkeyPatch.context() as patch:
        through(patch, selective=libraries.mamba_ssm)
        got = selective.selective_scan(*inputs)
    want = plain_selective(*truth)
    weights = [torch.randn_like(t) for t in got]
    to_got, to_want = (
        torch.autograd.grad(sum((t * w).sum() for t, w in zip(out, weights, strict=True)), given)
        for out, given in ((got, inputs), (want, truth))
    )
    for a, b in zip((*got, *to_got), (*want, *to_want), strict=True):
        close(a, b.float(), FORWARD)


def test_the_mamba_adapter_without_gradients_or_an_initial_state(monkeypatch):
    inputs = selective_inputs(0, 12)
    through(monkeypatch, selective=libraries.mamba_ssm)
    got = selective.selective_scan(*inputs[:-1])
    assert not got.y.requires_grad
    for a, b in zip(got, plain_selective(*inputs[:-1], torch.zeros(2, 3, 4)), strict=True):
        close(a, b, LAYER)


def test_second_derivatives_are_refused_through_a_library(monkeypatch):
    """The library's own backward pass is a kernel too: differentiating it would give silent zeros."""
    through(monkeypatch, selective=libraries.mamba_ssm)
    inputs = [t.requires_grad_() for t in selective_inputs(0, 5)]
    (grad,) = torch.autograd.grad((selective.selective_scan(*inputs).y ** 2).sum(), inputs[4], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("seed", range(5))
def test_in_bfloat16_results_agree_to_a_thousandth(seed, monkeypatch):
    """‖ours − exact‖ ≤ 1e-3 ‖exact‖, exact being the float64 loop over the same bfloat16 inputs, rounded to y's dtype.

    One rounding to bfloat16 is 1.7e-3 in norm, so a version that rounds once too often fails.
    """
    inputs = selective_inputs(seed, 200, torch.bfloat16)
    through(monkeypatch, selective=libraries.mamba_ssm)
    got = selective.selective_scan(*inputs)
    assert got.y.dtype == torch.bfloat16
    assert got.final.dtype == torch.float32
    for a, b in zip(got, plain_selective(*(t.double() for t in inputs)), strict=True):
        b = b.to(a.dtype).double()
        assert float((a.double() - b).norm() / b.norm()) < 1e-3
    decay, write = torch.rand(2, 200, 6).bfloat16(), torch.randn(2, 200, 6).bfloat16()
    exact = loop(decay.double(), write.double(), torch.zeros(2, 6).double())
    for adapter in ADAPTERS:
        through(monkeypatch, linear=getattr(libraries, adapter))
        states = scan.linear_scan(decay.float(), write.float())  # the recurrence runs in float32 in every family
        assert float((states.double() - exact).norm() / exact.norm()) < 1e-3


def interpreted(*arguments, **environment):
    if find_spec("triton") is None:
        pytest.skip("triton is not installed; with it, its interpreter runs the real kernels on this CPU")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interpret_kernels.py")), *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_real_kernels_are_the_loop_in_tritons_interpreter():
    """Values and gradients of this project's kernels, and values of whichever library is installed."""
    off = interpreted(TRITON_INTERPRET="1")
    assert off.keys() >= {"triton linear", "triton selective"}
    for name, deviation in off.items():
        assert deviation < (1e-3 if "float16" in name else 1e-5), name


def test_the_real_kernels_compile_for_gpus():
    """A kernel that the compiler refuses, for either generation and dtype, gives no program."""
    sizes = interpreted("compile")
    assert len(sizes) == 12
    assert min(sizes.values()) > 0
