"""All circuits of a model put together: from a lens or from files the same, kept stage by stage, and what is refused.

The scores themselves are tested where they are made (`test_circuit_eigen.py`, `test_circuit_positions.py`,
`test_composition.py`, `test_linear_paths.py`) and on planted heads (`test_planted_heads.py`); here a wrong head, layer
or writer in putting them together would show, since every number is made again by hand, head by head.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import FORWARD, close
from models import FAMILIES, VOCAB, make, tokens

import hybridlens as hl
from analyses.circuits import METRICS, HeadCircuits, circuits
from analyses.circuits.composition import KINDS, Composition
from analyses.circuits.experiment import CircuitsRun
from analyses.circuits.paths import paths_at_rest
from analyses.circuits.strength import LEVELS, beyond_writers, induction
from analyses.experiment.options import circuits as options
from analyses.experiment.options.circuits import CircuitsConfig
from analyses.experiment.running import conduct
from hybridlens.errors import InputError, ResultsError, UnknownNameError
from hybridlens.weights import Weights, digest

LAYERS = {"recurrentgemma": {"num_hidden_layers": 6}, "jamba": {"num_hidden_layers": 8}}


def lens_of(family: str, seed: int = 0, **changes: Any) -> hl.HybridLens:
    """A random model with two attention layers and recurrent layers before either."""
    return hl.HybridLens(make(family, seed, **{**LAYERS[family], **changes}))


def equal(ours: HeadCircuits, theirs: HeadCircuits) -> None:
    """Raise unless every field is the same, bit for bit."""
    for field in fields(HeadCircuits):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(a, Composition):
            assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True))
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b), field.name
        else:
            assert a == b, field.name


def ratio(matrix: torch.Tensor) -> float:
    """Σλ ÷ Σ|λ| of a dense matrix."""
    values = torch.linalg.eigvals(matrix.double())
    return float(values.sum().real / values.abs().sum())


def own_highest(matrix: torch.Tensor) -> float:
    """The share of rows whose diagonal entry beats all others; a token of no embedding ties and does not count."""
    others = matrix.masked_fill(torch.eye(len(matrix), dtype=torch.bool), -torch.inf).amax(1)
    return float((matrix.diagonal() > others).float().mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_dense_matrices(family):
    """Copying and matching of every head, from the V × V matrices that are never formed otherwise."""
    lens = lens_of(family, 3, num_key_value_heads=2)
    weights, found = Weights.of_model(lens), circuits(lens)
    (block,) = weights.vocabulary()
    keys, rows = block.E - block.E.mean(0), block.U - block.U.mean(0)
    assert found.sample == VOCAB
    for i, layer in enumerate(lens.cfg.attention_layers):
        view = weights.attention(layer)
        for head in range(lens.cfg.n_heads):
            one = view.head(head)
            ov = block.E @ one.W_V @ one.W_O @ rows.T
            close(float(found.copying[i, head]), ratio(ov), FORWARD, scale=1.0, dtype=torch.float32)
            close(float(found.copying_share[i, head]), own_highest(ov), dtype=torch.float32)
            for at, distance in enumerate(found.distances):
                q = one.W_Q if view.rotary is None else view.rotary.turned(one.W_Q, distance)
                qk = block.E @ q @ (keys @ one.W_K).T
                close(float(found.matching[i, head, at]), ratio(qk), FORWARD, scale=1.0, dtype=torch.float32)
            unit = block.E / block.E.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
            q = one.W_Q if view.rotary is None else view.rotary.turned(one.W_Q, found.distances[0])
            close(float(found.matching_share[i, head]), own_highest(unit @ q @ (unit @ one.W_K).T), dtype=torch.float32)
    assert found.profile.shape[-1] == (7 if family == "recurrentgemma" else 128)
    assert (found.matching_rotary is None) == (family == "jamba")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_induction_through_the_best_writer(family, level):
    """Strength, writer and matching of the later layer's heads, by a loop over all earlier writers."""
    lens = lens_of(family, 5)
    weights, found = Weights.of_model(lens), circuits(lens, level=level)
    assert found.level == level
    (block,) = weights.vocabulary()
    keys = block.E - block.E.mean(0)
    k, paths = KINDS.index("k"), paths_at_rest(weights)
    later, composition = lens.cfg.attention_layers[1], found.composition
    for head in range(lens.cfg.n_heads):
        candidates = []
        earlier = [at for at, path in enumerate(paths) if path.layer < later]
        scores = [float(composition.recurrent[k, 1, head, at, 1]) for at in earlier]
        scores += [float(composition.heads[k, 1, head, 0, writer]) for writer in range(lens.cfg.n_heads)]
        mean = sum(scores) / len(scores)

        def above(score: float, excess: float, mean: float = mean) -> float:
            return max(excess if level == "random" else score / mean - 1, 0)

        for at, path in enumerate(paths):
            if path.layer < later:
                parts = weights.recurrent(path.layer).parts
                excess = above(
                    float(composition.recurrent[k, 1, head, at, 1]),
                    float(composition.excess_recurrent[k, 1, head, at, 1]),
                )
                map_ = parts.W_in @ torch.diag(path.channels[:, 1]) @ parts.W_out
                candidates.append((float(path.share[1]) * excess, at, map_))
        for writer in range(lens.cfg.n_heads):
            one = weights.attention(lens.cfg.attention_layers[0]).head(writer)
            beyond = max(0.0, float(found.profile[0, writer, 1]) - 1 / found.profile.shape[-1])
            excess = above(
                float(composition.heads[k, 1, head, 0, writer]), float(composition.excess_heads[k, 1, head, 0, writer])
            )
            candidates.append((beyond * excess, len(paths) + writer, one.W_V @ one.W_O))
        best = max(candidates, key=lambda candidate: candidate[0])
        copying = max(0.0, float(found.copying[1, head]))
        # What is beyond chance is the difference of two numbers up to 1, of which copying is taken; what is beyond the
        # other writers, of two up to the greatest ratio.
        scale = copying if level == "random" else copying * max(scores) / mean
        close(float(found.induction[1, head]), best[0] * copying, scale=scale, dtype=torch.float32)
        if best[0] == 0:
            assert int(found.induction_writer[1, head]) == -1
            continue
        assert int(found.induction_writer[1, head]) == best[1]
        view = weights.attention(later)
        one, expected = view.head(head), 0.0
        for distance in found.distances:
            q = one.W_Q if view.rotary is None else view.rotary.turned(one.W_Q, distance)
            expected += ratio(block.E @ q @ (keys @ best[2] @ one.W_K).T) / len(found.distances)
        close(float(found.induction_match[1, head]), expected, FORWARD, scale=1.0, dtype=torch.float32)


def test_induction_needs_a_writer_and_copying():
    """No earlier writer gives strength 0 and writer -1; so does composition below chance; anti-copying gives 0."""
    nan = torch.full((2, 2, 2, 2), torch.nan)
    profile = torch.tensor([[[0.2, 0.8, 0.0], [0.4, 0.2, 0.4]]]).repeat(2, 1, 1)
    share = torch.tensor([[0.5, 0.5]])
    heads = nan.clone()
    heads[1, :, 0] = torch.tensor([[0.3, 0.9], [-0.2, -0.1]])
    recurrent = torch.tensor([[[torch.nan], [torch.nan]], [[0.1], [-0.1]]])
    found = induction(heads, recurrent, profile, share, torch.tensor([[1.0, 1.0], [0.5, 0.5]]))
    beyond = 0.8 - 1 / 3
    close(found.strength, torch.tensor([[0.0, 0.0], [0.3 * beyond * 0.5, 0.0]]))
    assert found.writer.tolist() == [[-1, -1], [1, -1]]
    anti = induction(heads, recurrent, profile, share, -torch.ones(2, 2))
    assert float(anti.strength.abs().max()) == 0
    assert anti.writer.tolist() == found.writer.tolist()


def test_the_options_know_every_metric_and_level():
    """They import no model, and so name them again."""
    assert tuple(METRICS) == options.METRICS
    assert tuple(LEVELS) == options.LEVELS


def test_beyond_the_other_writers():
    """By hand: a ratio to the mean over what is earlier, of both kinds together; nothing where all are alike."""
    nan = torch.nan
    heads = torch.tensor([[[[nan, nan], [nan, nan]], [[nan, nan], [nan, nan]]], [[[3.0, 1.0], [nan, nan]]] * 2])
    heads[1, 1, 0] = 0.0
    recurrent = torch.tensor([[[2.0, nan], [0.0, nan]], [[4.0, 0.0], [0.0, 0.0]]])
    ours, theirs = beyond_writers(heads, recurrent)
    expected = torch.full_like(heads, nan)
    expected[1, 0, 0] = torch.tensor([0.5, -0.5])  # of 3, 1, 4 and 0 the mean is 2
    expected[1, 1, 0] = 0.0
    close(ours, expected, equal_nan=True)
    close(theirs, torch.tensor([[[0.0, nan], [0.0, nan]], [[1.0, -1.0], [0.0, 0.0]]]), equal_nan=True)
    with pytest.raises(UnknownNameError, match="level 'writer' does not exist; close names: writers"):
        circuits(lens_of("jamba", 5), level="writer")


@pytest.mark.parametrize("family", FAMILIES)
def test_files_and_model_agree_and_results_are_kept(family, tmp_path):
    """From shards on disk and from memory: the same bits; saved and read again: the same bits."""
    lens = lens_of(family)
    lens.hf_model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    found = circuits(lens)
    equal(circuits(hl.load_weights(tmp_path / "model")), found)
    equal(HeadCircuits.load(found.save(tmp_path / "c.safetensors")), found)
    for metric in found.metrics:
        ranking = found.ranking(metric)
        assert torch.equal(ranking.scores, found.score(metric).float())
        assert not ranking.lower_is_better
        assert METRICS[metric].words in ranking.source
    lens.prefill(tokens(1, 3)).state.save(tmp_path / "state.safetensors")
    with pytest.raises(InputError, match="is not a saved HeadCircuits"):
        HeadCircuits.load(tmp_path / "state.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        HeadCircuits.load(tmp_path / "none.safetensors")


def test_measured_on_text():
    """With text, recurrent layers are taken at their means, their error is known, and profiles see the mean input."""
    lens = lens_of("recurrentgemma", 2)
    rest, text = circuits(lens), tokens(3, 12, seed=4)
    found = circuits(lens, text)
    assert rest.path_error is None
    assert found.path_error is not None
    assert found.path_error.shape == (4,)
    assert found.linearised == "at the mean of 36 tokens"
    assert not torch.equal(found.lag_share, rest.lag_share)
    assert torch.equal(found.copying, rest.copying)
    _, cache = lens.run_with_cache(text)
    layer = lens.cfg.attention_layers[1]
    mean = cache[f"blocks.{layer}.ln1.hook_normalized"].mean((0, 1))
    view = Weights.of_model(lens).attention(layer)
    assert view.rotary is not None
    q, k = torch.einsum("d,hde->he", mean, view.W_Q), torch.einsum("d,hde->he", mean, view.W_K)
    scores = torch.stack([(view.rotary.turned(q, back) * k).sum(-1) for back in range(7)], -1) / 8**0.5
    close(found.profile[1], scores.softmax(-1), FORWARD)


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """What was finished is not made again, and the result is that of one run; other weights make all of it again."""
    import analyses.circuits.running as running

    lens = lens_of("jamba")
    config = CircuitsConfig(model="m")
    calls: list[str] = []
    product, compose = running.products, running.compositions
    monkeypatch.setattr(running, "products", lambda weights: calls.append("vocabulary") or product(weights))

    def killed(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "compositions", killed)
    with pytest.raises(KeyboardInterrupt):
        conduct(CircuitsRun(lens, config), tmp_path / "out")
    assert calls == ["vocabulary"]
    monkeypatch.setattr(running, "compositions", compose)
    done: list[tuple[int, int]] = []
    result = conduct(CircuitsRun(lens, config), tmp_path / "out", progress=lambda n, total: done.append((n, total)))
    assert calls == ["vocabulary"]
    assert done[0][0] == 0
    assert done[-1][0] == done[-1][1]
    assert not (tmp_path / "out" / "parts").exists()
    equal(result.result.circuits, circuits(lens, model="m"))
    assert set(result.result.rankings) == set(result.result.circuits.metrics)
    assert (tmp_path / "out" / "rankings" / "copying.json").is_file()
    again = conduct(CircuitsRun(lens, config), tmp_path / "out")
    equal(again.result.circuits, result.result.circuits)
    assert calls == ["vocabulary", "vocabulary"]  # the second by `circuits` above; none by going on
    with pytest.raises(ResultsError, match="--sample"):
        conduct(CircuitsRun(lens, CircuitsConfig(model="m", sample=10)), tmp_path / "out")
    with pytest.raises(ResultsError, match="weights"):
        conduct(CircuitsRun(lens_of("jamba", 1), config), tmp_path / "out")


def test_a_distance_of_0_alone_is_taken_as_given(tmp_path):
    """Of a model with rotary embedding: left out, powers of two are taken; 0 asked for is 0, as the record has it."""
    lens = lens_of("recurrentgemma")
    found = conduct(CircuitsRun(lens, CircuitsConfig(model="m", sample=10, distances=(0,))), tmp_path / "out").result
    assert found.circuits.distances == (0,)
    assert found.circuits.matching.shape[-1] == 1


def test_digest_is_of_what_circuits_read(tmp_path):
    """An expert's weight changes nothing; a head's, a tap's or an embedding's does; files and memory agree."""
    lens = lens_of("jamba")
    lens.hf_model.save_pretrained(tmp_path)
    first = digest(Weights.of_model(lens))
    assert digest(hl.load_weights(tmp_path)) == first
    state = lens.hf_model.state_dict()
    for name, changes in (
        ("model.layers.1.feed_forward.experts.down_proj", False),
        ("model.layers.5.self_attn.v_proj.weight", True),
        ("model.layers.0.mamba.conv1d.weight", True),
        ("model.embed_tokens.weight", True),
    ):
        with torch.no_grad():
            state[name].view(-1)[3] += 1
        assert (digest(Weights.of_model(lens)) != first) == changes
        first = digest(Weights.of_model(lens))


def test_bad_input_says_what_is_wrong(tmp_path):
    """One line each, before anything is computed."""
    jamba, gemma = lens_of("jamba"), lens_of("recurrentgemma")
    with pytest.raises(InputError, match=r"distances \[1\] given, but the model has no rotary embedding"):
        circuits(jamba, distances=[1])
    for wrong in ([], [7], [-1], [2, 2]):
        with pytest.raises(InputError, match=r"expected different ones of 0\.\.6, the window's"):
            circuits(gemma, distances=wrong)
    with pytest.raises(InputError, match="sample of 1 tokens"):
        circuits(jamba, sample_size=1)
    with pytest.raises(InputError, match="tokens were given with weights"):
        circuits(Weights.of_model(jamba), tokens(1, 4))
    found = circuits(jamba, model="mine")
    with pytest.raises(InputError, match="metric 'previous' needs rotary embedding, and mine has none"):
        found.ranking("previous")
    with pytest.raises(UnknownNameError, match="metric 'copyin' does not exist; close names: copying"):
        found.score("copyin")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="cannot be used"):
        conduct(CircuitsRun(jamba, CircuitsConfig(model="m")), tmp_path / "file" / "out")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ResultsError, match=r"no readable run\.json of this version"):
        conduct(CircuitsRun(jamba, CircuitsConfig(model="m")), Path(tmp_path))
