"""Circuits of families with gates, norms of queries and keys, matrix states, and two mixers in a layer.

References form what the analysis does not: matrices over the whole (small) vocabulary, products of every pair of maps,
and sums over tokens of what hook points hold.
"""

import pytest
import torch
from models import MATRIX_WITH_HEADS, make, tokens
from random_lens import small_lens

import hybridlens as hl
from analyses.circuits import HeadCircuits, circuits
from analyses.circuits.composition import KINDS, compositions
from analyses.circuits.eigen import matching_share, ov_eigenvalues, qk_eigenvalues
from analyses.circuits.gates import gate_errors
from analyses.circuits.paths import measured_paths, paths_at_rest
from analyses.circuits.positions import profile
from analyses.circuits.vocabulary import products
from hybridlens.errors import InputError
from hybridlens.weights import Weights

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""Sums of some hundred float32 products of order 1."""


def nonzero(matrix: torch.Tensor, n: int) -> list[float]:
    """The n largest absolute eigenvalues, descending."""
    return descending(torch.linalg.eigvals(matrix.double()))[:n]


def descending(values: torch.Tensor) -> list[float]:
    """Absolute values in order."""
    return sorted(values.abs().tolist(), reverse=True)


def normed(view, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A head's W_Q and W_K as scores compare them, with the weights of their norms, its own or of a joint one."""
    one, made = view.head(head), []
    for matrix, norm, own in ((one.W_Q, view.q_norm, head), (one.W_K, view.k_norm, view.kv_head(head))):
        made.append(matrix if norm is None else matrix * (norm if norm.ndim == 1 else norm[own]))
    return made[0], made[1]


@pytest.mark.parametrize("family", MATRIX_WITH_HEADS)
def test_eigenvalues_are_those_of_matrices_over_the_vocabulary(family):
    """OV with the gate at rest; QK with the norms' weights on queries and keys and the query turned by a distance."""
    weights = Weights.of_model(small_lens(family))
    (block,) = weights.vocabulary()
    E, U = block.E.double(), block.U.double()
    E0, U0 = E - E.mean(0), U - U.mean(0)
    shared = products(weights)
    layer = weights.cfg.attention_layers[0]
    view = weights.attention(layer)
    gate = 1.0 if view.W_gate is None else 0.5
    d_head, d_value = view.W_Q.shape[-1], view.W_V.shape[-1]
    ov, qk = ov_eigenvalues(view, shared.UE), qk_eigenvalues(view, shared.EE, 3)
    for head in range(view.n_heads):
        one, (W_Q, W_K) = view.head(head), normed(view, head)
        written = E @ one.W_V.double() @ (gate * one.W_O.double()) @ U0.T
        expected = nonzero(written, d_value)
        assert descending(ov[head]) == pytest.approx(expected, rel=1e-4, abs=1e-4 * expected[0])
        queries = E @ W_Q.double()
        queries = queries if view.rotary is None else view.rotary.turned(queries, 3)
        expected = nonzero(queries @ (E0 @ W_K.double()).T, d_head)
        assert descending(qk[head]) == pytest.approx(expected, rel=1e-4, abs=1e-4 * expected[0])
        keys = E @ W_K.double()
        scores = (E @ W_Q.double()) @ keys.T
        share = (scores.argmax(1) == torch.arange(len(E))).double().mean()
        assert float(matching_share(view, block.E)[head]) == pytest.approx(float(share), abs=1e-6)


@pytest.mark.parametrize("family", MATRIX_WITH_HEADS)
def test_profile_is_the_pattern_among_equal_tokens(family):
    """With one content at every position, the last query's pattern is the profile: its norms, turns and scale."""
    lens = small_lens(family)
    layer, n = lens.cfg.attention_layers[-1], 8
    content = torch.randn(lens.cfg.d_model, generator=torch.Generator().manual_seed(4))
    seen: list[torch.Tensor] = []
    read = "ln1.hook_normalized" if f"blocks.{layer}.ln1.hook_normalized" in lens.hook_points else "hook_mixer_in"
    same = (f"blocks.{layer}.{read}", lambda x, hook: content.expand_as(x))
    keep = (f"blocks.{layer}.attn.hook_pattern", lambda x, hook: seen.append(x[0, :, -1].flip(-1)))
    with torch.no_grad():
        lens.run_with_hooks(tokens(1, n), [same, keep])
    torch.testing.assert_close(profile(Weights.of_model(lens).attention(layer), content, n), seen[0], **CLOSE)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("falcon_h1", {}), ("falcon_h1", {"mamba_rms_norm": True}), ("qwen3_next", {}), ("kimi_linear", {})],
)
def test_measured_paths_and_their_error(family, changes):
    """Means and error of the linear path by loops over a run's tensors: of the recurrence's own write alone."""
    lens = hl.HybridLens(make(family, 2, **changes))
    weights, ids, lengths = Weights.of_model(lens), tokens(3, 11, seed=2), [11, 6, 9]
    paths, errors = measured_paths(lens, weights, ids, lengths)
    assert [path.layer for path in paths] == list(lens.cfg.ssm_layers)
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids)
    real = torch.arange(11) < torch.tensor(lengths)[:, None]
    for path, error in zip(paths, errors.tolist(), strict=True):
        parts, name = weights.recurrent(path.layer).parts, f"blocks.{path.layer}"
        seen = {point: cache[f"{name}.ssm.{point}"] for point in (*parts.gain_points, *parts.norm_points)}
        u, v = (cache[f"{name}.ssm.{point}"][..., parts.written] for point in ("hook_in", "hook_conv"))
        before = torch.zeros_like(u) if parts.b_conv is None else torch.zeros_like(u) + parts.b_conv
        for t in range(11):
            for lag in range(min(4, t + 1)):
                before[:, t] += u[:, t - lag] * parts.taps[:, lag]
        slope = (v * before)[real].sum(0) / before[real].square().sum(0)
        passed = (parts.gain(seen) * parts.norm(seen))[real].mean(0)
        channels = parts.taps * (slope * passed * cache[f"{name}.ssm.hook_gate"][real].mean(0))[:, None]
        torch.testing.assert_close(path.channels, channels, **CLOSE)
        linear = torch.zeros_like(u)
        for t in range(11):
            for lag in range(min(4, t + 1)):
                linear[:, t] += u[:, t - lag] * channels[:, lag]
        out, made = cache[f"{name}.hook_ssm_out"][real], (linear @ parts.W_out)[real]
        off = ((out - made) - (out - made).mean(0)).norm() / (out - out.mean(0)).norm()
        assert error == pytest.approx(float(off), rel=1e-4)


def test_gate_error_is_what_the_gate_at_rest_misses():
    """By head: what it writes less what it would write with a gate of one half, about the means, over real tokens."""
    lens = small_lens("qwen3_next")
    weights, ids, lengths = Weights.of_model(lens), tokens(3, 11, seed=2), [11, 6, 9]
    found = gate_errors(lens, weights, ids, lengths)
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids)
    real = torch.arange(11) < torch.tensor(lengths)[:, None]
    W_O = weights.attention(1).W_O
    for head in range(4):
        z, gated = (cache[f"blocks.1.attn.{point}"][real][:, head] for point in ("hook_z", "hook_z_gated"))
        out, missed = gated @ W_O[head], (gated - 0.5 * z) @ W_O[head]
        off = (missed - missed.mean(0)).norm() / (out - out.mean(0)).norm()
        assert float(found[0, head]) == pytest.approx(float(off), rel=1e-4)
    assert not gate_errors(small_lens("falcon_h1"), Weights.of_model(small_lens("falcon_h1")), ids).any()


@pytest.mark.parametrize("family", MATRIX_WITH_HEADS)
def test_composition_is_of_products_of_maps(family):
    """Every pair by its product; what stands beside a head in its own layer is no writer of it."""
    lens = small_lens(family)
    weights = Weights.of_model(lens)
    paths, _ = measured_paths(lens, weights, tokens(2, 12))
    found = compositions(weights, paths)
    layers = weights.cfg.attention_layers

    def score(writer: torch.Tensor, reader: torch.Tensor) -> float:
        return float((writer.double() @ reader.double()).norm() / writer.double().norm() / reader.double().norm())

    for i, layer in enumerate(layers):
        view = weights.attention(layer)
        for head in (0, 3):
            one, (W_Q, W_K) = view.head(head), normed(view, head)
            qk = W_Q @ W_K.T
            readers = {"q": qk, "k": qk.T, "v": one.W_V @ one.W_O}
            for k, kind in enumerate(KINDS):
                for j, path in enumerate(paths):
                    parts = weights.recurrent(path.layer).parts
                    writer = (parts.W_in * path.channels[:, 1]) @ parts.W_out
                    got = float(found.recurrent[k, i, head, j, 1])
                    if path.layer >= layer:
                        assert got != got
                    else:
                        assert got == pytest.approx(score(writer, readers[kind]), abs=1e-5)
                for j, other in enumerate(layers[:i]):
                    writer = weights.attention(other).head(1)
                    expected = score(writer.W_V @ writer.W_O, readers[kind])
                    assert float(found.heads[k, i, head, j, 1]) == pytest.approx(expected, abs=1e-5)


def test_a_delta_rule_has_no_path_at_rest():
    """Asked for it, one line; circuits leave it out and say so; on text it is measured, and a writer."""
    lens = small_lens("qwen3_next")
    weights = Weights.of_model(lens)
    with pytest.raises(InputError, match=r"of layer 0, 2 passes nothing on at rest, .* give real text"):
        paths_at_rest(weights)
    assert paths_at_rest(weights, leave_out=True) == []
    rest = circuits(lens, sample_size=40)
    assert rest.ssm_layers == ()
    assert [note.split(" ")[0] for note in rest.notes] == ["OV", "QK", "Recurrent"]
    assert "not measured" in rest.notes[0]
    assert "layers 0, 2 pass nothing on at rest" in rest.notes[2]
    measured = circuits(lens, tokens(2, 12), sample_size=40)
    assert measured.ssm_layers == (0, 2)
    assert len(measured.notes) == 2
    assert f"misses {float(measured.gate_error.min()):.2f} to" in measured.notes[0]
    torch.testing.assert_close(measured.copying, rest.copying)


def test_what_stands_in_a_file_comes_back(tmp_path):
    """Gate errors, notes and all else."""
    found = circuits(small_lens("qwen3_next"), tokens(2, 12), sample_size=40)
    back = HeadCircuits.load(found.save(tmp_path / "circuits.safetensors"))
    assert back.notes == found.notes
    assert torch.equal(back.gate_error, found.gate_error)
    torch.testing.assert_close(back.composition.recurrent, found.composition.recurrent, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1", "qwen3_next", "kimi_linear"])
def test_from_files_as_from_the_model(family, tmp_path):
    """Circuits at rest from the files alone; a model without heads is refused in one line."""
    lens = small_lens(family)
    lens.hf_model.save_pretrained(tmp_path)
    stored = hl.load_weights(tmp_path)
    if family == "mamba2":
        with pytest.raises(InputError, match="circuits of heads needs attention heads, but no layer of this mamba2"):
            circuits(stored)
        with pytest.raises(InputError, match="composition with heads needs attention heads"):
            compositions(stored, [])
        return
    ours, theirs = circuits(stored, sample_size=40), circuits(lens, sample_size=40)
    for metric in theirs.metrics:
        assert torch.equal(ours.score(metric), theirs.score(metric))
    assert ours.notes == theirs.notes


def test_a_model_without_recurrent_layers():
    """Heads alone: no lag, no path, and inducts through heads only."""
    lens = hl.HybridLens(make("jamba", 1, attn_layer_period=1, attn_layer_offset=0, num_hidden_layers=2))
    assert not lens.cfg.ssm_layers
    found = circuits(lens, sample_size=20)
    assert found.ssm_layers == ()
    assert found.composition.recurrent.shape[-2:] == (0, 0)
    assert bool(found.copying.isfinite().all())
