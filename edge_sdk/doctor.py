"""Finds out what this machine can really do: every backend that is installed is imported and made to compute.

Native packages are exercised in a process of their own, because one built for another machine may kill the process that
imports it. Nothing is changed on the machine.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_sdk.doctor_probes import PROBES

Status = Literal["ok", "absent", "problem"]

SUPPORTED = ((3, 10), (3, 12))
PROBE_TIMEOUT_S = 120.0
REQUIRED = ("numpy",)
# JetPack by major number of its Linux for Tegra, with the Python that its bindings are compiled for.
JETPACKS = {
    35: ("JetPack 5", (3, 8)),
    36: ("JetPack 6", (3, 10)),
    38: ("JetPack 7.0 or 7.1", (3, 12)),
    39: ("JetPack 7.2", (3, 12)),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    Args:
        item: what was looked at.
        found: what is there: versions, sizes, names.
        status: ``ok``; ``absent``, an optional part that is not installed; ``problem``, something that is broken.
        repair: the step that installs or repairs it on this machine.
    """

    item: str
    found: str
    status: Status
    repair: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides which repair to advise.

    Args:
        l4t: release line of a Jetson's Linux, such as ``R36 (release), REVISION: 4.3``; ``None`` elsewhere.
        nvidia: whether an NVIDIA GPU answers (or the machine is a Jetson, whose GPU is built in).
    """

    l4t: str | None
    nvidia: bool

    @property
    def jetpack(self) -> tuple[str, tuple[int, int]] | None:
        """JetPack's name and Python version, where the release is a known one."""
        if self.l4t is None:
            return None
        digits = "".join(c for c in self.l4t.split()[0] if c.isdigit())
        return JETPACKS.get(int(digits)) if digits else None


def diagnose(root: Path = Path("/")) -> list[Check]:
    """Look at everything once; takes some seconds, most of them for importing torch where it is installed.

    Args:
        root: where ``etc`` and ``proc`` are found; another folder only in tests.
    """
    gpu = check_gpu()
    l4t = read_l4t(root)
    machine = Machine(l4t, nvidia=l4t is not None or gpu.status == "ok")
    with ThreadPoolExecutor(max_workers=2) as pool:
        probed = list(pool.map(lambda name: probe(name, machine), PROBES))
    return [
        check_python(machine),
        *probed,
        check_jetpack(machine),
        gpu,
        check_power(root),
        check_machine(root),
    ]


def check_python(machine: Machine, version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Whether this Python is one that edge_sdk and, on a Jetson, JetPack's compiled bindings work with."""
    found = f"{'.'.join(map(str, version))} ({platform.machine()}) at {sys.executable}"
    low, high = SUPPORTED
    if not low <= version[:2] <= high:
        return Check("python", found, "problem", "Use Python 3.10, 3.11 or 3.12.")
    if machine.jetpack is not None and version[:2] != machine.jetpack[1]:
        name, wanted = machine.jetpack
        own = ".".join(map(str, wanted))
        repair = (
            f"{name}'s own packages are compiled for Python {own}: python{own} -m venv --system-site-packages"
        )
        return Check("python", found, "problem", repair)
    return Check("python", found, "ok")


def probe(name: str, machine: Machine) -> Check:
    """Exercise one package in a process of its own and judge what came of it."""
    # The probe sees just what this process would import; -c alone would also look into the working directory.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "EDGE_SDK_JETSON": "1" if machine.l4t is not None else "",
    }
    code = "import sys; sys.path.remove(''); from edge_sdk.doctor_probes import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, name],
            capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Check(
            name, f"does not answer within {PROBE_TIMEOUT_S:.0f} s", "problem", advice(name, machine)
        )
    if done.returncode < 0:
        killed = signal.Signals(-done.returncode).name
        return Check(name, f"kills the process that imports it ({killed})", "problem", advice(name, machine))
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check(
            name, f"fails with exit code {done.returncode}: {last}", "problem", advice(name, machine)
        )
    status: Status = answer["status"]
    if status == "absent" and name in REQUIRED:
        status = "problem"
    repair = answer["repair"] or ("" if status == "ok" else advice(name, machine))
    return Check(name, answer["found"], status, repair)


def advice(name: str, machine: Machine) -> str:
    """The step that installs or replaces a package on this machine."""
    jetson = machine.l4t is not None
    if name == "opencv":
        return "sudo apt install python3-opencv" if jetson else "pip install 'edge_sdk[desktop]'"
    if name == "onnxruntime":
        return f"pip install 'edge_sdk[{'jetson' if jetson else 'desktop'}]'"
    if name in ("torch", "onnx"):
        return (
            "Not needed on a device."
            if jetson
            else "Needed to distil and export: pip install 'edge_sdk[workstation]'"
        )
    if name in ("tensorrt", "pycuda"):
        if jetson and name == "tensorrt":
            return "sudo apt install nvidia-jetpack, and in a venv use --system-site-packages"
        if not machine.nvidia:
            return "Needs an NVIDIA GPU, and none answers here; ONNX Runtime computes on the CPU."
        return f"pip install {name}"
    return f"pip install --force-reinstall {name}"


def read_l4t(root: Path = Path("/")) -> str | None:
    """Release line of a Jetson's Linux; ``None`` on any other machine."""
    try:
        lines = (root / "etc" / "nv_tegra_release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return lines[0].lstrip("# ").strip() if lines else "unknown release"


def check_jetpack(machine: Machine) -> Check:
    """Which JetPack, on a Jetson."""
    if machine.l4t is None:
        return Check("jetpack", "not a Jetson", "absent")
    release = ", ".join(part.strip() for part in machine.l4t.split(",")[:2])
    if machine.jetpack is None:
        return Check("jetpack", f"{release}: not a release that edge_sdk knows", "ok")
    name, python = machine.jetpack
    if python < SUPPORTED[0]:
        return Check(
            "jetpack",
            f"{name}, {release}",
            "problem",
            "Flash JetPack 6 or later: its Python is 3.10 or newer.",
        )
    return Check("jetpack", f"{name}, {release}", "ok")


def check_gpu() -> Check:
    """NVIDIA GPUs that the driver answers for."""
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    answer = _ask("nvidia-smi", *query)
    if answer is None:
        return Check("gpu", "no nvidia-smi", "absent")
    code, text = answer
    if code != 0:
        return Check(
            "gpu",
            text or f"nvidia-smi exits with {code}",
            "problem",
            "Reinstall the NVIDIA driver and restart.",
        )
    return Check("gpu", "; ".join(text.splitlines()), "ok")


def check_power(root: Path = Path("/")) -> Check:
    """Power mode of a Jetson, or the CPU governor elsewhere: both change every measured time."""
    answer = _ask("nvpmodel", "-q")
    if answer is not None:
        code, text = answer
        if code == 0:
            return Check("power mode", " ".join(text.split()), "ok")
        return Check(
            "power mode",
            " ".join(text.split()) or f"nvpmodel exits with {code}",
            "problem",
            "sudo nvpmodel -q",
        )
    try:
        governor = root / "sys" / "devices" / "system" / "cpu" / "cpu0" / "cpufreq" / "scaling_governor"
        return Check("power mode", f"CPU governor {governor.read_text(encoding='ascii').strip()}", "ok")
    except OSError:
        return Check("power mode", "neither nvpmodel nor a CPU governor", "absent")


def check_machine(root: Path = Path("/")) -> Check:
    """Cores this process may use, and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = (root / "proc" / "meminfo").read_text(encoding="ascii").splitlines()
        sizes_kb = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        total, free = sizes_kb["MemTotal"] / 2**20, sizes_kb["MemAvailable"] / 2**20
        memory = f"{total:.1f} GiB memory, {free:.1f} GiB free"
    except (OSError, KeyError, ValueError, IndexError):
        memory = "memory unknown"
    return Check("machine", f"{platform.system()} {platform.machine()}, {cores} cores, {memory}", "ok")


def _ask(program: str, *arguments: str) -> tuple[int, str] | None:
    """Exit code and what the program said; ``None`` where it is not installed."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, f"{program} does not answer: {error}"
    return done.returncode, (done.stdout.strip() or done.stderr.strip())
