"""What surgery on caches and states refuses: places, names, numbers and states, each in one clear line."""

import inspect

import jaxtyping
import pytest
import torch
from kv_loops import read, rows
from models import FAMILIES, make

from analyses import kv_cache
from analyses.kv_cache import Surgery
from hybridlens import HybridLens
from hybridlens.errors import InputError, KeywordError


@pytest.fixture(scope="module", params=FAMILIES)
def exact(request: pytest.FixtureRequest) -> HybridLens:
    return HybridLens(make(request.param, 5, num_hidden_layers=6))


def test_bad_places_are_one_clear_line(exact: HybridLens) -> None:
    """What was given, what there is; nothing is changed."""
    state = read(exact, rows())
    ssm, attention = exact.cfg.ssm_layers[0], exact.cfg.attention_layers[0]
    held = r"6\.\.11 of its window of 7" if exact.cfg.window else r"0\.\.11"
    for call, message in (
        (lambda: kv_cache.drop(state, [50], rows=0), f"position 50 given, but .* row 0 holds positions {held}"),
        (lambda: kv_cache.zero(state, positions=[3, 9], rows=2), r"position 9 given, .* row 2 holds positions 0\.\.3"),
        (lambda: kv_cache.zero(state, positions=-1), "position -1 given, expected a number from 0 on"),
        (lambda: kv_cache.zero(state, layers=ssm, heads=0), f"head 0 of layer {ssm} given, but that layer is rec"),
        (lambda: kv_cache.zero(state, layers=ssm), f"layer {ssm} is recurrent and holds no keys; the attention layers"),
        (lambda: kv_cache.reset(state, layers=attention), f"layer {attention} is attention and holds no recurrent"),
        (lambda: kv_cache.zero(state, layers=9), r"layer 9 given, expected one of 0\.\.5"),
        (lambda: kv_cache.zero(state, heads=5), r"key/value head 5 given, expected one of 0\.\."),
        (lambda: kv_cache.zero(state, channels=[99]), r"channel 99 given, expected one of 0\.\.7"),
        (lambda: kv_cache.decay(state, 1, channels=[99]), r"channel 99 given, expected one of 0\.\."),
        (lambda: kv_cache.zero(state, rows=3), r"row 3 given, expected one of 0\.\.2"),
        (lambda: kv_cache.drop(state, [[1], [2]]), "positions of 2 rows given for 3 rows"),
        (lambda: kv_cache.quantise(state, 0), "bits = 0 given, expected a whole number from 1 to 16"),
        (lambda: kv_cache.noise(state, 1, -1), "seed = -1 given, expected a whole number"),
        (lambda: kv_cache.noise(state, -1, 0), "scale = -1 given"),
        (lambda: kv_cache.decay(state, float("nan")), "factor = nan given"),
        (lambda: kv_cache.keep_last(state, -2), "n = -2 given, expected a whole number"),
        (lambda: kv_cache.keep_ends(state, 1, -2), "last = -2 given, expected a whole number"),
        (lambda: Surgery(lambda s: s, at=-1), "at = -1 given, expected a whole number from 0"),
        (lambda: kv_cache.generate_with(exact, [[1]], [Surgery(lambda s: s, at=4)], 4), r"take steps 0\.\.3"),
        (lambda: kv_cache.generate_with(exact, [[1]], [Surgery(lambda s: s, at=[0, 500])], 4), "decode step 500 given"),
        (
            lambda: kv_cache.generate_with(exact, [[1]], [Surgery(lambda s: s, at="every")], 1, (), "first_new_token"),
            r"decode step 'every' given, but 1 new tokens .* take no decode step; ask for more",
        ),
        (
            lambda: kv_cache.generate_with(exact, [[1, 2, 3]], [Surgery(lambda s: exact.prefill([[1]]).state)], 4),
            "a state that has read 1 tokens in row 0, expected 2, as many as",
        ),
        (lambda: kv_cache.generate_with(exact, [[1]], [Surgery(lambda s: s.select([0, 0]))], 4), "a state of 2 rows"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    if exact.cfg.window:
        with pytest.raises(InputError, match=rf"position 2 given, but the cache of row 0 holds positions {held}"):
            kv_cache.zero(state, positions=2, rows=0)
    gone = kv_cache.drop(state, 11, rows=0, layers=attention, heads=0)
    with pytest.raises(InputError, match=f"position 11 given, but head 0 of layer {attention} in row 0 holds "):
        kv_cache.zero(gone, positions=11, rows=0)


def test_names_that_say_no_place_are_refused(exact: HybridLens) -> None:
    """A misspelt or foreign name would change everything: one line with those that there are, from every function."""
    state = read(exact, rows())
    direction = torch.ones(exact.cfg.d_channels)
    for call in (
        lambda **where: kv_cache.zero(state, **where),
        lambda **where: kv_cache.mean(state, **where),
        lambda **where: kv_cache.noise(state, 1, 0, **where),
        lambda **where: kv_cache.quantise(state, 2, **where),
        lambda **where: kv_cache.swap(state, state, **where),
        lambda **where: kv_cache.swap(state, state, mapping={1: 2}, **where),
        lambda **where: kv_cache.drop(state, [1], **where),
        lambda **where: kv_cache.keep(state, [1], **where),
        lambda **where: kv_cache.keep_last(state, 1, **where),
        lambda **where: kv_cache.keep_ends(state, 1, 1, **where),
        lambda **where: kv_cache.zero_recurrent(state, **where),
        lambda **where: kv_cache.reset(state, **where),
        lambda **where: kv_cache.decay(state, 0.5, **where),
        lambda **where: kv_cache.swap_recurrent(state, state, **where),
        lambda **where: kv_cache.project_out(state, direction, **where),
    ):
        with pytest.raises(KeywordError, match=r"^'layer' given, but a place is named by layers, .* names: layers$"):
            call(layer=0)
    with pytest.raises(KeywordError, match=r"'part' given, .* rows, positions, channels here; close names: parts$"):
        kv_cache.zero(state, part="keys")
    for name in ("positions", "channels"):
        with pytest.raises(KeywordError, match=f"^'{name}' given, but a place is named by layers, heads, rows here$"):
            kv_cache.keep_ends(state, 1, 1, **{name: [0]})
    for call in (
        lambda: kv_cache.decay(state, 0.5, layers=0, heads=0),
        lambda: kv_cache.zero_recurrent(state, heads=0),
    ):
        with pytest.raises(InputError, match="heads 0 given, but recurrent layers have no heads; leave heads out"):
            call()


def test_signatures_name_every_place() -> None:
    """Help and completion show the keywords that a function takes, and these are all that it takes."""
    keys, matrices = (
        ["layers", "heads", "rows"],
        ["layers", "rows", "channels", "positions", "heads", "values", "addresses"],
    )
    for name, known in (
        *((name, keys) for name in ("drop", "keep", "keep_last", "keep_ends")),
        *((name, [*keys, "positions", "channels"]) for name in ("zero", "mean", "noise", "quantise", "swap")),
        *((name, matrices) for name in ("zero_recurrent", "decay", "swap_recurrent", "project_out")),
        ("reset", ["layers", "rows"]),
    ):
        parameters = inspect.signature(getattr(kv_cache, name)).parameters.values()
        assert [p.name for p in parameters][-len(known) :] == known, name
        assert not any(p.kind is p.VAR_KEYWORD for p in parameters), name


def test_numbers_that_are_not_whole_are_refused(exact: HybridLens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tests' type checker, as users run it: the checker would refuse them first."""
    state = read(exact, rows())
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for call, said in (
        (lambda: kv_cache.quantise(state, 2.5), "bits = 2.5"),
        (lambda: kv_cache.keep_last(state, 2.5), "n = 2.5"),
        (lambda: kv_cache.keep_ends(state, 0.5, 2), "first = 0.5"),
        (lambda: kv_cache.keep_ends(state, 1, 2.5), "last = 2.5"),
        (lambda: kv_cache.noise(state, 1, 1.5), "seed = 1.5"),
    ):
        with pytest.raises(InputError, match=f"{said} given, expected a whole number"):
            call()


def test_states_that_do_not_fit(exact: HybridLens) -> None:
    state, shorter = read(exact, rows()), read(exact, rows(1, (12, 8, 4)))
    stranger = HybridLens(make(exact.cfg.family, 5, num_hidden_layers=3))
    other = read(stranger, rows())
    for swap in (kv_cache.swap, kv_cache.swap_recurrent):
        with pytest.raises(InputError, match="states of different models given"):
            swap(state, other)
        with pytest.raises(InputError, match="row 1 has read 9 tokens in one and 8 in the other"):
            swap(state, shorter)
        with pytest.raises(InputError, match="states of 3 and 2 rows given"):
            swap(state, state.select([0, 1]))
