"""The local tasks: made the same at every run, answerable as they say, and of a size the tiny models can read."""

import json
import re
from collections import Counter

import pytest
from benchmarks import local_tasks as make

from analyses.experiment.options.benchmarks import LOCAL_TASKS as NAMES
from analyses.study.benchmarks.local_tasks import FOLDER
from analyses.study.benchmarks.tasks import load_tasks
from hybridlens.tiny import facts, words
from hybridlens.tiny.documents import SHORT_CLOSING
from hybridlens.tiny.tokenizer import UNK_ID, backend
from hybridlens.tiny.tokenizer import words as known_words

TOKENIZER = backend(known_words())


def items(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="ascii").splitlines()]


def test_the_committed_items_are_those_of_the_script(tmp_path):
    """Byte for byte; another seed gives other items, so the comparison is not of constants."""
    make.main(tmp_path)
    for name, content in make.files().items():
        assert (FOLDER / name).read_bytes() == content == (tmp_path / name).read_bytes()
        assert len(content) < 100_000
    assert make.files(1)["tiny_grammar.jsonl"] != make.files()["tiny_grammar.jsonl"]


def test_retrieval_is_of_the_prompt_and_nothing_else():
    """Every choice stands in the prompt behind another subject; the label's is the one behind the subject asked for.

    So the words of the choices tell nothing, and only the sentence in the prompt does.
    """
    for item in items("tiny_retrieval"):
        context, _, question = item["prompt"].removeprefix("CONTEXT: ").partition("\n\nQUESTION: ")
        subjects = [re.findall(rf"([A-Z][^.?!]*) is {re.escape(choice)}", context) for choice in item["choices"]]
        assert [len(found) for found in subjects] == [1, 1, 1, 1]
        names = [f"{found[0]} is" for found in subjects]
        assert len(set(names)) == len(set(item["choices"])) == 4
        assert names.index(item["subject"]) == item["label"]
        assert item["sentence"] == f"{item['subject']} {item['choices'][item['label']]}"
        assert item["subject"].removesuffix(" is").removeprefix("The ") in question
        joined = [f"{name} {choice}" for name in names for choice in item["choices"]]
        assert not any(facts.held_out(text) for text in joined)


def test_facts_are_the_learned_ones_and_stand_in_no_prompt():
    """The label is checked against the lists of words, not against the sentences that the items are made of."""
    truth = {f"The capital of {country} is": city for country, city in words.CAPITALS}
    truth |= {f"The opposite of {one} is": other for one, other in words.OPPOSITES}
    found = items("tiny_facts")
    assert Counter(item["subject"] for item in found) == dict.fromkeys(truth, 2)
    for item in found:
        answer = truth[item["subject"]]
        assert item["choices"][item["label"]] == answer
        assert answer not in re.findall(r"\w+", item["prompt"])
        assert len(set(item["choices"])) == 4
        pairs = words.CAPITALS if "capital" in item["subject"] else words.OPPOSITES
        assert set(item["choices"]) <= {other for _, other in pairs}
    assert sum(item["prompt"].endswith(SHORT_CLOSING) for item in found) == len(found) / 2


def test_grammar_asks_for_the_number_of_the_subject():
    """In half of the sentences the noun before the verb has the other number, so copying that one gives half."""
    plurals = {f"{animal}s" for animal in words.ANIMALS}
    misleading = 0
    for item in items("tiny_grammar"):
        _, _, subject, *_, place = item["prompt"].split()
        plural = subject in plurals
        assert item["choices"][item["label"]] in {pair[1 if plural else 0] for pair in words.MOTIONS}
        assert tuple(item["choices"]) in words.MOTIONS
        assert item["misleading"] == (plural != place.endswith("s"))
        misleading += item["misleading"]
    assert misleading == make.N_GRAMMAR / 2
    assert len({item["prompt"] + str(item["choices"]) for item in items("tiny_grammar")}) == make.N_GRAMMAR


@pytest.mark.parametrize("name", ["tiny_retrieval", "tiny_facts", "tiny_grammar"])
def test_prompts_fit_and_are_known(name):
    """256 tokens at most and no unknown word; labels fall evenly enough that one position cannot win."""
    found = items(name)
    for item in found:
        for choice in item["choices"]:
            ids = TOKENIZER.encode(f"{item['prompt']} {item.get('subject', '')} {choice}").ids
            assert len(ids) <= make.LONGEST
            assert UNK_ID not in ids
    most = Counter(item["label"] for item in found).most_common(1)[0][1]
    assert most <= len(found) * (0.45 if name != "tiny_grammar" else 0.65)
    if name == "tiny_retrieval":
        lengths = Counter(len(TOKENIZER.encode(item["prompt"].rstrip(" ")).ids) for item in found)
        assert set(lengths.values()) == {make.N_RETRIEVAL // 3}


def test_lm_eval_finds_every_item(tmp_path, monkeypatch):
    """From another folder too: the paths do not depend on where the command is run."""
    monkeypatch.chdir(tmp_path)
    loaded = load_tasks(NAMES)
    assert tuple(loaded.tasks) == NAMES
    sizes = {name: len(task.eval_docs) for name, task in loaded.tasks.items()}
    assert sizes == {"tiny_retrieval": 72, "tiny_recite": 72, "tiny_facts": 80, "tiny_grammar": 100}
    task = loaded.tasks["tiny_retrieval"]
    doc = items("tiny_retrieval")[0]
    assert task.doc_to_text(doc) == doc["prompt"] + doc["subject"]
    assert loaded.tasks["tiny_recite"].doc_to_text(doc).endswith("in the context: ")
    assert list(tmp_path.iterdir()) == []
