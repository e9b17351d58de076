"""Prompts and needles of a user's own in patching and in the crossover: files, twins, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import refused
from niah_tokenizers import byte_bpe, unigram
from random_lens import benchmark_lens

from analyses import kv_cache
from analyses.cli import main
from analyses.experiment.options.prompts import OwnPair, read_pair, read_pairs
from analyses.kv_cache.twins import fits, needle_pairs, paired
from analyses.patching import metrics, pairs
from hybridlens import niah
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.niah import Needle

CLEAN = "What is the best thing to do in Oslo? sail a boat"
CORRUPT = "What is the best thing to do in Lima? sail a boat"
OWN = {"name": "city", "clean": CLEAN, "corrupt": CORRUPT, "answers": ["sail a boat", "ride a bike"]}

pytestmark = pytest.mark.usefixtures("small_bundles")


def written(folder: Path, held: Any) -> str:
    path = folder / "pairs.json"
    path.write_text(json.dumps(held), encoding="utf-8")
    return str(path)


def test_files_of_prompt_pairs(tmp_path: Path) -> None:
    """A list, one object alone, one of several by its name."""
    pair = OwnPair("city", CLEAN, CORRUPT, ("sail a boat", "ride a bike"))
    bare = {"clean": "a", "corrupt": "b"}
    assert read_pair(written(tmp_path, OWN)) == pair
    path = written(tmp_path, [OWN, bare])
    assert read_pairs(path) == (pair, OwnPair("pair-2", "a", "b"))
    assert read_pair(f"{path}:pair-2") == OwnPair("pair-2", "a", "b")
    with pytest.raises(InputError, match=r"holds city, pair-2; choose one, as in .*pairs\.json:city"):
        read_pair(path)
    with pytest.raises(UnknownNameError, match=r"prompt pair 'ctiy' of .* does not exist; close names: city"):
        read_pairs(f"{path}:ctiy")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([], "holds no pair"),
        ([3], "pair 1 is 3, expected"),
        ([{"clean": "a"}], "'corrupt' of pair 1 is None, expected text"),
        ([{"clean": "a", "corrupt": "a"}], "both texts of pair 1 are the same"),
        ([{"clean": "a", "corrupt": "b", "answer": "c"}], "pair 1 has the unknown field 'answer'"),
        ([{"clean": "a", "corrupt": "b", "answers": ["c"]}], "'answers' of pair 1 is .*expected a list of two texts"),
        ([OWN, OWN], "two pairs are called 'city'"),
    ],
)
def test_bad_files_are_one_line(held: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_pairs(written(tmp_path, held))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tokenizer", [byte_bpe(300), byte_bpe(), unigram()], ids=["small", "bytes", "unigram"])
def test_every_needle_has_a_twin_with_any_tokenizer(tokenizer: Any) -> None:
    """Subword tokenizers cut the first twins into other numbers of tokens: another of the same form is found."""
    for needle, twin in needle_pairs(None, tokenizer):
        assert fits(tokenizer, needle, twin), needle.name
        assert needle.question == twin.question
    assert not all(fits(tokenizer, *pair) for pair in needle_pairs()), "the first twins fit a word-level tokenizer"


def test_own_needles_are_twins_where_they_answer_one_question() -> None:
    """In the file's order; a built-in needle brings its twin; one that is left over is named."""

    def own(name: str, question: str) -> Needle:
        sentence = f"Anna keeps the red book and {name}."
        return Needle(name, sentence, question, niah.full_match_rubric(sentence))

    a, b, c = own("a", "What has Anna?"), own("b", "What has Anna?"), own("c", "Who?")
    tokenizer = byte_bpe()
    made = paired([a, niah.NEEDLES["oslo"], b], tokenizer)
    assert [(pair.needle_a.name, pair.needle_b.name) for pair in made] == [("oslo", "oslo"), ("a", "b")]
    with pytest.raises(InputError, match="needle 'c' has no twin; give another needle with the question 'Who\\?'"):
        paired([a, b, c], tokenizer)


def test_own_texts_are_a_pair_like_any() -> None:
    """Tokens as the lens has them, the tokens at which the answers part as text; unequal lengths are refused."""
    lens = benchmark_lens("jamba")
    pair = pairs.own_pair(lens, CLEAN, CORRUPT, max_new_tokens=3)
    assert pair.clean_prompt.tokens == tuple(lens.to_tokens(CLEAN)[0].tolist())
    assert [d.clean for d in pair.differences] == ["Oslo"]
    if pair.answers is not None:
        assert pair.texts == tuple(lens.to_string([token]) for token in pair.answers)
        assert pair.logit_difference.words == f"logit of “{pair.texts[0]}” minus that of “{pair.texts[1]}”"
    with pytest.raises(InputError, match="give prompts of equal length"):
        pairs.own_pair(lens, CLEAN, CORRUPT + " boat")


def test_metrics_name_tokens_as_text_where_they_know_it() -> None:
    """The text changes no number, and no equality."""
    logits = torch.arange(12.0).reshape(1, 2, 6)
    plain, told = metrics.LogitDifference(4, 2), metrics.LogitDifference(4, 2, ("eat", "fly"))
    assert plain == told
    assert plain(logits).tolist() == told(logits).tolist() == [2.0]
    assert plain.words == "logit of token 4 minus that of token 2"
    assert told.words == "logit of “eat” minus that of “fly”"
    assert metrics.LogProbability((4, 2), ("eat", "fly")).words == "log-probability of “eat”, “fly”"
    assert metrics.Rank(4, ("eat",)).words == "rank of “eat” (0 is the likeliest)"


def test_own_prompts_from_the_command_line(jamba: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both commands run on a file of pairs, and say what does not go with it."""
    path = written(tmp_path, [OWN])
    patch = ["patch", "--model", str(jamba), "--prompts", path, "--sweeps", "v_by_position", "--metric", "kl",
             "--out", str(tmp_path / "patch")]  # fmt: skip
    assert main(patch) == 0
    page = (tmp_path / "patch" / "report.html").read_text(encoding="utf-8")
    assert "tokens, needle at" not in page
    crossover = ["crossover", "--model", str(jamba), "--prompts", path, "--max-new-tokens", "2", "--block", "9",
                 "--out", str(tmp_path / "crossover")]  # fmt: skip
    assert main(crossover) == 0
    capsys.readouterr()
    assert "--prompts and --needle are given" in refused([*patch, "--needle", "oslo"], capsys)
    assert "--prompts and --depths are given" in refused([*crossover, "--depths", "5"], capsys)
    assert "--twin and --pair none given" in refused(
        ["patch", "--model", str(jamba), "--twin", "a boat", "--pair", "none"], capsys
    )


def test_a_haystack_of_ones_own_is_the_filler(jamba: Path, tmp_path: Path) -> None:
    """Patching hides its needle in a folder's text, and a twin is what one says."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("the day was cold. " * 300, encoding="utf-8")
    sentence = niah.PAPER_SENTENCE.replace("sunny", "cold")
    command = ["patch", "--model", str(jamba), "--haystack", str(folder), "--twin", sentence, "--length", "90",
               "--depth", "80", "--sweeps", "v_by_position", "--metric", "kl"]  # fmt: skip
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    held = json.loads((tmp_path / "run" / "pair.json").read_text(encoding="utf-8"))
    clean, corrupt = (" ".join(side) for side in held["tokens"])
    assert "the day was cold . the day was cold" in clean
    assert clean.replace("sunny", "cold") == corrupt


def test_own_prompts_of_a_crossover_have_answers() -> None:
    """A crossover of own prompts needs answers, of which neither holds the other."""
    tokenizer = byte_bpe()
    with pytest.raises(InputError, match="prompt pair 'x' has no answers"):
        kv_cache.own_prompts(tokenizer, [OwnPair("x", CLEAN, CORRUPT)])
    with pytest.raises(InputError, match="one of its answers holds the other"):
        kv_cache.own_prompts(tokenizer, [OwnPair("x", "a cat sat", "a dog sat", ("a cat", "a cat sat"))])
