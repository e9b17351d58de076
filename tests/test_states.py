"""What states say, on models of every kind: against sums over a run's activations, and where something was planted.

The random models' numbers are made anew from `run_with_cache` with einsum, one equation after the other, in float64;
nothing of the operators is used. In the planted models one head alone hardly decays and takes in nothing but values, so
that every measure has one right answer.
"""

import math

import pytest
import torch
from bounds import FORWARD, near
from models import MATRIX, WITH_STATE, make, tokens
from planted_memory import SLOW, pairs, planted

import hybridlens as hl
from analyses import states
from analyses.experiment.artefacts import Stored
from hybridlens.errors import InputError

PLANTED = ("recurrentgemma", "jamba", "mamba2", "qwen3_next")
LENGTH = 14


@pytest.fixture(scope="module", params=WITH_STATE)
def run(request):
    """A random model, two prompts, and everything its recurrent layers computed of them, in float64."""
    lens = hl.HybridLens(make(request.param, 2))
    ids = tokens(2, LENGTH, 5)
    _, cache = lens.run_with_cache(ids, lambda name: ".ssm.hook_" in name)
    kept = {name: value.double() for name, value in cache.cache_dict.items() if "result" not in name}
    return lens, ids, kept


def layer_of(run, layer):
    """decay, addressed writes and states of a layer, by head [b p h u m]; blocks of channels where heads are such."""
    _, _, kept = run
    states_, decay = (kept[f"blocks.{layer}.ssm.hook_{name}"] for name in ("state", "decay"))
    matrix = states_.ndim == 5
    heads = kept[f"blocks.{layer}.ssm.hook_pattern"].shape[1]

    def by_head(x):
        if matrix:
            return x
        x = x if x.ndim == 4 else x[..., None]
        return x.reshape(*x.shape[:2], heads, -1, x.shape[-1])

    if matrix:
        rate = decay[..., None, None] if decay.ndim == 3 else decay[..., None, :]
    else:
        rate = by_head(decay)
    write = by_head(kept[f"blocks.{layer}.ssm.hook_write"])
    return rate, write, by_head(states_), decay if matrix else rate.flatten(-2)


def test_the_spectrum_is_the_mean_log_of_the_decays(run):
    lens, ids, _ = run
    found = states.spectrum(lens, ids)
    assert found.layers == lens.cfg.state_layers
    assert found.length == LENGTH
    for i, layer in enumerate(found.layers):
        logs = layer_of(run, layer)[3][:, 1:].log()
        logs = logs[..., None] if logs.ndim == 3 else logs
        mean, spread = (x.flatten(0, 1) for x in (logs, logs))
        near(found.log_decay[i], mean.mean(0), FORWARD, dtype=torch.float32)
        near(found.spread[i], spread.std(0, correction=0), FORWARD, scale=float(logs.abs().max()), dtype=torch.float32)
    assert torch.equal(found.half_life, math.log(2) / -found.log_decay)
    assert torch.equal(found.beyond, (found.half_life > LENGTH).double().mean(-1))


def test_prompts_of_any_lengths_give_what_each_gives_alone(run):
    """Every measure, padding included: a row's numbers are its own, and nothing stands where it has no token."""
    lens, ids, _ = run
    rows = [ids[0].tolist(), ids[1, :9].tolist()]
    together = {
        "sizes": states.sizes(lens, rows, [0, 8, 12, -1]),
        "flow": states.flow(lens, rows),
        "holding": states.holding(lens, rows, [(1, 3), (4, 9)], [2, 8, 13]),
    }
    assert together["sizes"].positions == (0, 8, 12, -1)
    for row, prompt in enumerate(rows):
        last = len(prompt) - 1
        places, held = [p for p in (0, 8, 12) if p <= last], [p for p in (2, 8, 13) if p <= last]
        alone = {
            "sizes": states.sizes(lens, [prompt], [*places, -1]),
            "flow": states.flow(lens, [prompt]),
            "holding": states.holding(lens, [prompt], [(1, 3), (4, 9)], held),
        }
        for what, one in alone.items():
            assert together[what].lengths == (14, 9)
            for name, value in vars(one).items():
                if isinstance(value, torch.Tensor):
                    got = getattr(together[what], name)[:, row]
                    if what == "sizes":
                        got, there = got[..., [*range(len(places)), 3]], places
                        assert getattr(together[what], name)[:, row, :, len(places) : 3].isnan().all()
                    else:
                        there = held if what == "holding" else prompt
                        assert got[..., len(there) :].isnan().all()
                        got = got[..., : len(there)]
                    want = value[:, 0]
                    assert torch.equal(got.isnan(), want.isnan())
                    if name == "effective_rank":  # of roots of numbers near 0
                        assert (got.log() - want.log()).abs().max() < 1e-3
                    else:
                        finite = ~want.isnan()
                        near(got[finite], want[finite], FORWARD, dtype=torch.float32)
    for layer in lens.cfg.state_layers:
        for measure in (states.hidden_attention, states.erasures):
            if measure is states.erasures and not states.flow(lens, [rows[1]]).erases:
                continue
            both = measure(lens, rows, layer)
            assert both[1, :, 9:].isnan().all()
            near(both[1, :, :9, :9], measure(lens, [rows[1]], layer)[0], FORWARD, dtype=torch.float32)
            assert (both[1, :, :9, 9:] == 0).all()
    one, other, both = (states.spectrum(lens, some) for some in ([rows[0]], [rows[1]], rows))
    assert both.length == 14
    finite = both.log_decay.isfinite()
    near(
        both.log_decay[finite], ((13 * one.log_decay + 8 * other.log_decay) / 21)[finite], FORWARD, dtype=torch.float32
    )
    with pytest.raises(
        InputError, match=r"positions \[-1\] given for prompts of 14, 9 tokens, expected positions from"
    ):
        states.holding(lens, rows, [(0, 1)], [-1])


def test_sizes_are_those_of_the_states(run):
    lens, ids, _ = run
    at = [0, 5, -1]
    found = states.sizes(lens, ids, at)
    assert found.positions == (0, 5, LENGTH - 1)
    for i, layer in enumerate(found.layers):
        matrices = layer_of(run, layer)[2][:, [0, 5, LENGTH - 1]].transpose(1, 2)
        near(found.norm[i], matrices.square().sum((-1, -2)).sqrt(), FORWARD, dtype=torch.float32)
        if found.effective_rank is None:
            assert matrices.shape[-1] == 1
            assert found.stable_rank is None
            continue
        gram = torch.linalg.eigvalsh(matrices @ matrices.mT).clamp(min=0)  # another way to the singular values
        largest = gram[..., -1]
        near(found.stable_rank[i], gram.sum(-1) / largest, FORWARD, dtype=torch.float32)
        p = gram.sqrt() / gram.sqrt().sum(-1, keepdim=True)
        # Roots of eigenvalues near 0 have but half of the digits.
        assert (found.effective_rank[i].log() - torch.special.entr(p).sum(-1)).abs().max() < 1e-3
        assert found.most == min(matrices.shape[-2:])
        assert (found.stable_rank[i] <= found.effective_rank[i].clamp(max=found.most) + found.most).all()


def test_flow_is_what_each_token_does(run):
    lens, ids, kept = run
    found = states.flow(lens, ids)
    for i, layer in enumerate(found.layers):
        rate, write, after, _ = layer_of(run, layer)
        earlier = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], dim=1)
        faded = rate * earlier
        offered = write
        recall = kept.get(f"blocks.{layer}.ssm.hook_recall")
        erased = torch.zeros(after.shape[:3], dtype=torch.float64)
        if recall is not None:
            v, k, beta = (kept[f"blocks.{layer}.ssm.hook_{name}"] for name in ("v", "k", "beta"))
            offered = v[..., None] * k[..., None, :]
            erased = beta * recall.norm(dim=-1) * k.norm(dim=-1)

        def norm(x):
            return x.square().sum((-1, -2)).sqrt()

        want = {
            "kept": norm(faded) / norm(earlier),
            "wrote": norm(write) / norm(after),
            "already": (faded * offered).sum((-1, -2)) / norm(offered) ** 2,
            "erased": erased / norm(faded),
        }
        for name, value in want.items():
            got, value = getattr(found, name)[i], value.transpose(1, 2)
            if name in ("kept", "erased"):  # nothing stood there yet; RG-LRU begins a document with decay 0
                assert got[..., 0].isnan().all()
                got, value = got[..., 1:], value[..., 1:]
            both = got.isfinite() & value.isfinite()
            assert torch.equal(got.isfinite(), value.isfinite())
            near(got[both], value[both], FORWARD, dtype=torch.float32)


def test_spans_hold_what_their_tokens_wrote(run):
    """By the sum over tokens: each token's write carried by the decays, and erased from where there is a delta rule."""
    lens, ids, kept = run
    spans, at = [(1, 4), (7, 8)], [4, 9, LENGTH - 1]
    found = states.holding(lens, ids, spans, at)
    near(found.share.sum(-2) + found.rest, torch.ones_like(found.rest), FORWARD, dtype=torch.float32)
    for i, layer in enumerate(found.layers):
        rate, write, after, _ = layer_of(run, layer)
        names = ("v", "k", "beta")
        delta = f"blocks.{layer}.ssm.hook_recall" in kept
        v, k, beta = (kept[f"blocks.{layer}.ssm.hook_{name}"] for name in names) if delta else (None, None, None)
        for s, (start, stop) in enumerate(spans):
            part = torch.zeros_like(after[:, 0])
            for t in range(LENGTH):
                part = part * rate[:, t]
                inside = start <= t < stop
                if delta:
                    new = (v[:, t] if inside else 0) - torch.einsum("bsum,bsm->bsu", part, k[:, t])
                    part = part + beta[:, t, :, None, None] * new[..., None] * k[:, t, :, None, :]
                elif inside:
                    part = part + write[:, t]
                if t in at:
                    share = (part * after[:, t]).sum((-1, -2)) / after[:, t].square().sum((-1, -2))
                    got = found.share[i][:, :, s, at.index(t)]
                    near(got, share, FORWARD, scale=max(1.0, float(share.abs().max())), dtype=torch.float32)
    assert found.even[0].tolist() == [3 / 5, 3 / 10, 3 / LENGTH]
    assert found.even[1].tolist() == [0.0, 1 / 10, 1 / LENGTH]


def test_sinks_are_the_share_of_the_first_tokens(run):
    lens, ids, _ = run
    layers = lens.cfg.state_layers[:1]
    one, other = states.sinks(lens, ids, 3, [-1], layers), states.holding(lens, ids, [(0, 3)], [-1], layers)
    assert torch.equal(one.share, other.share)
    whole = states.sinks(lens, ids, LENGTH, [-1], layers)
    near(whole.share, torch.ones_like(whole.share), FORWARD, dtype=torch.float32)


def test_hidden_attention_is_the_hook_points(run):
    lens, ids, kept = run
    layer = lens.cfg.state_layers[-1]
    got = states.hidden_attention(lens, ids, layer)
    near(got, kept[f"blocks.{layer}.ssm.hook_pattern"], FORWARD, dtype=torch.float32)
    figure = states.hidden_figure(lens, ids[:1], layer, heads=[0], positions=[2, 5, -1])
    assert figure.heads == [f"L{layer} S0"]
    assert figure.tokens == [str(int(ids[0, i])) for i in (2, 5, LENGTH - 1)]
    shown = got[0, 0][[2, 5, LENGTH - 1]][:, [2, 5, LENGTH - 1]]
    near(torch.from_numpy(figure.pattern[0]), shown, FORWARD, dtype=torch.float32)


@pytest.mark.parametrize("family", [family for family in MATRIX if "qwen" in family or "kimi" in family])
def test_erasures_times_values_are_the_strength_times_the_recall(family):
    lens = hl.HybridLens(make(family, 3))
    ids = tokens(2, LENGTH, 6)
    layer = lens.cfg.state_layers[0]
    _, cache = lens.run_with_cache(ids, lambda name: f"blocks.{layer}.ssm" in name)
    v, beta, recall = (cache[f"blocks.{layer}.ssm.hook_{name}"] for name in ("v", "beta", "recall"))
    erased = torch.einsum("bstj,bjsu->btsu", states.erasures(lens, ids, layer), v)
    want = beta[..., None] * recall
    near(erased, want, FORWARD, dtype=torch.float32)


@pytest.mark.parametrize("family", PLANTED)
def test_the_planted_memory_is_found_by_every_measure(family):
    """It alone keeps what it takes in, and takes in the value alone: no other layer's heads come near both."""
    model = planted(family, "state", 1)
    pair = pairs(1)[0]
    (start, stop), ids = pair.spans[0], [list(pair.a)]
    lens, layer = model.lens, model.layer
    which = lens.cfg.state_layers.index(layer)
    half_life = math.log(2) / SLOW
    decays = states.spectrum(lens, ids).half_life[which]
    head = 0 if model.head is None else model.head
    n = lens.cfg.recurrence(layer).d_state
    slow = decays[head][: 4 * n] if family == "jamba" else decays[head]  # of Mamba channels 0 … 3 are planted
    assert ((slow - half_life).abs() < 0.02 * half_life).all()
    held = states.holding(lens, ids, [(start, stop)], [-1], [layer]).share[0, 0, :, 0, 0]
    if family == "jamba":  # one head of all channels, of which four are planted
        assert held[0] > 0.05
    else:
        assert held[head] > 0.99
        flow = states.flow(lens, ids, [layer])
        wrote = flow.wrote[0, 0, head]
        assert int(wrote.nan_to_num(0).argmax()) <= start  # nothing later writes as much
        assert float(wrote[start]) > 0.99
        assert float(wrote[stop:].nan_to_num(0).max()) < 0.05
        later = states.sinks(lens, ids, start, [-1], [layer]).share[0, 0, head, 0, 0]
        assert abs(float(later)) < 0.01


def test_a_planted_value_that_stands_there_is_found_and_one_in_its_way_erased():
    """At one address: the same value again finds itself there, another one takes it away, and holds the state then."""
    model = planted("qwen3_next", "state", 1)
    lens, layer, head = model.lens, model.layer, model.head
    same, other = "f0 v1 f2 f3 v1 f4 ask", "f0 v1 f2 f3 v2 f4 ask"
    already = states.flow(lens, [same, other], [layer]).already[0, :, head, 4]
    assert abs(float(already[0]) - 1) < 0.05
    assert abs(float(already[1])) < 0.05
    erased = states.erasures(lens, [other], layer)[0, head]
    assert float(erased[4, 1]) > 0.95
    assert float(erased[4].sum() - erased[4, 1]) < 0.05
    share = states.holding(lens, [other], [(1, 2), (4, 5)], [3, -1], [layer]).share[0, 0, head]
    assert share[0, 0] > 0.95
    assert share[1, 1] > 0.95
    assert abs(share[0, 1]) < 0.05
    figure = states.hidden_figure(lens, other, layer, [head], kind="erasures")
    assert figure.tokens == other.split()
    assert figure.pattern[0, 4, 1] > 0.95


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1"])
def test_a_planted_rank_is_found(family):
    """Nothing decays, and token t writes the t-th axis at the t-th address: t + 1 directions of equal strength."""
    lens = hl.HybridLens(make(family, 2))
    layer = lens.cfg.state_layers[0]

    def axes(x, hook):
        return torch.eye(x.shape[1], x.shape[-1])[None, :, None].expand_as(x)

    def ones(x, hook):
        return torch.ones_like(x)

    points = {"decay": ones, "dt": ones, "v": axes, "k": axes}
    with lens.hooks([(f"blocks.{layer}.ssm.hook_{name}", fn) for name, fn in points.items()]):
        found = states.sizes(lens, tokens(1, 4), [0, 1, 2, 3], [layer])
    ranks = torch.arange(1.0, 5.0, dtype=torch.float64).expand_as(found.norm)
    near(found.effective_rank, ranks)
    near(found.stable_rank, ranks)
    near(found.norm, ranks.sqrt())


@pytest.mark.parametrize("point", ["state", "write"])
def test_edited_states_are_refused(run, point):
    lens, ids, _ = run
    layer = lens.cfg.state_layers[0]
    with lens.hooks([(f"blocks.{layer}.ssm.hook_{point}", lambda x, hook: x + 1)]):
        with pytest.raises(InputError, match=f"a hook is on 'blocks.{layer}.ssm.hook_{point}'"):
            states.flow(lens, ids)
        states.flow(lens, ids, lens.cfg.state_layers[1:2])


def test_results_are_read_back_as_they_were(run, tmp_path):
    lens, ids, _ = run
    made: list[Stored] = [
        states.spectrum(lens, ids), states.sizes(lens, ids), states.flow(lens, ids), states.sinks(lens, ids),
    ]  # fmt: skip
    for result in made:
        path = result.save(tmp_path / f"{type(result).__name__}.safetensors")
        assert repr(type(result).load(path)) == repr(result)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lens: states.spectrum(lens, [[1]]), "prompts of one token were given, expected at least two"),
        (lambda lens: states.flow(lens, [[1, 2]], [1]), "layer 1 is no recurrent layer; those are 0, 2, 3"),
        (lambda lens: states.flow(lens, [[1, 2]], []), r"layers \[\] given, expected at least one, each once"),
        (lambda lens: states.flow(lens, [[1, 2]], [0, 0]), r"layers \[0, 0\] given, expected at least one, each once"),
        (lambda lens: states.sizes(lens, [[1, 2]], [2]), r"position 2 given, but the prompt has 0\.\.1"),
        (lambda lens: states.sizes(lens, [[1, 2]], []), "no positions were given"),
        (lambda lens: states.holding(lens, [[1, 2]], [(0, 3)]), r"span 0\.\.3 does not lie in a prompt of 2 tokens"),
        (lambda lens: states.holding(lens, [[1, 2]], [(0, 2), (1, 2)]), r"span 1\.\.2 overlaps one that ends at 2"),
        (lambda lens: states.erasures(lens, [[1, 2]], 0), "only delta rules erase at an address"),
        (lambda lens: states.hidden_figure(lens, [1, 2], 0, [9]), r"head 9 given, but layer 0 has recurrent heads"),
        (lambda lens: states.hidden_figure(lens, [1, 2], 0, kind="x"), r"kind 'x' given, expected one of"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call(hl.HybridLens(make("jamba")))


@pytest.mark.parametrize(
    ("family", "message"), [("llama", "no layer of this llama model holds one"), ("lfm2", "its convolutions alone")]
)
def test_models_without_states_are_refused(family, message):
    with pytest.raises(InputError, match=message):
        states.spectrum(hl.HybridLens(make(family)), [[1, 2]])
