"""Circuits: all edges give the clean run, none the corrupt one, and any others what a plain loop gives.

The reference makes every part's input by hand, as the sum of what its edges carry, reads what the part then writes in
a run of the whole model for each of its inputs and another for its output, a circuit at a time, and knows no batches,
shared streams, differences of terms or skipped positions.
"""

import dataclasses
from functools import cache

import pytest
import torch
from bounds import FORWARD, GRADIENT, LAYER, close
from models import PATCHED, ROWS
from patching_loops import METRIC, prompts, small

from analyses.patching.circuit import Circuit, circuit_of, existing, feeding, on_paths, whole_circuit
from analyses.patching.circuit_choice import choose_circuit, random_circuit
from analyses.patching.circuit_runs import run_circuits
from analyses.patching.edges import edge_attribution
from analyses.patching.metrics import KullbackLeibler
from analyses.patching.writers import Reader, Writer, readers_of, writers_of
from hybridlens.errors import InputError, UnknownNameError

SIDE_BY_SIDE = "falcon_h1"
LOOPED = [family for family in PATCHED if family in ("recurrentgemma", "jamba", "mamba2", SIDE_BY_SIDE, "qwen3_next")]


def written(lens, kept):
    """What each writer writes in a run [p d], by the hook points of whole writes."""
    out = {Writer("embed"): kept["hook_embed"][0]}
    for layer in range(lens.cfg.n_layers):
        for part, kind in (("attn", "head"), ("ssm", "ssm_head")):
            heads = kept.get(f"blocks.{layer}.{part}.hook_result")
            if heads is not None:
                out |= {Writer(kind, layer, head): heads[0, :, head] for head in range(heads.shape[2])}
            elif f"blocks.{layer}.hook_{part}_out" in kept:
                out[Writer(part, layer)] = kept[f"blocks.{layer}.hook_{part}_out"][0]
        if f"blocks.{layer}.hook_mlp_out" in kept:
            out[Writer("mlp", layer)] = kept[f"blocks.{layer}.hook_mlp_out"][0]
    return out


@cache
def names(lens):
    """Whole writes, streams, and what heads read."""
    wanted = (
        "hook_embed",
        "hook_attn_out",
        "hook_ssm_out",
        "hook_mlp_out",
        "hook_result",
        "hook_q",
        "hook_k",
        "hook_v",
    )
    wanted += ("attn.hook_gate", "hook_resid_pre", "hook_resid_mid", "hook_resid_post")
    return [
        name for name in lens.hook_dict if (name.endswith(wanted) and ".ssm.hook_" not in name) or "_result" in name
    ]


def put(name, value, head=None):
    def fn(x, hook):
        x[0, :, slice(None) if head is None else head] = value
        return x

    return name, fn


def seen(lens, tokens, hooks, wanted):
    """What a run under hooks holds at some points."""
    held = {}
    keep = [(name, lambda x, hook: held.__setitem__(hook.name, x.clone())) for name in wanted]
    lens.run_with_hooks(tokens, [*hooks, *keep])
    return held


def stream(lens, reader):
    if reader.kind == "logits":
        return f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"
    after = reader.kind == "mlp" and lens.cfg.layers[reader.layer].type != "mlp"
    return f"blocks.{reader.layer}.hook_resid_{'mid' if after else 'pre'}"


def loop(lens, clean, corrupt, circuit, metric=METRIC):
    """The metric of a circuit, its parts computed one after the other."""
    with torch.no_grad():
        kept = lens.run_with_cache(corrupt, names(lens))[1].cache_dict
        away, now = (
            written(lens, kept),
            {Writer("embed"): lens.run_with_cache(clean, ["hook_embed"])[1]["hook_embed"][0]},
        )
        given = {}  # of each part, hooks that put in what it reads
        for r in sorted(range(len(circuit.readers)), key=lambda r: circuit.readers[r].order(lens.cfg.n_layers)):
            reader = circuit.readers[r]
            for writer in circuit.writers:  # what is written before it: all of a layer's mixers, or its MLP, at once
                if writer not in now and writer.order < reader.order(lens.cfg.n_layers):
                    own = [other for other in circuit.readers if other.order(lens.cfg.n_layers) == writer.order]
                    made = written(
                        lens, seen(lens, clean, [hook for other in own for hook in given[other]], names(lens))
                    )
                    now |= {other: made[other] for other in circuit.writers if other.order == writer.order}
            x = kept[stream(lens, reader)][0].clone()
            for w, writer in enumerate(circuit.writers):
                if circuit.kept[w, r]:
                    x += now[writer] - away[writer]
            given[reader] = [put(stream(lens, reader), x)]
            if reader.head is not None:
                point = f"blocks.{reader.layer}.attn.hook_{reader.kind}"
                read = seen(lens, clean, given[reader], [point])[point][0, :, reader.head]
                given[reader] = [put(point, read, reader.head)]
        return metric(lens.run_with_hooks(clean, given[Reader("logits")]))[0].item()


def some_edges(lens, share, seed):
    """Any edges, on paths or not."""
    whole = whole_circuit(lens)
    drawn = torch.rand(whole.kept.shape, generator=torch.Generator().manual_seed(seed)) < share
    return Circuit(whole.kept & drawn, whole.writers, whole.readers, f"seed {seed}", whole.model)


@pytest.mark.parametrize("family", [family for family in PATCHED if not ROWS[family].shared])
def test_all_edges_are_the_clean_run_and_none_the_corrupt_one(family):
    lens, (clean, corrupt) = small(family), prompts()
    whole = whole_circuit(lens)
    for options in ({}, {"skip_positions": False, "batch_size": 1}, {"memory": 1}):
        found = run_circuits(lens, clean, corrupt, METRIC, [whole, whole.complement], **options)
        close(found.raw, (found.clean, found.corrupt), FORWARD, dtype=torch.float32)
        assert abs(found.clean - found.corrupt) > 0.1
    with torch.no_grad():
        close(found.clean, METRIC(lens(clean)).item(), LAYER, dtype=torch.float32)
        close(found.corrupt, METRIC(lens(corrupt)).item(), LAYER, dtype=torch.float32)
    assert whole.complement.size == 0
    assert whole.share == 1.0
    assert not any(point.asked() for point in lens.hook_dict.values())


@pytest.mark.parametrize("family", LOOPED)
def test_any_circuit_equals_the_plain_loop(family):
    """Dense and sparse ones, in one batch, from the first difference on or from the start."""
    lens, (clean, corrupt) = small(family), prompts(length=12)
    circuits = [some_edges(lens, share, seed) for seed, share in enumerate((0.85, 0.4))]
    expected = torch.tensor([loop(lens, clean, corrupt, circuit) for circuit in circuits], dtype=torch.float64)
    assert expected.unique().numel() == len(circuits)
    for options, forwards in (({}, 4), ({"skip_positions": False, "batch_size": 1}, 4), ({"memory": 1}, 5)):
        found = run_circuits(lens, clean, corrupt, METRIC, circuits, **options)
        close(found.raw, expected, GRADIENT, dtype=torch.float32)
        assert found.forwards == forwards


def test_an_edge_alone_is_a_path_patch():
    """Of every edge into the logits: the run in which that one writer's output is the clean run's, norms anew."""
    from analyses.patching.paths import path_patch

    lens, (clean, corrupt) = small("recurrentgemma"), prompts()
    embed = Writer("embed")
    edges = [(embed, Reader("logits"))]
    alone = run_circuits(lens, clean, corrupt, METRIC, [circuit_of(lens, edges)])
    exact = path_patch(lens, clean, corrupt, METRIC, [embed], [Reader("logits")])
    close(alone.raw[0].item(), exact.raw[0, 0].item(), FORWARD, dtype=torch.float32)


@pytest.mark.parametrize("family", ["recurrentgemma", SIDE_BY_SIDE])
def test_edges_on_no_path_do_nothing(family):
    """Pruning leaves the run as it was, and is what following every path by itself leaves."""
    lens, (clean, corrupt) = small(family), prompts()
    circuit = some_edges(lens, 0.2 if family == "recurrentgemma" else 0.12, seed=5)
    feeds = feeding(lens, circuit.writers, circuit.readers)
    pruned = on_paths(circuit.kept, feeds, circuit.writers, circuit.readers)
    on = set()

    def back(reader, behind):  # depth first over all paths that end at the logits
        for w in circuit.kept[:, reader].nonzero()[:, 0].tolist():
            path = [*behind, (w, reader)]
            if circuit.writers[w].kind == "embed":
                on.update(path)
            for before in feeds[:, w].nonzero()[:, 0].tolist():
                back(before, path)

    back(circuit.readers.index(Reader("logits")), [])
    assert {tuple(edge) for edge in pruned.nonzero().tolist()} == on
    assert 0 < len(on) < circuit.size
    less = Circuit(pruned, circuit.writers, circuit.readers, "pruned", circuit.model)
    found = run_circuits(lens, clean, corrupt, METRIC, [circuit, less])
    close(found.raw[0].item(), found.raw[1].item(), FORWARD, dtype=torch.float32)
    assert abs(found.raw[0] - found.corrupt) > 1e-3


@pytest.mark.parametrize("family", ["recurrentgemma", SIDE_BY_SIDE])
def test_greedy_and_top_choices(family):
    """Against the definitions, taken literally: the best edge of all, or of those into a part that is inside."""
    lens, (clean, corrupt) = small(family), prompts()
    scores = edge_attribution(lens, clean, corrupt, METRIC, steps=3)
    writers, readers = scores.writers, scores.readers
    feeds, there = feeding(lens, writers, readers), existing(writers, readers)
    assert bool((there == ~scores.scores.isnan()).all())
    values = scores.scores.clone()
    for r, reader in enumerate(readers):  # what the recurrence alone reads
        if reader.kind == "mixer":
            for i, other in enumerate(readers):
                if other.layer == reader.layer and other.kind in "qkv":
                    values[:, r] -= scores.scores[:, i]
    edges = sorted(map(tuple, there.nonzero().tolist()), key=lambda edge: -abs(float(values[edge])))
    for n in (7, 30):
        inside, taken = {readers.index(Reader("logits"))}, []
        for _ in range(n):
            best = next(edge for edge in edges if edge[1] in inside and edge not in taken)
            taken.append(best)
            inside |= set(feeds[:, best[0]].nonzero()[:, 0].tolist())
        for how, expected in (("greedy", taken), ("top", edges[:n])):
            mask = torch.zeros_like(there)
            for edge in expected:
                mask[edge] = True
            found = choose_circuit(lens, scores, n, how)
            assert torch.equal(found.kept, on_paths(mask, feeds, writers, readers))
            assert found.source.startswith(f"the {n} edges of the largest scores")
    other = edge_attribution(lens, corrupt, clean, METRIC)
    both = dataclasses.replace(scores, scores=(scores.scores + other.scores) / 2)
    mean = choose_circuit(lens, [scores, other], 12)
    assert torch.equal(mean.kept, choose_circuit(lens, both, 12).kept)
    assert mean.source.endswith("mean of 2 prompt pairs")
    assert choose_circuit(lens, scores, int(there.sum())).share == 1.0
    assert choose_circuit(lens, scores, 0).size == 0


def test_the_recurrence_beside_heads_has_its_own_score():
    """For a small step of one token's embedding, what the circuit of all edges but one loses is that edge's score.

    The whole mixer's score, attention beside it included, is far from that.
    """
    from analyses.patching.circuit_choice import scores_apart

    lens, (clean, _) = small(SIDE_BY_SIDE), prompts()
    near = clean.clone()
    near[0, 6] = (near[0, 6] + 1) % 50
    with torch.no_grad():
        embedding = lens.hf_model.get_input_embeddings().weight
        held = embedding.clone()
        embedding[near[0, 6]] = held[clean[0, 6]] + 0.002 * (held[near[0, 6]] - held[clean[0, 6]])  # a small step
    try:
        scores = edge_attribution(lens, clean, near, METRIC, direction="noise")
        edge = (Writer("embed"), Reader("mixer", 1))
        whole = whole_circuit(lens)
        kept = whole.kept.clone()
        w, r = whole.writers.index(edge[0]), whole.readers.index(edge[1])
        kept[w, r] = False
        found = run_circuits(
            lens, clean, near, METRIC, [Circuit(kept, whole.writers, whole.readers, "less", whole.model)]
        )
        measured = float(found.raw[0]) - found.clean
    finally:
        with torch.no_grad():
            embedding.copy_(held)
    ours = float(scores_apart(scores.readers, scores.scores)[w, r])
    assert ours == pytest.approx(measured, rel=0.05)
    assert abs(scores.score(*edge) - measured) > 3 * abs(ours - measured)


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba", SIDE_BY_SIDE])
def test_random_circuits_are_of_the_size_and_on_paths(family):
    lens = small(family)
    writers, readers = writers_of(lens), readers_of(lens)
    feeds = feeding(lens, writers, readers)
    for n in (1, 2, 3, 8, 25):
        drawn = [random_circuit(lens, n, seed) for seed in range(6)]
        for circuit in drawn:
            assert circuit.size == n
            assert torch.equal(on_paths(circuit.kept, feeds, writers, readers), circuit.kept)
        assert torch.equal(drawn[0].kept, random_circuit(lens, n, 0).kept)
        if n > 1:
            assert any(not torch.equal(drawn[0].kept, other.kept) for other in drawn)


def test_bfloat16_is_near_float32():
    half, whole = small("recurrentgemma", torch.bfloat16), small("recurrentgemma")
    clean, corrupt = prompts()
    ours, theirs = (
        run_circuits(lens, clean, corrupt, METRIC, [some_edges(lens, share, 3) for share in (0.2, 0.6, 0.9)])
        for lens in (half, whole)
    )
    assert (ours.normalised - theirs.normalised).abs().max() < 0.1
    assert theirs.normalised.std() > 0.2


def test_metrics_of_all_positions_and_saved_circuits(tmp_path):
    lens, (clean, corrupt) = small("jamba"), prompts()
    with torch.no_grad():
        metric = KullbackLeibler(lens(clean)[0, -6:])
    circuit = some_edges(lens, 0.7, 2)
    again = Circuit.load(circuit.save(tmp_path / "circuit.safetensors"))
    assert torch.equal(again.kept, circuit.kept)
    assert again.edges == circuit.edges
    found = run_circuits(lens, clean, corrupt, metric, [again, whole_circuit(lens)])
    close(found.raw[0].item(), loop(lens, clean, corrupt, circuit, metric), GRADIENT, dtype=torch.float32)
    close(found.raw[1].item(), 0.0, FORWARD, scale=1.0, dtype=torch.float32)


def test_bad_input_is_one_line():
    lens, (clean, corrupt) = small("jamba"), prompts()
    scores = edge_attribution(lens, clean, corrupt, METRIC)
    some = edge_attribution(lens, clean, corrupt, METRIC, readers=[Reader("logits")])
    other = whole_circuit(small("recurrentgemma"))

    def fails(line, make, error=InputError):
        with pytest.raises(error, match=line) as caught:
            make()
        assert "\n" not in str(caught.value)

    fails("85 edges asked for, but the model has 84", lambda: choose_circuit(lens, scores, 85))
    fails("scores of .* writers and 1 readers given", lambda: choose_circuit(lens, some, 3))
    fails("'best'", lambda: choose_circuit(lens, scores, 3, "best"), UnknownNameError)
    fails("no scores were given", lambda: choose_circuit(lens, [], 3))
    fails("n = 0 given", lambda: random_circuit(lens, 0))
    fails("85 edges asked for", lambda: random_circuit(lens, 85))
    fails("is of another model", lambda: run_circuits(lens, clean, corrupt, METRIC, [other]))
    fails("no circuits were given", lambda: run_circuits(lens, clean, corrupt, METRIC, []))
    fails("so there is no scale", lambda: run_circuits(lens, clean, clean, METRIC, [whole_circuit(lens)]))
    late = (Writer("mlp", 3), Reader("mlp", 1))
    fails("there is no edge from 'L3 MLP' to 'L1 MLP in'", lambda: circuit_of(lens, [late]))
    fails("is none that circuits are made of", lambda: circuit_of(lens, [(Writer("embed"), Reader("mixer", 1))]))
    fails("layer 0 has no heads", lambda: circuit_of(lens, [(Writer("head", 0, 1), Reader("logits"))]))
    for family, line in (("zamba2", "shared blocks read the embedding beside it"), ("minimax", "a sum of writes")):
        fails(line, lambda family=family: whole_circuit(small(family)))
    kept = torch.zeros(2, 2, dtype=torch.bool)
    fails("edges of shape", lambda: Circuit(kept, other.writers, other.readers, "", other.model))
