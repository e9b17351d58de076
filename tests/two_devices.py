"""Models on two devices, and every analysis as a function of a lens: see test_two_devices.py.

A model's layers lie on two pretended devices in turn, beginning with the first; what leaves the last layer is moved for
the last norm, and again for the unembedding, and embeddings are not where the first layer is.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from autoencoders import make as autoencoder
from models import make

import hybridlens as hl
from analyses import kv_cache, probe, states, steering
from analyses.circuits import circuits
from analyses.heads import manipulation, sparsification
from analyses.heads.entropy import rank_heads
from analyses.heads.gathering import gather_scores
from analyses.heads.needle_heads import look
from analyses.heads.scores import head_scores
from analyses.heads.answering import Treated
from analyses.heads.treatment import Treatment
from analyses.patching.ablation import ablate
from analyses.patching.circuit_curves import circuit_curves
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.edges import edge_attribution
from analyses.patching.gradients import attribution_patch
from analyses.patching.metrics import KullbackLeibler, LogitDifference, LogProbability, Rank
from analyses.patching.paths import path_patch
from analyses.patching.running import activation_patch
from analyses.patching.writers import readers_of, writers_of
from analyses.states.looking import look as look_hidden
from analyses.stream import (
    feature_attribution,
    fit_tuned_lens,
    logit_lens,
    loss_recovered,
    norm_scaling_factor,
    top_tokens,
    tuned_lens,
)
from analyses.study.rankings.ability import filler_loss
from hybridlens.engine import Job, Sweep

ONE, OTHER = "mtia:0", "mtia:1"
IDS, THEIRS = [3, 4, 5, 6, 7, 8, 9], [3, 4, 20, 6, 7, 8, 9]
METRIC = LogitDifference(3, 7)


def places(lens: hl.HybridLens) -> dict[str, str]:
    """A device_map of a model that nobody moved yet."""
    model, n = lens.hf_model, lens.cfg.n_layers
    names = {id(module): name for name, module in model.named_modules()}
    found = {names[id(home)]: (ONE, OTHER)[layer % 2] for layer, home in enumerate(lens.network.homes)}
    last = found[names[id(lens.network.homes[-1])]]
    found[names[id(lens.network.ln_final.norm.module)]] = ONE if last == OTHER else OTHER
    found[names[id(model.get_input_embeddings())]] = OTHER
    head = names[id(model.get_output_embeddings())]
    found[head] = OTHER if lens.network.tied else last

    def rest(module: torch.nn.Module, above: str) -> None:
        for name, child in module.named_children():
            full = f"{above}{name}"
            if any(place.startswith(f"{full}.") for place in found):
                rest(child, f"{full}.")
            else:
                found.setdefault(full, ONE)

    rest(model, "")
    return found


def spread(lens: hl.HybridLens) -> hl.HybridLens:
    """The same model on both devices; to be called where these are."""
    from accelerate import dispatch_model

    return hl.HybridLens(dispatch_model(lens.hf_model, places(lens), force_hooks=True), lens.tokenizer)
