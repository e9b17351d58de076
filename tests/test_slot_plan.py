"""Lengths and slots as numbers on the host are those of the tensors, whatever was done to a state."""

import pytest
import torch
from models import make, tokens

from hybridlens import HybridLens
from hybridlens.slot_plan import SlotPlan
from hybridlens.state import HybridState


def passed(state: HybridState, window: int) -> int:
    """Leading slots that no row's next token sees, by the tensors."""
    positions, lengths = state.key_positions, state.lengths
    visible = (positions > lengths[:, None] - window).any(dim=0)
    if positions.shape[1] < window or bool((lengths < window - 1).any()):
        return 0
    return int(visible.int().argmax()) if bool(visible.any()) else positions.shape[1]


def all_seen(state: HybridState, window: int | None, held: int) -> bool:
    """Whether the last token read sees the newest slots, by the tensors."""
    oldest = torch.zeros_like(state.lengths) if window is None else (state.lengths - window).clamp(min=0)
    return bool((state.key_positions[:, state.key_positions.shape[1] - held :] >= oldest[:, None]).all())


def check(state: HybridState) -> None:
    plan = state.known
    assert plan is not None, "a tensor would have to be read"
    assert plan == SlotPlan.of(state.key_positions, state.lengths)
    slots = state.key_positions.shape[1]
    for window in (1, 3, 7):
        assert plan.passed(window, slots) == passed(state, window)
        for held in {slots, slots // 2, min(slots, 1)}:
            assert plan.all_seen(window, held, None) == all_seen(state, window, held)
    assert plan.all_seen(None, slots, None) == all_seen(state, None, slots)


@pytest.mark.parametrize("family", ["recurrentgemma", "jamba", "gemma3", "mamba2"])
def test_the_plan_of_a_state_is_that_of_its_tensors(family: str) -> None:
    """Rows of other lengths, rows that stop, rows taken out, doubled, put together and split: known without reading."""
    network, ids = HybridLens(make(family)).network, tokens(3, 11)
    with torch.no_grad():
        states = [network(ids).state, network(ids, torch.tensor([11, 2, 6])).state]
        for state in list(states):
            state = network(ids[:, :4], torch.tensor([4, 0, 1]), state).state
            states += [state, network(ids[:, :1], None, state).state]
    states += [state.select([2, 0]) for state in states] + [states[1].repeat(2), states[2].to("cpu")]
    states += [row for state in states[:4] for row in state.split(network.cfg.window)]
    states.append(HybridState.cat([states[0], states[3]]))
    for state in states:
        check(state)


def test_what_was_written_to_is_read_anew() -> None:
    """In place, or another tensor in its place: the numbers from before say nothing of it."""
    network = HybridLens(make("jamba")).network
    with torch.no_grad():
        state = network(tokens(2, 6)).state
    assert state.known is not None
    state.key_positions[0, 2] = -1
    assert state.known is None
    assert state.plan == SlotPlan.of(state.key_positions, state.lengths)
    assert state.clone().known is None
    assert not state.plan.all_seen(None, 6, None)


def test_planned_rows_that_do_not_read_do_not_matter() -> None:
    plan = SlotPlan.empty(2).append(3, None).append(1, [1, 0])
    assert plan.all_seen(None, 4, [1, 0])
    assert not plan.all_seen(None, 4, None)
