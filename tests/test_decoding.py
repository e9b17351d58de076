"""The one decode loop: rows that stay or leave, stop rules, edits of rows that are left, logits that are not finite."""

import ast
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from models import FAMILIES, make, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from analyses import kv_cache
from hybridlens import Edit, HybridLens, HybridLensError
from hybridlens.choosing import check_finite, two_best
from hybridlens.decoding import Decoding, Start, begin, decode
from hybridlens.engine import Job, Sweep
from hybridlens.generation import continue_from

ROOT = Path(__file__).resolve().parent.parent
ENDS = tuple(range(0, 53, 5))
LENGTHS = (11, 3, 8, 1, 14, 6, 9, 2)
CLOSE = 1000 * torch.finfo(torch.float32).eps
"""Of the largest value: sums of up to 96 terms through four layers and a dozen steps, in batches of two sizes."""


@pytest.fixture(params=FAMILIES)
def lens(request) -> HybridLens:
    return HybridLens(make(request.param, 3))


def prompts() -> list[list[int]]:
    return [tokens(1, n, seed=n)[0].tolist() for n in LENGTHS]


def edits_of(lens: HybridLens, rows: Sequence[int]) -> list[Edit]:
    """Every second prompt has its first attention layer turned round, wherever it stands in the batch."""
    name = f"blocks.{lens.cfg.attention_layers[0]}.attn.hook_z"
    return [Edit(name, lambda z, hook: -2 * z, "decode", [i for i, row in enumerate(rows) if row % 2])]


def near(ours: torch.Tensor, theirs: torch.Tensor, size: float | None = None) -> bool:
    """Whether two tensors agree to `CLOSE` of the largest value, or of `size`."""
    largest = float(theirs.abs().max()) if size is None and theirs.numel() else size or 0.0
    return ours.shape == theirs.shape and bool(((ours - theirs).abs() <= CLOSE * largest).all())


# Rows that end.


@pytest.mark.parametrize("boundary", ["last_prompt_token", "first_new_token"])
def test_rows_that_stay_and_rows_that_leave_say_the_same(lens: HybridLens, boundary: str) -> None:
    """A fifth of the vocabulary ends a row: the two ways, and each prompt by itself, under edits of every second row.

    A row with another's edits or state, or one token off, says something else: these models wander over 53 tokens.
    """
    asked: list[list[int]] = []

    def edits(rows: Sequence[int]) -> list[Edit]:
        asked.append(list(rows))
        return edits_of(lens, rows)

    network, batch = lens.network, lens.batch(prompts())
    runs = {}
    for ended in ("stay", "leave"):
        asked.clear()
        how = Decoding(12, ENDS, edits=edits, ended=ended)
        runs[ended] = decode(network, begin(network, batch, (), boundary), how)
        assert (asked == [list(range(8))]) == (ended == "stay")
        assert all(set(after) < set(before) for before, after in pairwise(asked))
    stay, leave = runs["stay"], runs["leave"]
    assert stay.tokens == leave.tokens
    assert len({len(row) for row in stay.tokens}) > 2
    assert stay.rows == list(range(8))
    assert set(leave.rows) < set(stay.rows)
    with torch.no_grad():
        size = float(lens(prompts()).nan_to_num().abs().max())  # NaN stands at padding
    assert near(stay.margins, leave.margins, size)
    for row, prompt in enumerate(prompts()):
        how = Decoding(12, ENDS, edits=lambda rows, row=row: edits_of(lens, [row]))
        alone = decode(network, begin(network, lens.batch([prompt]), (), boundary), how)
        assert alone.tokens == [stay.tokens[row]]
        assert int(stay.state.lengths[row]) == len(prompt) + len(stay.tokens[row]) - 1
        window = lens.cfg.window
        mine, theirs = stay.state.split(window)[row].tensors(), alone.state.split(window)[0].tensors()
        for name in theirs:
            assert near(mine[name], theirs[name]), name


def test_a_row_ends_where_its_stop_rule_says(lens: HybridLens) -> None:
    """Free of end-of-text tokens: each row is cut behind the first pair of tokens whose sum is a multiple of 4."""

    def stopped(said: Sequence[int]) -> bool:
        return len(said) > 1 and (said[-2] + said[-1]) % 4 == 0

    network, batch = lens.network, lens.batch(prompts())
    free = decode(network, begin(network, batch, (), "last_prompt_token"), Decoding(10)).tokens
    expected = [row[: next((n for n in range(1, 11) if stopped(row[:n])), 10)] for row in free]
    assert expected != free
    for ended in ("stay", "leave"):
        start = begin(network, batch, (), "last_prompt_token")
        assert decode(network, start, Decoding(10, stopped=stopped, ended=ended)).tokens == expected


def test_margins_are_the_smallest_gap_of_the_two_best_logits(lens: HybridLens) -> None:
    """Recomputed from one full forward pass over each row's text, so that nothing of the loop is in it."""
    found = decode(lens.network, begin(lens.network, lens.batch(prompts()), (), "first_new_token"), Decoding(5))
    for prompt, said, margin in zip(prompts(), found.tokens, found.margins.tolist(), strict=True):
        with torch.no_grad():
            logits = lens(torch.tensor([prompt + said]))[0, len(prompt) - 1 : -1]
        best = logits.topk(2).values
        gap = (best[:, 0] - best[:, 1]).min()
        assert near(torch.tensor(margin), gap, float(logits.abs().max()))


class Wide(TorchDispatchMode):
    """The operations that gave float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found = list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.found += [str(func) for value in tree_flatten(out)[0] if getattr(value, "dtype", None) == torch.float64]
        return out


def test_nothing_of_a_step_is_in_float64(lens: HybridLens) -> None:
    """Apple's GPUs have none. The last token is told exactly all the same, of as many as a vocabulary may have."""
    with Wide() as wide:
        lens.generate(tokens(2, 6), max_new_tokens=2)
    assert wide.found == []
    logits = torch.zeros(1, 2**20)
    logits[0, -1] = 1
    start = Start(lens.network.empty_state(1), logits)
    assert decode(lens.network, start, Decoding(1)).tokens == [[2**20 - 1]]


def test_no_new_tokens_are_no_step(lens: HybridLens) -> None:
    start = begin(lens.network, lens.batch(prompts()), (), "last_prompt_token")
    out = continue_from(lens.network, start, 0)
    assert out.tokens.shape == (8, 0)
    assert out.state is start.state


def test_a_hook_that_raises_at_a_later_step_leaves_none_behind(lens: HybridLens) -> None:
    seen: list[int] = []

    def fail(x, hook):
        seen.append(1)
        if len(seen) == 3:
            raise RuntimeError("at step 2")

    with pytest.raises(RuntimeError, match="at step 2"):
        lens.generate(prompts(), 6, [Edit("blocks.1.hook_mlp_out", fail, "decode")], stop_at_eos=False)
    assert not any(point.has_hooks() for point in lens.hook_dict.values())


def test_numbers_of_new_tokens_that_are_not_whole_are_refused(lens, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run it: the tests' type checker would refuse them first."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    for wrong in (0, -3, 2.5):
        with pytest.raises(HybridLensError, match=f"max_new_tokens = {wrong} given, expected a whole number"):
            lens.generate([[1, 2]], wrong)


# Logits that are not finite.


class Plain:
    """No treatment."""

    def edits(self, treatments, spans, phase):
        return []

    def together(self, treatment):
        return None

    def causal(self, treatment):
        return True

    def places(self, treatment):
        return False


def broken(family: str, value: float) -> HybridLens:
    """A model whose unembedding has one such weight, as a damaged checkpoint might."""
    model = make(family, 3, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[7, 3] = value
    return HybridLens(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("boundary", ["last_prompt_token", "first_new_token"])
def test_no_answer_is_made_of_logits_that_are_not_finite(family: str, boundary: str) -> None:
    """The argmax of NaN is a token, too: generate, surgery and the engine would all give a text that looks measured."""
    lens = broken(family, float("nan"))
    message = "row 0, new token 0: the model's logits are not finite; check its weights"
    with pytest.raises(HybridLensError, match=message):
        lens.generate(prompts(), 3, boundary=boundary)
    with pytest.raises(HybridLensError, match=message):
        kv_cache.generate_with(lens, prompts(), (), 3, (), boundary)
    with pytest.raises(HybridLensError, match=message):
        list(Sweep(lens, Plain(), boundary, 3).run([Job((4, 5, 6), None, None)]))


def test_the_row_and_the_token_are_named(lens: HybridLens) -> None:
    """An edit spoils row 2 from decode step 1 on: it makes new token 1; a row that has ended may hold anything."""
    steps: list[int] = []

    def spoil(x, hook):
        steps.append(1)
        return x * float("nan") if len(steps) > 1 else None

    edit = Edit("hook_logits", spoil, "decode", [2])
    with pytest.raises(HybridLensError, match="row 2, new token 1: the model's logits are not finite"):
        lens.generate(prompts(), 4, [edit], stop_at_eos=False)
    steps.clear()
    network, plain = lens.network, lens.generate(prompts(), 4, stop_at_eos=False).tokens.tolist()
    start = begin(network, lens.batch(prompts()), (), "last_prompt_token")
    how = Decoding(4, stopped=lambda said: said == plain[2][:1], edits=lambda rows: [edit])
    assert decode(network, start, how).tokens[2] == plain[2][:1]
    assert len(steps) == 4


def test_forbidden_tokens_are_no_fault_and_infinite_tops_are() -> None:
    """Minus infinity is how an edit forbids a token; NaN anywhere in a row, or no finite maximum, is a fault."""
    inf, nan = float("inf"), float("nan")
    check_finite(two_best(torch.tensor([[1.0, -inf, -inf], [3.0, 2.0, -1.0]]))[:, 0], [0, 1], [5, 5])
    for bad in ([nan, 2.0, 1.0], [9.0, 2.0, nan], [inf, 1.0, 0.0], [-inf, -inf, -inf]):
        with pytest.raises(HybridLensError, match="row 4, new token 1:"):
            check_finite(two_best(torch.tensor([[1.0, 2.0, 0.0], bad]))[:, 0], [3, 4], [0, 1])


# The architecture.

FORWARD = {"forward", "network", "extend", "prefill", "run_with_hooks", "run_with_cache", "lens", "model", "generate"}
CHOICES = {"argmax", "multinomial", "greedy", "choose", "chooser", "sampler", "pick"}


def decode_loops(source: str) -> list[int]:
    """Lines of loops that decode: with edits for decode steps, or passes and choices of tokens that go back into them.

    What goes back is a state, or a text that grows.
    """
    found: list[int] = []
    for loop in ast.walk(ast.parse(source)):
        if not isinstance(loop, (ast.For, ast.While)):
            continue
        calls = [node for node in ast.walk(loop) if isinstance(node, ast.Call)]
        names = [ast.unparse(call.func).split(".")[-1].lstrip("_") for call in calls]
        given = [[ast.unparse(arg) for arg in (*call.args, *(k.value for k in call.keywords))] for call in calls]
        attached = any(name == "editing" and "'decode'" in args for name, args in zip(names, given, strict=True))
        passes = [args for name, args in zip(names, given, strict=True) if name in FORWARD]
        back = {"append", "cat"} & set(names) or any("state" in arg for args in passes for arg in args)
        if attached or (passes and CHOICES & set(names) and back):
            found.append(loop.lineno)
    return found


def test_only_one_file_loops_over_decode_steps() -> None:
    """Loops of four kinds are found, those that read a prompt or score one are not; in the packages there is one."""
    for source in (
        "while alive:\n    out = forward(token, None, state)\n    token = logits.argmax(-1)",
        "for step in range(n):\n    token = choose(logits)\n    logits, state = lens.extend(state, token)",
        "while running:\n    with lens.editing(edits, 'decode') as run:\n        run(token)",
        "for _ in range(n):\n    ids = torch.cat([ids, lens(ids)[:, -1:].argmax(-1)], dim=1)",
    ):
        assert decode_loops(source) == [1]
    for source in (
        "for start in starts:\n    state = forward(tokens, None, state, True).state",
        "for length in lengths:\n    right[length] = (lens(tokens).argmax(-1) == tokens).all()",
    ):
        assert decode_loops(source) == []
    found = [
        str(path.relative_to(ROOT))
        for package in ("hybridlens", "analyses")
        for path in sorted((ROOT / package).rglob("*.py"))
        if decode_loops(path.read_text(encoding="utf-8"))
    ]
    assert found == ["hybridlens/decoding.py"]
