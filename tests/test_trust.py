"""What SECURITY.md says is never done is done nowhere: the source has no call that would run a checkpoint's code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UNPICKLING = {"pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "joblib.load", "dill.load"}
WORDS = re.compile(
    r"from_pretrained|trust_remote_code|torch\.load|\b(eval|exec)\(|\.(load|loads|Unpickler)\(|allow_pickle"
)
"""Of which one stands in every call that is looked for; a file without any is not parsed."""


def offences(source: str) -> Iterator[str]:
    """Calls that could run what a file says: a line each."""
    for node in ast.walk(ast.parse(source if WORDS.search(source) else "")):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        auto = name.endswith(".from_pretrained") and name.split(".")[-2].startswith("Auto")
        if auto and given.get("trust_remote_code") != "False":
            yield f"{node.lineno}: {name} without trust_remote_code=False"
        if given.get("trust_remote_code", "False") != "False":
            yield f"{node.lineno}: {name} with trust_remote_code"
        if name == "torch.load" and given.get("weights_only") != "True":
            yield f"{node.lineno}: torch.load without weights_only=True"
        if name in ("eval", "exec") or name in UNPICKLING:
            yield f"{node.lineno}: {name}"
        if given.get("allow_pickle", "False") != "False":
            yield f"{node.lineno}: {name} with allow_pickle"


def test_no_call_runs_what_a_file_says() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ("hybridlens", "analyses")
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in offences(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "AutoTokenizer.from_pretrained(folder)",
        "transformers.AutoConfig.from_pretrained(folder, trust_remote_code=None)",
        "Model.from_pretrained(folder, trust_remote_code=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(held)",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_each_of_them_would_be_seen(source: str) -> None:
    assert len(list(offences(source))) == 1 + source.endswith("code=None)")


def test_the_right_calls_are_none() -> None:
    source = "AutoConfig.from_pretrained(f, trust_remote_code=False)\ntorch.load(p, weights_only=True)\nmodel.eval()"
    assert list(offences(source)) == []
