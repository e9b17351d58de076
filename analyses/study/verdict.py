"""The paper's claims under its three hypotheses, and which of them hold for a model, by rule from what was measured.

A claim is a row of data, `CLAIMS`: its sentence, the paper's number for each of its models, the rule in words, and
the rule itself (`analyses.study.claim_rules`), which makes tests of the evidence (`analyses.study.evidence`).

There are three outcomes. An interval that holds the threshold supports neither "holds" nor "fails"; it is shown as
"not tested here" with the reason "undecided: …" beside the measured value, so that nobody takes a study that is too
small for evidence, or for a study that was not made. What cannot be asked of a model is "not asked: …" there: any
claim of one without attention, and what is left without it of one that has no state beside it.

Two numbers of the paper are asserted nowhere, as they do not follow from its others: 84 % of MMLU, and 2.8 points
between ablated and sparse on GLUE. Its k = 5 for near-perfect retrieval (section 4) and its decline "to k = 6, where
it sharply dropped to zero" (section 3.1) do not agree either; both are given as it gives them.

How it fails: a missing experiment leaves its claims untested; nothing raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from analyses.study import claim_rules as rules
from analyses.study.benchmarks.results import BenchmarkRow
from analyses.study.evidence import Evidence, ModelFacts, Outcome, Rule, untested
from analyses.study.views import ANSWERINGS, READINGS
from hybridlens.display import Displayed
from hybridlens.display.markup import cut
from hybridlens.results import Cell

UNTESTED: Outcome = "not tested here"

HYPOTHESES = {
    "H1": "retrieval depends on attention alone",
    "H2": "attention is specialised for retrieval",
    "H3": "the needle has to be seen while answering, its context at some time, and with exact weights",
}
"""The paper's hypotheses in short."""


class _Verdict(NamedTuple):
    """Fields of `Verdict`."""

    id: str
    hypothesis: str
    claim: str
    paper: str
    measured: str
    outcome: Outcome
    rule: str
    reason: str


class Verdict(Displayed, _Verdict):
    """One claim and what became of it.

    Attributes:
        id, hypothesis, claim, rule: as in `Claim`, whose `sentence` `claim` is.
        paper: the paper's number for this model; "–" where it gives none.
        measured: values with their 95 % intervals, in words.
        outcome: "holds", "fails" or "not tested here".
        reason: what speaks against it, or why it was not decided; empty where it holds.
    """

    __slots__ = ()

    @property
    def said(self) -> str:
        """The outcome in a word: "holds", "fails", "undecided" where it was run and stays open, "" where it was not."""
        if self.outcome != UNTESTED:
            return self.outcome
        return "undecided" if self.reason.startswith("undecided") else ""

    def summary(self) -> str:
        """What became of which claim."""
        return f"{self.id} {self.outcome}: {cut(self.claim, 110)}"


class Claim(NamedTuple):
    """One claim of the paper.

    Attributes:
        id: short name, that of its hypothesis first.
        sentence: the claim.
        paper: the paper's name of a model -> the number that it gives.
        rule: what decides, in words.
        decide: the rule.
        families: families that the claim is about; None for all.
        left: whether it is about what retrieves when no attention does.
    """

    id: str
    sentence: str
    paper: Mapping[str, str]
    rule: str
    decide: Rule
    families: tuple[str, ...] | None = None
    left: bool = False

    @property
    def hypothesis(self) -> str:
        """Of the paper: "H1", "H2" or "H3"."""
        return self.id.split("-")[0].upper()


def verdicts(cells: Sequence[Cell], benchmark_rows: Sequence[BenchmarkRow], facts: ModelFacts) -> list[Verdict]:
    """Every claim of the paper, with what was measured of one model.

    Args:
        cells: a study's, of any experiments.
        benchmark_rows: scores of benchmarks in the prefill version, the main metric of each task first; may be empty.
        facts: of the model.

    Raises:
        ResultsError: the cells are of several models.
    """
    evidence = Evidence(cells, benchmark_rows, facts)
    found: list[Verdict] = []
    for claim in CLAIMS:
        paper = claim.paper.get(facts.paper_name or "", "–")
        if not facts.base.n_heads:
            measured, outcome, reason = untested("not asked: no attention")
        elif claim.left and not facts.beside:
            measured, outcome, reason = untested("not asked: no state beside attention that could hold a needle")
        elif claim.families is None or facts.family in claim.families:
            measured, outcome, reason = claim.decide(evidence)
        else:
            measured, outcome, reason = untested(f"the paper says it of {', '.join(claim.families)} models")
        found.append(Verdict(claim.id, claim.hypothesis, claim.sentence, paper, measured, outcome, claim.rule, reason))
    return found


_ALL = ("RG-2B", "RG-9B", "Jamba")
_OMITTED = tuple((reading, "omit") for reading in READINGS)
_BINARY = tuple((r, a) for r in READINGS for a in ANSWERINGS if "binary" in (r, a))
_CONTEXT_READ = (("keep", "only"), ("omit", "only"))
_NO_CONTEXT = (("only", "only"), ("null", "only"))
_CONTEXT_ANSWERING = (("omit", "keep"), ("only", "keep"), ("null", "keep"))

CLAIMS: tuple[Claim, ...] = (
    Claim("h1-ablated", "With all attention heads dropped, retrieval fails completely.",
          dict.fromkeys(_ALL, "0 %"),
          "Accuracy at k = 0 under 10 %, in every version that was run.", rules.ablated, left=True),
    Claim("h1-twice-ablated", "Reading twice does not bring retrieval back without attention.",
          dict.fromkeys(_ALL, "nothing recovered"),
          "Read twice, accuracy at k = 0 under half of that with all heads on the same prompts.", rules.twice_ablated,
          left=True),
    Claim("h1-twice-few", "Nor does it with one or two heads kept, where retrieval is lost.",
          dict.fromkeys(_ALL, "nothing recovered"),
          "At each k of 1 and 2 at which retrieval is lost (under half of all heads) read once, it is read twice.",
          rules.twice_few),
    Claim("h1-tipping", "There is a tipping point at one to four heads kept while answering.",
          {"RG-2B": "1 of 10 heads", "RG-9B": "2 of 16 heads", "Jamba": "4 of 32 heads"},
          "The largest k at which accuracy is under half of that with all heads lies in 1 … 4, its interval too.",
          rules.tipping_range),
    Claim("h1-abrupt", "At the tipping point accuracy falls to zero at once.",
          {"RG-2B": "collapse at k = 1", "RG-9B": "0 % at k = 2", "Jamba": "0 % below k = 6"},
          "Accuracy at the tipping point, generation version, under 10 %.", rules.abrupt),
    Claim("h1-heads", "The more heads a layer has, the higher the tipping point.",
          {"RG-2B": "1 of 10 heads", "RG-9B": "2 of 16 heads", "Jamba": "4 of 32 heads"},
          "Needs several models.", rules.across_models),
    Claim("h1-stable", "Accuracy stays high while the first heads are dropped.",
          {"RG-2B": "stable until k = 1", "RG-9B": "declining from k = 16", "Jamba": "100 % down to k = 27"},
          "Generation version, 15 % of heads dropped: at least 90 % of the accuracy with all heads.",
          partial(rules.few_kept, phase="generation", dropped=True)),
    Claim("h1-few", "15 % of the heads are enough for near-perfect retrieval, dropped while answering.", {},
          "At k = 15 % of heads, rounded up, at least 90 % of the accuracy with all heads.",
          partial(rules.few_kept, phase="generation")),
    Claim("h1-prefill-drop", "Dropping heads while reading too costs RecurrentGemma most of its accuracy at once.",
          {"RG-2B": "about 20 %"},
          "Prefill version, one head dropped: accuracy under half of that with all heads.", rules.prefill_drop,
          ("recurrentgemma",)),
    Claim("h1-prefill-alike", "Jamba does nearly as well when heads are dropped while reading too.",
          {"Jamba": "as its generation version"},
          "Mean over all k below n_heads: prefill and generation version within 10 points.", rules.prefill_alike,
          ("jamba",)),
    Claim("h1-prefill-size", "The larger the model, the less it costs to drop heads while reading too.", {},
          "Needs several models.", rules.across_models),
    Claim("h2-few-prefill", "15 % of the heads are enough for near-perfect retrieval, in the version benchmarked.",
          {"Jamba": "near-perfect at k = 5 of 32"},
          "Prefill version at k = 15 % of heads, rounded up: at least 90 % of the accuracy with all heads.",
          partial(rules.few_kept, phase="prefill")),
    Claim("h2-general-sparse", "With few heads kept, general language tasks lose little.",
          {"Jamba": "GLUE −9.1 points at k = 5"},
          "Each general task that was run (GLUE, or the local grammar and facts) loses under 10 points.",
          partial(rules.loses, tasks=rules.GENERAL, sparse=True)),
    Claim("h2-general-ablated", "With all heads dropped, general language tasks lose little.",
          {"Jamba": "GLUE −6.6 points"},
          "Each general task that was run (GLUE, or the local grammar and facts) loses under 10 points at k = 0.",
          partial(rules.loses, tasks=rules.GENERAL)),
    Claim("h2-contrast", "Dropping all heads costs retrieval far more than general language tasks.",
          {"Jamba": "retrieval to 0 %; GLUE −6.6 points"},
          "At k = 0, prefill version, each retrieval task loses over 10 points more than each general task.",
          rules.contrast),
    Claim("h2-mmlu-sparse", "With few heads kept, MMLU loses little.", {"Jamba": "−6 points at k = 5"},
          "MMLU loses under 10 points.", partial(rules.loses, tasks=("mmlu",), sparse=True)),
    Claim("h2-mmlu-ablated", "With all heads dropped, MMLU loses much.", {"Jamba": "about −42 points"},
          "MMLU loses over 10 points at k = 0.", partial(rules.loses, tasks=("mmlu",), much=True)),
    Claim("h2-glue-order", "On GLUE the ablated model is slightly better than the sparse one.",
          {"Jamba": "−6.6 points at k = 0, −9.1 at k = 5"},
          "GLUE at k = 0 above that with few heads kept.", rules.glue_order),
    Claim("h3-omit", "The needle has to be visible while answering: omitted there, no retrieval.",
          {"RG-2B": "3.7 / 0.0 / 0.1 / 0.0 / 0.0 % (reading Keep / Omit / Only / Binary / Null)"},
          "Omit while answering, with every manipulation while reading: accuracy under half of Keep-Keep.",
          partial(rules.combinations, pairs=_OMITTED)),
    Claim("h3-context-read", "The needle alone is enough while answering, if its surroundings were read.",
          {"RG-2B": "Only-Keep 85.7 %, Only-Omit 53.0 %; Keep-Keep 50.3 %"},
          "Only-Keep and Only-Omit: at least half of Keep-Keep.",
          partial(rules.combinations, pairs=_CONTEXT_READ, above=True)),
    Claim("h3-no-context", "The needle alone is not enough while answering, if its surroundings were not read.",
          {"RG-2B": "Only-Only 18.2 %, Only-Null 17.0 %"},
          "Only-Only and Only-Null: under half of Keep-Keep.", partial(rules.combinations, pairs=_NO_CONTEXT)),
    Claim("h3-context-answering", "With everything visible while answering, it does not matter what was read.",
          {"RG-2B": "Keep-Omit 63.0 %, Keep-Only 70.6 %, Keep-Null 68.8 %"},
          "Keep-Omit, Keep-Only and Keep-Null: at least half of Keep-Keep.",
          partial(rules.combinations, pairs=_CONTEXT_ANSWERING, above=True)),
    Claim("h3-improves", "Manipulations that do not destroy retrieval improve it.",
          {"RG-2B": "53.0 to 85.7 %, against 50.3 %"},
          "Keep-Omit, Keep-Only, Keep-Null, Only-Keep and Only-Omit above Keep-Keep, where that is under 90 %.",
          partial(rules.combinations, pairs=(*_CONTEXT_ANSWERING, *_CONTEXT_READ), share=1.0, above=True)),
    Claim("h3-weights", "The exact weights matter: with their mean in their place, no retrieval.",
          {"RG-2B": "0.0 % with Binary while reading; Binary while answering as Omit there"},
          "Every combination with Binary: accuracy under half of Keep-Keep.",
          partial(rules.combinations, pairs=_BINARY)),
    Claim("h3-beyond-window", "A needle that has left the window comes back only if it was visible while reading.",
          {"RG-2B": "maps only (figure 4)"},
          "Needles beyond the window when answering begins: Keep-Omit under half of Keep-Keep.",
          rules.beyond_needs_reading, ("recurrentgemma",)),
    Claim("h3-omit-window", "What Omit-Keep still retrieves are needles inside the window.",
          {"RG-2B": "maps only (figure 4)"},
          "Omit-Keep above its chance level where the needle is in the window, and under 10 % beyond it.",
          rules.omit_in_window_only, ("recurrentgemma",)),
)  # fmt: skip
"""The claims, hypothesis by hypothesis, in the paper's order."""
