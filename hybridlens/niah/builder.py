"""The grid of prompts and its controls: the entry points of the benchmark.

`grid` checks everything first (lengths, depths, template, tokenizer, needle) and makes prompts after, so
that bad input stops before anything is made. Which builder works is `semantics`: "clean" (`clean.py`) or
"published" (`published.py`).

How it fails: the filler of a grid starts with the same sentences at every length, as in the paper, so the
hundred prompts are not independent draws; use several seeds, or needles, for error bars.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hybridlens.boundary import Length, Percent, Seed, public
from hybridlens.errors import InputError
from hybridlens.niah import clean, published
from hybridlens.niah.checks import check_plain, warn_special, warn_unscored, warn_without_bos
from hybridlens.niah.encoding import Tokenizer, check_open_end, warn_unknown
from hybridlens.niah.haystack import Haystack, essays
from hybridlens.niah.lengths import DEFAULT_DEPTHS, PAPER_MAX_LENGTH, check_axis, default_lengths
from hybridlens.niah.needles import PAPER_NEEDLE, Needle
from hybridlens.niah.prompt import Frame, Prompts, SemanticsLike, make_frame
from hybridlens.niah.rubric import normalise
from hybridlens.niah.templates import TemplateLike


class RepeatedPromptWarning(UserWarning):
    """The published builder made one prompt at several places."""


@public
def grid(
    tokenizer: Tokenizer,
    lengths: Sequence[Length] | None = None,
    depths: Sequence[Percent] | None = None,
    haystack: Haystack | None = None,
    needle: Needle = PAPER_NEEDLE,
    template: TemplateLike = "base",
    jrt: bool = False,
    semantics: SemanticsLike = "clean",
    seed: Seed = 0,
) -> Prompts:
    """The prompts of a benchmark, one for each length and depth, length-major.

    Args:
        tokenizer: any fast Hugging Face tokenizer.
        lengths: tokens of the prompts, template, question and BOS included; by default ten up to the
            tokenizer's `model_max_length`, at most the paper's 4096 (`default_lengths`).
        depths: the needle's places in percent, 0 the context's start, 100 its end; by default the paper's.
        haystack: the filler; the built-in essays of `seed` by default.
        needle: what is hidden and asked for.
        template: "base", "unspaced" or "instruct".
        jrt: context and question twice. Clean: the length counts both; published: it counts one.
        semantics: "clean" or "published".
        seed: of the built-in essays; unused with a haystack.

    Returns:
        ``len(lengths) * len(depths)`` prompts. Clean: all prompts of one length have exactly that many
        tokens and pairwise different needle places.

    Raises:
        UnknownNameError: an unknown template or builder.
        InputError: lengths or depths out of range or repeated; a needle
            that does not fit the shortest length, or holds a special token; a tokenizer without offsets, or one
            that ends prompts with its end-of-text token; a haystack that is empty or holds the needle.

    Warns:
        UserWarning: the tokenizer does not know some words of needle, question or template; the published
            builder puts the needle of several depths in one place; and what `hybridlens.niah.checks` warns of: an
            answer that could not get every point, prompts without their BOS, special tokens in the haystack.
    """
    plan = _plan(tokenizer, lengths, depths, haystack, needle, template, jrt, semantics, seed)
    warn_unknown(tokenizer, [needle.sentence, plan.frame.render([""] * plan.frame.readings).text])
    warn_unscored(tokenizer, needle)
    warn_without_bos(plan.frame)
    frame, longest = plan.frame, max(plan.lengths)
    if plan.supply is not None:
        cells = [clean.clean_prompts(frame, plan.supply, length, plan.depths) for length in plan.lengths]
    else:
        ids = published.haystack_ids(tokenizer, plan.haystack, longest)
        ends = published.Ends.of(tokenizer)
        found = {length: published.places(frame, ids, length, plan.depths, ends) for length in plan.lengths}
        _say_where(found)
        cells = [published.published_prompts(frame, ids, length, at) for length, at in found.items()]
    prompts = Prompts(prompt for row in cells for prompt in row)
    warn_special(frame, prompts, plan.haystack.name)
    return prompts


@public
def controls(
    tokenizer: Tokenizer,
    lengths: Sequence[Length] | None = None,
    depths: Sequence[Percent] | None = None,
    haystack: Haystack | None = None,
    needle: Needle = PAPER_NEEDLE,
    template: TemplateLike = "base",
    jrt: bool = False,
    semantics: SemanticsLike = "clean",
    seed: Seed = 0,
) -> Prompts:
    """The controls of a grid: one prompt for each length, with filler in the needle's stead.

    What a model scores on them is its chance level. Takes what `grid` takes (the depths only set which
    sentences are short enough) and raises the same errors.

    Returns:
        ``len(lengths)`` prompts, without needle spans and depth; clean ones have exactly as many tokens
        as the grid's prompts of their length.
    """
    plan = _plan(tokenizer, lengths, depths, haystack, needle, template, jrt, semantics, seed)
    if plan.supply is not None:
        depths, supply = plan.depths, plan.supply
        return Prompts(clean.clean_control(plan.frame, supply, length, len(depths)) for length in plan.lengths)
    ids = published.haystack_ids(tokenizer, plan.haystack, max(plan.lengths))
    return Prompts(published.published_control(plan.frame, ids, length) for length in plan.lengths)


@public
def shortest_length(
    tokenizer: Tokenizer,
    depths: Sequence[Percent] | None = None,
    haystack: Haystack | None = None,
    needle: Needle = PAPER_NEEDLE,
    template: TemplateLike = "base",
    jrt: bool = False,
    semantics: SemanticsLike = "clean",
    seed: Seed = 0,
) -> int:
    """The shortest length, in tokens, that default grids use; give it to `default_lengths`.

    Clean: template, question and needle, and between each two depths one sentence of the haystack's
    lower quartile of lengths, rounded up to the next ten. Published: the shortest with any filler.
    Shorter lengths may still work with the clean builder.
    """
    frame = make_frame(tokenizer, needle, template, jrt)
    return _shortest(frame, haystack or essays(seed), len(depths or DEFAULT_DEPTHS), semantics)


def _shortest(frame: Frame, haystack: Haystack, n_places: int, semantics: str) -> int:
    """See `shortest_length`."""
    if semantics == "published":
        return published.shortest_fit(frame)
    return clean.shortest_fit(frame, clean.make_supply(frame, haystack, 0), n_places)


def _say_where(found: Mapping[int, Mapping[int, int]]) -> None:
    """Warn of depths at which the published builder puts the needle in one place."""
    told: list[str] = []
    for length, at in found.items():
        for place in dict.fromkeys(at.values()):
            same = [str(depth) for depth in at if at[depth] == place]
            if len(same) > 1:
                where = "the start, since no sentence ends before them" if place == 0 else "one sentence end"
                told.append(f"at length {length} depths {', '.join(same)} all stand at {where}")
    if told:
        more = f"; and so on, {len(told)} times" if len(told) > 3 else ""
        warnings.warn(
            f"the published builder gives the same prompt several times: {'; '.join(told[:3])}{more}; "
            "take longer lengths, fewer depths, or clean semantics, whose places differ",
            RepeatedPromptWarning,
            stacklevel=4,
        )


class _Plan(NamedTuple):
    """Checked arguments of a grid."""

    frame: Frame
    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    haystack: Haystack
    supply: clean.Supply | None
    """What clean prompts are made of; None for the published builder."""


def _plan(
    tokenizer: Tokenizer,
    lengths: Sequence[int] | None,
    depths: Sequence[int] | None,
    haystack: Haystack | None,
    needle: Needle,
    template: str,
    jrt: bool,
    semantics: str,
    seed: int,
) -> _Plan:
    """Every check of `grid`, and the defaults filled in."""
    frame = make_frame(tokenizer, needle, template, jrt)
    check_plain(tokenizer, needle)
    check_open_end(tokenizer, frame.encode(frame.render([""] * frame.readings)))
    percent = check_axis("depths", DEFAULT_DEPTHS if depths is None else depths)
    if lengths is None:
        longest = min(PAPER_MAX_LENGTH, int(tokenizer.model_max_length))
        tokens = default_lengths(longest, _shortest(frame, haystack or essays(seed), len(percent), semantics))
    else:
        tokens = check_axis("lengths", lengths)
    source = haystack if haystack is not None else essays(seed, 1000 + max(tokens) // 2)
    if normalise(needle.sentence) in normalise(source.text):
        raise InputError(
            f"haystack {source.name!r} already holds the needle {needle.sentence!r}, so its controls would "
            "hold it too; remove it there or hide another needle"
        )
    if semantics == "published":
        published.check_fit(frame, tokens)
        return _Plan(frame, tokens, percent, source, None)
    supply = clean.make_supply(frame, source, max(tokens))
    clean.check_fit(frame, supply, tokens, len(percent))
    return _Plan(frame, tokens, percent, source, supply)
