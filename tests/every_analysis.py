"""Every analysis that runs a model, or reads its weights, as a function of a lens: what it says of a few tokens.

`numbers` takes apart what they give. Each says something of every layer, and in the stream, so that a model may be
anywhere: see test_two_devices.py.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from autoencoders import make as autoencoder

from analyses import kv_cache, probe, states, steering
from analyses.circuits import circuits
from analyses.heads.answering import Treated
from analyses.heads.entropy import rank_heads
from analyses.heads.gathering import gather_scores
from analyses.heads.manipulation import manipulate_rows
from analyses.heads.needle_heads import look
from analyses.heads.scores import head_scores
from analyses.heads.sparsification import keep_heads, top_k
from analyses.heads.treatment import Treatment
from analyses.patching.ablation import ablate
from analyses.patching.circuit_choice import choose_circuit
from analyses.patching.circuit_runs import run_circuits
from analyses.patching.direct import direct_logit_attribution
from analyses.patching.edges import edge_attribution
from analyses.patching.gradients import attribution_patch
from analyses.patching.metrics import KullbackLeibler, LogitDifference, LogProbability
from analyses.patching.paths import path_patch
from analyses.patching.running import activation_patch
from analyses.patching.writers import readers_of, writers_of
from analyses.states.silencing import recurrent_heads
from analyses.stream import feature_attribution, fit_tuned_lens, logit_lens, loss_recovered, top_tokens, tuned_lens
from analyses.study.rankings.ability import filler_loss
from hybridlens.engine import Job, Sweep

IDS, THEIRS = [3, 4, 5, 6, 7, 8, 9], [3, 4, 20, 6, 7, 8, 9]
BOTH = [IDS, THEIRS[:5]]
METRIC = LogitDifference(3, 7)
STREAM, LAST = "blocks.1.hook_resid_post", "ln_final.hook_normalized"
MORE = [[4, 5], [6, 7]]


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and number inside a result, by its place."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from numbers(inside, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, inside in enumerate(value):
            yield from numbers(inside, f"{name}[{place}]")
    elif isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        yield name, torch.view_as_real(value) if value.is_complex() else value
    elif isinstance(value, float):
        yield name, torch.tensor(value)
    else:
        yield name, value


def held(lens):
    """What two texts left, and what two others did."""
    return (lens.prefill(rows).state for rows in ([IDS, THEIRS], [THEIRS[::-1], IDS[::-1]]))


def after(lens, *changed):
    """What is said after each state."""
    return [lens.extend(state, MORE).logits for state in changed]


def stream_lenses(lens):
    fitted = fit_tuned_lens(lens, [*BOTH, THEIRS], steps=2)
    return logit_lens(lens, BOTH, best=2), fitted, tuned_lens(lens, fitted, BOTH, best=2)


def steered(lens):
    found = steering.difference(lens, [(IDS, THEIRS), (THEIRS[:4], IDS[:4])], STREAM)
    edits = steering.steer(STREAM, found, 2.0, positions=(-2, None), lengths=[7, 7])
    said = lens.generate([IDS, THEIRS], 2, edits, stop_at_eos=False).tokens
    return found, steering.effect(lens, found, [IDS], METRIC, (-1.0,), draws=1), said


def probed(lens):
    prompts = torch.randint(3, 50, (8, 4), generator=torch.Generator().manual_seed(0))
    labels = [i % 2 for i in range(8)]
    found = probe.fit(lens, prompts, labels, STREAM, folds=2, shuffles=1)
    return found, found.predict(lens, prompts), states.probe_states(lens, prompts, labels, folds=2, shuffles=1)


def autoencoded(lens):
    sae = autoencoder(lens.cfg.d_model, "gated")
    return (
        feature_attribution(lens, sae, STREAM, IDS, METRIC), loss_recovered(lens, sae, LAST, BOTH, ablation="mean"),
        top_tokens(lens, sae, STREAM, [0], BOTH, 2),
    )  # fmt: skip


def patched(lens):
    points = [name for name, spec in lens.hook_points.items() if not spec.read_only and "indices" not in name]
    everything = [name for name in points if "scores" not in name]
    kl = KullbackLeibler(torch.linspace(-1, 1, lens.cfg.d_vocab))
    return (
        activation_patch(lens, IDS, THEIRS, METRIC, everything, batch_size=64),
        activation_patch(lens, IDS, THEIRS, LogProbability((5, 6)), ["hook_embed", STREAM, LAST], "p"),
        attribution_patch(lens, IDS, THEIRS, kl, [STREAM, LAST], "p", steps=2),
    )


def gone_on(lens):
    """A run that is taken up in the middle."""
    return activation_patch(lens, IDS, THEIRS, METRIC, f"blocks.{lens.cfg.n_layers - 2}.hook_mixer_out", "p")


def ablated(lens):
    names = ["hook_embed", *(f"blocks.{layer}.hook_mixer_out" for layer in range(lens.cfg.n_layers)), LAST]
    return (
        ablate(lens, IDS, METRIC, names, "p", kind="zero"), ablate(lens, IDS, METRIC, names, kind="mean"),
        ablate(lens, IDS, METRIC, names, kind="resample", prompts=[THEIRS, IDS[::-1]], corrupt=THEIRS),
    )  # fmt: skip


def followed(lens):
    """Paths, edges, circuits and shares."""
    edges = edge_attribution(lens, IDS, THEIRS, METRIC, steps=2)
    through, chosen = bool(lens.cfg.mlp_layers), choose_circuit(lens, edges, 6)
    return (
        path_patch(
            lens, IDS, THEIRS, METRIC, writers_of(lens), readers_of(lens), absent="untouched", through_mlps=through
        ),
        edges, run_circuits(lens, IDS, THEIRS, METRIC, [chosen, chosen.complement]),
        direct_logit_attribution(lens, IDS, [5, METRIC], (-1, 3)),
    )  # fmt: skip


def attended(lens):
    ranking, segments = rank_heads(lens, BOTH), [[(1, 3), (3, 6)]]
    return (
        ranking, rank_heads(lens, BOTH, queries="last", semantics="published"),
        head_scores(lens, period=4, rows=1, draws=1), head_scores(lens, of="recurrent", period=4, rows=1, draws=1),
        gather_scores(lens, [IDS], segments), look(lens, IDS, [5, 6], [(1, 3)]),
        lens.prefill([IDS], keep_heads(lens, ranking, 2)).logits,
        filler_loss(lens, [ranking.kept(2, "model"), ranking.kept(0, "model")], torch.tensor([IDS, THEIRS])),
    )  # fmt: skip


def treated(lens):
    """Sparsified heads and manipulated weights, while a prompt is read and while the model answers."""
    edits = [top_k(lens, [1, 2], "both", "model"), top_k(lens, 1, "both", semantics="published")]
    edits += [
        manipulate_rows(lens, ["binary", "keep"], [(1, 3), (2, 4)], "both", how) for how in ("clean", "published")
    ]
    found: list[Any] = []
    for some in edits:
        read = lens.prefill([IDS, THEIRS], some)
        found += [read.logits, lens.extend(read.state, [[4], [5]], some).logits]
    return found


def answered(lens):
    """Jobs that share beginnings, under treatments, by the engine."""
    ways = [Treatment(1), Treatment(2, scope="model"), Treatment(lens.cfg.n_heads, "binary")]
    jobs = [Job((*IDS[:n], 4, 5), reading, ways[0], ((1, 3),)) for n in (3, 6) for reading in (None, *ways)]
    said = (one for batch in Sweep(lens, Treated(lens), "first_new_token", 2, 10**9, 3).run(jobs) for one in batch)
    return sorted((one.job, one.answer.tokens, one.answer.margin) for one in said)


def measured(lens):
    """What states hold and lose, and what comes of heads that are knocked out."""
    layer, heads = lens.cfg.state_layers[-1], recurrent_heads(lens)
    return (
        states.spectrum(lens, BOTH), states.sizes(lens, BOTH), states.flow(lens, BOTH),
        states.holding(lens, BOTH, [(1, 3), (4, 5)], range(5)), states.hidden_attention(lens, BOTH, layer),
        states.knockout(lens, IDS, METRIC, heads[-1:], [1], "read", controls=1),
        lens.generate([IDS, THEIRS], 2, states.knock_out(lens, heads, [1, 8]), stop_at_eos=False).tokens,
    )  # fmt: skip


def weighed(lens):
    """Circuits from weights, their gates and means measured."""
    return circuits(lens, BOTH)


def rewritten(lens):
    """Keys and values."""
    state, other = held(lens)
    last = [lens.cfg.attention_layers[-1]]
    dropped = kv_cache.drop(state, [5], layers=last)
    return kv_cache.means(state), after(
        lens, kv_cache.drop(state, [[5], [6]]), dropped, kv_cache.keep_ends(state, 1, 3),
        kv_cache.quantise(dropped, 3, per="channel"), kv_cache.noise(state, 0.5, 1),
        kv_cache.mean(state, values=kv_cache.means(other)), kv_cache.zero(state, "keys", heads=[0], rows=[1]),
        kv_cache.swap(state, other, mapping={5: 4}), kv_cache.swap(state, other.to("cpu"), layers=last),
        kv_cache.swap(state, kv_cache.drop(other, [5], layers=last).to("cpu"), positions=[6], layers=last),
    )  # fmt: skip


def remade(lens):
    """Convolutions and recurrent states, and a text whose state is exchanged on the way."""
    state, other = held(lens)
    layer = lens.cfg.state_layers[-1]
    direction = torch.linspace(-1, 1, state.layers[layer]["ssm"].recurrent[0].numel())
    direction = direction.view(state.layers[layer]["ssm"].recurrent.shape[1:])
    surgery = kv_cache.Surgery(lambda state: kv_cache.decay(state, 0.5, "both"), [0])
    return kv_cache.generate_with(lens, [IDS, THEIRS], [surgery], 3, stop_at_eos=False).tokens, after(
        lens, kv_cache.reset(state), kv_cache.swap_recurrent(state, other.to("cpu"), rows=[1]),
        kv_cache.project_out(state, direction, layers=[layer]),
    )  # fmt: skip


def cached(lens):
    """What a cache makes of what it holds."""
    _, cache = lens.run_with_cache([IDS, THEIRS])
    terms = cache.get_full_resid_decomposition(expand_neurons=True, apply_ln=True)
    return terms, cache.logit_attrs(cache.decompose_resid(), 3, 5), cache.compute_ssm_state(), cache.logit_lens().values


EVERYWHERE = (
    stream_lenses, steered, probed, autoencoded, patched, ablated, followed, measured, remade, cached,
)  # fmt: skip
OF_HEADS = (attended, treated, answered, weighed, rewritten)
"""What needs no attention heads, and what does."""
