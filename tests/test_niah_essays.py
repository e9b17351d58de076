"""The built-in essays and the reading of a user's folder."""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.niah.essays import GRAMMAR, RESERVED_PAIRS, RESERVED_WORDS, START, essay_sentences, vocabulary
from hybridlens.niah.haystack import split_sentences

SENTENCES = list(itertools.islice(essay_sentences(random.Random(0)), 20000))


def shallow(text: str) -> Iterator[str]:
    """`text` once with every alternative of each of its slots, other slots at their first alternative."""
    symbols = re.findall(r"\{(\w+)\}", text)
    if not symbols:
        yield text
        return
    for varied in range(len(symbols)):
        for alternative in GRAMMAR[symbols[varied]]:
            parts = iter(alternative if i == varied else GRAMMAR[s][0] for i, s in enumerate(symbols))
            yield from shallow(re.sub(r"\{\w+\}", lambda _, parts=parts: next(parts), text))


def test_sentences_look_like_sentences() -> None:
    """All of 20,000: a capital letter, one final mark, no slot left, only letters and the three marks."""
    for sentence in SENTENCES:
        assert re.fullmatch(r"[A-Z][A-Za-z, ]*[a-z][.?]", sentence), sentence
        assert "  " not in sentence
    assert sum(sentence.endswith("?") for sentence in SENTENCES) > 1000
    assert sum("," in sentence for sentence in SENTENCES) > 4000


def test_text_is_varied() -> None:
    """Chance or a short cycle can not give this many different sentences, lengths and openings."""
    assert len(set(SENTENCES)) > 10000
    assert len({len(sentence.split()) for sentence in SENTENCES}) >= 10
    assert len({sentence.split()[0] for sentence in SENTENCES}) > 60
    forms = len(GRAMMAR[START])
    assert forms >= 60
    for start in range(0, 5 * forms, forms):  # a deck deals every form once, so a deck has no repeats
        assert len(set(SENTENCES[start : start + forms])) == forms


def test_vocabulary_is_exactly_what_is_written() -> None:
    """Every word of 20,000 sentences is listed and every listed word is written: neither set is a guess."""
    written = {word for sentence in SENTENCES for word in re.findall(r"[A-Za-z]+", sentence)}
    assert written == set(vocabulary())
    assert list(vocabulary()) == sorted(vocabulary())
    assert 250 <= len({word.lower() for word in vocabulary()}) <= 400


def test_filler_never_holds_what_rubrics_pay_for() -> None:
    """Every form with every alternative of every slot, so the claim is about the grammar, not about luck."""
    count = 0
    for form in GRAMMAR[START]:
        for sentence in shallow(form):
            count += 1
            words = re.findall(r"[a-z]+", sentence.lower())
            assert not RESERVED_WORDS & set(words), sentence
            assert not RESERVED_PAIRS & set(itertools.pairwise(words)), sentence
            if "san francisco" in sentence.lower():
                assert not {"best", "worst", "thing"} & set(words), sentence
    assert count > 2000
    paid = [rule.phrase for rule in (*niah.PAPER_RUBRIC, *niah.PUBLISHED_RUBRIC)]
    assert all(
        RESERVED_WORDS & set(words) or RESERVED_PAIRS & set(itertools.pairwise(words))
        for words in (niah.normalise(phrase).split() for phrase in paid)
    )


def test_essays_depend_on_the_seed_alone() -> None:
    """Same seed, same text; the longer haystack begins with the shorter; global randomness is not used."""
    first = niah.essays(5, 50)
    random.seed(99)
    state = random.getstate()
    assert niah.essays(5, 50) == first
    assert random.getstate() == state
    assert niah.essays(5, 80).text.startswith(first.text)
    assert niah.essays(6, 50).text != first.text
    assert (first.name, len(first.sentences)) == ("essays-5", 50)
    assert first.hash == niah.essays(5, 50).hash != niah.essays(6, 50).hash
    with pytest.raises(InputError, match="n_sentences = 0 given, expected a whole number from 1 "):
        niah.essays(5, 0)


def test_split_sentences_by_hand() -> None:
    """Quotes, questions, abbreviations before lower case, headings and blank lines."""
    text = 'A Title\n\nHe said "No." Then he\nleft, i.e. went home! Why? (I do not.) 3 days.\n\n***\n\nEnd'
    assert split_sentences(text) == (
        "A Title",
        'He said "No."',
        "Then he left, i.e. went home!",
        "Why?",
        "(I do not.)",
        "3 days.",
        "End",
    )


@given(st.lists(st.sampled_from(SENTENCES[:200]), min_size=1, max_size=30))
def test_split_sentences_inverts_joining(sentences: list[str]) -> None:
    """Any list of essay sentences comes back as it was, whatever white space joined it."""
    assert list(split_sentences(" ".join(sentences))) == sentences
    assert list(split_sentences("\n".join(sentences))) == sentences


def test_folder_is_read_in_path_order(tmp_path: Path) -> None:
    """Files are made in another order than they are read; other endings are left alone."""
    (tmp_path / "b").mkdir()
    (tmp_path / "c.txt").write_text("Third one.", encoding="utf-8")
    (tmp_path / "b" / "z.md").write_text("\ufeffSecond one.", encoding="utf-8")
    (tmp_path / "a.TXT").write_text("First one.", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\xff\x00")
    haystack = niah.read_haystack(tmp_path)
    assert haystack.sentences == ("First one.", "Second one.", "Third one.")
    assert haystack.name == str(tmp_path)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    """Missing, a file, without text files, without words, not UTF-8, a link to nothing."""
    file = tmp_path / "file.txt"
    file.write_text("Text.", encoding="utf-8")
    folders: dict[str, str] = {"missing": "is not a folder", "file.txt": "is not a folder"}
    for name in ("none", "blank", "binary", "dangling"):
        (tmp_path / name).mkdir()
    folders |= {"none": "is empty: no file ends in", "blank": "hold no words", "binary": "is not UTF-8"}
    folders["dangling"] = "cannot be read"
    (tmp_path / "blank" / "a.txt").write_text(" \n--\n", encoding="utf-8")
    (tmp_path / "binary" / "bad.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "dangling" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    for name, wording in folders.items():
        with pytest.raises(InputError, match=wording) as caught:
            niah.read_haystack(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"bad\.txt"):
        niah.read_haystack(tmp_path / "binary")
