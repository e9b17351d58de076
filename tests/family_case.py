"""A family's small model as the checks of `family_checks` see it, and how they compare."""

from functools import cached_property

import torch
from bounds import FORWARD, close
from hf_reference import activations
from models import make, nudged, tokens

from hybridlens import HybridLens

LENGTH = 11  # longer than RecurrentGemma's window of 7


class NotThere(Exception):
    """The family lacks what a check is about."""


class Case:
    """A family's small model, and what several checks need of it."""

    def __init__(self, family, **changes):
        self.family = family
        self.model = make(family, **changes)
        self.lens = HybridLens(self.model)
        self.ids = tokens(2, LENGTH)

    def untouched(self, ids, model=None):
        with torch.no_grad():
            return (model or self.model)(ids, use_cache=False).logits

    @cached_property
    def logits(self):
        return self.untouched(self.ids)

    @cached_property
    def other(self):
        """The model with every weight half a unit in its last place away: no two ways can be asked to agree better."""
        return nudged(self.model)

    @cached_property
    def extra(self):
        return 8 * float((self.untouched(self.ids, self.other) - self.logits).abs().max())

    @cached_property
    def truth(self):
        return activations(self.model, self.ids)

    @cached_property
    def beside(self):
        return activations(self.other, self.ids)

    def amplified(self, name):
        return 8 * float((self.truth[name].double() - self.beside[name].double()).abs().nan_to_num(0.0).max())

    def kept(self, names, hooks=(), ids=None, state=None):
        """What stands at hook points in a run, and the run."""
        seen = {}
        with torch.no_grad(), self.lens.hooks([*hooks, (names, lambda x, hook: seen.update({hook.name: x.clone()}))]):
            out = self.lens.network(self.ids if ids is None else ids, None, state)
        return seen, out

    @cached_property
    def run(self):
        """Everything of a prefill."""
        return self.kept(list(self.lens.hook_points))[0]

    def recurrent(self, point):
        """A recurrent layer that has a hook point."""
        layers = [i for i in self.lens.cfg.ssm_layers if f"blocks.{i}.ssm.{point}" in self.lens.hook_points]
        return _first(layers, f"no layer has ssm.{point}")

    @property
    def attending(self):
        return _first(self.lens.cfg.attention_layers, "no layer has attention")


def _first(layers, otherwise):
    if not layers:
        raise NotThere(otherwise)
    return layers[0]


def far(actual, expected, steps=FORWARD, extra=0.0, what=""):
    """The largest relative error; raises where rounding does not explain it."""
    close(actual, expected.to(actual.dtype), steps, extra=extra, what=what)
    ours, theirs = (x.detach().double()[expected.isfinite()] for x in (actual, expected))
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)) if ours.numel() else 0.0
