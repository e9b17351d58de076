"""A process that opens models of a hub, told what to do line by line: the real client, as a user's program has it.

Which hub is asked is read once, when the client is imported, so the tests start this file with an environment of its
own. Each line is a JSON object: ``do`` is what to call, with ``args`` and ``options``; ``token`` and ``offline`` are as
HF_TOKEN and HF_HUB_OFFLINE would have them. Each answer is a line of JSON.
"""

import contextlib
import io
import json
import os
import sys
import time
import warnings
from typing import Any

import torch
from huggingface_hub import constants

import hybridlens as hl
from analyses.cli import main
from analyses.experiment.checkpoints import meta_lens


def load(*args: Any, text: str | None = None, **options: Any) -> dict[str, Any]:
    """What a lens gives for five tokens, or for a text."""
    lens = hl.load(*args, **options)
    with torch.no_grad():
        logits = lens(torch.arange(5)[None] if text is None else text)
    return {
        "logits": logits[0, -1, :4].tolist(), "tokenizer": lens.tokenizer is not None, "dtype": str(lens.dtype),
        "name": lens.cfg.model_name, "ends": lens.cfg.eos_token_ids,
    }  # fmt: skip


def weights(*args: Any, layer: int = 0, **options: Any) -> float:
    """A sum of what is read of one layer's attention."""
    return float(hl.load_weights(*args, **options).attention(layer).W_Q.sum())


def sizes(*args: Any, **options: Any) -> int:
    """Of the configuration alone."""
    return meta_lens(*args, **options).cfg.d_model


def run(*args: str) -> int:
    """A command; its exit status."""
    return main(list(args))


CALLS = {"load": load, "weights": weights, "sizes": sizes, "run": run}


def answer(step: dict[str, Any]) -> dict[str, Any]:
    """Do a step."""
    os.environ.pop("HF_TOKEN", None)
    if step.get("token"):
        os.environ["HF_TOKEN"] = step["token"]
    constants.HF_HUB_OFFLINE = bool(step.get("offline"))
    found: dict[str, Any] = {"value": None, "error": None}
    out, err, started = io.StringIO(), io.StringIO(), time.monotonic()
    with warnings.catch_warnings(record=True) as seen, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("always")
        try:
            found["value"] = CALLS[step["do"]](*step.get("args", ()), **step.get("options", {}))
        except hl.HybridLensError as error:
            found["error"] = str(error)
    found |= {"seconds": time.monotonic() - started, "out": out.getvalue(), "err": err.getvalue()}
    return found | {"warnings": [str(one.message) for one in seen]}


if __name__ == "__main__":
    answers = sys.stdout
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
    os._exit(0)  # nothing is left to be put away
