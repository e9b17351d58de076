"""The prompt templates of the paper's benchmark, as data.

A prompt is ``opening + context + bridge + question + closing``; with JRT ("just read twice") context and
question come twice before the closing. Base models get a closing that they only have to continue;
instruction-tuned ones get an order, and their prompt goes through the tokenizer's chat template when it
has one (which then wraps the whole of it as one user message and opens the assistant's turn).

The paper's closing for base models ends in a space. Tokenizers that put the space before a word into the word
(Gemma's, Llama's) make a token of it that is rare in text, behind which a model may go on otherwise: Gemma 3 270M tells
the needle of 9 prompts in 4 with it and in 8 without (`tests.benchmarks.real_model`). "unspaced" is "base" without it.

Some chat templates write the date of the day into every prompt; here it is always `DAY`, so that a grid is the
same tomorrow, and a run that is resumed then goes on with the prompts that it began with.

How it fails: an instruct template on a tokenizer without a chat template is the bare text, which a chat
model may not answer as intended; `Prompt.text` always shows what was really fed. A chat template that asks for the
day in a format that it does not spell out is refused.

Source: appendix B.1 of the paper (arXiv 2510.19861).
"""

import re
from datetime import date
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from hybridlens.boundary_words import Among
from hybridlens.errors import InputError

TemplateName = Literal["base", "unspaced", "instruct"]

CONTEXT_OPENING = "CONTEXT: "
QUESTION_BRIDGE = "\n\nQUESTION: "
BASE_CLOSING = "\n\nANSWER: Here is the most relevant sentence in the context: "
INSTRUCT_CLOSING = " Output the most relevant sentence in the context, word by word!"
AGAIN = "\n\n"
"""What stands between the two readings of a JRT prompt."""


DAY = date(2025, 10, 1)
"""The day that chat templates are told: of the month in which the paper appeared."""

_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class Template(NamedTuple):
    """One way to ask: what closes the prompt, and whether a chat template wraps it."""

    name: TemplateName
    closing: str
    chat: bool


TEMPLATES: dict[str, Template] = {
    "base": Template("base", BASE_CLOSING, chat=False),
    "unspaced": Template("unspaced", BASE_CLOSING.rstrip(), chat=False),
    "instruct": Template("instruct", INSTRUCT_CLOSING, chat=True),
}
"""The templates by name."""

TemplateLike: TypeAlias = Annotated[str, Among(tuple(TEMPLATES))]
"""A template's name, as a user writes it."""


def on_a_fixed_day(chat_template: Any) -> dict[str, str]:
    """What `apply_chat_template` takes so that no prompt depends on the day; nothing for a template without a date.

    Args:
        chat_template: a tokenizer's; of several by name, the one called "default" is used.

    Raises:
        InputError: it asks for the day in a format that is not a literal.
    """
    text = chat_template.get("default") if isinstance(chat_template, dict) else chat_template
    if not isinstance(text, str) or "strftime_now(" not in text:
        return {}
    fixed = _TODAY.sub(lambda found: repr(DAY.strftime(found[2])), text)
    if "strftime_now(" in fixed:
        raise InputError(
            "the tokenizer's chat template writes the date of the day in a format of its own, so prompts would change "
            "every day; set tokenizer.chat_template to one with a fixed date, or use template 'base'"
        )
    return {"chat_template": fixed}
