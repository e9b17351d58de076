"""What opening a checkpoint takes: ``python -m tests.benchmarks.loading [--folder DIR] [--dtype NAME] [--smallest]``.

A RecurrentGemma-2B of the published sizes with random bfloat16 weights is written to a folder (5.4 GB; one that is
there already is used again), and opened by `hybridlens.load` in a process of its own. The process's memory is read
every 20 ms: what is its own (anonymous), and what are pages of the file, mapped (``RssAnon``, ``RssFile`` of
``/proc/self/status``; file pages can be dropped and read again, so they are memory only as long as nobody else wants
it). Wanted: the peak of both together, beyond what the process had with everything imported, at most 1.1 times the
size of the file.

Linux alone has the files that are read here. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, RecurrentGemmaConfig

from tests.benchmarks.measure import machine, table

HEAD = ("measured", "GB", "of the file", "wanted")
WANTED = 1.1
BLOCK = 1 << 24
"""Values that are drawn at once."""
PUBLISHED: dict[str, Any] = {"num_key_value_heads": 1, "intermediate_size": 15360}
"""Where the checkpoint of 2B differs from the configuration's defaults."""
SMALLEST: dict[str, Any] = PUBLISHED | {
    "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 256,
    "lru_width": 64,
}  # fmt: skip


def write(folder: Path, changes: dict[str, Any]) -> Path:
    """The checkpoint's one file, its weights drawn from a fixed seed a block at a time, so that little is held."""
    file = folder / "model.safetensors"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    config = RecurrentGemmaConfig(**changes)
    config.dtype = torch.bfloat16
    config.architectures = ["RecurrentGemmaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in model.named_parameters():  # each once: the unembedding is the embedding
        size = weight.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for weight in model.parameters():
            for start in range(0, weight.numel(), BLOCK):
                drawn = torch.randn(min(BLOCK, weight.numel() - start), generator=generator)
                drawn = drawn.mul_(0.02 if weight.ndim > 1 else 0.1).bfloat16()
                out.write(drawn.view(torch.uint8).numpy().data)
    unfinished.rename(file)
    return file


def held() -> tuple[int, int]:
    """Bytes of this process in memory: its own, and pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
    return sizes["RssAnon"], sizes["RssFile"]


def opened(folder: str, dtype: str) -> dict[str, float]:
    """Open a checkpoint here, and say what it took beyond what was held before: peaks, and what stayed."""
    import hybridlens as hl

    hl.load("tiny-recurrentgemma")  # whatever is imported at the first load is no part of it
    before, seen, done = held(), [(0, 0)], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            own, file = held()
            seen.append((own - before[0], file - before[1]))

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    lens = hl.load(folder, dtype=dtype)
    seconds = time.perf_counter() - began
    done.set()
    watching.join()
    after = held()
    seen.append((after[0] - before[0], after[1] - before[1]))
    assert lens.n_parameters.total > 0
    return {
        "seconds": seconds,
        "own": max(own for own, _ in seen),
        "file": max(file for _, file in seen),
        "peak": max(own + file for own, file in seen),
        "stays_own": seen[-1][0],
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is put; without it, gone afterwards")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--smallest", action="store_true", help="tiny sizes: whether it runs, not what it takes")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(opened(str(options.folder), options.dtype)))
        return
    with tempfile.TemporaryDirectory() as away:
        folder = options.folder or Path(away) / "checkpoint"
        file = write(folder, SMALLEST if options.smallest else PUBLISHED)
        size = file.stat().st_size
        command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--child"]
        command += ["--folder", str(folder), "--dtype", options.dtype]
        took = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    rows = [
        ("the file", f"{size / 1e9:.2f}", "1.00", "–"),
        ("peak of opening it: own memory and mapped pages", f"{took['peak'] / 1e9:.2f}", f"{took['peak'] / size:.2f}",
         f"≤ {WANTED}"),
        ("of which own, at most", f"{took['own'] / 1e9:.2f}", f"{took['own'] / size:.2f}", "–"),
        ("of which pages of the file, at most", f"{took['file'] / 1e9:.2f}", f"{took['file'] / size:.2f}", "–"),
        ("own memory once it is open", f"{took['stays_own'] / 1e9:.2f}", f"{took['stays_own'] / size:.2f}", "–"),
    ]  # fmt: skip
    print(f"{machine()}; opened as {options.dtype} in {took['seconds']:.1f} s\n")
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
