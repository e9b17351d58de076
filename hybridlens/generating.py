"""Generation: the part of `HybridLens` that continues prompts, in our words or in TransformerLens'.

Both are one: `generate` reads from either how tokens are drawn (`hybridlens.choosing.drawn`) and what ends a row, runs
`hybridlens.generation.generate`, and gives its `Generation`, or, where `return_type` says so, what TransformerLens
gives. It goes on from a state, edited or not, as well.

How it fails: arguments that cannot be are refused at the door (`hybridlens.boundary`), tokens by `hybridlens.tokens`;
words that contradict each other, and a state that does not say which token comes next, raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypedDict, Unpack, cast, overload

import torch
from annotated_types import Ge, Gt, Le

from hybridlens.boundary import Few, Length, Positive, Seed, public
from hybridlens.choosing import Sampling, drawn, greedy, sampler
from hybridlens.continuing import Prefill, no_autocast
from hybridlens.decoding import Boundary, Start
from hybridlens.errors import InputError
from hybridlens.generation import (
    Generation,
    ReturnType,
    continue_from,
    decode_text,
    generate,
    joined,
    rows_read,
)
from hybridlens.hooks import Edit
from hybridlens.padding import TokenBatch
from hybridlens.run_options import takes_input
from hybridlens.shapes import Lengths, Tokens
from hybridlens.state import HybridState
from hybridlens.text import TokenFront
from hybridlens.tokens import TokensLike, check_context


class Words(TypedDict, total=False):
    """What may be said of a generation by keyword; see `GenerateFront.generate`."""

    lengths: Sequence[int] | Lengths | None
    stop_at_eos: bool
    sampling: Sampling | None
    state: HybridState | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    freq_penalty: float | None
    seed: int | None
    eos_token_id: int | Sequence[int] | None
    prepend_bos: bool | None
    padding_side: Literal["left", "right"] | None
    verbose: bool
    capture: bool | None


def is_text(tokens: Any) -> bool:
    """Whether a text was given, or a list of texts."""
    if isinstance(tokens, (list, tuple)):
        items = cast(Sequence[Any], tokens)
        return bool(items) and all(isinstance(item, str) for item in items)
    return isinstance(tokens, str)


def _start(given: Prefill) -> Start:
    """Where decoding begins after what was read.

    Raises:
        InputError: it does not say which logits are each row's last.
    """
    state, logits = given
    if logits.shape[1] == 1 or state.batch == 1:
        return Start(state, logits[:, -1].detach())
    plan = state.plan  # of tokens after others: how many each row had is not known
    if plan is None or max(plan.lengths) != logits.shape[1]:
        raise InputError(
            f"logits at {logits.shape[1]} positions of {state.batch} rows do not say which are each row's last; "
            "extend with last_only=True"
        )
    rows = torch.arange(state.batch, device=logits.device)
    return Start(state, logits[rows, state.lengths.to(logits.device) - 1].detach())


class GenerateFront(TokenFront):
    """Generation; `HybridLens` builds on it."""

    @overload
    def generate(
        self,
        tokens: TokensLike | Prefill | HybridState,
        max_new_tokens: int = ...,
        edits: Sequence[Edit] = ...,
        boundary: Boundary = ...,
        *,
        return_type: None = ...,
        **words: Unpack[Words],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        tokens: TokensLike | Prefill | HybridState,
        max_new_tokens: int = ...,
        edits: Sequence[Edit] = ...,
        boundary: Boundary = ...,
        *,
        return_type: ReturnType,
        **words: Unpack[Words],
    ) -> str | list[str] | Tokens: ...

    @takes_input
    @public
    def generate(
        self,
        tokens: TokensLike | Prefill | HybridState,
        max_new_tokens: Length = 40,
        edits: Sequence[Edit] = (),
        boundary: Boundary = "last_prompt_token",
        *,
        lengths: Sequence[int] | Lengths | None = None,
        stop_at_eos: bool = True,
        sampling: Sampling | None = None,
        state: HybridState | None = None,
        do_sample: bool | None = None,
        temperature: Annotated[float, Ge(0)] | None = None,
        top_k: Positive | None = None,
        top_p: Annotated[float, Gt(0), Le(1)] | None = None,
        freq_penalty: Annotated[float, Ge(0)] | None = None,
        seed: Seed | None = None,
        eos_token_id: Few | Sequence[Few] | None = None,
        return_type: ReturnType | None = None,
        prepend_bos: bool | None = None,
        padding_side: Literal["left", "right"] | None = None,
        verbose: bool = False,
        capture: bool | None = None,
    ) -> Generation | str | list[str] | Tokens:
        """Continue each prompt; the likeliest tokens unless something says to draw.

        Sampling is said by `sampling`, or in TransformerLens' words (`hybridlens.choosing.drawn`). Its defaults are
        not taken over: without any of these words nothing is drawn, and 40 tokens are made, not 10.

        Args:
            tokens: the prompts, of any lengths; or what `prefill` or `extend` gave, to go on from its logits.
            max_new_tokens: at most so many for each row.
            edits: act in their phases and rows.
            boundary: "last_prompt_token": the last token of the prompt is read under decode rules, so that
                the first new token is already made by them; "first_new_token": all of the prompt is prefill.
            lengths: real tokens of each row of a tensor padded on the right.
            stop_at_eos: a row ends with its end-of-text token.
            sampling: temperature, top-k, top-p and seed.
            state: what was read before, edited or not; `tokens` are what is read after it. It is not changed.
            do_sample: True to draw, False for the likeliest token; None draws if one of the next five is given.
            temperature: see `Sampling`; 0 is the likeliest token.
            top_k: see `Sampling`, as for `top_p` and `freq_penalty`, which counts the tokens given and made, not
                those that `state` read.
            top_p: likewise.
            freq_penalty: likewise.
            seed: of the draws; None takes one from torch's global generator.
            eos_token_id: what ends a row, in place of the model's own end-of-text tokens.
            return_type: what TransformerLens gives: "str", the text of prompt and answer (a list for several
                prompts); "tokens", both as ids [batch, pos], shorter prompts padded on the left; "input", the one
                of these that was given. None for a `Generation`.
            prepend_bos: whether a BOS stands before each text; None for the tokenizer's own way.
            padding_side: accepted, and of no effect: padding is found on either side.
            verbose: show a progress bar, in a notebook or a terminal.
            capture: record a decode step once and do it again for each token (`hybridlens.fixed_steps`), which gives
                the same but for rounding and is many times faster on a GPU. None: there, wherever it can be; True: or
                say why it cannot; False: never.

        Raises:
            InputError: for tokens that cannot be run, words that contradict each other, a state alone, or when
                prompt and new tokens exceed the context.
            HybridLensError: the model's logits are not finite; said with the row and the token.
        """
        no_autocast(self.device)
        self.network.following.check(fresh=True)
        chosen = drawn(
            sampling,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            freq_penalty=freq_penalty,
            seed=seed,
        )
        ends = None if eos_token_id is None else self._ends(eos_token_id)
        words: dict[str, Any] = {"stop_at_eos": stop_at_eos, "ends": ends, "verbose": verbose, "capture": capture}
        words |= {"tokenizer": self.tokenizer, "pad": self.pad_token}
        if isinstance(tokens, Prefill):
            prompts: list[list[int]] = [[] for _ in range(tokens.state.batch)]
            if state is not None or lengths is not None:
                raise InputError("what prefill gave holds its own state and lengths; leave state= and lengths= out")
            plan = tokens.state.plan
            check_context(max(plan.lengths if plan else (0,)) + max_new_tokens - 1, self.network.cfg.n_ctx)
            choose = greedy if chosen is None else sampler(chosen)
            made = continue_from(self.network, _start(tokens), max_new_tokens, edits, choose=choose, **words)
        elif isinstance(tokens, HybridState):
            raise InputError(
                "a state alone does not say which token comes next; give what prefill or extend gave, or the tokens to "
                "be read after it: lens.generate(tokens, state=state)"
            )
        else:
            batch = self._laid(tokens, lengths, prepend_bos).batch
            prompts = rows_read(batch)
            made = generate(self.network, batch, max_new_tokens, edits, boundary, state=state, sampling=chosen, **words)
        if return_type is None:
            return made
        if return_type == "tokens" or (return_type == "input" and not is_text(tokens)):
            return joined(prompts, made, self.pad_token)
        new = rows_read(TokenBatch(made.tokens, made.lengths))
        whole = [[*prompt, *row] for prompt, row in zip(prompts, new, strict=True)]
        texts = decode_text(self._tokenizer, whole)
        return texts[0] if len(texts) == 1 else texts

    def _ends(self, given: int | Sequence[int]) -> list[int]:
        """The tokens that are to end a row."""
        ends, size = [given] if isinstance(given, int) else list(given), self.network.cfg.d_vocab
        for token in ends:
            if token >= size:
                raise InputError(f"eos_token_id {token} is outside the vocabulary, expected 0..{size - 1}")
        return ends
