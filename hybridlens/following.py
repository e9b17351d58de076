"""Whether a lens still runs the model that it was opened on.

A lens calls the modules of the Hugging Face model one by one, and finds each anew, so that adapters put in later, and
weights changed in place, are followed. What it cannot follow it refuses: hooks on modules that it does not call as a
whole (a decoder layer, say), and an embedding of another size.

How it fails: `check` raises `InputError` with what to do.
"""

from __future__ import annotations

from collections.abc import Collection
from operator import itemgetter
from typing import Any

from torch import nn

from hybridlens.adapters import check_places
from hybridlens.errors import InputError
from hybridlens.fingerprint import Fingerprint

_HOOKS = itemgetter("_forward_hooks"), itemgetter("_forward_pre_hooks")


class Following:
    """A model, watched.

    Args:
        model: the Hugging Face model.
        d_vocab: rows of its embedding when the lens was made.
        called: modules that the lens calls as a whole, besides plain linear maps.
        read: modules of which it reads the weight, with what adapters add to that.
    """

    def __init__(
        self, model: Any, d_vocab: int, called: Collection[nn.Module], read: Collection[nn.Module] = ()
    ) -> None:
        self.model = model
        self.d_vocab = d_vocab
        self._called = (*called, *read)
        self._placed = ""  # the fingerprint with which adapters were last looked at
        self.fingerprint = Fingerprint(model)
        bypassed = {
            name: module for name, module in model.named_modules() if module not in called and not _simple(module)
        }
        self._names, self._bypassed = tuple(bypassed), tuple(bypassed.values())

    @property
    def bypassed(self) -> tuple[nn.Module, ...]:
        """The modules that the lens does not call as a whole, of those that the model had when the lens was made."""
        return self._bypassed

    def check(self, *, fresh: bool = False) -> str:
        """The fingerprint of the weights as they are now.

        Args:
            fresh: read the weights whether or not anything says that they changed, as at the start of a prompt.

        Raises:
            InputError: the model has changed in a way that the lens cannot follow.
        """
        for hooks in _HOOKS:
            found = list(map(hooks, map(vars, self._bypassed)))  # in C: this is asked at every step
            if any(found):
                place = next(place for place, own in enumerate(found) if own)
                name = self._names[place] or type(self._bypassed[place]).__name__
                raise InputError(
                    f"a hook was put on {name} of the Hugging Face model, which the lens does not call as a whole; use "
                    "an Edit, or lens.hooks, on a hook point instead"
                )
        rows = _rows(self.model.get_input_embeddings())
        if rows is not None and rows != self.d_vocab:
            raise InputError(
                f"the embedding has {rows} rows now, and had {self.d_vocab} when the lens was made; open the model "
                "anew with HybridLens(model, tokenizer)"
            )
        now = self.fingerprint.now(fresh=fresh)
        if now != self._placed:
            check_places(self.model, self._is_called)
            self._placed = now
        return now

    def _is_called(self, module: nn.Module) -> bool:
        return any(module is one for one in self._called)


def _simple(module: nn.Module) -> bool:
    """Whether the lens treats a module as the library does: calls it, or, as the library, reads its weight alone."""
    held = module.__dict__
    return isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d)) or not (held["_modules"] or held["_parameters"])


def _rows(embedding: nn.Module) -> int | None:
    weight = getattr(embedding, "weight", None)
    return None if weight is None or weight.ndim != 2 else int(weight.shape[0])
