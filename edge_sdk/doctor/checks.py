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

from edge_sdk.doctor.probes import PROBES
from edge_sdk.doctor.repairs import (
    NO_DLA_COMPILER_SINCE,
    Machine,
    advice,
    dla_advice,
    find_machine,
    hidden_package,
)
from edge_sdk.machine import available_memory_bytes, total_memory_bytes
from edge_sdk.sensors import Clocks, PowerModes, SysFiles

Status = Literal["ok", "caution", "absent", "problem"]

SUPPORTED = ((3, 10), (3, 12))
# A first import of TensorRT on a small board reads some gigabytes.
PROBE_TIMEOUT_S = 180.0
REQUIRED = ("numpy",)
DLA_COMPILER = "libnvdla_compiler.so"
_LIBRARY_FOLDERS = ("usr/lib", "usr/lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu/*")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    Args:
        item: what was looked at.
        found: what is there: versions, sizes, names.
        status: ``ok``; ``caution``, it works with a catch; ``absent``, an optional part that is not installed;
            ``problem``, something that is broken.
        repair: the step that installs or repairs it on this machine.
    """

    item: str
    found: str
    status: Status
    repair: str = ""


def diagnose(root: Path = Path("/")) -> list[Check]:
    """Look at everything once; takes some seconds, most of them for importing torch and building with TensorRT.

    Args:
        root: where ``etc``, ``proc``, ``sys`` and ``usr`` are found; another folder only in tests.
    """
    unseen = find_machine(root)
    gpu = check_gpu(probe("gpu", unseen, root), unseen)
    machine = find_machine(root, nvidia=gpu.status == "ok")
    names = [name for name in PROBES if name != "gpu"]
    with ThreadPoolExecutor(max_workers=2) as pool:
        probed = list(pool.map(lambda name: probe(name, machine, root), names))
    return [
        check_python(machine),
        *probed,
        check_jetpack(machine),
        gpu,
        check_dla(machine, root),
        check_power(root),
        check_machine(root),
    ]


def check_python(machine: Machine, version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Whether this Python is one that edge_sdk and, on a Jetson, JetPack's compiled bindings work with."""
    found = f"{'.'.join(map(str, version))} ({platform.machine()}) at {sys.executable}"
    low, high = SUPPORTED
    if not low <= version[:2] <= high:
        return Check("python", found, "problem", "Use Python 3.10, 3.11 or 3.12.")
    jetpack = machine.jetpack
    if jetpack is not None and version[:2] != jetpack.python:
        own = ".".join(map(str, jetpack.python))
        repair = (
            f"{jetpack.name}'s own packages are compiled for Python {own}: "
            f"python{own} -m venv --system-site-packages"
        )
        return Check("python", found, "problem", repair)
    return Check("python", found, "ok")


def probe(name: str, machine: Machine, root: Path = Path("/")) -> Check:
    """Exercise one package in a process of its own and judge what came of it."""
    # The probe sees just what this process would import; -c alone would also look into the working directory.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "EDGE_SDK_JETSON": "1" if machine.jetson else "",
    }
    code = "import sys; sys.path.remove(''); from edge_sdk.doctor.probes import main; main()"
    repair = advice(name, machine)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, name],
            capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Check(name, f"does not answer within {PROBE_TIMEOUT_S:.0f} s", "problem", repair)
    if done.returncode < 0:
        killed = signal.Signals(-done.returncode).name
        return Check(name, f"kills the process that imports it ({killed})", "problem", repair)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check(name, f"fails with exit code {done.returncode}: {last}", "problem", repair)
    return _judged(name, answer, machine, root)


def _judged(name: str, answer: dict[str, str], machine: Machine, root: Path) -> Check:
    """A probe's own answer, in the light of what machine it is."""
    found, told = answer["found"], answer["repair"]
    status: Status = answer["status"]  # type: ignore[assignment]
    if status == "absent" and machine.jetson and (hidden := hidden_package(name, root)) is not None:
        return Check(name, hidden[0], "problem", hidden[1])
    if status == "absent" and name in REQUIRED:
        status = "problem"
    if told == "dla":
        told = dla_advice(machine)
    return Check(name, found, status, told or ("" if status == "ok" else advice(name, machine)))


def check_jetpack(machine: Machine) -> Check:
    """Which JetPack, on a Jetson, and what comes with it."""
    if not machine.jetson:
        return Check("jetpack", "not a Jetson", "absent")
    if machine.l4t is None:
        repair = "In a container: docker run -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
        return Check("jetpack", "a Jetson whose /etc/nv_tegra_release is not to be seen", "caution", repair)
    jetpack = machine.jetpack
    if jetpack is None:
        return Check("jetpack", f"{machine.l4t}: not a release that edge_sdk knows", "ok")
    found = f"{jetpack.name}, {machine.l4t}"
    if jetpack.python < SUPPORTED[0]:
        return Check("jetpack", found, "problem", "Flash JetPack 6 or later: its Python is 3.10 or newer.")
    python = ".".join(map(str, jetpack.python))
    brings = f"brings Python {python}, CUDA {jetpack.cuda}, TensorRT {jetpack.tensorrt}"
    return Check("jetpack", f"{found}; {brings}", "ok")


def check_gpu(seen: Check, machine: Machine) -> Check:
    """NVIDIA GPUs: what the CUDA driver shows to this process, beside what nvidia-smi says.

    Args:
        seen: what the probe ``gpu`` found.
        machine: as far as it is known before.
    """
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    code, text = _ask("nvidia-smi", *query) or (None, "")
    said = "; ".join(text.splitlines())
    reinstall = "Reinstall the NVIDIA driver and restart."
    if seen.status == "ok":
        return Check("gpu", f"{seen.found}; nvidia-smi: {said}" if code == 0 else seen.found, "ok")
    if seen.status == "problem":
        return Check("gpu", seen.found, "problem", reinstall)
    if code == 0:
        repair = "In a container: docker run --gpus all (on a Jetson --runtime nvidia)."
        return Check("gpu", f"nvidia-smi shows {said}, but no CUDA driver answers", "problem", repair)
    if code is not None:
        return Check("gpu", said or f"nvidia-smi exits with {code}", "problem", reinstall)
    if machine.jetson:
        repair = "In a container: docker run --runtime nvidia. Outside: sudo apt install nvidia-jetpack"
        return Check("gpu", "a Jetson whose CUDA driver does not answer", "problem", repair)
    return Check("gpu", "no CUDA driver, no nvidia-smi", "absent")


def check_dla(machine: Machine, root: Path = Path("/")) -> Check:
    """The compiler library of a Jetson's deep-learning accelerator: TensorRT of JetPack 6 does not load without."""
    item = "dla library"
    if not machine.jetson:
        return Check(item, "not a Jetson", "absent")
    files = sorted({path for place in _LIBRARY_FOLDERS for path in root.glob(f"{place}/{DLA_COMPILER}*")})
    whole = [path for path in files if path.stat().st_size > 0]
    if whole:
        return Check(item, str(whole[0]), "ok")
    what = f"{files[0]} is empty, a container's placeholder" if files else f"no {DLA_COMPILER}"
    if machine.release is not None and machine.release >= NO_DLA_COMPILER_SINCE:
        return Check(item, f"{what}; this JetPack's own TensorRT needs none", "absent")
    return Check(item, f"{what}; TensorRT of JetPack 6 does not load without", "problem", dla_advice(machine))


def check_power(root: Path = Path("/")) -> Check:
    """Power mode of a Jetson, and how the clocks are set: both change every measured time."""
    item, files = "power mode", SysFiles(root)
    mode, clocks = PowerModes(files).current(), Clocks(files).settings()
    answer = _ask("nvpmodel", "-q")
    if answer is not None:
        code, text = answer
        said = " ".join(text.split()) or f"nvpmodel exits with {code}"
        if code != 0:
            return Check(item, said, "problem", "sudo nvpmodel -q")
        mode = said
    found = [mode] if mode is not None else []
    if clocks.governors:
        found.append(f"clock governors: {', '.join(clocks.governors)}")
    if clocks.locked is not None:
        found.append("clocks locked" if clocks.locked else "clocks float with the load")
    found += clocks.limits
    return Check(
        item, "; ".join(found) or "neither nvpmodel nor clocks are to be seen", "ok" if found else "absent"
    )


def check_machine(root: Path = Path("/")) -> Check:
    """Cores this process may use, and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    total, free = total_memory_bytes(root), available_memory_bytes(root)
    memory = "memory unknown"
    if total is not None and free is not None:
        memory = f"{total / 2**30:.1f} GiB memory, {free / 2**30:.1f} GiB free"
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
