"""The machine and the software under which a measurement was made."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import edge_sdk
from edge_sdk.revision import commit_of_sources
from edge_sdk.settings import Settings

_PACKAGES = ("onnxruntime", "numpy", "opencv-python-headless", "opencv-python")


class Conditions(Settings):
    """Where, when and with what.

    Args:
        date: ISO 8601, UTC.
        machine: board or architecture, and operating system.
        cpu: name of the processor.
        cores: logical processors that this process may use.
        threads: threads asked for; None where the libraries chose.
        load: average number of running processes in the minute before; None where the system does not say.
        python: version.
        sdk_version: version of edge_sdk.
        commit: commit of edge_sdk's own checkout, with ``+changes`` where files differ from it; None for an
            installed package.
        packages: versions of the packages that do the work.
    """

    date: str
    machine: str
    cpu: str
    cores: int
    threads: int | None
    load: float | None
    python: str
    sdk_version: str
    commit: str | None
    packages: dict[str, str]

    @classmethod
    def now(cls, threads: int | None) -> Conditions:
        """As they are at this moment."""
        return cls(
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=_machine(),
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            threads=threads,
            load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            python=platform.python_version(),
            sdk_version=edge_sdk.__version__,
            commit=commit_of_sources(),
            packages=_versions(),
        )


def _machine() -> str:
    board = _first_line(Path("/proc/device-tree/model")).rstrip("\0")
    return ", ".join(filter(None, (board, platform.machine(), f"{platform.system()} {platform.release()}")))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "hardware"):
            return value.strip()
    return platform.processor() or "unknown"


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]
    except OSError:
        return ""


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # one of the two OpenCV wheels is absent, and on a Jetson both are
    return found
