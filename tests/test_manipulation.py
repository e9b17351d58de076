"""Attention manipulations against the untouched Hugging Face model, and what must not depend on how a text is read."""

from itertools import pairwise

import pytest
import torch
from bounds import FORWARD, apart, close, near
from hf_attention import Rules, edited_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, make, tokens

import hybridlens as hl
from analyses.heads.manipulation import MODES, is_causal, manipulate, manipulate_rows
from analyses.heads.needle_slots import positions_of
from hybridlens.errors import HookFunctionError, InputError, UnknownNameError

SEMANTICS = ("clean", "published")
NEEDLES = [(2, 5), [(1, 3), (9, 12)], {6, 8, 9}, [(0, 1), (11, 14)], (8, 13)]
"""Before the window of 7 while answering, twice as with JRT, with a gap, up to beyond the prompt, in the window."""


def lens_of(family: str, seed: int = 0) -> hl.HybridLens:
    return hl.HybridLens(make(family, seed))


def answered(lens: hl.HybridLens, ids: torch.Tensor, boundary: int, edits: list[hl.Edit]) -> torch.Tensor:
    """Logits of every position: `boundary` tokens read in one pass, the others one by one."""
    with torch.no_grad():
        state, logits = lens.prefill(ids[:, :boundary], edits)
        parts = [logits]
        for at in range(boundary, ids.shape[1]):
            state, logits = lens.extend(state, ids[:, at : at + 1], edits)
            parts.append(logits)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_equals_the_reference(family: str, semantics: str, phase: str) -> None:
    """All modes with needles of several kinds in one batch; 12 tokens read and 5 answered, past a window of 7.

    A wrong column, mean, divisor or query, or anything that reaches from one row to another, moves the logits by far
    more than rounding; that each edit does so is asserted.
    """
    shift = ["prefill", "decode", "both"].index(phase)
    cases = [("keep", NEEDLES[0])]
    cases += [(mode, NEEDLES[(2 * i + j + shift) % 5]) for i, mode in enumerate(MODES[1:]) for j in range(2)]
    lens, ids, boundary = lens_of(family), tokens(len(cases), 17, seed=1), 12
    edits = manipulate_rows(lens, [mode for mode, _ in cases], [needle for _, needle in cases], phase, semantics)
    found, untouched = answered(lens, ids, boundary, edits), answered(lens, ids, boundary, [])
    for row, (mode, needle) in enumerate(cases):
        plain, acting = Rules(), Rules(mode, None, semantics)
        reading, answering = (plain if phase == "decode" else acting), (plain if phase == "prefill" else acting)
        held = set(positions_of(needle))
        expected = edited_logits(lens.hf_model, ids[row], boundary, reading, answering, held)
        close(found[row], expected, FORWARD)
        gone = phase == "decode" and family == "recurrentgemma" and max(held) < boundary - 6
        if mode != "keep" and not (gone and (mode == "omit" or semantics == "published")):
            assert apart(found[row], untouched[row])
    if phase == "decode":
        assert torch.equal(found[:, :boundary], untouched[:, :boundary])


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_one_needle_for_all_rows(semantics: str) -> None:
    """A mode for each row and one needle; and one mode for a batch of any size."""
    lens, ids = lens_of("jamba"), tokens(len(MODES), 11, seed=2)
    one = answered(lens, ids, 9, manipulate(lens, MODES, (3, 9), "both", semantics))
    assert torch.equal(one, answered(lens, ids, 9, manipulate_rows(lens, MODES, [(3, 9)] * 5, "both", semantics)))
    for row, mode in enumerate(MODES):
        same = answered(lens, ids, 9, manipulate(lens, mode, (3, 9), "both", semantics))
        close(one[row], same[row], FORWARD)


@settings(max_examples=6)
@given(st.sampled_from(FAMILIES), st.sampled_from(SEMANTICS), st.integers(0, 50), st.data())
def test_rows_of_any_length_answer_as_alone(family: str, semantics: str, seed: int, data: st.DataObject) -> None:
    """Random lengths, modes and needles: padding, shared key slots and other rows change no row's tokens."""
    lens = lens_of(family, seed % 3)
    modes = data.draw(st.lists(st.sampled_from(MODES), min_size=2, max_size=3))
    rows = [tokens(1, data.draw(st.integers(3, 16)), seed=seed + i)[0].tolist() for i in range(len(modes))]
    needles = [data.draw(st.sets(st.integers(0, len(row)), max_size=5)) for row in rows]
    boundary = data.draw(st.sampled_from(["last_prompt_token", "first_new_token"]))
    edits = manipulate_rows(lens, modes, needles, "both", semantics)
    together = lens.generate(rows, 4, edits, boundary, stop_at_eos=False)
    for i, row in enumerate(rows):
        own = manipulate(lens, modes[i], needles[i], "both", semantics)
        alone = lens.generate([row], 4, own, boundary, stop_at_eos=False)
        assert together.tokens[i].tolist() == alone.tokens[0].tolist()
        after = lens.extend(together.state, [[7]] * len(rows)).logits[i]
        close(after, lens.extend(alone.state, [[7]]).logits[0], FORWARD)


@settings(max_examples=8)
@given(st.sampled_from(FAMILIES), st.integers(0, 50), st.data())
def test_prompts_may_be_read_in_pieces(family: str, seed: int, data: st.DataObject) -> None:
    """Causal modes, a prompt cut anywhere: the same logits as read at once, and a repeated state is as good."""
    lens, length = lens_of(family, seed % 3), 18
    semantics = data.draw(st.sampled_from(SEMANTICS))
    modes = data.draw(st.lists(st.sampled_from([m for m in MODES if is_causal(m, semantics)]), min_size=2, max_size=3))
    needles = [data.draw(st.sets(st.integers(0, length - 1), max_size=6)) for _ in modes]
    ids = tokens(1, length, seed=seed).expand(len(modes), -1)
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4))), length]
    edits = manipulate_rows(lens, modes, needles, "prefill", semantics)
    with torch.no_grad():
        whole = lens.prefill(ids, edits).logits
        state, parts = lens.network.empty_state(len(modes)), []
        for start, stop in pairwise(cuts):
            state, logits = lens.extend(state, ids[:, start:stop], edits, phase="prefill")
            parts.append(logits)
    close(torch.cat(parts, dim=1), whole, FORWARD)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("mode", MODES)
def test_is_causal_says_what_happens(family: str, semantics: str, mode: str) -> None:
    """Other tokens at the end leave the logits before them, to rounding, exactly where `is_causal` says so."""
    lens, ids = lens_of(family), tokens(1, 14, seed=4)
    other = ids.clone()
    other[0, 9:] = tokens(1, 5, seed=5)[0]
    edits = manipulate(lens, mode, (3, 6), "prefill", semantics)
    with torch.no_grad():
        one, two = (lens.prefill(text, edits).logits[0, :9] for text in (ids, other))
    assert near(one, two, FORWARD) == is_causal(mode, semantics)
    assert apart(one, two) != is_causal(mode, semantics)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_a_needle_that_has_left_the_window(semantics: str) -> None:
    """RecurrentGemma's window of 7 at position 12 holds none below 6: clean modes but omit leave nothing there.

    Published ones leave everything, bit for bit; one position more and they act.
    """
    lens, ids = lens_of("recurrentgemma"), tokens(2, 13, seed=6)
    layer = lens.cfg.attention_layers[0]
    with torch.no_grad():
        state = lens.prefill(ids[:, :-1]).state
        untouched = lens.extend(state, ids[:, -1:]).logits
        for mode in MODES:
            seen: dict[str, torch.Tensor] = {}
            keep = hl.Edit(f"blocks.{layer}.attn.hook_z", lambda z, hook, seen=seen: seen.update(z=z.clone()))
            edits = [*manipulate(lens, mode, (0, 6), "decode", semantics), keep]
            logits = lens.extend(state, ids[:, -1:], edits).logits
            if semantics == "published" or mode in ("keep", "omit"):
                assert torch.equal(logits, untouched)
            else:
                assert not seen["z"].any()
        assert not torch.equal(
            lens.extend(state, ids[:, -1:], manipulate(lens, "omit", (0, 7), "decode", semantics)).logits, untouched
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_needle(family: str) -> None:
    """A control: omit changes no bit, only, binary and null leave nothing; published answering changes no bit."""
    lens, ids = lens_of(family), tokens(2, 9, seed=7)
    layer = lens.cfg.attention_layers[0]
    with torch.no_grad():
        untouched = lens.prefill(ids).logits
        for semantics in SEMANTICS:
            for mode in ("only", "binary", "null"):
                seen: dict[str, torch.Tensor] = {}
                keep = hl.Edit(f"blocks.{layer}.attn.hook_z", lambda z, hook, seen=seen: seen.update(z=z.clone()))
                lens.prefill(ids, [*manipulate(lens, mode, (), "prefill", semantics), keep])
                assert not seen["z"].any()
            assert torch.equal(lens.prefill(ids, manipulate(lens, "omit", (), "prefill", semantics)).logits, untouched)
        state = lens.prefill(ids).state
        after = lens.extend(state, ids[:, :1]).logits
        for mode in MODES:
            edits = manipulate(lens, mode, [], "decode", "published")
            assert torch.equal(lens.extend(state, ids[:, :1], edits).logits, after)


@pytest.mark.parametrize("family", FAMILIES)
def test_published_answers_read_together(family: str) -> None:
    """Several tokens in one decode pass get what they get one by one: each query has its own number."""
    lens, ids = lens_of(family), tokens(3, 16, seed=8)
    edits = manipulate_rows(lens, ["binary", "only", "null"], [(8, 11)] * 3, "decode", "published")
    with torch.no_grad():
        state = lens.prefill(ids[:, :12]).state
        together = lens.extend(state, ids[:, 12:], edits).logits
    close(together, answered(lens, ids, 12, edits)[:, 12:], FORWARD)


@pytest.mark.parametrize("mode", ["omit", "only", "binary"])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_gradients_flow_and_half_precision_runs(mode: str, semantics: str) -> None:
    """The needle's tokens are heard through `only` and not, in attention, through `omit`; bfloat16 stays itself."""
    lens, ids = lens_of("jamba"), tokens(1, 10, seed=9)
    layer = lens.cfg.attention_layers[0]
    leaf: dict[str, torch.Tensor] = {}

    def grab(v: torch.Tensor, hook: object) -> torch.Tensor:
        leaf["v"] = v.detach().requires_grad_()
        return leaf["v"]

    edits = [hl.Edit(f"blocks.{layer}.attn.hook_v", grab), *manipulate(lens, mode, (2, 5), "both", semantics)]
    lens.prefill(ids, edits).logits[0, -1].sum().backward()
    heard = leaf["v"].grad[0].abs().amax((1, 2)) > 0
    inside = torch.tensor([2 <= p < 5 for p in range(10)])
    assert torch.equal(heard, ~inside if mode == "omit" else inside)
    half = hl.HybridLens(make("jamba").bfloat16())
    with torch.no_grad():
        assert half.prefill(ids, manipulate(half, mode, (2, 5), "both", semantics)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("needle", "positions"),
    [((2, 4), [2, 3]), ([(5, 6), (1, 3)], [1, 2, 5]), (((0, 2), (1, 3)), [0, 1, 2]), ({4, 1}, [1, 4]), ((), [])],
)
def test_needles(needle: object, positions: list[int]) -> None:
    assert positions_of(needle) == positions


@pytest.mark.parametrize("needle", [(3, 3), (-1, 2), [(4, 2)], {-1}, [(0, 2), (5, 5)]])
def test_needles_that_are_none(needle: object) -> None:
    with pytest.raises(InputError, match=r"needle .* given, expected a span \(start, stop\)"):
        positions_of(needle)


def test_refusals() -> None:
    """One clear line each, before or while running, and no hook left on the model."""
    lens, ids = lens_of("jamba"), tokens(3, 6)
    with pytest.raises(UnknownNameError, match="mode 'zero' does not exist; expected one of keep, omit, only"):
        manipulate(lens, "zero", (1, 2))
    with pytest.raises(UnknownNameError, match="semantics 'tidy'"):
        manipulate(lens, "omit", (1, 2), semantics="tidy")
    with pytest.raises(InputError, match="2 modes and 1 needles given"):
        manipulate_rows(lens, ["omit", "only"], [(1, 2)])
    with pytest.raises(InputError, match="0 modes"):
        manipulate(lens, [], (1, 2))
    with pytest.raises(HookFunctionError, match="modes were given for 2 rows, but the batch has 3"):
        lens.prefill(ids, manipulate(lens, ["omit", "only"], (1, 2), "both"))
    binary = manipulate(lens, "binary", (1, 3), "prefill", "published")
    state = lens.prefill(ids[:, :4]).state
    with pytest.raises(HookFunctionError, match=r"binary .* needs the whole prompt in one pass, but 2 tokens"):
        lens.extend(state, ids[:, 4:], binary, phase="prefill")
    assert not any(point.asked() for point in lens.hook_dict.values())
