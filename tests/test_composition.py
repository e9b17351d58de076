"""Composition against dense matrices, TransformerLens and Monte Carlo over random rotations.

No score of two random models agrees by chance: each pair of writer and reader has its own matrices.
"""

import math

import pytest
import torch
from bounds import FORWARD, LAYER, close, near
from models import make
from transformer_lens import FactoredMatrix
from transformer_lens.utilities import composition_scores

import hybridlens as hl
from analyses.circuits import grams
from analyses.circuits.chance import expected_score, relative_variance
from analyses.circuits.composition import KINDS, Composition, compositions
from analyses.circuits.paths import LinearPath, paths_at_rest
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.weights import Weights

CASES = [
    ("recurrentgemma", {}), ("recurrentgemma", {"num_key_value_heads": 2}),
    ("jamba", {"num_key_value_heads": 1}), ("jamba", {}), ("jamba", {"num_key_value_heads": 4}),
]  # fmt: skip
# Norms of products of 32 × 32 matrices, read from Gram matrices: a square and its root keep the digits.


def weights_of(model) -> Weights:
    return Weights.of_model(hl.HybridLens(model))


def model_of(family: str, **changes):
    """Eight layers, of which two attend."""
    return make(family, 6, num_hidden_layers=8, **changes)


def composed(model) -> Composition:
    weights = weights_of(model)
    return compositions(weights, paths_at_rest(weights))


def reader(view, head: int, kind: str) -> torch.Tensor:
    """d × d, float64."""
    one = [x.double() for x in view.head(head)]
    return {"q": one[0] @ one[1].T, "k": one[1] @ one[0].T, "v": one[2] @ one[3]}[kind]


def spread(gram: torch.Tensor) -> torch.Tensor:
    """‖G‖² of a Gram scaled to trace 1."""
    return (gram / gram.trace()).square().sum()


def dense(weights: Weights, paths: list[LinearPath], kinds=KINDS) -> Composition:
    """All of it with every matrix formed, pair by pair."""
    cfg = weights.cfg
    layers, heads = cfg.attention_layers, cfg.n_heads
    shape = (len(kinds), len(layers), heads)
    found = [
        torch.full((*shape, *more), torch.nan, dtype=torch.float64)
        for more in ((len(layers), heads), (len(paths), cfg.d_conv)) * 2
    ]
    writers = []  # (which of the tensors, its place there, layer, matrix)
    for i, layer in enumerate(layers):
        view = weights.attention(layer)
        writers += [(0, (i, head), layer, reader(view, head, "v")) for head in range(heads)]
    for i, path in enumerate(paths):
        parts = weights.recurrent(path.layer).parts
        for lag in range(cfg.d_conv):
            matrix = parts.W_in.double() @ path.channels[:, lag].double().diag() @ parts.W_out.double()
            writers.append((1, (i, lag), path.layer, matrix))
    for k, kind in enumerate(kinds):
        for i, layer in enumerate(layers):
            for head in range(heads):
                R = reader(weights.attention(layer), head, kind)
                for which, place, written, W in writers:
                    if written < layer:
                        found[which][k, i, head, *place] = (W @ R).norm() / W.norm() / R.norm()
                        expected = expected_score(spread(W.T @ W), spread(R @ R.T), cfg.d_model)
                        found[which + 2][k, i, head, *place] = expected
    return Composition(*(x.float() for x in found))


def same(ours: Composition, theirs: Composition, steps: int = LAYER) -> None:
    for name, one, two in zip(ours._fields, ours, theirs, strict=True):
        close(one, two, steps, equal_nan=True, what=name)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_dense(family, changes, monkeypatch):
    """Scores, expectations and what is no number agree with dense matrices, in float64 and float32."""
    weights = weights_of(model_of(family, **changes))
    paths = paths_at_rest(weights)
    expected = dense(weights, paths)
    ours = compositions(weights, paths)
    same(ours, expected)
    finite = ours.heads.isfinite()
    assert bool(finite[:, 1, :, 0].all())
    assert int(finite.sum()) == 3 * weights.cfg.n_heads**2
    close(ours.excess_heads, ours.heads - ours.heads_expected, equal_nan=True)
    close(ours.excess_recurrent, ours.recurrent - ours.recurrent_expected, equal_nan=True)
    monkeypatch.setattr(grams, "DOUBLE", 0)
    same(compositions(weights, paths), expected, FORWARD)


@pytest.mark.parametrize("memory", [1, 150_000, 400_000])
def test_memory_changes_nothing(memory):
    """One writer at a time in bands of one row, or some in larger bands: the same numbers."""
    weights = weights_of(model_of("jamba"))
    paths = paths_at_rest(weights)
    same(compositions(weights, paths, memory=memory), compositions(weights, paths))


@pytest.mark.parametrize("kinds", [("k",), ("v", "q")])
def test_kinds_paths_and_their_order(kinds):
    """Only the kinds and recurrent layers asked for, in the order given."""
    weights = weights_of(model_of("recurrentgemma"))
    paths = paths_at_rest(weights)[3::-2]
    same(compositions(weights, paths, kinds), dense(weights, paths, kinds))
    assert compositions(weights, [], kinds).recurrent.shape == (len(kinds), 2, 4, 0, 4)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_transformer_lens(family, changes):
    """TransformerLens' scores of FactoredMatrix, for heads and for each lag."""
    weights = weights_of(model_of(family, **changes))
    paths = paths_at_rest(weights)
    ours = compositions(weights, paths)
    early, late = (weights.attention(layer) for layer in weights.cfg.attention_layers)

    def factored(view, kind: str) -> FactoredMatrix:
        W_K, W_V = (view.expanded(x).flatten(0, 1) for x in (view.W_K, view.W_V))
        A, B = {"q": (view.W_Q, W_K.mT), "k": (W_K, view.W_Q.mT), "v": (W_V, view.W_O)}[kind]
        return FactoredMatrix(A, B)

    for k, kind in enumerate(KINDS):
        scores = composition_scores(factored(early, "v"), factored(late, kind))
        close(ours.heads[k, 1, :, 0], scores.T, FORWARD)
        for i, path in enumerate(paths):
            if path.layer > late.layer:
                continue
            parts = weights.recurrent(path.layer).parts
            left = FactoredMatrix(parts.W_in * path.channels.T[:, None], parts.W_out.expand(4, -1, -1))
            scores = composition_scores(left, factored(late, kind))
            close(ours.recurrent[k, 1, :, i], scores.T, FORWARD)


def test_identities():
    """Writer and readers that are d × d identities score 1/√d, which is what chance gives: the excess is 0."""
    model = model_of("jamba", num_attention_heads=1, num_key_value_heads=1)
    with torch.no_grad():
        for layer in (1, 5):
            block = model.model.layers[layer]
            block.input_layernorm.weight.fill_(1.0)
            for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(block.self_attn, part).weight.copy_(torch.eye(32))
    ours = composed(model)
    close(ours.heads[:, 1, 0, 0, 0], torch.full((3,), 32**-0.5))
    close(ours.excess_heads[:, 1, 0, 0, 0], torch.zeros(3))


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_what_changes_nothing(family, changes):
    """A rotation inside a head, and a rescaling between its two matrices, of any size: the functions are the same."""
    model = model_of(family, **changes)
    before = composed(model)
    weights = weights_of(model)
    cfg = weights.cfg
    kv, e = cfg.n_kv_heads, cfg.d_head
    turns = torch.linalg.qr(torch.randn(2, kv, e, e)).Q
    with torch.no_grad():
        for layer in cfg.attention_layers:
            block = model.model.layers[layer]
            attention = block.temporal_block if family == "recurrentgemma" else block.self_attn
            for part, turn, factor in (("q", 0, 1e-12), ("k", 0, 1e12), ("v", 1, 1e15)):
                weight = getattr(attention, f"{part}_proj").weight
                rows = weight.view(kv, -1, e, cfg.d_model)
                weight.copy_((factor * turns[turn][:, None].mT @ rows).reshape(weight.shape))
            weight = attention.o_proj.weight
            columns = weight.T.reshape(kv, -1, e, cfg.d_model)
            weight.copy_(1e-15 * (turns[1][:, None].mT @ columns).reshape(-1, cfg.d_model).T)
    same(composed(model), before, FORWARD)


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba"])
def test_heads_in_another_order(family):
    """Permuted query heads (inside their group) permute rows and columns, and change nothing else."""
    model = model_of(family, num_key_value_heads=1)
    before = composed(model)
    cfg = weights_of(model).cfg
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for layer in cfg.attention_layers:
            block = model.model.layers[layer]
            attention = block.temporal_block if family == "recurrentgemma" else block.self_attn
            q, o = attention.q_proj.weight, attention.o_proj.weight
            q.copy_(q.view(4, -1, cfg.d_model)[order].reshape(q.shape))
            o.copy_(o.view(cfg.d_model, 4, -1)[:, order].reshape(o.shape))
    after = composed(model)
    close(after.heads, before.heads[:, :, order][..., order], LAYER, equal_nan=True)
    close(after.recurrent, before.recurrent[:, :, order], LAYER, equal_nan=True)
    assert not near(after.heads, before.heads, equal_nan=True)


def test_heads_that_do_nothing():
    """A head or layer whose maps are 0 has scores and expectations of 0, not 0/0; the others keep theirs."""
    model = model_of("jamba")
    before = composed(model)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0  # head 1 of layer 1 writes nothing
        model.model.layers[5].self_attn.q_proj.weight[16:24] = 0  # head 2 of layer 5 looks at nothing
        model.model.layers[0].mamba.out_proj.weight.zero_()
    after = composed(model)
    for name in ("heads", "heads_expected", "recurrent", "recurrent_expected"):
        one, two = getattr(before, name).clone(), getattr(after, name)
        one[:2, 1, 2][one[:2, 1, 2].isfinite()] = 0
        if name.startswith("heads"):
            one[:, 1, :, 0, 1] = 0
        else:
            one[..., 0, :] = 0
        close(two, one, LAYER, equal_nan=True)


def test_shared_values_bound_the_rank():
    """Heads that share W_V read the same d_head directions, so their OV maps side by side have no higher rank."""
    view = weights_of(model_of("jamba")).attention(1)
    maps = torch.stack([reader(view, head, "v") for head in range(4)])
    for kv in range(2):
        side_by_side = torch.cat(list(maps[2 * kv : 2 * kv + 2]), dim=1)
        assert int(torch.linalg.matrix_rank(side_by_side)) == 8
    assert int(torch.linalg.matrix_rank(torch.cat(list(maps), dim=1))) == 16
    assert int(torch.linalg.matrix_rank(torch.cat(list(maps[:2]), dim=0))) == 16, "stacked, they write apart"


# Chance.

SPECTRA = {
    "rank 1": torch.eye(1),
    "rank 2": torch.tensor([1.0, 0.5]).diag(),
    "rank 4": torch.ones(4).diag(),
    "rank 8": torch.linspace(0.2, 1, 8).diag(),
    "full": torch.linspace(0.1, 1, 24).diag(),
    "steep": (0.7 ** torch.arange(24.0)).diag(),
    "flat": torch.eye(24),
}


def haar(n: int, d: int) -> torch.Tensor:
    """Uniform orthogonal matrices: QR of Gaussian ones with R's diagonal made positive."""
    Q, R = torch.linalg.qr(torch.randn(n, d, d, dtype=torch.float64))
    return Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None]


@pytest.fixture(scope="module")
def turns() -> torch.Tensor:
    torch.manual_seed(1)
    return haar(20_000, 24)


@pytest.mark.parametrize(
    ("writer", "reader", "within"),
    [
        ("rank 1", "rank 1", 0), ("rank 1", "rank 4", 0.002), ("rank 1", "rank 8", 0.001), ("rank 2", "rank 2", 0.018),
        ("rank 2", "full", 0.001), ("rank 4", "rank 8", 0), ("rank 8", "rank 8", 0), ("rank 8", "full", 0),
        ("steep", "steep", 0.003), ("steep", "full", 0), ("full", "full", 0), ("flat", "rank 1", 0),
    ],
)  # fmt: skip
def test_chance(writer, reader, within, turns):
    """20,000 Haar rotations: mean and variance of the squared score, and the mean score, all as computed.

    Means are within four standard errors of the sample, and the mean score within its stated inexactness beside.
    """
    d = 24
    W, R = (SPECTRA[name].double() for name in (writer, reader))
    W = torch.nn.functional.pad(W, (0, d - W.shape[1]))
    R = torch.nn.functional.pad(R, (0, 0, 0, d - R.shape[0]))
    squared = (W @ turns @ R).square().sum((1, 2)) / W.square().sum() / R.square().sum()
    pair = spread(W.T @ W), spread(R @ R.T)
    variance = float(relative_variance(*pair, d)) / d**2
    assert float(squared.mean()) == pytest.approx(1 / d, abs=4 * math.sqrt(variance / len(turns)) + 1e-12)
    assert float(squared.var()) == pytest.approx(variance, rel=0.06, abs=1e-20)  # 4 √(2 / 20,000), of longer tails
    score, expected = squared.sqrt(), float(expected_score(*pair, d))
    sampling = 4 * float(score.std()) / math.sqrt(len(turns))
    assert float(score.mean()) == pytest.approx(expected, abs=within * expected + sampling + 1e-9)
    assert sampling < 0.025 * d**-0.5


def test_chance_in_closed_form():
    """Rank 1 against rank 1 is |cos| of two random directions; a flat spectrum leaves nothing to chance."""
    one = torch.ones((), dtype=torch.float64)
    for d in (2, 3, 24, 4096):
        exact = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
        # A logarithm's rounding is as large as the logarithm, and of that size relative to its exponential.
        close(float(expected_score(one, one, d)), exact, scale=exact * max(1.0, math.lgamma(d)))
        close(float(expected_score(one / d, one, d)), d**-0.5)
    assert float(expected_score(one * 0, one, 24)) == 0


def test_chance_agrees_with_its_expansion():
    """To first order it is √μ (1 − Var / 8μ²), across the change from gamma functions to their series too."""
    d = 4096
    for rank in (6, 8, 10, 12, 16, 64, 256):
        share = torch.tensor(1 / rank, dtype=torch.float64)
        v = float(relative_variance(share, share, d))
        expansion = d**-0.5 * (1 - v / 8)
        assert float(expected_score(share, share, d)) == pytest.approx(expansion, rel=v / d + v**2 / 32)


def test_bad_input():
    weights = weights_of(model_of("jamba"))
    paths = paths_at_rest(weights)
    with pytest.raises(UnknownNameError, match="kind 'o' of composition does not exist; expected some of q, k, v"):
        compositions(weights, paths, ["q", "o"])
    with pytest.raises(InputError, match=r"kinds \['k', 'k'\] given, expected at least one of q, k, v, each once"):
        compositions(weights, paths, ["k", "k"])
    with pytest.raises(InputError, match=r"linear paths of layers \[0, 0\] given, expected recurrent layers \(0, 2, 3"):
        compositions(weights, [paths[0], paths[0]])
    with pytest.raises(InputError, match=r"linear paths of layers \[1\] given"):
        compositions(weights, [paths[0]._replace(layer=1)])
    with pytest.raises(InputError, match=r"layer 0's linear path has shape \[9, 4\], expected \[64, 4\]"):
        compositions(weights, [paths[0]._replace(channels=torch.zeros(9, 4))])
    none = weights_of(make("jamba", 0, attn_layer_period=9, attn_layer_offset=8))
    with pytest.raises(InputError, match="composition with heads needs attention heads, but no layer of this jamba"):
        compositions(none, [])
