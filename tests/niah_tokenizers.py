"""Tokenizers made on the spot, one of each kind that real models have, for the tests of `niah`."""

import json
import re
from collections.abc import Callable
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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

GEMMA_CHAT = (
    "{{ bos_token }}\n{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\\n' + m['content'] | trim "
    "+ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
LLAMA2_CHAT = "{% for m in messages %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endfor %}"
LLAMA3_CHAT = (
    "{% set day = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' "
    "+ m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set c = bos_token + 'Today: ' + day + '\\n' + c %}{% endif %}{{ c }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
)


@cache
def sentencepiece(prefix: bool) -> PreTrainedTokenizerFast:
    """SentencePiece BPE that falls back on bytes, with BOS and a chat template.

    Args:
        prefix: whether every text gets a space before it, as Llama 2's and Jamba's do; Gemma's gets none.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    stops = "so . " * 200  # "▁." is a piece, as in Llama 2's: what a "." alone is read as
    trained.train_from_iterator([*training_text(), stops], trainers.BpeTrainer(vocab_size=700, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    special = ["<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    names = dict.fromkeys([*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *model["vocab"]])
    merges = [tuple(pair) for pair in model["merges"]]
    vocab = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces, back = normalizers.Replace(" ", "▁"), decoders.Replace("▁", " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([back, decoders.ByteFallback(), decoders.Fuse(), *strip])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=special[3:],
        chat_template=LLAMA2_CHAT if prefix else GEMMA_CHAT,
    )


@cache
def llama3() -> PreTrainedTokenizerFast:
    """Byte-level BPE behind Llama 3's regular expression, a BOS put there by a template, dated chats."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), level])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*training_text(), "We went.\n\nHome.\n" * 20], trainer)
    begin = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        extra_special_tokens=special[2:],
        chat_template=LLAMA3_CHAT,
    )


PUBLISHED_KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama2": lambda: sentencepiece(prefix=True),
    "gemma": lambda: sentencepiece(prefix=False),
    "llama3": llama3,
}
"""Small ones of the kinds that published models have, with their normalisers, decoders and chat templates."""
