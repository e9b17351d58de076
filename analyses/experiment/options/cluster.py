"""Where an experiment's work is shared among jobs: the options that come with every experiment's command.

How it fails: see `analyses.experiment.options.base`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from analyses.experiment.options.base import Checked, Memory, flag, one_of
from hybridlens.errors import InputError

CLUSTERS = ("slurm", "local")

JOBS = 8
"""On Slurm, where nothing is said; on one machine there are no more than processors."""


class ClusterConfig(Checked):
    """Options of a cluster, all of which change no result."""

    cluster: Annotated[str | None, one_of(CLUSTERS, "--cluster")] = Field(
        None,
        description="slurm, or local for processes of this machine: share the work among jobs, which go on where they "
        "were killed, and put the results together. Needs hybridlens[cluster].",
    )
    jobs: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="With --cluster: jobs that share the work; 8, or as many as processors or GPUs here.",
    )
    gpus: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="With --cluster: GPUs of each job; one where --device is cuda, or auto and there are some.",
    )
    time: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="With --cluster: hours that a job may take before it is queued again; 12 on Slurm.",
    )
    partition: str | None = Field(None, min_length=1, description="With --cluster slurm: the partition.")
    mem: Annotated[Memory | None, Field(json_schema_extra={"typed": None})] = Field(
        None, description="With --cluster slurm: memory of each job, like 64GB."
    )
    array_parallelism: int | None = Field(
        None, ge=1, description="With --cluster: jobs that run at a time, at most; all when left out."
    )

    @classmethod
    def on(cls, cluster: str) -> ClusterConfig:
        """A cluster, and nothing else said of it."""
        given: dict[str, Any] = {"cluster": cluster}
        return cls(**given)

    @property
    def shards(self) -> int:
        """How many jobs share the work, as far as GPUs do not matter."""
        if self.jobs is not None:
            return self.jobs
        return JOBS if self.cluster == "slurm" else min(JOBS, os.cpu_count() or 1)

    def gpus_for(self, device: str, has_some: Callable[[], bool]) -> int:
        """GPUs of each job.

        Args:
            device: for each job, as typed.
            has_some: whether there are GPUs where jobs run; asked where the device is "auto".

        Raises:
            InputError: the device is none of a job's own.
        """
        gpus = self.gpus
        if gpus is None:
            gpus = int(device.startswith("cuda") or (device == "auto" and has_some()))
        number = device.removeprefix("cuda:")
        if number.isdecimal() and int(number) >= gpus:
            raise InputError(
                f"--device {device} given, but each job counts its own GPUs from 0, and has {gpus}; give --device cuda"
            )
        return gpus


def cluster_of(given: Mapping[str, Any]) -> ClusterConfig | None:
    """The cluster that is asked for; None for this process.

    Raises:
        InputError: a wrong value, or options of a cluster without one.
    """
    config = ClusterConfig(**given)
    if config.cluster is not None:
        of_slurm = next((name for name in ("partition", "mem") if getattr(config, name) is not None), None)
        if config.cluster != "slurm" and of_slurm is not None:
            raise InputError(f"{flag(of_slurm)} given with --cluster {config.cluster}, which has none; leave it out")
        return config
    other = next((name for name, value in given.items() if value is not None), None)
    if other is not None:
        raise InputError(f"{flag(other)} given without --cluster; give --cluster slurm or local")
    return None


def without_cluster(words: Sequence[str]) -> list[str]:
    """The words of a command without the options of a cluster."""
    flags = {flag(name) for name in ClusterConfig.model_fields}
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word.partition("=")[0] not in flags:
            kept.append(word)
        skip = not skip and word in flags
    return kept
