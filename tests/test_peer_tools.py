"""TransformerLens' own tools on a lens, each compared with what is known of the model by another way."""

import pytest
import torch
from bounds import FORWARD, LAYER, close
from models import make, tokens
from transformer_lens import SVDInterpreter, patching
from transformer_lens.model_protocol import TransformerLensModel, TransformerLensModelWithWeights
from transformer_lens.tools import analysis

from hybridlens import HybridLens

FAMILIES = ("recurrentgemma", "jamba", "mamba2", "falcon_h1", "qwen3_next")


@pytest.fixture(scope="module", params=FAMILIES)
def seen(request):
    lens, ids = HybridLens(make(request.param)), tokens(1, 6)
    with torch.no_grad():
        return lens, ids, *lens.run_with_cache(ids)


def test_protocols(seen):
    assert isinstance(seen[0], TransformerLensModel)
    assert isinstance(seen[0], TransformerLensModelWithWeights)


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
        with pytest.raises(NotImplementedError, match="does not expose a single dense MLP weight"):
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
        assert found.shape == (lens.cfg.n_layers, 6)
        close(found[0, 2], metric(lens(ids)), FORWARD)  # tokens differ at position 2 alone
        close(found[0, 1], metric(lens(other)), FORWARD)
        if "blocks.0.hook_resid_mid" in cache and "blocks.1.hook_resid_mid" in cache:
            assert patching.get_act_patch_resid_mid(lens, other, cache, metric).isfinite().all()
            assert patching.get_act_patch_mlp_out(lens, other, cache, metric).isfinite().all()


def test_logit_lens_reads_the_last_layer_as_the_model(seen):
    """Its own check of the readout against the logits passes, and the last layer's are the run's, soft cap included."""
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
    a, b = (torch.linalg.qr(x)[0] for x in (write[0, 1].T, read[-1, 2]))
    close(found.scores[0, 1, -1, 2], (a.T @ b).square().sum(), LAYER)
