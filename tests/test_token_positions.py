"""Hook functions find where their tokens stand in the text: in whole and ragged prompts, in steps, by rows, midway."""

import pytest
import torch
from models import KINDS, make, tokens

from hybridlens import Edit, HybridLens


def told(seen):
    """A hook function that notes the positions it finds, by point."""

    def note(x, hook):
        assert hook.positions.shape == x.shape[:2]
        seen.setdefault(hook.name, []).append(hook.positions.tolist())

    return note


@pytest.mark.parametrize("family", KINDS)
def test_every_point_over_tokens_tells_them(family):
    """In a pass over a ragged batch, padding counted on, and in one that goes on from it, each row from its end."""
    lens = HybridLens(make(family))
    names = [name for name, spec in lens.hook_points.items() if spec.axes[:2] == ("b", "p")]
    seen: dict[str, list] = {}
    with torch.no_grad(), lens.hooks([(names, told(seen))]):
        state, _ = lens.prefill([[3, 4, 5, 6], [7, 8]])
        lens.extend(state, [[3, 4], [5, 6]])
    assert set(seen) == set(names)
    assert all(passes == [[[0, 1, 2, 3]] * 2, [[4, 5], [2, 3]]] for passes in seen.values())


def test_edits_of_rows_find_their_own():
    lens = HybridLens(make("mamba2"))
    state, _ = lens.prefill([[3, 4, 5, 6], [7, 8], [9, 3, 4]])
    seen: dict[str, list] = {}
    point = "blocks.1.ssm.hook_q"
    lens.extend(state, [[3], [4], [5]], [Edit(point, told(seen), rows=[2, 1])])
    assert seen == {point: [[[3], [2]]]}


def test_runs_that_begin_in_the_middle_and_passes_within_passes():
    """`resume` tells its own; a run that a hook function starts has its own, and leaves the outer one's."""
    lens, ids = HybridLens(make("jamba")), tokens(2, 6)
    seen: dict[str, list] = {}
    with torch.no_grad():
        before = lens.network(ids[:, :4]).state
        _, cache = lens.run_with_cache(ids)
        after = lens.network(ids).state
        with lens.hooks([("blocks.2.hook_resid_post", told(seen))]):
            lens.network.resume(2, cache["blocks.2.hook_resid_pre"][:, 4:], after, before)
    assert seen == {"blocks.2.hook_resid_post": [[[4, 5]] * 2]}
    found = []

    def nested(x, hook):
        if x.shape[1] == 6:
            lens.network(ids[:, :3])
        found.append(hook.positions[0].tolist())

    with torch.no_grad(), lens.hooks([("blocks.0.ssm.hook_y", nested)]):
        lens.network(ids)
    assert found == [[0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_outside_a_pass_there_are_none():
    """A block that is run by itself does not know where its tokens stand; nor does a point that nobody visits."""
    lens, ids = HybridLens(make("mamba2")), tokens(1, 3)
    point = lens.hook_dict["blocks.0.ssm.hook_v"]
    seen = []
    with torch.no_grad(), lens.hooks([(point.name, lambda x, hook: seen.append(hook.positions))]):
        point(torch.zeros(1, 3, 4, 16))
        lens.network(ids)
    assert seen[0] is None
    assert seen[1].tolist() == [[0, 1, 2]]
    assert point.positions is None
