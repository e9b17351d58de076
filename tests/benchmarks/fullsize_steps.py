"""One side of one step of `fullsize`, in a process of its own: ``python -m tests.benchmarks.fullsize_steps``.

`ours` is `hybridlens.load` and `lens.generate`, `theirs` the untouched Hugging Face model and its `generate`. Each says
in a line of JSON what a phase gave; how long it took and what it held is seen from outside (`watching`).

Figure 2 is asked of ours by the command, so that the library's side is here alone: a cell at a time, where heads are
silenced by plain hooks (`plain`), else untouched.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import hybridlens as hl
from analyses.heads.sparsification import top_k
from hybridlens import niah
from hybridlens.results import CellKey
from tests.benchmarks.sweep import BOUNDARY, theirs

NEW = {500: 40, 4096: 10}
"""Tokens of an answer, by those of the prompt: as in the trial whose figures are to be beaten."""
DEPTHS = (0, 100)
"""Needle depths of figure 2's two prompts."""


def ks(n_heads: int) -> tuple[int, ...]:
    """Figure 2's numbers of heads: none, half, all."""
    return (0, n_heads // 2, n_heads)


def prompt_of(tokenizer: Any, length: int) -> tuple[int, ...]:
    """A needle prompt of so many tokens."""
    (prompt,) = niah.grid(tokenizer, [length], [50])
    return prompt.tokens


def say(phase: str, **told: Any) -> None:
    """A phase is over."""
    print(json.dumps({"phase": phase, **told}), flush=True)


def ours(folder: Path, length: int | None, new: int) -> None:
    """Load, and answer; with half of the heads in both phases too."""
    lens = hl.load(folder, dtype="auto")
    say("load", dtype=str(lens.dtype))
    if length is None:
        return
    tokens = [list(prompt_of(lens.tokenizer, length))]
    said = lens.generate(tokens, max_new_tokens=new)
    say("answer", tokens=said.tokens[0, : int(said.lengths[0])].tolist(), read=len(tokens[0]))
    edits = top_k(lens, lens.cfg.n_heads // 2, "both")
    said = lens.generate(tokens, edits=edits, max_new_tokens=new)
    say("answer with top-k", tokens=said.tokens[0, : int(said.lengths[0])].tolist(), read=len(tokens[0]))


def library(folder: Path, length: int | None, new: int) -> None:
    """Load, and answer."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    say("load", dtype=str(model.dtype))
    if length is None:
        return
    tokens = list(prompt_of(AutoTokenizer.from_pretrained(folder), length))
    ids = torch.tensor([tokens])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    say("answer", tokens=out[0, len(tokens) :].tolist(), read=len(tokens))


def fig2(folder: Path, length: int) -> None:
    """Figure 2, both versions, a cell at a time."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    n_heads = AutoConfig.from_pretrained(folder).num_attention_heads
    side: Any = SimpleNamespace(hf_model=model, tokenizer=tokenizer, cfg=SimpleNamespace(n_heads=n_heads))
    say("load")
    texts: list[list[Any]] = []
    for prompt in niah.grid(tokenizer, [length], list(DEPTHS)):
        for phase in ("generation", "prefill"):
            for k in ks(n_heads):
                key = CellKey("model", phase, k, prompt.length, prompt.depth, prompt.control, boundary=BOUNDARY)
                began = time.perf_counter()
                text = theirs(side, key, prompt)
                texts.append([phase, k, prompt.depth, text, round(time.perf_counter() - began, 2)])
    say("answer", cells=texts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("ours", "theirs", "fig2"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--length", type=int)
    parser.add_argument("--new", type=int, default=0)
    options = parser.parse_args(arguments)
    say("import")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.side == "fig2":
        fig2(options.folder, options.length)
    else:
        {"ours": ours, "theirs": library}[options.side](options.folder, options.length, options.new)


if __name__ == "__main__":
    main()
