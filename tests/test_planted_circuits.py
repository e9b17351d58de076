"""Circuits that were planted: only some edges of a model matter, and the scores find them and no others.

In `planted_memory`'s models everything but one head, or one recurrent layer, writes nothing. In `tapped` a recurrent
layer writes down the token before, and a later head, whose keys read that, copies: three edges through both.
Random circuits of that size carry nothing, so that chance cannot explain what the planted ones do.
"""

from functools import cache

import planted
import planted_memory
import pytest
import torch
from bounds import FORWARD, close

from analyses.patching.circuit import circuit_of
from analyses.patching.circuit_choice import WAYS, choose_circuit
from analyses.patching.circuit_curves import CircuitCurves, circuit_curves
from analyses.patching.circuit_runs import run_circuits
from analyses.patching.edges import edge_attribution
from analyses.patching.metrics import LogitDifference
from analyses.patching.writers import Reader, Writer
from hybridlens.errors import InputError

MEMORIES = [("recurrentgemma", "head"), ("recurrentgemma", "state"), ("qwen3_next", "state")]


def pair():
    """Two prompts that differ in one value, and which of the two is told."""
    found = planted_memory.pairs(1)[0]
    clean, corrupt = list(found.a), list(found.b)
    (right, wrong), *_ = [(a, b) for a, b in zip(clean, corrupt, strict=True) if a != b]
    return clean, corrupt, LogitDifference(right, wrong)


def planted_edges(made):
    """Embedding to what reads the value, and what writes the answer to the logits."""
    lens, layer, head = made
    if lens.cfg.layer_types[layer] == "attention":  # the first head of the group is not always the one
        heads = lens.cfg.n_heads // lens.cfg.n_kv_heads
        return Reader("v", layer, head), [Writer("head", layer, head * heads + i) for i in range(heads)]
    return Reader("mixer", layer), [Writer("ssm", layer) if head is None else Writer("ssm_head", layer, head)]


@pytest.mark.parametrize(("family", "where"), MEMORIES)
def test_the_planted_memory_is_the_circuit(family, where):
    """Two edges, one of them through a recurrent layer; all of the behaviour is in them, and none without them."""
    made = planted_memory.planted(family, where, seed=1)
    clean, corrupt, metric = pair()
    scores = edge_attribution(made.lens, clean, corrupt, metric, steps=5)
    for how in WAYS:
        found = choose_circuit(made.lens, scores, 2, how)
        reader, writers = planted_edges(made)
        first, last = sorted(found.edges, key=lambda edge: edge[0].order)
        assert first == (Writer("embed"), reader)
        assert last[0] in writers
        assert last[1] == Reader("logits")
    curves = circuit_curves(made.lens, clean, corrupt, metric, scores, [2], draws=8)
    size = abs(curves.clean - curves.corrupt)
    close(curves.faithfulness.tolist(), [1.0], FORWARD, extra=1e-6 / size, dtype=torch.float32)
    close(curves.completeness.tolist(), [0.0], FORWARD, scale=1.0, dtype=torch.float32)
    assert (curves.random_faithfulness < 0.5).double().mean() > 0.8
    assert (curves.random_completeness > 0.5).double().mean() > 0.8
    assert curves.forwards == 2 + 1 + 1  # both runs, the one up to the first difference, and 18 circuits at once


@cache
def tapped():
    """`planted`'s induction through a recurrent tap, everything else silenced; and two prompts.

    The clean prompt ends in a token that stood before another; in the corrupt one something else stood before it.
    """
    made = planted.plant.__wrapped__("recurrentgemma", "tap", kv_heads=2, seed=3)  # not the one that is kept
    layer, head = made.head
    with torch.no_grad():
        for number, hf in enumerate(made.lens.hf_model.model.layers):
            hf.mlp_block.down_proj.weight.zero_()
            hf.mlp_block.down_proj.bias.zero_()
            if number in made.lens.cfg.attention_layers:
                weight = hf.temporal_block.o_proj.weight
                own = weight[:, head * planted.D_HEAD : (head + 1) * planted.D_HEAD].clone()
                weight.zero_()
                if number == layer:
                    weight[:, head * planted.D_HEAD : (head + 1) * planted.D_HEAD] = own
            elif number != made.recurrent:
                hf.temporal_block.linear_out.weight.zero_()
    clean = planted.repeated(1, 20, seed=4)[:, :30]
    corrupt = clean.clone()
    corrupt[0, 9] = next(i for i in range(planted.VOCAB) if i not in clean[0])
    return made, clean, corrupt


def test_a_circuit_through_a_recurrent_layer_and_a_head():
    """The embedding to the tap, the tap to the head's keys, the head to the logits: found as the best three edges.

    Gradients of one run do not find them, since the head's softmax is saturated there.
    """
    made, clean, corrupt = tapped()
    lens, (layer, head) = made.lens, made.head
    metric = LogitDifference(int(clean[0, 10]), int(clean[0, 15]))
    scores = edge_attribution(lens, clean, corrupt, metric, direction="noise", steps=8)
    group = head * lens.cfg.n_kv_heads // lens.cfg.n_heads
    wanted = {
        (Writer("embed"), Reader("mixer", made.recurrent)),
        (Writer("ssm", made.recurrent), Reader("k", layer, group)),
        (Writer("head", layer, head), Reader("logits")),
    }
    for how in WAYS:
        assert set(choose_circuit(lens, scores, 3, how).edges) == wanted
    plain = choose_circuit(lens, edge_attribution(lens, clean, corrupt, metric, direction="noise"), 3, "top")
    assert set(plain.edges) != wanted
    assert abs(float(run_circuits(lens, clean, corrupt, metric, [plain]).normalised[0])) < 0.2
    curves = circuit_curves(lens, clean, corrupt, metric, scores, [3, 6], draws=10)
    assert curves.clean > curves.corrupt + 1
    assert float(curves.faithfulness[0]) == pytest.approx(1.0, abs=0.05)
    assert float(curves.completeness[0]) == pytest.approx(0.0, abs=0.05)
    assert float(curves.random_faithfulness.abs().max()) < 0.2
    for left_out in wanted:  # each of the three is needed
        without = circuit_of(lens, [edge for edge in wanted if edge != left_out])
        assert abs(float(run_circuits(lens, clean, corrupt, metric, [without]).normalised[0])) < 0.2
    assert curves.smallest() is curves.circuits[0]


def test_curves_hold_what_runs_of_their_circuits_give(tmp_path):
    """Circuits, complements and random ones each at its place; saved, shown and drawn."""
    made, clean, corrupt = tapped()
    lens, metric = made.lens, LogitDifference(int(clean[0, 10]), int(clean[0, 15]))
    scores = edge_attribution(lens, clean, corrupt, metric, steps=2)
    curves = circuit_curves(lens, clean, corrupt, metric, scores, [3, 12, 40], draws=2, seed=5, how="top")
    from analyses.patching.circuit_choice import random_circuit

    for i, circuit in enumerate(curves.circuits):
        drawn = [random_circuit(lens, circuit.size, seed) for seed in (5, 6)]
        every = [circuit, *drawn]
        kept = run_circuits(lens, clean, corrupt, metric, every).normalised
        without = run_circuits(lens, clean, corrupt, metric, [one.complement for one in every]).normalised
        close(curves.faithfulness[i].item(), kept[0].item(), FORWARD, scale=1.0, dtype=torch.float32)
        close(curves.completeness[i].item(), without[0].item(), FORWARD, scale=1.0, dtype=torch.float32)
        close(curves.random_faithfulness[i], kept[1:], FORWARD, scale=1.0, dtype=torch.float32)
        close(curves.random_completeness[i], without[1:], FORWARD, scale=1.0, dtype=torch.float32)
    assert list(curves.sizes) == sorted(set(curves.sizes))
    low, high = curves.interval(curves.random_faithfulness)
    mean = curves.random_faithfulness.mean(dim=1)
    assert bool(((low <= mean) & (mean <= high)).all())
    again = CircuitCurves.load(curves.save(tmp_path / "curves.safetensors"))
    assert torch.equal(again.faithfulness, curves.faithfulness)
    assert again.circuits[0].edges == curves.circuits[0].edges
    frame = curves.to_pandas()
    assert frame["edges"].tolist() == list(curves.sizes)
    assert frame["faithfulness"].tolist() == curves.faithfulness.tolist()
    assert f"of {curves.edges} edges" in repr(curves)
    assert len(curves._repr_html_()) < 20_000
    assert {trace.name for trace in curves.plot().data} >= {"circuit", "its complement", "random circuits"}
    assert curves.circuits[0].to_pandas().shape == (curves.sizes[0], 2)
    alone = circuit_curves(lens, clean, corrupt, metric, scores, [3], draws=0)
    assert alone.random_faithfulness.shape == (1, 0)
    assert len(alone.plot().data) == 2
    with pytest.raises(InputError, match="0 given"):
        circuit_curves(lens, clean, corrupt, metric, scores, [0])
