"""Edge attribution: the slope of true path patches, complete over writers, NaN where there is no edge.

The reference puts a small multiple of a writer's change into one reader's input alone, through the Hugging Face model's
own norms and projections, and differences whole runs to fourth order.
"""

import random
from functools import cache

import pytest
import torch
from bounds import FORWARD, GRADIENT, LAYER, close, quotient
from hf_kimi_linear import of_latents
from models import PATCHED, ROWS, make_smooth, tokens
from patching_loops import followed, whole_mixers

import hybridlens as hl
from analyses.patching import edges
from analyses.patching.agreement import edge_agreement
from analyses.patching.edges import edge_attribution
from analyses.patching.metrics import LogitDifference, LogProbability, Rank
from analyses.patching.paths import path_patch
from analyses.patching.results import EdgeResult
from analyses.patching.writers import Reader, Writer, writers_of
from hybridlens.errors import HybridLensError, InputError, UnknownNameError

LENGTH = 15  # twice the window of the small RecurrentGemma
METRIC = LogitDifference(3, 7)
STENCIL = {-2.0: 1 / 12, -1.0: -8 / 12, 1.0: 8 / 12, 2.0: -1 / 12}
NAMES = {
    "recurrentgemma": ("temporal_pre_norm", "temporal_block"),
    "jamba": ("input_layernorm", "self_attn"),
    "falcon_h1": ("input_layernorm", "self_attn"),
    **dict.fromkeys(
        ("qwen3_next", "llama", "qwen3", "gemma2", "gemma3", "bamba", "granitemoehybrid", "kimi_linear"),
        ("input_layernorm", "self_attn"),
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe"), ("operator_norm", "self_attn")),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), ("input_layernorm", "self_attn")),
    "nemotron_h": ("norm", "mixer"),
    "olmo_hybrid": (None, "self_attn"),
}
"""A layer's norm, if there is one, and attention in the Hugging Face model."""
EPS = ("rms_norm_eps", "layer_norm_epsilon", "norm_eps")
"""What configurations call that of their norms."""


CHANGES = {"recurrentgemma": {"num_key_value_heads": 2}}
"""So that its key and value heads are several."""


@cache
def smooth(family):
    return hl.HybridLens(make_smooth(family, 3, **CHANGES.get(family, {})))


def heads_read(family, layer, kind, x):
    """Queries, keys, values or gates of every head, by the Hugging Face model's own modules, of a stream [b p d]."""
    model, width = smooth(family).hf_model, smooth(family).cfg.attention(layer).d_head
    hf, (norm, attention) = model.model.layers[layer], NAMES[family]
    x = x if norm is None else getattr(hf, norm)(x)
    return READ.get(family, projected)(getattr(hf, attention), model.config, kind, x, width)


def projected(attention, config, kind, x, width):
    """By the projection of that name."""
    return getattr(attention, f"{kind}_proj")(x).unflatten(-1, (-1, width))


def multiplied(attention, config, kind, x, width):
    """Between Falcon-H1's multipliers."""
    found = projected(attention, config, kind, x * config.attention_in_multiplier, width)
    return found * config.key_multiplier if kind == "k" else found


def gated(attention, config, kind, x, width):
    """By projections of which the first makes queries and gates."""
    if kind not in ("q", "gate"):
        return projected(attention, config, kind, x, width)
    q, gate = projected(attention, config, "q", x, 2 * width).chunk(2, dim=-1)
    return q if kind == "q" else gate.sigmoid()


READ = {
    "falcon_h1": multiplied, "qwen3_next": gated, "qwen3_5": gated, "qwen3_5_moe": gated, "kimi_linear": of_latents,
}  # fmt: skip
"""How heads read where not by one projection each."""


def prompts(shared=4, length=LENGTH):
    clean, corrupt = tokens(1, length, 1), tokens(1, length, 2)
    corrupt[:, :shared] = clean[:, :shared]
    return clean, corrupt


@cache
def written(family, which):
    """What each writer of a run writes [p d], and what each layer and MLP reads, by hook point."""
    lens = smooth(family)
    with torch.no_grad():
        _, kept = lens.run_with_cache(prompts()[which])
    out = {Writer("embed"): kept["hook_embed"][0]}
    for part, kind in (("attn", "head"), ("ssm", "ssm_head")):
        for layer in range(lens.cfg.n_layers):
            heads = kept.cache_dict.get(f"blocks.{layer}.{part}.hook_result")
            if heads is not None:
                out |= {Writer(kind, layer, head): heads[0, :, head] for head in range(heads.shape[2])}
            elif f"blocks.{layer}.hook_{part}_out" in kept:
                out[Writer(part, layer)] = kept[f"blocks.{layer}.hook_{part}_out"][0]
    out |= {Writer("mlp", layer): kept[f"blocks.{layer}.hook_mlp_out"][0] for layer in lens.cfg.mlp_layers}
    return out, kept


def stream(lens, reader):
    """The hook point of the residual stream before a reader."""
    if reader.kind == "logits":
        return f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    return f"blocks.{reader.layer}.hook_resid_{'mid' if second(lens, reader) else 'pre'}"


def second(lens, reader):
    """Whether a reader is the second branch of its layer: an MLP that follows mixers."""
    return reader.kind == "mlp" and lens.cfg.layers[reader.layer].type != "mlp"


def slope(family, base, reader, change, h=0.005, metric=METRIC, before=()):
    """The derivative of the metric as `change` [p d] is put into what this reader alone reads."""
    lens = smooth(family)
    steps = h * torch.tensor(list(STENCIL)).view(-1, 1, 1)
    held, config = {}, lens.hf_model.config
    eps = next(getattr(config, name) for name in EPS if hasattr(config, name))

    def keep(x, hook):
        held["x"] = x + steps * change

    def give(x, hook):
        moved = held["x"]
        if name.endswith("_in"):
            return moved
        if reader.head is None:
            return moved / (moved.square().mean(-1, keepdim=True) + eps).sqrt()
        x[:, :, reader.head] = heads_read(family, reader.layer, reader.kind, moved)[:, :, reader.head]
        return x

    name = f"blocks.{reader.layer}.attn.hook_{reader.kind}"
    if reader.head is None:
        norm = f"blocks.{reader.layer}.{'ln2' if second(lens, reader) else 'ln1'}"
        name = f"{'ln_final' if reader.kind == 'logits' else norm}.hook_normalized"
        name = name if name in lens.hook_dict else f"blocks.{reader.layer}.hook_{reader.kind}_in"
    with torch.no_grad(), lens.hooks([*before, (stream(lens, reader), keep), (name, give)]):
        value = metric(lens(base.expand(len(STENCIL), -1))).double()
    return float(value @ torch.tensor(list(STENCIL.values())).double()) / h


def open_in(family, prompt, h=0.005):
    """What `slope` leaves open: the rounding of logits, divided by the step."""
    with torch.no_grad():
        return quotient(float(smooth(family)(prompt).abs().max()), h)


def edges_of(lens, *given, **options):
    """Edges from all writers to all readers that edges end at: to all, unless a shared block feeds some."""
    some = {"readers": followed(lens)} if any(layer.shared for layer in lens.cfg.layers) else {}
    return edge_attribution(lens, *given, **some, **options)


def untouched(lens):
    hooks = sum(point.asked() for point in lens.hook_dict.values())
    return hooks == 0 and all(weight.grad is None for weight in lens.hf_model.parameters())


@pytest.mark.parametrize("family", PATCHED)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_scores_are_the_slopes_of_true_path_patches(family, direction):
    """Random edges into every reader of the model: each query head, shared key and value head, mixer, MLP, logits."""
    lens, (clean, corrupt), rng = smooth(family), prompts(), random.Random(len(direction))
    base, order = (corrupt, (1, 0)) if direction == "denoise" else (clean, (0, 1))
    result = edges_of(lens, clean, corrupt, METRIC, direction=direction)
    assert result.writers == tuple(writers_of(lens))
    assert result.readers == tuple(followed(lens))
    here, there = (written(family, which)[0] for which in order)
    sizes = []
    for reader in result.readers:
        earlier = [w for w in result.writers if w.order < reader.order(lens.cfg.n_layers)]
        for writer in rng.sample(earlier, min(2, len(earlier))):
            h = 0.001 if ROWS[family].bends else 0.005  # a delta rule's unit vectors bend sooner
            expected = slope(family, base, reader, there[writer] - here[writer], h)
            close(
                result.score(writer, reader), expected, GRADIENT, extra=open_in(family, base, h), dtype=torch.float32,
                what=(writer, reader),
            )  # fmt: skip
            sizes.append(abs(expected))
    assert len(sizes) >= 1.5 * len(result.readers)
    assert sum(size > 0.01 for size in sizes) > len(sizes) / 3
    assert result.forwards == 2
    assert untouched(lens)


@pytest.mark.parametrize("family", PATCHED)
def test_writers_account_for_all_of_a_readers_input(family):
    """Their sum is the slope along the whole difference of the reader's input; whole mixers of attention, too."""
    lens, (clean, corrupt) = smooth(family), prompts()
    readers = list(dict.fromkeys([*followed(lens), *whole_mixers(lens)]))
    result = edge_attribution(lens, clean, corrupt, METRIC, readers=readers)
    here, there = written(family, 1)[1], written(family, 0)[1]
    for reader, total in zip(readers, result.scores.nansum(dim=0).tolist(), strict=True):
        name = stream(lens, reader)
        expected = slope(family, corrupt, reader, there[name][0] - here[name][0], h=0.002)
        close(total, expected, GRADIENT, extra=open_in(family, corrupt, 0.002), dtype=torch.float32, what=reader)
    for layer in {reader.layer for reader in whole_mixers(lens)} - set(lens.cfg.ssm_layers):
        parts = [i for i, r in enumerate(readers) if r.layer == layer and r.kind in ("q", "k", "v", "gate")]
        whole = readers.index(Reader("mixer", layer))
        close(result.scores[:, parts].sum(1), result.scores[:, whole], FORWARD, equal_nan=True, dtype=torch.float32)


@pytest.mark.parametrize("family", PATCHED)
def test_there_is_no_edge_to_what_comes_before(family):
    """NaN exactly where the reader's input is made before the writer writes, worked out from the forward order."""
    lens, (clean, corrupt) = smooth(family), prompts()
    result = edges_of(lens, clean, corrupt, METRIC)
    fires = list(lens.hook_points)
    last = {"head": "attn.hook_z", "ssm_head": "ssm.hook_normed", "ssm": "hook_ssm_out", "mlp": "hook_mlp_out"}
    for row, writer in enumerate(result.writers):
        at = -1 if writer.kind == "embed" else fires.index(f"blocks.{writer.layer}.{last[writer.kind]}")
        for column, reader in enumerate(result.readers):
            assert bool(result.scores[row, column].isnan()) == (at >= fires.index(stream(lens, reader)))


@pytest.mark.parametrize("family", PATCHED)
def test_integrated_gradients_are_the_mean_over_the_way(family):
    """Each step's gradient is taken, norms included, in a run whose embedding was moved by hand."""
    lens, (clean, corrupt), rng = smooth(family), prompts(), random.Random(2)
    result = edges_of(lens, clean, corrupt, METRIC, steps=2)
    (here, kept), (there, other) = written(family, 1), written(family, 0)
    ours, theirs = [], []
    for reader in result.readers[2::3]:
        writer = rng.choice([w for w in result.writers if w.order < reader.order(lens.cfg.n_layers)])
        expected = 0.0
        for way in (0.25, 0.75):
            embedded = kept["hook_embed"].lerp(other["hook_embed"], way)
            before = [("hook_embed", lambda x, hook, embedded=embedded: embedded.expand_as(x).clone())]
            expected += slope(family, corrupt, reader, there[writer] - here[writer], before=before) / 2
        ours.append(result.score(writer, reader))
        theirs.append(expected)
    close(ours, theirs, GRADIENT, extra=open_in(family, corrupt), dtype=torch.float32)
    assert result.forwards == 4
    assert result.metric.endswith("estimated by integrated gradients in 2 steps")


@pytest.mark.parametrize("family", PATCHED)
def test_estimates_agree_with_path_patching(family):
    """The same axes as exact path patching of all pairs, and a clear correlation with it."""
    lens, (clean, corrupt) = smooth(family), prompts()
    ends = writers_of(lens), followed(lens)
    result = edges_of(lens, clean, corrupt, METRIC, direction="noise")
    exact = path_patch(lens, clean, corrupt, METRIC, *ends, direction="noise", absent="untouched")
    found = edge_agreement(result, exact)
    assert found.patches == int((~result.scores.isnan()).sum()) < result.scores.numel()
    there = ~result.scores.isnan()
    shares = result.normalised[there], exact.normalised[there] - 1
    close(found.largest_error, float((shares[0] - shares[1]).abs().max()))
    close(found.pearson, float(torch.corrcoef(torch.stack(shares))[0, 1]), LAYER)  # of sums over all edges
    assert found.spearman > 0.4
    with pytest.raises(InputError, match="differ in their direction"):
        edge_agreement(edges_of(lens, clean, corrupt, METRIC), exact)
    with pytest.raises(InputError, match="of different edges"):
        edge_agreement(edge_attribution(lens, clean, corrupt, METRIC, readers=ends[1][:1], direction="noise"), exact)


def test_positions_in_portions_give_the_same(monkeypatch):
    lens, (clean, corrupt) = smooth("jamba"), prompts()
    whole = edge_attribution(lens, clean, corrupt, METRIC)
    monkeypatch.setattr(edges, "ELEMENTS", 4 * 32 * (len(whole.writers) + len(whole.readers)))
    portions = edge_attribution(lens, clean, corrupt, METRIC)
    close(portions.scores, whole.scores, LAYER, equal_nan=True, dtype=torch.float32)


@pytest.mark.parametrize("family", PATCHED)
def test_some_writers_and_readers_and_other_metrics(family):
    """A choice of both gives those rows and columns, whatever the metric reads."""
    lens, (clean, corrupt) = smooth(family), prompts()
    metric = LogProbability((4, 9))
    all_of_it = edges_of(lens, clean, corrupt, metric)
    later = [reader for reader in all_of_it.readers if reader.layer == 1][:1]
    chosen = [all_of_it.writers[1], Writer("embed")], [Reader("logits"), *later]
    some = edge_attribution(lens, clean, corrupt, metric, writers=chosen[0], readers=chosen[1])
    for writer in chosen[0]:
        for reader in chosen[1]:
            close(some.score(writer, reader), all_of_it.score(writer, reader), FORWARD, dtype=torch.float32)
            assert all_of_it.score(writer, reader) != 0


def test_results_are_saved_and_asked(tmp_path):
    lens, (clean, corrupt) = smooth("jamba"), prompts()
    result = edge_attribution(lens, clean, corrupt, METRIC)
    again = EdgeResult.load(result.save(tmp_path / "edges.safetensors"))
    assert torch.equal(again.scores.nan_to_num(7.0), result.scores.nan_to_num(7.0))
    for field in ("writers", "readers", "clean", "corrupt", "metric", "direction", "model", "clean_tokens", "forwards"):
        assert getattr(again, field) == getattr(result, field)
    top = result.top(5)
    sizes = sorted(result.scores[~result.scores.isnan()].abs().tolist(), reverse=True)
    assert [abs(score) for _, _, score in top] == sizes[:5]
    assert all(result.score(writer, reader) == score for writer, reader, score in top)
    assert len(result.top(10_000)) == len(sizes)
    close(result.normalised * (result.clean - result.corrupt), result.scores, equal_nan=True)
    with pytest.raises(InputError, match="there is no edge from 'L3 MLP' to 'L0 mixer in'"):
        result.score(Writer("mlp", 3), Reader("mixer", 0))
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not a saved EdgeResult"):
        EdgeResult.load(tmp_path / "other")


def test_what_cannot_be_estimated_is_refused_in_one_line():
    lens, (clean, corrupt) = smooth("jamba"), prompts()
    before = lens(clean).detach()

    def refused(message, metric=METRIC, error=InputError, **options):
        with pytest.raises(error, match=message) as caught:
            edge_attribution(lens, clean, corrupt, metric, **options)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, HybridLensError | RuntimeError)
        assert untouched(lens)

    def broken(logits):
        raise RuntimeError("mine")

    refused("metric 'rank of token 3 .*' has no gradient", Rank(3))
    refused("mine", broken, error=RuntimeError)
    refused("steps = 0 given", steps=0)
    refused("'up' does not exist", direction="up", error=UnknownNameError)
    refused("0 writers and 16 readers given", writers=[])
    beginnings = "edges begin at embed, head, ssm, ssm_head, mlp"
    refused(f"writer 'L1 expert 0' given, but {beginnings}", writers=[Writer("expert", 1, 0)])
    refused("writer 'L0 head 1': layer 0 has no heads", writers=[Writer("head", 0, 1)])
    refused("reader 'L1 kv head 3 k': the layer has key/value heads 0..1", readers=[Reader("k", 1, 3)])
    refused("'logits' was given twice", readers=[Reader("logits"), Reader("logits")])
    assert torch.equal(lens(clean), before)
