"""Autoencoders judged where they stand: losses and shares beside sums written out, and planted features found.

The planted models write one thing, which value came by, on four known axes: an autoencoder with a feature for each axis
loses nothing there, and what its features add to an answer is known.
"""

import math
import statistics
from dataclasses import replace

import planted_memory
import pytest
import torch
from autoencoders import ARCHITECTURES, D_SAE, axis_sae, make
from models import make as make_model
from models import make_calm
from planted_memory import VALUE_AXES, VALUES

import hybridlens as hl
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.metrics import LogitDifference
from analyses.patching.writers import Writer
from analyses.stream import (
    FeatureAttribution,
    FeatureExamples,
    SaeQuality,
    feature_attribution,
    loss_recovered,
    norm_scaling_factor,
    top_tokens,
)
from hybridlens.errors import InputError

TEXTS = [[3, 1, 4, 15, 9, 2, 6], [5, 35, 8], [9, 7, 9, 3, 2]]
QUESTION = LogitDifference(7, 11)


@pytest.fixture(scope="module")
def jamba():
    return hl.HybridLens(make_model("jamba", 1))


BIASED = {"jamba": {"mamba_proj_bias": True}, "recurrentgemma": {"num_key_value_heads": 2, "attention_bias": True}}


@pytest.fixture(scope="module", params=list(BIASED))
def biased(request):
    """A model whose layers write biases, and what its parts add to an answer; RecurrentGemma's norm is 1 + w."""
    lens = hl.HybridLens(make_calm(request.param, 3, **BIASED[request.param]))
    return lens, direct_logit_attribution(lens, TEXTS[0], [QUESTION], (-1, 2))


@pytest.fixture(scope="module")
def planted():
    """The planted head, prompts, and the value in each."""
    lens, layer, _ = planted_memory.planted("jamba", "head")
    pairs = planted_memory.pairs(6)
    return lens, layer, [list(pair.a) for pair in pairs], [VALUES.index(pair.name.split("-")[0]) for pair in pairs]


def losses_by_hand(lens, hooks=()):
    """Cross-entropy of every next token, text by text."""
    found = []
    for text in TEXTS:
        with torch.no_grad():
            logits = lens.run_with_hooks([text], list(hooks))[0].double()
        found += [-float(logits[pos].log_softmax(-1)[following]) for pos, following in enumerate(text[1:])]
    return found


@pytest.mark.parametrize(
    ("name", "d_in", "ablation"),
    [
        ("blocks.1.hook_resid_post", 32, "mean"),
        ("blocks.2.hook_ssm_out", 32, "zero"),
        ("blocks.1.attn.hook_z", 8, "mean"),
    ],
)
def test_losses_and_counts_are_those_written_out(jamba, name, d_in, ablation, tmp_path):
    """Texts of three lengths in one batch; at hook_z every head is an activation of its own."""
    sae = make(d_in, "jumprelu")
    found = loss_recovered(jamba, sae, name, TEXTS, ablation=ablation)
    with torch.no_grad():
        held = [jamba.run_with_cache([text], name)[1][name][0] for text in TEXTS]
    x = torch.cat(held)
    mean = x.mean(dim=0) if ablation == "mean" else torch.zeros_like(x[0])
    untouched = losses_by_hand(jamba)
    ablated = losses_by_hand(jamba, [(name, lambda a, hook: mean.expand_as(a))])
    for value, own in [
        (found.untouched, untouched),
        (found.spliced, losses_by_hand(jamba, [(name, lambda a, hook: sae(a).detach())])),
        (found.ablated, ablated),
    ]:
        assert value == pytest.approx(statistics.fmean(own), rel=1e-5)
    costs = [one - other for one, other in zip(ablated, untouched, strict=True)]
    wanted = 2 * statistics.stdev(costs) / len(costs) ** 0.5
    assert found.resolution == pytest.approx(wanted, rel=1e-3)  # differences of losses of 4 in float32
    rows = x.reshape(-1, d_in).double()
    features, back = sae.encode(rows.float()).detach(), sae(rows.float()).detach().double()
    assert found.l0 == pytest.approx(float((features != 0).sum(dim=1).double().mean()))
    assert torch.allclose(found.frequency, (features != 0).double().mean(dim=0))
    varied = (x.double() - x.double().mean(dim=0)).square().sum()
    assert found.explained == pytest.approx(float(1 - (rows - back).square().sum() / varied), rel=1e-4)
    share = (found.ablated - found.spliced) / found.cost if found.cost > found.resolution else math.nan
    assert found.recovered == pytest.approx(share, nan_ok=True)
    assert found.dead == tuple(i for i in range(D_SAE) if not bool((features[:, i] != 0).any()))
    assert found.tokens == 15
    again = SaeQuality.load(found.save(tmp_path / "quality.safetensors"))
    assert (again.cost, again.resolution) == (found.cost, found.resolution)


def test_a_perfect_autoencoder_recovers_all_and_an_empty_one_nothing(planted, tmp_path):
    lens, layer, asked, values = planted
    prompts = [[*prompt, VALUE_AXES[value]] * 3 for prompt, value in zip(asked, values, strict=True)]  # with the answer
    name = f"blocks.{layer}.hook_mixer_out"
    whole = loss_recovered(lens, axis_sae(VALUE_AXES, planted_memory.D_MODEL), name, prompts)
    assert whole.recovered == pytest.approx(1.0, abs=1e-4)
    assert whole.explained == pytest.approx(1.0, abs=1e-4)
    none = loss_recovered(lens, axis_sae([20, 21], planted_memory.D_MODEL), name, prompts)  # where nothing is written
    assert none.recovered == pytest.approx(0.0, abs=1e-4)
    assert none.dead == (0, 1)
    assert whole.cost > whole.resolution  # so that its share means something
    assert f"{whole.untouched:.4g} nats untouched" in repr(whole)
    assert "100 % recovered" in repr(whole)
    silent = loss_recovered(lens, axis_sae([20], planted_memory.D_MODEL), "blocks.5.hook_mlp_out", prompts)
    assert math.isnan(silent.recovered)  # it writes nothing, so that ablating it costs nothing
    assert "no share recovered, as ablating costs 0, not more than its error" in repr(silent)
    assert SaeQuality.load(silent.save(tmp_path / "silent.safetensors")).explained is None


def test_a_cost_within_its_error_has_no_share(jamba):
    """Two runs that cost next to nothing: a stream that is hardly touched, and one token, whose error nobody knows."""
    name = "blocks.1.hook_resid_post"
    few = loss_recovered(jamba, make(32), name, [[3, 1]])
    assert few.resolution == math.inf
    assert math.isnan(few.recovered)
    known = replace(few, untouched=2.0, spliced=2.5, ablated=2.1, resolution=0.15)
    assert math.isnan(known.recovered)  # not -400 %
    assert "costs 0.1, not more than its error 0.15" in repr(known)
    assert math.isnan(known.to_pandas()["value"][5])
    assert replace(known, ablated=3.0).recovered == pytest.approx(0.5)
    assert math.isnan(replace(known, ablated=1.0).recovered)  # the model does better without


@pytest.mark.parametrize(
    ("architecture", "scaled"),
    list(zip(ARCHITECTURES, ["none", "layer_norm", "constant_norm_rescale", "none"], strict=True)),
)
def test_features_bias_and_error_add_up_to_the_parts_own_share(architecture, scaled, biased, tmp_path):
    """The share of a recurrent layer, of attention, of the embedding, as direct attribution has it by another way."""
    (lens, own), attn = biased, biased[0].cfg.attention_layers[0]
    sae = make(32, architecture, normalize_activations=scaled)
    for name, writers in [
        ("blocks.0.hook_ssm_out", [Writer("ssm", 0), Writer("ssm_bias", 0)]),
        (
            f"blocks.{attn}.hook_mixer_out",
            [writer for writer in own.writers if writer.layer == attn and writer.kind in ("head", "attn_bias")],
        ),
        ("hook_embed", [Writer("embed")]),
    ]:
        found = feature_attribution(lens, sae, name, [TEXTS[0]], QUESTION, (-1, 2))
        size = float(found.shares.abs().sum() + found.error.abs().sum() + found.bias.abs().sum())
        assert float(found.remainder.abs().max()) < 1e-5 * size  # of float32 sums of 32 numbers
        assert float(found.error.abs().max()) > 1e-3 * size
        wanted = sum(own.of(writer) for writer in writers)[:, 0]
        torch.testing.assert_close(found.total, wanted, rtol=1e-4, atol=1e-5 * size)
    assert FeatureAttribution.load(found.save(tmp_path / "shares.safetensors")).top() == found.top()


def test_a_features_share_is_its_row_of_the_decoder_through_the_norm(jamba):
    """Written out for one feature, and the logit before the cap of a run in which it is taken away at the end."""
    sae, name, text = make(32), "blocks.3.hook_resid_post", [TEXTS[0]]
    found = feature_attribution(jamba, sae, name, text, 7)
    feature, share = found.top(1)[0]
    _, cache = jamba.run_with_cache(text, ["ln_final.hook_scale", name])
    model = jamba.hf_model
    direction = (model.model.final_layernorm.weight * model.lm_head.weight[7]).detach()
    active = float(sae.encode(cache[name][0, -1])[feature])
    wanted = active * float(sae.W_dec[feature] @ direction) / float(cache["ln_final.hook_scale"][0, -1])
    assert share == pytest.approx(wanted, rel=1e-4)
    logit = float(jamba(text)[0, -1, 7].detach())
    assert float(found.total[0]) == pytest.approx(logit, rel=1e-4)  # the whole stream, and no cap in Jamba
    assert f"feature {feature}" in found._repr_html_()


def test_the_planted_feature_has_the_answers_share(planted):
    """The one feature of the value that came by carries its logit, and the error nothing."""
    lens, layer, prompts, values = planted
    sae = axis_sae(VALUE_AXES, planted_memory.D_MODEL)
    for prompt, value in zip(prompts, values, strict=True):
        question = LogitDifference(VALUE_AXES[value], VALUE_AXES[(value + 1) % 4])
        found = feature_attribution(lens, sae, f"blocks.{layer}.hook_mixer_out", [prompt], question)
        assert found.top(1)[0][0] == value
        assert found.top(1)[0][1] == pytest.approx(float(found.total[0]), rel=1e-3)


def test_the_planted_features_are_most_active_where_the_model_is_asked(planted, tmp_path):
    """The head writes at "ask" alone; of each feature the texts are those with its value."""
    lens, layer, prompts, values = planted
    sae = axis_sae(VALUE_AXES, planted_memory.D_MODEL)
    seen = sorted(set(values))
    found = top_tokens(lens, sae, f"blocks.{layer}.hook_mixer_out", seen, prompts, n=values.count(seen[0]), context=2)
    for one in found.of(seen[0]):
        assert (one.token, values[one.text]) == ("ask", seen[0])
        assert one.position == len(prompts[one.text]) - 1
        assert len(one.around) == len(one.values) == 3
        assert one.values[-1] == one.activation
    assert FeatureExamples.load(found.save(tmp_path / "examples.json")) == found
    assert len(found.to_pandas()) == sum(map(len, found.examples))
    assert "ask" in found._repr_html_()


def test_the_most_active_tokens_over_batches(jamba):
    """Every token of every text written out and sorted; padding is never among them."""
    sae, name = make(8), "blocks.1.attn.hook_z"
    found = top_tokens(jamba, sae, name, [3, 5], TEXTS, n=4, batch_size=2)
    for feature in (3, 5):
        every = []
        for number, text in enumerate(TEXTS):
            with torch.no_grad():
                z = jamba.run_with_cache([text], name)[1][name][0]
            most = sae.encode(z)[..., feature].amax(dim=-1)
            every += [(float(value), number, pos) for pos, value in enumerate(most) if value > 0]
        wanted = sorted(every, reverse=True)[:4]
        assert [(one.text, one.position) for one in found.of(feature)] == [place[1:] for place in wanted]
        values = [one.activation for one in found.of(feature)]
        assert values == pytest.approx([place[0] for place in wanted], rel=1e-4)


def test_the_factor_of_scaled_activations(jamba):
    """√d over the mean length, of every token and no padding; multiplied by it they have that length on average."""
    name = "blocks.1.attn.hook_z"
    factor = norm_scaling_factor(jamba, name, TEXTS, batch_size=2)
    with torch.no_grad():
        z = torch.cat([jamba.run_with_cache([text], name)[1][name][0].flatten(1) for text in TEXTS])
    assert float((factor * z).norm(dim=1).mean()) == pytest.approx(32**0.5, rel=1e-5)


def test_misuse_is_refused_in_one_line(jamba):
    sae, name = make(32), "blocks.1.hook_resid_post"

    class Bent:
        d_in = 32

        def encode(self, x):
            return sae.encode(x)

        def decode(self, features):
            return sae.decode(features) ** 2

    for call, said in [
        (lambda: loss_recovered(jamba, sae, name, [[3]]), "texts of one token given"),
        (lambda: loss_recovered(jamba, make(31), name, TEXTS), "reads 31 numbers"),
        (
            lambda: feature_attribution(jamba, sae, "blocks.1.ln1.hook_normalized", [TEXTS[0]], 3),
            "is not what is added",
        ),
        (
            lambda: feature_attribution(jamba, make(320), "blocks.0.ssm.hook_state", [TEXTS[0]], 3),
            "is not what is added",
        ),
        (lambda: feature_attribution(jamba, Bent(), name, [TEXTS[0]], 3), "decoder is not affine"),
        (lambda: feature_attribution(jamba, sae, name, [TEXTS[0]], 99), "outside the vocabulary"),
        (lambda: top_tokens(jamba, sae, name, [14], TEXTS), r"feature 14 asked for at .*, expected 0\.\.13"),
        (lambda: top_tokens(jamba, sae, name, [1], TEXTS).of(2), "feature 2 was not looked at; those that were are 1"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not [point for point in jamba.hook_dict if "sae" in point]
