"""Tokens in and out, as TransformerLens has them: the part of `HybridLens` that speaks text.

How it fails: text without a tokenizer, a text that is not one token where one is asked for, and all that
`hybridlens.tokens` refuses raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from hybridlens import tokens as tokens_module
from hybridlens.devices import execution_device
from hybridlens.errors import InputError
from hybridlens.network import HookedNetwork
from hybridlens.shapes import Tokens
from hybridlens.tokens import TokenBatch, TokensLike


class TokenFront:
    """Tokens, text and rows of a model; `HybridLens` builds on it."""

    hf_model: Any
    tokenizer: Any
    network: HookedNetwork

    @property
    def device(self) -> torch.device:
        """Where the embedding computes, and tokens go."""
        return execution_device(self.hf_model.get_input_embeddings(), self.hf_model.device)

    @property
    def pad_token(self) -> int:
        """The id that fills shorter rows; its value never matters."""
        given = getattr(self.tokenizer, "pad_token_id", None), self.hf_model.config.pad_token_id
        return next((token for token in given if token is not None and token >= 0), 0)

    def to_tokens(self, text: str | Sequence[str]) -> Tokens:
        """Token ids [batch, pos]; rows of different lengths are padded on the right.

        Pass text itself to the lens where rows differ in length: a tensor does not say which of its
        tokens are padding.

        Raises:
            InputError: without a tokenizer, or for an empty text.
        """
        return self.batch(text).tokens

    def to_string(self, tokens: Tensor | Sequence[int]) -> str | list[str]:
        """The text of a row of tokens, or of each row of a batch."""
        ids = torch.as_tensor(tokens)
        if ids.ndim == 2:
            return [cast(str, self._tokenizer.decode(row)) for row in ids.tolist()]
        return cast(str, self._tokenizer.decode(ids.reshape(-1).tolist()))

    def to_str_tokens(self, tokens: str | Tensor | Sequence[int]) -> list[str]:
        """Each token of one row as text."""
        if isinstance(tokens, (list, tuple)) and tokens and type(tokens[0]) is not int:
            raise InputError("to_str_tokens takes one text or one row of ids; call it row by row")
        if isinstance(tokens, str):
            ids = tokens_module.encode(tokens, self._tokenizer)
        else:
            rows = torch.as_tensor(tokens)
            if rows.ndim == 2 and rows.shape[0] != 1:
                raise InputError(f"to_str_tokens takes one row, given {rows.shape[0]}; call it row by row")
            ids = cast(list[int], rows.reshape(-1).tolist())
        return tokens_module.to_strings(ids, self._tokenizer)

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            InputError: when it is none or several.
        """
        ids = cast(list[int], self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) != 1:
            raise InputError(f"{text!r} is {len(ids)} tokens, expected one: {self.to_str_tokens(ids)}")
        return ids[0]

    def batch(self, tokens: TokensLike, lengths: Sequence[int] | Tensor | None = None) -> TokenBatch:
        """What was given as tokens, checked and laid out as rows on the model's device."""
        cfg = self.network.cfg
        laid = tokens_module.as_batch(
            tokens, self.tokenizer, lengths=lengths, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx, pad=self.pad_token
        )
        counts = None if laid.lengths is None else laid.lengths.to(self.device)
        return TokenBatch(laid.tokens.to(self.device), counts)

    @property
    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError("this lens has no tokenizer; give one to HybridLens, or work with token ids")
        return self.tokenizer
