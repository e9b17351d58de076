"""Circuits at full size: ``python -m tests.benchmarks.circuits [--layers 38] [--folder DIR]``.

A checkpoint of RecurrentGemma-9B's sizes (38 layers, 12 of them attention with 16 heads and one key/value head,
width 4096, vocabulary 256,000) with random bfloat16 weights, of which only what circuits read is written, in shards.
All of `analyses.circuits` is computed from it in a process of its own, whose time and peak resident memory are
printed: the floors are 10 minutes and 8 GB on two cores.

The same scores by TransformerLens' `FactoredMatrix` would take hours, so each kind is timed on a sample and multiplied
by how often it occurs: eigenvalues of one head; composition of one layer's heads with an earlier layer's; one
recurrent layer's path at one lag with the heads of one layer, whose singular values are found once a path. All that
was computed both ways is checked to be equal. The floor is 5 times faster.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.utilities import composition_scores
from transformers import RecurrentGemmaConfig

import hybridlens as hl
from analyses.circuits import HeadCircuits, circuits
from analyses.circuits.composition import KINDS
from hybridlens.weights import Weights
from tests.benchmarks.measure import machine, table

SHARD = 1_500_000_000
"""Bytes of a shard."""


def config(layers: int) -> RecurrentGemmaConfig:
    """RecurrentGemma-9B's sizes, with as many layers as asked for."""
    return RecurrentGemmaConfig(
        num_hidden_layers=layers, vocab_size=256_000, hidden_size=4096, intermediate_size=24_576,
        num_attention_heads=16, num_key_value_heads=1, lru_width=4096, attention_window_size=2048, head_dim=256,
        architectures=["RecurrentGemmaForCausalLM"],
    )  # fmt: skip


def tensors(sizes: RecurrentGemmaConfig) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all that circuits read, random."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float | int = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).bfloat16()

    d, c, blocks = sizes.hidden_size, sizes.lru_width, sizes.num_attention_heads
    yield "model.embed_tokens.weight", random(sizes.vocab_size, d, scale=d**-0.5)
    yield "model.final_norm.weight", random(d, scale=0.1)
    for layer, kind in enumerate(sizes.layers_block_type):
        name = f"model.layers.{layer}."
        yield f"{name}temporal_pre_norm.weight", random(d, scale=0.1)
        name += "temporal_block."
        if kind == "sliding_attention":
            yield f"{name}q_proj.weight", random(d, d, scale=d**-0.5)
            yield f"{name}k_proj.weight", random(sizes.head_dim, d, scale=d**-0.5)
            yield f"{name}v_proj.weight", random(sizes.head_dim, d, scale=d**-0.5)
            yield f"{name}o_proj.weight", random(d, d, scale=d**-0.5)
            yield f"{name}o_proj.bias", random(d, scale=0.1)
            continue
        for part, shape in (("linear_x", (c, d)), ("linear_y", (c, d)), ("linear_out", (d, c))):
            yield f"{name}{part}.weight", random(*shape, scale=d**-0.5)
            yield f"{name}{part}.bias", random(shape[0], scale=0.1)
        yield f"{name}conv_1d.weight", random(c, 1, sizes.conv1d_width, scale=0.5)
        yield f"{name}conv_1d.bias", random(c, scale=0.1)
        for gate in ("input_gate", "recurrent_gate"):
            yield f"{name}rg_lru.{gate}_bias", random(blocks, c // blocks, scale=0.1)
        yield f"{name}rg_lru.recurrent_param", random(c)


def write(folder: Path, sizes: RecurrentGemmaConfig) -> None:
    """The checkpoint, in shards."""
    sizes.save_pretrained(folder)
    held: dict[str, Tensor] = {}
    where: dict[str, str] = {}
    shards = 0

    def flush() -> None:
        nonlocal shards
        shards += 1
        file = f"model-{shards:05d}.safetensors"
        save_file(held, folder / file)
        where.update(dict.fromkeys(held, file))
        held.clear()

    for name, tensor in tensors(sizes):
        held[name] = tensor
        if sum(x.nbytes for x in held.values()) > SHARD:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def ours(folder: Path) -> None:
    """Compute all circuits of a checkpoint and print what it took, as JSON."""
    began = time.perf_counter()
    marks: list[float] = []

    def mark(done: int, total: int) -> None:
        marks.append(round(time.perf_counter() - began, 1))
        print(f"stage {done} of {total}: {marks[-1]} s", file=sys.stderr, flush=True)

    found = circuits(hl.load_weights(folder), progress=mark)
    seconds = time.perf_counter() - began
    found.save(folder / "circuits.safetensors")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2), "stages": marks}))


class Sample:
    """The same scores by `FactoredMatrix`, for a few heads."""

    def __init__(self, weights: Weights, found: HeadCircuits) -> None:
        self.weights, self.found = weights, found
        blocks = list(weights.vocabulary())
        self.E = torch.cat([block.E for block in blocks])
        self.U = torch.cat([block.U for block in blocks])
        self.U = (self.U - self.U.mean(0)).T
        self.keys = self.E - self.E.mean(0)
        self.worst = 0.0

    def timed(self, make: Callable[[], Tensor], expected: Tensor) -> float:
        """Seconds that `make` takes; its result has to be `expected`."""
        began = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - began
        apart = float((made - expected).abs().max())
        assert apart < 1e-3, f"the two ways differ by {apart:.1e}"
        self.worst = max(self.worst, apart)
        return seconds

    def eigenvalues(self, i: int, head: int) -> dict[str, float]:
        """Copying and matching of one head; matching at one distance, by the whole and by either half."""
        layer, found = self.weights.attention(self.found.layers[i]), self.found
        one, rotary, distance = layer.head(head), layer.rotary, found.distances[-1]
        assert rotary is not None
        assert found.matching_rotary is not None
        assert found.matching_free is not None

        def ratio(left: Tensor, right: Tensor) -> Tensor:
            values = FactoredMatrix(left, right).eigenvalues
            return values.sum().real / values.abs().sum()

        def matching(start: int, stop: int) -> Callable[[], Tensor]:
            turned = rotary.turned(one.W_Q, distance)
            return lambda: ratio(self.E @ turned[:, start:stop], (self.keys @ one.W_K[:, start:stop]).T)

        half, width = rotary.dims, one.W_Q.shape[1]
        return {
            "copying": self.timed(lambda: ratio(self.E @ one.W_V, one.W_O @ self.U), found.copying[i, head]),
            "matching": self.timed(matching(0, width), found.matching[i, head, -1]),
            "rotary": self.timed(matching(0, half), found.matching_rotary[i, head, -1]),
            "free": self.timed(matching(half, width), found.matching_free[i, head]),
        }

    def readers(self, i: int) -> dict[str, FactoredMatrix]:
        """The heads of a layer, as composition reads them."""
        layer = self.weights.attention(self.found.layers[i])
        heads = [layer.head(head) for head in range(layer.n_heads)]
        q, k, v, o = (torch.stack(list(x)) for x in zip(*heads, strict=True))
        return {
            "q": FactoredMatrix(q, k.transpose(1, 2)),
            "k": FactoredMatrix(k, q.transpose(1, 2)),
            "v": FactoredMatrix(v, o),
        }

    def heads(self, reader: int, writer: int) -> float:
        """Composition of one layer's heads with those of an earlier one; seconds."""
        left = self.readers(writer)["v"]
        found = self.found.composition.heads[:, reader, :, writer]
        return sum(
            self.timed(lambda right=right, at=at: composition_scores(left, right).T, found[at])
            for at, right in enumerate(self.readers(reader)[kind] for kind in KINDS)
        )

    def recurrent(self, reader: int, writer: int, lag: int) -> float:
        """Composition of one layer's heads, by K, with one recurrent layer's path at one lag; seconds."""
        view = self.weights.recurrent(self.found.ssm_layers[writer])
        left = FactoredMatrix(view.parts.W_in * view.path(lag), view.parts.W_out)
        at = KINDS.index("k")
        right, found = self.readers(reader)["k"], self.found.composition.recurrent[at, reader, :, writer, lag]
        return self.timed(lambda: composition_scores(left, right), found)


def main() -> None:
    """Make the checkpoint, measure both ways, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=38, help="fewer for a trial")
    parser.add_argument("--folder", type=Path, help="a checkpoint that an earlier call made; kept")
    parser.add_argument("--ours", action="store_true", help="only compute, in this process")
    options = parser.parse_args()
    if options.ours:
        ours(options.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.folder is None else options.folder
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.safetensors.index.json").exists():
            write(folder, config(options.layers))
        command = [sys.executable, "-m", "tests.benchmarks.circuits", "--ours", "--folder", str(folder)]
        result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        with torch.no_grad():
            compared(folder, result)


def compared(folder: Path, result: dict[str, Any]) -> None:
    """Time the sample and print what both ways take."""
    found = HeadCircuits.load(folder / "circuits.safetensors")
    sample = Sample(hl.load_weights(folder), found)
    heads, at = found.copying.numel(), len(found.distances)
    one = sample.eigenvalues(1, 3)
    eigen = heads * (one["copying"] + at * (one["matching"] + one["rotary"]) + one["free"])
    scores = found.composition
    pairs = int((~scores.heads[0, :, 0, :, 0].isnan()).sum())
    between = pairs * sample.heads(1, 0)
    paths = found.lag_share.numel()
    recurrent = paths * sample.recurrent(0, 1, 1)
    total = eigen + between + recurrent
    print(machine())
    print(table(("", "value"), [
        ("ours, all circuits of all heads, s", result["seconds"]), ("peak resident memory, GB", result["peak_gb"]),
        ("FactoredMatrix: copying and matching, s (one head timed)", round(eigen)),
        (f"composition of heads, s (one of {pairs} pairs of layers timed)", round(between)),
        (f"composition with {paths} recurrent paths, s (one timed, with one layer, by K)", round(recurrent)),
        ("times faster, paths of recurrent layers left out of theirs", round((eigen + between) / result["seconds"], 1)),
        ("times faster, all", round(total / result["seconds"], 1)),
        ("largest difference of what was computed both ways", f"{sample.worst:.1e}"),
        ("seconds after each stage", result["stages"]),
    ]))  # fmt: skip


if __name__ == "__main__":
    main()
