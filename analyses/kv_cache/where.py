"""Where a needle is written: memory is taken away at one place after another, and what is still told is measured.

`drop_map` drops keys and values block by block from what was read of a prompt. `recurrent_map` reads the prompt up to a
position, resets the recurrent layers there or gives them those of the prompt with the other needle, and reads on: what
they held before that position is then gone from them, and from all that later tokens would have made of it.

Beyond a sliding window a needle's own keys and values are gone; what still tells it shows in the damage of later
blocks and of late resets, and in the `crossover` of prompts of that length.

Retrieval is measured as the log-probability of the first words in which needle A differs from B, after the words that
both begin with, and as the score of the answer. Many places are rows of one batch, each with its own change.

How it fails: damage says what was needed by what was left; where two places hold the needle, taking either may do
nothing. Dropping keys also moves attention to all others. A model that does not tell the needle has nothing to lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias

import torch
from annotated_types import MinLen
from torch.nn.utils.rnn import pad_sequence

from analyses.experiment.per_prompt import per_prompt
from analyses.kv_cache.crossover import ROWS, read_pairs
from analyses.kv_cache.damage import DamageMap, Retrieval
from analyses.kv_cache.decoding import generate_with
from analyses.kv_cache.dropping import drop
from analyses.kv_cache.pairs import PromptPair
from analyses.kv_cache.places import seen_by
from analyses.kv_cache.recurrent import RecurrentParts, swap_recurrent, zero_recurrent
from analyses.kv_cache.recurrent_places import RecurrentWhere
from analyses.kv_cache.telling import logprobs
from hybridlens.boundary import Natural, Positive, public
from hybridlens.config import LensConfig
from hybridlens.devices import sent
from hybridlens.display import Displayed, many
from hybridlens.errors import InputError
from hybridlens.hooks import Edit
from hybridlens.model import HybridLens
from hybridlens.niah import Span, score
from hybridlens.progress import counted
from hybridlens.state import HybridState
from hybridlens.tokens import to_strings

How: TypeAlias = Literal["reset", "replace"]


class _Group(NamedTuple):
    """Fields of `Group`."""

    name: str
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None = None


class Group(Displayed, _Group):
    """Layers, and of these perhaps heads (key/value heads, or those of matrix states), that are changed together."""

    __slots__ = ()


Groups: TypeAlias = Annotated[Sequence[Group], MinLen(1)]


def attention_groups(cfg: LensConfig) -> list[Group]:
    """All attention layers; each; and, where there are several key/value heads, each of these.

    Raises:
        InputError: no layer has attention.
    """
    cfg.need_attention("dropping keys and values")
    groups = [Group("all layers", cfg.attention_layers)]
    groups += [Group(f"layer {layer}", (layer,)) for layer in cfg.attention_layers]
    for layer in cfg.attention_layers:
        heads = cfg.attention(layer).n_held_heads
        groups += [Group(f"layer {layer}, head {head}", (layer,), (head,)) for head in range(heads) if heads > 1]
    return groups


def recurrent_groups(cfg: LensConfig) -> list[Group]:
    """All recurrent layers, and each.

    Raises:
        InputError: no layer has a recurrence.
    """
    if not cfg.ssm_layers:
        raise InputError(f"resetting recurrent layers needs some, but no layer of this {cfg.family} model is recurrent")
    return [Group("all layers", cfg.ssm_layers), *(Group(f"layer {layer}", (layer,)) for layer in cfg.ssm_layers)]


@per_prompt("pair")
@public
def drop_map(
    lens: HybridLens,
    pair: PromptPair,
    *,
    block: Positive = 8,
    groups: Groups | None = None,
    max_new_tokens: Natural = 40,
    edits: Sequence[Edit] = (),
    rows: Positive = ROWS,
) -> DamageMap:
    """What is lost when keys and values go, block of positions by block.

    The prompt is read up to its last token, the block dropped, and the last token read without it.

    Args:
        lens: the model.
        pair: whose prompt A is read, or a list of pairs.
        block: positions dropped together.
        groups: layers and heads; see `attention_groups`.
        max_new_tokens: of the answers that are scored.
        edits: of hook points, in their phases.
        rows: of a batch.

    Raises:
        InputError: a block or rows below 1, no group, or groups of recurrent layers.
    """
    chosen = attention_groups(lens.cfg) if groups is None else groups
    state, _ = read_pairs(lens, [pair], edits)
    visible = set(state.key_positions[0][state.visible[0]].tolist())
    held = {place: sorted(visible & set(range(*place))) for place in _places(pair, block)}

    def changed(group: Group, places: Sequence[Span]) -> HybridState:
        own = set(state.key_positions[0][seen_by(state, group.layers)[0]].tolist())
        positions = [[position for position in held[place] if position in own] for place in places]
        return drop(state.repeat(len(places)), positions, layers=group.layers, heads=group.heads)

    what = f"keys and values of {many(block, 'position')} dropped"
    there = {place: bool(positions) for place, positions in held.items()}
    return _mapped(lens, pair, what, chosen, there, state, changed, rows, edits, max_new_tokens)


@per_prompt("pair")
@public
def recurrent_map(
    lens: HybridLens,
    pair: PromptPair,
    *,
    how: How = "reset",
    parts: RecurrentParts = "both",
    every: Positive = 8,
    groups: Groups | None = None,
    max_new_tokens: Natural = 40,
    edits: Sequence[Edit] = (),
    rows: Positive = ROWS,
) -> DamageMap:
    """What is lost when recurrent layers lose, at some position, what they had read up to it.

    Arguments that are not named here are those of `drop_map`.

    Args:
        how: "reset" to what an unread row holds, or "replace" by what prompt B left there.
        parts: recurrent state, convolution inputs or both.
        every: tokens from one place to the next; the last is the end of what is read before the last token.
        groups: layers, and of matrix states perhaps heads, for parts "recurrent"; see `recurrent_groups`.

    Raises:
        InputError: a step or rows below 1, no group, or groups of attention layers or heads.
        UnknownNameError: another way, or other parts.
    """
    chosen = recurrent_groups(lens.cfg) if groups is None else groups

    def where(group: Group) -> RecurrentWhere:
        return RecurrentWhere(layers=group.layers, heads=group.heads)

    for group in chosen:  # what cannot be changed is refused before anything is read
        zero_recurrent(lens.network.empty_state(1), parts, **where(group))
    intact, _ = read_pairs(lens, [pair], edits)
    left = dict(_left(lens, pair, every, edits))

    def changed(group: Group, places: Sequence[Span]) -> HybridState:
        ours = HybridState.cat([left[place][0] for place in places])
        if how == "reset":
            state = zero_recurrent(ours, parts, **where(group))
        else:
            state = swap_recurrent(ours, HybridState.cat([left[place][1] for place in places]), parts, **where(group))
        return _read_on(lens, state, [pair.a[stop:-1] for _, stop in places], edits)

    done = "reset" if how == "reset" else "replaced by prompt B's"
    both = "convolution and recurrent" if lens.cfg.state_layers else "convolution"
    what = f"{both if parts == 'both' else parts} state {done} after a position"
    there = dict.fromkeys(left, True)
    return _mapped(lens, pair, what, chosen, there, intact, changed, rows, edits, max_new_tokens)


def retrieval(
    lens: HybridLens, state: HybridState, pair: PromptPair, max_new_tokens: int = 40, edits: Sequence[Edit] = ()
) -> Retrieval:
    """How far each row of a state, which has read all of a prompt but its last token, tells the needles.

    Args:
        lens: the model.
        state: any number of rows.
        pair: the prompts, of which only the needles and the last token are used.
        max_new_tokens: of the answers that are scored; 0 for none, whose scores are 0.
        edits: those of phase "decode" act.
    """
    likely = logprobs(lens, state, [pair] * state.batch, edits)
    scores = [torch.zeros(state.batch), torch.zeros(state.batch)]
    if max_new_tokens:
        said = generate_with(lens, [[pair.a[-1]]] * state.batch, (), max_new_tokens, edits, state=state).text
        scores = [torch.tensor([score(text, rubric) for text in said]) for rubric in (pair.rubric_a, pair.rubric_b)]
    return Retrieval(likely.a, likely.b, *scores)


def _places(pair: PromptPair, step: int) -> list[Span]:
    """What is read before the last token, in pieces."""
    end = pair.length - 1
    return [(start, min(start + step, end)) for start in range(0, end, step)]


def _left(
    lens: HybridLens, pair: PromptPair, step: int, edits: Sequence[Edit]
) -> Iterator[tuple[Span, list[HybridState]]]:
    """What prompts A and B have left at the end of each place; both are read once, as two rows."""
    state = lens.network.empty_state(2)
    for start, stop in _places(pair, step):
        pieces = [list(side[start:stop]) for side in (pair.a, pair.b)]
        with torch.no_grad():
            state = lens.extend(state, pieces, edits, phase="prefill", last_only=True).state
        yield (start, stop), state.split(lens.cfg.window)


def _read_on(lens: HybridLens, state: HybridState, rest: Sequence[Sequence[int]], edits: Sequence[Edit]) -> HybridState:
    """The state after the rest of the prompt, of another length in each row; nothing for some."""
    if not any(rest):
        return state
    rows = [torch.tensor(row, dtype=torch.long) for row in rest]
    tokens = sent(pad_sequence(rows, batch_first=True, padding_value=lens.pad_token), lens.device)
    lengths = torch.tensor([len(row) for row in rest], device=lens.device)
    with torch.no_grad(), lens.editing(edits, "prefill") as forward:
        return forward(tokens, lengths, state, True).state


def _mapped(
    lens: HybridLens,
    pair: PromptPair,
    what: str,
    groups: Sequence[Group],
    held: Mapping[Span, bool],
    intact: HybridState,
    changed: Callable[[Group, Sequence[Span]], HybridState],
    rows: int,
    edits: Sequence[Edit],
    max_new_tokens: int,
) -> DamageMap:
    """The map of what `changed` gives for each group at some places; `held` has all of them, in order."""
    places = tuple(held)
    parts: list[Retrieval] = []
    with counted(len(groups) * len(places), "places") as done:
        for group in groups:
            for start in range(0, len(places), rows):
                some = places[start : start + rows]
                parts.append(retrieval(lens, changed(group, some), pair, max_new_tokens, edits))
                done(len(some))
    return DamageMap(
        what,
        lens.network.signature,
        pair.name,
        pair.spans,
        tuple(map(str, pair.a) if lens.tokenizer is None else to_strings(pair.a, lens.tokenizer)),
        tuple(group.name for group in groups),
        places,
        tuple(held.values()),
        retrieval(lens, intact, pair, max_new_tokens, edits),
        Retrieval(*(torch.cat(column) for column in zip(*parts, strict=True))),
    )
