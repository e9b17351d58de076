"""Tokens as TransformerLens' users ask for them, on an embedded model whose tokenizer puts a BOS before every text."""

import pytest
import torch
from bounds import EMBEDDED, close
from transformer_lens.utilities.exploratory_utils import test_prompt as their_test_prompt

import hybridlens as hl
from hybridlens.errors import InputError, UnknownNameError

their_test_prompt.__test__ = False

WORDS = "The cat is in the tower"


@pytest.fixture(scope="module")
def lens():
    return hl.load("tiny-jamba")


def test_a_bos_when_it_is_asked_for(lens):
    bos = lens.tokenizer.bos_token_id
    own = lens.to_tokens(WORDS)[0].tolist()
    assert own[0] == bos != own[1]
    assert lens.to_tokens(WORDS, prepend_bos=True)[0].tolist() == own
    assert lens.to_tokens(WORDS, prepend_bos=False)[0].tolist() == own[1:]
    assert lens.to_tokens("<bos>" + WORDS)[0].tolist() == own
    assert lens.to_tokens("<bos>" + WORDS, prepend_bos=False)[0].tolist() == own  # the text's own
    assert lens.batch([WORDS, "The"], prepend_bos=False).lengths.tolist() == [6, 1]
    assert lens.cfg.default_prepend_bos is lens.cfg.tokenizer_prepends_bos is True


def test_a_bos_of_a_tokenizer_that_adds_none(lens):
    """GPT-2's way: there is a BOS, and texts get none of themselves."""

    class Plain:
        bos_token_id, unk_token_id, pad_token_id = 1, None, 0

        def __call__(self, text, **options):
            return {"input_ids": [len(word) + 5 for word in text.split()]}

    other = hl.HybridLens(lens.hf_model, Plain())
    assert other.to_tokens("a bb").tolist() == [[6, 7]]
    assert other.to_tokens("a bb", prepend_bos=True).tolist() == [[1, 6, 7]]
    assert other.to_tokens("a bb", prepend_bos=False).tolist() == [[6, 7]]
    assert other.cfg.default_prepend_bos is False
    Plain.bos_token_id = None
    with pytest.raises(InputError, match="the tokenizer has no BOS"):
        other.to_tokens("a bb", prepend_bos=True)


def test_padding_on_either_side(lens):
    """Rows padded on the left are the rows padded on the right moved; what a row computes stays what it was."""
    texts = [WORDS, "The cat"]
    right, left = lens.to_tokens(texts), lens.to_tokens(texts, padding_side="left")
    pad = lens.tokenizer.pad_token_id
    assert right[1].tolist() == lens.to_tokens(texts[1])[0].tolist() + [pad] * 4
    assert left[1].tolist() == [pad] * 4 + lens.to_tokens(texts[1])[0].tolist()
    assert torch.equal(left[0], right[0])
    with torch.no_grad():
        close(lens(left)[1, 4:], lens(right)[1, :3], EMBEDDED)
    with pytest.raises(UnknownNameError, match="expected one of left, right"):
        lens.to_tokens(texts, padding_side="middle")
    assert lens.to_tokens(texts, move_to_device=False).device.type == "cpu"


def test_too_long_is_cut_when_asked(lens):
    words = " ".join(["the"] * (lens.cfg.n_ctx + 7))
    with pytest.raises(InputError, match="the model's context is"):
        lens.to_tokens(words)
    cut = lens.to_tokens(words, truncate=True)
    assert cut.shape == (1, lens.cfg.n_ctx)
    assert cut[0, 0] == lens.tokenizer.bos_token_id


def test_tokens_as_text(lens):
    assert lens.to_str_tokens("The cat") == ["<bos>", "The", "cat"]
    assert lens.to_str_tokens("The cat", prepend_bos=False) == ["The", "cat"]
    assert lens.to_str_tokens(["The cat", "The"]) == [["<bos>", "The", "cat"], ["<bos>", "The"]]
    assert lens.to_str_tokens(["The cat"]) == [["<bos>", "The", "cat"]]
    ids = lens.to_tokens("The cat")
    assert lens.to_str_tokens(ids) == lens.to_str_tokens(ids[0]) == lens.to_str_tokens(ids[0].tolist())
    assert lens.to_str_tokens(ids.expand(2, -1)) == [["<bos>", "The", "cat"]] * 2
    cat = lens.to_single_token("cat")
    assert lens.to_single_str_token(cat) == "cat"
    with pytest.raises(InputError, match="outside the vocabulary"):
        lens.to_single_str_token(lens.cfg.d_vocab)
    with pytest.raises(InputError, match="is unknown to the tokenizer"):
        lens.to_single_token("Zyzzyva")


def test_where_a_token_stands(lens):
    text = "the cat is in the tower"
    the = lens.to_single_token("the")
    assert lens.get_token_position("the", text) == 1
    assert lens.get_token_position("the", text, mode="last") == 5
    assert lens.get_token_position(the, text, mode="last", prepend_bos=False) == 4
    assert lens.get_token_position(torch.tensor(the), lens.to_tokens(text)[0]) == 1
    assert lens.get_token_position(the, lens.to_tokens(text), mode="last") == 5
    with pytest.raises(InputError, match="'river' does not occur in the 7 tokens"):
        lens.get_token_position("river", text)
    with pytest.raises(UnknownNameError, match="expected one of first, last"):
        lens.get_token_position("the", text, mode="middle")
    with pytest.raises(InputError, match="2 rows were given"):
        lens.get_token_position("the", lens.to_tokens(text).expand(2, -1))


def test_a_prompts_answer(lens, capsys):
    """Ranks, logits and probabilities are the run's; TransformerLens' own function prints the same ranks."""
    found = lens.test_prompt("the cat is in the", "tower river", top_k=3)
    printed = capsys.readouterr().out
    assert "Tokenized prompt: ['<bos>', 'the', 'cat'" in printed
    assert len(found.steps) == 2
    ids = lens.to_tokens("the cat is in the tower river")
    with torch.no_grad():
        logits = lens(ids)[0]
    for place, (step, word) in enumerate(zip(found.steps, ("tower", "river"), strict=True)):
        row = logits[5 + place]
        token = lens.to_single_token(word)
        (answer,) = step.answers
        assert answer.token == word
        assert answer.rank == int((row > row[token]).sum())
        close(answer.logit, float(row[token]), EMBEDDED, dtype=torch.float32, scale=float(row.abs().max()))
        close(answer.prob, float(row.softmax(-1)[token]), EMBEDDED, dtype=torch.float32, scale=float(row.abs().max()))
        assert [one.rank for one in step.top] == [0, 1, 2]
        assert step.top[0].token == lens.to_string(row.argmax()[None])
    several = lens.test_prompt("the cat is in the", ["tower", "river"], print_details=False)
    assert [token for token, _ in several.ranks[0]] == ["tower", "river"]
    assert several.ranks[0][0] == found.ranks[0][0]
    assert capsys.readouterr().out == ""
    table = found.to_pandas()
    assert table[table.kind == "answer"]["rank"].tolist() == [step[0][1] for step in found.ranks]
    assert repr(found).startswith("<PromptTest: ranks [[('tower', ")
    assert "tower" in found._repr_html_()
    their_test_prompt("the cat is in the", "tower river", lens, top_k=1)
    assert str([token_rank[0] for token_rank in found.ranks]) in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(InputError, match="unknown to the tokenizer"):
        lens.test_prompt("the cat", "Zyzzyva")
