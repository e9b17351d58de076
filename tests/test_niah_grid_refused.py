"""Tokenizers, arguments and lengths that no grid of prompts can be made of, each refused in one line."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from niah_tokenizers import word_level
from tokenizers import processors

from hybridlens import niah
from hybridlens.errors import HybridLensError, InputError


class WithoutOffsets:
    """A tokenizer of the old kind: everything but offsets."""

    chat_template = None
    model_max_length = 512
    special_tokens_map: Mapping[str, Any] = {}

    def __call__(self, text: Any, **kwargs: Any) -> Mapping[str, Any]:
        if kwargs.get("return_offsets_mapping"):
            raise NotImplementedError("return_offset_mapping is not available when using Python tokenizers")
        return {"input_ids": [1] * len(text.split())}

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        return " ".join("x" for _ in token_ids)

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        return conversation

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        return 0


class WithEmptyOffsets(WithoutOffsets):
    """A tokenizer whose offsets are there but empty."""

    def __call__(self, text: Any, **kwargs: Any) -> Mapping[str, Any]:
        n = len(text.split())
        return {"input_ids": [1] * n, "offset_mapping": [(0, 0)] * n}


@pytest.mark.parametrize("tokenizer", [WithoutOffsets(), WithEmptyOffsets()])
@pytest.mark.parametrize("semantics", niah.SEMANTICS)
def test_tokenizers_without_offsets_are_refused(tokenizer: niah.Tokenizer, semantics: str) -> None:
    """One line that names the tokenizer's class and says what to load."""
    with pytest.raises(InputError, match=type(tokenizer).__name__ + ".*offsets.*fast tokenizer") as caught:
        niah.grid(tokenizer, [400], semantics=semantics)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_ends_texts_is_refused() -> None:
    """After end-of-text no answer follows."""
    tokenizer = copy.deepcopy(word_level())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    with pytest.raises(InputError, match="ends every text with '<eos>'"):
        niah.grid(tokenizer, [200])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "template": ({"template": "poem"}, "template 'poem' does not exist; expected one of base, unspaced, instruct"),
    "semantics": ({"semantics": "dirty"}, "semantics 'dirty' does not exist; expected one of clean, published"),
    "no lengths": ({"lengths": []}, "no lengths were given"),
    "no depths": ({"depths": []}, "no depths were given"),
    "depth above": ({"depths": [0, 101]}, "depths[1] = 101 given, expected depths to be a list of whole numbers"),
    "depth below": ({"depths": [-1]}, "depths[0] = -1 given"),
    "length zero": ({"lengths": [0]}, "lengths[0] = 0 given, expected lengths to be a list of whole numbers"),
    "length twice": ({"lengths": [300, 200, 300]}, "lengths holds 300 more than once"),
    "depth twice": ({"depths": [5, 5]}, "depths holds 5 more than once"),
    "too short": ({"lengths": [300, 40]}, "does not fit length 40: with template and question it takes"),
    "places": ({"lengths": [75]}, "does not fit length 75"),
    "published": (
        {"lengths": [500, 222], "semantics": "published"},
        "does not fit length 222: published semantics keep 200 tokens free",
    ),
    "polluted": (
        {"haystack": niah.Haystack("mine", f"A fox. {niah.PAPER_SENTENCE} A dog.")},
        "haystack 'mine' already holds the needle",
    ),
    "polluted published": (
        {"haystack": niah.Haystack("mine", f"A fox. {niah.PAPER_SENTENCE} A dog."), "semantics": "published"},
        "haystack 'mine' already holds the needle",
    ),
    "empty": ({"haystack": niah.Haystack("mine", " \n ")}, "haystack 'mine' is empty"),
    "empty published": (
        {"haystack": niah.Haystack("mine", " \n "), "semantics": "published"},
        "haystack 'mine' is empty",
    ),
    "long sentences": (
        {"haystack": niah.Haystack("mine", "a city and " * 80 + "a map."), "lengths": [150]},
        "need 9 sentences of filler, 243 tokens or more each",
    ),
}


@pytest.mark.parametrize(("arguments", "wording"), list(BAD.values()), ids=list(BAD))
@pytest.mark.parametrize("entry", [niah.grid, niah.controls])
def test_bad_arguments(entry: Any, arguments: dict[str, Any], wording: str) -> None:
    """Each fault has its own line, from the grid and from its controls alike."""
    with pytest.raises(HybridLensError) as caught:
        entry(word_level(), **({"lengths": [300]} | arguments))
    assert wording in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_context_too_short_for_ten_lengths() -> None:
    """The default lengths of a tiny context are refused, with the numbers."""
    with pytest.raises(InputError, match="prompt of 155 tokens leaves no room for 10 lengths from 150"):
        niah.default_lengths(155)
    with pytest.raises(InputError, match="count = 0 given"):
        niah.default_lengths(256, count=0)


def test_a_length_that_no_sentences_make_is_refused() -> None:
    """The needle alone takes 50 tokens here; one token of filler does not exist, ten do."""
    assert len(niah.grid(word_level(), [50], [50])[0].tokens) == 50
    assert len(niah.grid(word_level(), [60], [50])[0].tokens) == 60
    with pytest.raises(InputError, match="makes a prompt of exactly 51 tokens with at least 0 sentences"):
        niah.grid(word_level(), [51], [50])
