"""Speed at real width in bfloat16: prefill and decode against the untouched model and what the card can do.

RecurrentGemma is the 2B model at full size, Jamba has Jamba-Mini's width and eight of its layers; weights are random.
The two ceilings, of arithmetic and of memory, are measured first on this card: a product of large matrices, and a copy.

How it fails: the library's loop over tokens is a loop of launches, so that its time hangs on the processor as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import JambaConfig, JambaForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from gpu.contract import forget
from gpu.rows import Rows, off, settle, timed
from gpu.syncs import waits
from hybridlens import HybridLens
from hybridlens.decoding import Decoding, begin, decode
from hybridlens.fixed_steps import FixedSteps
from hybridlens.recurrences.scan import use_kernels
from hybridlens.tokens import TokenBatch

GB = 1e9


class Ceilings(NamedTuple):
    """What the card gives at best."""

    operations: float
    """A second, in bfloat16 products."""
    bandwidth: float
    """Bytes a second, read and written."""


def configs(cuda: bool) -> dict[str, tuple[type, Any]]:
    """Class and configuration of each model; on a CPU a small one of the same build."""
    gemma: dict[str, Any] = {
        "hidden_size": 2560, "num_hidden_layers": 26, "vocab_size": 256000, "intermediate_size": 15360,
        "num_attention_heads": 10, "num_key_value_heads": 1, "head_dim": 256, "lru_width": 2560,
        "attention_window_size": 2048,
    }  # fmt: skip
    jamba: dict[str, Any] = {
        "hidden_size": 4096, "num_hidden_layers": 8, "vocab_size": 65536, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_experts": 16, "num_experts_per_tok": 2,
        "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_dt_rank": 256,
    }  # fmt: skip
    if not cuda:
        gemma |= {"hidden_size": 64, "num_hidden_layers": 6, "vocab_size": 500, "intermediate_size": 384,
                  "num_attention_heads": 4, "head_dim": 16, "lru_width": 64, "attention_window_size": 64}  # fmt: skip
        jamba |= {"hidden_size": 64, "vocab_size": 500, "intermediate_size": 128, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "num_experts": 4, "mamba_dt_rank": 8}  # fmt: skip
    return {
        "recurrentgemma": (RecurrentGemmaForCausalLM, RecurrentGemmaConfig(**gemma)),
        "jamba": (JambaForCausalLM, JambaConfig(**jamba)),
    }


def made(device: str, kind: type, config: Any) -> Any:
    """A random model of a configuration, made on the device in bfloat16."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return kind(config).eval()
    finally:
        torch.set_default_dtype(before)


def main(rows: Rows, argument: str) -> None:
    """One of the two models."""
    kind, config = configs(rows.cuda)[argument]
    with rows.check("ceilings"):
        ceilings = measured(rows)
    began = time.perf_counter()
    model = made(rows.device, kind, config)
    settle(rows.device)
    lens = HybridLens(model)
    counted = lens.n_parameters
    rows.add("made on the device", f"{counted.total / GB:.2f} G weights in {time.perf_counter() - began:.1f} s")
    ids = torch.randint(4, config.vocab_size, (1, 4096 if rows.cuda else 96), device=rows.device)
    with torch.no_grad():
        for check in (prefilled, decoded):
            with rows.check(check.__name__):
                check(rows, lens, ids, ceilings)
        with rows.check("against the untouched model"):
            untouched(rows, lens, ids)
        with rows.check("kernels"):
            kernels(rows, lens, ids)
        with rows.check("precision"):
            precise(rows, argument, lens, ids[:, :48])


def measured(rows: Rows) -> Ceilings:
    """Both ceilings of this card."""
    size = 8192 if rows.cuda else 256
    a, b = torch.randn(2, size, size, device=rows.device).bfloat16()
    product = timed(lambda: a @ b, rows.device, runs=10, warm=3)
    source = torch.empty(2**30 if rows.cuda else 2**20, dtype=torch.int32, device=rows.device).random_()
    target = torch.empty_like(source)
    copied = timed(lambda: target.copy_(source), rows.device, runs=5, warm=2)
    found = Ceilings(2 * size**3 / product, 2 * source.numel() * 4 / copied)
    rows.add("ceilings", f"{found.operations / 1e12:.0f} Tflop/s in bfloat16, {found.bandwidth / 1e12:.2f} TB/s")
    return found


def peak(rows: Rows, run: Callable[[], object]) -> str:
    """Memory held at most during a call, beyond what was held before."""
    if not rows.cuda:
        run()
        return "memory not measured"
    settle(rows.device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return f"{(torch.cuda.max_memory_allocated() - before) / GB:.2f} GB beyond {before / GB:.1f} GB held"


def prefilled(rows: Rows, lens: HybridLens, ids: Tensor, ceilings: Ceilings) -> None:
    """Prefill: time, share of the arithmetic that the card can do, memory."""
    run = partial(lens.prefill, ids, last_only=True)
    seconds, length = timed(run, rows.device), ids.shape[1]
    counted = lens.n_parameters
    multiplied = counted.active - (counted.total - counted.non_embedding)
    cfg = lens.cfg
    pairs = sum(min(t + 1, cfg.window or length) for t in range(length))
    scores = 4 * pairs * cfg.n_heads * cfg.d_head * len(cfg.attention_layers)
    needed = 2 * multiplied * length + scores
    share = needed / seconds / ceilings.operations
    about = f"{length / seconds:.0f} tokens/s, {needed / 1e12:.1f} Tflop"
    rows.add(f"prefill of {length} tokens", f"{seconds * 1e3:.1f} ms, {about}, {share:.0%} of the ceiling")
    rows.add("prefill: memory", peak(rows, run))
    with lens.hooks([(lambda name: name.endswith("hook_resid_post"), lambda x, hook: None)]):
        hooked = timed(run, rows.device)
    rows.add("prefill with every residual read ÷ without", f"{hooked / seconds:.2f}")
    first, second = run().logits, run().logits
    rows.judge("prefill: finite logits", bool(first.isfinite().all()), f"{list(first.shape)}", "finite")
    rows.add("prefill twice, bit for bit", torch.equal(first, second))


def decoded(rows: Rows, lens: HybridLens, ids: Tensor, ceilings: Ceilings) -> None:
    """Tokens a second, and what reading all weights once would allow."""
    counted = lens.n_parameters
    read = 2 * counted.active  # an embedding that is not the unembedding is read in one row alone
    if lens.hf_model.get_output_embeddings().weight is not lens.hf_model.get_input_embeddings().weight:
        read -= 2 * lens.hf_model.get_input_embeddings().weight.numel()
    steps = 32 if rows.cuda else 6
    limit = ceilings.bandwidth / read
    for batch in (1, 16):
        plain = decoding(rows, lens, ids[:, :1024].expand(batch, -1), steps, [])
        about = f"{plain * 1e3:.2f} ms a step"
        if batch == 1:
            about += f", {1 / plain / limit:.0%} of the {limit:.0f} that the weights' bytes allow"
        rows.add(f"decode, batch {batch}: tokens/s", f"{batch / plain:.0f} ({about})")
        captured(rows, lens, ids[:, :1024].expand(batch, -1), steps, plain, limit)


def captured(rows: Rows, lens: HybridLens, ids: Tensor, steps: int, plain: float, limit: float) -> None:
    """The same decoding in captured steps: tokens a second, with and without the recording, logits, tokens."""
    batch, network = ids.shape[0], lens.network
    start = begin(network, TokenBatch(ids, None), (), "last_prompt_token")
    ways = [decode(network, start, Decoding(min(12, steps), capture=capture)) for capture in (False, True)]
    same = sum(a == b for a, b in zip(ways[0].tokens, ways[1].tokens, strict=True))
    closest = float(ways[0].margins.min())
    rows.add(f"decode, batch {batch}: rows that say the same captured", f"{same} (closest choice {closest:.2g})", batch)
    state = start.state
    fixed, mine, theirs = FixedSteps(network, state, steps + 8, masked=False), list[Tensor](), list[Tensor]()
    for t in range(3):
        out = network(ids[:, t : t + 1], None, state)
        state = out.state
        theirs.append(out.logits[:, 0].cpu())
        mine.append(fixed.read(ids[:, t], None).cpu())
    rows.most(
        f"decode, batch {batch}: logits, captured against plain", off(torch.stack(mine), torch.stack(theirs)), 0.05
    )
    token = ids[:, 0]
    settle(rows.device)
    began = time.perf_counter()
    for _ in range(steps):
        token = fixed.read(token, None).argmax(dim=-1)
    settle(rows.device)
    each = (time.perf_counter() - began) / steps
    about = f"{each * 1e3:.2f} ms a step, {plain / each:.1f} × the plain step"
    about += f", {1 / each / limit:.0%} of the {limit:.0f} that the weights' bytes allow" if batch == 1 else ""
    rows.add(f"decode, batch {batch}, captured: tokens/s", f"{batch / each:.0f} ({about})")
    whole = decoding(rows, lens, ids, steps, [], capture=True)
    rows.add(f"decode, batch {batch}, {steps} steps, recording and all", f"{whole * 1e3:.2f} ms a step")
    with waits(rows.device) as found:
        fixed.read(token, None)
    rows.judge(f"decode, batch {batch}: waits of a captured step", not found, dict(found) or 0, 0)


def decoding(
    rows: Rows, lens: HybridLens, ids: Tensor, steps: int, edits: list[Any], capture: bool | None = False
) -> float:
    """Seconds of one decode step."""
    start = begin(lens.network, TokenBatch(ids, None), (), "last_prompt_token")
    decode(lens.network, start, Decoding(4, edits=lambda batch: edits, capture=capture))
    settle(rows.device)
    began = time.perf_counter()
    decode(lens.network, start, Decoding(steps, edits=lambda batch: edits, capture=capture))
    settle(rows.device)
    return (time.perf_counter() - began) / steps


def untouched(rows: Rows, lens: HybridLens, ids: Tensor) -> None:
    """The library's own loop: its time, and how far the logits lie apart."""
    model, length = lens.hf_model, ids.shape[1]

    def library(cached: bool) -> Tensor:
        forget(model)
        return model(ids, use_cache=cached, logits_to_keep=1).logits

    if rows.late("the untouched model's prefill", 15 if rows.cuda else 5):
        return
    theirs = 0.0

    def once() -> None:
        nonlocal theirs
        theirs = timed(lambda: library(True), rows.device, runs=1, warm=0)

    held = peak(rows, once)  # seconds long: one run says both
    ours = timed(lambda: lens.prefill(ids, last_only=True), rows.device)
    rows.add(
        f"prefill of {length} tokens: times faster than the untouched model", f"{theirs / ours:.2f} ({theirs:.3f} s)"
    )
    rows.add("the untouched model's prefill: memory", held)
    forget(model)
    if rows.late("the untouched model's decoding", 10 if rows.cuda else 5):
        return
    prompt = ids[:, : 256 if rows.cuda else 32]
    mask, steps = torch.ones_like(prompt), 16 if rows.cuda else 6

    def say(new: int) -> float:
        forget(model)
        settle(rows.device)
        began = time.perf_counter()
        named = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        model.generate(prompt, attention_mask=mask, **named)
        settle(rows.device)
        return time.perf_counter() - began

    say(2)
    each = (say(steps + 2) - say(2)) / steps
    mine = decoding(rows, lens, prompt, steps, [])
    rows.add("decode: times faster than the untouched model", f"{each / mine:.2f} ({each * 1e3:.1f} ms a step there)")
    forget(model)


def precise(rows: Rows, name: str, lens: HybridLens, ids: Tensor) -> None:
    """What bfloat16 costs in ours and in the untouched model, against the same weights in float32; ends the model."""
    model = lens.hf_model
    forget(model)
    ours, library = lens.prefill(ids).logits.cpu(), model(ids, use_cache=False).logits.cpu()
    exact = model.float()(ids, use_cache=False).logits.cpu()  # in place: both at once need not fit
    lost, theirs = off(ours, exact), off(library, exact)
    rows.most(f"{name}: logits off float32's", lost, 2 * theirs + 2.0**-8, f"the untouched model's by {theirs:.2g}")


def kernels(rows: Rows, lens: HybridLens, ids: Tensor) -> None:
    """Prefill under each way to scan that is there."""
    for name in ("auto", "triton", "torch"):
        if name == "torch" and rows.late("prefill by the plain code", 10 if rows.cuda else 5):
            return
        with rows.check(f"prefill, scans by {name}"), use_kernels(name):
            warm = int(name != "torch")
            seconds = timed(lambda: lens.prefill(ids, last_only=True), rows.device, runs=1, warm=warm)
            rows.add(f"prefill of {ids.shape[1]} tokens, scans by {name}", f"{seconds * 1e3:.1f} ms")
