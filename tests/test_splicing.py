"""Autoencoders in a model: at every point of every kind of layer, in every way of running.

A spliced model has to be the untouched one, bit for bit, as long as nothing is edited; a random autoencoder with 14
features reconstructs nothing, so a spliced one that lost its error would be far off.
"""

import math
import re
import threading
from types import SimpleNamespace

import planted_memory
import pytest
import torch
from autoencoders import ARCHITECTURES, D_SAE, axis_sae, make
from models import make as make_model
from models import tokens
from planted_memory import VALUE_AXES, VALUES

import hybridlens as hl
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError
from hybridlens.sae import SaeConfig

FAMILIES = ("recurrentgemma", "qwen3_next")
POINT = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request):
    return hl.HybridLens(make_model(request.param, 1))


@pytest.fixture(scope="module")
def jamba():
    return hl.HybridLens(make_model("jamba", 1))


def spliceable(lens):
    """Points with numbers for each token, of one layer of each kind, and the widths that may be read there."""
    layers = (None, lens.cfg.attention_layers[0], lens.cfg.ssm_layers[0])
    for name, spec in lens.hook_points.items():
        if spec.layer not in layers:
            continue
        sizes = spec.sizes[2:]
        if spec.axes[:2] == ("b", "p") and sizes and None not in sizes and not name.endswith("indices"):
            yield name, sorted({math.prod(sizes), sizes[-1]})


def test_at_every_point_nothing_changes_until_a_feature_does(lens):
    """Of some 40 points, the states and writes among them; features moved by 1 change every model's logits."""
    t = tokens(1, 4)
    before, names = lens(t), dict(spliceable(lens))
    assert {name.split(".", 2)[-1] for name in names} >= {"ssm.hook_state", "hook_ssm_out", "hook_resid_mid"}
    for name, widths in names.items():
        for d_in in widths if name.endswith("hook_state") else widths[-1:]:
            with torch.no_grad(), lens.splice(name, make(d_in)) as spliced:
                logits, cache = lens.run_with_cache(t, [spliced.features, spliced.error])
                assert torch.equal(logits, before), (name, d_in)
                assert cache[spliced.features].shape[-1] == D_SAE
                moved = lens.run_with_hooks(t, [(spliced.features, lambda f, hook: f + 1)])
                assert not torch.equal(moved, before), (name, d_in)
    assert torch.equal(lens(t), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_the_error_the_reconstruction_goes_on(jamba, architecture):
    """The same as writing what the autoencoder makes of the activation in its place."""
    sae, t = make(32, architecture, normalize_activations="layer_norm"), tokens(2, 7)
    with torch.no_grad():
        put = jamba.run_with_hooks(t, [(POINT, lambda x, hook: sae(x))])
        with jamba.splice(POINT, sae, error=False) as spliced:
            assert torch.equal(jamba(t), put)
            assert spliced.error not in jamba.hook_dict
        assert float((put - jamba(t)).abs().max()) > 0.1


def test_an_edit_of_features_adds_what_it_decodes_to(jamba):
    """One feature moved by 2 moves the stream by twice its row of the decoder, whatever the error."""
    sae, t = make(32), tokens(2, 7)

    def more(features, hook):
        features[..., 5] += 2.0

    with torch.no_grad():
        put = jamba.run_with_hooks(t, [(POINT, lambda x, hook: x + 2 * sae.W_dec[5])])
        with jamba.splice(POINT, sae) as spliced:
            found = jamba.run_with_hooks(t, [(spliced.features, more)])
            gone = jamba.run_with_hooks(t, [(spliced.error, lambda e, hook: torch.zeros_like(e))])
        with jamba.splice(POINT, sae, error=False):
            dropped = jamba(t)
    torch.testing.assert_close(found, put, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gone, dropped, rtol=1e-4, atol=1e-4)


def test_features_are_edited_in_prefill_and_in_each_decode_step(jamba):
    """What generation reads and writes at the features is what a plain edit of the stream does, phase by phase."""
    sae, t, seen = make(32), tokens(2, 5), []
    for phase in ("prefill", "decode", "both"):
        plain = hl.Edit(POINT, lambda x, hook: x + 4 * sae.W_dec[3], phase, rows=[1])
        wanted = jamba.generate(t, 4, [plain])
        with jamba.splice(POINT, sae) as spliced:

            def more(features, hook):
                seen.append(tuple(features.shape))
                return features + 4 * torch.nn.functional.one_hot(torch.tensor(3), D_SAE)

            found = jamba.generate(t, 4, [hl.Edit(spliced.features, more, phase, rows=[1])])
        assert torch.equal(found.tokens, wanted.tokens), phase
    assert (1, 4, D_SAE) in seen  # the prompt but its last token
    assert seen.count((1, 1, D_SAE)) == 8


@pytest.mark.parametrize("point", [POINT, "blocks.2.ssm.hook_write", "blocks.2.ssm.hook_state"])
def test_gradients_are_the_models_own_and_the_features_have_theirs(jamba, point):
    """Upstream what the untouched model gives; at the features the slope of adding each row of the decoder.

    At states too, where what is added goes on to later ones: the gradient there counts that.
    """
    sae, t, grads = make(math.prod(jamba.hook_points[point].sizes[2:])), tokens(1, 6), {}

    def keep(grad, hook):
        grads[hook.name] = grad.clone()

    def run():
        jamba(t)[0, -1, 7].backward()
        return grads.pop("blocks.0.hook_resid_pre")

    names = [("blocks.0.hook_resid_pre", keep), (point, keep)]
    with jamba.hooks(bwd_hooks=names):
        before = run()
    at_point = grads.pop(point).flatten(2)
    with jamba.splice(point, sae) as spliced, jamba.hooks(bwd_hooks=[names[0], (spliced.features, keep)]):
        after = run()
    scale = float(before.abs().max())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(grads[spliced.features], at_point @ sae.W_dec.T, rtol=1e-4, atol=1e-5 * scale)
    assert float(grads[spliced.features].abs().max()) > 0


class Stateful:
    """As SAELens' own: `decode` uses up what `encode` left, and neither says a width."""

    def __init__(self, sae):
        self.sae = sae

    def encode(self, x):
        self.x = x
        return self.sae.encode(x)

    def decode(self, features):
        x, self.x = self.x, None
        return self.sae.decode(features, like=x)


def test_any_object_that_encodes_and_decodes(jamba):
    """A scale that is kept between encoding and decoding is the right one in both passes."""
    sae = make(40, normalize_activations="constant_norm_rescale")
    t, name = tokens(2, 6), "blocks.0.mlp.hook_post"
    with torch.no_grad():
        wanted = jamba.run_with_hooks(t, [(name, lambda x, hook: sae(x))])
        before = jamba(t)
        with jamba.splice(name, Stateful(sae), error=False):
            assert torch.equal(jamba(t), wanted)
        with jamba.splice(name, Stateful(sae)):
            assert torch.equal(jamba(t), before)


def test_an_autoencoder_that_puts_heads_side_by_side_itself(jamba):
    """SAELens' own at hook_z read [… head d_head], and give that back; ours read the heads as a row."""

    class OfHeads:
        def __init__(self, sae):
            self.sae, self.cfg = sae, SaeConfig("standard", 32, D_SAE, reshape_activations="hook_z")

        def encode(self, z):
            assert z.shape[-2:] == (4, 8)
            return self.sae.encode(z.flatten(-2))

        def decode(self, features):
            return self.sae.decode(features).unflatten(-1, (4, 8))

    name, t = "blocks.1.attn.hook_z", tokens(2, 5)
    with torch.no_grad():
        before = jamba(t)
        with jamba.splice(name, make(32), error=False) as spliced:
            wanted, held = jamba.run_with_cache(t, spliced.features)
        with jamba.splice(name, OfHeads(make(32)), error=False) as spliced:
            found, own = jamba.run_with_cache(t, spliced.features)
        with jamba.splice(name, OfHeads(make(32))):
            assert torch.equal(jamba(t), before)
    assert torch.equal(found, wanted)
    assert torch.equal(own[spliced.features], held[spliced.features])


def test_half_precision_is_left_as_it_is(jamba):
    """The autoencoder computes in float32, the model in bfloat16: bit for bit the same until a feature moves."""
    lens, t = hl.HybridLens(make_model("jamba", 1).to(torch.bfloat16)), tokens(1, 6)
    with torch.no_grad():
        before = lens(t)
        with lens.splice(POINT, make(32)) as spliced:
            logits, cache = lens.run_with_cache(t, spliced.features)
            assert torch.equal(logits, before)
            assert cache[spliced.features].dtype == torch.float32
            moved = lens.run_with_hooks(t, [(spliced.features, lambda f, hook: f + 1)])
        assert moved.dtype == before.dtype
        assert not torch.equal(moved, before)


def test_inside_a_trace(jamba):
    """A lens that is traced for the first time while something is spliced in."""
    lens, t, sae = hl.HybridLens(jamba.hf_model), tokens(1, 5), make(32)
    with torch.no_grad(), lens.splice(POINT, sae, error=False):
        wanted = lens(t)
        with lens.trace(t):
            found = lens.hook_logits.output.save()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("where", ["head", "state"])
def test_a_planted_feature_is_found_and_changes_the_answer(where):
    """One feature a value, at the write of the layer that remembers: swapping two swaps the answer.

    All else writes nothing, so the autoencoder has no error at the answer, and without it the answer stays.
    """
    lens, layer, _ = planted_memory.planted("recurrentgemma", where)
    pair = planted_memory.pairs(1)[0]
    one, other = (VALUES.index(value) for value in pair.name.split("-"))
    sae = axis_sae(VALUE_AXES, lens.cfg.d_model)
    with torch.no_grad(), lens.splice(f"blocks.{layer}.hook_mixer_out", sae, error=False) as spliced:
        logits, cache = lens.run_with_cache([list(pair.a)], spliced.features)
        assert int(cache[spliced.features][0, -1].argmax()) == one
        assert int(logits[0, -1].argmax()) == VALUE_AXES[one]

        def swapped(features, hook):
            features[..., [one, other]] = features[..., [other, one]]

        moved = lens.run_with_hooks([list(pair.a)], [(spliced.features, swapped)])
        assert int(moved[0, -1].argmax()) == VALUE_AXES[other]


def test_a_planted_states_feature_answers():
    """At the planted state, the one feature of the value that came by: zeroed in prefill, nothing answers any more."""
    lens, layer, _ = planted_memory.planted("recurrentgemma", "state")
    pair = planted_memory.pairs(1)[0]
    name, wide = f"blocks.{layer}.ssm.hook_state", lens.hook_points[f"blocks.{layer}.ssm.hook_state"].sizes[-1]
    value = VALUES.index(pair.name.split("-")[0])
    prompt = [list(pair.a)]
    with lens.splice(name, axis_sae(list(range(4)), wide)) as spliced:
        assert lens.generate(prompt, 1).tokens.item() == VALUE_AXES[value]
        gone = hl.Edit(spliced.features, lambda f, hook: torch.zeros_like(f))
        assert lens.generate(prompt, 1, [gone]).tokens.item() != VALUE_AXES[value]
        _, cache = lens.run_with_cache(prompt, spliced.features)
    assert int(cache[spliced.features][0, -1].argmax()) == value


def test_several_at_once_and_another_thread_untouched(jamba):
    """Two points spliced, of which the later one reads what the earlier one leaves; a thread beside sees neither."""
    sae, other, t = make(32, seed=1), make(32, seed=2), tokens(1, 5)
    later = "blocks.2.hook_mixer_out"
    with torch.no_grad():
        before = jamba(t)
        wanted = jamba.run_with_hooks(t, [(POINT, lambda x, hook: sae(x)), (later, lambda x, hook: other(x))])
        with jamba.splice(POINT, sae, error=False), jamba.splice(later, other, error=False) as inner:
            logits, cache = jamba.run_with_cache(t)
            assert cache[inner.features].shape == (1, 5, D_SAE)
            beside = []

            def run():
                with torch.no_grad():
                    beside.append(jamba.run_with_cache(t))

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
    assert torch.equal(logits, wanted)
    assert torch.equal(beside[0][0], before)
    assert inner.features not in beside[0][1]


def test_misuse_is_refused_in_one_line(jamba):
    sae, attn = make(32), jamba.cfg.attention_layers[0]
    with pytest.raises(UnknownNameError, match="does not exist"), jamba.splice("blocks.9.hook_resid_post", sae):
        pass
    for name, made, said in [
        (f"blocks.{attn}.attn.hook_pattern", sae, "has the axes b h p k"),
        ("blocks.1.mlp.hook_expert_indices", sae, "reads a row of numbers"),
        (POINT, make(31), "reads 31 numbers, but 'blocks.1.hook_resid_post' holds 32"),
        ("blocks.0.ssm.hook_state", Stateful(sae), r"give d_in=320 for all side by side, or d_in=5"),
        (POINT, object(), "expected an Autoencoder"),
    ]:
        with pytest.raises(InputError, match=said) as caught, jamba.splice(name, made):
            pass
        assert "\n" not in str(caught.value)
    with jamba.splice(POINT, sae), pytest.raises(InputError, match="spliced in at"), jamba.splice(POINT, sae):
        pass

    class Wrong(Stateful):
        def decode(self, features):
            return features

    linear = SimpleNamespace(encode=torch.nn.Linear(31, 4), decode=torch.nn.Linear(4, 31))  # which says no width
    with jamba.splice(POINT, linear), pytest.raises(HookFunctionError) as caught:
        jamba(tokens(1, 3))
    assert re.fullmatch(
        rf"the autoencoder at '{re.escape(POINT)}' cannot read the 32 numbers of each token there "
        r"\(.*3x32 and 31x4.*\); expected one that reads 32",
        str(caught.value),
    )
    linear.encoder = linear.encode
    with pytest.raises(InputError, match="reads 31 numbers, but"), jamba.splice(POINT, linear):
        pass
    with jamba.splice(POINT, Wrong(sae)), pytest.raises(HookFunctionError, match="gave back"):
        jamba(tokens(1, 3))
    assert not [name for name in jamba.hook_dict if "sae" in name]
    assert not [name for name in jamba.hook_points if "sae" in name]
