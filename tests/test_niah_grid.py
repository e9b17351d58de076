"""The prompts: exact lengths, distinct places, spans from offsets, both builders, bad input."""

import copy
import itertools
import re
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from niah_tokenizers import CHAT, KINDS, byte_bpe, unigram, word_level
from transformers import PreTrainedTokenizerFast

from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.niah.lengths import places

PAPER_LENGTHS = (250, 677, 1105, 1532, 1959, 2387, 2814, 3241, 3669, 4096)


def retokenised(tokenizer: PreTrainedTokenizerFast, prompt: niah.Prompt) -> tuple[int, ...]:
    """The tokens that the tokenizer makes of the prompt's text."""
    return tuple(tokenizer(prompt.text, add_special_tokens=prompt.add_special_tokens)["input_ids"])


def spoken(tokenizer: PreTrainedTokenizerFast, prompt: niah.Prompt, span: tuple[int, int]) -> str:
    """The text of a span of tokens, normalised."""
    return niah.normalise(tokenizer.decode(list(prompt.tokens[span[0] : span[1]])))


def check_clean(tokenizer: PreTrainedTokenizerFast, prompts: list[niah.Prompt], needle: niah.Needle) -> None:
    """What every clean prompt has to satisfy, with its neighbours of one length."""
    for prompt in prompts:
        assert len(prompt.tokens) == prompt.length
        assert retokenised(tokenizer, prompt) == prompt.tokens
        assert prompt.needle_span == prompt.needle_spans[0]
        assert len(prompt.needle_spans) == prompt.text.count(needle.sentence) == (2 if prompt.jrt else 1)
        for start, end in prompt.needle_spans:
            assert spoken(tokenizer, prompt, (start, end)) == niah.normalise(needle.sentence)
            # and it is the tightest such span that keeps the final stop
            assert spoken(tokenizer, prompt, (start + 1, end)) != niah.normalise(needle.sentence) or (
                tokenizer.decode([prompt.tokens[start]]).strip() == ""
            )
    for _, group in itertools.groupby(prompts, key=lambda prompt: prompt.length):
        row = sorted(group, key=lambda prompt: prompt.depth or 0)
        starts = [prompt.needle_span[0] for prompt in row if prompt.needle_span is not None]
        assert starts == sorted(set(starts))
        assert len({prompt.tokens for prompt in row}) == len(row)


def test_paper_lengths() -> None:
    """The ten lengths and depths that the paper used, digit by digit."""
    assert niah.default_lengths(4096) == PAPER_LENGTHS
    assert niah.DEFAULT_DEPTHS == (0, 11, 22, 33, 44, 56, 67, 78, 89, 100)
    assert niah.default_lengths(4096, count=1) == (4096,)


@given(st.integers(170, 20000), st.integers(20, 150), st.integers(2, 12))
def test_default_lengths_rise_from_their_rule_to_the_maximum(longest: int, shortest: int, count: int) -> None:
    """For any context: strictly rising, the ends as documented, steps equal up to rounding."""
    lengths = niah.default_lengths(longest, shortest, count)
    assert len(lengths) == count
    assert lengths[0] == max(shortest, round(longest * 250 / 4096))
    assert lengths[-1] == longest
    steps = [after - before for before, after in itertools.pairwise(lengths)]
    assert min(steps) >= 1
    assert max(steps) - min(steps) <= 1


@given(
    st.lists(st.integers(1, 40), min_size=9, max_size=60),
    st.lists(st.integers(0, 100), min_size=1, max_size=10, unique=True),
)
def test_places_are_distinct_ordered_and_near(costs: list[int], depths: list[int]) -> None:
    """Any sentence lengths and depths; a single depth takes the boundary that a plain minimum gives."""
    found = places(costs, depths)
    ordered = [found[depth] for depth in sorted(depths)]
    assert ordered == sorted(set(ordered))
    assert all(0 <= place <= len(costs) for place in ordered)
    at = [0, *itertools.accumulate(costs)]
    alone = places(costs, [depths[0]])[depths[0]]
    best = min(abs(position - at[-1] * depths[0] / 100) for position in at)
    assert abs(at[alone] - at[-1] * depths[0] / 100) == best
    if 0 in depths:
        assert found[0] == 0
    if 100 in depths:
        assert found[100] == len(costs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["base", "unspaced", "instruct"])
@pytest.mark.parametrize("jrt", [False, True])
def test_clean_grid(kind: str, template: str, jrt: bool) -> None:
    """Ten depths at three lengths: exact token counts, and spans that decode to the needle and nothing else.

    A span found by chance would have to hit start and end in each of 30 prompts.
    """
    tokenizer = KINDS[kind]()
    shortest = niah.shortest_length(tokenizer, template=template, jrt=jrt)
    lengths = [shortest, shortest + 33, 2 * shortest + 1]
    prompts = niah.grid(tokenizer, lengths, template=template, jrt=jrt)
    assert [(p.length, p.depth) for p in prompts] == list(itertools.product(lengths, niah.DEFAULT_DEPTHS))
    check_clean(tokenizer, prompts, niah.PAPER_NEEDLE)
    controls = niah.controls(tokenizer, lengths, template=template, jrt=jrt)
    assert [prompt.length for prompt in controls] == lengths
    for control in controls:
        assert len(control.tokens) == control.length
        assert retokenised(tokenizer, control) == control.tokens
        assert (control.needle_span, control.needle_spans, control.depth) == (None, (), None)
        assert control.control
        assert niah.score(control.text) == 0.0


@settings(max_examples=40)
@given(
    kind=st.sampled_from(list(KINDS)),
    extra=st.lists(st.integers(0, 500), min_size=1, max_size=3, unique=True),
    depths=st.lists(st.integers(0, 100), min_size=1, max_size=10, unique=True),
    needle=st.sampled_from(list(niah.NEEDLES.values())),
    seed=st.integers(0, 3),
    jrt=st.booleans(),
)
def test_clean_grid_at_random(
    kind: str, extra: list[int], depths: list[int], needle: niah.Needle, seed: int, jrt: bool
) -> None:
    """Any length from the shortest up, any depths in any order, any needle, any seed."""
    said = " ".join(f"{needle.sentence} {needle.question}" for needle in niah.NEEDLES.values())
    tokenizer = word_level(said) if kind == "word" else KINDS[kind]()
    shortest = niah.shortest_length(tokenizer, depths, needle=needle, jrt=jrt, seed=seed)
    # one or two depths leave no room to speak of at the shortest length; exact sums need a few sentences
    lengths = [shortest + 60 + n for n in extra]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prompts = niah.grid(tokenizer, lengths, depths, needle=needle, jrt=jrt, seed=seed)
    assert [(p.length, p.depth) for p in prompts] == list(itertools.product(lengths, depths))
    check_clean(tokenizer, prompts, needle)


def test_whole_sentences_in_haystack_order() -> None:
    """The context is the needle and whole sentences of the essays, in their order, ends included."""
    source = niah.essays(0, 3000).sentences
    for prompt in niah.grid(word_level(), [150, 400]):
        context = prompt.text.split("CONTEXT: ")[1].split("\n\nQUESTION")[0]
        sentences = niah.Haystack("context", context).sentences
        place = sentences.index(niah.PAPER_SENTENCE)
        others = [sentence for sentence in sentences if sentence != niah.PAPER_SENTENCE]
        positions = [source.index(sentence) for sentence in others]
        assert positions == sorted(positions)
        assert place == 0 if prompt.depth == 0 else place > 0
        assert (place == len(others)) == (prompt.depth == 100)


def test_depth_is_where_the_needle_is() -> None:
    """At 2,000 tokens every needle starts within a sentence's length of its depth's share of the filler."""
    for prompt in niah.grid(word_level(), [2000]):
        assert prompt.needle_span is not None
        assert prompt.depth is not None
        start, end = prompt.needle_span
        overhead = 2000 - (end - start)
        assert abs(start - prompt.depth / 100 * (overhead - 30)) < 25


def test_templates_to_the_letter() -> None:
    """The prompt's frame, written out by hand for base, instruct, chat and JRT."""
    tokenizer = word_level()
    ask = niah.PAPER_QUESTION
    base = niah.grid(tokenizer, [150], [50])[0].text
    assert base.startswith("CONTEXT: ")
    assert base.endswith(f"\n\nQUESTION: {ask}\n\nANSWER: Here is the most relevant sentence in the context: ")
    unspaced = niah.grid(tokenizer, [150], [50], template="unspaced")[0].text
    assert unspaced.endswith(f"\n\nQUESTION: {ask}\n\nANSWER: Here is the most relevant sentence in the context:")
    instruct = niah.grid(tokenizer, [150], [50], template="instruct")[0]
    order = f"\n\nQUESTION: {ask} Output the most relevant sentence in the context, word by word!"
    assert instruct.text.endswith(order)
    assert instruct.add_special_tokens
    twice = niah.grid(tokenizer, [300], [50], jrt=True)[0].text
    first, second, last = twice.split("CONTEXT: ")
    assert first == ""
    assert second.endswith(f"\n\nQUESTION: {ask}\n\n")
    assert last.endswith(f"\n\nQUESTION: {ask}\n\nANSWER: Here is the most relevant sentence in the context: ")


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('Only system first') }}", "{% if %}", "{{ no.such.name }}", {"tool_use": "x"}],
)
def test_a_chat_template_that_fails_is_one_line(template) -> None:
    """What jinja raises, and what transformers does where several have no default, came out as it was."""
    tokenizer = copy.deepcopy(unigram())
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=r"chat template fails on a user's message \(.*use template 'base'") as caught:
        niah.grid(tokenizer, [400], [50], template="instruct")
    assert "\n" not in str(caught.value)


def test_chat_template_wraps_the_prompt() -> None:
    """Instruct prompts go through the chat template: its marks, one BOS, exact count, span on the needle."""
    tokenizer = copy.deepcopy(unigram())
    tokenizer.chat_template = CHAT
    tokenizer.add_tokens(["<|user|>", "<|end|>", "<|assistant|>"], special_tokens=True)
    prompts = niah.grid(tokenizer, [400], template="instruct")
    check_clean(tokenizer, prompts, niah.PAPER_NEEDLE)
    for prompt in prompts:
        assert prompt.text.startswith("<s><|user|> CONTEXT: ")
        assert prompt.text.endswith("word by word! <|end|> <|assistant|>")
        assert not prompt.add_special_tokens
        assert prompt.tokens.count(tokenizer.bos_token_id) == 1
    base = niah.grid(tokenizer, [400], [0])[0]
    assert base.text.startswith("CONTEXT: ")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(InputError, match="chat template changes or repeats"):
        niah.grid(tokenizer, [400], template="instruct")


def test_jrt_readings_are_equal_up_to_one_sentence() -> None:
    """An even room gives two equal readings; an odd one readings that differ in a single sentence."""
    differing = set[int]()
    for length in (400, 401):
        for prompt in niah.grid(word_level(), [length], jrt=True):
            readings = re.findall(r"CONTEXT: (.*?)\n\nQUESTION", prompt.text, re.DOTALL)
            sentences = [niah.Haystack("reading", reading).sentences for reading in readings]
            assert len(sentences[0]) == len(sentences[1])
            unequal = [a != b for a, b in zip(*sentences, strict=True)]
            assert sum(unequal) <= 1
            differing.add(sum(unequal))
    assert differing == {0, 1}


@pytest.mark.parametrize("kind", KINDS)
def test_published_builder(kind: str) -> None:
    """The authors' rules, followed here step by step on token ids; spans one too low."""
    tokenizer = KINDS[kind]()
    ids = tokenizer(niah.essays(0, 3000).text, add_special_tokens=False)["input_ids"]
    needle = tokenizer(f"\n{niah.PAPER_SENTENCE}\n", add_special_tokens=False)["input_ids"]
    stop = [i for i in tokenizer(".", add_special_tokens=False)["input_ids"] if tokenizer.decode([i]).strip()]
    for prompt in niah.grid(tokenizer, [400, 1200], semantics="published"):
        assert prompt.depth is not None
        context = ids[: prompt.length - 200 - len(needle)]
        point = len(context) if prompt.depth == 100 else int(len(context) * prompt.depth / 100)
        while prompt.depth != 100 and point and context[point - 1] not in stop:
            point -= 1
        text = tokenizer.decode([*context[:point], *needle, *context[point:]], skip_special_tokens=True)
        assert f"CONTEXT: {text}\n\nQUESTION: {niah.PAPER_QUESTION}\n\nANSWER: " in prompt.text
        assert retokenised(tokenizer, prompt) == prompt.tokens
        assert prompt.needle_span is not None
        start, end = prompt.needle_span
        whole = niah.normalise(niah.PAPER_SENTENCE)
        assert spoken(tokenizer, prompt, (start + 1, end + 1)) == whole
        assert tokenizer.decode([prompt.tokens[end]]).strip() == "."
        assert spoken(tokenizer, prompt, (start + 1, end)).startswith("the best thing")


def test_published_short_prompts_repeat_themselves() -> None:
    """At 250 tokens several depths give one prompt, as with the authors' essays; clean prompts stay apart."""
    tokenizer = unigram()
    published = niah.grid(tokenizer, [250], semantics="published")
    assert len({prompt.text for prompt in published}) < 8
    assert len({prompt.text for prompt in niah.grid(tokenizer, [300])}) == 10
    assert all(prompt.control for prompt in niah.controls(tokenizer, [250, 600], semantics="published"))


def test_published_jrt_spans() -> None:
    """Both readings' spans are one too low."""
    tokenizer = word_level()
    for prompt in niah.grid(tokenizer, [600], semantics="published", jrt=True):
        assert len(prompt.needle_spans) == 2
        for start, end in prompt.needle_spans:
            assert spoken(tokenizer, prompt, (start + 1, end + 1)) == niah.normalise(niah.PAPER_SENTENCE)


def test_hash_tells_prompts_apart_and_is_stable() -> None:
    """Equal arguments give equal hashes; every cell, template and builder its own."""
    prompts = niah.grid(word_level(), [200, 300])
    again = niah.grid(word_level(), [200, 300])
    assert [p.hash for p in prompts] == [p.hash for p in again]
    others = niah.grid(word_level(), [200, 300], template="instruct") + niah.controls(word_level(), [200, 300])
    hashes = {p.hash for p in prompts + others}
    assert len(hashes) == len(prompts) + len(others)
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in hashes)


def test_prompts_of_a_length_do_not_depend_on_the_other_lengths() -> None:
    """A sweep over more lengths can reuse the cells of a smaller one."""
    alone = niah.grid(word_level(), [200])
    among = niah.grid(word_level(), [200, 900, 1800])[:10]
    assert [p.hash for p in alone] == [p.hash for p in among]


def test_seeds_change_the_filler() -> None:
    """Another seed gives other prompts of the same shape."""
    first, second = niah.grid(word_level(), [200], seed=1), niah.grid(word_level(), [200], seed=2)
    assert all(a.text != b.text for a, b in zip(first, second, strict=True))


def test_default_lengths_follow_the_tokenizer() -> None:
    """Without lengths: the paper's for a tokenizer without a limit, else up to its limit."""
    tokenizer = copy.deepcopy(word_level())
    assert tuple(dict.fromkeys(p.length for p in niah.controls(tokenizer))) == PAPER_LENGTHS
    tokenizer.model_max_length = 256
    prompts = niah.grid(tokenizer)
    lengths = tuple(dict.fromkeys(p.length for p in prompts))
    assert lengths == niah.default_lengths(256, niah.shortest_length(tokenizer))
    assert (len(prompts), lengths[-1]) == (100, 256)
    check_clean(tokenizer, prompts, niah.PAPER_NEEDLE)


def test_users_haystack(tmp_path: Any) -> None:
    """Long sentences are left out where ten places need shorter ones, and a short text is used again."""
    words = "the museum was full of children and we went back to the river with a map of the city"
    short = [f"We saw {n} boats." for n in ("two", "three", "four", "five", "six")]
    (tmp_path / "a.txt").write_text(" ".join([f"On {words}.", *short, f"And {words}."]), encoding="utf-8")
    haystack = niah.read_haystack(tmp_path)
    prompts = niah.grid(byte_bpe(), [260, 700], haystack=haystack)
    check_clean(byte_bpe(), prompts, niah.PAPER_NEEDLE)


def test_unknown_words_are_named_in_a_warning() -> None:
    """The words, in order, and no others; nothing is said when all are known."""
    needle = niah.Needle(
        "n",
        "The best xylophone in Oslo is a zebra.",
        "What is the best quux?",
        niah.full_match_rubric("zebra"),
    )
    with pytest.warns(UserWarning, match="does not know 'xylophone', 'zebra', 'quux'"):
        niah.grid(word_level(), [200], needle=needle)
    assert niah.unknown_words(word_level(), ["The zebra sat, quietly."]) == ("zebra", "sat", "quietly")
    assert niah.unknown_words(byte_bpe(), ["zebra"]) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        niah.grid(word_level(), [200])
