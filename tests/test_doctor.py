"""`hybridlens doctor`: it notices a wrong model, asks the code that chooses scans, and says nothing of its user."""

import getpass
import math
import platform
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import make

import hybridlens as hl
from analyses.cli import main
from hybridlens.doctor import Diagnosis, agreement, examine
from hybridlens.doctor.agreement import compare
from hybridlens.doctor.private import private
from hybridlens.doctor.scans import scan_choices
from hybridlens.families import FAMILIES
from hybridlens.recurrences.kernels import choice
from hybridlens.supported import supported


@pytest.fixture(scope="module")
def healthy() -> Diagnosis:
    """Of this machine: the embedded model is opened twice."""
    return examine()


def louder(lens: hl.HybridLens) -> None:
    """Logits a thousandth too large."""
    lens.network.unembed_scale *= 1.001


def forgetful(lens: hl.HybridLens) -> None:
    """Right on a whole text, and wrong after a state: the step goes on from nothing."""
    lens.extend = lambda state, tokens: lens.prefill(tokens)  # type: ignore[method-assign]


def broken(lens: hl.HybridLens) -> None:
    """One logit is no number."""
    whole = lens.network.forward
    lens.network.forward = lambda *given, **more: _spoilt(whole(*given, **more))  # type: ignore[method-assign]


def _spoilt(out):
    logits = out.logits.clone()
    logits[..., 0] = math.nan
    return out._replace(logits=logits)


@pytest.mark.parametrize("family", ["jamba", "falcon_h1"])
def test_a_lens_agrees_with_the_model_that_it_is_of(family: str) -> None:
    """Two models of one draw, one of them without a lens; a third, one row of the unembedding 1 % off, is found out."""
    untouched, other = make(family), make(family)
    found = compare(hl.HybridLens(make(family)), untouched, family)
    assert found.agrees, found
    assert 0 < found.allowed < 0.01
    assert "agrees with transformers' own model" in repr(found)
    with torch.no_grad():
        other.get_output_embeddings().weight[3] *= 1.01
    apart = compare(hl.HybridLens(other), untouched, family)
    assert not apart.agrees
    assert apart.logits > 10 * found.allowed
    assert "DISAGREES" in repr(apart)


@pytest.mark.parametrize(
    ("plant", "logits", "decode"), [(louder, True, True), (forgetful, False, True), (broken, True, True)]
)
def test_what_is_wrong_is_noticed(plant: Callable[[hl.HybridLens], None], logits: bool, decode: bool) -> None:
    """In the logits, and in the decode step by itself."""
    lens = hl.HybridLens(make("jamba"))
    plant(lens)
    found = compare(lens, make("jamba"))
    assert not found.agrees
    assert (not found.logits <= found.allowed, not found.decode <= found.allowed) == (logits, decode)


def test_this_installation_is_well(healthy: Diagnosis) -> None:
    assert healthy.well, healthy.text
    assert healthy.packages["torch"] == torch.__version__
    assert healthy.packages["hybridlens"] == hl.__version__
    assert len(healthy.agreements) == len(healthy.devices) > 0
    for line in (f"Python {platform.python_version()}", "device: cpu", "self-check: tiny-jamba on cpu", "well: yes"):
        assert line in healthy.text
    for family in FAMILIES:
        assert re.search(rf"^scan: .*\b{family.name}\b", healthy.text, flags=re.MULTILINE)


def test_one_that_lacks_a_package_is_not(healthy: Diagnosis) -> None:
    ill = replace(healthy, packages={**healthy.packages, "einops": None})
    assert not ill.well
    assert "not installed: einops" in ill.text
    assert ill.text.endswith("all is well: NO")


def test_the_command_exits_with_1_where_the_model_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lens on other weights than those of the files; and one that cannot be opened at all."""
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("all is well: yes\n")

    def wrong(name: str, device: str) -> hl.HybridLens:
        lens = hl.load(name, device=device)
        louder(lens)
        return lens

    monkeypatch.setattr(agreement, "load", wrong)
    assert main(["doctor"]) == 1
    assert "DISAGREES" in capsys.readouterr().out

    def refused(name: str, device: str) -> hl.HybridLens:
        raise OSError("/Users/alice/lib/libx.so: undefined symbol")

    monkeypatch.setattr(agreement, "load", refused)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "tiny-jamba on cpu, float32: fails, OSError: …/libx.so: undefined symbol" in said
    assert "alice" not in said


def test_nobody_is_named(healthy: Diagnosis) -> None:
    """Not this machine, not who uses it, and no path."""
    assert "/" not in healthy.text
    for name in (platform.node(), getpass.getuser(), str(Path.home())):
        assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", healthy.text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open /Users/alice/models/a.so: no such file", "cannot open …/a.so: no such file"),
        (r"cannot open C:\Users\alice\a.dll, bad image", "cannot open …/a.dll, bad image"),
        ("File '~/models/alice/x'", "File '…/x'"),
        ("alice on box7\nsays boxes of alices", "USER on HOST says boxes of alices"),
        ("3/4 of a/b, kept", "3/4 of a/b, kept"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_paths_and_names_leave_a_text(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(platform, "node", lambda: "box7")
    assert private(text) == shown


def test_scans_are_those_that_the_choice_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all kernels, with one that cannot be imported, and with none: as `choice` chooses for the same tensors."""
    there = {"hybridlens", "triton", "accelerated_scan", "mamba_ssm", "selective_scan_cuda"}
    bad = set[str]()

    def imported(module: str) -> None:
        if module in bad:
            raise OSError("/opt/alice/scan.so: undefined symbol")

    monkeypatch.setattr(choice, "find_spec", lambda top: top if top in there else None)
    monkeypatch.setattr(choice, "import_module", imported)
    monkeypatch.setattr(choice, "_importable", {})
    found = scan_choices(("cpu", "cuda"))
    runs = {scan.family: scan.runs for scan in found.families}
    assert runs["jamba"] == {"cpu": "torch", "cuda": "mamba-ssm"}
    assert runs["recurrentgemma"] == {"cpu": "torch", "cuda": "accelerated-scan"}
    assert runs["qwen3_next"] == runs["llama"] == {"cpu": "torch", "cuda": "torch"}
    assert found.installed == ("mamba-ssm", "accelerated-scan", "triton")
    assert found.troubles == ()

    bad.add("accelerated_scan.scalar")
    choice._importable.clear()
    found = scan_choices(("cuda",))
    assert next(scan for scan in found.families if scan.family == "recurrentgemma").runs == {"cuda": "triton"}
    (said,) = found.troubles
    assert "'accelerated-scan' is installed but cannot be imported" in said
    assert "alice" not in said

    there.clear()
    assert scan_choices(("cuda",)).installed == ()
    assert {name for scan in scan_choices(("cuda",)).families for name in scan.runs.values()} == {"torch"}


def test_every_family_has_its_scan_or_a_reason() -> None:
    scans = scan_choices(("cpu",)).families
    assert [scan.family for scan in scans] == [row.family for row in supported().rows]
    assert all((scan.operation is None) == bool(scan.reason) for scan in scans)
    assert {scan.operation for scan in scans} == {None, "linear", "selective"}


def test_it_shows_itself(healthy: Diagnosis) -> None:
    """Every family is in the picture, and every line of the text in the table."""
    assert "all is well" in repr(healthy)
    html = healthy._repr_html_()
    assert all(f"<td>{family.name}</td>" in html for family in FAMILIES)
    frame = healthy.to_pandas()
    joined = "; ".join(map(str, frame["value"]))
    for line in healthy.text.splitlines()[1:]:
        assert line.partition(": ")[2] in joined
