"""Tokenizers made on the spot, one of each kind that real models have, for the tests of `niah`."""

import re
from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hybridlens import niah

TEMPLATE_WORDS = [
    word
    for template in niah.TEMPLATES.values()
    for word in re.findall(r"\w+|[^\w\s]", f"CONTEXT: QUESTION: {template.closing}")
]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] | trim }} <|end|> "
    "{% endfor %}<|assistant|>"
)


def training_text() -> list[str]:
    """Essays, the needle and the template."""
    return [niah.essays(1, 400).text, niah.PAPER_SENTENCE, niah.PAPER_QUESTION, " ".join(TEMPLATE_WORDS)]


@cache
def word_level(more: str = "") -> PreTrainedTokenizerFast:
    """A closed vocabulary of words, with BOS, as the tiny models' is; `more` holds further words that it knows."""
    known = f"{niah.PAPER_SENTENCE}{niah.PAPER_QUESTION} {more}"
    words = [*niah.vocabulary(), *re.findall(r"\w+|[^\w\s]", known)]
    names = dict.fromkeys(["[UNK]", "<bos>", "<eos>", *words, *TEMPLATE_WORDS, ","])
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="<bos>", eos_token="<eos>")


@cache
def byte_bpe(merges: int = 600, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE (tokens that begin with a space), no BOS and no unknown token, as GPT's is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(training_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def unigram() -> PreTrainedTokenizerFast:
    """A SentencePiece-like unigram model with the metaspace mark, as Gemma's and Jamba's are, with BOS."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500, unk_token="<unk>", special_tokens=["<unk>", "<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "word": word_level,
    "bpe": byte_bpe,
    "bpe-trimmed": lambda: byte_bpe(merges=40, trim_offsets=True),
    "unigram": unigram,
}
