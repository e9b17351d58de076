"""The prompt templates of the paper's benchmark, as data.

A prompt is ``opening + context + bridge + question + closing``; with JRT ("just read twice") context and
question come twice before the closing. Base models get a closing that they only have to continue;
instruction-tuned ones get an order, and their prompt goes through the tokenizer's chat template when it
has one (which then wraps the whole of it as one user message and opens the assistant's turn).

How it fails: an instruct template on a tokenizer without a chat template is the bare text, which a chat
model may not answer as intended; `Prompt.text` always shows what was really fed.

Source: appendix B.1 of the paper (arXiv 2510.19861).
"""

from typing import Annotated, Literal, NamedTuple, TypeAlias

from hybridlens.boundary_words import Among

TemplateName = Literal["base", "instruct"]

CONTEXT_OPENING = "CONTEXT: "
QUESTION_BRIDGE = "\n\nQUESTION: "
BASE_CLOSING = "\n\nANSWER: Here is the most relevant sentence in the context: "
INSTRUCT_CLOSING = " Output the most relevant sentence in the context, word by word!"
AGAIN = "\n\n"
"""What stands between the two readings of a JRT prompt."""


class Template(NamedTuple):
    """One way to ask: what closes the prompt, and whether a chat template wraps it."""

    name: TemplateName
    closing: str
    chat: bool


TEMPLATES: dict[str, Template] = {
    "base": Template("base", BASE_CLOSING, chat=False),
    "instruct": Template("instruct", INSTRUCT_CLOSING, chat=True),
}
"""The templates by name."""

TemplateLike: TypeAlias = Annotated[str, Among(tuple(TEMPLATES))]
"""A template's name, as a user writes it."""
