"""What of a machine decides whether an engine that was built for it runs, and runs as fast, on another."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

from edge_sdk.gpu import DRIVER, find_gpu
from edge_sdk.settings import Settings

NO_GPU = "no GPU"
# What the CPU kernels of inference engines are chosen by, on x86-64 and on Arm.
_X86 = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8")
_ARM = ("asimd", "asimddp", "asimdhp", "i8mm", "sve", "bf16")
# Fields that a CPU's engines depend on, and those of a GPU's.
_CPU_KEY = ("arch", "os", "cpu_features")
_GPU_KEY = ("arch", "os", "device", "compute_capability")
# Compared where both sides know them: a container may hide the one or the other.
_GPU_KEY_IF_KNOWN = ("cuda", "driver", "l4t")


class MachineFacts(Settings):
    """What an engine depends on.

    Args:
        arch: such as ``"aarch64"``.
        os: such as ``"linux"``.
        device: name of the GPU, or of the CPU for a backend that computes there; ``"no GPU"`` where there is none.
        compute_capability: the GPU's, such as ``"8.7"``.
        memory_bytes: the device's memory.
        driver: version of the NVIDIA driver.
        cuda: newest CUDA version that the driver speaks.
        l4t: release of a Jetson's Linux, such as ``"R36.4.3"``.
        cpu_features: those that kernels are chosen by, sorted.
    """

    arch: str
    os: str
    device: str
    compute_capability: str | None = None
    memory_bytes: int
    driver: str | None = None
    cuda: str | None = None
    l4t: str | None = None
    cpu_features: tuple[str, ...] = ()


def machine_facts(backend: str, root: Path = Path("/"), driver: str = DRIVER) -> MachineFacts:
    """Facts of this machine as they matter to ``backend``.

    Args:
        backend: ``tensorrt`` looks at the GPU, anything else at the CPU.
        root: where ``etc``, ``proc`` and ``sys`` are found; another folder only in tests.
        driver: the CUDA driver's library.
    """
    arch, system = platform.machine().lower(), sys.platform
    memory = total_memory_bytes(root) or 0
    if backend != "tensorrt":
        cpuinfo = _read(root / "proc" / "cpuinfo")
        return MachineFacts(
            arch=arch, os=system, device=_cpu_name(root, cpuinfo), memory_bytes=memory, l4t=read_l4t(root),
            cpu_features=_cpu_features(cpuinfo),
        )  # fmt: skip
    gpu = find_gpu(driver)
    if gpu is None:
        return MachineFacts(arch=arch, os=system, device=NO_GPU, memory_bytes=memory, l4t=read_l4t(root))
    return MachineFacts(
        arch=arch, os=system, device=gpu.name, compute_capability=gpu.compute_capability,
        memory_bytes=gpu.memory_bytes, driver=_driver_version(root), cuda=gpu.cuda, l4t=read_l4t(root),
    )  # fmt: skip


def differences(
    built: MachineFacts, here: MachineFacts, backend: str, *, ahead_of_time: bool = False
) -> list[str]:
    """What keeps an engine built on one machine from running on another, each as a phrase that names both sides.

    Args:
        ahead_of_time: the engine was built without a GPU and is meant for any.
    """
    keys: tuple[str, ...]
    if backend != "tensorrt":
        keys = _CPU_KEY
    elif ahead_of_time:
        keys = ("arch", "os")
    else:
        known = (key for key in _GPU_KEY_IF_KNOWN if getattr(built, key) and getattr(here, key))
        keys = (*_GPU_KEY, *known)
    phrases = []
    for key in keys:
        theirs, ours = getattr(built, key), getattr(here, key)
        if theirs != ours:
            phrases.append(f"its {key.replace('_', ' ')} is {_text(theirs)}, this machine's is {_text(ours)}")
    return phrases


def read_l4t(root: Path = Path("/")) -> str | None:
    """Release of a Jetson's Linux, such as ``"R36.4.3"``; ``None`` on any other machine."""
    line = _read(root / "etc" / "nv_tegra_release").split("\n")[0]
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", line)
    return f"R{found[1]}.{found[2]}" if found else None


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this machine can still give, in bytes; ``None`` where Linux does not say."""
    return _meminfo(root, "MemAvailable")


def total_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory of this machine, in bytes; ``None`` where Linux does not say."""
    return _meminfo(root, "MemTotal")


def _meminfo(root: Path, key: str) -> int | None:
    found = re.search(rf"^{key}:\s+(\d+) kB", _read(root / "proc" / "meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _cpu_name(root: Path, cpuinfo: str) -> str:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    board = _read(root / "proc" / "device-tree" / "model").strip("\0\n ")
    return found[1].strip() if found else board or platform.processor() or platform.machine()


def _cpu_features(cpuinfo: str) -> tuple[str, ...]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return tuple(sorted({*_X86, *_ARM}.intersection(found[1].split()))) if found else ()


def _driver_version(root: Path) -> str | None:
    return _read(root / "sys" / "module" / "nvidia" / "version").strip() or None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return f"'{value}'" if value else "none"
