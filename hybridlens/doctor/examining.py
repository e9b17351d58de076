"""`examine`: versions, devices, kernels and memory of this machine, and a look whether the lens computes rightly.

How it fails: what is wrong with the machine is in the result; an installation without its package data raises
`ResultsError`.
"""

from __future__ import annotations

import warnings
from importlib import metadata

import torch

from hybridlens import __version__, machine
from hybridlens.boundary import public
from hybridlens.display import size
from hybridlens.doctor.agreement import agreement
from hybridlens.doctor.diagnosis import Diagnosis
from hybridlens.doctor.private import private
from hybridlens.doctor.scans import scan_choices
from hybridlens.recurrences.kernels.choice import KERNELS
from hybridlens.results.provenance import environment

OTHERS = ("accelerate", "peft", "gguf", "lm-eval", "submitit", *(kernel.name for kernel in KERNELS))
"""What some things need: big models, adapters, GGUF files, benchmarks, clusters, kernels."""


@public
def examine() -> Diagnosis:
    """Look at this installation and its machine; some seconds, most of them to import the libraries."""
    made = environment()
    packages: dict[str, str | None] = {**made["packages"], "hybridlens": __version__}
    devices = _devices()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        scans = scan_choices(tuple(dict.fromkeys(device.type for device in devices)))
        found = tuple(agreement(str(device)) for device in devices)
    troubles = dict.fromkeys([*scans.troubles, *(private(str(one.message)) for one in said)])
    return Diagnosis(
        python=made["python"],
        platform=private(made["platform"]),
        cpus=made["cpus"],
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        packages=packages,
        others={name: _version(name) for name in OTHERS},
        devices=tuple(f"{machine.words([device])}{_allowed(device)}" for device in devices),
        kernels=scans.installed,
        scans=scans.families,
        agreements=found,
        troubles=tuple(troubles),
    )


def _devices() -> list[torch.device]:
    """The CPU, and every GPU that torch can use."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found += [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


def _allowed(device: torch.device) -> str:
    """What a run may use there beside the weights, where nobody says."""
    return f", of which a run takes at most {size(machine.budget([device]))} beside the weights"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
