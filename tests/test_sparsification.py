"""Top-k head sparsification against a slow, separate implementation, and what must not change."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from bounds import FORWARD, apart, close
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, make, tokens

import hybridlens as hl
from analyses.heads.entropy import head_entropy, published_entropy, rank_heads
from analyses.heads.ranking import HeadRanking
from analyses.heads.selection import lowest
from analyses.heads.sparsification import heads_kept, keep_heads, silence_heads, top_k
from hybridlens.continuing import Prefill
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError
from hybridlens.hooks import HookPoint

HEADS = 4


def lens_of(family: str, seed: int = 0) -> hl.HybridLens:
    return hl.HybridLens(make(family, seed))


def slow_top_k(lens: hl.HybridLens, ks: Sequence[int], published: bool = False) -> list[tuple[str, Callable]]:
    """Hooks that do what the paper says, one query at a time, by Python's own sort over the pattern."""
    hooks: list[tuple[str, Callable]] = []
    for layer in lens.cfg.attention_layers:
        seen: dict[str, torch.Tensor] = {}

        def read(pattern: torch.Tensor, hook: HookPoint, seen: dict = seen) -> None:
            seen["key"] = -published_entropy(pattern) if published else head_entropy(pattern)

        def cut(z: torch.Tensor, hook: HookPoint, seen: dict = seen) -> torch.Tensor:
            z = z.clone()
            for b in range(z.shape[0]):
                for p in range(z.shape[1]):
                    ranked = sorted(range(HEADS), key=lambda h: (float(seen["key"][b, h, p]), h))
                    for h in ranked[ks[b] :]:
                        z[b, p, h] = 0
            return z

        hooks += [(f"blocks.{layer}.attn.hook_pattern", read), (f"blocks.{layer}.attn.hook_z", cut)]
    return hooks


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("semantics", ["clean", "published"])
def test_prefill_equals_the_slow_way(family: str, semantics: str) -> None:
    """Logits of rows with every k at once; one wrong head at one query would move them by far more than rounding."""
    lens, ids = lens_of(family), tokens(HEADS + 1, 15, seed=1)
    ks = list(range(HEADS + 1))
    with torch.no_grad():
        found = lens.prefill(ids, top_k(lens, ks, "both", semantics=semantics)).logits
        expected = lens.run_with_hooks(ids, slow_top_k(lens, ks, semantics == "published"))
        untouched = lens(ids)
    close(found, expected, FORWARD)
    for row in range(HEADS):
        assert apart(found[row], untouched[row])


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_equals_the_slow_way(family: str) -> None:
    """Six decode steps past the window, state after state, with the slow hooks on the same steps."""
    lens, ids = lens_of(family), tokens(HEADS + 1, 9, seed=2)
    ks = list(range(HEADS + 1))
    edits = top_k(lens, ks)
    with torch.no_grad():
        state = other = lens.prefill(ids).state
        for step in range(6):
            token = tokens(HEADS + 1, 1, seed=100 + step)
            state, found = lens.extend(state, token, edits)
            with lens.hooks(slow_top_k(lens, ks)):
                other, expected = lens.extend(other, token)
            close(found, expected, FORWARD)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_heads_change_no_bit(family: str, dtype: torch.dtype) -> None:
    """k = n_heads as one number, for every row, and for some rows of a batch whose others are cut.

    Experts multiply the tokens of all rows that chose them, so those of a row beside cut ones may round otherwise.
    """
    lens = hl.HybridLens(make(family).to(dtype))
    ids = tokens(3, 12, seed=3)
    with torch.no_grad():
        untouched = lens.prefill(ids).logits
        for k in (HEADS, [HEADS] * 3, torch.tensor([HEADS, 0, 2])):
            logits = lens.prefill(ids, top_k(lens, k, "both")).logits
            if family == "jamba" and isinstance(k, torch.Tensor):
                close(logits[0], untouched[0], FORWARD)
            else:
                assert torch.equal(logits[0], untouched[0])
        assert not torch.equal(logits[1], untouched[1])
        assert not torch.equal(logits[2], untouched[2])
    assert top_k(lens, HEADS) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ks", [0, [0, 2]])
def test_no_heads_leave_exactly_the_bias(family: str, ks: int | list[int]) -> None:
    """With z = 0 the layer writes its output bias, which RecurrentGemma has and Jamba has not."""
    lens, ids = lens_of(family), tokens(2, 12, seed=4)
    layer = lens.cfg.attention_layers[0]
    written: dict[str, torch.Tensor] = {}
    edits = top_k(lens, ks, "both")
    keep = hl.Edit(f"blocks.{layer}.hook_attn_out", lambda x, hook: written.update(out=x.clone()))
    with torch.no_grad():
        lens.prefill(ids, [*edits, keep])
    bias = lens.blocks[layer].attn.out_bias()
    expected = torch.zeros(lens.cfg.d_model) if bias is None else bias
    assert (bias is not None and bool(bias.any())) == (family == "recurrentgemma")
    assert torch.equal(written["out"][0], expected.expand_as(written["out"][0]).contiguous())


@pytest.mark.parametrize("family", FAMILIES)
def test_ties_break_by_head_index(family: str) -> None:
    """At position 0 every head has entropy 0, so the kept ones must be the first k, whatever the weights."""
    lens = lens_of(family)
    for k in range(HEADS + 1):
        kept: dict[str, torch.Tensor] = {}
        layer = lens.cfg.attention_layers[0]
        keep = hl.Edit(f"blocks.{layer}.attn.hook_z", lambda z, hook, kept=kept: kept.update(z=z.clone()))
        with torch.no_grad():
            lens.prefill(torch.tensor([[7], [31]]), [*top_k(lens, k, "both"), keep])
        alive = kept["z"][:, 0].abs().amax(-1) > 0
        assert alive.tolist() == [[h < k for h in range(HEADS)]] * 2


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 20), st.integers(1, 3), st.data())
def test_lowest_is_a_stable_sort(seed: int, batch: int, heads: int, queries: int, data: st.DataObject) -> None:
    """Keys drawn from three values, so that most are tied, against Python's sort, which is stable."""
    drawn = random.Random(seed)
    shape = (batch, heads, queries)
    keys = torch.tensor([drawn.choice((0.0, 0.5, 1.0)) for _ in range(batch * heads * queries)]).reshape(shape)
    ks = data.draw(st.lists(st.integers(0, heads), min_size=batch, max_size=batch))
    mask = lowest(keys, torch.tensor(ks))
    for b in range(batch):
        for q in range(queries):
            ranked = sorted(range(heads), key=lambda h: float(keys[b, h, q]))
            assert {h for h in range(heads) if mask[b, h, q]} == set(ranked[: ks[b]])


def two_attention_layers(family: str, seed: int = 0) -> hl.HybridLens:
    lens = hl.HybridLens(make(family, seed, num_hidden_layers=6 if family == "recurrentgemma" else 8))
    assert len(lens.cfg.attention_layers) == 2
    return lens


def slow_across_layers(lens: hl.HybridLens, state: hl.HybridState, ids: torch.Tensor, ks: list[int]) -> Prefill:
    """One pass with the k × 2 heads of lowest entropy of both layers, found by Python's sort in a pass of its own."""
    entropies: dict[int, torch.Tensor] = {}

    def read(pattern: torch.Tensor, hook: HookPoint) -> None:
        entropies[int(hook.name.split(".")[1])] = head_entropy(pattern)

    def cut(z: torch.Tensor, hook: HookPoint) -> torch.Tensor:
        layer, z = int(hook.name.split(".")[1]), z.clone()
        for b in range(z.shape[0]):
            for p in range(z.shape[1]):
                heads = [(float(entropies[at][b, h, p]), at, h) for at in sorted(entropies) for h in range(HEADS)]
                kept = {(at, h) for _, at, h in sorted(heads)[: 2 * ks[b]]}
                for h in range(HEADS):
                    if (layer, h) not in kept:
                        z[b, p, h] = 0
        return z

    cuts = [hl.Edit(f"blocks.{layer}.attn.hook_z", cut) for layer in lens.cfg.attention_layers]
    reads = [hl.Edit(f"blocks.{layer}.attn.hook_pattern", read) for layer in lens.cfg.attention_layers]
    lens.extend(state, ids, reads)
    return lens.extend(state, ids, cuts)


@pytest.mark.parametrize("family", FAMILIES)
def test_scope_model_equals_the_slow_way(family: str) -> None:
    """Rows with every k, a prefill past the window and four decode steps, each from the cut state before it.

    Heads ranked inside their layer, by a cut pass or from an uncut state, differ by far more than rounding; that
    the two scopes differ is asserted.
    """
    lens, ids = two_attention_layers(family), tokens(HEADS + 1, 11, seed=21)
    ks = list(range(HEADS + 1))
    edits = top_k(lens, ks, "both", "model")
    with torch.no_grad():
        state, found = lens.prefill(ids, edits)
        other, expected = slow_across_layers(lens, lens.network.empty_state(HEADS + 1), ids, ks)
        close(found, expected, FORWARD)
        inside = lens.prefill(ids, top_k(lens, ks, "both")).logits
        assert all(apart(found[row], inside[row]) for row in range(1, HEADS))
        close(found[0], inside[0], FORWARD)  # k = 0
        close(found[HEADS], lens.prefill(ids).logits[HEADS], FORWARD)
        for step in range(4):
            token = tokens(HEADS + 1, 1, seed=200 + step)
            state, found = lens.extend(state, token, edits)
            other, expected = slow_across_layers(lens, other, token, ks)
            close(found, expected, FORWARD)


@pytest.mark.parametrize("family", FAMILIES)
def test_scope_model_at_the_ends(family: str) -> None:
    """k = n_heads needs no edit, k = 0 none that acts ahead; ties at the first token go to the earlier layers."""
    lens = two_attention_layers(family)
    assert top_k(lens, HEADS, scope="model") == []
    ids = tokens(2, 7, seed=22)
    for ks in (0, [0, HEADS]):
        none = top_k(lens, ks, "both", "model")
        assert not any(edit.ahead for edit in none)
        assert torch.equal(lens.prefill(ids, none).logits, lens.prefill(ids, top_k(lens, ks, "both")).logits)
    alive: dict[int, list[bool]] = {}

    def keep(z: torch.Tensor, hook: HookPoint) -> None:
        alive[int(hook.name.split(".")[1])] = (z[0, 0].abs().amax(-1) > 0).tolist()

    for k in range(1, HEADS):
        seen = [hl.Edit(f"blocks.{layer}.attn.hook_z", keep) for layer in lens.cfg.attention_layers]
        lens.prefill(ids[:1, :1], [*top_k(lens, k, "both", "model"), *seen])
        assert [kept for layer in sorted(alive) for kept in alive[layer]] == [at < 2 * k for at in range(2 * HEADS)]


@settings(max_examples=8)
@given(st.sampled_from(FAMILIES), st.integers(0, 50), st.data())
def test_rows_decode_as_they_do_alone(family: str, seed: int, data: st.DataObject) -> None:
    """Rows of other k and other lengths in the batch leave each row's greedy tokens as they are alone."""
    lens = two_attention_layers(family, seed % 3)
    ks = data.draw(st.lists(st.integers(0, HEADS), min_size=2, max_size=4))
    rows = [tokens(1, data.draw(st.integers(2, 14)), seed=seed + i)[0].tolist() for i in range(len(ks))]
    phase = data.draw(st.sampled_from(["decode", "both"]))
    scope = data.draw(st.sampled_from(["layer", "model"]))
    boundary = data.draw(st.sampled_from(["last_prompt_token", "first_new_token"]))
    together = lens.generate(rows, 6, top_k(lens, ks, phase, scope), boundary, stop_at_eos=False)
    for i, (row, k) in enumerate(zip(rows, ks, strict=True)):
        alone = lens.generate([row], 6, top_k(lens, k, phase, scope), boundary, stop_at_eos=False)
        assert together.tokens[i].tolist() == alone.tokens[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_phases(family: str) -> None:
    """Edits of one phase leave the other's passes untouched, bit for bit."""
    lens, ids = lens_of(family), tokens(2, 10, seed=6)
    with torch.no_grad():
        state, untouched = lens.prefill(ids)
        assert torch.equal(lens.prefill(ids, top_k(lens, 1, "decode")).logits, untouched)
        assert not torch.equal(lens.prefill(ids, top_k(lens, 1, "prefill")).logits, untouched)
        token = tokens(2, 1, seed=7)
        after = lens.extend(state, token).logits
        assert torch.equal(lens.extend(state, token, top_k(lens, 1, "prefill")).logits, after)
        assert not torch.equal(lens.extend(state, token, top_k(lens, 1, "decode")).logits, after)


@pytest.mark.parametrize("family", FAMILIES)
def test_top_k_ranks_the_unmanipulated_pattern(family: str) -> None:
    """A pattern edit that turns the ranking round, before or after top-k, must not change who is kept."""
    lens, ids = lens_of(family), tokens(2, 12, seed=8)
    layer = lens.cfg.attention_layers[0]
    _, cache = lens.run_with_cache(ids)
    plain = head_entropy(cache["pattern", layer])

    def peak_the_widest(pattern: torch.Tensor, hook: HookPoint) -> torch.Tensor:
        """Give every head but the one of lowest entropy all its weight on its first key."""
        new = pattern.clone()
        best = head_entropy(pattern).argmin(1, keepdim=True)
        others = torch.arange(HEADS)[None, :, None] != best
        new[others] = torch.eye(pattern.shape[-1])[0]
        return new

    manipulation = hl.Edit(f"blocks.{layer}.attn.hook_pattern", peak_the_widest)
    kept: dict[str, torch.Tensor] = {}
    keep = hl.Edit(f"blocks.{layer}.attn.hook_z", lambda z, hook: kept.update(z=z.clone()))
    with torch.no_grad():
        first = lens.prefill(ids, [manipulation, *top_k(lens, 1, "both"), keep]).logits
        alive = kept["z"].abs().amax(-1) > 0
        second = lens.prefill(ids, [*top_k(lens, 1, "both"), manipulation, keep]).logits
    assert torch.equal(first, second)
    assert torch.equal(alive.transpose(1, 2), lowest(plain, torch.tensor([1])))
    with torch.no_grad():
        alone = lens.prefill(ids, top_k(lens, 1, "both")).logits
    close(first, alone, FORWARD)  # the one kept head was left as it was
    assert not torch.equal(lens.prefill(ids, [manipulation]).logits, lens(ids))


def test_gradients_reach_the_kept_heads_only() -> None:
    """z's gradient is exactly 0 where a head was silenced, and not where it was kept."""
    lens, ids = lens_of("recurrentgemma"), tokens(1, 8, seed=9)
    layer = lens.cfg.attention_layers[0]
    leaf: dict[str, torch.Tensor] = {}

    def grab(z: torch.Tensor, hook: HookPoint) -> torch.Tensor:
        leaf["z"] = z.detach().requires_grad_()
        return leaf["z"]

    edits = [hl.Edit(f"blocks.{layer}.attn.hook_z", grab), *top_k(lens, 2, "both")]
    lens.prefill(ids, edits).logits[0, -1].sum().backward()
    alive = leaf["z"].grad[0, -1].abs().amax(-1) > 0
    _, cache = lens.run_with_cache(ids)
    assert alive.tolist() == lowest(head_entropy(cache["pattern", layer]), torch.tensor([2]))[0, :, -1].tolist()


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (5, r"k = 5 given, expected 0\.\.4: the model has 4 heads"),
        (-1, "k = -1 given, expected a whole number from 0 "),
        ([1, 9], "k = 9 given"),
        ([], "expected a whole number"),
        (torch.tensor([0.5]), "expected a whole number"),
        (torch.tensor([True]), "expected a whole number"),
        (torch.tensor([[1, 2]]), "expected a whole number"),
    ],
)
def test_k_out_of_range_is_refused(k: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        top_k(lens_of("jamba"), k)


def test_refusals() -> None:
    """One clear line each, and no hook left on the model."""
    lens, ids = lens_of("jamba"), tokens(3, 5)
    with pytest.raises(UnknownNameError, match="scope 'head' does not exist; expected one of layer, model"):
        top_k(lens, 2, scope="head")
    with pytest.raises(UnknownNameError, match="semantics 'tidy'"):
        top_k(lens, 2, semantics="tidy")
    with pytest.raises(InputError, match="float16"):
        top_k(hl.HybridLens(make("jamba").half()), 2, semantics="published")
    for ks in ([1, 2], [0, 0]):
        for scope in ("layer", "model"):
            with pytest.raises(HookFunctionError, match="given for 2 rows, but the batch has 3"):
                lens.prefill(ids, top_k(lens, ks, "both", scope))
    assert not any(point.asked() for point in lens.hook_dict.values())
    assert heads_kept(3, 4).tolist() == [3]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["model", "layer"])
def test_keep_heads_silences_the_others(family: str, scope: str) -> None:
    """z of every head outside the ranking's best is exactly 0 in both phases, and of every kept head is not."""
    changes = {"num_hidden_layers": 6} if family == "recurrentgemma" else {"num_hidden_layers": 8}
    lens = hl.HybridLens(make(family, 0, **changes))
    assert len(lens.cfg.attention_layers) == 2
    ids = tokens(2, 9, seed=11)
    ranking = rank_heads(lens, ids)
    most = 2 * HEADS if scope == "model" else HEADS
    cases = [(keep_heads, n, ranking.kept(n, scope)) for n in range(most + 1)]
    cases.append((silence_heads, 3, ~ranking.kept(3, scope)))
    for chosen, n, speaking in cases:
        alive: dict[int, torch.Tensor] = {}

        def keep(z: torch.Tensor, hook: HookPoint, alive: dict = alive) -> None:
            alive[int(hook.name.split(".")[1])] = (z.abs().amax((0, 1, 3)) > 0).clone()

        names = [f"blocks.{layer}.attn.hook_z" for layer in lens.cfg.attention_layers]
        edits = [*chosen(lens, ranking, n, scope=scope), *(hl.Edit(name, keep) for name in names)]
        state, _ = lens.prefill(ids, edits)
        found = torch.stack([alive[layer] for layer in lens.cfg.attention_layers])
        assert torch.equal(found, speaking)
        lens.extend(state, ids[:, :1], edits)
        assert torch.equal(torch.stack([alive[layer] for layer in lens.cfg.attention_layers]), found)
    assert keep_heads(lens, ranking, most, scope=scope) == silence_heads(lens, ranking, 0, scope=scope) == []


def test_keep_heads_refuses_another_models_ranking() -> None:
    lens = lens_of("jamba")
    other = HeadRanking(torch.zeros(1, 3), (1,), "made up", True)
    with pytest.raises(InputError, match=r"layers \[1\] with 3 heads, but the model has attention layers \[1\]"):
        keep_heads(lens, other, 1)
    with pytest.raises(InputError, match="the best 9 heads were asked for"):
        keep_heads(lens, HeadRanking(torch.zeros(1, 4), (1,), "made up", True), 9)
