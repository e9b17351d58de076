"""Tokens in and out, as TransformerLens has them: the part of `HybridLens` that speaks text.

How it fails: text without a tokenizer, a text that is not one token where one is asked for, and all that
`hybridlens.tokens` refuses raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from hybridlens import tokens as tokens_module
from hybridlens.boundary import public
from hybridlens.boundary_words import shown
from hybridlens.devices import execution_device, first_weight
from hybridlens.errors import InputError
from hybridlens.network import HookedNetwork
from hybridlens.padding import Layout, TokenBatch, padding_token
from hybridlens.shapes import Lengths, Tokens
from hybridlens.tokens import TokensLike


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
    def pad_token(self) -> int:
        """The id that fills shorter rows; its value never matters."""
        given = getattr(self.tokenizer, "pad_token_id", None), self.hf_model.config.pad_token_id
        return next((token for token in given if token is not None and token >= 0), 0)

    def to_tokens(self, text: str | Sequence[str]) -> Tokens:
        """Token ids [batch, pos]; rows of different lengths are padded on the right.

        The padding is the tokenizer's own padding token, by which every method of the lens knows it again.

        Raises:
            InputError: without a tokenizer, for an empty text, or for rows of different lengths where the tokenizer
                has no padding token that means nothing else; pass such texts to the lens themselves.
        """
        batch = self.batch(text)
        if batch.lengths is not None and padding_token(self.tokenizer) is None:
            raise InputError(
                f"rows of {', '.join(map(str, batch.lengths.tolist()[:8]))} tokens need padding, and this tokenizer "
                "has no padding token that means nothing else; pass the texts themselves, or set tokenizer.pad_token"
            )
        return batch.tokens

    def to_string(self, tokens: TokensLike) -> str | list[str]:
        """The text of a row of tokens, or of each row of a batch.

        Raises:
            InputError: for ids outside the vocabulary.
        """
        rows = self._ids(tokens)
        texts = [cast(str, self._tokenizer.decode(row)) for row in rows]
        return texts if _is_batch(tokens) else texts[0]

    def to_str_tokens(self, tokens: TokensLike) -> list[str]:
        """Each token of one row as text.

        Raises:
            InputError: for several rows, or ids outside the vocabulary.
        """
        if isinstance(tokens, str):
            rows = [tokens_module.encode(tokens, self._tokenizer)]
        else:
            rows = self._ids(tokens)
        if len(rows) != 1:
            raise InputError(f"to_str_tokens takes one text or one row of ids, given {len(rows)}; call it row by row")
        return tokens_module.to_strings(rows[0], self._tokenizer)

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

    def batch(self, tokens: TokensLike, lengths: Sequence[int] | Lengths | None = None) -> TokenBatch:
        """What was given as tokens, checked and laid out as rows on the model's device."""
        return self.laid_out(tokens, lengths).batch

    @public
    def laid_out(self, tokens: TokensLike, lengths: Sequence[int] | Lengths | None = None) -> Layout:
        """`batch`, with where the tokens stood when they were given."""
        return self._laid(tokens, lengths)

    def _laid(
        self, tokens: TokensLike, lengths: Sequence[int] | Lengths | None = None, prepend_bos: bool | None = None
    ) -> Layout:
        """`laid_out` behind a door that was passed already; texts with the BOS or without, None for as usual."""
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
        rows, counts = laid.batch
        counts = None if counts is None else counts.to(self.device)
        return Layout(TokenBatch(rows.to(self.device), counts), laid.left)

    def _ids(self, tokens: Any) -> list[list[int]]:
        """Rows of ids as they were given, padding and all; an empty row is one of no text."""
        return tokens_module.rows_of_ids(tokens, self.network.cfg.d_vocab)

    @property
    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError("this lens has no tokenizer; give one to HybridLens, or work with token ids")
        return self.tokenizer


def _is_batch(tokens: Any) -> bool:
    """Whether several rows were given, not one."""
    if hasattr(tokens, "ndim"):
        return tokens.ndim == 2
    return any(not tokens_module.is_id(item) for item in tokens)
