"""What a comparison of rankings says in words: a winner only where there is one, and cells that are missing."""

import itertools

import pytest
import torch

from analyses.heads.ranking import HeadRanking
from analyses.study.rankings.results import (
    RUN_TIME,
    Ability,
    RankingComparison,
    comparison,
    decision_of,
    keys_of,
    scores_of,
)
from analyses.study.rankings.words import best_rows, sentences
from hybridlens.errors import ResultsError
from hybridlens.results import Cell, CellKey


def ranking(scores: torch.Tensor, layers: tuple[int, ...] = (1, 5), lower: bool = False) -> HeadRanking:
    return HeadRanking(scores, layers, "by hand", lower)


def made_up(
    curves: dict[str, list[float]],
    prompts: int = 40,
    jitter: float = 0.0,
    precision: float = 0.03,
    looks: tuple[int, ...] | None = None,
) -> RankingComparison:
    """A comparison whose rows have these scores at every prompt, some more and some less by `jitter`."""
    counts = tuple(range(len(next(iter(curves.values())))))
    layers = 1
    bases = [CellKey("toy", "prefill", 0, 110 + i, 50, False, scope="model") for i in range(prompts)]
    orders = {name: torch.arange(8.0).roll(i).view(2, 4) for i, name in enumerate(curves)}
    rankings = {name: ranking(orders[name]) for name in curves if name != RUN_TIME}
    cells: dict[CellKey, Cell] = {}
    for (i, base), (name, curve) in itertools.product(enumerate(bases), curves.items()):
        shift = jitter if (i + len(name)) % 2 else -jitter
        for n, key in keys_of(name, counts, base, layers).items():
            inside = 0 < n < counts[-1]
            value = 5 * min(1.0, max(0.0, curve[n] + shift * inside))
            rest = {"text": "", "needle_start": 1, "needle_end": 2, "seconds": 0.0, "prompt_hash": "h"}
            cells[key] = Cell(**key._asdict(), score=value, **rest)
    rows = len(curves)
    ability = Ability(torch.ones(rows, len(counts)), (), {})
    given = cells, bases, rankings, counts, layers, RUN_TIME in curves
    return comparison(*given, "both", decision_of(*given, precision, looks), ability)


def test_words_name_a_winner_only_where_there_is_one() -> None:
    early, late = [0, 1, 1, 1, 1, 1, 1, 1, 1.0], [0, 0, 0, 0, 0, 0, 0, 1, 1.0]
    middle = [0, 0, 0, 1, 1, 1, 1, 1, 1.0]
    found = made_up({RUN_TIME: middle, "good": early, "bad": late})
    said = " ".join(sentences(found))
    assert best_rows(found) == ("good",)
    assert said.startswith("good keeps retrieval with the fewest heads, and is told apart from every other ranking. ")
    assert "The area of good under accuracy, over all numbers of heads kept, is 0.938" in said
    assert "keeps half of the untouched accuracy with 1 head in every draw" in said
    assert "bad (−0.50, " in said
    assert "does worse than entropy at run time" in said
    assert "does better than entropy at run time" in said
    assert "No ranking was found to do worse" not in said
    even = made_up({RUN_TIME: middle, "good": [0, 0, 0.05, 1, 1, 1, 1, 1, 1.0]}, jitter=0.2)
    said = " ".join(sentences(even))
    assert set(best_rows(even)) == {"good", RUN_TIME}
    assert said.startswith("Open on 40 prompts: which ranking keeps retrieval with the fewest heads. ")
    assert "not told apart" in said
    assert "keeps retrieval with the fewest heads, and" not in said
    assert "No ranking was found to do worse than entropy at run time." in said
    assert "would not settle it; a larger --precision would" in said
    silent = made_up({"one": [0.0] * 9, "two": [0.0] * 9})
    assert sentences(silent) == [
        "toy answers 0 of 40 prompts with all its heads, so no ranking can be judged by what it keeps."
    ]


def test_words_say_what_is_equal_and_what_is_open() -> None:
    """By the standing of each ranking; what is open has its interval and what it would take."""
    rest = [0, 1, 1, 1, 1, 1, 1, 1, 1.0]
    curves = {"one": [0, 0, *rest[2:]], "two": [0, 0.9, *rest[2:]], "last": [0, 0, 0, 0, 0, 0, 0, 1, 1.0]}
    found = made_up(curves, looks=(40, 80, 160, 320, 640, 1280))
    first, unsettled, more, *others = sentences(found)
    short = found.decision.shortfall("two")
    assert first.startswith("Open on 40 prompts: which ranking keeps retrieval with the fewest heads. two keeps most ")
    assert f" the best of the others: two ({short.low:+.3f} to {short.high:+.3f}), one (".replace("-", "−") in unsettled
    assert f"about {found.decision.needed - 40:,} more would settle it: --prompts {found.decision.needed} goes" in more
    assert others[0] == "last keeps less for sure."
    assert "The rule: after 40, 80, 160, … and at most 1,280 prompts the areas" in others[-1]
    first, less, *_ = sentences(made_up(curves, precision=0.4))
    assert first.startswith("No ranking alone keeps retrieval with the fewest heads: the best are equal within 0.4 of ")
    assert ", two (−" in first
    assert ") and one (+" in first
    assert less == "last keeps less for sure."


def test_missing_cells_are_named() -> None:
    bases = [CellKey("toy", "prefill", 0, 110, 50, False, scope="model")]
    with pytest.raises(ResultsError, match=r"the cell \(prefill, k 0, length 110, .*ranking one\) is missing"):
        scores_of({}, "one", (0, 1), bases, 2)
