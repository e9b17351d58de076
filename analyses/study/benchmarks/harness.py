"""An lm-eval model that runs on a lens, with edits: log-likelihoods and texts come from the lens's own network.

`HarnessModel` is lm-eval's `HFLM` (tokenisation, chat templates, stop sequences, truncation) whose forward
passes are replaced. A log-likelihood request reads its context once, whatever the number of its continuations,
and goes on from the state; contexts of any lengths share a batch, padded on the right. Generations are batched
with others of equal length only. So no result depends on the batch size, but for rounding.

Edits act in their phases: a context is read under prefill rules, a continuation under decode rules (with
boundary "last_prompt_token" the context's last token too, as in generation). Edits of phase "both", the paper's
prefill version, act in every forward pass of a request.

How it fails: requests longer than `max_length` lose their beginning, and are counted in `truncated`; what lm-eval
asks for and cannot be had here (beams, an empty continuation, a chat template that the tokenizer lacks) raises
`InputError`. Importing this module needs the extra: hybridlens[benchmarks].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from hybridlens.choosing import Chooser, Sampling, check_finite, greedy, sampler
from hybridlens.decoding import Boundary, Decoding, begin, check_boundary, decode, first_logits
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.tokens import check_context

NO_LIMIT = 10**9
"""`max_length` of a model that states none: nothing is cut off."""

_STATED = 10**8  # tokenizers without a limit state one beyond this

Request: TypeAlias = tuple[tuple[str, str] | None, Sequence[int], Sequence[int]]
"""(the two texts, ids of the context, ids of the continuation), as lm-eval's `TemplateLM` makes them."""

Answer: TypeAlias = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether greedy decoding would give it."""


Asked: TypeAlias = tuple[tuple[int, ...], int]
"""A continuation whose likelihood is asked for, and the place of the request that asks."""


class HarnessModel(HFLM):
    """A lens as lm-eval sees a model.

    Args:
        lens: the model, with a Hugging Face tokenizer, of which a copy is used.
        edits: for every batch; not of single rows.
        batch_size: contexts, or continuations, run together.
        max_length: tokens of the longest sequence that is read; None for what the model states (`longest`).
        boundary: which rules read the last token of a context.
        seed: of sampling, where a task asks for it.

    Raises:
        InputError: no tokenizer that lm-eval can use, a batch size or `max_length` that cannot be.
    """

    # What HFLM sets; lm-eval's class decorator hides its type.
    tokenizer: Any
    max_length: int
    max_gen_toks: int
    tok_encode: Callable[[str], list[int]]

    def __init__(
        self,
        lens: HybridLens,
        edits: Sequence[Edit] = (),
        batch_size: int = 8,
        max_length: int | None = None,
        boundary: Boundary = "last_prompt_token",
        seed: int = 0,
    ) -> None:
        check_boundary(boundary)
        if batch_size < 1:
            raise InputError(f"batch size {batch_size} given, expected at least 1")
        if not isinstance(lens.tokenizer, (PreTrainedTokenizer, PreTrainedTokenizerFast)):
            raise InputError(
                f"the tokenizer is {type(lens.tokenizer).__name__}, expected one of transformers; "
                "add its files to the model's folder"
            )
        self._hflm().__init__(
            pretrained=lens.hf_model,
            tokenizer=copy.deepcopy(lens.tokenizer),  # lm-eval may set its padding
            batch_size=batch_size,
            max_length=longest(lens, max_length),
        )
        self.lens = lens
        self.edits = tuple(edits)
        self.rows = batch_size
        self.seed = seed
        # Where the same edits act in both phases, the boundary changes nothing, and this one saves a pass.
        everywhere = all(edit.phase == "both" for edit in self.edits)
        self.boundary: Boundary = "first_new_token" if everywhere else boundary
        self.truncated = 0
        """Requests whose beginning was cut off."""

    def _hflm(self) -> Any:
        """This object as the class that it overrides."""
        return super()

    # Log-likelihoods.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Answer]:
        """See lm-eval; without its progress bars."""
        return cast(list[Answer], self._hflm().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts, in windows of `max_length` tokens that share no token."""
        return cast(list[float], self._hflm().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm))

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[Answer]:
        """The answers to `requests`, in their order."""
        asks: dict[tuple[int, ...], list[Asked]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            read = self._cut(context, continuation)
            asks.setdefault(read, []).append((tuple(continuation), index))
        answers: dict[int, Answer] = {}
        contexts = sorted(asks, key=lambda context: (-len(context), context))
        with torch.no_grad():
            for batch in _chunks(contexts, self.rows):
                answers.update(self._answer(batch, [asks[context] for context in batch]))
        for index, (texts, _, _) in enumerate(requests):
            if texts is not None:  # the windows of a whole text are cached as one
                self.cache_hook.add_partial("loglikelihood", texts, answers[index])
        return [answers[index] for index in range(len(requests))]

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[int, ...]:
        """The part of the context that is read: its end, where the whole is too long."""
        if not context or not continuation:
            raise InputError("a request has an empty continuation or context; mend the task's doc_to_choice")
        room = self.max_length + 1 - len(continuation)  # the last token is not read
        if room < 1:
            raise InputError(
                f"a continuation of {len(continuation)} tokens given, but max_length is {self.max_length}; raise it"
            )
        self.truncated += len(context) > room
        return tuple(context[-room:])

    def _answer(
        self, contexts: Sequence[Sequence[int]], asks: Sequence[Sequence[Asked]]
    ) -> Iterator[tuple[int, Answer]]:
        """The answers for a batch of contexts, each read once."""
        network, batch = self.lens.network, self.lens.batch(list(map(list, contexts)))
        state, logits = first_logits(network, begin(network, batch, self.edits, self.boundary), self.edits)
        check_finite(logits.float().amax(dim=-1), range(len(contexts)), [0] * len(contexts))
        first = logits.float().log_softmax(dim=-1)
        longer: dict[tuple[int, tuple[int, ...]], list[Asked]] = {}
        for row, wanted in enumerate(asks):
            for tokens, request in wanted:
                if len(tokens) == 1:
                    yield request, _score(first[row][None], tokens)
                else:
                    longer.setdefault((row, tokens[:-1]), []).append((tokens, request))
        for group in _chunks(sorted(longer, key=lambda key: -len(key[1])), self.rows):
            rows = [row for row, _ in group]
            read = [list(tokens) for _, tokens in group]
            logits = self.lens.extend(state.select(rows), read, self.edits).logits.float()
            after, highest = logits.log_softmax(dim=-1), logits.amax(dim=-1)
            for place, key in enumerate(group):
                new = len(key[1])
                check_finite(highest[place, :new], [key[0]] * new, range(1, new + 1))
                found = torch.cat([first[key[0]][None], after[place, :new]])
                for tokens, request in longer[key]:
                    yield request, _score(found, tokens)

    # Texts.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """See lm-eval; prompts are batched with those of equal length only, so nothing is padded."""
        bos = self.tokenizer.bos_token
        groups: dict[tuple[int, bool], list[int]] = {}
        for index, request in enumerate(requests):
            text, options = cast(tuple[str, dict[str, Any]], request.args)
            length = len(self.tok_encode(text))
            self.truncated += length > self.max_length - self._new_tokens(options)
            groups.setdefault((length, bool(bos) and text.startswith(bos)), []).append(index)
        texts: dict[int, str] = {}
        for group in groups.values():
            done = self._hflm().generate_until([requests[index] for index in group], disable_tqdm=disable_tqdm)
            texts.update(zip(group, done, strict=True))
        return [texts[index] for index in range(len(requests))]

    def _new_tokens(self, options: Mapping[str, Any]) -> int:
        """Tokens to generate by a request's options."""
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        new = int(next((options[name] for name in names if options.get(name) is not None), self.max_gen_toks))
        if new >= self.max_length:
            raise InputError(
                f"the task generates {new} tokens, but max_length is {self.max_length}; "
                "raise it, or give the task a smaller max_gen_toks"
            )
        return new

    @torch.no_grad()
    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Prompts of equal length and what follows them, up to a stop sequence or `max_length` tokens in all."""
        batch, network = self.lens.batch(context), self.lens.network
        check_context(max_length - 1, self.lens.cfg.n_ctx)  # the last token is not read
        how = Decoding(
            max_length - context.shape[1],
            tuple(network.cfg.eos_token_ids),
            self._stopped(stop),
            self._chooser(options),
            edits=lambda rows: self.edits,
            pad=self.lens.pad_token,
        )
        made = decode(network, begin(network, batch, self.edits, self.boundary), how).tokens
        longest, pad = max(map(len, made)), cast(int, self.tokenizer.pad_token_id)
        new = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in made], dtype=torch.long)
        return torch.cat([batch.tokens, new.to(batch.tokens.device)], dim=1)

    def _chooser(self, options: dict[str, Any]) -> Chooser:
        """What picks tokens as `options` say."""
        options.pop("attention_mask", None)
        wanted = {name: value for name, value in options.items() if _DEFAULTS.get(name, ...) != value}
        sampled = bool(wanted.pop("do_sample", False))
        temperature = float(wanted.pop("temperature", 1.0 if sampled else 0.0))
        top_k, top_p = wanted.pop("top_k", None), wanted.pop("top_p", None)
        if wanted:
            name, value = next(iter(wanted.items()))
            raise InputError(f"the task asks to generate with {name} = {value!r}, which a lens cannot do")
        if sampled and temperature > 0:
            return sampler(Sampling(self.seed, temperature, top_k or None, top_p))
        return greedy

    def _stopped(self, stop: Sequence[str]) -> Callable[[Sequence[int]], bool]:
        """Whether a row ends with the tokens it has said: by the model's settings, or as its text holds a stop."""
        named = getattr(getattr(self.lens.hf_model, "generation_config", None), "eos_token_id", None)
        ends = {named} if isinstance(named, int) else set(named or ())

        def stopped(said: Sequence[int]) -> bool:
            text = self.tokenizer.decode(list(said))
            return said[-1] in ends or any(word and word in text for word in stop)

        return stopped

    # What is left of the way over the untouched model.

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits at every position; all of it under prefill rules."""
        with torch.no_grad():
            return self.lens.prefill(inps, self.edits).logits

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer writes it.

        Raises:
            InputError: the tokenizer has no chat template.
        """
        check_chat_template(self.tokenizer)
        return cast(str, self._hflm().apply_chat_template(chat_history, add_generation_prompt))


_DEFAULTS: Mapping[str, Any] = {
    "num_beams": 1, "use_cache": True, "top_k": None, "top_p": None, "do_sample": False, "temperature": 0.0,
}  # fmt: skip
"""Options of generation whose given value asks for nothing."""


def longest(lens: HybridLens, given: int | None = None) -> int:
    """Tokens of the longest sequence to read: as given, or as the model or else its tokenizer states.

    A RecurrentGemma states none in its configuration; where its tokenizer states none either, there is no limit.

    Raises:
        InputError: `given` is under 2, or beyond the model's context.
    """
    context = lens.cfg.n_ctx
    if given is not None:
        if given < 2 or (context is not None and given > context):
            raise InputError(f"max_length {given} given, expected 2..{'' if context is None else context}")
        return given
    if context is not None:
        return context
    stated = getattr(lens.tokenizer, "model_max_length", None) or NO_LIMIT
    return int(stated) if stated < _STATED else NO_LIMIT


def check_chat_template(tokenizer: Any) -> None:
    """Refuse to wrap prompts where there is nothing to wrap them in.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the model's tokenizer has no chat template; leave apply_chat_template out")


def _score(log_probabilities: Tensor, tokens: Sequence[int]) -> Answer:
    """Sum of the log-probabilities [pos vocab] of `tokens`, and whether each is the likeliest."""
    wanted = torch.tensor(tokens, device=log_probabilities.device)
    total = log_probabilities.gather(1, wanted[:, None]).sum()
    return float(total), bool((log_probabilities.argmax(dim=-1) == wanted).all())


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
