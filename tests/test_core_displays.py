"""What a lens, its configuration, hook points, states, generations, prompts, needles and weights show."""

import pickle
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import hybridlens as hl
from hybridlens import niah, tiny
from hybridlens.config import LensConfig
from hybridlens.display import Displayed, Several
from hybridlens.hooks import EditedActivation
from hybridlens.niah.prompt import Prompts
from hybridlens.results import AccuracyPoint, Cell
from tests.models import make

FAMILIES = ("recurrentgemma", "jamba", "zamba2", "kimi_linear", "lfm2")
SMALL = 12_000
"""Bytes of the HTML of anything."""


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request: pytest.FixtureRequest) -> hl.HybridLens:
    return hl.HybridLens(make(request.param))


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer, without a model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tiny.path("tiny-jamba")))


def checked(value: Any) -> str:
    """The HTML of a value that shows itself, small, and with one line as its text."""
    assert isinstance(value, Displayed)
    assert "\n" not in repr(value)
    assert len(repr(value)) < 300
    source = value._repr_html_()
    assert len(source.encode()) < SMALL
    assert source.startswith('<div class="hl">')
    assert "default-src 'none'" in value.to_html()
    return source


def test_weights_show_whose_they_are(lens: hl.HybridLens) -> None:
    for folded in (False, True):
        weights = lens.weights(folded)
        for shown in (weights, weights.of_layers):
            checked(shown)
            assert f"{lens.cfg.family}, {lens.cfg.n_layers} layers" in repr(shown)
            assert ("folded in" in repr(shown)) is folded
            assert list(shown.to_pandas()["layer"]) == list(range(lens.cfg.n_layers))
    block = next(weights.of_layers.vocabulary(20))
    checked(block)
    assert (block.start, tuple(block.E.shape)) == (0, (20, lens.cfg.d_model))
    counts = lens.n_parameters
    checked(counts)
    total, inner, active = counts
    assert repr(counts) == f"<ParameterCounts: total {total}, non_embedding {inner}, active {active}>"


def test_a_lens_shows_its_layers(lens: hl.HybridLens) -> None:
    source = checked(lens)
    assert repr(lens).startswith(f"<HybridLens: {lens.cfg.family}, {lens.cfg.n_layers} layers (")
    assert source.count('<span title="') == lens.cfg.n_layers
    frame = lens.to_pandas()
    assert list(frame["layer"]) == list(range(lens.cfg.n_layers))
    assert list(frame["layer"][frame["heads"].notna()]) == list(lens.cfg.attention_layers)
    assert list(frame["layer"][frame["recurrence"].notna()]) == list(lens.cfg.ssm_layers)
    assert checked(lens.cfg)[: len(source)].count("<table") == source.count("<table")
    assert lens.cfg == lens.cfg
    assert isinstance(lens.cfg, LensConfig)


def test_hook_points_are_a_dict_and_a_table(lens: hl.HybridLens) -> None:
    points = lens.hook_points
    assert isinstance(points, dict)
    assert dict(points) == points
    assert list(points) == list(lens.hook_dict)
    assert pickle.loads(pickle.dumps(points)) == points
    source = checked(points)
    inner = {name.split(".", 2)[2] for name, spec in points.items() if spec.layer is not None}
    assert all(f"blocks.{{l}}.{name}<" in source for name in inner), "a point is missing"
    frame = points.to_pandas()
    assert list(frame["name"]) == list(points)
    assert list(frame["lazy"]) == [spec.lazy for spec in points.values()]
    first = next(iter(points.values()))
    name, axes, *_ = first
    assert (name, axes) == (first.name, first.axes)
    assert checked(first)


def test_a_state_shows_where_its_bytes_are(lens: hl.HybridLens) -> None:
    """All rows of the table together are the state but for its lengths and key positions."""
    prefill = lens.prefill(torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]))
    state, logits = prefill
    frame = state.to_pandas()
    rest = sum(t.numel() * t.element_size() for t in (state.lengths, state.key_positions))
    assert frame["bytes"].sum() == state.nbytes - rest
    assert list(frame["layer"].unique()) == [i for i, held in enumerate(state.layers) if held]
    assert "2 rows of 4 tokens" in repr(state)
    assert "keys and values" in checked(state) or "latents" in checked(state)
    assert f"vocab {logits.shape[-1]}" in repr(prefill)
    checked(prefill)
    held = next(iter(state.layers[0].values()))
    assert re.fullmatch(rf"<{type(held).__name__}: (\w+ \w+ \[[\d, ]+\](, )?)+; batch first>", repr(held))
    for field in ("model", "lengths", "key_positions", "layers", "window", "weights", "windows"):
        assert f"{field}:" in hl.HybridState.__doc__


def test_a_generation_shows_its_texts(lens: hl.HybridLens) -> None:
    made = lens.generate(torch.tensor([[1, 2, 3]]), 3, stop_at_eos=False)
    tokens, lengths, text, state = made
    assert (int(lengths[0]), text) == (3, [""])
    ids = " ".join(map(str, tokens[0].tolist()))
    assert ids in checked(made), "without a tokenizer its ids are shown"
    named = made._replace(text=["</div><script>"])
    assert "&lt;/div&gt;&lt;script&gt;" in checked(named)
    assert named.to_pandas().to_dict("list") == {"row": [0], "tokens": [3], "text": named.text, "ids": [ids]}
    assert state.lengths.tolist() == [5]


def test_edits_say_where_what_and_when() -> None:
    def silence(x: torch.Tensor, hook: hl.HookPoint) -> torch.Tensor:
        return x * 0

    edit = hl.Edit("blocks.2.attn.hook_z", silence, phase="decode", rows=[0, 2])
    assert repr(edit).endswith("silence in decode, rows 0, 2>")
    assert repr(edit).startswith("<Edit: blocks.2.attn.hook_z: ")
    checked(edit)
    assert "in prefill and decode" in repr(hl.Edit(lambda name: "z" in name, silence))
    value, mask = EditedActivation(torch.zeros(2), None)
    assert mask is None
    assert repr(EditedActivation(value, mask)) == "<EditedActivation: value float32 [2]>"


def test_prompts_are_a_list_and_a_table(words: Any) -> None:
    prompts = niah.grid(words, [100, 120], [0, 100])
    controls = niah.controls(words, [100], [0, 100])
    assert isinstance(prompts, list)
    assert prompts == list(prompts)
    assert isinstance(prompts[1:], Prompts)
    frame = prompts.to_pandas()
    assert list(frame["length"]) == [100, 100, 120, 120]
    assert list(frame["depth"]) == [0, 100, 0, 100]
    assert [(a, b + 1) for a, b in zip(frame["needle from"], frame["needle to"], strict=True)] == [
        prompt.needle_span for prompt in prompts
    ]
    assert list(frame["text"]) == [prompt.text for prompt in prompts]
    assert repr(prompts) == "<Prompts: 4 prompts; lengths 100, 120 tokens; depths 0, 100 %>"
    assert repr(controls) == "<Prompts: 1 prompt; lengths 100 tokens; 1 without a needle>"
    assert "no needle (a control)" in repr(controls[0])
    for shown in (prompts, prompts[0], controls, niah.essays(0)):
        checked(shown)


def test_needles_show_their_rubric() -> None:
    needle = niah.PAPER_NEEDLE
    assert niah.PAPER_SENTENCE in repr(needle)
    assert niah.PAPER_QUESTION in checked(needle)
    assert [tuple(rule) for rule in needle.rubric] == list(needle.to_pandas().itertuples(index=False, name=None))
    assert isinstance(niah.NEEDLES, dict)
    assert list(niah.NEEDLES.to_pandas()["needle"]) == list(niah.NEEDLES)
    checked(niah.NEEDLES)


def test_results_and_models_and_weights_show_themselves() -> None:
    cell = Cell(
        model="m",
        phase="generation",
        k=1,
        length=10,
        depth=0,
        control=False,
        score=2.0,
        text="</td>",
        needle_start=3,
        needle_end=5,
        seconds=0.1,
        prompt_hash="h",
    )
    assert isinstance(cell, Displayed)
    assert "&lt;/td&gt;" in checked(cell)
    assert repr(cell) == "<Cell: m, generation, k 1, length 10, depth 0 %: score 2, '</td>'>"
    assert "depth –: score" in repr(replace(cell, depth=None)), "cells that are not valid show themselves too"
    assert len(repr(replace(cell, model="m" * 300, text="t" * 300, ranking="r" * 300))) < 200
    points = Several([AccuracyPoint(0, 0.5, None, 4, 0, 0.2, 0.8), AccuracyPoint(1, 1.0, 0.0, 4, 4, 0.6, 1.0)])
    assert list(points.to_pandas()["accuracy"]) == [0.5, 1.0]
    info = tiny.info("tiny-jamba")
    name, path, *_ = info
    assert (name, path) == ("tiny-jamba", tiny.path("tiny-jamba"))
    assert "2 attention, 6 ssm" in repr(info)
    checked(info)
    weights = hl.load_weights("tiny-recurrentgemma").attention(2)
    assert "W_Q float32 [head 8, d_model 128, d_head 16]" in repr(weights)
    head = weights.head(1)
    assert repr(head).startswith("<HeadWeights: W_Q float32 [d_model 128, d_head 16], W_K ")
    w_q, *_ = head
    assert torch.equal(w_q, weights.W_Q[1])
    parts = hl.load_weights("tiny-recurrentgemma").recurrent(0).parts
    assert repr(parts).startswith("<RecurrentParts: W_in float32 [d_model 128, channel 128]")
    for shown in (weights, head, parts):
        checked(shown)
