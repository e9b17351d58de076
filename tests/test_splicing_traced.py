"""Features of an autoencoder in a trace: read and written as by hooks, in prefill and in decode steps, in invokes."""

import copy
import pickle

import pytest
import torch
from autoencoders import D_SAE, make
from models import make as make_model
from models import tokens

import hybridlens as hl

POINT = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def lens():
    return hl.HybridLens(make_model("jamba", 1))


@pytest.mark.parametrize("error", [True, False])
def test_features_are_read_and_written_in_a_trace(lens, error):
    """In forward order: the activation, its features, the error, the next point; what is written acts as by a hook."""
    t, sae = tokens(2, 6), make(32)

    def more(features, hook):
        features[..., 5] += 2

    with torch.no_grad(), lens.splice(POINT, sae, error=error) as spliced:
        cache = lens.run_with_cache(t, [POINT, spliced.features])[1]
        moved = lens.run_with_hooks(t, [(spliced.features, more)])
        with lens.trace(t):
            given = lens.blocks[1].output.save()
            features = lens.hook_dict[spliced.features].output.save()
            if error:
                left = lens.hook_dict[spliced.error].output.save()
            lens.blocks[2].hook_resid_pre.output.save()
            logits = lens.hook_logits.output.save()
        with lens.trace(t):
            lens.hook_dict[spliced.features].output[..., 5] += 2
            written = lens.hook_logits.output.save()
        with lens.trace(t):
            lens.hook_dict[spliced.features].output = features * 0
            silent = lens.hook_logits.output.save()
        none = lens.run_with_hooks(t, [(spliced.features, lambda f, hook: f * 0)])
        assert torch.equal(logits, lens(t))
    assert torch.equal(features, sae.encode(given))
    assert torch.equal(features, cache[spliced.features])
    assert torch.equal(written, moved)
    assert torch.equal(silent, none)
    assert not torch.equal(written, logits)
    if error:
        assert torch.equal(left, given - sae.decode(features))


def test_each_step_of_a_generation_has_its_features(lens):
    """A lens that was traced before; what decode steps write is what an edit of decoding does; it is gone after."""
    t, sae, n, seen = tokens(1, 5), make(32), 4, []
    with lens.trace(t):
        lens.hook_embed.output.save()
    push = 6 * torch.nn.functional.one_hot(torch.tensor(3), D_SAE)
    with lens.splice(POINT, sae) as spliced:
        plain = hl.Edit(spliced.features, lambda f, hook: seen.append(f.clone()))
        lens.generate(t, n, [plain], "first_new_token", stop_at_eos=False)
        pushed = hl.Edit(spliced.features, lambda f, hook: f + push, "decode")
        wanted = lens.generate(t, n, [pushed], "first_new_token", stop_at_eos=False).tokens
        with lens.trace(t, max_new_tokens=n, stop_at_eos=False) as tracer:
            features = [].save()
            for _ in tracer.iter[:n]:
                features.append(lens.hook_dict[spliced.features].output)
        with lens.trace(t, max_new_tokens=n, stop_at_eos=False) as tracer:
            for _ in tracer.iter[1:n]:
                lens.hook_dict[spliced.features].output[:] += push
            made = tracer.result.save()
    assert all(torch.equal(a, b) for a, b in zip(features, seen, strict=True))
    assert [f.shape[1] for f in features] == [5, 1, 1, 1]
    assert torch.equal(made.tokens, wanted)
    with torch.no_grad(), lens.trace(t):
        after = lens.hook_logits.output.save()
    with torch.no_grad():
        assert torch.equal(after, lens(t))


def test_invokes_and_gradients(lens):
    """Each invoke has its own rows' features, of its own length; a gradient there is what a backward hook has."""
    short, long, sae, grads = tokens(1, 3), tokens(1, 6, seed=4), make(32), []
    with lens.splice(POINT, sae) as spliced:
        with torch.no_grad():
            alone = lens.run_with_cache(short, spliced.features)[1][spliced.features]
            with lens.trace() as tracer:
                with tracer.invoke(short):
                    first = lens.hook_dict[spliced.features].output.save()
                with tracer.invoke(long):
                    second = lens.hook_dict[spliced.features].output.save()
        with lens.hooks(bwd_hooks=[(spliced.features, lambda g, hook: grads.append(g.clone()))]):
            lens(long)[0, -1, 7].backward()
        with lens.trace(long):
            features = lens.hook_dict[spliced.features].output
            with lens.hook_logits.output[0, -1, 7].backward():
                grad = features.grad.save()
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)
    assert second.shape == (1, 6, D_SAE)
    torch.testing.assert_close(grad, grads[0], rtol=1e-4, atol=1e-6)
    assert float(grad.abs().max()) > 0


def test_a_scan_refuses_and_a_splice_that_is_over_is_gone(lens):
    t = tokens(1, 4)
    with lens.splice(POINT, make(32)) as spliced:

        def scan():
            with lens.scan(t):
                lens.hook_embed.output.shape.save()

        with pytest.raises(
            hl.HybridLensError, match=r"a scan uses no weights, and an autoencoder.*lens\.splice"
        ) as caught:
            scan()
        assert "\n" not in str(caught.value)
        point = lens.hook_dict[spliced.features]
        with pytest.raises(hl.HybridLensError, match=r"has a value only inside `with lens\.trace"):
            _ = point.output
    assert spliced.features not in lens.hook_dict
    with lens.scan(t):
        shape = lens.hook_embed.output.shape.save()
    assert shape == (1, 4, 32)


def test_a_splice_inside_a_trace_acts_from_there_on(lens):
    t, sae = tokens(1, 5), make(32)
    with torch.no_grad(), lens.splice("blocks.2.hook_resid_post", sae, error=False) as spliced:
        wanted, cache = lens.run_with_cache(t, spliced.features)
    with torch.no_grad(), lens.trace(t):
        lens.blocks[1].output.save()
        with lens.splice("blocks.2.hook_resid_post", sae, error=False) as spliced:
            features = lens.hook_dict[spliced.features].output.save()
            logits = lens.hook_logits.output.save()
    assert torch.equal(features, cache[spliced.features])
    assert torch.equal(logits, wanted)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lens: pickle.loads(pickle.dumps(lens)), copy.copy])
def test_a_copy_made_inside_the_block_has_no_points_that_never_fire(lens, copied):
    """A deep copy and a pickle are without the autoencoder; a shallow one is the same model, with it meanwhile."""
    t, sae = tokens(1, 5), make(32)
    own = list(lens.hook_points)
    with torch.no_grad():
        plain = lens(t)
        with lens.splice(POINT, sae, error=False) as spliced:
            other, shallow = copied(lens), copied is copy.copy
            assert torch.equal(other(t), lens(t) if shallow else plain)
            assert list(other.hook_points) == list(other.hook_dict) == [*own, spliced.features] if shallow else own
            if not shallow:
                with pytest.raises(hl.HybridLensError, match="does not exist"):
                    other.run_with_cache(t, spliced.features)
                with other.splice(POINT, sae) as twice:
                    assert twice.features in other.run_with_cache(t, twice.features)[1]
        assert list(other.hook_points) == list(other.hook_dict) == own
        assert other.hook_dict is other.network.points
        assert torch.equal(other(t), plain)
        with other.trace(t):
            logits = other.hook_logits.output.save()
    assert torch.equal(logits, plain)
    assert list(lens.hook_points) == list(lens.hook_dict) == own
