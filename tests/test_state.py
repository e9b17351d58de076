"""States as values: what goes on from one never changes it, however many share its keys."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from bounds import FORWARD, apart, close
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, KINDS, WITH_ATTENTION, make, tokens
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from hybridlens import HybridLens
from hybridlens.errors import InputError
from hybridlens.memory import SLACK, KeyValues
from hybridlens.state import HybridState


@pytest.fixture(scope="module", params=KINDS)
def any_lens(request: pytest.FixtureRequest) -> HybridLens:
    return HybridLens(make(request.param, 5))


@pytest.fixture(scope="module", params=WITH_ATTENTION)
def lens(request: pytest.FixtureRequest) -> HybridLens:
    """One that holds keys."""
    return HybridLens(make(request.param, 5))


def same(one: HybridState, other: HybridState) -> bool:
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def next_logits(lens: HybridLens, state: HybridState, token: int) -> torch.Tensor:
    return lens.extend(state, [[token]] * state.batch).logits


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 11), min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_rows_taken_apart_and_put_together_go_on_as_before(any_lens: HybridLens, lengths: list[int], order) -> None:
    """Ragged rows, in another order, with other gaps between their slots: the next logits are the same."""
    rows = [tokens(1, length, seed=index)[0].tolist() for index, length in enumerate(lengths)]
    with torch.no_grad():
        state, _ = any_lens.prefill(rows)
        parts = state.split(any_lens.cfg.window)
        assert [int(part.lengths) for part in parts] == lengths
        assert all(bool((part.key_positions >= 0).all()) for part in parts)
        shuffled = list(range(len(rows)))
        order.shuffle(shuffled)
        together = HybridState.cat([parts[i] for i in shuffled])
        expected = next_logits(any_lens, state, 9)[shuffled]
        close(next_logits(any_lens, together, 9), expected, FORWARD)
        alone = torch.cat([next_logits(any_lens, parts[i], 9) for i in shuffled])
        close(alone, expected, FORWARD)


def test_cat_refuses_nothing_and_strangers(any_lens: HybridLens) -> None:
    other = HybridLens(make("jamba" if any_lens.cfg.family == "recurrentgemma" else "recurrentgemma", 5))
    with pytest.raises(InputError, match=r"states = \[\] given, expected a list of .*, at least 1"):
        HybridState.cat([])
    with pytest.raises(InputError, match="all of one model"):
        HybridState.cat([any_lens.network.empty_state(1), other.network.empty_state(1)])


def test_two_texts_go_on_from_one_state(any_lens: HybridLens) -> None:
    """Single tokens are written into free slots; the second text finds them taken and must not overwrite the first."""
    with torch.no_grad():
        start, _ = any_lens.prefill(tokens(2, 9))
        start = any_lens.extend(start, [[3], [4]]).state  # from here on there are free slots
        before = start.clone()
        first = any_lens.extend(start, [[5], [6]]).state
        kept = first.clone()
        second = any_lens.extend(start, [[7], [8]]).state
        assert same(start, before)
        assert same(first, kept)
        whole = torch.cat([tokens(2, 9), torch.tensor([[3, 7], [4, 8]])], dim=1)
        expected = next_logits(any_lens, any_lens.prefill(whole).state, 11)
        close(next_logits(any_lens, second, 11), expected, FORWARD)
        whole[:, -1] = torch.tensor([5, 6])
        expected = next_logits(any_lens, any_lens.prefill(whole).state, 11)
        close(next_logits(any_lens, first, 11), expected, FORWARD)


def test_most_steps_copy_no_key(lens: HybridLens) -> None:
    """Of the steps of a long text all but one in `SLACK` keep their keys where they are; the text stays right."""
    with torch.no_grad():
        state, _ = lens.prefill(tokens(1, 6))
        layer = lens.cfg.attention_layers[0]
        buffers, text = [], tokens(1, 6)[0].tolist()
        for token in range(70):
            state = lens.extend(state, [[token % 50]]).state
            text.append(token % 50)
            held = state.layers[layer]["attn"]
            assert isinstance(held, KeyValues)
            assert held.room is not None
            buffers.append(id(held.room.buffer))
        moves = sum(a != b for a, b in pairwise(buffers))
        assert moves <= -(-70 // SLACK)
        expected = lens.prefill([text]).logits[:, -1]
        again = lens.extend(lens.prefill([text[:-1]]).state, [[text[-1]]]).logits[:, -1]
        close(again, expected, FORWARD)
        close(next_logits(lens, state, 2)[:, 0], lens([[*text, 2]])[:, -1], FORWARD)


def test_lent_slots_come_back(lens: HybridLens) -> None:
    """A pass whose outcome is dropped leaves the next one its free slot; outside the block it would have copied."""
    with torch.no_grad():
        state = lens.extend(lens.prefill(tokens(1, 6)).state, [[1]]).state
        rooms = [held["attn"].room for held in state.layers if "attn" in held]
        with state.lent():
            lens.extend(state, [[2]])
        after = lens.extend(state, [[3]]).state
        moved = [held["attn"].room for held in after.layers if "attn" in held]
        assert all(a is not None and b is not None and a.buffer is b.buffer for a, b in zip(rooms, moved, strict=True))
        expected = lens([[*tokens(1, 6)[0].tolist(), 1, 3, 9]])[:, -1]
        close(next_logits(lens, after, 9)[:, 0], expected, FORWARD)


class Meanwhile(TorchDispatchMode):
    """Has another thread do something just before the first write in place."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act: Callable[[], object] | None = act

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        act, self.act = (self.act, None) if func is torch.ops.aten.copy_.default else (None, self.act)
        if act is not None:
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()
        return func(*args, **(kwargs or {}))


def test_threads_that_go_on_from_one_state_take_slots_of_their_own() -> None:
    """One comes in between another's look at the free slot and its write there; neither reads the other's key."""
    with torch.no_grad():
        memory = KeyValues(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)).append(*torch.ones(2, 1, 1, 1, 2))
        made: list[KeyValues] = []
        with Meanwhile(torch.no_grad()(lambda: made.append(memory.append(*torch.full((2, 1, 1, 1, 2), 5.0))))):
            mine = memory.append(*torch.full((2, 1, 1, 1, 2), 7.0))
    for held, last in ((mine, 7.0), (made[0], 5.0)):
        assert held.k[0, 0, :, 0].tolist() == held.v[0, 0, :, 0].tolist() == [0.0, 0.0, 0.0, 1.0, last]


def test_a_slot_that_another_thread_took_meanwhile_is_not_given_back() -> None:
    """What it took while this one had slots lent stays its own."""
    lens = HybridLens(make("jamba", 5))
    with torch.no_grad():
        state = lens.extend(lens.prefill(tokens(1, 6)).state, [[1]]).state
        taken: list[HybridState] = []
        with state.lent(), ThreadPoolExecutor(1) as pool:
            pool.submit(torch.no_grad()(lambda: taken.append(lens.extend(state, [[2]]).state))).result()
        before = taken[0].clone()
        lens.extend(state, [[3]])
    for name, tensor in taken[0].tensors().items():
        assert torch.equal(tensor, before.tensors()[name]), name


def test_states_with_gradients_are_never_written_to(lens: HybridLens) -> None:
    """With gradients on, keys are joined in a new tensor, and the graph reaches back through them."""
    state, _ = lens.prefill(tokens(1, 5))
    after, logits = lens.extend(state, [[4]])
    assert all(held["attn"].room is None for held in after.layers if "attn" in held)
    logits.sum().backward()
    assert lens.hf_model.get_input_embeddings().weight.grad is not None


# Keys that are gone from one layer or head only.


def without_keys(state: HybridState, layer: int, kept: torch.Tensor) -> HybridState:
    held = state.layers[layer]["attn"]
    assert isinstance(held, KeyValues)
    return state.put(layer, "attn", type(held)(held.k, held.v, kept))


def masked_at(layer: int, kept: torch.Tensor, n_heads: int) -> tuple[str, object]:
    """What must be the same: scores of those keys set to -inf, head by head, in every later pass."""

    def mask(scores: torch.Tensor, hook) -> torch.Tensor:
        gone = ~kept.repeat_interleave(n_heads // kept.shape[1], dim=1)
        out = scores.clone()
        for head in range(n_heads):
            for slot in range(kept.shape[2]):
                out[:, head, :, slot][gone[:, head, slot]] = float("-inf")
        return out

    return f"blocks.{layer}.attn.hook_attn_scores", mask


@pytest.mark.parametrize("many", [1, 4])
def test_keys_lost_in_one_head_are_as_masked_scores(lens: HybridLens, many: int) -> None:
    """Random losses per row and head; a single token (heads folded) and several (heads spread), with and without hooks.

    The reference sets single scores to -inf by a hook. Heads differ, so a mask on the wrong head gives other logits.
    """
    layer, cfg = lens.cfg.attention_layers[-1], lens.cfg
    with torch.no_grad():
        state, _ = lens.prefill([row[:n] for row, n in zip(tokens(3, 6, seed=1).tolist(), (6, 4, 5), strict=True)])
        kept = torch.rand(3, cfg.attentions[0].n_held_heads, 6, generator=torch.Generator().manual_seed(4)) > 0.5
        lossy, new = without_keys(state, layer, kept), tokens(3, many, seed=2)
        with lens.hooks([masked_at(layer, kept, cfg.n_heads)]):
            expected = lens.extend(state, new).logits
        plain = lens.extend(lossy, new)
        close(plain.logits, expected, FORWARD)
        assert apart(plain.logits, lens.extend(state, new).logits)
        seen = []
        name = f"blocks.{layer}.attn.hook_pattern"
        with lens.hooks([(name, lambda x, hook: seen.append((x.clone(), hook.slots.dense(x.device))))]):
            watched = lens.extend(lossy, new).logits
        assert torch.equal(watched, plain.logits)
        pattern, mask = seen[0]
        gone = ~kept.repeat_interleave(4 // kept.shape[1], 1)
        assert not bool((pattern[:, :, :, :6].amax(2) > 0)[gone].any())
        assert not bool((pattern > 0)[~mask.expand_as(pattern)].any())
        # what is lost stays lost, and new keys are seen; a step alone and many at once agree
        again, step = lens.extend(plain.state, tokens(3, 2, seed=3)).logits, lossy
        for column in torch.cat([new, tokens(3, 2, seed=3)], dim=1).T:
            step, logits = lens.extend(step, column[:, None])
        close(logits[:, 0], again[:, -1], FORWARD)


def test_lost_keys_go_with_their_rows(lens: HybridLens, tmp_path) -> None:
    """Select, repeat, split, cat (with rows that lost nothing), save and load keep what each row and head has lost."""
    layer = lens.cfg.attention_layers[0]
    with torch.no_grad():
        state, _ = lens.prefill([[1, 2, 3, 4, 5], [6, 7, 8]])
        kept = torch.rand(2, lens.cfg.attentions[0].n_held_heads, 5, generator=torch.Generator().manual_seed(1)) > 0.4
        lossy = without_keys(state, layer, kept)
        expected = next_logits(lens, lossy, 3)
        whole = next_logits(lens, state, 3)
        parts = lossy.split(lens.cfg.window)
        together = HybridState.cat([parts[1], *state.split()[:1], parts[0]])
        ours = next_logits(lens, together, 3)
        close(ours, torch.stack([expected[1], whole[0], expected[0]]), FORWARD)
        ours = next_logits(lens, lossy.repeat(2).select([2, 1]), 3)
        close(ours, expected[[1, 0]], FORWARD)
        lossy.save(tmp_path / "state.safetensors")
        loaded = HybridState.load(tmp_path / "state.safetensors")
        assert same(loaded, lossy)
        assert loaded.window == lens.cfg.window
        assert torch.equal(next_logits(lens, loaded, 3), expected)


def test_lost_keys_leave_with_the_window() -> None:
    """Beyond the window slots are dropped, and with them their marks: after 7 tokens nothing tells the states apart."""
    lens = HybridLens(make("recurrentgemma", 5))
    layer = lens.cfg.attention_layers[0]
    with torch.no_grad():
        state, _ = lens.prefill(tokens(1, 10))
        assert state.key_positions.tolist() == [[4, 5, 6, 7, 8, 9]]
        assert bool(state.visible.all())
        lossy = without_keys(state, layer, torch.tensor([[[True, False, True, False, True, True]]]))
        after = lens.extend(lossy, tokens(1, 4, seed=1)).state
        assert after.layers[layer]["attn"].kept.tolist() == [[[True] * 6]]


def test_what_the_next_token_sees(lens: HybridLens) -> None:
    """Ragged rows: the held positions that are no further back than the window, as pass after pass shows them."""
    with torch.no_grad():
        state, _ = lens.prefill([tokens(1, 12)[0].tolist(), [1, 2, 3]])
    window = lens.cfg.window or 99
    seen = [
        [p for p, there in zip(*row, strict=True) if there]
        for row in zip(state.key_positions.tolist(), state.visible.tolist(), strict=True)
    ]
    assert seen == [list(range(max(0, 12 - window + 1), 12)), [0, 1, 2]]


# Files.


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_the_first_version_load(family: str, tmp_path: Path) -> None:
    """0.1.0 wrote one memory a layer, without the mixer's name; such a file goes on as the state that it holds."""
    lens = HybridLens(make(family, 5))
    with torch.no_grad():
        state, _ = lens.prefill(tokens(2, 9))
        kinds = ["attention" if "attn" in memories else "ssm" for memories in state.layers]
        old = {name.replace(".attn.", ".").replace(".ssm.", "."): t.contiguous() for name, t in state.tensors().items()}
        about = {"model": state.model, "kinds": json.dumps(kinds), "window": json.dumps(state.window)}
        save_file(old, tmp_path / "old.safetensors", metadata=about)
        loaded = HybridState.load(tmp_path / "old.safetensors")
        assert loaded.weights == ""
        assert loaded.tensors().keys() == state.tensors().keys()
        assert torch.equal(lens.extend(loaded, tokens(2, 3)).logits, lens.extend(state, tokens(2, 3)).logits)
        save_file(old, tmp_path / "new.safetensors", metadata={**about, "format": "3"})
        with pytest.raises(InputError, match="saved in format 3, and this version reads 1 and 2; update it"):
            HybridState.load(tmp_path / "new.safetensors")


def test_signatures_are_those_of_the_first_version() -> None:
    """Or its files would be of another model."""
    assert HybridLens(make("recurrentgemma")).network.signature == "recurrentgemma:4x32:1x8:24x1x4:7:ssas"
    assert HybridLens(make("jamba")).network.signature == "jamba:4x32:2x8:64x5x4:None:sass"


def test_a_damaged_file_is_named(lens: HybridLens, tmp_path: Path) -> None:
    """135 of 600 files with a flipped byte loaded and gave other logits; now every byte of a tensor counts."""
    path = tmp_path / "state.safetensors"
    with torch.no_grad():
        lens.prefill(tokens(1, 6)).state.save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    picks = torch.randint(start, len(whole), (40,), generator=torch.Generator().manual_seed(0)).tolist()
    for at in picks:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match="damaged after it was written"):
            HybridState.load(path)
