"""Patching finds what was planted: the two heads, or the tap and the head, that make up an induction circuit.

Two prompts name one token at their end, "… a x … b y … a", and the planted circuit says what came after it. In a pair
of kind "key" the second prompt has `a` and `b` exchanged, so that what differs reaches the induction head through its
keys, written by the planted writer; in one of kind "content" it has `x` and `y` exchanged, which the head takes over
through its values. Everything else in the model is random and quiet: no other place may carry more than a little.

In the models of `planted_memory` one head's values or one recurrent state alone answer, and everything else writes
nothing: there all of the difference has to be in its place, and none of it elsewhere.
"""

from functools import cache
from typing import NamedTuple

import planted
import planted_memory
import pytest
import torch
from models import FAMILIES
from planted import Plant, cases, made

from analyses.patching import paths, sweeps
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.edges import edge_attribution
from analyses.patching.metrics import LogitDifference
from analyses.patching.results import PatchResult
from analyses.patching.writers import Reader, Writer, reaches, readers_of, writers_of

KINDS = ("induction", "tap")
FIRST, SECOND, LENGTH = 4, 12, 20
"""Where `a` and `b` stand in the clean prompt, and how many tokens precede its last one."""
MUCH, LITTLE = 0.6, 0.25


class Pair(NamedTuple):
    """Two prompts, and the answers that tell them apart."""

    clean: list[int]
    corrupt: list[int]
    metric: LogitDifference


def pair(kind: str) -> Pair:
    """A pair of kind "key" or "content"; the answers are `x` and `y`."""
    clean = torch.randperm(planted.VOCAB, generator=torch.Generator().manual_seed(3))[:LENGTH].tolist()
    corrupt, shift = list(clean), 0 if kind == "key" else 1
    corrupt[FIRST + shift], corrupt[SECOND + shift] = clean[SECOND + shift], clean[FIRST + shift]
    metric = LogitDifference(clean[FIRST + 1], clean[SECOND + 1])
    return Pair([*clean, clean[FIRST]], [*corrupt, clean[FIRST]], metric)


@cache
def swept(kind: str, model: tuple, pair_kind: str, name: str, direction: str = "denoise") -> PatchResult:
    """A ready sweep over a planted model, clean at 1 and corrupt at 0."""
    given = pair(pair_kind)
    return sweeps.sweep(made(kind, model).lens, name, given.clean, given.corrupt, given.metric, direction=direction)


def shares(found: PatchResult) -> dict[tuple[int, ...], float]:
    """What each place moves of the difference, by the number of its layer and its places on the other axes."""
    layers = [int(label) for label in found.axes[0].labels]
    moved = found.change / (found.clean - found.corrupt)
    if found.direction == "noise":
        moved = -moved
    places = torch.cartesian_prod(*(torch.arange(size) for size in moved.shape)).tolist()
    return {(layers[place[0]], *place[1:]): float(moved[tuple(place)]) for place in places}


def only(found: dict[tuple[int, ...], float], *places: tuple[int, ...]) -> None:
    """These places carry much of the difference, and no other does."""
    for place in places:
        assert found[place] > MUCH, (place, found[place])
    others = {place: share for place, share in found.items() if place not in places}
    assert max(map(abs, others.values()), default=0.0) < LITTLE, sorted(others.items(), key=lambda item: item[1])[-3:]


def kv(p: Plant) -> int:
    """The key/value head that the planted head reads."""
    return p.head[1] * p.lens.cfg.n_kv_heads // p.lens.cfg.n_heads


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(("kind", "model"), cases(*KINDS))
def test_outputs_of_heads_show_the_heads_that_differ(kind, model, direction):
    """Of a key, the writer and the reader; of a content, the reader alone."""
    p = made(kind, model)
    pair_of_heads = [p.head] if p.writer is None else [p.head, p.writer]
    only(shares(swept(kind, model, "key", "z", direction)), *pair_of_heads)
    only(shares(swept(kind, model, "content", "z", direction)), p.head)


@pytest.mark.parametrize(("kind", "model"), cases(*KINDS))
def test_keys_carry_a_key_and_values_a_content(kind, model):
    """At the planted layer and shared head, and nowhere else; no query of that layer carries anything."""
    p = made(kind, model)
    assert shares(swept(kind, model, "key", "k"))[p.head[0], kv(p)] > MUCH
    only(shares(swept(kind, model, "content", "v")), (p.head[0], kv(p)))
    assert abs(shares(swept(kind, model, "key", "v"))[p.head[0], kv(p)]) < LITTLE
    assert abs(shares(swept(kind, model, "content", "k"))[p.head[0], kv(p)]) < LITTLE
    for which in ("key", "content"):
        assert abs(shares(swept(kind, model, which, "q"))[p.head]) < LITTLE


@pytest.mark.parametrize(("kind", "model"), cases(*KINDS))
def test_values_are_found_at_their_positions(kind, model):
    """A content's values stand at the two places exchanged, and the residual stream moves from there to the end."""
    p = made(kind, model)
    found = shares(swept(kind, model, "content", "v_by_position"))
    near = {place: share for place, share in found.items() if place[:2] == (p.head[0], kv(p))}
    assert sum(near[p.head[0], kv(p), place + 1] for place in (FIRST, SECOND)) > MUCH
    assert max(abs(share) for place, share in found.items() if place[2] not in (FIRST + 1, SECOND + 1)) < 0.1
    stream = shares(swept(kind, model, "content", "resid_pre"))
    for layer in range(planted.N_LAYERS):
        carried = stream[layer, FIRST + 1] + stream[layer, SECOND + 1], stream[layer, LENGTH]
        assert (carried[0] > MUCH, carried[1] > MUCH) == (layer <= p.head[0], layer > p.head[0])
        assert min(carried) < LITTLE


@pytest.mark.parametrize("model", planted.MODELS)
def test_the_tap_is_the_recurrent_layer_that_carries_a_key(model):
    """What the layer writes one position behind `a` and `b` tells where they stand; no other recurrent layer does."""
    p = made("tap", model)
    for name in ("ssm_out", "conv"):
        found = shares(swept("tap", model, "key", name))
        layers = {layer: found[layer, FIRST + 1] + found[layer, SECOND + 1] for layer in p.lens.cfg.ssm_layers}
        only({(layer,): share for layer, share in layers.items()}, (p.recurrent,))
        elsewhere = [abs(share) for place, share in found.items() if place[1] not in (FIRST + 1, SECOND + 1)]
        assert max(elsewhere) < LITTLE


def writer_of(p: Plant) -> Writer:
    """The planted writer that the planted head's keys read: a head, or the recurrent layer with the tap."""
    return Writer("ssm", p.recurrent) if p.writer is None else Writer("head", *p.writer)


@pytest.mark.parametrize(("kind", "model"), cases(*KINDS))
def test_the_path_runs_from_the_writer_to_the_keys(kind, model):
    """Exchanged for the planted head's keys alone, the writer's output does what it does when exchanged for all."""
    p, given = made(kind, model), pair("key")
    layer, head = p.head
    readers = [Reader("q", layer, head), Reader("k", layer, kv(p)), Reader("v", layer, kv(p)), Reader("logits")]
    found = paths.path_patch(p.lens, *given, [writer_of(p), Writer("embed")], readers)
    own, embedded = found.normalised.tolist()
    assert own[1] > MUCH
    assert max(map(abs, (own[0], own[2], own[3], *embedded))) < LITTLE
    name, place = ("ssm_out", (p.recurrent,)) if p.writer is None else ("z", p.writer)
    if name == "z":
        assert own[1] == pytest.approx(shares(swept(kind, model, "key", name))[place], abs=0.1)  # planted, not exact


@pytest.mark.parametrize(("kind", "model"), cases(*KINDS))
def test_estimated_edges_begin_and_end_where_they_were_planted(kind, model):
    """Of all edges into keys the planted one is estimated highest, as is that from the head to the logits."""
    p, given = made(kind, model), pair("key")
    edges = edge_attribution(p.lens, *given, steps=8)
    sources = [writer for writer in writers_of(p.lens) if writer.kind != "embed"]
    keys = {
        (writer, reader): abs(edges.score(writer, reader))
        for reader in readers_of(p.lens) if reader.kind == "k"
        for writer in sources if reaches(p.lens, writer, reader)
    }  # fmt: skip
    assert max(keys, key=lambda edge: keys[edge]) == (writer_of(p), Reader("k", p.head[0], kv(p)))
    ends = {writer: abs(edges.score(writer, Reader("logits"))) for writer in sources}
    assert max(ends, key=lambda writer: ends[writer]) == Writer("head", *p.head)


@pytest.mark.parametrize(("kind", "model"), cases(*KINDS))
def test_the_head_that_copies_writes_the_answer(kind, model):
    """It alone has most of the logit difference of clean and corrupt answer."""
    p, given = made(kind, model), pair("key")
    found = direct_logit_attribution(p.lens, given.clean, [given.metric])
    (writer, share), (_, next_share) = found.top(2)
    assert writer == Writer("head", *p.head)
    assert share > MUCH * float(found.total) > abs(next_share)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["head", "state"])
@pytest.mark.parametrize(("seed", "direction"), [(0, "denoise"), (1, "noise")])
def test_a_memory_that_alone_answers_is_found_whole(family, where, seed, direction):
    """One head's values at the value's position; or one layer's write there, and its state from there on."""
    lens, layer, head = planted_memory.planted(family, where, seed)
    (given,) = planted_memory.pairs(1, seed=seed)
    metric = LogitDifference(*(side[given.spans[0][0]] for side in (given.a, given.b)))
    place = given.spans[0][0]
    names = ("k_by_position", "v_by_position", "q_by_position", "write", "state", "decay", "mlp_out")
    expected: dict[str, set[tuple[int, ...]]] = {name: set() for name in names}
    if head is not None:
        expected["v_by_position"] = {(layer, head, place)}
        expected["attn_out"] = {(layer, given.length - 1)}
        expected["ssm_out"] = set()
    else:
        expected["write"] = {(layer, place)}
        expected["state"] = {(layer, position) for position in range(place, given.length)}
        expected["ssm_out"] = {(layer, given.length - 1)}
        expected["attn_out"] = set()
    for name, places in expected.items():
        found = shares(sweeps.sweep(lens, name, given.a, given.b, metric, direction=direction))
        for at, share in found.items():
            assert share == pytest.approx(float(at in places), abs=2e-2), (name, at)


@pytest.mark.parametrize(("family", "seed", "direction"), [("mamba2", 0, "denoise"), ("qwen3_next", 1, "noise")])
def test_a_recurrent_head_that_alone_answers_is_found_whole(family, seed, direction):
    """One head's matrix state from the value's position on, what it writes there, and what is read out at the end.

    Addresses, decays, steps and strengths are the same in both prompts, and no other head writes anything.
    """
    lens, layer, head = planted_memory.planted(family, "state", seed)
    (given,) = planted_memory.pairs(1, seed=seed)
    place, last = given.spans[0][0], given.length - 1
    metric = LogitDifference(*(side[place] for side in (given.a, given.b)))
    expected: dict[str, set[tuple[int, ...]]] = {
        "state_by_head": {(layer, head, position) for position in range(place, given.length)},
        "write_by_head": {(layer, head, place)},
        "ssm_v_by_head": {(layer, head, place)},
        "y_by_head": {(layer, head, last)},
        "ssm_out": {(layer, last)},
        "resid_post": {(other, last if other >= layer else place) for other in range(lens.cfg.n_layers)},
    }
    quiet = ("ssm_k_by_head", "ssm_q_by_head", "decay_by_head", "dt_by_head", "beta_by_head", "gate")
    expected |= {name: set() for name in quiet if sweeps.SWEEPS[name].hooks(lens)}
    assert len(expected) > 9
    for name, places in expected.items():
        found = shares(sweeps.sweep(lens, name, given.a, given.b, metric, direction=direction))
        for at, share in found.items():
            assert share == pytest.approx(float(at in places), abs=2e-2), (name, at)
