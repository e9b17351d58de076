"""Tokens in and out, as TransformerLens has them: the part of `HybridLens` that speaks text.

How it fails: text without a tokenizer, a text that is not one token where one is asked for, and all that
`hybridlens.tokens` refuses raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from hybridlens import tokens as tokens_module
from hybridlens.boundary import Natural, public
from hybridlens.boundary_words import Unchecked, shown
from hybridlens.devices import execution_device, first_weight, sent
from hybridlens.errors import InputError
from hybridlens.network import HookedNetwork
from hybridlens.padding import Layout, Side, TokenBatch, padding_token, sided
from hybridlens.shapes import Lengths, Tokens
from hybridlens.tokens import TokensLike

OneOrMore: TypeAlias = Annotated[TokensLike | int | np.integer[Any], Unchecked("tokens")]
"""Tokens, or the id of one."""


class TokenFront:
    """Tokens, text and rows of a model; `HybridLens` builds on it."""

    hf_model: Any
    tokenizer: Any
    network: HookedNetwork

    @property
    def device(self) -> torch.device:
        """Where the embedding computes, and tokens go."""
        embedding = self.hf_model.get_input_embeddings()
        weight = first_weight(embedding)
        return execution_device(embedding, self.hf_model.device if weight is None else weight.device)

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each layer computes, and what it remembers lies."""
        return tuple(self.network.devices(self.device))

    @property
    def pad_token(self) -> int:
        """The id that fills shorter rows; its value never matters."""
        given = getattr(self.tokenizer, "pad_token_id", None), self.hf_model.config.pad_token_id
        return next((token for token in given if token is not None and token >= 0), 0)

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Give the lens another tokenizer, or None; a lens needs no more than what Hugging Face's have."""
        self.tokenizer = tokenizer

    @public
    def to_tokens(
        self,
        text: TokensLike,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        move_to_device: bool = True,
        truncate: bool = False,
    ) -> Tokens:
        """Token ids [batch, pos].

        The padding is the tokenizer's own padding token, by which every method of the lens knows it again.

        Args:
            text: one, or several; rows of ids are checked and laid out alike.
            prepend_bos: whether a BOS stands before each; None for the tokenizer's own way.
            padding_side: where shorter rows are padded; None for the right.
            move_to_device: put them where the model is.
            truncate: cut what is longer than the model's context, instead of refusing it.

        Raises:
            InputError: without a tokenizer, for an empty text, one longer than the context, or for rows of different
                lengths where the tokenizer has no padding token that means nothing else; pass such texts to the lens
                themselves.
        """
        cfg = self.network.cfg
        given: Any = text
        if truncate and cfg.n_ctx is not None and (isinstance(text, str) or _is_texts(text)):
            given = [tokens_module.encode(one, self.tokenizer, prepend_bos)[: cfg.n_ctx] for one in _texts(given)]
        laid = self._laid(given, prepend_bos=prepend_bos, padding_side=padding_side)
        if laid.batch.lengths is not None and padding_token(self.tokenizer) is None:
            raise InputError(
                f"rows of {', '.join(map(str, laid.batch.lengths.tolist()[:8]))} tokens need padding, and this "
                "tokenizer has no padding token that means nothing else; pass the texts themselves, or set "
                "tokenizer.pad_token"
            )
        tokens = laid.as_given(laid.batch.tokens)
        return tokens if move_to_device else tokens.cpu()

    def to_string(self, tokens: OneOrMore) -> str | list[str]:
        """The text of a row of tokens, or of each row of a batch; of one id too.

        Raises:
            InputError: for ids outside the vocabulary.
        """
        tokens = tokens_module.ids_of(tokens)
        if isinstance(tokens, (int, np.integer)) and not isinstance(tokens, bool):
            tokens = [tokens]
        rows = self._ids(tokens)
        texts = [cast(str, self._tokenizer.decode(row)) for row in rows]
        return texts if _is_batch(tokens) else texts[0]

    @public
    def to_str_tokens(
        self, tokens: TokensLike, prepend_bos: bool | None = None, padding_side: Side | None = None
    ) -> list[str] | list[list[str]]:
        """Each token as text: a list for one text or row of ids, a list of lists for several, or for a list of texts.

        Args:
            tokens: text, texts, ids, or rows of ids.
            prepend_bos: of text, whether a BOS stands before it; None for the tokenizer's own way.
            padding_side: changes nothing, since rows need no padding here; TransformerLens has it.

        Raises:
            InputError: for ids outside the vocabulary, or text without a tokenizer.
        """
        if isinstance(tokens, str) or _is_texts(tokens):
            texts = _texts(cast(Any, tokens))
            rows = [tokens_module.encode(text, self.tokenizer, prepend_bos) for text in texts]
        else:
            rows = self._ids(tokens)
        found = [tokens_module.to_strings(row, self._tokenizer) for row in rows]
        return found if len(found) != 1 or _is_texts(tokens) else found[0]

    @public
    def to_single_str_token(self, token: Natural) -> str:
        """The text of one token.

        Raises:
            InputError: for an id outside the vocabulary.
        """
        return tokens_module.to_strings(self._ids([token])[0], self._tokenizer)[0]

    @public
    def get_token_position(
        self,
        single_token: Annotated[str | int | Tensor, Unchecked("a token")],
        input: TokensLike,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> int:
        """Where a token stands in a text or a row of ids.

        Args:
            single_token: a text that is one token, or an id.
            input: a text, or ids [pos] or [1, pos], whose padding counts as they have it.
            mode: "first" or "last", where it occurs more than once.
            prepend_bos: of text, whether a BOS stands before it; None for the tokenizer's own way.
            padding_side: changes nothing in one row; TransformerLens has it.

        Raises:
            InputError: it does not occur, or there are several rows.
        """
        if isinstance(input, str):
            rows = [tokens_module.encode(input, self.tokenizer, prepend_bos)]
        else:
            rows = self._ids(input)
        if len(rows) != 1:
            raise InputError(f"{len(rows)} rows were given, expected a text or one row of ids")
        wanted = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        places = [place for place, token in enumerate(rows[0]) if token == wanted]
        if not places:
            named = f"the token {wanted}" if self.tokenizer is None else f"the token {shown(self.to_string([wanted]))}"
            raise InputError(f"{named} does not occur in the {len(rows[0])} tokens given")
        return places[0] if mode == "first" else places[-1]

    @public
    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            InputError: when it is none or several, or one that the tokenizer does not know.
        """
        ids = cast(list[int], self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) != 1:
            raise InputError(f"{shown(text)} is {len(ids)} tokens, expected one: {self.to_str_tokens(ids)}")
        if ids[0] == getattr(self.tokenizer, "unk_token_id", None) and text.strip() != self.tokenizer.unk_token:
            raise InputError(f"{shown(text)} is unknown to the tokenizer, which reads {self.tokenizer.unk_token}")
        return ids[0]

    def batch(
        self,
        tokens: TokensLike,
        lengths: Sequence[int] | Lengths | None = None,
        *,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> TokenBatch:
        """What was given as tokens, checked and laid out as rows on the model's device."""
        return self.laid_out(tokens, lengths, prepend_bos=prepend_bos, padding_side=padding_side).batch

    @public
    def laid_out(
        self,
        tokens: TokensLike,
        lengths: Sequence[int] | Lengths | None = None,
        *,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> Layout:
        """`batch`, with where the tokens stood when they were given.

        Args:
            tokens: a tensor [batch, pos], ids, or text.
            lengths: real tokens of each row of a tensor padded on the right.
            prepend_bos: of text, whether a BOS stands before it; None for the tokenizer's own way.
            padding_side: of text and lists, where results have the padding of shorter rows; None for the right.
        """
        return self._laid(tokens, lengths, prepend_bos, padding_side)

    def _laid(
        self,
        tokens: TokensLike,
        lengths: Sequence[int] | Lengths | None = None,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> Layout:
        """`laid_out` behind a door that was passed already."""
        cfg = self.network.cfg
        laid = tokens_module.as_batch(
            tokens,
            self.tokenizer,
            lengths=lengths,
            d_vocab=cfg.d_vocab,
            n_ctx=cfg.n_ctx,
            pad=self.pad_token,
            prepend_bos=prepend_bos,
        )
        laid = sided(laid, tokens, lengths, padding_side)
        rows, counts = laid.batch
        counts = None if counts is None else sent(counts, self.device)
        return Layout(TokenBatch(sent(rows, self.device), counts), laid.left)

    def _ids(self, tokens: Any) -> list[list[int]]:
        """Rows of ids as they were given, padding and all; an empty row is one of no text."""
        return tokens_module.rows_of_ids(tokens, self.network.cfg.d_vocab)

    @property
    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError("this lens has no tokenizer; give one to HybridLens, or work with token ids")
        return self.tokenizer


def _is_texts(tokens: Any) -> bool:
    """Whether several texts were given, or a list of one."""
    return isinstance(tokens, (list, tuple)) and len(tokens) > 0 and all(isinstance(item, str) for item in tokens)


def _texts(text: str | Sequence[str]) -> Sequence[str]:
    return [text] if isinstance(text, str) else text


def _is_batch(tokens: Any) -> bool:
    """Whether several rows were given, not one."""
    if hasattr(tokens, "ndim"):
        return tokens.ndim == 2
    return any(not tokens_module.is_id(item) for item in tokens)
