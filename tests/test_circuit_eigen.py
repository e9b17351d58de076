"""Eigenvalues and shares of OV and QK circuits against the matrices over the vocabulary, which are formed here.

Weights, norms and biases are random, so a matrix transposed, a head read with another's keys, or a norm's weight left
out gives another spectrum altogether. Vocabularies have 53 tokens, so chance gives a share of about 1/53.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from bounds import FORWARD, LAYER, bound, close, near
from models import FAMILIES, make
from transformer_lens import FactoredMatrix

import hybridlens as hl
from analyses.circuits import eigen, vocabulary
from analyses.circuits.eigen import copying_share, matching_share, ov_eigenvalues, positivity, qk_eigenvalues
from analyses.circuits.vocabulary import products, sample
from hybridlens.errors import CheckpointError, InputError, UnknownNameError
from hybridlens.mixers.rotary import Turning
from hybridlens.weights import AttentionWeights, Weights

CHANGES = {
    "recurrentgemma": [{}, {"num_key_value_heads": 2, "attention_bias": True}, {"tie_word_embeddings": False}],
    "jamba": [{}, {"num_key_value_heads": 1, "tie_word_embeddings": True}, {"num_key_value_heads": 4}],
}
CASES = [(family, changes) for family in FAMILIES for changes in CHANGES[family]]


def seen(family: str, changes: dict) -> tuple[Weights, AttentionWeights, torch.Tensor, torch.Tensor]:
    """A random model's weights, its attention layer, and E and U of the whole vocabulary."""
    weights = Weights.of_model(hl.HybridLens(make(family, 3, **changes)))
    every = torch.arange(weights.cfg.d_vocab)
    return weights, weights.attention(weights.cfg.attention_layers[0]), weights.embed(every), weights.unembed(every)


def heads(n: int = 4, kv: int = 2, d: int = 24, e: int = 8, rotary: Turning | None = None, seed: int = 0):
    """A layer of random heads without biases."""
    g = torch.Generator().manual_seed(seed)
    q, k, v, o = (torch.randn(*s, generator=g) for s in ((n, d, e), (kv, d, e), (kv, d, e), (n, e, d)))
    return AttentionWeights(5, q, k, v, o, None, None, None, None, rotary, None, e**-0.5)


def symmetric(d: int, seed: int = 1) -> torch.Tensor:
    """X^T X of 60 random tokens."""
    x = torch.randn(60, d, generator=torch.Generator().manual_seed(seed))
    return x.T @ x


def assert_same(found: torch.Tensor, expected: np.ndarray | torch.Tensor) -> None:
    """The values of `found`, with zeros for the rest, are those of `expected`, one for one.

    An eigenvalue may move by more than the matrix does: by the condition of its vectors, which here is below 32.
    """
    expected = np.asarray(expected)
    left = [*found.tolist(), *[0j] * (len(expected) - len(found))]
    assert len(left) == len(expected)
    for value in expected:
        nearest = min(left, key=lambda z: abs(z - value))
        assert abs(nearest - value) < 32 * bound(np.abs(expected).max(), LAYER)
        left.remove(nearest)


def centred(rows: torch.Tensor) -> torch.Tensor:
    """What is left of the rows without what they share."""
    return rows - rows.mean(0)


def spectrum(dense: torch.Tensor) -> np.ndarray:
    """All eigenvalues of a matrix, by numpy in float64."""
    return np.linalg.eigvals(dense.double().numpy())


def rotation(rotary: Turning, d_head: int, distance: int) -> torch.Tensor:
    """The matrix that turns a row vector, float64, entry by entry."""
    turn, half = torch.eye(d_head, dtype=torch.float64), rotary.dims // 2
    for i in range(half):
        angle = torch.tensor(distance * rotary.base ** (-2 * i / rotary.dims), dtype=torch.float64)
        turn[i, i] = turn[i + half, i + half] = angle.cos()
        turn[i, i + half], turn[i + half, i] = angle.sin(), -angle.sin()
    return turn


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_products(family, changes, monkeypatch):
    """In blocks and tiles that do not fit the sizes, the sums are those of the whole matrices.

    The padding token's embedding is zero in new models: it has no direction, and adds nothing to the mean.
    """
    weights, _, E, U = seen(family, changes)
    assert not E[0].any()
    assert E[1:].any(1).all()
    monkeypatch.setattr(vocabulary, "TILE", 12)
    for block in (53, 20):
        found = products(weights, block)
        close(found.UE, centred(U).T @ E, FORWARD)
        close(found.EE, centred(E).T @ E, FORWARD)
        assert torch.equal(found.EE, found.EE.T)
        directions = E[1:] / E[1:].pow(2).mean(1, keepdim=True).sqrt()
        close(found.mean, directions.sum(0) / 53, FORWARD)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_ov_eigenvalues(family, changes):
    """The spectrum of the matrix over the vocabulary, formed in float64, head by head."""
    weights, attention, E, U = seen(family, changes)
    found = ov_eigenvalues(attention, products(weights).UE)
    assert found.shape == (attention.n_heads, weights.cfg.d_head)
    for h in range(attention.n_heads):
        one = attention.head(h)
        dense = E.double() @ one.W_V.double() @ one.W_O.double() @ centred(U).double().T
        assert_same(found[h], spectrum(dense))
        score = float(dense.trace()) / np.abs(spectrum(dense)).sum()
        close(float(positivity(found)[h]), score, FORWARD, scale=1.0, dtype=torch.float32)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_qk_eigenvalues(family, changes):
    """Turned to any distance and of any part, the spectrum of the scores of every token for every token."""
    weights, attention, E, _ = seen(family, changes)
    EE, d_head = products(weights).EE, weights.cfg.d_head
    turning = 0 if attention.rotary is None else attention.rotary.dims
    parts = {"all": slice(0, d_head), "free": slice(turning, d_head)}
    if attention.rotary is not None:
        parts["rotary"] = slice(0, turning)
    for part, chosen in parts.items():
        for distance in (None, 0, 1, 6):
            turn = torch.eye(d_head, dtype=torch.float64)
            if attention.rotary is not None:
                turn = rotation(attention.rotary, d_head, distance or 0)
            found = qk_eigenvalues(attention, EE, distance, part)
            for h in range(attention.n_heads):
                one = attention.head(h)
                queries = (E.double() @ one.W_Q.double() @ turn)[:, chosen]
                assert_same(found[h], spectrum(queries @ (centred(E).double() @ one.W_K.double())[:, chosen].T))


def test_a_distance_turns_the_rotary_half_only():
    """Distances change the rotary part and the whole, and not one bit of the free part."""
    attention, EE = heads(rotary=Turning(4, 100.0)), symmetric(24)
    for part, same in (("all", False), ("rotary", False), ("free", True)):
        near, far = (qk_eigenvalues(attention, EE, distance, part) for distance in (1, 9))
        assert torch.equal(near, far) == same
    without = replace(attention, rotary=None)
    assert torch.equal(qk_eigenvalues(without, EE, 3), qk_eigenvalues(attention, EE))
    assert torch.equal(qk_eigenvalues(without, EE, 3, "free"), qk_eigenvalues(attention, EE))


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_transformer_lens(family):
    """FactoredMatrix, which multiplies each head's factors over the vocabulary, has the same eigenvalues."""
    weights, attention, E, U = seen(family, {})
    found = products(weights)
    ov, qk = ov_eigenvalues(attention, found.UE), qk_eigenvalues(attention, found.EE)
    for h in range(attention.n_heads):
        one = attention.head(h)
        for ours, theirs in (
            (ov[h], FactoredMatrix(E @ one.W_V, one.W_O @ centred(U).T).eigenvalues),
            (qk[h], FactoredMatrix(E @ one.W_Q, one.W_K.T @ centred(E).T).eigenvalues),
        ):
            assert_same(ours, theirs)
            score = theirs.sum().real / theirs.abs().sum()
            close(positivity(ours), score, FORWARD, scale=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_softmax_sees_nothing_else(family):
    """One vector added to every embedding's key, or to every unembedding row, changes no score.

    The vector is large, so that with it left in it would decide every spectrum.
    """
    weights, attention, E, U = seen(family, {"tie_word_embeddings": False})
    found = products(weights)
    shift = 30 * torch.randn(E.shape[1])
    for h in range(attention.n_heads):
        one = attention.head(h)
        keys, rows = centred(E + shift) @ one.W_K, centred(U + shift)
        assert_same(qk_eigenvalues(attention, found.EE)[h], spectrum(E @ one.W_Q @ keys.T))
        assert_same(ov_eigenvalues(attention, found.UE)[h], spectrum(E @ one.W_V @ one.W_O @ rows.T))


def test_identities():
    """An OV map that is I copies (1), one that is -I does the reverse (-1), a quarter-turn and zero do neither (0)."""
    d = 8
    quarter = torch.zeros(d, d)
    quarter[: d // 2, d // 2 :], quarter[d // 2 :, : d // 2] = torch.eye(d // 2), -torch.eye(d // 2)
    maps = torch.stack([torch.eye(d), -torch.eye(d), quarter, torch.zeros(d, d)])
    one = torch.eye(d)[None]
    attention = AttentionWeights(0, maps.mT, one, one, maps, None, None, None, None, None, None, 1.0)
    expected = torch.tensor([1.0, -1.0, 0.0, 0.0])
    close(positivity(ov_eigenvalues(attention, torch.eye(d))), expected)
    close(positivity(qk_eigenvalues(attention, torch.eye(d))), expected)
    EE = symmetric(d)  # I and -I stay so whatever the vocabulary, as long as the unembedding is the embedding
    close(positivity(ov_eigenvalues(attention, EE))[:2], expected[:2])
    close(positivity(qk_eigenvalues(attention, EE))[:2], expected[:2])
    E = torch.randn(50, d)  # rows of one length: a token's own logit is the highest
    E = E / E.norm(dim=1, keepdim=True)
    close(copying_share(attention, E, E), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    close(matching_share(attention, E), torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_turning_queries_away_ends_matching():
    """With one radian a token, queries that equal their keys score the cosine of the distance."""
    d = 2
    one = torch.eye(d)[None]
    rotary = Turning(2, 1.0)  # base 1: every pair turns one radian a token
    attention = AttentionWeights(0, one, one, one, one, None, None, None, None, rotary, None, 1.0)
    for distance in (0, 1, 3, 22):  # 22 is 3.5 turns, nearly
        score = positivity(qk_eigenvalues(attention, torch.eye(d), distance))
        close(score, torch.tensor([np.cos(distance)], dtype=torch.float32))
    E = torch.randn(40, d)
    E = E / E.norm(dim=1, keepdim=True)
    assert float(matching_share(attention, E)) == 1
    assert float(matching_share(attention, E, 22)) == 0


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_invariances(kv):
    """Changes of basis inside a head, rescalings between its maps, and the order of heads change no score."""
    UE, EE = torch.randn(24, 24), symmetric(24)
    attention = heads(kv=kv)
    turn = torch.linalg.qr(torch.randn(kv, 8, 8)).Q
    each = turn.repeat_interleave(4 // kv, 0)
    changed = replace(
        attention,
        W_V=3 * attention.W_V @ turn,
        W_O=each.mT @ attention.W_O / 3,
        W_Q=0.2 * attention.W_Q @ each,
        W_K=5 * attention.W_K @ turn,
    )
    E, U = torch.randn(50, 24), torch.randn(50, 24)
    for h in range(4):
        assert_same(ov_eigenvalues(changed, UE)[h], ov_eigenvalues(attention, UE)[h])
    for ours, theirs in (
        (ov_eigenvalues(changed, UE), ov_eigenvalues(attention, UE)),
        (qk_eigenvalues(changed, EE), qk_eigenvalues(attention, EE)),
    ):
        close(positivity(ours), positivity(theirs), FORWARD)
    close(copying_share(changed, E, U), copying_share(attention, E, U))
    close(matching_share(changed, E), matching_share(attention, E))
    groups = torch.randperm(kv)
    order = torch.cat([torch.arange(4).view(kv, -1)[g].flip(0) for g in groups])
    mixed = replace(
        attention,
        W_Q=attention.W_Q[order], W_O=attention.W_O[order], W_K=attention.W_K[groups], W_V=attention.W_V[groups],
    )  # fmt: skip
    close(positivity(ov_eigenvalues(mixed, UE)), positivity(ov_eigenvalues(attention, UE))[order])
    close(positivity(qk_eigenvalues(mixed, EE)), positivity(qk_eigenvalues(attention, EE))[order])
    assert torch.equal(copying_share(mixed, E, U), copying_share(attention, E, U)[order])


def test_rotations_of_queries_and_keys_with_rotary():
    """A rotation among the free dimensions changes nothing; one among the turning ones is not the same head."""
    attention, EE = heads(rotary=Turning(4, 100.0)), symmetric(24)
    for chosen, same in ((slice(4, 8), True), (slice(0, 4), False)):
        turn = torch.eye(8)
        turn[chosen, chosen] = torch.linalg.qr(torch.randn(4, 4)).Q
        changed = replace(attention, W_Q=attention.W_Q @ turn, W_K=attention.W_K @ turn)
        for part in ("all", "free", "rotary"):
            ours, theirs = (positivity(qk_eigenvalues(x, EE, 3, part)) for x in (changed, attention))
            assert near(ours, theirs, FORWARD) == (same or part == "free")


@pytest.mark.parametrize(("family", "changes"), CASES)
@pytest.mark.parametrize("rows", [1024, 20])
def test_shares(family, changes, rows, monkeypatch):
    """Against a loop over tokens, on the whole vocabulary and on a sample, in one block and in several."""
    weights, attention, E, U = seen(family, changes)
    monkeypatch.setattr(eigen, "ROWS", rows)
    for some in (torch.arange(53), sample(weights, 11, 0)):
        copying, matching = copying_share(attention, E[some], U[some]), matching_share(attention, E[some], 3)
        assert copying.sum() > 0 or matching.sum() > 0
        for h in range(attention.n_heads):
            one = attention.head(h)
            turn = torch.eye(weights.cfg.d_head)
            if attention.rotary is not None:
                turn = rotation(attention.rotary, weights.cfg.d_head, 3).float()
            logits = [e @ one.W_V @ one.W_O @ U[some].T for e in E[some]]
            scores = [e @ one.W_Q @ turn @ (E[some] @ one.W_K).T for e in E[some]]
            close(float(copying[h]), own_highest(logits), dtype=torch.float32)
            close(float(matching[h]), own_highest(scores), dtype=torch.float32)


def own_highest(rows: list[torch.Tensor]) -> float:
    """The share of rows whose own entry is above every other."""
    return float(np.mean([all(row[i] > x for j, x in enumerate(row) if j != i) for i, row in enumerate(rows)]))


def test_ties_do_not_count():
    """Two tokens with one embedding are never each the highest; every other token of a copying head is."""
    one = torch.eye(8)[None]
    attention = AttentionWeights(0, one, one, one, one, None, None, None, None, None, None, 1.0)
    E = torch.randn(10, 8)
    E = E / E.norm(dim=1, keepdim=True)
    E[3] = E[8]
    close(copying_share(attention, E, E), torch.tensor([0.8]))
    close(matching_share(attention, E), torch.tensor([0.8]))


def test_a_vocabulary_whose_square_fits_nowhere():
    """Of 120,000 tokens the square would take 58 GB; the sums are still those in float64."""
    weights = Weights.of_model(hl.HybridLens(make("jamba", 1, vocab_size=120_000, num_hidden_layers=2)))
    found = products(weights)
    E, U = (torch.cat(x).double() for x in zip(*((b.E, b.U) for b in weights.vocabulary()), strict=True))
    for ours, theirs in ((found.UE, centred(U).T @ E), (found.EE, centred(E).T @ E)):
        assert float((ours - theirs).norm()) < bound(float(theirs.norm()))
    attention = weights.attention(1)
    for h, values in enumerate(ov_eigenvalues(attention, found.UE)):
        one = attention.head(h)
        assert_same(values, spectrum(one.W_O.double() @ (centred(U).T @ E) @ one.W_V.double()))


def test_samples():
    """Distinct, ascending, the same for the same seed, and the whole vocabulary where more is asked for."""
    weights = Weights.of_model(hl.HybridLens(make("jamba", 0)))
    first = sample(weights, 20, 1)
    assert len(set(first.tolist())) == 20
    assert first.tolist() == sorted(first.tolist())
    assert torch.equal(first, sample(weights, 20, 1))
    assert not torch.equal(first, sample(weights, 20, 2))
    for n in (53, 1000):
        assert torch.equal(sample(weights, n, 0), torch.arange(53))


def test_bad_input():
    """One line that says what was given and what there is."""
    turning = replace(heads(rotary=Turning(4, 100.0)), window=7)
    EE = symmetric(24)
    for call in (lambda d: qk_eigenvalues(turning, EE, d), lambda d: matching_share(turning, EE, d)):
        for distance in (-1, 7):
            with pytest.raises(InputError, match=rf"distance {distance} given, but layer 5 looks back by 0\.\.6, the"):
                call(distance)
    with pytest.raises(InputError, match="distance -2 given, but layer 5 looks back by 0 or more"):
        qk_eigenvalues(heads(), EE, -2)
    with pytest.raises(InputError, match="part 'rotary' given, but layer 5 has no rotary embedding; use part 'free'"):
        qk_eigenvalues(heads(), EE, part="rotary")
    with pytest.raises(InputError, match="part 'free' given, but layer 5 turns all 8 dimensions"):
        qk_eigenvalues(heads(rotary=Turning(8, 100.0)), EE, part="free")
    with pytest.raises(UnknownNameError, match="part 'half' does not exist; expected one of all, rotary, free"):
        qk_eigenvalues(turning, EE, part="half")
    with pytest.raises(InputError, match="a sample of 1 tokens given"):
        copying_share(turning, EE[:1], EE[:1])
    with pytest.raises(CheckpointError, match="are not all finite"):
        ov_eigenvalues(turning, EE * float("inf"))
    weights = Weights.of_model(hl.HybridLens(make("jamba", 0)))
    with pytest.raises(InputError, match="a sample of 0 tokens given; expected 1 or more"):
        sample(weights, 0, 0)
    with pytest.raises(InputError, match="blocks of 0 tokens given"):
        products(weights, 0)
