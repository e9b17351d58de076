"""What a doctor found, as a value, as text for a bug report, and as tables for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybridlens.display import Displayed, Piece, Table, many
from hybridlens.display.markup import Plain
from hybridlens.doctor.agreement import Agreement
from hybridlens.doctor.scans import FamilyScan


@dataclass(frozen=True)
class Diagnosis(Displayed):
    """An installation and its machine.

    Attributes:
        python: the version.
        platform: the system.
        cpus: cores that there are; None where nobody says.
        threads: of torch.
        instructions: the set that torch's kernels use on the CPU.
        packages: name → version of what is needed; None for one that is missing.
        others: the same of what some things need.
        devices: what there is, with the memory that is free, and what a run may use of it.
        kernels: of scans, those that are installed.
        scans: what runs the recurrence of each family on each kind of device.
        agreements: on each device, a small model beside the untouched one.
        troubles: what was said while it was looked at.
    """

    python: str
    platform: str
    cpus: int | None
    threads: int
    instructions: str
    packages: Mapping[str, str | None]
    others: Mapping[str, str | None]
    devices: tuple[str, ...]
    kernels: tuple[str, ...]
    scans: tuple[FamilyScan, ...]
    agreements: tuple[Agreement, ...]
    troubles: tuple[str, ...] = ()

    @property
    def well(self) -> bool:
        """Whether nothing that is needed is missing, and the lens agrees with the untouched model everywhere."""
        return None not in self.packages.values() and all(found.agrees for found in self.agreements)

    @property
    def text(self) -> str:
        """All of it in some lines: what to paste into a bug report."""
        lines = [
            f"Python {self.python}, {self.platform}, {many(self.cpus or 0, 'core')}, {many(self.threads, 'thread')}, "
            f"{self.instructions}",
            f"packages: {_versions(self.packages)}",
            f"others: {_versions(self.others)}",
            *(f"device: {device}" for device in self.devices),
            f"scan kernels installed: {', '.join(self.kernels) or 'none'}",
            *(f"scan: {line}" for line in _by_scan(self.scans)),
            *(f"note: {trouble}" for trouble in self.troubles),
            *(f"self-check: {found.summary()}" for found in self.agreements),
            f"all is well: {'yes' if self.well else 'NO'}",
        ]
        return "\n".join(lines)

    def summary(self) -> str:
        """Versions, devices and the verdict."""
        names = ("hybridlens", "torch", "transformers")
        versions = ", ".join(f"{name} {self.packages.get(name)}" for name in names)
        return f"{versions}, {many(len(self.devices), 'device')}, {'all is well' if self.well else 'NOT well'}"

    def row(self) -> dict[str, Plain]:
        """The lines of the text, each under what it is about."""
        found: dict[str, Plain] = {}
        for line in self.text.splitlines():
            name, apart, rest = line.partition(": ") if not line.startswith("Python") else ("Python", " ", line[7:])
            before = found.get(name)
            found[name] = f"{before}; {rest}" if apart and before is not None else rest
        return found

    def view(self) -> tuple[Piece, ...]:
        """The versions and devices, and the scan of each family."""
        kinds = list(dict.fromkeys(kind for scan in self.scans for kind in scan.runs))
        rows = [(scan.family, *(scan.runs.get(kind) for kind in kinds), scan.reason) for scan in self.scans]
        scans = Table(("family", *kinds, "why"), rows, title="What runs the recurrence", most=len(rows) or 1)
        return (self.table(), scans)


def _versions(packages: Mapping[str, str | None]) -> str:
    """Those that are there, then those that are not."""
    there = ", ".join(f"{name} {version}" for name, version in packages.items() if version is not None)
    absent = ", ".join(name for name, version in packages.items() if version is None)
    return "; ".join(part for part in (there, absent and f"not installed: {absent}") if part)


def _by_scan(scans: tuple[FamilyScan, ...]) -> list[str]:
    """Families with the same scan in one line: what runs it on each kind of device."""
    groups: dict[tuple[str | None, str, str], list[str]] = {}
    for scan in scans:
        runs = ", ".join(f"{name} on {kind}" for kind, name in scan.runs.items())
        groups.setdefault((scan.operation, scan.reason, runs), []).append(scan.family)
    return [
        f"{', '.join(families)}: {f'{operation} scan, {runs}' if operation else reason}"
        for (operation, reason, runs), families in groups.items()
    ]
