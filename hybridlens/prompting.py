"""How a model takes a prompt: the rank of an answer, token by token, as TransformerLens' `test_prompt` has it.

How it fails: an empty prompt or answer, and text without a tokenizer, raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridlens.boundary import Positive, public
from hybridlens.boundary_words import shown
from hybridlens.display import Displayed, Table, many
from hybridlens.errors import InputError
from hybridlens.text import TokenFront


@dataclass(frozen=True)
class RankedToken:
    """One token among all that might come next."""

    token: str
    rank: int
    """0 for the likeliest."""
    logit: float
    prob: float

    def __str__(self) -> str:
        return f"Rank: {self.rank: <8} Logit: {self.logit:5.2f} Prob: {self.prob:6.2%} Token: |{self.token}|"


@dataclass(frozen=True)
class AnswerStep:
    """What the model expects at one token of the answer, those before it given."""

    answers: tuple[RankedToken, ...]
    """The answer's token; of several answers each one's first."""
    top: tuple[RankedToken, ...]
    """The likeliest tokens, in order."""


@dataclass(frozen=True)
class PromptTest(Displayed):
    """How an answer ranks behind a prompt."""

    prompt: tuple[str, ...]
    """Its tokens."""
    steps: tuple[AnswerStep, ...]
    """One for each token of the answer; one where there are several answers."""

    @property
    def ranks(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """(token, rank) of each answer at each step."""
        return tuple(tuple((one.token, one.rank) for one in step.answers) for step in self.steps)

    def summary(self) -> str:
        """The answer's ranks."""
        return f"ranks {[list(step) for step in self.ranks]} behind {many(len(self.prompt), 'token')}"

    def table(self) -> Table:
        """A row for each token of the answer, and for each that is likelier or shown beside it."""
        rows = [
            (number, kind, one.token, one.rank, one.logit, one.prob)
            for number, step in enumerate(self.steps)
            for kind, tokens in (("answer", step.answers), ("top", step.top))
            for one in tokens
        ]
        meanings = {"step": "token of the answer", "rank": "0 for the likeliest token", "prob": "0 to 1"}
        return Table(("step", "kind", "token", "rank", "logit", "prob"), rows, meanings)

    def __str__(self) -> str:
        lines = [f"Tokenized prompt: {list(self.prompt)}"]
        for step in self.steps:
            lines += [f"Performance on answer token{'s' if len(step.answers) > 1 else ''}:", *map(str, step.answers)]
            lines += [f"Top {place}. {token}" for place, token in enumerate(step.top)]
        return "\n".join([*lines, f"Ranks of the answer tokens: {[list(step) for step in self.ranks]}"])


class PromptFront(TokenFront):
    """Quick looks at prompts; `HybridLens` builds on it."""

    @public
    def test_prompt(
        self,
        prompt: str,
        answer: str | Sequence[str],
        prepend_space_to_answer: bool = True,
        print_details: bool = True,
        prepend_bos: bool | None = None,
        top_k: Positive = 10,
    ) -> PromptTest:
        """Whether the model gives an answer to a prompt: printed, and given back.

        Args:
            prompt: such as "Why did the elephant cross the".
            answer: such as "road", token by token; of several, as a list, the first token of each is compared.
            prepend_space_to_answer: put a space before an answer that begins with none.
            print_details: print what is given back.
            prepend_bos: whether a BOS stands before the prompt; None for the tokenizer's own way.
            top_k: how many of the likeliest tokens are shown.

        Raises:
            InputError: an empty prompt or answer, an answer that the tokenizer does not know, or no tokenizer.
        """
        answers = [answer] if isinstance(answer, str) else list(answer)
        if not answers:
            raise InputError("no answer was given, expected a text or several")
        if prepend_space_to_answer:
            answers = [one if one.startswith(" ") else f" {one}" for one in answers]
        begin = self.to_tokens(prompt, prepend_bos=prepend_bos)[0].tolist()
        tokens = [self.to_tokens(one, prepend_bos=False)[0].tolist() for one in answers]
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        for one, ids in zip(answers, tokens, strict=True):
            if unknown is not None and unknown in ids:
                raise InputError(
                    f"the answer {shown(one)} is unknown to the tokenizer, which reads {self.tokenizer.unk_token} in it"
                )
        wanted = [[ids[0] for ids in tokens]] if len(tokens) > 1 else [[token] for token in tokens[0]]
        laid = self._laid([begin + [step[0] for step in wanted[:-1]]])
        with torch.no_grad():
            logits = laid.blanked(self.network(*laid.batch).logits)[0, len(begin) - 1 :].float()
        steps = tuple(self._step(row, ids, top_k) for row, ids in zip(logits, wanted, strict=True))
        found = PromptTest(tuple(map(self.to_single_str_token, begin)), steps)
        if print_details:
            print(found)
        return found

    def _step(self, logits: Tensor, wanted: Sequence[int], top_k: int) -> AnswerStep:
        order = logits.argsort(descending=True, stable=True)
        ranks, probs = order.argsort(), logits.softmax(-1)

        def ranked(token: int) -> RankedToken:
            return RankedToken(
                self.to_single_str_token(token), int(ranks[token]), float(logits[token]), float(probs[token])
            )

        return AnswerStep(tuple(map(ranked, wanted)), tuple(map(ranked, order[:top_k].tolist())))
