"""The finding of a sweep in sentences, and the words that axes and labels share.

Nothing here depends on a figure: `headline` turns `Finding`s into text that a reader can check against the
curve. How it fails: an empty list of findings raises `ResultsError`.
"""

from collections.abc import Sequence

from hybridlens.display import many
from hybridlens.errors import ResultsError
from hybridlens.results import Finding

PHASE_TITLES = {"generation": "Generation only", "prefill": "Prefill and generation"}
PHASE_NOTES = {
    "generation": "the whole prompt is read with every head; heads are dropped while answering",
    "prefill": "heads are dropped while the prompt is read and while answering",
}
START = "start of the context"
END = "end, next to the question"
LEFT_OUT = "needle left out"
DASH = "–"
INTERVALS = (
    "A 95 % interval says where a mean might lie with other prompts of this kind: prompts are drawn again, with "
    "replacement, from those that were run, and it goes from the 2.5 % to the 97.5 % point of the means. It is widened "
    "where so few prompts may have missed another kind by chance."
)
"""What intervals in reports are (`hybridlens.results.statistics`)."""
_CLOSE = 0.1  # accuracies nearer than this to chance are said to be near it


def percent(value: float) -> str:
    """An accuracy between 0 and 1 as people read it, "97 %" or "0.4 %", with a space that never breaks."""
    return f"{100 * value:.1f}\u00a0%" if 0 < value < 0.01 else f"{100 * value:z.0f}\u00a0%".replace("-", "−")


def heads(k: int) -> str:
    """A number of heads in words: "no attention", "1 head", "5 heads"."""
    return "no attention" if k == 0 else many(k, "head")


def depth_label(depth: float | int | None) -> str:
    """A depth as an axis shows it; the two ends, and prompts without the needle, are named."""
    if depth is None:
        return LEFT_OUT
    ends: dict[float, str] = {0: f"0 %<br>{START}", 100: f"100 %<br>{END}"}
    return ends.get(depth, f"{depth:g} %")


def headline(findings: Sequence[Finding], model: str, n_heads: int | None) -> list[str]:
    """The finding in one sentence about the full model and one for each phase.

    Args:
        findings: one for each phase, the first taken for the full model's accuracy.
        n_heads: heads per layer; None when unknown.

    Raises:
        ResultsError: there is no finding.
    """
    if not findings:
        raise ResultsError("no cell with a needle, so there is nothing to state; run the sweep first")
    first = findings[0]
    kept = f"all {n_heads} heads" if first.k_full == n_heads else f"{heads(first.k_full)} kept"
    opening = f"With {kept}, {model} finds the needle with {percent(first.full)} accuracy"
    if first.chance is None:
        opening += "; no prompt was run without the needle, so chance is not known."
    else:
        opening += f"; without a needle in the prompt, chance alone scores {percent(first.chance)}."
    sentences = [opening]
    if first.chance is not None and first.full - first.chance < _CLOSE:
        sentences.append("That is close to chance: there is little retrieval here to lose, whatever the heads.")
    return sentences + [_of_phase(found) for found in findings]


def _of_phase(found: Finding) -> str:
    """One sentence: where accuracy tips over, and what is left at the smallest k."""
    lead = {
        "generation": "When heads are dropped only while answering,",
        "prefill": "When they are dropped while reading the prompt too,",
    }[found.phase]
    k_tip, at_tip = found.tipping_point, found.at_tipping_point
    left = f"with {heads(found.k_least)} it is {percent(found.least)}"
    if found.chance is not None and abs(found.least - found.chance) < _CLOSE / 2:
        left += f", the chance level being {percent(found.chance)}"
    if k_tip is None or at_tip is None:
        return f"{lead} accuracy never falls under half of the full model's: {left}."
    tipped = f"{lead} accuracy falls under half of the full model's at k = {k_tip} ({percent(at_tip)})"
    return f"{tipped}." if k_tip == found.k_least else f"{tipped}; {left}."
