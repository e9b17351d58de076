"""Card, driver, and the versions of what runs here; which scan kernels are found and can be imported."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec

import torch

from gpu.rows import Rows
from hybridlens.recurrences.kernels import choice

PACKAGES = ("torch", "triton", "transformers", "transformer-lens", "nnsight", "accelerated-scan", "fla-core")
OWN = {"torch", "triton", "transformers", "transformer-lens", "nnsight"}
"""Without these nothing runs, on a GPU."""


def main(rows: Rows, argument: str) -> None:
    """Say where the figures come from."""
    rows.add("python", sys.version.split()[0])
    for name in PACKAGES:
        with rows.check(name):
            try:
                rows.add(name, metadata.version(name))
            except metadata.PackageNotFoundError:
                needed = name in OWN and rows.cuda
                rows.add(name, "not installed", "installed" if needed else "", "FAIL" if needed else "note")
    if rows.cuda:
        with rows.check("card"):
            about = torch.cuda.get_device_properties(0)
            rows.add("card", f"{about.name}, {about.total_memory / 2**30:.1f} GiB, {about.multi_processor_count} SMs")
            asked = [
                "nvidia-smi",
                "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit",
                "--format=csv,noheader",
            ]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            rows.add("driver, clocks", done.stdout.strip() or done.stderr.strip())
            rows.add("CUDA", torch.version.cuda)
    for kernel in choice.KERNELS:
        with rows.check(f"scan kernel {kernel.name}"):
            there = choice.installed(kernel)
            place = f"importable: {choice._imports(kernel, True)}" if there else "not installed"
            own = kernel.name == "triton" and rows.cuda
            rows.add(
                f"scan kernel {kernel.name}", place, "there" if own else "", "FAIL" if own and not there else "note"
            )
    for name in ("fla", "mamba_ssm", "causal_conv1d", "flash_attn"):
        rows.add(f"{name}, which transformers would use", "found" if find_spec(name) else "not installed")
