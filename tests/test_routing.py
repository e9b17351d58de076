"""How router logits become experts and weights, against the routers of transformers' own models."""

import copy
from functools import partial

import pytest
import torch
from bounds import FORWARD, close
from models import make, rounding, tokens
from torch import nn
from transformers import (
    GraniteMoeHybridConfig,
    KimiLinearConfig,
    Lfm2MoeConfig,
    NemotronHConfig,
    Qwen3NextConfig,
)
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridTopKRouter
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearTopkRouter
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeTopKRouter
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHTopkRouter
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextTopKRouter

from hybridlens import HybridLens
from hybridlens.projections import Projection
from hybridlens.routing import sigmoids, softmax_first, softmax_last

EXPERTS, CHOSEN, WIDTH = 12, 3, 16


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def routers():
    """(name, transformers' router as a function of the stream, the rule here, whether its logits are float32)."""
    sizes = {"hidden_size": WIDTH, "num_experts_per_tok": CHOSEN}
    grouped = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
    qwen = Qwen3NextTopKRouter(Qwen3NextConfig(num_experts=EXPERTS, norm_topk_prob=True, **sizes))
    granite = GraniteMoeHybridTopKRouter(GraniteMoeHybridConfig(num_local_experts=EXPERTS, mamba_n_heads=4, **sizes))
    kimi = KimiLinearTopkRouter(KimiLinearConfig(num_experts=EXPERTS, **sizes, **grouped))
    nemotron = NemotronHTopkRouter(NemotronHConfig(n_routed_experts=EXPERTS, **sizes, **grouped))
    lfm = Lfm2MoeTopKRouter(
        Lfm2MoeConfig(
            num_experts=EXPERTS,
            routed_scaling_factor=1.5,
            norm_topk_prob=True,
            use_expert_bias=True,
            num_hidden_layers=1,
            layer_types=["conv"],
            **sizes,
        )
    )
    balance = 0.3 * drawn(EXPERTS, seed=1)
    kimi.e_score_correction_bias.copy_(balance)
    nemotron.e_score_correction_bias.copy_(balance)
    deepseek = partial(sigmoids, bias=lambda: balance, floor=1e-20, scale=2.5, groups=4, kept=2)
    small = partial(sigmoids, bias=lambda: balance, floor=1e-6, scale=1.5)
    yield "qwen3_next", qwen, qwen, partial(softmax_first, renormalise=True), False
    yield "granitemoehybrid", granite, granite, softmax_last, False
    yield "kimi_linear", kimi, kimi, deepseek, True
    yield "nemotron_h", nemotron, nemotron, deepseek, True
    yield "lfm2_moe", lfm, partial(lfm, expert_bias=balance), small, False


@pytest.mark.parametrize("case", list(routers()), ids=lambda case: case[0])
def test_experts_and_weights_are_the_routers_own(case) -> None:
    """Two hundred tokens over twelve experts: a rule that chose, weighed or grouped otherwise would differ in some."""
    _, module, theirs, route, wide = case
    assert isinstance(module, nn.Module)
    with torch.no_grad():
        module.weight.copy_(0.5 * drawn(EXPERTS, WIDTH, seed=2))
        x = drawn(200, WIDTH, seed=3)
        logits, weights, indices = theirs(x)
        ours = route(x.float() @ module.weight.float().T if wide else x @ module.weight.T, CHOSEN)
    by_index, order = indices.sort(dim=-1)
    found, ours_order = ours.indices.sort(dim=-1)
    assert torch.equal(found, by_index)
    close(ours.weights.gather(-1, ours_order), weights.gather(-1, order))
    assert logits.shape == (200, EXPERTS)


def test_a_bias_changes_the_choice_and_not_the_weights() -> None:
    logits = torch.tensor([[0.0, 0.1, 0.2, -5.0]])
    pushed = torch.tensor([0.0, 0.0, 0.0, 10.0])
    plain = sigmoids(logits, 1, bias=lambda: None, floor=0.0, renormalise=False)
    biased = sigmoids(logits, 1, bias=lambda: pushed, floor=0.0, renormalise=False)
    assert (plain.indices.item(), biased.indices.item()) == (2, 3)
    close(biased.weights, torch.sigmoid(logits[:, 3:]))


def test_packed_projections_are_the_parts_of_the_module() -> None:
    """Gate and up of one module, as MLPs pack them: rows, bias and stored weights of each."""
    owner = nn.Module()
    owner.add_module("packed", nn.Linear(WIDTH, 10))
    x = drawn(2, 3, WIDTH)
    whole = owner.get_submodule("packed")(x)
    for which, expected in enumerate(whole.chunk(2, dim=-1)):
        part = Projection(owner, "packed", scale=2.0, part=(which, 2))
        close(part(x), 2 * expected)
        weight, bias = part.stored(lambda module, name: module.get_parameter(name))
        assert bias is not None
        close(x @ weight.T + bias, 2 * expected)
        close(part.linear(x) + part.bias(), 2 * expected)


@pytest.mark.parametrize("family", ["nemotron_h", "kimi_linear", "lfm2_moe"])
def test_a_copied_lens_reads_its_own_bias(family) -> None:
    """The bias of the choice is a buffer: a copy that still read the first model's would choose as that one does."""
    lens = HybridLens(make(family))
    other, ids = copy.deepcopy(lens), tokens(2, 9)
    with torch.no_grad():
        before = lens(ids)
        for name, buffer in other.hf_model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias")):
                buffer.copy_(torch.linspace(5, -5, buffer.numel()))
        changed = other.hf_model(ids, use_cache=False).logits
        close(other(ids), changed, FORWARD, extra=8 * rounding(other.hf_model, ids))
        assert not torch.equal(before, other(ids))
        assert torch.equal(before, lens(ids))
