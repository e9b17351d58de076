"""Prompt pairs: equal length, different in the needle alone, and answers that the model itself gives."""

import re

import pytest
import torch
from bounds import FORWARD, close
from random_lens import benchmark_lens

import hybridlens as hl
from analyses.patching import pairs
from analyses.patching.alignment import differences
from analyses.patching.running import activation_patch
from hybridlens import niah
from hybridlens.errors import InputError

PAPER = niah.PAPER_NEEDLE


@pytest.fixture(scope="module", params=["tiny-recurrentgemma", "tiny-jamba"])
def trained(request):
    return hl.load(request.param)


def inside(pair):
    return {place for start, stop in pair.clean_prompt.needle_spans for place in range(start, stop)}


def check(lens, pair):
    """What every pair has to satisfy, whichever way it was made."""
    assert len(pair.clean_tokens) == len(pair.corrupt_tokens)
    n = len(pair.clean_prompt.tokens)
    assert pair.clean_tokens[:n] == pair.clean_prompt.tokens
    assert pair.corrupt_tokens[:n] == pair.corrupt_prompt.tokens
    begun = pair.clean_tokens[n:]
    assert begun == pair.corrupt_tokens[n:]
    rows = zip(pair.clean_tokens, pair.corrupt_tokens, strict=True)
    assert [d.position for d in pair.differences] == [i for i, (a, b) in enumerate(rows) if a != b]
    for place, clean, corrupt in pair.differences:
        assert clean == lens.tokenizer.decode([pair.clean_tokens[place]])
        assert corrupt == lens.tokenizer.decode([pair.corrupt_tokens[place]])
    if pair.answers is None:
        assert begun == ()
        return
    with torch.no_grad():  # all at once, with no state from token to token
        sides = pair.clean_tokens, pair.corrupt_tokens
        likeliest = [lens([tokens])[0, n - 1 :].argmax(-1).tolist() for tokens in sides]
    assert likeliest == [[*begun, pair.answers[0]], [*begun, pair.answers[1]]]
    assert pair.answers[0] != pair.answers[1]
    assert pair.logit_difference == pairs.LogitDifference(*pair.answers)


def test_another_needle_changes_the_answer_alone(trained):
    """The same question asked of another needle: only words of the answer differ, and the models tell each its own."""
    other = pairs.counterparts(trained, PAPER)[0]
    assert other.question == PAPER.question
    pair = pairs.other_needle(trained, PAPER, other, 150, 33)
    check(trained, pair)
    assert {d.position for d in pair.differences} < inside(pair)
    assert ("eat", "sail") in {(d.clean, d.corrupt) for d in pair.differences}
    assert [trained.tokenizer.decode([token]) for token in pair.answers] == ["eat", "sail"]
    assert niah.score(pair.said[0], PAPER.rubric) == niah.score(pair.said[1], other.rubric) == 5
    shown = pair.show()
    assert re.search(r"needle pair: 159 tokens each, of which 5 differ; the last 9 are what both answers begin", shown)
    assert re.search(r"\n  \d+: 'eat' \| 'sail'\n", shown)


def test_no_needle_leaves_everything_else(trained):
    """The control differs in the needle's place alone, unlike that of the benchmark, and scores nothing."""
    pair = pairs.no_needle(trained, PAPER, 150, 67)
    check(trained, pair)
    assert {d.position for d in pair.differences} <= inside(pair)
    assert pair.corrupt_prompt.control
    assert PAPER.sentence not in pair.corrupt_prompt.text
    assert niah.score(pair.said[0]) == 5
    assert niah.score(pair.said[1]) < 3
    (usual,) = niah.controls(trained.tokenizer, [150], [67])
    usual_places = {d.position for d in differences(pair.clean_prompt.tokens, usual.tokens, None)}
    assert usual_places - inside(pair)


def test_a_moved_needle_shifts_what_lies_between(trained):
    """Alike before the first place and behind the second; both prompts are answered alike, which is said."""
    pair = pairs.moved_needle(trained, PAPER, 150, 22, 78)
    check(trained, pair)
    spans = pair.clean_prompt.needle_span, pair.corrupt_prompt.needle_span
    places = [d.position for d in pair.differences]
    assert spans[0][0] <= min(places)
    assert max(places) < spans[1][1]
    assert spans[0][1] <= spans[1][0]
    assert pair.answers is None
    assert "the same, so that no token tells them apart" in pair.show()
    with pytest.raises(InputError, match=r"answers both prompts of this pair alike .* no token tells them apart"):
        _ = pair.logit_difference


def test_a_pair_can_be_patched(trained):
    """Denoising the needle's own tokens in the embedding brings the clean answer back whole; the filler none of it."""
    pair = pairs.other_needle(trained, PAPER, pairs.counterparts(trained, PAPER)[0], 150, 50)
    needle = tuple(sorted(inside(pair)))
    others = tuple(set(range(len(pair.clean_tokens))) - set(needle))
    sides = pair.clean_tokens, pair.corrupt_tokens
    result = activation_patch(trained, *sides, pair.logit_difference, "hook_embed", {"p": [needle, others]})
    close(result.normalised, torch.tensor([[1.0, 0.0]]).double(), FORWARD, dtype=torch.float32)
    assert result.clean > 1 > -1 > result.corrupt


@pytest.mark.parametrize(("words", "jrt"), [("bpe", False), ("unigram", False), ("unigram", True), ("word", True)])
def test_any_tokenizer_and_both_readings(words, jrt):
    """Merging tokenizers and prompts read twice: pairs stay aligned, or are refused with a reason."""
    lens = benchmark_lens("recurrentgemma", words=words)
    made = 0
    refusals = []
    for depth in (0, 50):
        for make in (
            lambda d: pairs.no_needle(lens, PAPER, 300, d, jrt=jrt),
            lambda d: pairs.moved_needle(lens, PAPER, 300, d, 100, jrt=jrt),
        ):
            try:
                pair = make(depth)
            except InputError as error:
                refusals.append(str(error))
                continue
            check(lens, pair)
            made += 1
    assert made >= 2
    known = r"of 200 sentences of the built-in essays|outside of the needle's place|does not fit"
    assert all(re.search(known, message) for message in refusals)


def test_counterparts_answer_the_same_question(trained):
    """What the questions differ in is exchanged, also in the rubric; the sentence scores full marks by it."""
    for name, found in (("paper", 5), ("secret-word", 2), ("violin", 0)):
        needle = niah.NEEDLES[name]
        others = pairs.counterparts(trained, needle)
        assert len(others) == found
        for other in others:
            assert other.question == needle.question
            assert other.sentence != needle.sentence
            assert niah.score(other.sentence, other.rubric) == 5
            assert niah.score(needle.sentence, other.rubric) < 5
    made = pairs.counterpart(niah.NEEDLES["secret-word"], niah.NEEDLES["treasure"])
    assert made.sentence == "The secret word of Rosa is the silver turtle of Diana."
    with pytest.raises(InputError, match="needle 'sailors' cannot answer 'What is the best thing to do in San"):
        pairs.counterpart(PAPER, niah.NEEDLES["sailors"])
    with pytest.raises(InputError, match="cannot answer"):
        pairs.counterpart(PAPER, PAPER)


def test_pairs_that_are_none_are_refused(trained):
    longer = niah.NEEDLES["magic-words"]
    with pytest.raises(InputError, match="needle 'paper' takes 22 tokens in the prompt and 'magic-words' 13"):
        pairs.other_needle(trained, PAPER, longer, 150, 50)
    (one,) = niah.grid(trained.tokenizer, [150], [50])
    (two,) = niah.grid(trained.tokenizer, [160], [50])
    with pytest.raises(InputError, match="has 150 tokens and the corrupt one 160; they part at position"):
        pairs.make_pair(trained, "mine", one, two)
    with pytest.raises(InputError, match="are the same; expected prompts that differ"):
        pairs.make_pair(trained, "mine", one, one)
