"""Padded batches from either side, one BOS for every way in, and tokens in all the forms that users have them."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, make
from niah_tokenizers import CHAT, unigram, word_level

import hybridlens as hl
from hybridlens import niah
from hybridlens.errors import InputError
from hybridlens.padding import TokenBatch, moved

LONG, SHORT = "the city is full of children", "a map"


def tokenizer_with(**roles: str) -> Any:
    """The word-level tokenizer with other roles of its tokens; "<pad>" is added where it is named."""
    tokenizer = copy.deepcopy(word_level())
    tokenizer.add_special_tokens({f"{role}_token": token for role, token in roles.items()})
    return tokenizer


def lens_with(family: str, **roles: str) -> hl.HybridLens:
    """A random model over it."""
    tokenizer = tokenizer_with(**roles)
    return hl.HybridLens(make(family, vocab_size=len(tokenizer)), tokenizer)


def close(ours: torch.Tensor, alone: torch.Tensor) -> None:
    """Equal to float32's precision at the size of the values: a row computed beside others rounds elsewhere."""
    torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_of_a_padded_batch_gives_what_it_gives_alone(family: str, side: str) -> None:
    """A tokenizer's whole output and its ids alone, in every form; logits and cache at the positions given.

    Read as text, padding on the left changes all that follows: the last logits were 2.4 apart.
    """
    lens = lens_with(family, pad="<pad>")
    lens.tokenizer.padding_side = side
    enc = lens.tokenizer([LONG, SHORT], padding=True, return_tensors="pt")
    alone = lens(SHORT)[0]
    here = slice(-len(alone), None) if side == "left" else slice(0, len(alone))
    ids = enc["input_ids"]
    assert ids.shape[1] > len(alone), "nothing is padded, so nothing is tested"
    forms = (enc, dict(enc), ids, ids.numpy(), ids.tolist(), lens.tokenizer([LONG, SHORT], padding=True))
    for form in forms:
        logits = lens(form)
        close(logits[1, here], alone)
        close(logits[0], lens(LONG)[0])
        padding = torch.ones(logits.shape[1], dtype=torch.bool)
        padding[here] = False
        assert bool(logits[1, padding].isnan().all()), "a number at padding would be taken for one of the text"
    layer = lens.cfg.attention_layers[0]
    _, cache = lens.run_with_cache(enc)
    _, single = lens.run_with_cache(SHORT)
    close(cache["resid_post", layer][1, here], single["resid_post", layer][0])
    close(cache["pattern", layer][1][:, here][:, :, here], single["pattern", layer][0])
    assert lens.generate(enc, 5).tokens.tolist() == lens.generate([LONG, SHORT], 5).tokens.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_a_ragged_batch_are_known_again(family: str) -> None:
    """What TransformerLens' users type; padding read as text gave the short row another answer."""
    lens = lens_with(family, pad="<pad>")
    tokens = lens.to_tokens([LONG, SHORT])
    together = lens.generate(tokens, 6).tokens
    assert type(tokens) is torch.Tensor
    for row, text in enumerate((LONG, SHORT)):
        assert together[row].tolist() == lens.generate(text, 6).tokens[0].tolist()
    assert lens.generate(tokens.tolist(), 6).tokens.tolist() == together.tolist()
    assert lens.generate(tokens[1], 6).tokens[0].tolist() == together[1].tolist()
    whole = lens(tokens, lengths=[tokens.shape[1]] * 2)
    assert bool(whole.isfinite().all()), "lengths say that the padding is text, so it is read"


def test_padding_that_could_be_text_is_refused() -> None:
    """End-of-text as padding: whether a row ends with one or with three of them is not to be guessed."""
    lens = lens_with("jamba", pad="<eos>")
    with pytest.raises(InputError, match=r"rows of 7, 3 tokens need padding, .* pass the texts themselves"):
        lens.to_tokens([LONG, SHORT])
    end = lens.tokenizer.eos_token_id
    with pytest.raises(InputError, match=rf"row 1 ends with 2 tokens {end} \(<eos>\), which may be padding or text"):
        lens(torch.tensor([[1, 5, 6, 7], [1, 5, end, end]]))
    with pytest.raises(InputError, match="row 0 begins with 1 tokens"):
        lens(torch.tensor([[end, 5, 6, 7], [1, 5, 6, 7]]))
    both_end = torch.tensor([[1, 5, end], [1, 6, end]])
    assert bool(lens(both_end).isfinite().all())
    close(lens(torch.tensor([[1, 5, 6], [1, 5, end]]), lengths=[3, 2])[1, :2], lens([[1, 5]])[0])
    mask = {"input_ids": [[1, 5, 6], [1, 5, end]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
    close(lens(mask)[1, :2], lens([[1, 5]])[0])


MASKS: list[tuple[dict[str, Any], str]] = [
    ({"attention_mask": [[1, 0, 1]]}, "the attention mask of row 0 has a hole"),
    ({"attention_mask": [[0, 0, 0]]}, "prompt 0 is empty"),
    ({"attention_mask": [[1, 1]]}, r"the attention mask has shape \[1, 2\], but the tokens have \[1, 3\]"),
    ({"attention_mask": [[1, 2, 1]]}, "holds other numbers than 0 and 1"),
    ({"attention_mask": "yes"}, "the attention mask is 'yes'"),
    ({"position_ids": [[0, 1, 2]]}, "a mapping of input_ids, position_ids was given"),
]


@pytest.mark.parametrize(("more", "message"), MASKS, ids=[message[:30] for _, message in MASKS])
def test_masks_that_say_nothing_are_refused(more: dict[str, Any], message: str) -> None:
    lens = hl.HybridLens(make("jamba"))
    with pytest.raises(InputError, match=message):
        lens({"input_ids": [[1, 2, 3]], **more})
    with pytest.raises(InputError, match="lengths were given beside an attention mask"):
        lens({"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1, 1]])}, lengths=[2])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4))
def test_rows_are_moved_and_put_back(shapes: list[tuple[int, int, int]]) -> None:
    """Any padding on both sides: the text begins at 0, and what is put back is where it was."""
    width = max(map(sum, shapes))
    tokens, real = torch.zeros(len(shapes), width, dtype=torch.long), torch.zeros(len(shapes), width, dtype=torch.bool)
    for row, (left, size, _) in enumerate(shapes):
        tokens[row, left : left + size] = torch.arange(1, size + 1)
        real[row, left : left + size] = True
    laid = moved(tokens, real, "the mask")
    for row, (_, size, _) in enumerate(shapes):
        assert laid.batch.tokens[row, :size].tolist() == list(range(1, size + 1))
        assert laid.batch.lengths is None or int(laid.batch.lengths[row]) == size
    assert torch.equal(laid.as_given(laid.batch.tokens), tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_pos_slice_counts_in_each_rows_own_text(family: str) -> None:
    """-1 is each row's last token; a list, a slice, and what not every row has."""
    lens = lens_with(family, pad="<pad>")
    texts = [LONG, SHORT]
    for wanted, places in ((-1, [-1]), ([0, -2], [0, -2]), ((-2, None), [-2, -1]), ((0, 2), [0, 1])):
        _, cache = lens.run_with_cache(texts, pos_slice=wanted)
        for row, text in enumerate(texts):
            _, alone = lens.run_with_cache(text)
            close(cache["resid_post", 2][row], alone["resid_post", 2][0, places])
    for wanted in (5, (0, 5), -4):
        with pytest.raises(InputError, match=r"pos_slice .* given, but a row has|holds 5 positions of row 0"):
            lens.run_with_cache(texts, pos_slice=wanted)
    with pytest.raises(InputError, match=r"pos_slice \[9\] given, but a row has the positions 0..2"):
        lens.run_with_cache(SHORT, pos_slice=9)


def test_one_bos_for_every_way_in() -> None:
    """A text that a chat template began with its BOS; two of them moved the last logits by 1.8."""
    tokenizer = copy.deepcopy(unigram())
    tokenizer.add_tokens(["<|user|>", "<|end|>", "<|assistant|>"], special_tokens=True)
    lens = hl.HybridLens(make("jamba", vocab_size=len(tokenizer)), tokenizer)
    bos = tokenizer.bos_token_id
    plain = lens.to_tokens(LONG)
    assert plain[0].tolist().count(bos) == 1
    for template in (CHAT, CHAT.replace("{{ bos_token }}", "")):
        tokenizer.chat_template = template
        chat = tokenizer.apply_chat_template([{"role": "user", "content": LONG}], tokenize=False)
        tokens = lens.to_tokens(chat)
        assert tokens[0, 0] == bos
        assert tokens[0].tolist().count(bos) == 1
        assert torch.equal(lens(chat), lens(tokens))
        assert lens.to_str_tokens(chat)[0] == "<s>"
        assert lens.generate([chat], 3).tokens.tolist() == lens.generate(tokens, 3).tokens.tolist()
        prompt = niah.grid(tokenizer, [400], [50], template="instruct")[0]
        assert (prompt.tokens[0], prompt.tokens.count(bos)) == (bos, 1)
        assert lens.batch(prompt.text[:300]).tokens[0, 0] == bos
        assert tuple(tokenizer(prompt.text, add_special_tokens=prompt.add_special_tokens)["input_ids"]) == prompt.tokens
        if prompt.add_special_tokens:  # otherwise a tokenizer that adds its own would have made two
            assert lens.tokenizer(prompt.text)["input_ids"] == list(prompt.tokens)


def test_ids_of_numpy_and_torch_are_ids() -> None:
    lens = hl.HybridLens(make("jamba"), word_level())
    right = lens.batch([[3, 4, 5]]).tokens
    rows = np.array([3, 4, 5])
    for form in (rows, rows.astype(np.uint8), rows[::-1][::-1], list(rows), list(torch.tensor([3, 4, 5])), [rows]):
        assert torch.equal(lens.batch(form).tokens, right)
    assert lens.batch([rows, [3]]).tokens.shape == (2, 3)
    given = lens.laid_out(torch.ones(2, 3).long(), np.array([3, 2]))  # the door takes what annotations do not say
    assert torch.equal(given.batch.lengths, torch.tensor([3, 2]))
    assert lens.to_str_tokens(rows) == lens.to_str_tokens([3, 4, 5])
    assert lens.to_string(np.array([[3, 4], [5, 6]])) == [lens.to_string([3, 4]), lens.to_string([5, 6])]
    assert lens.to_string(3) == lens.to_string(np.int64(3)) == lens.to_string([3])


def test_text_that_the_tokenizer_cannot_read_is_said() -> None:
    lens = hl.HybridLens(make("jamba", vocab_size=len(word_level())), word_level())
    with pytest.raises(InputError, match=r"text 'a \\ud800' is no valid Unicode"):
        lens("a \ud800")
    with pytest.raises(InputError, match=r"' Zyzzyva' is unknown to the tokenizer, which reads \[UNK\]"):
        lens.to_single_token(" Zyzzyva")
    assert lens.to_single_token("[UNK]") == 0
    for wrong in (725, -1, 10**30):
        with pytest.raises(InputError, match=rf"token {wrong} is outside the vocabulary"):
            lens.to_string([wrong])


def test_a_batch_is_still_two_things() -> None:
    """Other modules unpack it."""
    tokens, lengths = hl.HybridLens(make("jamba")).batch([[1, 2], [3]])
    assert isinstance(TokenBatch(tokens, lengths), tuple)
    assert lengths is not None
    assert lengths.tolist() == [2, 1]
