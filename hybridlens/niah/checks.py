"""What a tokenizer can do to a prompt unseen: special tokens in its text, a lost BOS, a needle in other letters.

A text may hold what the tokenizer takes for a special token ("</s>" in a web page): the model then sees an end of
text in the middle of its context. A normaliser may rewrite the needle ("№" to "No"), or a decoder part its words, so
that an answer word by word gets no full score. And a tokenizer may leave out the BOS with which the chat template of
the same model begins. What makes the question senseless is refused; the rest is said in a warning.

How it fails: a BOS that is missing is noticed only by a chat template that writes it; a tokenizer without one may
rightly have no BOS. Special tokens are those that the tokenizer calls so, which leaves out markup like "<table>" that
some have as ordinary tokens.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hybridlens.errors import InputError
from hybridlens.niah.encoding import Tokenizer, encode, unknown_words
from hybridlens.niah.needles import Needle
from hybridlens.niah.prompt import Frame, Prompt
from hybridlens.niah.rubric import score


def special_ids(tokenizer: Tokenizer) -> dict[int, str]:
    """Ids of the tokens that stand for no text (BOS, an end of turn, padding), and their names.

    The unknown token, which stands for a text, is not among them.
    """
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    unknown = str(tokenizer.special_tokens_map.get("unk_token"))
    return {index: str(token) for index, token in added.items() if token.special and str(token) != unknown}


def check_plain(tokenizer: Tokenizer, needle: Needle) -> None:
    """Refuse a needle or question in which the tokenizer reads a special token.

    Raises:
        InputError: one line that names the token.
    """
    special = special_ids(tokenizer)
    for what, text in (("sentence", needle.sentence), ("question", needle.question)):
        found = next((special[i] for i in encode(tokenizer, text, special=False).ids if i in special), None)
        if found is not None:
            raise InputError(
                f"needle {needle.name!r}: its {what} {text!r} holds {found!r}, which the tokenizer reads as a special "
                "token and not as text; expected plain text: write it without"
            )


def warn_unscored(tokenizer: Tokenizer, needle: Needle) -> None:
    """Warn when the needle, word by word as this tokenizer writes it, gets fewer points than its sentence.

    Of words that the tokenizer does not know `encoding.warn_unknown` speaks.
    """
    said = str(tokenizer.decode(list(encode(tokenizer, needle.sentence, special=False).ids)))
    points, full = score(said, needle.rubric), score(needle.sentence, needle.rubric)
    if points < full and not unknown_words(tokenizer, [needle.sentence]):
        warnings.warn(
            f"the tokenizer writes the needle {needle.sentence!r} as {said!r}, which scores {points:g} of "
            f"{full:g}, so no answer can get every point; write the needle in characters that it keeps",
            stacklevel=4,
        )


def warn_without_bos(frame: Frame) -> None:
    """Warn when prompts have no BOS, though the same tokenizer's chat template writes one."""
    tokenizer, bos = frame.tokenizer, frame.tokenizer.special_tokens_map.get("bos_token")
    template = str(tokenizer.chat_template or "")
    if frame.chat or bos is None or ("bos_token" not in template and str(bos) not in template):
        return
    if tokenizer.convert_tokens_to_ids(str(bos)) not in frame.draft([""] * frame.readings).encoding.ids:
        warnings.warn(
            f"prompts have no BOS: the tokenizer's chat template writes {str(bos)!r}, but it puts none before other "
            "texts; if the model was trained with one, set tokenizer.add_bos_token = True",
            stacklevel=4,
        )


def warn_special(frame: Frame, prompts: Sequence[Prompt], haystack: str) -> None:
    """Warn when prompts hold special tokens that are not of their frame, and so of the haystack.

    Args:
        frame: what surrounds the contexts, whose own special tokens are in order.
        prompts: all of one grid.
        haystack: its name.
    """
    special = special_ids(frame.tokenizer)
    own = Counter(i for i in frame.draft([""] * frame.readings).encoding.ids if i in special)
    found, holding = Counter[str](), 0
    for prompt in prompts:
        more = Counter(i for i in prompt.tokens if i in special) - own
        found.update({special[i]: n for i, n in more.items()})
        holding += bool(more)
    if found:
        named = ", ".join(repr(token) for token, _ in found.most_common(5))
        warnings.warn(
            f"haystack {haystack!r} holds {named}, which the tokenizer reads as special tokens and not as text, in "
            f"{holding} of {len(prompts)} prompts; take them out of its texts",
            stacklevel=4,
        )
