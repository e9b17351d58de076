"""Settings that every test shares: no network, fixed seeds, reproducible property tests.

This file must not import hybridlens or analyses: pytest loads it before jaxtyping's import hook is in
place, and a package imported that early would go through the tests with no annotation checked.
"""

import os
import random
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="disabled",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # small tensors: a second thread only waits for the first
)

import beartype  # noqa: F401  before nnsight, which puts `save` on every object, so that beartype cannot be imported
import jaxtyping
import pytest
from checked_once import once
from hypothesis import HealthCheck, settings
from markupsafe import Markup

jaxtyping.jaxtyped = once(jaxtyping.jaxtyped)

ASKED = os.environ.get("ATEN_CPU_CAPABILITY")
"""The instruction set that torch is to compute with; `make numerics` sets it."""


def pytest_configure() -> None:
    """Torch falls back on another set without a word where it does not know one, or the processor lacks it."""
    if ASKED:
        import torch

        used = torch.backends.cpu.get_cpu_capability()
        if used.lower() != ASKED.lower():
            raise pytest.UsageError(
                f"ATEN_CPU_CAPABILITY={ASKED} given, but torch computes with {used} on this processor; "
                f"name a set that it has, or leave the variable out"
            )


settings.register_profile(
    "hybridlens",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("hybridlens")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same seeds, so that it gives the same result alone and in any order."""
    random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)


@pytest.fixture(scope="module", params=["recurrentgemma", "jamba"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with its tokenizer, as a folder."""
    from random_lens import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def jamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of them."""
    from random_lens import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("models") / "one", "jamba")


@pytest.fixture
def small_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without three megabytes of other people's code."""
    monkeypatch.setattr("hybridlens.viz.bundles.plotly_bundle", lambda bundle: Markup("// plotly"))
    monkeypatch.setattr("hybridlens.viz.templating.circuitsvis_bundle", lambda: Markup("// the bundle of circuitsvis"))
