"""One prompt, and how its text is put together.

`Frame` holds everything about a grid of prompts but the context: tokenizer, needle, template, JRT. It
turns a context into the prompt's text and knows where in that text the context stands, so that the
needle's characters, and through the tokenizer's offsets its tokens, follow from where the needle was put.

How it fails: a chat template that rewrites the message (beyond stripping its ends) hides where the
context went; that is refused, as is one that fails.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

from hybridlens.boundary_words import Among
from hybridlens.display import Displayed, Piece, Several, Words, listed, many
from hybridlens.display.markup import Plain
from hybridlens.errors import InputError
from hybridlens.niah.encoding import Encoding, Tokenizer, encode, token_span
from hybridlens.niah.needles import Needle
from hybridlens.niah.templates import (
    AGAIN,
    CONTEXT_OPENING,
    QUESTION_BRIDGE,
    TEMPLATES,
    Template,
    TemplateName,
    on_a_fixed_day,
)

Semantics = Literal["clean", "published"]
SEMANTICS: tuple[Semantics, ...] = ("clean", "published")
"""The builders by name."""

SemanticsLike: TypeAlias = Annotated[str, Among(SEMANTICS)]
"""A builder's name, as a user writes it."""

Span = tuple[int, int]
"""A half-open range: of characters in a text, or of tokens in a prompt."""


@dataclass(frozen=True)
class Prompt(Displayed):
    """One cell's prompt.

    `tokens` is a tuple, not a tensor: prompts can then be compared, hashed and stored, and this package
    needs no torch; ``torch.tensor([p.tokens for p in prompts])`` batches prompts of one length.

    Attributes:
        text: what the tokenizer turned into `tokens`, chat markup included, BOS left to the tokenizer.
        tokens: token ids, with the special tokens that the tokenizer adds.
        length: the requested number of tokens; with clean semantics exactly ``len(tokens)``.
        depth: where the needle is, 0 (start of the context) to 100 (its end), in percent; None in a control.
        needle_span: the needle's tokens as a half-open range (with JRT those of the first reading), None
            in a control. Published semantics: one too low, as in the authors' code.
        needle_spans: one range per reading of the context: one, two with JRT, none in a control.
        template: "base", "unspaced" or "instruct".
        jrt: whether context and question stand twice.
        semantics: which builder made it.
        add_special_tokens: how `text` is to be tokenised again: False when a chat template has written
            the special tokens into it.
    """

    text: str
    tokens: tuple[int, ...]
    length: int
    depth: int | None
    needle_span: Span | None
    needle_spans: tuple[Span, ...]
    template: TemplateName
    jrt: bool
    semantics: Semantics
    add_special_tokens: bool

    @property
    def control(self) -> bool:
        """True where the needle was left out."""
        return not self.needle_spans

    @property
    def hash(self) -> str:
        """SHA-256, in hexadecimal, of text, token ids, needle spans, template, JRT and semantics."""
        parts = [self.text, self.tokens, self.needle_spans, self.template, self.jrt, self.semantics]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def summary(self) -> str:
        """Its length, where the needle is, and how it was made."""
        spans = " and ".join(f"{start} to {end - 1}" for start, end in self.needle_spans)
        where = "no needle (a control)" if self.control else f"needle at {self.depth} %, tokens {spans}"
        jrt = ", read twice (JRT)" if self.jrt else ""
        return f"{many(len(self.tokens), 'token')}, {where}; template {self.template}, {self.semantics}{jrt}"

    def row(self) -> dict[str, Plain]:
        """Its length, where the needle is, how it was made, and its text."""
        first, end = self.needle_span or (None, None)
        return {
            "tokens": len(self.tokens),
            "length": self.length,
            "depth": self.depth,
            "needle from": first,
            "needle to": None if end is None else end - 1,
            "template": self.template,
            "jrt": self.jrt,
            "semantics": self.semantics,
            "hash": self.hash[:12],
            "text": self.text,
        }

    def view(self) -> tuple[Piece, ...]:
        """Its text: both ends of a long one."""
        return (Words(self.text, literal=True),)


class Prompts(Several[Prompt]):
    """A list of prompts that shows itself as a table."""

    def summary(self) -> str:
        """How many, of which lengths, and where their needles are."""
        lengths = sorted({prompt.length for prompt in self})
        depths = sorted({prompt.depth for prompt in self if prompt.depth is not None})
        controls = sum(prompt.control for prompt in self)
        parts = [f"{many(len(self), 'prompt')}", f"lengths {listed(lengths, 10)} tokens" if lengths else ""]
        parts += [
            f"depths {listed(depths, 10)} %" if depths else "",
            f"{controls} without a needle" if controls else "",
        ]
        return "; ".join(part for part in parts if part)


class Body(NamedTuple):
    """A rendered prompt: its text, and at which characters each reading of the context begins."""

    text: str
    context_starts: tuple[int, ...]


class Draft(NamedTuple):
    """A rendered prompt and its tokens, which are made once and counted before they are kept."""

    body: Body
    encoding: Encoding

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self.encoding.ids)


@dataclass(frozen=True)
class Frame:
    """Everything that the prompts of one grid share.

    Attributes:
        tokenizer: a fast tokenizer.
        needle: what is hidden and asked for.
        template: how it is asked.
        jrt: whether context and question are read twice.
    """

    tokenizer: Tokenizer
    needle: Needle
    template: Template
    jrt: bool

    @property
    def chat(self) -> bool:
        """True when prompts go through the tokenizer's chat template."""
        return self.template.chat and bool(self.tokenizer.chat_template)

    @property
    def readings(self) -> int:
        """How often context and question stand in a prompt: 2 with JRT, else 1."""
        return 2 if self.jrt else 1

    def render(self, contexts: Sequence[str]) -> Body:
        """The prompt's text around `contexts`, one for each reading."""
        text, starts = "", list[int]()
        for index, context in enumerate(contexts):
            text += (AGAIN if index else "") + CONTEXT_OPENING
            starts.append(len(text))
            text += f"{context}{QUESTION_BRIDGE}{self.needle.question}"
        text += self.template.closing
        if not self.chat:
            return Body(text, tuple(starts))
        fixed = on_a_fixed_day(self.tokenizer.chat_template)
        message = [{"role": "user", "content": text}]
        try:
            chat = str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **fixed))
        except Exception as error:  # a template is a program, and may raise anything
            raise InputError(
                f"the tokenizer's chat template fails on a user's message ({' '.join(str(error).split())[:200]}); set "
                "tokenizer.chat_template to one that works, or use template 'base'"
            ) from error
        if chat.count(text) != 1:
            raise InputError(
                "the tokenizer's chat template changes or repeats the user's message, so the needle can not "
                "be placed; expected the message once and unchanged: use template 'base'"
            )
        return Body(chat, tuple(start + chat.index(text) for start in starts))

    def special(self, body: Body) -> bool:
        """Whether the tokenizer is to add its special tokens: not where a chat template has written a BOS."""
        bos = self.tokenizer.special_tokens_map.get("bos_token")
        return not self.chat or (bos is not None and str(bos) not in body.text[: body.context_starts[0]])

    def encode(self, body: Body) -> Encoding:
        """The prompt's tokens, with one BOS where the tokenizer has one."""
        return encode(self.tokenizer, body.text, special=self.special(body))

    def draft(self, contexts: Sequence[str]) -> Draft:
        """The prompt around `contexts`, one for each reading, and its tokens."""
        body = self.render(contexts)
        return Draft(body, self.encode(body))

    def count(self, contexts: Sequence[str]) -> int:
        """How many tokens the prompt around `contexts` has."""
        return self.draft(contexts).length

    def prompt(
        self,
        draft: Draft,
        needles: Sequence[Span],
        length: int,
        depth: int | None,
        semantics: Semantics,
    ) -> Prompt:
        """A draft with its needle found.

        Args:
            draft: around the haystack with the needle in it.
            needles: the needle's characters in each context; none in a control.
            length: the requested number of tokens, kept as it is.
            depth: the requested depth in percent, kept as it is.
            semantics: "published" lowers the spans by one.
        """
        body, encoding = draft
        shift = 1 if semantics == "published" else 0
        spans: list[Span] = []
        for at, (first, last) in zip(body.context_starts, needles, strict=False):
            start, end = token_span(encoding, at + first, at + last)
            spans.append((start - shift, end - shift))
        return Prompt(
            text=body.text,
            tokens=encoding.ids,
            length=length,
            depth=depth,
            needle_span=spans[0] if spans else None,
            needle_spans=tuple(spans),
            template=self.template.name,
            jrt=self.jrt,
            semantics=semantics,
            add_special_tokens=self.special(body),
        )


def make_frame(tokenizer: Tokenizer, needle: Needle, template: str, jrt: bool) -> Frame:
    """A `Frame`, with the template given by name."""
    return Frame(tokenizer, needle, TEMPLATES[template], jrt)
