"""The built-in needles, and needles from a file: what a wrong one is told."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hybridlens as hl
from analyses.experiment.options.crossover import CrossoverConfig
from analyses.experiment.options.needles import read_needle, read_needles
from analyses.experiment.options.patch import PatchConfig
from analyses.experiment.options.states import StatesConfig
from analyses.experiment.options.study import NiahConfig, StudyConfig
from hybridlens import niah
from hybridlens.errors import InputError, UnknownNameError
from hybridlens.niah.needle_files import Placed, place
from hybridlens.tiny import facts
from hybridlens.tiny.tokenizer import build_tokenizer


def test_the_study_has_many_forms() -> None:
    """At least ten needles of at least nine first words of question and sentence; the published twin is not one."""
    names = niah.needle_set()
    assert names[0] == "paper"
    assert len(names) == len(set(names)) >= 10
    assert "paper-published" not in names
    needles = [niah.NEEDLES[name] for name in names]
    assert len({n.sentence for n in needles}) == len({n.question for n in needles}) == len(names)
    shapes = {" ".join(n.sentence.split()[:3] + n.question.split()[:3]) for n in needles}
    assert len(shapes) >= 9


@pytest.mark.parametrize("name", list(niah.NEEDLES))
def test_the_tiny_models_know_the_words_and_never_saw_the_sentence(name: str) -> None:
    """An unknown word would be copied as <unk>; a sentence that could be drawn in training would be no test."""
    needle = niah.NEEDLES[name]
    assert niah.unknown_words(build_tokenizer(256), [needle.sentence, needle.question]) == ()
    assert facts.held_out(needle.sentence)
    other = needle.sentence.replace(".", " now.")
    assert name.startswith("paper") or not facts.held_out(other)


FORMS: dict[str, Callable[[random.Random], facts.Fact]] = {
    "strangest": facts._thing_to_do_otherwise,
    "sailors": facts._people_like,
    "secret-word": facts._secret_word,
    "treasure": facts._secret_word,
    "favorite": facts._secret_word,
    "violin": facts._keeps,
    "mayor": facts._who,
    "tuesday": facts._weekly,
    "code": facts._numbers,
}


@pytest.mark.parametrize("name", FORMS)
def test_guesses_in_the_needles_form_earn_little(name: str) -> None:
    """A speaker who knows the training form and its words, and not the needle: 3,000 draws score under 10 %.

    The rubric pays for the phrases at all: the needle's own answer, cut after its first phrase, earns 30 %.
    """
    needle, rng = niah.NEEDLES[name], random.Random(5)
    total = sum(niah.score(FORMS[name](rng).sentence, needle.rubric) for _ in range(3000))
    assert total / 3000 / 5 < 0.10
    assert niah.score(needle.rubric[0].phrase, needle.rubric) == 1.5


def test_in_steps_by_hand() -> None:
    """The steps worked by hand, and phrases that do not fit."""
    needle = niah.in_steps("n", "Ann hid nine keys under the bridge.", "What did Ann do?", "nine keys", "the bridge")
    cases = {
        "nine keys": 1.5,
        "the bridge": 1.5,
        "nine keys and the bridge": 3.0,
        "she put nine keys under the bridge": 4.0,
        "Ann hid nine keys under the bridge": 5.0,
        "keys under the": 0.0,
    }
    assert {text: niah.score(text, needle.rubric) for text in cases} == cases
    for first, second in (("the bridge", "nine keys"), ("ten keys", "the bridge"), ("nine keys", "keys under")):
        with pytest.raises(InputError, match="in that order; give two of its phrases"):
            niah.in_steps("n", needle.sentence, needle.question, first, second)


@pytest.mark.parametrize("name", ["tiny-recurrentgemma", "tiny-jamba", "tiny-lfm2"])
def test_the_tiny_models_find_every_needle_of_the_study(name: str) -> None:
    """Word by word at one length and two depths; a needle that the untouched model misses shows nothing of heads."""
    lens = hl.load(name)
    needles = [niah.NEEDLES[n] for n in niah.needle_set()]
    prompts = [p for n in needles for p in niah.grid(lens.tokenizer, [200], [0, 100], needle=n)]
    texts = lens.generate([list(p.tokens) for p in prompts], 24).text
    for i, text in enumerate(texts):
        assert niah.score(text, needles[i // 2].rubric) == 5.0, text


# Files of needles.

GOOD: dict[str, Any] = {
    "name": "keys",
    "sentence": "The red fox hid nine keys.",
    "question": "What did the red animal hide?",
    "rubric": [["nine keys", 2, "add"], ["The red fox hid nine keys.", 5, "set"]],
}


def written(path: Path, needles: Any) -> Path:
    """The file as an editor would lay it out, a value a line."""
    path.write_text(needles if isinstance(needles, str) else json.dumps(needles, indent=1), encoding="utf-8")
    return path


def test_good_files_load(tmp_path: Path) -> None:
    """Both ways of writing a rule, an own needle beside a built-in one's exact content."""
    paper = niah.PAPER_NEEDLE
    same = {"name": "paper", "sentence": paper.sentence, "question": paper.question}
    rows = [GOOD, {**same, "rubric": [rule._asdict() for rule in paper.rubric]}]
    first, second = niah.load_needles(written(tmp_path / "a.json", rows))
    assert (first.name, first.sentence, first.question) == (GOOD["name"], GOOD["sentence"], GOOD["question"])
    assert first.rubric == (niah.Rule("nine keys", 2.0, "add"), niah.Rule(GOOD["sentence"], 5.0, "set"))
    assert second == paper


def without(name: str) -> dict[str, Any]:
    """A good needle that lacks one field."""
    return {key: value for key, value in GOOD.items() if key != name}


LINE = '[\n{"name": "a", "sentence": "A fox.",\n"question": "Who?", "rubric": [["A fox", 5, "set"]]},\n'
BAD: dict[str, tuple[Any, str]] = {
    "no name": ([without("name")], "line 2: needle 1 has no field 'name'; expected name, sentence, question, rubric"),
    "no sentence": ([GOOD, without("sentence")], "line 19: needle 2 has no field 'sentence'"),
    "no question": ([without("question")], "line 2: needle 1 has no field 'question'"),
    "no rubric": ([without("rubric")], "line 2: needle 1 has no field 'rubric'"),
    "unknown": ([{**without("question"), "questoin": "?"}], "the unknown field 'questoin'; close names: question;"),
    "twice": ('[{"name": "a",\n"name": "b"}]', "line 2: needle 1 has the field 'name' twice; give it once"),
    "name a number": ([{**GOOD, "name": 3}], "line 3: field 'name' is a number; expected a string"),
    "sentence null": ([{**GOOD, "sentence": None}], "line 4: field 'sentence' is null; expected a string"),
    "question a list": ([{**GOOD, "question": ["a"]}], "line 5: field 'question' is a list; expected a string"),
    "blank": ([{**GOOD, "question": " ? "}], "line 5: field 'question' is ' ? ', without a word"),
    "rubric a string": ([{**GOOD, "rubric": "5"}], "line 6: field 'rubric' is a string; expected a list of"),
    "rubric empty": ([{**GOOD, "rubric": []}], "line 6: field 'rubric' has no rules"),
    "short rule": ([{**GOOD, "rubric": [["nine keys", 5]]}], "line 7: field 'rubric': rule 1 is ["),
    "mode": (
        [{**GOOD, "rubric": [*GOOD["rubric"], ["fox", 1, "plus"]]}],
        "line 17: field 'rubric': rule 3 ('fox') has mode 'plus'; expected 'add' or 'set'",
    ),
    "points": ([{**GOOD, "rubric": [["fox", "5", "add"]]}], "line 7: field 'rubric': rule 1 ('fox') has points '5'"),
    "too many points": ([{**GOOD, "rubric": [["fox", 10**400, "add"]]}], "phrase 'fox' is worth 1000.0 points"),
    "phrase": ([{**GOOD, "rubric": [["hen", 5, "set"]]}], "line 6: field 'rubric': phrase 'hen' is missing from"),
    "maximum": ([{**GOOD, "rubric": [["fox", 3, "add"]]}], "line 6: field 'rubric': the needle 'The red fox hid"),
    "same name": ([GOOD, GOOD], "line 20: field 'name': 'keys' is also the name on line 3; give each needle a name"),
    "built-in": ([{**GOOD, "name": "oslo"}], "line 3: field 'name': 'oslo' is a built-in needle with other content"),
    "an object": (GOOD, "line 1: holds an object; expected a list of"),
    "empty": ("\n[ ]", "line 2: holds no needle; expected at least one"),
    "not an object": (LINE + "7]", "line 4: needle 2 is a number; expected {"),
    "true": (LINE + "\n\ntrue]", "line 6: needle 2 is true; expected {"),
    "broken": (LINE + '{"name" "b"}]', "line 4, column 9: is not JSON (Expecting ':' delimiter); give a list of"),
    "cut": (LINE, "line 4, column 1: is not JSON (Expecting value)"),
    "nothing": ("", "line 1, column 1: is not JSON (Expecting value)"),
    "too deep": ("[" * 100_000, "cannot be read as JSON"),
}


@pytest.mark.parametrize(("needles", "wording"), list(BAD.values()), ids=list(BAD))
def test_wrong_files_are_told_their_line_and_field(needles: Any, wording: str, tmp_path: Path) -> None:
    """One line of text; the line numbers were counted in the file, most of them not on the object's first line."""
    with pytest.raises(InputError) as caught:
        niah.load_needles(written(tmp_path / "mine.json", needles))
    message = str(caught.value)
    assert message.startswith(f"needle file {str(tmp_path / 'mine.json')!r}")
    assert wording in message
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is not there, and one in another encoding."""
    with pytest.raises(InputError, match=r"none\.json' cannot be read \(No such file or directory\); give a JSON list"):
        niah.load_needles(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'[{"name": "caf\xe9"}]')
    with pytest.raises(InputError, match=r"latin\.json' cannot be read as JSON in UTF-8"):
        niah.load_needles(tmp_path / "latin.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def rebuilt(placed: Placed) -> Any:
    """The value again, from the parts that have lines."""
    if isinstance(placed.value, dict):
        return {key: rebuilt(value) for key, _, value in placed.fields}
    return [rebuilt(item) for item in placed.items] if isinstance(placed.value, list) else placed.value


@given(VALUES, st.sampled_from([None, 0, 2]))
def test_places_are_those_of_the_text(value: Any, indent: int | None) -> None:
    """Any JSON: the parts make the value again, and each part's line holds the beginning of its text."""
    text = json.dumps(value, indent=indent)
    lines = text.split("\n")
    placed = place(text)
    assert rebuilt(placed) == value
    todo = [placed]
    while todo:
        part = todo.pop()
        assert json.dumps(part.value, indent=indent).split("\n")[0] in lines[part.line - 1]
        for key, line, _ in part.fields:
            assert json.dumps(key) in lines[line - 1]
        todo += [*part.items, *(item for _, _, item in part.fields)]
    if indent is not None and isinstance(value, list | dict):
        firsts = [part.line for part in placed.items] or [line for _, line, _ in placed.fields]
        assert firsts == sorted(set(firsts)), "laid out a value a line, no two begin on the same"


def test_the_option(tmp_path: Path) -> None:
    """All of a study, names, or a file; each mistake named."""
    assert [n.name for n in read_needles("all")] == list(niah.needle_set())
    assert read_needles("oslo, paper") == (niah.NEEDLES["oslo"], niah.PAPER_NEEDLE)
    path = written(tmp_path / "mine.json", [GOOD])
    assert [n.name for n in read_needles(str(path))] == ["keys"]
    with pytest.raises(InputError, match="--needles holds oslo more than once"):
        StudyConfig(model="m", needles="oslo,paper,oslo")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="'osol' is neither a file nor a built-in needle; close names: oslo"):
        read_needles("paper,osol")
    with pytest.raises(InputError, match="cannot be read"):
        read_needles(str(tmp_path / "none.json"))
    with pytest.raises(UnknownNameError, match="'' is neither"):
        read_needles("")


def test_one_syntax_for_one_needle_and_for_several(tmp_path: Path) -> None:
    """A needle of a file by its name, wherever one is asked for or several; what is ambiguous or absent is said."""
    other = GOOD | {"name": "other"}
    path = written(tmp_path / "mine.json", [GOOD, other])
    assert [n.name for n in read_needles(f"{path}:other")] == ["other"]
    assert [n.name for n in read_needles(f"{path}:other,keys")] == ["other", "keys"]
    for config in (NiahConfig, PatchConfig, StatesConfig):
        assert config(model="m", needle=f"{path}:keys").hidden.name == "keys"  # type: ignore[arg-type]
        assert config(model="m", needle="oslo").hidden is niah.NEEDLES["oslo"]  # type: ignore[arg-type]
        assert config(model="m").hidden is niah.PAPER_NEEDLE
        with pytest.raises(InputError, match=r"holds keys, other; choose one, as in .*mine\.json:keys"):
            config(model="m", needle=str(path))  # type: ignore[arg-type]
        with pytest.raises(UnknownNameError, match=r"needle 'kyes' of .* does not exist; close names: keys"):
            config(model="m", needle=f"{path}:kyes")  # type: ignore[arg-type]
    alone = written(tmp_path / "alone.json", [other])
    assert read_needle(str(alone), None, None).name == "other"  # type: ignore[union-attr]
    assert CrossoverConfig(model="m", needles=str(path)).needles == read_needles(str(path))  # type: ignore[arg-type]
