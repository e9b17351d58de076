"""Rankings made by running the model, against plain loops over single prompts and the untouched Hugging Face model."""

import random
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from bounds import FORWARD, LOUD, bound, close
from models import FAMILIES, make
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.heads.entropy import head_entropy
from analyses.heads.needle_heads import look
from analyses.heads.ranking import HeadRanking
from analyses.heads.sparsification import keep_heads, keep_rows
from analyses.study.rankings import candidates
from analyses.study.rankings.ablation import ablation_effects, one_silent
from analyses.study.rankings.candidates import RUNTIME, entropy_ranking, random_rankings, runtime_rankings
from analyses.study.rankings.prompts import needles_of
from analyses.study.rankings.retrieval import looks
from hybridlens import niah
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError


@cache
def prompts_of(family: str) -> tuple[niah.Prompt, ...]:
    """Three prompts of two lengths, the needle at two depths, the longest first."""
    made = niah.grid(benchmark_lens(family).tokenizer, lengths=[71, 84], depths=[20, 100], seed=3)
    return tuple(reversed(made[1:]))


@cache
def looks_of(family: str, batch_size: int = 2):
    return looks(benchmark_lens(family), prompts_of(family), batch_size)


@cache
def rankings_of(family: str):
    return runtime_rankings(benchmark_lens(family), prompts_of(family), batch_size=16)


@contextmanager
def spelled(lens, *answers):
    """Whatever a lens is asked to continue, row i says ``answers[i]``, the last token of it again and again.

    One answer is for all rows.

    A batch's first pass reads the prompts but for their last token, which is more than one; the passes after it read
    one token each, and the i-th of these chooses token i of the answer.
    """
    said = [-1]

    def count(embed, hook):
        said[0] = -1 if embed.shape[1] > 1 else said[0] + 1

    def say(logits, hook):
        forced = torch.full_like(logits, -1.0)
        for row in range(len(forced)):
            answer = answers[row % len(answers)]
            forced[row, :, answer[min(max(said[0], 0), len(answer) - 1)]] = 1.0
        return forced

    with lens.hooks([("hook_embed", count), ("hook_logits", say)]):
        yield


def reference(lens, prompt, answer):
    """Retrieval score and needle mass of one prompt, head by head, step by step, from one pass over the whole text."""
    text = [*prompt.tokens, *answer]
    _, cache_ = lens.run_with_cache([text])
    inside = [at for start, end in prompt.needle_spans for at in range(start, end)]
    wanted = {prompt.tokens[at] for at in inside}
    scores, masses = [], []
    for layer in lens.cfg.attention_layers:
        pattern = cache_["pattern", layer][0]
        scores.append([])
        masses.append([])
        for head in range(lens.cfg.n_heads):
            copied, mass = set(), []
            for step, token in enumerate(answer):
                row = pattern[head, len(prompt.tokens) - 1 + step].tolist()
                best = max(range(len(row)), key=lambda at: row[at])
                if best in inside and text[best] == token:
                    copied.add(token)
                mass.append(sum(row[at] for at in inside))
            scores[-1].append(len(copied & wanted) / len(wanted))
            masses[-1].append(sum(mass) / len(mass))
    return torch.tensor(scores), torch.tensor(masses)


def scattered(lens, prompts, rows, n_answer):
    """Hooks under which, while answering, each head looks at one key: the right one two times in five, else any.

    The choice follows from layer, head, prompt and step alone, so that it is the same in every batch and in one pass
    over the whole text. `rows` says which prompt stands in each row of the batch now.
    """

    def scatter(pattern, hook):
        first = hook.slots.query_positions.expand(pattern.shape[0], -1)
        for row, index in enumerate(rows):
            length, (start, _) = len(prompts[index].tokens), prompts[index].needle_spans[0]
            for query, position in enumerate(first[row].tolist()):
                step = position - length + 1
                for head in range(pattern.shape[1] if 0 <= step < n_answer else 0):
                    rng = random.Random(f"{hook.name} {head} {index} {step}")
                    key = start + step if rng.random() < 0.4 else rng.randrange(length)
                    if lens.cfg.window is None or position - key < lens.cfg.window:
                        pattern[row, head, query] = (hook.slots.key_positions[row] == key).float()
        return pattern

    return [(f"blocks.{layer}.attn.hook_pattern", scatter) for layer in lens.cfg.attention_layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_plain_loops(family):
    """The answer is the needle with two tokens wrong and one said twice, so that sets and steps differ.

    Heads look at the right token now and then: the expected scores take many values, and the largest is below 1.
    """
    lens, prompts = benchmark_lens(family), prompts_of(family)
    needle = list(needles_of(lens, prompts)[0].tokens)
    answer = [*needle[:4], needle[2], *needle[5:9], prompts[0].tokens[1], *needle[10:]]
    rows = [2, 0, 1]  # the shortest prompt is answered first
    with lens.hooks(scattered(lens, prompts, rows, len(answer))), spelled(lens, answer):
        seen = looks(lens, prompts)
        assert seen.answers == [tuple(answer)] * len(prompts)
        for index, prompt in enumerate(prompts):
            rows[:] = [index]
            score, mass = reference(lens, prompt, answer)
            close(seen.copied[index], score)
            close(seen.mass[index], mass, LOUD)
    assert len(set(seen.copied.flatten().tolist())) > 5
    assert 0.2 < seen.copied.max() < 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("offset", "score"), [(0, 1.0), (-1, 0.0)])
def test_a_planted_head(family, offset, score):
    """One head is made to look at the needle's token that is being chosen; its score has to be 1.

    Made to look at the token before it, which is being read, it copies nothing: no two neighbours in the needle are
    equal. So a query taken one step off exchanges the two results.
    """
    room = {"attention_window_size": 400} if family == "recurrentgemma" else {}
    lens = benchmark_lens(family, **room)
    prompts = prompts_of(family)[:1]
    (needle,) = needles_of(lens, prompts)
    start, end = prompts[0].needle_spans[0]
    layer, head = lens.cfg.attention_layers[-1], 2

    def plant(pattern, hook):
        for row in range(pattern.shape[2]):
            step = int(hook.slots.query_positions[0, row]) - len(prompts[0].tokens) + 1
            at = hook.slots.key_positions[0] == start + step + offset
            if 0 <= step < end - start:
                pattern[0, head, row] = at.float()
        return pattern

    with lens.hooks([(f"blocks.{layer}.attn.hook_pattern", plant)]), spelled(lens, needle.tokens):
        seen = looks(lens, prompts)
    assert seen.copied[0, -1, head] == score
    others = seen.copied[0].flatten().tolist()
    others.pop((len(lens.cfg.attention_layers) - 1) * lens.cfg.n_heads + head)
    assert max(others) < 0.5
    if offset == 0:
        close(seen.mass[0, -1, head], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_the_models_own_and_the_mass_that_of_look(family):
    """Prompts of two lengths in one batch, against the pass over one prompt that the report of the needle makes."""
    lens, prompts = benchmark_lens(family), prompts_of(family)
    seen = looks(lens, prompts, max_new_tokens=6)
    for index, prompt in enumerate(prompts):
        (said,) = lens.generate([list(prompt.tokens)], 6).tokens.tolist()
        answer = tuple(token for token in said if token not in lens.cfg.eos_token_ids)
        assert seen.answers[index] == answer
        expected = look(lens, prompt.tokens, answer, prompt.needle_spans).ranking.scores
        close(seen.mass[index], expected, LOUD)
    assert len(set(seen.answers)) > 1
    whole = looks_of(family)
    assert [answer[:6] for answer in whole.answers] == seen.answers
    assert [len(answer) for answer in whole.answers] == [len(needle.tokens) for needle in needles_of(lens, prompts)]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_end_early(family):
    """End-of-text at once in one row, after four tokens in the other: queries after it do not count.

    Where there is no answer nothing is copied, and the mass is that of the query that chose end-of-text.
    """
    lens, prompts = benchmark_lens(family), prompts_of(family)[:2]
    end, needle = lens.cfg.eos_token_ids[0], needles_of(lens, prompts)[1].tokens
    with spelled(lens, [end], [*needle[:4], end]):
        seen = looks(lens, prompts)
    assert seen.answers == [(), needle[:4]]
    assert not bool(seen.copied[0].any())
    for index, prompt in enumerate(prompts):
        expected = look(lens, prompt.tokens, seen.answers[index], prompt.needle_spans).ranking.scores
        close(seen.mass[index], expected, LOUD)


def silenced_in(model, layer, head, width):
    """A PyTorch hook on the untouched model: zeros where one head's output enters the layer's output projection."""
    names = [name for name, _ in model.named_modules() if name.endswith(".o_proj")]

    def zero(module, args):
        z = args[0].clone()
        z[..., head * width : (head + 1) * width] = 0
        return (z,)

    return model.get_submodule(names[layer]).register_forward_pre_hook(zero)


@torch.no_grad()
def likelihood(model, prompt, needle):
    text = torch.tensor([[*prompt.tokens, *needle]])
    found = model(text, use_cache=False).logits[0].log_softmax(-1)
    first = len(prompt.tokens) - 1
    return sum(float(found[first + step, token]) for step, token in enumerate(needle)) / len(needle)


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_is_one_forward_pass_of_the_untouched_model_per_head(family):
    """Rows with a head each, of prompts of two lengths, against PyTorch's own hooks on the Hugging Face model.

    The expected effects differ by far more than the tolerance, and in sign.
    """
    lens, prompts = benchmark_lens(family), prompts_of(family)[1:]
    needles = [needle.tokens for needle in needles_of(lens, prompts)]
    effects = ablation_effects(lens, prompts, batch_size=7)
    expected = torch.zeros_like(effects)
    for index, (prompt, needle) in enumerate(zip(prompts, needles, strict=True)):
        untouched = likelihood(lens.hf_model, prompt, needle)
        for layer in range(expected.shape[1]):
            for head in range(expected.shape[2]):
                handle = silenced_in(lens.hf_model, layer, head, lens.cfg.d_head)
                expected[index, layer, head] = untouched - likelihood(lens.hf_model, prompt, needle)
                handle.remove()
    close(effects, expected, FORWARD, scale=abs(untouched))  # differences of such likelihoods
    seen = 10 * bound(abs(untouched), FORWARD)
    assert expected.max() > seen
    assert expected.min() < -seen


def test_one_silent():
    masks = one_silent(2, 3)
    assert masks.shape == (7, 2, 3)
    assert masks.sum(dim=(1, 2)).tolist() == [6] + [5] * 6
    assert [tuple(map(int, place)) for place in (~masks).nonzero()[:, 1:]] == [(a, h) for a in (0, 1) for h in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_has_its_own_heads(family):
    """Three rows with other masks, reading and going on, against each alone under the fixed choice of heads."""
    lens = benchmark_lens(family)
    ids = torch.randint(0, lens.cfg.d_vocab, (3, 20))
    masks = torch.rand(3, len(lens.cfg.attention_layers), lens.cfg.n_heads) > 0.5
    masks[0] = True
    together = lens.extend(lens.prefill(ids, keep_rows(lens, masks)).state, ids[:, :3], keep_rows(lens, masks)).logits
    for row in range(3):
        ranking = HeadRanking(masks[row].float(), lens.cfg.attention_layers, "drawn", lower_is_better=False)
        edits = keep_heads(lens, ranking, int(masks[row].sum()))
        alone = lens.extend(lens.prefill(ids[row : row + 1], edits).state, ids[row : row + 1, :3], edits).logits
        close(together[row], alone[0], LOUD)
    assert not keep_rows(lens, torch.ones_like(masks))
    with pytest.raises(HookFunctionError, match="were given for 3 rows, but the batch has 2"):
        lens.prefill(ids[:2], keep_rows(lens, masks))


@pytest.mark.parametrize("family", FAMILIES)
def test_entropies(family):
    """Of the last query and of all, from the cached patterns of each prompt alone."""
    lens, prompts = benchmark_lens(family), prompts_of(family)
    last, total, tokens = 0.0, 0.0, 0
    for prompt in prompts:
        _, cache_ = lens.run_with_cache([list(prompt.tokens)])
        bits = torch.stack([head_entropy(cache_["pattern", layer])[0] for layer in lens.cfg.attention_layers])
        last, total, tokens = last + bits[:, :, -1], total + bits.sum(-1), tokens + len(prompt.tokens)
    found = entropy_ranking(lens, prompts, batch_size=2)
    close(found.scores, last / len(prompts), LOUD)
    close(entropy_ranking(lens, prompts, "all").scores, total / tokens, LOUD)
    assert found.source == "mean attention entropy in bits over the last token of 3 needle prompts of 71 to 84 tokens"
    assert found.lower_is_better
    with pytest.raises(UnknownNameError, match="queries 'some'"):
        entropy_ranking(lens, prompts, "some")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rankings_by_name(family):
    """Each holds its measure's mean over the prompts; entropy is of one of them, drawn by the seed."""
    lens, prompts = benchmark_lens(family), prompts_of(family)
    found = rankings_of(family)
    assert tuple(found) == RUNTIME
    assert [ranking.lower_is_better for ranking in found.values()] == [True, True, False, False, False]
    assert all(ranking.layers == lens.cfg.attention_layers for ranking in found.values())
    assert all("needle prompt" in ranking.source for ranking in found.values())
    assert "frozen" in found["entropy"].source
    seen = looks_of(family)
    close(found["retrieval score"].scores, seen.copied.mean(0))
    close(found["needle mass"].scores, seen.mass.mean(0), LOUD)
    effects = torch.stack([ablation_effects(lens, [prompt], 16)[0] for prompt in prompts]).mean(0)
    close(found["ablation"].scores, effects, LOUD)
    alone = torch.stack([entropy_ranking(lens, [prompt]).scores for prompt in prompts])
    close(found["entropy calibrated"].scores, alone.mean(0), LOUD)
    gaps = (alone - found["entropy"].scores).abs().amax(dim=(1, 2))
    assert int((gaps < bound(float(alone.max()), LOUD)).sum()) == 1


def test_entropy_draws_its_prompt_by_the_seed():
    """One seed draws the same prompt each time; ten draw each of three: missing one has p = 0.05, once and for all."""
    lens, prompts = benchmark_lens("jamba"), prompts_of("jamba")
    drawn = [runtime_rankings(lens, prompts, seed, names=["entropy"])["entropy"] for seed in (0, *range(10))]
    assert torch.equal(drawn[0].scores, drawn[1].scores)
    assert len({tuple(ranking.scores.flatten().tolist()) for ranking in drawn}) == 3


def test_random_rankings():
    """Orders of all heads, other ones for every draw and seed, the first ones the same however many are drawn."""
    lens = benchmark_lens("jamba")
    found = random_rankings(lens, 60, seed=1)
    assert list(found) == [f"random {draw}" for draw in range(60)]
    heads = [(layer, head) for layer in lens.cfg.attention_layers for head in range(lens.cfg.n_heads)]
    orders = [tuple(ranking.order) for ranking in found.values()]
    assert all(sorted(order) == heads for order in orders)
    assert len(set(orders)) == 60
    assert {order[0] for order in orders} == set(heads)  # a head is never first with p = 3e-4
    assert [tuple(ranking.order) for ranking in random_rankings(lens, 3, seed=1).values()] == orders[:3]
    assert tuple(random_rankings(lens, 1, seed=2)["random 0"].order) != orders[0]
    with pytest.raises(InputError, match="draws = 0 given, expected a whole number from 1 "):
        random_rankings(lens, 0)


def test_needles_of_both_readings_and_of_the_authors_builder():
    """The needle's own words, whatever the builder says of their place: its tokens are known from its sentence."""
    lens = benchmark_lens("jamba")
    wanted = tuple(lens.tokenizer(niah.PAPER_SENTENCE, add_special_tokens=False)["input_ids"])
    twice = niah.grid(lens.tokenizer, lengths=[230], depths=[0, 50], jrt=True)
    published = niah.grid(lens.tokenizer, lengths=[350], depths=[30, 100], semantics="published")
    for prompt in (*prompts_of("jamba"), *twice, *published):
        (needle,) = needles_of(lens, [prompt])
        assert needle.tokens == wanted
        assert len(needle.positions) == len(wanted) * len(prompt.needle_spans)
        assert sorted(prompt.tokens[at] for at in needle.positions) == sorted(wanted * len(prompt.needle_spans))


def test_only_what_is_asked_for_is_made(monkeypatch):
    """Ablation silences every head in turn, minutes in a large model, so that nobody waits for it who has not asked."""
    lens, prompts, every = benchmark_lens("jamba"), prompts_of("jamba"), rankings_of("jamba")
    for maker in ("ablation_ranking", "retrieval_rankings"):
        monkeypatch.setattr(candidates, maker, None)
    found = runtime_rankings(lens, prompts, names=["entropy calibrated", "entropy"])
    assert list(found) == ["entropy", "entropy calibrated"]
    for name, ranking in found.items():
        assert torch.equal(ranking.scores, every[name].scores)
    with pytest.raises(TypeError):
        runtime_rankings(lens, prompts, names=["needle mass"])
    with pytest.raises(UnknownNameError, match="'copying' takes no run, or does not exist"):
        runtime_rankings(lens, prompts, names=["copying"])


def test_refusals():
    lens, prompts = benchmark_lens("jamba"), prompts_of("jamba")
    control = niah.controls(lens.tokenizer, lengths=[150])[0]
    with pytest.raises(InputError, match=r"prompt 1 \(150 tokens\) has no needle.*not of niah\.controls"):
        runtime_rankings(lens, [prompts[0], control])
    with pytest.raises(InputError, match="no prompt given"):
        runtime_rankings(lens, [])
    with pytest.raises(InputError, match="batch_size = 0 given"):
        runtime_rankings(lens, prompts, batch_size=0)
    with pytest.raises(InputError, match="max_new_tokens = 0 given"):
        looks(lens, prompts, max_new_tokens=0)
    without = hl.HybridLens(make("jamba", attn_layer_period=8, attn_layer_offset=7))
    assert not without.cfg.attention_layers
    for run in (lambda: runtime_rankings(without, prompts), lambda: random_rankings(without, 1)):
        with pytest.raises(InputError, match="ranking heads needs attention heads, but no layer"):
            run()
    narrow = benchmark_lens("jamba", max_position_embeddings=90)
    for run in (looks, ablation_effects):
        with pytest.raises(InputError, match="the model's context is 90"):
            run(narrow, prompts)


def test_no_tokenizer_is_needed():
    """Prompts carry their tokens: a lens without a tokenizer gives the same rankings."""
    bare = runtime_rankings(hl.HybridLens(benchmark_lens("jamba").hf_model), prompts_of("jamba"))
    for name, ranking in rankings_of("jamba").items():
        assert torch.equal(ranking.scores, bare[name].scores)
