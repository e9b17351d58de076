"""The rules of the verdicts: from evidence to findings, one function for each kind of claim.

The thresholds are ours, since the paper states none: "lost" is under half of the untouched model's accuracy, as in
its tipping points; "near-perfect" at least 90 % of it; "zero" under 10 %; "little" under 10 points. Shares of the
untouched model are taken place by place, on the same prompts.

How it fails: a rule about what is lost needs a model that retrieves: where the untouched one does not stand out from
its controls, or a cell that the rule needs was not run, the claim is not tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from analyses.study.evidence import Check, Evidence, Finding, judge, less, percent, points, untested
from analyses.study.groups import Estimate, Group, Place, accuracy, chance, common, compare
from analyses.study.views import tipping, tipping_spread

NEAR_ZERO = 0.10
NEAR_PERFECT = 0.90
LITTLE = 0.10
CEILING = 0.90
FEW = 0.15
"""Share of heads that the paper finds enough: 5 of 32."""

GENERAL = ("glue", "tiny_grammar", "tiny_facts")
"""Tasks that need no retrieval from the prompt: the paper's, and the project's own for its tiny models."""

RETRIEVAL = ("tiny_retrieval", "tiny_recite")


def few(n_heads: int) -> int:
    """Heads of a layer that make up the paper's 15 %: 5 of 32, 2 of 8, 2 of 10, 3 of 16."""
    return math.ceil(FEW * n_heads)


def _no_baseline(group: Group | None, what: str = "the untouched model") -> Finding | None:
    """Why nothing can be lost: the untouched model was not run, or retrieves no better than chance."""
    found, floor = accuracy(group), chance(group)
    if found is None:
        return untested(f"not run: {what}")
    if found.low <= max(NEAR_ZERO, floor or 0.0):
        return untested(f"{what} itself does not retrieve", percent(what, group))
    return None


def _kept(name: str, group: Group | None, full: Group | None, share: float, above: bool) -> Check:
    """That a condition keeps at least, or under, a share of the untouched model's accuracy, place by place."""
    found = None if group is None or full is None else compare(group, full, share)
    return Check(percent(name, group), found, above)


def _zero(name: str, group: Group | None) -> Check:
    return Check(percent(name, group), less(accuracy(group), NEAR_ZERO), above=False)


def ablated(evidence: Evidence) -> Finding:
    """Accuracy with no head kept is zero, in every version that was run."""
    full = evidence.full()
    if (missing := _no_baseline(full)) is not None:
        return missing
    run = [phase for phase in ("generation", "prefill") if evidence.curve(phase, 0) is not None]
    return judge([_zero(f"k = 0, {phase}", evidence.curve(phase, 0)) for phase in run or ("generation",)])


def twice_ablated(evidence: Evidence) -> Finding:
    """Read twice, retrieval with no head kept is lost."""
    full = evidence.twice.get(evidence.n_heads)
    if (missing := _no_baseline(full, "all heads, read twice")) is not None:
        return missing
    words = percent("all heads, read twice", full)
    return _after(words, judge([_kept("k = 0, read twice", evidence.twice.get(0), full, 0.5, above=False)]))


def twice_few(evidence: Evidence) -> Finding:
    """Where retrieval with one or two heads is lost read once, it is lost read twice."""
    full, full_once = evidence.twice.get(evidence.n_heads), evidence.full()
    if (missing := _no_baseline(full, "all heads, read twice")) is not None:
        return missing
    tests: list[Check] = []
    once: list[Check] = []
    for k in range(1, min(3, evidence.n_heads)):
        read_once = _kept(f"k = {k}, read once", evidence.curve("generation", k), full_once, 0.5, above=False)
        once.append(read_once)
        if judge([read_once]).outcome == "holds":
            tests.append(_kept(f"k = {k}, read twice", evidence.twice.get(k), full, 0.5, above=False))
    if all(test.estimate is None for test in once):
        return untested(f"not run: {'; '.join(test.words for test in once)}")
    words = "; ".join(test.words for test in once if test.estimate is not None)
    if not tests:
        return untested("nothing to bring back: with 1 and 2 heads read once, retrieval is not shown to be lost", words)
    return _after(words, judge(tests))


def tipping_range(evidence: Evidence) -> Finding:
    """The tipping point and its interval lie in 1 … 4."""
    if (missing := _no_baseline(evidence.full())) is not None:
        return missing
    spread = tipping_spread(evidence.cells, evidence.base, "generation")
    curve = evidence.curves["generation"]
    if spread is None or len(curve) < 2 or evidence.n_heads not in curve:
        return untested("not run: k = 0 … n_heads, generation")
    at = tipping(curve)
    low, high = (-1 if end is None else end for end in (spread.low, spread.high))
    ends = ["none" if end is None else str(end) for end in (at, spread.low, spread.high)]
    words = f"tipping point {ends[0]} [{ends[1]}, {ends[2]}] of {evidence.n_heads} heads"
    if low >= 1 and high <= 4:
        return Finding(words, "holds", "")
    if high < 1 or low > 4:
        return Finding(words, "fails", f"against it: the tipping point is {ends[0]}")
    return untested("undecided: the interval reaches beyond 1 … 4", words)


def abrupt(evidence: Evidence) -> Finding:
    """Accuracy at the tipping point is zero."""
    if (missing := _no_baseline(evidence.full())) is not None:
        return missing
    curve = evidence.curves["generation"]
    at = tipping(curve) if evidence.n_heads in curve else None
    if at is None:
        return untested("no tipping point was found, or k = 0 … n_heads was not run")
    return judge([_zero(f"k = {at}", curve[at])])


def few_kept(phase: str, dropped: bool = False) -> Callable[[Evidence], Finding]:
    """15 % of heads, or all but 15 %, keep at least 90 % of the untouched model's accuracy."""

    def decide(evidence: Evidence) -> Finding:
        some = few(evidence.n_heads)
        full, k = evidence.full(phase), evidence.n_heads - some if dropped else some
        if (missing := _no_baseline(full)) is not None:
            return missing
        test = _kept(f"k = {k} of {evidence.n_heads}, {phase}", evidence.curve(phase, k), full, NEAR_PERFECT, True)
        return _after(percent("all heads", full), judge([test]))

    return decide


def prefill_drop(evidence: Evidence) -> Finding:
    """One head dropped while reading too, and retrieval is lost."""
    full, k = evidence.full("prefill"), evidence.n_heads - 1
    if (missing := _no_baseline(full)) is not None:
        return missing
    return judge([_kept(f"k = {k} of {k + 1}, prefill", evidence.curve("prefill", k), full, 0.5, above=False)])


def prefill_alike(evidence: Evidence) -> Finding:
    """The two versions lie within 10 points, in the mean over every k but n_heads."""
    if (missing := _no_baseline(evidence.full("prefill"))) is not None:
        return missing
    prefill, generation = evidence.curves["prefill"], evidence.curves["generation"]
    ks = [k for k in prefill if k in generation and k < evidence.n_heads]
    found = compare(_over_k([prefill[k] for k in ks]), _over_k([generation[k] for k in ks]))
    words = points("prefill less generation version, mean over k", found)
    return _once(judge([Check(words, less(found, -LITTLE), True), Check(words, less(found, LITTLE), False)]), words)


def _once(finding: Finding, words: str) -> Finding:
    """A finding of two tests of one quantity, which is told once."""
    return finding._replace(measured=words if finding.measured != "–" else "–")


def _over_k(groups: Sequence[Group]) -> Group:
    """Mean score of every place over several k."""
    places = common(groups)
    return Group({place: sum(group.scores[place] for group in groups) / len(groups) for place in places})


def loses_little(tasks: Sequence[str], ablated: bool) -> Callable[[Evidence], Finding]:
    """No task loses more than 10 points, without attention or with the sparse k."""

    def decide(evidence: Evidence) -> Finding:
        present, k = evidence.present(tasks), 0 if ablated else evidence.sparse_k(tasks)
        if not present or k is None:
            return untested(f"not run: {' or '.join(tasks)} with fewer heads and with all")
        changes = {task: evidence.change(task, k) for task in present}
        heads = f"k = {k} of {evidence.n_heads}"
        return judge(
            [Check(points(f"{task}, {heads}", c), less(c, -LITTLE), above=True) for task, c in changes.items()]
        )

    return decide


def loses_much(tasks: Sequence[str]) -> Callable[[Evidence], Finding]:
    """Every task loses more than 10 points without attention."""

    def decide(evidence: Evidence) -> Finding:
        present = evidence.present(tasks)
        if not present:
            return untested(f"not run: {' or '.join(tasks)} with no head and with all")
        changes = {task: evidence.change(task, 0) for task in present}
        return judge([Check(points(f"{task}, k = 0", c), less(c, -LITTLE), above=False) for task, c in changes.items()])

    return decide


def glue_order(evidence: Evidence) -> Finding:
    """GLUE without attention is above GLUE with few heads."""
    k = evidence.sparse_k(["glue"])
    found = None if k is None else evidence.change("glue", 0, k)
    if found is None:
        return untested("not run: glue with no head and with few")
    return judge([Check(points(f"glue, k = 0 less k = {k}", found), found, above=True)])


def contrast(evidence: Evidence) -> Finding:
    """Without attention each retrieval task loses over 10 points more than each general task."""
    general = {task: evidence.change(task, 0) for task in evidence.present(GENERAL)}
    asked = {task: evidence.change(task, 0) for task in evidence.present(RETRIEVAL)}
    full, none = evidence.full("prefill"), evidence.curve("prefill", 0)
    if full is not None and none is not None and _no_baseline(full) is None:
        asked["needle in a haystack"] = compare(none, full)
    tests: list[Check] = []
    for retrieval, lost in asked.items():
        for task, change in general.items():
            gap = None
            if lost is not None and change is not None:
                wide = math.hypot(lost.high - lost.mean, change.mean - change.low)
                thin = math.hypot(lost.mean - lost.low, change.high - change.mean)
                mean = lost.mean - change.mean
                gap = Estimate(mean, mean - thin, mean + wide, min(lost.n, change.n))
            words = f"{points(retrieval, lost)} against {points(task, change)}"
            tests.append(Check(words, less(gap, -LITTLE), above=False))
    if not tests:
        return untested("not run: a retrieval task and a general task, each with no head and with all")
    return judge(tests)


def lost(pairs: Iterable[tuple[str, str]]) -> Callable[[Evidence], Finding]:
    """All of these combinations (reading, answering) fall under half of Keep-Keep."""
    return _against_half(pairs, above=False)


def retrieves(pairs: Iterable[tuple[str, str]]) -> Callable[[Evidence], Finding]:
    """All of these combinations reach half of Keep-Keep."""
    return _against_half(pairs, above=True)


def _against_half(pairs: Iterable[tuple[str, str]], above: bool) -> Callable[[Evidence], Finding]:
    wanted = tuple(pairs)

    def decide(evidence: Evidence) -> Finding:
        keep = evidence.modes.get(("keep", "keep"))
        if (missing := _no_baseline(keep, "Keep-Keep")) is not None:
            return missing
        tests = [_kept(_name(pair), evidence.modes.get(pair), keep, 0.5, above) for pair in wanted]
        return _after(percent("Keep-Keep", keep), judge(tests))

    return decide


def improves(pairs: Iterable[tuple[str, str]]) -> Callable[[Evidence], Finding]:
    """All of these combinations score above Keep-Keep."""
    wanted = tuple(pairs)

    def decide(evidence: Evidence) -> Finding:
        keep = evidence.modes.get(("keep", "keep"))
        if (missing := _no_baseline(keep, "Keep-Keep")) is not None:
            return missing
        found = accuracy(keep)
        words = percent("Keep-Keep", keep)
        if found is not None and found.high > CEILING:
            return untested("Keep-Keep leaves no room above it", words)
        return _after(words, judge([_kept(_name(pair), evidence.modes.get(pair), keep, 1.0, True) for pair in wanted]))

    return decide


def _name(pair: tuple[str, str]) -> str:
    """A combination as the paper writes it: answering (generation) first."""
    reading, answering = pair
    return f"{answering.capitalize()}-{reading.capitalize()}"


def across_models(evidence: Evidence) -> Finding:
    """A claim that one model cannot decide."""
    return untested("needs studies of several models side by side")


def windowed(decide: Callable[[Evidence, set[Place], set[Place]], Finding]) -> Callable[[Evidence], Finding]:
    """A claim about needles that have left attention's window."""

    def check(evidence: Evidence) -> Finding:
        window = evidence.facts.window
        if window is None:
            return untested("attention sees every token: no window")
        if evidence.base.semantics != "clean":
            return untested("cells do not say how many tokens published prompts have")
        gone, held = evidence.beyond_window()
        if not gone:
            return untested(f"not run: prompts so long that the needle leaves the window of {window} tokens")
        return decide(evidence, gone, held)

    return check


def _part(evidence: Evidence, reading: str, answering: str, places: set[Place]) -> Group | None:
    group = evidence.modes.get((reading, answering))
    return None if group is None else group.within(places)


def beyond_needs_reading(evidence: Evidence, gone: set[Place], held: set[Place]) -> Finding:
    """Beyond the window, retrieval is lost when the needle was omitted while reading."""
    keep, omit = (_part(evidence, reading, "keep", gone) for reading in ("keep", "omit"))
    if (missing := _no_baseline(keep, "Keep-Keep beyond the window")) is not None:
        return missing
    test = _kept("Keep-Omit beyond the window", omit, keep, 0.5, above=False)
    return _after(percent("Keep-Keep beyond the window", keep), judge([test]))


def omit_in_window_only(evidence: Evidence, gone: set[Place], held: set[Place]) -> Finding:
    """With the needle omitted while answering, what is left is retrieved inside the window."""
    beyond, inside = (_part(evidence, "keep", "omit", places) for places in (gone, held))
    floor = chance(inside) or 0.0
    reached = Check(percent("Omit-Keep in the window", inside), less(accuracy(inside), floor), above=True)
    return judge([reached, _zero("Omit-Keep beyond the window", beyond)])


def _after(words: str, finding: Finding) -> Finding:
    """A finding with more words before what was measured."""
    return finding._replace(measured=words if finding.measured == "–" else f"{words}; {finding.measured}")
