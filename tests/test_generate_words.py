"""`generate` in TransformerLens' words, and from states: beside our own call, and TransformerLens' own sampling."""

import pytest
import torch
from models import make, tokens
from transformer_lens.utilities.logits_utils import sample_logits

import hybridlens as hl
from hybridlens import HybridLens, HybridLensError, Sampling

PROMPTS = ["What is the best thing to do in Lima?", "What is it?"]


@pytest.fixture(scope="module")
def lens() -> HybridLens:
    return HybridLens(make("recurrentgemma", 3))


@pytest.fixture(scope="module")
def speaking() -> HybridLens:
    return hl.load("tiny-recurrentgemma")


def test_a_frequency_penalty_is_transformer_lens_own(lens):
    """Its `sample_logits` with one candidate is no draw: the same tokens, over full passes of its own."""
    rows = [tokens(1, n, seed=n)[0].tolist() for n in (7, 4)]
    how = {"temperature": 0.5, "top_k": 1, "freq_penalty": 30.0}
    ours = lens.generate(rows, 12, stop_at_eos=False, **how)
    free = lens.generate(rows, 12, stop_at_eos=False)
    for row, said in zip(rows, ours.tokens.tolist(), strict=True):
        read = list(row)
        with torch.no_grad():
            for _ in said:
                logits = lens([read])[:, -1].clone()
                read.append(int(sample_logits(logits, tokens=torch.tensor([read]), **how)))
        assert said == read[len(row) :]
    assert not torch.equal(ours.tokens, free.tokens)


def test_words_and_sampling_say_the_same(lens):
    ids = tokens(2, 6)
    said = lens.generate(ids, 8, sampling=Sampling(3, 0.8, 9, 0.9)).tokens
    assert torch.equal(lens.generate(ids, 8, temperature=0.8, top_k=9, top_p=0.9, seed=3).tokens, said)
    likeliest = lens.generate(ids, 8).tokens
    for words in ({"do_sample": False}, {"temperature": 0}, {"do_sample": False, "temperature": 1.0, "top_p": 1.0}):
        assert torch.equal(lens.generate(ids, 8, **words).tokens, likeliest)
    torch.manual_seed(0)
    drawn = lens.generate(ids, 8, do_sample=True).tokens
    again = lens.generate(ids, 8, do_sample=True).tokens
    torch.manual_seed(0)
    assert torch.equal(lens.generate(ids, 8, temperature=1.0).tokens, drawn)
    assert not torch.equal(again, drawn)  # 16 draws of 53 tokens


def test_what_is_returned(speaking):
    """Prompt and answer, as text and as tokens, of one prompt and of two of different lengths."""
    made = speaking.generate(PROMPTS, 6)
    rows = [speaking.to_tokens(text)[0].tolist() for text in PROMPTS]
    ids = speaking.generate(PROMPTS, 6, return_type="tokens")
    width = max(map(len, rows))
    for prompt, row, new in zip(rows, ids.tolist(), made.tokens.tolist(), strict=True):
        assert row[width - len(prompt) :] == prompt + new
    texts = speaking.generate(PROMPTS, 6, return_type="str")
    skip = {"skip_special_tokens": True}
    assert texts == [speaking.tokenizer.decode(p + n, **skip) for p, n in zip(rows, made.tokens.tolist(), strict=True)]
    assert speaking.generate(PROMPTS, 6, return_type="input", padding_side="left") == texts
    assert speaking.generate(input=PROMPTS[0], max_new_tokens=6, return_type="input") == texts[0]
    assert torch.equal(speaking.generate(torch.tensor([rows[0]]), 6, return_type="input"), ids[:1])


def test_an_end_of_ones_own_and_no_bos(speaking):
    free = speaking.generate(PROMPTS[0], 6)
    end = int(free.tokens[0, 2])
    assert speaking.generate(PROMPTS[0], 6, eos_token_id=[end]).tokens.tolist() == free.tokens[:, :3].tolist()
    bare = speaking.generate(PROMPTS[0], 6, prepend_bos=False, return_type="tokens")
    begun = speaking.generate(PROMPTS[0], 6, prepend_bos=True, return_type="tokens")
    bos, text = speaking.tokenizer.bos_token_id, speaking.to_tokens(PROMPTS[0])[0].tolist()
    text = text[1:] if text[0] == bos else text
    assert bare[0, : len(text)].tolist() == text
    assert begun[0, : len(text) + 1].tolist() == [bos, *text]
    twice = speaking.generate(speaking.tokenizer.bos_token + PROMPTS[0], 6, prepend_bos=True, return_type="tokens")
    assert torch.equal(twice, begun)


def test_generating_goes_on_from_what_was_read(lens):
    """From prefill's logits, from a state and the last token, and from rows of different lengths."""
    rows = [tokens(1, n, seed=n)[0].tolist() for n in (7, 4)]
    made, first = lens.generate(rows, 6), lens.generate(rows, 6, boundary="first_new_token")
    assert torch.equal(lens.generate(lens.prefill(rows), 6).tokens, first.tokens)
    state = lens.prefill([row[:-1] for row in rows]).state
    assert torch.equal(lens.generate([row[-1:] for row in rows], 6, state=state).tokens, made.tokens)
    assert torch.equal(lens.generate(lens.extend(state, [row[-1:] for row in rows]), 6).tokens, made.tokens)


def test_generating_from_an_edited_state(lens):
    """Another prompt's states under the first one's last token: what an `extend` loop over the same state says."""
    ids, other = tokens(1, 7), tokens(1, 6, seed=4)
    state = lens.prefill(other).state
    said, read, token = [], state, ids[:, -1:]
    with torch.no_grad():
        for _ in range(5):
            read, logits = lens.extend(read, token)
            token = logits[:, -1:].argmax(-1)
            said.append(int(token))
    made = lens.generate(ids[:, -1:], 5, state=state, stop_at_eos=False)
    assert made.tokens[0].tolist() == said


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"do_sample": False, "top_k": 3}, "do_sample=False takes the likeliest token, so top_k=3 would do nothing"),
        ({"temperature": 0, "freq_penalty": 1.0}, "so freq_penalty=1.0 would do nothing"),
        ({"sampling": Sampling(1), "temperature": 0.5}, "temperature beside it"),
        ({"freq_penalty": -1.0}, "freq_penalty = -1.0 given"),
        ({"return_type": "text"}, "return_type 'text' does not exist"),
        ({"return_type": "str"}, "has no tokenizer"),
        ({"eos_token_id": 53}, r"eos_token_id 53 is outside the vocabulary, expected 0\.\.52"),
    ],
)
def test_words_that_cannot_be_are_refused(lens, words, match):
    with pytest.raises(HybridLensError, match=match) as caught:
        lens.generate(tokens(1, 4), 2, **words)
    assert "\n" not in str(caught.value)


def test_a_state_alone_and_a_with_block_say_what_to_write(lens):
    read = lens.prefill(tokens(2, 4))
    with pytest.raises(HybridLensError, match=r"lens.generate\(tokens, state=state\)"):
        lens.generate(read.state, 2)
    with pytest.raises(HybridLensError, match="extend with last_only=True"):
        lens.generate(lens.extend(read.state, tokens(2, 3)), 2)
    with (
        pytest.raises(HybridLensError, match=r"`with lens.trace\(prompt, max_new_tokens=...\)"),
        lens.generate(tokens(1, 4), 2),
    ):
        pass
