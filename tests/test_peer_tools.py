"""TransformerLens' own tools on a lens, each compared with what is known of the model by another way."""

import pytest
import torch
from bounds import FORWARD, GRADIENT, LAYER, close
from models import make, tokens
from transformer_lens import SVDInterpreter, patching
from transformer_lens.tools import analysis

import hybridlens as hl
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.gradients import attribution_patch
from analyses.patching.metrics import LogitDifference
from analyses.patching.writers import PART_OF, Writer
from hybridlens import HybridLens, act_patching
from hybridlens.errors import InputError

MODELS = ("tiny-recurrentgemma", "tiny-jamba", "mamba2", "falcon_h1", "qwen3_next")


@pytest.fixture(scope="module", params=MODELS)
def seen(request):
    name, ids = request.param, tokens(1, 4)
    lens = hl.load(name) if name.startswith("tiny") else HybridLens(make(name))
    with torch.no_grad():
        return lens, ids, *lens.run_with_cache(ids)


def test_protocols(seen):
    protocols = pytest.importorskip("transformer_lens.model_protocol")
    assert isinstance(seen[0], protocols.TransformerLensModel)
    assert isinstance(seen[0], protocols.TransformerLensModelWithWeights)
    assert isinstance(seen[0], protocols.TrainableTransformerLensModel)


def test_svd_interpreter(seen):
    """The last head's output-value map by its dense matrix; a wrong pairing of shared values gives other vectors."""
    lens, _, _, _ = seen
    interpreter, folded = SVDInterpreter(lens), lens.weights(folded=True)
    for place, layer in enumerate(lens.attn_layers):
        head = lens.cfg.n_heads - 1
        found = interpreter.get_singular_vectors("OV", layer, 2, head_index=head)
        _, _, V = torch.linalg.svd(folded.W_V[place, head] @ folded.W_O[place, head])
        close(found[:, 0].abs(), (folded.W_U.T @ V[:2].T).abs(), FORWARD)
    for place, layer in enumerate(lens.dense_mlp_layers):
        found = interpreter.get_singular_vectors("w_out", layer, 1)
        _, _, V = torch.linalg.svd(folded.W_out[place])
        close(found[:, 0].abs(), (folded.W_U.T @ V[:1].T).abs(), FORWARD)
    layer = next((i for i in range(lens.cfg.n_layers) if i not in lens.dense_mlp_layers), None)
    if layer is not None:
        refused = r"does not expose a single dense MLP weight|'blocks\.\d+\.mlp\.W_in'"  # 4.3, 3.9
        with pytest.raises((NotImplementedError, KeyError), match=refused):
            interpreter.get_singular_vectors("w_in", layer)


def test_patching_of_the_stream(seen):
    """Patching all of a layer's input in at one position is what a hook there does."""
    lens, ids, _, cache = seen
    other = ids.clone()
    other[0, 2] = (other[0, 2] + 7) % lens.cfg.d_vocab

    def metric(logits):
        return logits[0, -1, 3]

    with torch.no_grad():
        found = patching.get_act_patch_resid_pre(lens, other, cache, metric)
        assert found.shape == (lens.cfg.n_layers, 4)
        close(found[0, 2], metric(lens(ids)), FORWARD)  # tokens differ at position 2 alone
        close(found[0, 1], metric(lens(other)), FORWARD)
        if "blocks.0.hook_resid_mid" in cache and "blocks.1.hook_resid_mid" in cache:
            assert patching.get_act_patch_resid_mid(lens, other, cache, metric).isfinite().all()
            assert patching.get_act_patch_mlp_out(lens, other, cache, metric).isfinite().all()


def test_logit_lens_reads_the_last_layer_as_the_model(seen):
    """Its own check of the readout against the logits passes, and the last layer's are the run's, soft cap included."""
    pytest.importorskip("transformer_lens.tools.analysis.logit_lens", reason="a tool of TransformerLens 4.3")
    lens, ids, logits, cache = seen
    with torch.no_grad():
        last = cache["resid_post", -1][0, -1:]
        close(analysis.logit_readout(lens, last).values.flatten(), logits[0, -1], LAYER)
        found = analysis.logit_lens(lens, ids).readout.values
    assert found.shape[-1] == lens.cfg.d_vocab
    close(found[-1].reshape(-1, lens.cfg.d_vocab)[-1], logits[0, -1], LAYER)


def test_affinity_of_heads(seen):
    lens, _, _, _ = seen
    if not lens.attn_layers:
        with pytest.raises(ValueError, match="No attention layers found"):
            analysis.attention_head_subspace_affinity(lens, target_role="Q")
        return
    found = analysis.attention_head_subspace_affinity(lens, target_role="V", layer_order="all")
    assert found.source_layer_indices == lens.attn_layers
    write, read = (getattr(lens, name) for name in ("W_O", "W_V"))
    last = lens.cfg.attention(lens.attn_layers[-1])
    assert found.target_head_kind == "kv"
    assert found.scores.shape[-1] == last.n_kv_heads
    for head in range(last.n_heads):  # of a query head, the map that it shares
        a, b = (torch.linalg.qr(x)[0] for x in (write[0, 1].T, read[-1, head]))
        theirs = found.scores[0, 1, -1, head * last.n_kv_heads // last.n_heads]
        close(theirs, (a.T @ b).square().sum(), LAYER)


def called(writer):
    """What TransformerLens' decomposition calls the part that a writer belongs to."""
    return "embed" if writer.kind == "embed" else f"{writer.layer}_{PART_OF[writer.kind]}_out"


def test_direct_logit_attribution_is_ours(seen):
    """Recurrent writes among its parts, and the sum of all of them the logit before any soft cap."""
    lens, ids, _, cache = seen
    ours = direct_logit_attribution(lens, ids, [3])
    whole = float(ours.before_cap)
    with torch.no_grad():
        parts = analysis.direct_logit_attribution(lens, ids, 3)
        heads = analysis.direct_logit_attribution(lens, ids, 3, unit="head", cache=cache)
    shares = dict(zip(parts.labels, parts.attribution.flatten().double(), strict=True))
    scale = max(map(abs, ours.shares.flatten().tolist()))
    assert [name for name in shares if name.endswith("_ssm_out")] == [f"{i}_ssm_out" for i in lens.cfg.state_layers]
    for name, share in shares.items():
        mine = [i for i, one in enumerate(ours.writers) if name == called(one)]
        close(share.float(), ours.shares[mine].sum().float(), FORWARD, scale=scale)
    for name, share in zip(heads.labels, heads.attribution.flatten(), strict=True):
        if "H" in name:
            layer, head = map(int, name[1:].split("H"))
            close(share, ours.of(Writer("head", layer, head)).flatten()[0].float(), FORWARD, scale=scale)
    for found in (parts, heads):
        close(found.attribution.sum(), torch.tensor(whole), FORWARD, scale=scale)


def test_attribution_patching_says_what_it_leaves_out():
    """Falcon-H1 has heads and an MLP in every layer, so that it runs; the nodes that it has are what gradients give."""
    lens, clean, corrupt = HybridLens(make("falcon_h1")), tokens(1, 3), tokens(1, 3, seed=1)

    def metric(logits):
        return logits[0, -1, 3] - logits[0, -1, 5]

    with pytest.warns(UserWarning, match=r"no nodes for what recurrences write \(hook_ssm_out of layers 0, 1\)"):
        found = analysis.attribution_patch(lens, clean, corrupt, metric)
    assert {node.kind for node in found.node_scores} == {"embed", "attn_head_out", "mlp_out"}
    ours = attribution_patch(lens, clean, corrupt, LogitDifference(3, 5), "blocks.1.hook_mlp_out", "p")
    theirs = [value for node, value in found.node_scores.items() if node.kind == "mlp_out" and node.layer == 1]
    close(torch.tensor(theirs), (ours.raw.flatten() - ours.corrupt).float(), GRADIENT)


@pytest.mark.parametrize("family", ["jamba", "falcon_h1", "mamba2"])
def test_activation_patching_goes_over_layers_that_have_the_point(family):
    """Every function of theirs, against a hook that does the same; NaN where a layer has no such point."""
    lens = HybridLens(make(family))
    ids = tokens(1, 2)
    other = ids.clone()
    other[0, 1] = (other[0, 1] + 7) % lens.cfg.d_vocab

    def metric(logits):
        return logits[0, -1, 3]

    with torch.no_grad():
        _, cache = lens.run_with_cache(ids)
        mixed = act_patching.get_act_patch_mixer_out(lens, other, cache, metric)
        assert mixed.isfinite().all()
        by_row = act_patching.get_act_patch_mixer_out(lens, other, cache, lambda logits: logits[:, -1, 3])
        assert torch.equal(by_row, mixed)
        if not lens.attn_layers:
            with pytest.raises(InputError, match=r"no layer of this mamba2 model has attn\.hook_z"):
                act_patching.get_act_patch_attn_head_out_all_pos(lens, other, cache, metric)
            return
        names = [name for name in dir(patching) if name.startswith("get_act_patch_attn_head_") and "every" not in name]
        for name in names:
            found = getattr(act_patching, name)(lens, other, cache, metric)
            have = found.flatten(1).isfinite().all(dim=1)
            assert have.nonzero().flatten().tolist() == list(lens.attn_layers)
            assert found.flatten(1)[~have].isnan().all()
        layer, head = lens.attn_layers[-1], lens.cfg.n_heads - 1

        def put(z, hook):
            z = z.clone()
            z[:, :, head] = cache[hook.name][:, :, head]
            return z

        expected = metric(lens.run_with_hooks(other, [(f"blocks.{layer}.attn.hook_z", put)]))
        every = act_patching.get_act_patch_attn_head_all_pos_every(lens, other, cache, metric)
        assert every.shape == (5, lens.cfg.n_layers, lens.cfg.n_heads)
        close(every[0, layer, head], expected, FORWARD)
        assert act_patching.get_act_patch_attn_head_by_pos_every(lens, other, cache, metric).shape == (
            5, lens.cfg.n_layers, 2, lens.cfg.n_heads,
        )  # fmt: skip
        assert act_patching.get_act_patch_block_every(lens, other, cache, metric)[0].isfinite().all()
    with pytest.raises(InputError, match=r"analyses\.patching\.paths\.path_patch"):
        _ = act_patching.get_act_patch_direct_path
    with pytest.raises(AttributeError, match="no attribute 'get_act_patch_none'"):
        _ = act_patching.get_act_patch_none


@pytest.mark.parametrize("point", ["blocks.0.hook_resid_post", "blocks.0.hook_ssm_out"])
def test_interchange(point):
    """With all directions interchanged at the point, what comes out is what replacing it by a hook gives."""
    pytest.importorskip("transformer_lens.tools.analysis.interchange", reason="a tool of TransformerLens 4.3")
    lens, base, source = HybridLens(make("jamba")), tokens(2, 3), tokens(2, 3, seed=1)
    positions = torch.tensor([1, 2])

    def last(inputs):
        return lens(inputs)[:, -1]

    with torch.no_grad():
        _, cache = lens.run_with_cache(source)
        held = analysis.collect_activations(lens, point, source, last, positions=positions)
        assert torch.equal(held, cache[point][torch.arange(2), positions])
        every = analysis.SubspaceInterchange(torch.eye(lens.cfg.d_model))
        found = analysis.intervened_logits(lens, point, every, base, held, last, positions=positions)

        def put(x, hook):
            x = x.clone()
            x[torch.arange(2), positions] = held
            return x

        close(found, lens.run_with_hooks(base, [(point, put)])[:, -1], FORWARD)


def test_jacobian_lens_is_refused():
    """Their Jacobian lens takes bridges alone, and says so; nothing comes out of a model that it was not made for."""
    with pytest.raises(TypeError, match="supports TransformerBridge only"):
        analysis.JacobianLens.fit(HybridLens(make("mamba2")), ["a"], corpus="none")
