"""Heads planted by hand in otherwise random models (`planted`) do what they should, and every score finds its own.

First each planted head is seen at work in runs of the real model; then every circuit score, from weights alone, must
find its head and no other.

What is planted stands at a random layer and head, and all other heads are random, so that a score that read another
head's rows, a transposed map, an unfolded norm or keys of another group would find nothing, or something else.
"""

from functools import cache

import planted
import pytest
import torch
from planted import MODELS, Head, Plant, cases, made, plant
from torch import Tensor

from analyses.circuits.composition import KINDS, Composition, compositions
from analyses.circuits.eigen import copying_share, matching_share, ov_eigenvalues, positivity, qk_eigenvalues
from analyses.circuits.paths import measured_paths, paths_at_rest
from analyses.circuits.positions import profile
from analyses.circuits.vocabulary import Products, products
from hybridlens.errors import InputError
from hybridlens.weights import AttentionWeights


def apart(scores: Tensor, p: Plant, *heads: Head) -> tuple[Tensor, Tensor]:
    """Scores [attention layer, head] of the heads given, and those of all others."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for layer, head in heads:
        mask[p.weights.cfg.attention_layers.index(layer), head] = True
    return scores[mask], scores[~mask]


# What they do.


@cache
def ran(kind: str, model: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, logits, and patterns [attention layer, batch, head, query, key]; tokens twice for induction."""
    p = made(kind, model)
    ids = planted.repeated(3, 20) if kind in ("induction", "tap") else planted.tokens(3, 40)
    logits, shown = patterns(p, ids)
    return ids, logits, shown


def kept(kind: str, model: tuple, distance: int) -> float:
    """What is left of a match at a distance: the mean of cos(f · distance) over the dimensions that it uses."""
    turning = round(model[1] * planted.D_HEAD)
    frequencies = 10000.0 ** (-torch.arange(0, turning, 2) / max(turning, 1))
    if kind == "matching":
        slow = frequencies[turning // 2 - (planted.FOLLOWERS // 2) :] if turning == planted.D_HEAD else torch.zeros(1)
        return float((slow * distance).cos().mean())
    return float((frequencies * (distance - planted.BACK * (kind == "matching-back"))).cos().mean())


def patterns(p: Plant, ids: Tensor, silenced: str | None = None) -> tuple[Tensor, Tensor]:
    """Logits and patterns of a run, with what `silenced` (a hook point, or "point head") says at zero."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in p.weights.cfg.attention_layers]
    kept: dict[str, Tensor] = {}
    hooks = [(names, lambda x, hook: kept.update({hook.name: x.detach()}))]
    if silenced is not None:
        point, _, head = silenced.partition(" ")

        def silence(x, hook):
            x = x.clone()
            x[:, :, slice(None) if not head else int(head)] = 0.0
            return x

        hooks.append((point, silence))
    with torch.no_grad():
        logits = p.lens.run_with_hooks(ids, hooks)
    return logits, torch.stack([kept[name] for name in names])


def share(shown: Tensor, wanted: Tensor, counted: Tensor) -> Tensor:
    """[layer, head]: attention on `wanted` [batch query key], mean over the queries `counted` [batch query]."""
    on = (shown * wanted[:, None]).sum(-1)
    return (on * counted[:, None]).sum((1, 3)) / counted.sum()


def looks(kind: str, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Which keys a planted head should attend to, and at which queries."""
    n = ids.shape[1]
    query, key = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    if kind == "previous":
        return (key == query - 1).expand(len(ids), n, n), (torch.arange(n) >= 1).expand(ids.shape)
    equal = (ids[:, :, None] == ids[:, None, :]) & (key <= query)
    if kind == "equal":
        return equal, (equal & (key < query)).any(-1)
    if kind == "equal to the previous":
        before = torch.zeros_like(equal)
        before[:, 1:] = equal[:, :-1]
        return before, (torch.arange(n) >= 1).expand(ids.shape)
    assert kind == "after the earlier equal"
    return (key == query - n // 2 + 1).expand(len(ids), n, n), (torch.arange(n) > n // 2).expand(ids.shape)


@pytest.mark.parametrize(("kind", "model"), cases("previous"))
def test_the_previous_token_head_attends_to_the_previous_token(kind, model):
    """Nearly all of its attention is there, whatever the tokens; of no other head even a third is."""
    p, (ids, _, shown) = made(kind, model), ran(kind, model)
    own, others = apart(share(shown, *looks("previous", ids)), p, p.head)
    assert own > 0.9
    assert others.max() < 0.35


@pytest.mark.parametrize(("kind", "model"), cases("matching", "matching-rotary", "matching-back"))
def test_the_matching_head_attends_to_equal_tokens(kind, model):
    """To the token itself and its earlier occurrences: alike where the head does not turn, else to the nearest most.

    On tokens read twice, the score of the equal token 20 back, beyond that of others, is compared with that of the
    token itself: the share that stays is the mean cosine of the angles by which the dimensions used have turned.
    """
    p, (ids, _, shown) = made(kind, model), ran(kind, model)
    wanted, counted = looks("equal", ids)
    own, others = apart(share(shown, wanted, counted), p, p.head)
    assert own > 0.7
    assert others.max() < 0.35
    point = f"blocks.{p.head[0]}.attn.hook_attn_scores"
    with torch.no_grad():
        scores = p.lens.run_with_cache(planted.repeated(3, 20), point)[1][point][:, p.head[1], 20:]
    far, unequal, own = scores.diagonal(0, 1, 2).mean(), scores[:, :, 1:19].mean(), scores.diagonal(20, 1, 2).mean()
    expected = kept(kind, model, 20) / kept(kind, model, 0)
    assert float((far - unequal) / (own - unequal)) == pytest.approx(expected, abs=0.1)  # of what else the head reads


@pytest.mark.parametrize(("kind", "model"), cases("copying", "anti-copying"))
def test_the_copying_head_raises_what_it_attends_to(kind, model):
    """Silencing it lowers each token's logit as that token was attended to; silencing the anti-copying head raises it.

    The change of every token's logit at every query is correlated with the head's attention to that token; silencing
    another head of its layer gives no such correlation.
    """
    p, (ids, logits, shown) = made(kind, model), ran(kind, model)
    layer, place = p.head[0], p.weights.cfg.attention_layers.index(p.head[0])
    onehot = torch.nn.functional.one_hot(ids, planted.VOCAB).float()
    found = {}
    for head in (p.head[1], (p.head[1] + 1) % planted.N_HEADS):
        without, _ = patterns(p, ids, f"blocks.{layer}.attn.hook_z {head}")
        pair = torch.stack([(logits - without).flatten(), (shown[place, :, head] @ onehot).flatten()])
        found[head] = float(torch.corrcoef(pair)[0, 1])
    own = found.pop(p.head[1])
    assert own > 0.5 if kind == "copying" else own < -0.5
    assert max(map(abs, found.values())) < 0.3


@pytest.mark.parametrize(("kind", "model"), cases("induction", "tap"))
def test_the_induction_head_finds_and_copies_what_came_next(kind, model):
    """On random tokens read twice it attends to the token after the earlier occurrence, and the model says that token.

    The tokens are random, so the first reading cannot be predicted (chance 1/40) and the second only by looking back.
    Without the planted writer, a head or the recurrent layer whose tap it needs, the head finds nothing.
    """
    p, (ids, logits, shown) = made(kind, model), ran(kind, model)
    wanted = looks("after the earlier equal", ids)
    own, others = apart(share(shown, *wanted), p, p.head)
    assert own > 0.85
    assert others.max() < 0.15
    right = logits[:, :-1].argmax(-1) == ids[:, 1:]
    assert right[:, 20:].float().mean() > 0.85
    assert right[:, :19].float().mean() < 0.15
    if p.writer is not None:
        sees = "previous" if model[1] else "equal to the previous"
        before, rest = apart(share(shown, *looks(sees, ids)), p, p.writer)
        assert before > 0.9
        assert rest.max() < 0.35
    writers = [] if p.writer is None else [f"blocks.{p.writer[0]}.attn.hook_z {p.writer[1]}"]
    writers += [] if p.recurrent is None else [f"blocks.{p.recurrent}.ssm.hook_y"]
    assert writers
    for name in writers:
        _, blind = patterns(p, ids, name)
        assert apart(share(blind, *wanted), p, p.head)[0] < 0.2


# What their weights say.


@cache
def shared(kind: str, model: tuple) -> tuple[list[AttentionWeights], Products]:
    """The attention layers of a plant, and the products of its vocabulary."""
    weights = made(kind, model).weights
    return [weights.attention(layer) for layer in weights.cfg.attention_layers], products(weights)


@cache
def composed(kind: str, model: tuple) -> Composition:
    """Composition of all pairs, recurrent layers at rest."""
    weights = made(kind, model).weights
    return compositions(weights, paths_at_rest(weights))


def matching(layers: list[AttentionWeights], EE: Tensor, distance: int, part: str = "all") -> Tensor:
    """[attention layer, head]: Σλ ÷ Σ|λ|."""
    return torch.stack([positivity(qk_eigenvalues(layer, EE, distance, part)) for layer in layers])


def two_pairs(kind: str, model: tuple) -> tuple[Plant, Tensor, Tensor, int]:
    """A plant, its excess composition with heads and recurrent layers (-1: not earlier), and its head's place."""
    p, found = made(kind, model), composed(kind, model)
    place = p.weights.cfg.attention_layers.index(p.head[0])
    return p, found.excess_heads.nan_to_num(-1.0), found.excess_recurrent.nan_to_num(-1.0), place


@pytest.mark.parametrize(("kind", "model"), cases(*planted.KINDS))
def test_copying_finds_the_heads_that_copy(kind, model):
    """Those planted to copy have a copying score near 1 and all shares; no other head comes near, nor does its group.

    Σλ ÷ Σ|λ| of 32 eigenvalues of a random map scatters by about 0.1 around 0: 0.5 is five times as far. The share is
    1/40 by chance. The anti-copying head is at -1, and no token's logit is raised most by itself.
    """
    p, (layers, sums) = made(kind, model), shared(kind, model)
    E, U = p.weights.embed(torch.arange(planted.VOCAB)), p.weights.unembed(torch.arange(planted.VOCAB))
    score, others = apart(torch.stack([positivity(ov_eigenvalues(layer, sums.UE)) for layer in layers]), p, p.head)
    fraction, rest = apart(torch.stack([copying_share(layer, E, U) for layer in layers]), p, p.head)
    assert others.abs().max() < 0.5
    assert rest.max() < 0.3
    if kind in ("copying", "induction", "tap"):
        assert score > 0.95
        assert fraction > 0.95
    elif kind == "anti-copying":
        assert score < -0.95
        assert fraction == 0
    else:
        assert score.abs() < 0.5
        assert fraction < 0.3


@pytest.mark.parametrize(("kind", "model"), cases(*planted.KINDS[3:], "copying"))
def test_matching_finds_the_head_that_matches_as_far_as_it_turns(kind, model):
    """At each distance the score is the mean cosine of the angles that the head's dimensions turn by; others are at 0.

    So the head in dimensions that do not turn stays at 1, in its free part alone, and that in dimensions that do falls
    just as the angles say, in its rotary part alone. Induction heads match through a writer, not by themselves.
    """
    p, (layers, sums) = made(kind, model), shared(kind, model)
    E = p.weights.embed(torch.arange(planted.VOCAB))
    planted_here = kind.startswith("matching")
    # the previous-token head's queries and keys are of one direction: see the next test
    heads = [p.head] if planted_here else [p.writer] if kind == "induction" and model[1] else []
    for distance in (0, planted.BACK, 8, 20, 40):
        score, others = apart(matching(layers, sums.EE, distance), p, *heads)
        assert others.abs().max() < 0.5
        if planted_here:
            assert float(score) == pytest.approx(kept(kind, model, distance), abs=0.05)  # random directions
    best = planted.BACK if kind == "matching-back" else None
    fraction, rest = apart(torch.stack([matching_share(layer, E, best) for layer in layers]), p, *heads)
    assert rest.max() < 0.3
    if planted_here:
        assert fraction > 0.95
    if planted_here and model[1] == 0.5:
        for part in ("free", "rotary"):
            score, others = apart(matching(layers, sums.EE, best or 0, part), p, p.head)
            assert others.abs().max() < 0.5
            assert score > 0.95 if (kind == "matching") == (part == "free") else score.abs() < 0.5


@pytest.mark.parametrize(("kind", "model"), cases("previous"))
def test_a_head_that_follows_position_matches_no_token(kind, model):
    """It finds no token's own key: at chance in the share, and in the spectrum.

    Queries and keys of such a head are made of what every token has alike. Were it not taken off, that direction alone
    would give a matching score of ±1 from a single eigenvalue.
    """
    p, (layers, sums) = made(kind, model), shared(kind, model)
    E = p.weights.embed(torch.arange(planted.VOCAB))
    assert max(float(matching_share(layer, E).max()) for layer in layers) < 0.3
    for distance in (0, 1, 5, 20):
        assert matching(layers, sums.EE, distance).abs().max() < 0.5
    raw = E.T @ E
    assert max(float(matching(layers, raw, distance).abs().max()) for distance in (0, 1, 5, 20)) > 0.9


@pytest.mark.parametrize(("kind", "model"), cases("previous", "induction", "copying"))
def test_the_profile_finds_the_head_that_attends_to_the_previous_token(kind, model):
    """The planted one, or the writer of an induction pair, has nearly all its weight at distance 1; others are flat.

    Without rotary embedding every head's profile is flat to the last bit, the head's too that looks one token back
    with a recurrent layer's help: what it does is not in its weights alone.
    """
    p, (layers, sums) = made(kind, model), shared(kind, model)
    heads = {"previous": [p.head], "induction": [p.writer], "copying": []}[kind]
    found = torch.stack([profile(layer, sums.mean, planted.WINDOW) for layer in layers])
    if not model[1]:
        assert torch.equal(found, torch.full_like(found, 1 / planted.WINDOW))
        return
    one_back, others = apart(found[..., 1], p, *heads)
    assert (one_back > 0.95).all()
    assert others.max() < 0.1


@pytest.mark.parametrize(("kind", "model"), cases("induction"))
def test_k_composition_finds_the_induction_pair(kind, model):
    """Of all pairs of heads the planted one composes most by K beyond chance, with more than twice what the next has.

    Its queries and values do not read what the writer writes: Q- and V-composition are below chance there. What is
    random lies within a few hundredths of chance either way, also in the heads that share keys with the planted ones.
    """
    p, heads, recurrent, place = two_pairs(kind, model)
    first = p.weights.cfg.attention_layers.index(p.writer[0])
    at = (place, p.head[1], first, p.writer[1])
    own = {name: float(found[at]) for name, found in zip(KINDS, heads, strict=True)}
    assert own["k"] > 0.08
    assert own["q"] < 0
    assert own["v"] < 0
    heads[(KINDS.index("k"), *at)] = -1.0
    assert own["k"] > 2 * float(heads.max())
    if p.recurrent is None:
        assert own["k"] > 2 * float(recurrent.max())
    else:  # the writer finds the previous token by Q-composition with the tap, and nothing else does
        tap = (KINDS.index("q"), first, p.writer[1], p.weights.cfg.ssm_layers.index(p.recurrent), 1)
        found = float(recurrent[tap])
        recurrent[tap] = -1.0
        assert found > 0.08
        assert found > 2 * float(recurrent.max())


@pytest.mark.parametrize(("kind", "model"), cases("tap"))
def test_k_composition_finds_the_tap(kind, model):
    """Of all recurrent layers and lags, and all heads, the planted layer's lag 1 feeds the planted head's keys most."""
    p, heads, recurrent, place = two_pairs(kind, model)
    at = (place, p.head[1], p.weights.cfg.ssm_layers.index(p.recurrent), 1)
    own = {name: float(found[at]) for name, found in zip(KINDS, recurrent, strict=True)}
    assert own["k"] > 0.08
    assert own["q"] < 0
    assert own["v"] < 0
    recurrent[(KINDS.index("k"), *at)] = -1.0
    assert own["k"] > 2 * float(recurrent.max())
    assert own["k"] > 2 * float(heads.max())


@pytest.mark.parametrize(("kind", "model"), cases("copying"))
def test_composition_finds_nothing_where_nothing_composes(kind, model):
    """A model with a copying head alone: no pair of any kind is more than a few hundredths beyond chance."""
    _, heads, recurrent, _ = two_pairs(kind, model)
    assert heads.max() < 0.04
    assert recurrent.max() < 0.04


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_heads_that_share_keys_compose_alike_unless_they_look_apart(family, kv_heads):
    """With random queries in all dimensions, each head that shares the planted keys composes with their writer too.

    That is no error of the score: those keys do hold what the writer wrote, and the score asks no more. It falls on
    the whole group, and on no other head, so induction cannot be told from K-composition alone.
    """
    rotary = 0.5 if family == "recurrentgemma" else 0.0
    p = plant(family, "tap", kv_heads=kv_heads, rotary=rotary, seed=1, apart=False)
    cfg = p.weights.cfg
    found = compositions(p.weights, paths_at_rest(p.weights), ("k",)).excess_recurrent
    column = found[0, cfg.attention_layers.index(p.head[0]), :, cfg.ssm_layers.index(p.recurrent), 1]
    group = cfg.n_heads // kv_heads
    for head, score in enumerate(column.tolist()):
        assert score > 0.035 if head // group == p.head[1] // group else score < 0.02
    assert int(column.argmax()) == p.head[1]


@pytest.mark.parametrize(("kind", "model"), cases("tap"))
def test_the_tap_is_what_its_layer_does(kind, model):
    """Measured in runs, the planted layer's linear path misses under a tenth of what it writes, and is all at lag 1.

    So the plant does pass tokens through its tap alone. Random layers keep a memory and gates, and spread over lags.
    """
    p = made(kind, model)
    at = p.weights.cfg.ssm_layers.index(p.recurrent)
    measured, error = measured_paths(p.lens, p.weights, planted.tokens(4, 40))
    assert error[at] < 0.1
    assert error.sort().values[1] > 0.5
    for paths in (measured, paths_at_rest(p.weights)):
        assert paths[at].share[1] > 0.95
        assert max(float(path.share.max()) for path in paths if path.layer != p.recurrent) < 0.6


@pytest.mark.parametrize("model", [m for m in MODELS if m[1] in (0.0, 1.0)])
def test_parts_that_a_head_lacks_are_refused(model):
    """Without rotary embedding there is no rotary part, and in a head that turns as a whole no free one."""
    layers, sums = shared("copying", model)
    with pytest.raises(InputError, match="use part"):
        matching(layers, sums.EE, 0, "free" if model[1] else "rotary")
