"""Models of the hub, opened by the real client from a small hub of our own on the loopback interface.

What is opened is compared with the same checkpoint as a folder; what is fetched, with the requests that the server
noted. One process opens everything (`hub_client`): which hub is asked is read when the client is imported.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub, read
from models import make
from random_lens import save_checkpoint

import hybridlens as hl

ROOT = Path(__file__).resolve().parent.parent
BALLAST = {
    "pytorch_model.bin": b"pickle", "tf_model.h5": b"h5", "flax_model.msgpack": b"m", "model.gguf": b"GGUF",
    "original/consolidated.00.pth": b"p", "README.md": b"# A model", "pytorch_model.bin.index.json": b"{}",
    "consolidated.safetensors": b"twice",
}  # fmt: skip


class Client:
    """The process that opens models."""

    def __init__(self, hub: Hub, home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        changes = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        changes |= {"OMP_NUM_THREADS": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
        self.hub, self.home = hub, home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hub_client"], env={**kept, **changes}, cwd=home,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, do: str, *args: Any, token: str | None = None, offline: bool = False, **options: Any) -> Any:
        """Do something; what came of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.hub.asked.clear()
        step = {"do": do, "args": args, "options": options, "token": token, "offline": offline}
        self.process.stdin.write(json.dumps(step) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the process ended while it did {step}"
        found = json.loads(line)
        found["err"] = re.sub(r"\rLoading weights: .*\n?", "", found["err"])  # transformers', from the files at hand
        return found

    def refused(self, *words: str, **step: Any) -> str:
        """The one line that opening a model is refused with, which holds these words."""
        found = self(step.pop("do", "load"), step.pop("name"), **step)
        line = found["error"]
        assert line, found
        assert "\n" not in line
        assert len(line) < 500
        for word in words:
            assert word in line
        assert found["err"] == "" == found["out"]
        return line


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    made = Client(hub, tmp_path_factory.mktemp("home"))
    yield made
    made.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Jamba with a tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "jamba", "jamba")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """One without, in many files."""
    place = tmp_path_factory.mktemp("models") / "shards"
    make("jamba").save_pretrained(place, max_shard_size="20KB")
    return place


def logits(folder: Path, ids: Any = None) -> Any:
    with torch.no_grad():
        return hl.load(folder)(torch.arange(5)[None] if ids is None else ids)[0, -1, :4]


def test_a_model_is_opened_and_only_what_is_needed_is_fetched(hub, client, folder):
    """Its name, logits, tokenizer and dtype are those of the folder; what else lies in the repository stays there."""
    commit = hub.publish("us/jamba", {**read(folder), **BALLAST})
    found = client("load", "us/jamba", text="a city", dtype="auto")
    assert found["error"] is None
    assert torch.equal(torch.tensor(found["value"]["logits"]), logits(folder, "a city"))
    assert (found["value"]["name"], found["value"]["tokenizer"]) == ("us/jamba", True)
    assert set(hub.fetched()) == set(read(folder)) - {"README.md"}
    stored = [one for one in hub.asked if one.path.startswith("/store/")]
    assert stored
    assert all(one.token is None for one in stored)  # tokens are the hub's alone
    assert found["warnings"] == []
    again = client("load", "us/jamba", revision=commit)
    assert again["value"]["logits"] == pytest.approx(logits(folder).tolist())
    assert hub.fetched() == []


def test_a_revision_is_a_commit(hub, client, folder):
    """A branch, a commit, and what `main` has become; each gives its own weights, offline too."""
    old = hub.publish("us/moving", folder)
    config = json.loads((folder / "config.json").read_text())
    changed = {**read(folder), "config.json": json.dumps({**config, "rms_norm_eps": 0.5}).encode()}
    first = client("load", "us/moving")["value"]["logits"]
    new = hub.repositories["us/moving"].commit(changed, "main", "next")
    second = client("load", "us/moving")["value"]["logits"]
    assert first != second
    for revision, expected in ((old, first), (new, second), ("next", second)):
        assert client("load", "us/moving", revision=revision)["value"]["logits"] == expected
        assert client("load", "us/moving", revision=revision, offline=True)["value"]["logits"] == expected
        assert hub.asked == []
    client.refused("'us/moving' has no revision 'v9'", name="us/moving", revision="v9")
    client.refused("revision '../x' given, expected a branch, a tag or a commit", name="us/moving", revision="../x")
    client.refused("given for the folder", name=str(folder), revision="main")
    client.refused(f"the cache holds nothing of 'us/moving' at revision {'0' * 40}; of other revisions it holds",
                   name="us/moving", revision="0" * 40, offline=True)  # fmt: skip


def test_what_may_not_be_read_says_how_to_get_leave(hub, client, shards):
    """By the hub's own headers: gated without a token, and without the licence; private, missing, a wrong token."""
    hub.publish("us/gated", shards, gated=True)
    page = f"{hub.url}/us/gated"
    client.refused(f"gated and no token was sent; accept its licence at {page}", "hf auth login", "HF_TOKEN",
                   name="us/gated")  # fmt: skip
    client.refused("the account of your token has no access", page, name="us/gated", token="hf_known")
    opened = client("load", "us/gated", token="hf_allowed")
    assert opened["value"]["logits"] == pytest.approx(logits(shards).tolist())
    assert opened["value"]["tokenizer"] is False
    assert client("load", "us/gated")["value"] == opened["value"]  # of that commit nothing has to be asked for again
    client.refused("the hub has no model 'us/nothing' that you may see", "HF_TOKEN", name="us/nothing")
    client.refused("the hub has no model 'us/nothing'", "hf auth whoami", name="us/nothing", token="hf_known")
    client.refused("the hub does not accept your token", name="us/nothing", token="hf_false")
    hub.publish("us/private", shards, private=True)
    client.refused("the hub has no model 'us/private' that you may see", name="us/private")
    kept = client("load", "us/private", token="hf_allowed")
    seen = client("load", "us/private")
    assert seen["value"] == kept["value"]
    (line,) = seen["warnings"]
    assert "that you may see" in line
    assert "the cache's copy of 'us/private' is opened instead" in line


AWAY = {503: "answers with 503", 429: "answers with 429", 0: "cannot be reached", -1: "cannot be reached"}


def test_without_a_connection_the_cache_is_opened(hub, client, folder, shards):
    """Offline by choice, in silence; where the hub fails, within seconds and with one line. What it lacks is named."""
    hub.publish("us/warm", folder)
    expected = client("load", "us/warm")["value"]
    assert client("load", "us/warm", offline=True) | {"seconds": 0} == {
        "value": expected, "error": None, "seconds": 0, "out": "", "err": "", "warnings": [],
    }  # fmt: skip
    for status, words in AWAY.items():
        hub.status = status
        try:
            found = client("load", "us/warm")
            asked = len(hub.asked)
            client.refused("the cache holds nothing of 'us/cold'", words, "then run this again", name="us/cold")
        finally:
            hub.status = 200
        assert found["value"] == expected
        assert asked == len(hub.asked) == 1  # nothing is tried twice
        (line,) = found["warnings"]
        assert words in line
        assert "the cache's copy of 'us/warm' is opened instead, commit" in line
        assert found["err"] == ""
    hub.publish("us/small", shards)
    assert client("sizes", "us/small")["value"] == hl.load(shards).cfg.d_model
    assert hub.fetched() == ["config.json"]
    client.refused("'us/small'", "model.safetensors.index.json", "not in the cache", "HF_HUB_OFFLINE", name="us/small",
                   offline=True, do="weights")  # fmt: skip
    client.refused("the cache holds nothing of 'us/cold', and HF_HUB_OFFLINE", name="us/cold", offline=True)


def test_a_cache_that_other_programs_filled(client, folder):
    """Without a list of what there is on the hub: what a model is opened with in silence is asked for aloud."""
    home = client.home / "hf" / "hub" / "models--us--foreign"
    place = home / "snapshots" / ("a" * 40)
    place.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    (place / "config.json").write_bytes((folder / "config.json").read_bytes())
    client.refused("'us/foreign' has no weights in the cache, and HF_HUB_OFFLINE", name="us/foreign", offline=True)
    (place / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    found = client("load", "us/foreign", offline=True)
    assert found["value"]["logits"] == pytest.approx(logits(folder).tolist())
    (line,) = found["warnings"]
    assert "the cache holds no generation_config.json and no tokenizer.json" in line


def test_an_adapter_goes_on_the_commit_that_it_names_with_its_own_tokenizer(hub, client, folder, tmp_path):
    """The base's revision in its settings was passed over for the main branch, and its tokenizer was not fetched."""
    peft = pytest.importorskip("peft")
    older = {name: held for name, held in read(folder).items() if "token" not in name}
    with torch.no_grad():
        torch.manual_seed(0)
        settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(hl.load(folder).hf_model, settings).save_pretrained(tmp_path)
    expected = logits(tmp_path)
    file = tmp_path / "adapter_config.json"
    named = {"base_model_name_or_path": "us/base", "revision": "v1"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **named}))
    make("jamba", seed=3).save_pretrained(tmp_path / "newer")
    hub.publish("us/base", read(tmp_path / "newer"))
    hub.repositories["us/base"].commit(older, "v1")
    hub.publish("us/lora", read(tmp_path) | {name: held for name, held in read(folder).items() if "token" in name})
    for offline in (False, True):
        found = client("load", "us/lora", offline=offline)
        assert found["error"] is None
        assert found["value"]["tokenizer"]
        torch.testing.assert_close(torch.tensor(found["value"]["logits"]), expected)


def test_weights_alone_fetch_only_the_shards_of_what_is_read(hub, client, shards):
    """Of one attention layer, against the index: no shard without a tensor of it, and nothing of a tokenizer."""
    index = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    layer = hl.load(shards).cfg.attention_layers[0]
    hub.publish("us/shards", {**read(shards), **BALLAST, "tokenizer.json": b"{}"})
    found = client("weights", "us/shards", layer=layer)
    assert found["value"] == pytest.approx(float(hl.load_weights(shards).attention(layer).W_Q.sum()))
    files = {file for name, file in index.items() if f".layers.{layer}." in name}
    got = [file for file in hub.fetched() if file.endswith(".safetensors")]
    assert set(got) <= files
    assert len(got) < len(set(index.values()))
    assert set(hub.fetched()) - files == {"config.json", "model.safetensors.index.json"}


REPOSITORIES = {
    "bin": ({"pytorch_model.bin": b"p"}, "pickled weights (pytorch_model.bin)", "save_pretrained", "refs/pr/1"),
    "gguf": ({"q4.gguf": b"GGUF"}, "GGUF alone (q4.gguf)", "give the file itself", "hf download"),
    "nothing": ({}, "holds no weights, expected model.safetensors"),
    "adapter": ({"adapter_config.json": b"{}", "model.safetensors": b"x"}, "holds an adapter (adapter_config.json)"),
    "field": ({"config.json": b'{"model_type": "jamba", "hidden_size": "wide"}'}, "config.json", "hidden_size"),
    "no config": ({"config.json": None}, "has no configuration"),
    "pointer": (
        {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"},
        "model.safetensors is a Git LFS pointer", "hf download",
    ),
    "lost shard": (
        {"model.safetensors.index.json": b'{"weight_map": {"lm_head.weight": "model-1.safetensors"}}'},
        "lacks its shard model-1.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REPOSITORIES)
def test_repositories_that_cannot_be_opened_are_refused_before_weights_are_fetched(case, hub, client, shards):
    """Each in one line that names the file or field; of weights at most a pointer was fetched."""
    changes, *words = REPOSITORIES[case]
    files = {**{"config.json": (shards / "config.json").read_bytes()}, **changes}
    hub.publish("us/odd", {name: held for name, held in files.items() if held is not None})
    client.refused(*words, name="us/odd")
    assert [name for name in hub.fetched() if name.endswith((".bin", ".gguf"))] == []


def test_a_connection_that_breaks_on_the_way(hub, client, folder):
    """The file is asked for again from where it broke, and what comes then is whole; no other line is written."""
    hub.publish("us/broken", folder)
    hub.cut["model.safetensors"] = 1000
    found = client("load", "us/broken")
    assert hub.cut == {}
    assert [one.method for one in hub.asked if one.path.endswith("model.safetensors")].count("FILE") == 2
    assert found["value"]["logits"] == pytest.approx(logits(folder).tolist())
    assert (found["err"], found["warnings"]) == ("", [])


def test_commands_take_a_revision_and_a_study_notes_the_commit(hub, client, folder):
    """The record has the commit that a branch was when the study began; a table of hook points needs no weights."""
    commit = hub.publish("us/study", folder)
    hub.repositories["us/study"].refs["v1"] = commit
    table = client("run", "hooks", "--model", "us/study", "--revision", "v1")
    assert table["value"] == 0
    assert "blocks.0." in table["out"]
    assert hub.fetched() == ["config.json"]
    few = ("--lengths", "110", "--depths", "50", "--heads", "0")
    scored = client("run", "niah", "--model", "us/study", *few, "--out", "niah")
    assert scored["value"] == 0, scored
    facts = json.loads((client.home / "niah" / "run.json").read_text())["facts"]
    assert facts["commit"] == commit
    assert "revision" not in facts
    done = client("run", "circuits", "--model", "us/study", "--revision", "v1", "--sample", "4", "--out", "circuits")
    assert done["value"] == 0, done
    record = json.loads((client.home / "circuits" / "run.json").read_text())
    assert (record["facts"]["commit"], record["facts"]["revision"]) == (commit, "v1")
