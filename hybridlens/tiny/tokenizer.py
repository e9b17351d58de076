"""The word-level tokenizer of the tiny models.

Mechanism: text is cut into words, digits, punctuation marks and line breaks; every one is a token of its own,
the same wherever it stands, so a needle has the same tokens at the start of a text and in the middle. The
spaces between are not tokens (the decoder puts them back: one before every word, none before punctuation or
after a line break), except a single space at the very end of a text, which the paper's base template has
and which the models know as "now the answer comes". Offsets are those of the characters themselves.

How it fails: a word outside the vocabulary becomes ``<unk>`` and cannot be told from another; text with
double spaces, quotation marks or brackets decodes with other spacing than it came with.
"""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hybridlens.niah.essays import vocabulary
from hybridlens.tiny.facts import vocabulary_of_facts

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3

SPECIAL: tuple[str, ...] = ("<pad>", "<bos>", "<eos>", "<unk>")
"""The special tokens, in the order of their ids."""

MARKS: tuple[str, ...] = ("\n\n", "\n", " ", *".,?!:;'\"()-", *"0123456789")
"""Line breaks, the space at the end of a text, punctuation and digits."""

_PIECES = r"\p{L}+(?:['’-]\p{L}+)*|[0-9]|\n\n|\n|[^\s\p{L}0-9]| \z"
_WORD_START = r"^(?=[\p{L}0-9<])"


def words() -> tuple[str, ...]:
    """Every word the tokenizer knows, sorted: those of filler, facts, questions and templates."""
    return tuple(sorted(frozenset(vocabulary()) | vocabulary_of_facts()))


def backend(known: Sequence[str]) -> Tokenizer:
    """The tokenizer proper over `known` words, adding ``<bos>`` in front of every text."""
    entries = (*SPECIAL, *MARKS, *known)
    tokenizer = Tokenizer(models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS_ID)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(_WORD_START), " "),
            decoders.Fuse(),
            decoders.Replace("\n ", "\n"),
            decoders.Replace("  ", " "),
            decoders.Replace(Regex(r"\A "), ""),
        ]
    )
    return tokenizer


def build_tokenizer(model_max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a tiny model as a Hugging Face fast tokenizer.

    Args:
        model_max_length: longest prompt the model is meant for, in tokens.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=backend(words()),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
