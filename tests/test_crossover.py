"""Crossover and damage maps: planted memories are found, and every number is that of a plain run of its own."""

import json
import warnings
from pathlib import Path

import jaxtyping
import pytest
import torch
from bounds import FORWARD, close
from models import FAMILIES
from niah_tokenizers import byte_bpe
from planted_memory import pairs as planted_pairs
from planted_memory import planted
from random_lens import benchmark_lens

import hybridlens as hl
from analyses import kv_cache
from analyses.kv_cache import Crossover, DamageMap, Mix, PromptPair
from analyses.kv_cache.telling import contrast
from hybridlens import niah
from hybridlens.errors import InputError, ResultsError, UnknownNameError
from hybridlens.memory import KeyValues, Recurrent
from hybridlens.niah import Rule
from hybridlens.state import HybridState


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request: pytest.FixtureRequest) -> hl.HybridLens:
    return benchmark_lens(request.param)


def random_pairs(lens: hl.HybridLens, n: int, length: int = 80, span: tuple[int, int] = (20, 26)) -> list[PromptPair]:
    """Random text with two random needles, whose rubrics are words that a random model may say; lengths differ."""
    rng = torch.Generator().manual_seed(3)
    found = []
    for number in range(n):
        size = length - 3 * number
        text = torch.randint(5, lens.cfg.d_vocab, (size,), generator=rng).tolist()
        sides = []
        for _ in range(2):
            needle = torch.randint(5, lens.cfg.d_vocab, (span[1] - span[0],), generator=rng).tolist()
            sides.append((*text[: span[0]], *needle, *text[span[1] :]))
        rubrics = [(Rule(lens.tokenizer.decode([side[span[0]]]), 5.0, "set"),) for side in sides]
        found.append(PromptPair(f"pair {number}", sides[0], sides[1], (span,), *rubrics))
    return found


# Planted memories.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["head", "state"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_answer_follows_the_planted_memory_and_no_other(family: str, where: str, seed: int) -> None:
    """Every mix: B is told where the planted layer's values (or state) come from B, and A everywhere else.

    All other memories differ between the prompts too; the two answers differ, so none is told by chance.
    """
    lens, layer, head = planted(family, where, seed)
    pairs = planted_pairs(6, seed=seed)
    told = kv_cache.crossover(lens, pairs, max_new_tokens=1)
    key = (layer, "recurrent" if head is None else "values")
    for mix in told.mixes:
        shares = told.shares(mix.name)
        moved = key in mix.from_b or (layer, head) in mix.heads_from_b
        assert (shares.a.mean, shares.b.mean) == ((0, 1) if moved else (1, 0)), mix.name
        assert shares.likelier_b.mean == shares.b.mean
        assert abs(shares.leaning) > 2
        assert (shares.leaning > 0) == (shares.b.mean == 1)
    # which head: without the planted one nothing is told, without all others it is
    if head is not None:
        state, _ = kv_cache.read_pairs(lens, pairs)
        last = [[pair.a[-1]] for pair in pairs]
        spans = [list(range(*pair.spans[0])) for pair in pairs]
        rest = [i for i in lens.cfg.attention_layers if i != layer]
        for heads, expected in ((head, "neither"), (1 - head, "A")):
            changed = kv_cache.drop(state, spans, layers=layer, heads=heads)
            if expected == "A":
                changed = kv_cache.zero(changed, layers=rest)
            said = kv_cache.generate_with(lens, last, (), 1, state=changed).text
            assert {pair.tells(text)[0] for pair, text in zip(pairs, said, strict=True)} == {expected}


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_find_the_planted_memory(family: str) -> None:
    """Keys: damage at the needle's place in the planted head alone. State: where it is lost after the needle alone."""
    lens, layer, head = planted(family, "head")
    (pair,) = planted_pairs(1)
    found = kv_cache.drop_map(lens, pair, block=1, max_new_tokens=1)
    place = pair.spans[0][0]
    for name, row, score in zip(found.groups, found.damage, found.score, strict=True):
        hit = name in ("all layers", f"layer {layer}", f"layer {layer}, head {head}")
        assert int(row.argmax()) == place or not hit
        assert (float(row[place]) > 3) == hit
        assert float(row.abs().sum() - row[place].abs()) < 1e-2  # what its softmax leaves, of 3
        assert [i for i, points in enumerate(score.tolist()) if points < 5] == ([place] if hit else [])
    lens, layer, _ = planted(family, "state")
    found = kv_cache.recurrent_map(lens, pair, every=1, max_new_tokens=1)
    other = kv_cache.recurrent_map(lens, pair, every=1, how="replace", parts="recurrent", max_new_tokens=1)
    for which, name in enumerate(found.groups):
        lost = found.grid(found.changed.score_a)[which] == 0
        instead = other.grid(other.changed.score_b)[which] == 5
        after = torch.tensor([name in ("all layers", f"layer {layer}") and i >= place for i in range(pair.length - 1)])
        assert torch.equal(lost, after), name
        assert torch.equal(instead, after), name
    assert found.regions()["all layers"]["after"] > 3 > 0.01 > abs(found.regions()["all layers"]["before"])


# Against plain runs.


def by_hand(a: HybridState, b: HybridState, mix: Mix) -> HybridState:
    """The mixed state of one row, tensor for tensor."""
    layers = []
    for i, (ours, theirs) in enumerate(zip(a.layers, b.layers, strict=True)):

        def pick(name: str, i: int = i, ours: object = ours, theirs: object = theirs, memory: str = "") -> torch.Tensor:
            return getattr(theirs if (i, memory or name) in mix.from_b else ours, name)

        if "attn" in ours:
            ours, theirs = ours["attn"], theirs["attn"]
            k, v = (
                pick(name, ours=ours, theirs=theirs, memory=memory).clone()
                for name, memory in (("k", "keys"), ("v", "values"))
            )
            for head in (head for layer, head in mix.heads_from_b if layer == i):
                k[:, head], v[:, head] = theirs.k[:, head], theirs.v[:, head]
            layers.append({"attn": KeyValues(k, v)})
        else:
            ours, theirs = ours["ssm"], theirs["ssm"]
            conv, recurrent = (pick(name, ours=ours, theirs=theirs) for name in ("conv", "recurrent"))
            layers.append({"ssm": Recurrent(conv, recurrent)})
    return HybridState(a.model, a.lengths, a.key_positions, tuple(layers), a.window)


def test_every_cell_is_that_of_a_run_of_its_own(lens: hl.HybridLens) -> None:
    """Batched over mixes and pairs of other lengths, beyond the window: the texts of single rows put together by hand.

    Prompts are read under one edit and answered under another. Mixes change the text, so equality says something.
    """
    pairs = random_pairs(lens, 3)
    layer = lens.cfg.attention_layers[0]
    edits = [hl.Edit(f"blocks.{layer}.hook_mlp_out", lambda x, hook: x * 0.5, "prefill"),
             hl.Edit("blocks.0.hook_mixer_out", lambda x, hook: x * 2, "decode")]  # fmt: skip
    chosen = kv_cache.mixes(lens.cfg)
    chosen = chosen[:10] + chosen[10::7] + [mix for mix in chosen if mix.group == f"layer {layer}, head 1"]
    chosen = list(dict.fromkeys(chosen))
    if lens.cfg.n_kv_heads > 1:
        places = frozenset(zip(lens.cfg.attention_layers, (0, 1), strict=True))
        chosen.append(Mix("a head of each layer", "", frozenset(), places))
    result = kv_cache.crossover(lens, pairs, chosen, max_new_tokens=4, edits=edits, rows=12)
    assert [cell.mix for cell in result.cells] == [mix.name for mix in chosen for _ in pairs]
    texts = {}
    for number, pair in enumerate(pairs):
        with torch.no_grad():
            a, b = (lens.prefill([side[:-1]], edits).state for side in (pair.a, pair.b))
            for mix in chosen:
                state, token, said = by_hand(a, b, mix), pair.a[-1], []
                for _ in range(4):
                    state, logits = lens.extend(state, [[token]], edits)
                    token = int(logits[0, -1].argmax())
                    said.append(token)
                    if token in lens.cfg.eos_token_ids:
                        break
                texts[mix.name, number] = lens.tokenizer.decode(said, skip_special_tokens=True)
    ours = {(cell.mix, i % len(pairs)): cell.text for i, cell in enumerate(result.cells)}
    assert ours == texts
    assert len(set(texts.values())) > len(pairs)
    whole = [cell for cell in result.cells if cell.mix == "kv A, conv A, recurrent A"]
    for pair, cell in zip(pairs, whole, strict=True):  # read in one go, whatever their lengths
        close(cell.logprob_a, logprob_by_hooks(lens, pair, [], edits), FORWARD, dtype=torch.float32)
    whole = {cell.text for cell in result.cells if cell.mix == "kv B, conv B, recurrent B"}
    assert whole == set(lens.generate([list(pair.b) for pair in pairs], 4, edits).text)


def logprob_by_hooks(lens: hl.HybridLens, pair: PromptPair, hooks: list, edits: list[hl.Edit] | None = None) -> float:
    """Of needle A's first words, in one plain pass over prompt and answer under hooks, or two under edits."""
    begin, run, _ = contrast(pair)
    tokens = [*pair.a, *begin, *run]
    with torch.no_grad():
        if edits is None:
            logits = lens.run_with_hooks([tokens], hooks)[0].log_softmax(-1)
        else:
            state = lens.prefill([pair.a[:-1]], edits).state
            logits = lens.extend(state, [tokens[len(pair.a) - 1 :]], edits).logits[0].log_softmax(-1)
    return sum(float(logits[len(logits) - len(run) - 1 + i, token]) for i, token in enumerate(run))


def test_dropping_is_masking_from_the_last_token_on(lens: hl.HybridLens) -> None:
    """Each place and group against one pass over the whole text with scores of later queries masked; batches of 7."""
    (pair,) = random_pairs(lens, 1)
    groups = kv_cache.attention_groups(lens.cfg)
    found = kv_cache.drop_map(lens, pair, block=9, max_new_tokens=0, rows=7)
    assert found.groups == tuple(group.name for group in groups)
    per_group = lens.cfg.n_heads // lens.cfg.n_kv_heads
    ours = found.grid(found.changed.logprob_a)
    for row, group in enumerate(groups):
        for column, (start, stop) in enumerate(found.places):

            def mask(scores, hook, start=start, stop=stop, group=group):
                out = scores.clone()
                heads = range(lens.cfg.n_kv_heads) if group.heads is None else group.heads
                for head in heads:
                    out[:, head * per_group : (head + 1) * per_group, pair.length - 1 :, start:stop] = float("-inf")
                return out

            names = [f"blocks.{layer}.attn.hook_attn_scores" for layer in group.layers]
            expected = logprob_by_hooks(lens, pair, [(names, mask)])
            close(float(ours[row, column]), expected, FORWARD, dtype=torch.float32)
    close(float(found.intact.logprob_a), logprob_by_hooks(lens, pair, []), FORWARD, dtype=torch.float32)
    assert found.damage.abs().max() > 0.05
    if lens.cfg.window is not None:
        assert found.held == tuple(stop > 80 - lens.cfg.window for _, stop in found.places)
        first, whole = found.damage[:, 0], abs(float(found.intact.logprob_a))
        close(first, torch.zeros_like(first), FORWARD, scale=whole)


def test_resetting_a_state_is_a_decay_of_zero(lens: hl.HybridLens) -> None:
    """Each place and group against one pass whose decay is 0 at the next token; the last place is before "the last"."""
    (pair,) = random_pairs(lens, 1)
    groups = kv_cache.recurrent_groups(lens.cfg)[:3]
    found = kv_cache.recurrent_map(lens, pair, parts="recurrent", every=11, groups=groups, max_new_tokens=0, rows=5)
    ours = found.grid(found.changed.logprob_a)
    for row, group in enumerate(groups):
        for column, (_, stop) in enumerate(found.places):

            def forget(decay, hook, stop=stop):
                decay[:, stop] = 0
                return decay

            names = [f"blocks.{layer}.ssm.hook_decay" for layer in group.layers]
            expected = logprob_by_hooks(lens, pair, [(names, forget)])
            close(float(ours[row, column]), expected, FORWARD, dtype=torch.float32)
    assert found.damage.abs().max() > 0.05
    same = kv_cache.recurrent_map(lens, pair, how="replace", every=11, groups=groups[:1], max_new_tokens=0)
    # Before the needle both prompts have left the same.
    close(float(same.damage[0, 0]), 0.0, FORWARD, scale=abs(float(same.intact.logprob_a)), dtype=torch.float32)


# Embedded models.


@pytest.mark.parametrize("name", ["tiny-recurrentgemma", "tiny-jamba"])
def test_tiny_models_tell_the_needle_of_the_keys_and_values(name: str) -> None:
    """Two pairs: the answer follows keys and values, whatever states it gets."""
    lens = hl.load(name)
    pairs = kv_cache.prompt_pairs(lens.tokenizer, [130], [50], kv_cache.needle_pairs(["paper", "secret-word"]))
    result = kv_cache.crossover(lens, pairs, kv_cache.mixes(lens.cfg, by_layer=False)[:8], max_new_tokens=26)
    for mix, shares in result.by_mix().items():
        assert (shares.b.mean if "kv B" in mix else shares.a.mean) == 1, mix


# Prompts.


def test_twins_answer_the_same_question_with_other_words() -> None:
    """One for each needle of the set, of as many tokens; each sentence tells its own needle and never the other's."""
    tokenizer = hl.load("tiny-jamba").tokenizer
    needles = kv_cache.needle_pairs()
    assert tuple(pair.needle_a.name for pair in needles) == niah.needle_set()
    for a, b in needles:
        assert a.question == b.question
        assert niah.unknown_words(tokenizer, [b.sentence]) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = kv_cache.prompt_pairs(tokenizer, [150, 160], [0, 100])
    assert len(made) == 4 * len(needles)
    for i, pair in enumerate(made):
        a, b = needles[i // 4]
        assert pair.tells(f"It says: {a.sentence}")[0] == "A"
        assert pair.tells(b.sentence)[0] == "B"
        assert pair.tells(f"{a.sentence} {b.sentence}")[0] == "neither"
        assert pair.tells("on a sunny day, I think")[0] == "neither"
        start, stop = pair.spans[0]
        assert pair.a[:start] == pair.b[:start]
        assert pair.a[stop:] == pair.b[stop:]
    assert made[0].seen(None) == 1
    assert made[0].seen(150 - made[0].spans[0][0]) == 1
    assert made[0].seen(150 - made[0].spans[0][0] - 1) == pytest.approx(1 - 1 / (stop - start), abs=0.05)
    assert made[0].seen(20) == 0


def test_bad_pairs_are_one_clear_line() -> None:
    """Unequal lengths with the place where they part; other differences; a tokenizer that cuts twins unequally."""
    rule = (Rule("x", 5.0, "set"),)
    for a, b, message in (
        ((1, 2, 3, 9), (1, 2, 4, 5, 9), "prompts of 4 and 5 tokens, which part at position 2; expected equal lengths"),
        ((1, 2, 3, 9), (1, 2, 3, 9), "two prompts that are the same"),
        ((1, 2, 3, 9, 9), (1, 2, 4, 8, 9), "differ at position 3, outside its needles"),
        ((1, 2, 3), (1, 2, 4), "differ at position 2, outside its needles or at its last token"),
    ):
        with pytest.raises(InputError, match=message):
            PromptPair("x", a, b, ((2, 3),), rule, rule)
    with pytest.raises(InputError, match="needle 'nowhere' has no twin; expected one of paper"):
        kv_cache.needle_pairs(["nowhere"])
    mixed = kv_cache.NeedlePair(niah.NEEDLES["oslo"], niah.NEEDLES["tokyo"])
    with pytest.raises(InputError, match="expected one question"):
        kv_cache.prompt_pairs(byte_bpe(), [400], [50], [mixed])


def test_bad_mixes_and_maps_are_one_clear_line(lens: hl.HybridLens) -> None:
    pairs = random_pairs(lens, 1)
    ssm = lens.cfg.ssm_layers[0]
    wrong = Mix("wrong", "", frozenset({(ssm, "keys")}))
    with pytest.raises(InputError, match=f"layer {ssm} is recurrent and holds no keys"):
        kv_cache.crossover(lens, pairs, [wrong])
    with pytest.raises(InputError, match="two mixes are called 'wrong'"):
        kv_cache.crossover(lens, pairs, [wrong, wrong])
    with pytest.raises(InputError, match="pairs = \\[\\] given, expected a list of"):
        kv_cache.crossover(lens, [])
    with pytest.raises(InputError, match=r"mix 'far' has layer 99, but the model has layers 0\.\.5"):
        kv_cache.crossover(lens, pairs, [Mix("far", "", frozenset({(99, "conv")}))])
    with pytest.raises(InputError, match=r"mix 'far' has layer 99, but the model has layers 0\.\.5"):
        kv_cache.crossover(lens, pairs, [Mix("far", "", frozenset(), frozenset({(99, 0)}))])
    with pytest.raises(UnknownNameError, match=r"mix 'x': memory 'key' does not exist; expected one of keys, values, "):
        Mix("x", "y", frozenset({(2, "key")}))
    with pytest.raises(InputError, match="seed = -1 given"):
        kv_cache.prompt_pairs(lens.tokenizer, [100], [0], kv_cache.needle_pairs(["paper"]), seed=-1)
    with pytest.raises(InputError, match="no pair of needles given; leave them out for the built-in ones"):
        kv_cache.prompt_pairs(lens.tokenizer, [100], [0], [])
    for rows in (0, -1):
        for call in (
            lambda rows=rows: kv_cache.drop_map(lens, pairs[0], rows=rows),
            lambda rows=rows: kv_cache.recurrent_map(lens, pairs[0], rows=rows),
            lambda rows=rows: kv_cache.crossover(lens, pairs, rows=rows),
        ):
            with pytest.raises(InputError, match=f"rows = {rows} given, expected a whole number"):
                call()
    for make_map in (kv_cache.drop_map, kv_cache.recurrent_map):
        with pytest.raises(InputError, match="groups = \\[\\] given, expected a list of"):
            make_map(lens, pairs[0], groups=[])
    with pytest.raises(InputError, match="block = 0 given, expected a whole number"):
        kv_cache.drop_map(lens, pairs[0], block=0)
    with pytest.raises(InputError, match="every = 0 given, expected a whole number"):
        kv_cache.recurrent_map(lens, pairs[0], every=0)
    with pytest.raises(InputError, match="recurrent layers have no heads"):
        kv_cache.recurrent_map(lens, pairs[0], groups=[kv_cache.Group("x", (ssm,), (0,))])


def test_other_ways_of_taking_away_are_refused(lens: hl.HybridLens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tests' type checker, as users run it: the checker would refuse them first."""
    (pair,) = random_pairs(lens, 1)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UnknownNameError, match=r"how .resett. does not exist; close names: reset; expected"):
        kv_cache.recurrent_map(lens, pair, how="resett")
    with pytest.raises(UnknownNameError, match="parts 'state' does not exist; expected one of conv, recurrent, both"):
        kv_cache.recurrent_map(lens, pair, parts="state")


# Results.


def test_results_come_back_from_disk(tmp_path: Path) -> None:
    """Every field of both results; shares by hand; what is no result is refused with a line."""
    lens = planted("jamba", "state").lens
    pairs = planted_pairs(4)
    result = kv_cache.crossover(lens, pairs, kv_cache.mixes(lens.cfg, by_layer=False), max_new_tokens=1)
    loaded = Crossover.load(result.save(tmp_path / "crossover.json"))
    assert (loaded.model, loaded.mixes, loaded.cells, loaded.max_new_tokens) == (
        result.model, result.mixes, result.cells, result.max_new_tokens)  # fmt: skip
    shares = loaded.shares("kv A, conv A, recurrent B", inside=True)
    assert (shares.b.mean, shares.a.mean, shares.n) == (1, 0, 4)
    assert 0 < shares.b.interval.low < 1 == shares.b.interval.high
    with pytest.raises(ResultsError, match=r"no answer under mix .* with the needle outside the window"):
        loaded.shares("kv A, conv A, recurrent B", inside=False)
    with pytest.raises(InputError, match="seed = -1 given, expected a whole number"):
        loaded.shares("kv A, conv A, recurrent B", seed=-1)
    with pytest.raises(ResultsError, match="no answer under mix 'nothing'; there are 'kv A, conv A, recurrent A'"):
        loaded.shares("nothing")
    found = kv_cache.recurrent_map(lens, pairs[0], every=6, max_new_tokens=1)
    again = DamageMap.load(found.save(tmp_path / "map.json"))
    for name in ("what", "model", "pair", "spans", "tokens", "groups", "places", "held"):
        assert getattr(again, name) == getattr(found, name), name
    for ours, theirs in zip((*found.intact, *found.changed), (*again.intact, *again.changed), strict=True):
        close(theirs, ours)
    for group, regions in found.regions().items():
        held = again.regions()[group]
        assert held.keys() == regions.keys()
        close(list(held.values()), list(regions.values()), dtype=torch.float32)
    assert found.tokens[-1] == "ask"
    value = json.loads((tmp_path / "map.json").read_text())
    for name, column in (("held", value["held"][1:]), ("changed", value["intact"])):
        (tmp_path / "short.json").write_text(json.dumps({**value, name: column}))
        with pytest.raises(InputError, match="is a damaged DamageMap"):
            DamageMap.load(tmp_path / "short.json")
    with pytest.raises(InputError, match="is not a saved Crossover"):
        Crossover.load(tmp_path / "map.json")
    with pytest.raises(InputError, match="cannot be read"):
        DamageMap.load(tmp_path / "none.json")
