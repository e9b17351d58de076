"""Whether a lens computes what the untouched model does: the logits of a text, and those of a decode step.

The untouched model is Hugging Face's own class, made of the same files beside the lens, on the CPU, in float32.

They may lie apart as far as rounding takes two ways to one number, and no further. Roundings of n operations have no
common sign and add up like √n (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis",
theorem 2.4): 4 · √n · eps(dtype) times the largest logit leaves a chance of 1e-13 a number. Behind a logit stand some
eight sums a layer (norm, projections, convolution, scan or softmax, gate, output), each over the model's width.

How it fails: a device that computes wrongly, or a library that has changed, is a result, not an error. What a broken
installation raises is one too, and is said in `Agreement.trouble`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from hybridlens import tiny
from hybridlens.display import Displayed, number
from hybridlens.doctor.private import private
from hybridlens.loading import load
from hybridlens.model import HybridLens
from hybridlens.weights.fit import quietly

SUMS = 8
"""Of a layer."""

TOKENS = 12
"""Of the text that is read; the last of them is the decode step's."""


@dataclass(frozen=True)
class Agreement(Displayed):
    """A lens beside the untouched model.

    Attributes:
        model: its name.
        device: of the lens.
        dtype: of the lens.
        logits: the largest difference of a logit, of all tokens read at once; NaN where one of them is no number.
        decode: the largest difference of a logit of the last token, read by itself after the others.
        allowed: what rounding explains.
        trouble: what was raised instead; empty where nothing was.
    """

    model: str
    device: str
    dtype: str
    logits: float
    decode: float
    allowed: float
    trouble: str = ""

    @property
    def agrees(self) -> bool:
        """Whether rounding explains both differences."""
        return not self.trouble and self.logits <= self.allowed and self.decode <= self.allowed

    def summary(self) -> str:
        """The verdict, and by how much."""
        where = f"{self.model} on {self.device}, {self.dtype}"
        if self.trouble:
            return f"{where}: fails, {self.trouble}"
        return (
            f"{where}: {'agrees' if self.agrees else 'DISAGREES'} with transformers' own model, logits within "
            f"{number(self.logits, 2)}, a decode step within {number(self.decode, 2)}; "
            f"rounding explains {number(self.allowed, 2)}"
        )


def compare(lens: HybridLens, untouched: transformers.PreTrainedModel, name: str = "the model") -> Agreement:
    """A lens beside a model of the same weights, on a text of random tokens.

    Args:
        lens: on any device.
        untouched: without a lens on it, of a class that hands its cache out, as most do (RecurrentGemma keeps it).
        name: what to call it.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(lens.cfg.d_vocab, (1, TOKENS), generator=generator)
    before, last = ids[:, :-1], ids[:, -1:]
    with torch.no_grad(), _in_full(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about its own names
        given = ids.to(untouched.device)
        whole: Tensor = untouched(given, use_cache=False).logits.double().cpu()
        cache = untouched(before.to(untouched.device), use_cache=True).past_key_values
        step: Tensor = untouched(last.to(untouched.device), past_key_values=cache, use_cache=True).logits
        ours = lens(ids).double().cpu()
        ours_step = lens.extend(lens.prefill(before).state, last).logits.double().cpu()
    steps = SUMS * lens.cfg.n_layers * lens.cfg.d_model
    allowed = 4 * math.sqrt(steps) * torch.finfo(lens.dtype).eps * float(whole.abs().max())
    apart, apart_step = _apart(ours, whole), _apart(ours_step, step.double().cpu())
    dtype = str(lens.dtype).removeprefix("torch.")
    return Agreement(name, str(lens.device), dtype, apart, apart_step, allowed)


def agreement(device: str, name: str = "tiny-jamba") -> Agreement:
    """The same of an embedded model, in float32.

    Args:
        device: for the lens.
        name: of the model.
    """
    try:
        with quietly():
            kind = getattr(transformers, tiny.info(name).architecture)
            untouched = kind.from_pretrained(tiny.path(name), dtype=torch.float32, use_safetensors=True).eval()
            lens = load(name, device=device)
        return compare(lens, untouched, name)
    except Exception as error:  # whatever a broken installation raises: to say it is what this is for
        said = private(f"{type(error).__name__}: {error}")
        return Agreement(name, device, "float32", math.nan, math.nan, math.nan, said)


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference; NaN where a number is none."""
    return float((one - other).abs().max())


@contextmanager
def _in_full() -> Generator[None]:
    """Products of float32 in float32: some GPUs are asked for fewer bits, which is no fault of theirs."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
