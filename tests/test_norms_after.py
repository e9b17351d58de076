"""Norms behind a branch: what heads, layers and weights are said to write is what really reaches the stream.

Gemma 2's small model stands for all: both norms of a layer are away from 1, so that a share that leaves one out, or
divides by another token's scale, is off in the first digit.
"""

import pytest
import torch
from bounds import FORWARD, LAYER, apart, close
from models import make_calm, tokens

import hybridlens as hl
from analyses.circuits.gates import gate_errors
from analyses.circuits.running import circuits
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.edges import edge_attribution
from analyses.patching.metrics import LogitDifference
from analyses.patching.writers import Reader, Writer, writers_of
from hybridlens.weights import Weights

LENGTH = 13
NORMED = pytest.mark.parametrize("family", ["gemma2", "gemma3"])


@pytest.fixture(scope="module")
def lenses():
    return {family: hl.HybridLens(make_calm(family, 3)) for family in ("gemma2", "gemma3")}


def before_cap(lens, prompt):
    """Logits [p v] of the untouched model before its soft cap."""
    kept = []
    handle = lens.hf_model.get_output_embeddings().register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        lens.hf_model(prompt, use_cache=False)
    handle.remove()
    return kept[0][0]


@NORMED
def test_shares_add_up_to_the_logit(lenses, family):
    """Every head's, MLP's and the embedding's, each as the head's own result says; nothing is left over."""
    lens, prompt = lenses[family], tokens(1, LENGTH, 4)
    places, unembed = (-1, 0, 5), Weights.of_model(lens).unembed(torch.tensor([7, 11]))
    found = direct_logit_attribution(lens, prompt, [7, LogitDifference(7, 11)], places)
    truth = before_cap(lens, prompt)[list(places)].double()
    asked = torch.stack([truth[:, 7], truth[:, 7] - truth[:, 11]], dim=1)
    size = float(found.shares.abs().sum(0).max())
    close(found.total, asked, FORWARD, scale=size, dtype=torch.float32)
    close(found.before_cap, asked, FORWARD, scale=size, dtype=torch.float32)
    _, cache = lens.run_with_cache(prompt, None)
    scale = cache["ln_final.hook_scale"][0, list(places)]
    for writer in writers_of(lens):
        if writer.kind == "embed":
            written = cache["hook_embed"]
        elif writer.kind == "head":
            written = cache[f"blocks.{writer.layer}.attn.hook_result"][:, :, writer.index]
        else:
            written = cache[f"blocks.{writer.layer}.hook_mlp_out"]
        share = written[0, list(places)] / scale @ unembed.T
        expected = torch.stack([share[:, 0], share[:, 0] - share[:, 1]], dim=1).double()
        close(found.of(writer), expected, FORWARD, dtype=torch.float32, what=writer.words)
    assert {writer.kind for writer in found.writers} == {"embed", "head", "mlp"}


@NORMED
def test_weights_write_through_the_norm_but_its_scale(lenses, family):
    """W_O has the norm's weight in it: what heads read, times W_O, over the run's scale, is what reaches the stream."""
    lens, prompt = lenses[family], tokens(2, LENGTH, 5)
    weights = Weights.of_model(lens)
    _, cache = lens.run_with_cache(prompt, None)
    for layer in lens.cfg.attention_layers:
        view, name = weights.attention(layer), f"blocks.{layer}"
        written = torch.einsum("bphe,hed->bphd", cache[f"{name}.attn.hook_z"], view.W_O)
        written = written / cache[f"{name}.ln1_post.hook_scale"][:, :, None]
        close(written, cache[f"{name}.attn.hook_result"], LAYER)
        close(written.sum(2), cache[f"{name}.hook_attn_out"], LAYER)
        assert apart(torch.einsum("bphe,hed->bpd", cache[f"{name}.attn.hook_z"], view.W_O), written.sum(2), LAYER)


@NORMED
def test_the_error_of_one_scale_is_what_it_misses(lenses, family):
    """By hand: what heads write over the run's own scales, and over one scale for all, both about their means."""
    lens, ids = lenses[family], tokens(3, LENGTH, 10)
    weights, lengths = Weights.of_model(lens), torch.tensor([LENGTH, 7, 10])
    found = gate_errors(lens, weights, ids, lengths)
    real = torch.arange(LENGTH) < lengths[:, None]
    _, cache = lens.run_with_cache(ids, None)
    for layer in lens.cfg.attention_layers:
        out = cache[f"blocks.{layer}.attn.hook_result"][real].double()
        z, scale = cache[f"blocks.{layer}.attn.hook_z"][real], cache[f"blocks.{layer}.ln1_post.hook_scale"][real]
        lin = torch.einsum("the,hed->thd", z.double(), weights.attention(layer).W_O.double())
        off = out - lin * (1 / scale.double()).mean()
        error = [((x - x.mean(0)) ** 2).sum((0, 2)) for x in (off, out)]
        close(found[layer], (error[0] / error[1]).sqrt().float(), LAYER)
        assert found[layer].min() > 0.01
    notes = circuits(lens, ids, lengths, sample_size=20, distances=(1, 2)).notes
    assert f"one scale for all tokens misses {float(found.min()):.2f} to {float(found.max()):.2f}" in notes[0]


@NORMED
def test_embeddings_have_the_scale_of_their_module(lenses, family):
    """What the embedding puts into the stream, √d included, which the module multiplies by itself."""
    lens = lenses[family]
    _, cache = lens.run_with_cache(tokens(1, LENGTH, 6), ["hook_embed"])
    close(Weights.of_model(lens).embed(tokens(1, LENGTH, 6)[0]), cache["hook_embed"][0])


def test_an_edited_head_leaves_the_scale_and_the_others(lenses):
    """A silenced head is missing from the sum, and nothing else is; an edit of the norm's value stays."""
    lens, prompt = lenses["gemma2"], tokens(1, LENGTH, 7)
    result, normalized, out = (
        f"blocks.1.{name}" for name in ("attn.hook_result", "ln1_post.hook_normalized", "hook_attn_out")
    )
    _, cache = lens.run_with_cache(prompt, [result, out, "blocks.1.ln1_post.hook_scale"])

    def silence(x, hook):
        x[:, :, 2] = 0
        return x

    def seen(*hooks):
        kept = {}
        keep = [([out, "blocks.1.ln1_post.hook_scale"], lambda x, hook: kept.__setitem__(hook.name, x.clone()))]
        with torch.no_grad():
            lens.run_with_hooks(prompt, [*hooks, *keep])
        return kept

    silenced = seen((result, silence))
    close(silenced[out], cache[out] - cache[result][:, :, 2], LAYER)
    assert torch.equal(silenced["blocks.1.ln1_post.hook_scale"], cache["blocks.1.ln1_post.hook_scale"])
    nothing = seen((result, lambda x, hook: x * 0))
    assert torch.equal(nothing[out], torch.zeros_like(nothing[out]))
    raised = seen((normalized, lambda x, hook: x + 0.5))
    both = seen((normalized, lambda x, hook: x + 0.5), (result, silence))
    close(both[out], raised[out] - cache[result][:, :, 2], LAYER)
    scaled = seen(("blocks.1.ln1_post.hook_scale", lambda x, hook: x * 2), (result, silence))
    close(scaled[out], (cache[out] - cache[result][:, :, 2]) / 2, LAYER)


def test_edges_of_all_writers_are_the_whole_change(lenses):
    """To a reader of the stream at the logits: writers' changes add up to that of the stream, times one gradient."""
    lens, clean, corrupt = lenses["gemma2"], tokens(1, LENGTH, 8), tokens(1, LENGTH, 9)
    found = edge_attribution(lens, clean, corrupt, LogitDifference(3, 7), readers=[Reader("logits")])
    last = f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    kept = {}
    grads = {}
    for which, prompt in (("clean", clean), ("corrupt", corrupt)):
        with lens.hooks([(last, lambda x, hook, which=which: kept.__setitem__(which, x.detach().clone()))],
                        [(last, lambda g, hook, which=which: grads.__setitem__(which, g.clone()))]):  # fmt: skip
            logits = lens.network(prompt).logits[0, -1]
            (logits[3] - logits[7]).backward()
    lens.hf_model.zero_grad()
    whole = ((kept["clean"] - kept["corrupt"]) * grads["corrupt"]).double().sum()
    close(found.scores.sum(), whole, FORWARD, scale=float(found.scores.abs().sum()), dtype=torch.float32)
    assert found.scores.abs().min() > 0
    assert Writer("head", 1, 2) in found.writers
