"""Which cells a study has: counts by arithmetic, cells that experiments share, prompts that are those of the grid."""

import warnings
from dataclasses import replace
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hybridlens as hl
from analyses.experiment.options.study import NiahConfig, StudyConfig
from analyses.study.experiments import EXPERIMENTS, check_study, plan, rubrics_of
from analyses.study.grids import Grids, half, spread
from analyses.study.niah import make_grid
from hybridlens import niah
from hybridlens.errors import InputError, UnknownNameError

RG, JAMBA = "tiny-recurrentgemma", "tiny-jamba"
LENGTHS, DEPTHS = (160, 190, 230, 256), (0, 25, 50, 75, 100)
SOME_LENGTHS, SOME_DEPTHS = (160, 256), (0, 50, 100)
N = 8


@cache
def lens(name: str) -> hl.HybridLens:
    return hl.load(name)


def small(model: str = RG, *names: str, **changes) -> StudyConfig:
    two = tuple(niah.NEEDLES[name] for name in ("paper", "oslo"))
    options = {"lengths": LENGTHS, "depths": DEPTHS, "needles": two, "experiments": names or None, **changes}
    return StudyConfig(model=model, **options)


@cache
def cells(model: str, *names: str):
    return plan(lens(model), small(model, *names)).cells


def test_every_experiment_has_the_cells_that_arithmetic_says() -> None:
    """Prompts: 4 lengths × 5 depths and 4 controls are 24; the coarse grid has 2 × 3 and 2 controls, 8.

    A missing k, phase, mode, control or length changes a count, and so does a key that stands for two cells.
    """
    main, coarse, ks = 4 * 5 + 4, 2 * 3 + 2, N + 1
    # 230 and 256 tokens are enough for published prompts, some of which stand at several depths.
    made = niah.grid(lens(RG).tokenizer, (230, 256), DEPTHS, needle=niah.PUBLISHED_NEEDLE, semantics="published")
    published = len({tuple(prompt.tokens) for prompt in made})
    assert published < 2 * 5
    expected = {
        "fig2": main * ks * 2,
        "fig3-jrt": main * 4 * 2,
        "table1": main * 20,
        "maps": main * (ks * 2 + 20 - 1),  # Keep-Keep is the sweep's k = n_heads
        "needles": coarse * 5 * 2,
        "scope": coarse * ks * 2,
        "boundary": coarse * ks * 2,
        "semantics": (published + 2) * (ks + 19) * 2,
    }
    assert {name: len(cells(RG, name)) for name in EXPERIMENTS} == expected


def test_a_study_is_the_union_of_its_experiments() -> None:
    """Each cell once, with the prompt it has in every experiment: other prompts under one key would differ in hash."""
    whole, union = cells(RG), {}
    for name in EXPERIMENTS:
        for key, prompt in cells(RG, name).items():
            assert union.setdefault(key, prompt.hash) == prompt.hash, key.words()
    assert {key: prompt.hash for key, prompt in whole.items()} == union
    assert list(whole)[: len(cells(RG, "fig2"))] == list(cells(RG, "fig2")), "experiments run in their order"


def test_the_main_grid_is_that_of_the_needle_experiment() -> None:
    """Figure 2's cells and prompts are those of `hybridlens niah`, made by the same function."""
    config = NiahConfig(model=RG, lengths=LENGTHS, depths=DEPTHS)
    alone = make_grid(lens(RG), config)
    found = cells(RG, "fig2")
    assert found.keys() == alone.keys()
    assert all(found[key].hash == alone[key].hash for key in alone)


def test_coarse_grids_share_their_cells_with_the_main_one() -> None:
    """A grid made of the coarse depths alone would put needles elsewhere; then these cells would run twice.

    Under the study's own settings every cell of scope, boundary and semantics is one of figure 2 or table 1.
    """
    main = cells(RG, "maps")
    for name, field, own in (
        ("scope", "scope", "layer"),
        ("boundary", "boundary", "last_prompt_token"),
        ("semantics", "semantics", "clean"),
        ("needles", "needle", "paper"),
    ):
        mine = {key: prompt for key, prompt in cells(RG, name).items() if getattr(key, field) == own}
        assert mine
        assert mine.keys() <= main.keys(), name
        assert all(main[key].hash == prompt.hash for key, prompt in mine.items())
    lengths = {key.length for key in cells(RG, "scope")}
    depths = {key.depth for key in cells(RG, "scope") if not key.control}
    assert (lengths, depths) == (set(SOME_LENGTHS), set(SOME_DEPTHS))


def test_other_needles_are_made_as_on_their_whole_grid() -> None:
    """Only the coarse lengths are made, but at every depth, so that places are chosen as for the paper's needle."""
    config = NiahConfig(model=RG, lengths=LENGTHS, depths=DEPTHS, needle=niah.NEEDLES["oslo"], heads=(0,))
    whole = make_grid(lens(RG), config)
    by_place = {(prompt.length, prompt.depth): prompt.hash for prompt in whole.values()}
    mine = {key: prompt for key, prompt in cells(RG, "needles").items() if key.needle == "oslo"}
    assert {key.k for key in mine} == {0, 1, 2, 4, 8}
    assert all(by_place[key.length, key.depth] == prompt.hash for key, prompt in mine.items())
    assert all("Oslo" in prompt.text for prompt in mine.values())


def test_only_the_named_setting_differs_in_a_contrast() -> None:
    """Scope, boundary and semantics pair their cells one to one; only semantics changes prompts."""
    for name, other in (("scope", "model"), ("boundary", "first_new_token"), ("semantics", "published")):
        found = cells(RG, name)
        mine = {key: prompt for key, prompt in found.items() if getattr(key, name) != other}
        theirs = {key: prompt for key, prompt in found.items() if getattr(key, name) == other}
        own = next(iter({getattr(key, name) for key in mine}))
        assert {key._replace(**{name: own}) for key in theirs} == mine.keys()
        same = [mine[key._replace(**{name: own})].hash == prompt.hash for key, prompt in theirs.items()]
        assert not any(same) if name == "semantics" else all(same)


def test_repeats_are_warned_of_where_they_are_answered() -> None:
    """Figure 2 under published semantics asks them; the contrast leaves them out, and warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", niah.RepeatedPromptWarning)
        plan(lens(RG), small(RG, "semantics"))
        with pytest.raises(niah.RepeatedPromptWarning, match="at length 230 depths"):
            plan(lens(RG), small(RG, "fig2", semantics="published", lengths=(230, 256)))


@pytest.mark.parametrize("model", [RG, JAMBA])
def test_read_twice_holds_as_much_context(model: str) -> None:
    """By tokens: a prompt read twice less one question and markup is one read once, but for the closing.

    Context read once is measured from the needle experiment's prompts; twice the length alone would add a closing.
    """
    study = plan(lens(model), small(model, "fig3-jrt"))
    tokenizer = lens(model).tokenizer
    assert [once for once, _ in study.base.jrt_lengths] == list(LENGTHS)
    sizes: dict[tuple[bool, int], set[int]] = {}
    for key, prompt in study.cells.items():
        assert len(prompt.tokens) == key.length
        context = prompt.text.split("CONTEXT: ")[1].split("QUESTION:")[0]
        sizes.setdefault((key.jrt, key.length), set()).add(len(tokenizer(context, add_special_tokens=False).input_ids))
    for once, twice in study.base.jrt_lengths:
        short, long = sizes[False, once], sizes[True, twice]
        assert max(abs(a - b) for a in short for b in long) <= 3, (once, twice, short, long)
    assert {key.k for key in study.cells} == {0, 1, 2, 8}
    assert {key.phase for key in study.cells} == {"generation"}


def test_read_twice_stays_within_the_context() -> None:
    """Tiny Jamba's configuration allows 1,024 tokens, so 520 cannot be read twice; the study says so."""
    study = plan(lens(JAMBA), small(JAMBA, "fig3-jrt", lengths=(200, 520), depths=(0, 100)))
    assert [once for once, _ in study.base.jrt_lengths] == [200]
    assert {key.length for key in study.cells if not key.jrt} == {200}
    assert any("520 tokens read twice are more than the model's context" in note for note in study.notes)
    with pytest.raises(InputError, match=r"fig3-jrt reads the context twice.*has room for 1024; give shorter"):
        plan(lens(JAMBA), small(JAMBA, "fig3-jrt", lengths=(520,), depths=(0, 100)))
    left = plan(lens(JAMBA), small(JAMBA, lengths=(520,), depths=(0, 100)))
    assert "fig3-jrt" not in left.experiments
    assert any(note.startswith("left out: fig3-jrt reads") for note in left.notes)


def test_published_studies() -> None:
    """Published lengths count one reading; the other semantics are then the clean ones, with the paper's rubric."""
    study = plan(lens(RG), small(RG, "fig3-jrt", "semantics", lengths=(230, 256), semantics="published"))
    assert study.base.jrt_lengths == ((230, 230), (256, 256))
    assert {key.semantics for key in study.cells if key.jrt} == {"published"}
    assert {key.semantics for key in study.cells} == {"clean", "published"}
    rubrics = rubrics_of(small(semantics="published"), study.cells)
    assert rubrics == {("paper", "published"): niah.PUBLISHED_RUBRIC, ("paper", "clean"): niah.PAPER_RUBRIC}


def test_published_prompts_need_length() -> None:
    """The published builder keeps 200 tokens free: a study of short prompts has nothing to compare."""
    with pytest.raises(InputError, match=r"published ones have at least 225 tokens; give a length from there up"):
        plan(lens(RG), small(RG, "semantics", lengths=(160, 190)))
    study = plan(lens(RG), small(RG, lengths=(160, 190)))
    assert "semantics" not in study.experiments
    assert any(note.startswith("left out: semantics compares") for note in study.notes)


def test_published_manipulations_are_not_jambas() -> None:
    """The authors' code sets attributes that nothing reads there; so a clean Jamba study compares top-k only."""
    with pytest.raises(
        InputError, match=r"^table1 has no published semantics in jamba models: .*use --semantics clean"
    ):
        plan(lens(JAMBA), small(JAMBA, "table1", lengths=(256,), semantics="published"))
    with pytest.raises(InputError, match="scope has no published semantics in any model"):
        plan(lens(RG), small(RG, "scope", lengths=(256,), semantics="published"))
    assert {(key.reading, key.answering) for key in cells(JAMBA, "semantics")} == {("keep", "keep")}
    study = plan(lens(JAMBA), small(JAMBA, lengths=(256,), depths=(0, 100), semantics="published"))
    assert not {"table1", "scope"} & set(study.experiments)
    assert {(key.reading, key.answering) for key in study.cells} == {("keep", "keep")}
    assert sum(note.startswith("left out: ") for note in study.notes) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"experiments": ("fig4",)},
            r"experiment 'fig4' does not exist; close names: fig2, fig3-jrt; expected one of fig2",
        ),
        ({"experiments": ("fig2", "fig2")}, "experiment fig2 is named more than once"),
        ({"experiments": ()}, "no experiment is named, expected some of fig2, fig3-jrt, table1"),
        (
            {"experiments": ("fig3-jrt",), "phases": ("prefill",)},
            "fig3-jrt has no prefill version; use --phase generation",
        ),
        ({"experiments": ("table1",), "phases": ("generation", "prefill")}, "table1 has no prefill version"),
        ({"heads": (0, 9)}, r"--heads 9 given, expected 0\.\.8"),
    ],
)
def test_bad_studies_are_refused_from_sizes_alone(changes: dict, message: str) -> None:
    """`check_study` reads the configuration only, so each of these is said before weights are read."""
    with pytest.raises((InputError, UnknownNameError), match=message):
        check_study(small(**changes), lens(RG).cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (1, 1)}, "--heads holds 1 more than once"),
        ({"heads": (-1,)}, "--heads -1 given, expected greater than or equal to 0"),
        ({"phases": ("decode",)}, "phase 'decode' does not exist"),
        ({"semantics": "own"}, "semantics 'own' does not exist"),
        ({"boundary": "none"}, "boundary 'none' does not exist"),
        ({"memory": 0}, "--memory 0 given"),
        ({"batch_size": 0}, "--batch-size 0 given"),
        ({"needles": ()}, "--needles is empty"),
        ({"needles": (niah.NEEDLES["oslo"],) * 2}, "--needles holds oslo more than once"),
        ({"needles": (replace(niah.NEEDLES["oslo"], name="paper"),)}, "needle named 'paper' that is not the paper's"),
    ],
)
def test_bad_options_are_refused_without_a_model(changes: dict, message: str) -> None:
    with pytest.raises((InputError, UnknownNameError), match=message):
        small(**changes)


def test_phases_can_be_chosen() -> None:
    """Asked for all with the prefill version only: what has none is left out, and says so."""
    running, notes = check_study(small(phases=("prefill",)), lens(RG).cfg)
    assert running == {"fig2": ("prefill",), "maps": ("prefill",)}
    assert "left out: table1 has no prefill version; use --phase generation" in notes
    running, _ = check_study(small(RG, "fig2"), lens(RG).cfg)
    assert running == {"fig2": ("generation", "prefill")}


def test_chosen_heads_keep_the_untouched_model() -> None:
    """A tipping point is measured against it, so 8 is run beside 0 and 3; other experiments choose their own k."""
    found = plan(lens(RG), small(RG, "fig2", heads=(3, 0))).cells
    assert [key.k for key in found][:3] == [0, 3, 8]
    assert {key.k for key in plan(lens(RG), small(RG, "needles", heads=(3,))).cells} == {0, 1, 2, 4, 8}


def test_float16_has_no_published_entropies() -> None:
    """The experiment is refused before its prompts are made; no float16 model is needed to know it."""
    grids = Grids(lens(RG), small())
    stand_in = SimpleNamespace(cfg=lens(RG).cfg, tokenizer=lens(RG).tokenizer, dtype=torch.float16)
    object.__setattr__(grids, "lens", stand_in)
    with pytest.raises(InputError, match=r"semantics compares clean with published: .*float16"):
        list(EXPERIMENTS["semantics"].cells(grids, ("generation",)))


def test_the_order_of_lengths_and_depths_changes_no_coarse_grid() -> None:
    """Taken by place in the list, the ends of (190, 160, 256, 230) would be 190 and 230."""
    grids = Grids(lens(RG), small(lengths=(190, 160, 256, 230), depths=(50, 0, 100, 25, 75)))
    assert (grids.some_lengths, grids.some_depths) == (SOME_LENGTHS, SOME_DEPTHS)


def test_no_controls_when_none_are_wanted() -> None:
    assert not any(key.control for key in plan(lens(RG), small(control=False)).cells)
    assert any(key.control for key in cells(RG))


def test_the_default_study() -> None:
    """Ten lengths and depths: the paper's 100 prompts, and 5 by 5 for what is beyond the paper; twelve needles."""
    assert len(StudyConfig(model=RG).hidden) == 12
    study = plan(lens(RG), StudyConfig(model=RG, needles=(niah.NEEDLES["paper"], niah.NEEDLES["code"])))
    main = {(key.length, key.depth) for key in study.cells if key.phase == "prefill" and not key.control}
    assert len(main) == 100
    assert {key.needle for key in study.cells} == {"paper", "code"}
    coarse = {(k.length, k.depth) for k in study.cells if k.scope == "model" and not k.control}
    assert len(coarse) == 25
    assert coarse <= main
    assert max(length for length, _ in coarse) == 256
    assert study.experiments == tuple(EXPERIMENTS)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30, unique=True), st.integers(1, 30))
def test_spread_is_even_and_holds_the_ends(values: list[int], count: int) -> None:
    """Gaps between chosen places differ by one at most; a step of two from the first would miss the last."""
    found = spread(values, count)
    at = [values.index(value) for value in found]
    assert at == sorted(set(at))
    assert len(found) == min(count, len(values))
    if count > 1 or len(values) == 1:
        assert at[0] == 0
        assert at[-1] == len(values) - 1
    gaps = {b - a for a, b in pairwise(at)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert half(values) == -(-len(values) // 2)
