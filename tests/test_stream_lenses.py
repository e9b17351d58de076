"""The logit lens and the tuned lens: the model's own numbers at the end, a planted answer where it was planted.

References are made here from the weights of the untouched Hugging Face model: the norm in float64, the unembedding,
multipliers and caps, which the random models have away from their defaults.
"""

import json
import math

import planted_memory
import pytest
import torch
from models import make, tokens
from planted_memory import VALUE_AXES, VALUES
from safetensors.torch import save_file

import hybridlens as hl
from analyses.patching.metrics import Rank
from analyses.stream import TunedLens, fit_tuned_lens, load_published, logit_lens, stream_places, tuned_lens
from analyses.stream.lens_result import StreamLens
from hybridlens.cache.readout import ranks_of, stream_logits
from hybridlens.errors import CheckpointError, InputError, UnknownNameError

FAMILIES = ("recurrentgemma", "gemma2", "falcon_h1", "mamba2", "minimax")
"""A soft cap and 1 + w; a low cap, norms behind branches; multipliers; no MLPs; a stream that goes on behind norms."""
PROMPTS = [[3, 1, 4, 15, 9, 2, 6], [5, 35, 8], [9, 7, 9, 3]]


@pytest.fixture(scope="module")
def gemma():
    return hl.HybridLens(make("recurrentgemma", 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_place_is_the_models_own(family):
    """Rows of different lengths: logits, probabilities, ranks and entropies of each, computed here from its logits."""
    lens = hl.HybridLens(make(family, 2))
    found = logit_lens(lens, PROMPTS, targets=[4, 7, 11], best=3, unit="bits")
    assert found.places == stream_places(lens)
    assert found.positions.tolist() == [[*range(n), *[-1] * (7 - n)] for n in (7, 3, 4)]
    for row, (prompt, target) in enumerate(zip(PROMPTS, [4, 7, 11], strict=True)):
        n = len(prompt)
        with torch.no_grad():
            logits = lens.hf_model(torch.tensor([prompt]), use_cache=False).logits[0].double()
        p = logits.softmax(dim=-1)
        near = {"rtol": 1e-4, "atol": 1e-4}  # of logits of size 10, through as many sums as the model has
        for values, own in [
            (found.target_logits, logits[:, target]),
            (found.target_probabilities, p[:, target]),
            (found.entropy, -(p * p.log2()).sum(dim=-1)),
        ]:
            torch.testing.assert_close(values[-1, row, :n].double(), own, **near)
            assert bool(values[:, row, n:].isnan().all())
        assert found.target_ranks[-1, row, :n].tolist() == (logits > logits[:, [target]]).sum(-1).tolist()
        assert float(found.divergence[-1, row, :n].abs().max()) == 0.0
        assert found.top_tokens[-1, row, :n].tolist() == logits.topk(3).indices.tolist()
    assert float(found.divergence[0].nanmean()) > 0.01
    assert bool((found.divergence[:, found.positions >= 0] >= -1e-5).all())  # a divergence is never below 0


def test_a_place_in_the_middle_is_the_stream_through_the_norm_and_the_cap(gemma):
    """Written out in float64 for RecurrentGemma: x / rms · (1 + w), the embedding's rows, 30 tanh(· / 30)."""
    model, prompt = gemma.hf_model, PROMPTS[0]
    found = logit_lens(gemma, [prompt], targets=21, positions=(2, 5))
    _, cache = gemma.run_with_cache([prompt], list(found.places))
    norm, cap = model.model.final_norm, model.config.logits_soft_cap
    for number, place in enumerate(found.places):
        x = cache[place][0, 2:5].double()
        x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * (1 + norm.weight.double())
        logits = cap * torch.tanh(x @ model.lm_head.weight.double().T / cap)
        torch.testing.assert_close(found.target_logits[number, 0].double(), logits[:, 21], rtol=1e-4, atol=1e-4)
    assert found.positions.tolist() == [[2, 3, 4]]
    assert logit_lens(gemma, PROMPTS, positions=-1).positions.tolist() == [[6], [2], [3]]


@pytest.mark.parametrize("where", ["head", "state"])
def test_a_planted_answer_stands_in_the_stream_behind_its_layer_and_not_before(where):
    """Half layers too: the mixer writes it, so it is there in the middle of its layer."""
    lens, layer, _ = planted_memory.planted("recurrentgemma", where)
    pairs = planted_memory.pairs(3)
    answers = [VALUE_AXES[VALUES.index(pair.name.split("-")[0])] for pair in pairs]
    found = logit_lens(lens, [list(pair.a) for pair in pairs], targets=answers, positions=-1)
    written = found.places.index(f"blocks.{layer}.hook_resid_mid")
    ranks = found.target_ranks[:, :, 0]
    assert bool((ranks[written:] == 0).all())
    assert bool((ranks[:written] > 0).all())
    assert found.top(written, prompt=1)[0][0] == pairs[1].name.split("-")[0]
    assert f"blocks.{layer}.hook_resid_mid" in found._repr_html_()
    assert len(found.to_pandas()) == len(found.places) * 3


def shifted(family):
    """A model that writes nothing but one constant, in its last layer; the streams before it lack just that."""
    lens, _, _ = planted_memory.planted(family, "state")
    model = lens.hf_model
    constant = torch.linspace(-4.0, 4.0, planted_memory.D_MODEL)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("linear_out", "o_proj", "out_proj", "down_proj")):
                weight.zero_()
        model.model.layers[-1].mlp_block.down_proj.bias.copy_(constant)
    return hl.HybridLens(model)


def test_a_tuned_lens_finds_the_constant_that_is_planted():
    """The identity leaves all that the constant changes; an affine map leaves nothing, of held-out texts too."""
    lens = shifted("recurrentgemma")
    texts = [row.tolist() for row in 1 + tokens(12, 8) % 12]
    places = ("blocks.2.hook_resid_pre", "blocks.5.hook_resid_mid")
    tuned = fit_tuned_lens(lens, texts, places=places, steps=60, rate=0.05)
    assert tuned.places == places
    assert (tuned.texts, tuned.tokens) == (10, 80)
    assert float(tuned.held_out_logit_lens.min()) > 0.3
    assert float(tuned.held_out.max()) < 0.01 * float(tuned.held_out_logit_lens.min())
    read = tuned_lens(lens, tuned, texts[:3], positions=-1)
    assert (read.kind, len(read.places)) == ("tuned", 3)
    assert float(read.divergence.max()) < 0.05 * float(logit_lens(lens, texts[:3], positions=-1).divergence.max())


def test_maps_of_zeros_are_the_logit_lens_and_other_maps_are_what_they_say(gemma, tmp_path):
    """Saved, loaded, and read again; a map by hand moves the stream by A x + b."""
    places, d = ("blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre"), gemma.cfg.d_model
    signature, none = gemma.network.signature, torch.full((2,), torch.nan)
    zero = TunedLens(places, torch.zeros(2, d, d), torch.zeros(2, d), none, none, 0, 0, signature, "")
    plain = logit_lens(gemma, PROMPTS, places=places)
    read = tuned_lens(gemma, zero, PROMPTS)
    assert read.places == plain.places == (*places, "blocks.3.hook_resid_post")
    assert torch.equal(read.entropy.nan_to_num(), plain.entropy.nan_to_num())
    weight, bias = torch.randn(2, d, d) / d, torch.randn(2, d)
    tuned = TunedLens(places, weight, bias, none, none.clone(), 0, 0, signature, "")
    loaded = TunedLens.load(tuned.save(tmp_path / "tuned.safetensors"))
    assert torch.equal(loaded.weight, weight)
    read = tuned_lens(gemma, loaded, [PROMPTS[0]], targets=5)
    _, cache = gemma.run_with_cache([PROMPTS[0]], list(places))
    for number, place in enumerate(places):
        x = cache[place][0]
        moved = x + torch.einsum("od,pd->po", weight[number], x) + bias[number]
        own = stream_logits(gemma, moved)[:, 5]
        torch.testing.assert_close(read.target_logits[number, 0], own, rtol=1e-4, atol=1e-4)
    again = StreamLens.load(read.save(tmp_path / "read.safetensors"))
    assert torch.equal(again.target_logits, read.target_logits)


def test_fitting_changes_no_weight_and_leaves_no_gradient(gemma):
    before = {name: weight.clone() for name, weight in gemma.hf_model.named_parameters()}
    steps: list[int] = []
    tuned = fit_tuned_lens(gemma, PROMPTS, steps=2, progress=steps.append)
    assert steps == [1, 1]
    assert bool(torch.isfinite(tuned.held_out).all())
    for name, weight in gemma.hf_model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None


def published(folder, lens, **changes):
    """A folder as the library tuned-lens leaves it, but for its pickle."""
    d, n = lens.cfg.d_model, lens.cfg.n_layers
    config = {"base_model_name_or_path": "some/model", "d_model": d, "num_hidden_layers": n, "bias": True,
              "base_model_revision": None, "unembed_hash": "0", "lens_type": "linear_tuned_lens"}  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    tensors = {f"{i}.weight": torch.randn(d, d) / d for i in range(n)} | {f"{i}.bias": torch.randn(d) for i in range(n)}
    save_file(tensors, folder / "params.safetensors")
    return tensors


def test_the_published_format(gemma, tmp_path):
    tensors = published(tmp_path, gemma)
    tuned = load_published(gemma, tmp_path)
    assert tuned.places == tuple(f"blocks.{i}.hook_resid_pre" for i in range(4))
    x = torch.randn(2, gemma.cfg.d_model)
    own = x + torch.nn.functional.linear(x, tensors["2.weight"], tensors["2.bias"])
    torch.testing.assert_close(tuned.translate("blocks.2.hook_resid_pre", x), own)
    assert "not known" in repr(tuned)
    for changes, said in [
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5, expected 4"),
        ({"lens_type": "other"}, "lens_type is 'other', expected 'linear_tuned_lens'"),
        ({"mystery": 1}, "the field 'mystery' is unknown"),
        ({"bias": False}, r"0\.bias is \[32\], expected no such tensor"),
    ]:
        published(tmp_path, gemma, **changes)
        with pytest.raises(CheckpointError, match=said):
            load_published(gemma, tmp_path)
    published(tmp_path, gemma)
    (tmp_path / "params.safetensors").rename(tmp_path / "params.pt")
    with pytest.raises(CheckpointError, match="a pickle can run code; convert them to"):
        load_published(gemma, tmp_path)


def test_misuse_is_refused_in_one_line(gemma):
    other = hl.HybridLens(make("recurrentgemma", 3))
    tuned = fit_tuned_lens(gemma, PROMPTS, steps=1)
    for call, said in [
        (lambda: logit_lens(gemma, PROMPTS, targets=[1, 2]), "2 targets given for 3 prompts"),
        (lambda: logit_lens(gemma, PROMPTS, targets=53), r"target 53 is outside the vocabulary, expected 0\.\.52"),
        (lambda: logit_lens(gemma, PROMPTS, positions=5), "positions 5 given, but a prompt has the positions 0..2"),
        (lambda: logit_lens(gemma, PROMPTS, positions=(3, 3)), "no position of any prompt was chosen"),
        (lambda: logit_lens(gemma, PROMPTS, places=["blocks.0.mlp.hook_post"]), "has the axes b p f"),
        (lambda: logit_lens(gemma, PROMPTS).top("blocks.9.hook_resid_pre"), "was not read"),
        (lambda: logit_lens(gemma, PROMPTS).top(0, prompt=1, position=3), r"was not read; it has 0\.\.2"),
        (lambda: fit_tuned_lens(gemma, PROMPTS[:1]), "1 text given, expected at least two"),
        (lambda: fit_tuned_lens(gemma, PROMPTS, held_out=0.9), "leaves none to fit to"),
        (lambda: tuned_lens(other, tuned, PROMPTS), "fitted to other weights"),
        (lambda: tuned.translate("hook_embed", torch.zeros(32)), "there is no map for 'hook_embed'"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="does not exist"):
        logit_lens(gemma, PROMPTS, places=["blocks.9.hook_resid_pre"])
    assert math.isfinite(float(tuned.held_out.mean()))


def test_both_lenses_and_the_metric_read_one_rank(gemma):
    """Of a cache and of prompts, at the same places: the same logits, and ranks from 0; of equals the lowest id."""
    tokens = PROMPTS[0]
    found = logit_lens(gemma, [tokens], targets=7, positions=-1, places=["blocks.1.hook_resid_post"])
    _, cache = gemma.run_with_cache([tokens])
    read = cache.logit_lens(layers=[2, -1], targets=7)
    assert read.target_ranks[:, 0, 0].tolist() == found.target_ranks[:, 0, 0].tolist()
    torch.testing.assert_close(read.values[:, 0, 0], found.target_logits[:, 0, 0], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        logits = gemma([tokens])
    assert float(Rank(7)(logits)) == found.target_ranks[-1, 0, 0]
    flat = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert ranks_of(flat, torch.tensor([[0, 1, 2, 3]])).tolist() == [[2, 0, 1, 3]]
