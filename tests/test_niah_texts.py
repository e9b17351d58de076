"""Texts as users have them: other scripts, no sentence end at all, byte-order marks, broken Unicode, deep JSON."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from niah_tokenizers import KINDS, byte_bpe, unigram, word_level

from analyses.commands.look import read_prompts
from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.niah import filler, published
from hybridlens.niah.haystack import split_sentences

CHINESE = niah.Haystack("zh", "今天天气很好。我们去公园散步。" * 200)


def test_sentences_of_other_scripts() -> None:
    """By hand: full-width marks with and without closing quotes, and dots that end a sentence or only pause."""
    assert split_sentences("他说：“好。”然后走了！？真的。") == ("他说：“好。”", "然后走了！？", "真的。")
    assert split_sentences("下雨了……我们回家。") == ("下雨了……", "我们回家。")
    assert split_sentences("Wait… what? Yes… No. あ。 b") == ("Wait… what?", "Yes…", "No.", "あ。", "b")
    assert len(CHINESE.sentences) == 400


@pytest.mark.parametrize("semantics", niah.SEMANTICS)
def test_a_chinese_haystack_has_places(semantics: str) -> None:
    """Four depths, four places, in order; all four were one place, or refused."""
    prompts = niah.grid(byte_bpe(), [1000], [0, 33, 66, 100], CHINESE, semantics=semantics)
    starts = [prompt.needle_spans[0][0] for prompt in prompts]
    assert starts == sorted(set(starts))
    for prompt, share in zip(prompts, (0.0, 0.33, 0.66, 1.0), strict=True):
        before, after = prompt.text.split("CONTEXT: ")[1].split(niah.PAPER_SENTENCE)
        after = after.split("\n\nQUESTION")[0]
        if 0 < share < 1 or semantics == "clean":  # published, 100 % appends wherever the text was cut
            assert before.strip() == "" or before.strip()[-1] == "。"
        filled = len(before) + len(after)
        assert abs(len(before) / filled - share) < 20 / filled  # a sentence or two
    if semantics == "clean":
        assert {len(prompt.tokens) for prompt in prompts} == {1000}


def test_published_depths_that_coincide_are_said() -> None:
    """At 250 tokens several depths give one prompt; at 2,000 all differ, and nothing is said."""
    with pytest.warns(UserWarning, match=r"at length 250 depths 0, 11, .* all stand at the start, since no sentence"):
        niah.grid(unigram(), [250], semantics="published")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts = niah.grid(word_level(), [2000], semantics="published")
    assert len({prompt.needle_spans for prompt in prompts}) == 10


def test_a_tokenizer_with_another_full_stop_inside_a_text() -> None:
    """SentencePiece marks the "." that begins a text: only that one was looked for, so no sentence ever ended."""
    tokenizer = unigram()
    ends = published.Ends.of(tokenizer)
    text = tokenizer("We went home. Then", add_special_tokens=False)["input_ids"]
    stop = next(i for i, token in enumerate(text) if tokenizer.decode([token]).strip() == ".")
    alone = published.Ends(frozenset({tokenizer.convert_tokens_to_ids("▁")}), ends.inside)
    assert alone.before(text, stop + 1)
    assert all(tokenizer.decode([i]).strip() for i in ends.alone)  # its space stands before rare words too
    assert not alone.before(text, stop)
    # a word-level tokenizer reads "。" as its unknown word, which must not end sentences
    assert published.Ends.of(word_level()).inside == ((word_level().convert_tokens_to_ids("."),),)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_one_word_is_no_work(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is encoded is a few times the haystack, where it was its square: 20,000 words took over ten minutes."""
    haystack, read = niah.Haystack("word", "word " * 20_000), [0]
    tokenizer = KINDS[kind]()
    original = filler.encode

    def counted(tokenizer: Any, text: str, special: bool = True) -> Any:
        read[0] += len(text)
        return original(tokenizer, text, special)

    monkeypatch.setattr(filler, "encode", counted)
    (prompt,) = niah.grid(tokenizer, [300], [0], haystack)
    assert len(prompt.tokens) == 300
    assert 0 < read[0] < 3 * len(haystack.text)
    with pytest.raises(InputError, match="no sentence ends inside the haystack, which counts as one"):
        niah.grid(tokenizer, [300], [0, 50, 100], haystack)
    with pytest.warns(UserWarning, match="depths 0, 50 all stand at the start, since no sentence ends before them"):
        niah.grid(tokenizer, [300], [0, 50, 100], haystack, semantics="published")


@given(st.lists(st.integers(1, 12), max_size=14), st.integers(0, 60))
def test_subsets_are_those_of_the_shortest_prefix(costs: list[int], room: int) -> None:
    """Against every subset: there is one exactly where the answer says so, within the shortest prefix that has one."""
    sums = {0}
    shortest = 0 if room == 0 else None
    for length, cost in enumerate(costs, start=1):
        sums |= {total + cost for total in sums}
        if room in sums and shortest is None:
            shortest = length
    found = filler.exact_subset(costs, room)
    assert (found is None) == (room not in sums)
    if found is not None:
        assert found == sorted(set(found))
        assert sum(costs[i] for i in found) == room
        assert shortest is not None
        assert all(i < shortest for i in found)


NEEDLE = {"name": "keys", "sentence": "The fox hid.", "question": "Who?", "rubric": [["The fox hid", 5, "set"]]}


def test_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    """In every file that a user writes: needles, rubrics, prompts of both kinds."""
    files = {
        "needles.json": json.dumps([NEEDLE]),
        "rubric.json": json.dumps(NEEDLE["rubric"]),
        "prompts.txt": "First.\r\nSecond\u2028half.\rThird.\n\n",
        "prompts.json": json.dumps(["First."]),
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [needle.name for needle in niah.load_needles(tmp_path / "needles.json")] == ["keys"]
    assert niah.load_rubric(tmp_path / "rubric.json", "The fox hid.") == (niah.Rule("The fox hid", 5.0, "set"),)
    assert read_prompts(tmp_path / "prompts.txt") == ["First.", "Second\u2028half.", "Third."]
    assert read_prompts(tmp_path / "prompts.json") == ["First."]


@pytest.mark.parametrize("field", ["name", "sentence", "question"])
def test_half_a_surrogate_pair_is_named(field: str, tmp_path: Path) -> None:
    """JSON can write one; no tokenizer can read it."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{**NEEDLE, field: "x \ud800"}], indent=1), encoding="utf-8")
    with pytest.raises(InputError, match=rf"line \d: field '{field}', 'x \\ud800', is no valid Unicode"):
        niah.load_needles(path)
    with pytest.raises(InputError, match=rf"{field} = 'x \\ud800' given, which is no valid Unicode"):
        niah.Needle(**{"name": "n", "sentence": "A.", "question": "Q", "rubric": (), field: "x \ud800"})
    with pytest.raises(InputError, match=r"rule 1 has phrase '\\ud800', which is no valid Unicode"):
        niah.check_rubric([niah.Rule("\ud800", 5.0, "set")], "A fox.")
    with pytest.raises(InputError, match=r"text = 'A \\udfff fox.* given, which is no valid Unicode"):
        niah.grid(byte_bpe(), [200], haystack=niah.Haystack("h", "A \udfff fox. " * 50))


@pytest.mark.parametrize("depth", [990, 100_000])
def test_deep_json_is_one_line(depth: int, tmp_path: Path) -> None:
    """Deeper than Python's parser goes, and just not so deep, where printing it is what fails."""
    path = tmp_path / "deep.json"
    path.write_text("[" * depth + "]" * depth, encoding="utf-8")
    for read in (niah.load_rubric, niah.load_needles, read_prompts):
        with pytest.raises(InputError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert "deep.json" in str(caught.value)
