"""What kind of machine this is, and the step that repairs or installs a part on such a machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edge_sdk.machine import read_l4t


class JetPack(NamedTuple):
    """What a JetPack brings; its bindings are compiled for that Python alone."""

    name: str
    python: tuple[int, int]
    cuda: str
    tensorrt: str


# By major number of its Linux for Tegra.
JETPACKS = {
    35: JetPack("JetPack 5", (3, 8), "11.4", "8.4 or 8.5"),
    36: JetPack("JetPack 6", (3, 10), "12", "10.3 (6.1 and later)"),
    38: JetPack("JetPack 7.0 or 7.1", (3, 12), "13.0", "10.13"),
    39: JetPack("JetPack 7.2", (3, 12), "13.2", "10.16 (from 7.2.2 also 11.4 on AGX Orin and Thor)"),
}
# Linux for Tegra of JetPack 7.2, which has no compiler library for the accelerator any more.
NO_DLA_COMPILER_SINCE = 39
# Folders of the packages that JetPack itself installs, by the name of a probe.
_SYSTEM_PACKAGES = {"tensorrt": "tensorrt", "opencv": "cv2"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides which repair to advise.

    Args:
        l4t: release of a Jetson's Linux, such as ``R36.4.3``; ``None`` elsewhere, and where it cannot be seen.
        nvidia: whether an NVIDIA GPU answers (or the machine is a Jetson, whose GPU is built in).
        tegra: the board says that it is a Jetson, whether or not its release can be seen.
    """

    l4t: str | None
    nvidia: bool
    tegra: bool = False

    @property
    def jetson(self) -> bool:
        """Whether it is a Jetson."""
        return self.l4t is not None or self.tegra

    @property
    def release(self) -> int | None:
        """Major number of a Jetson's Linux."""
        return int(self.l4t.lstrip("R").split(".")[0]) if self.l4t is not None else None

    @property
    def jetpack(self) -> JetPack | None:
        """What its JetPack brings, where the release is a known one."""
        return JETPACKS.get(self.release) if self.release is not None else None


def find_machine(root: Path = Path("/"), *, nvidia: bool = False) -> Machine:
    """The machine whose files are below ``root``.

    Args:
        nvidia: an NVIDIA GPU has been seen.
    """
    l4t = read_l4t(root)
    try:
        tegra = b"nvidia,tegra" in (root / "proc" / "device-tree" / "compatible").read_bytes()
    except OSError:
        tegra = False
    return Machine(l4t, nvidia=nvidia or tegra or l4t is not None, tegra=tegra)


def hidden_package(name: str, root: Path = Path("/")) -> tuple[str, str] | None:
    """Finding and repair where JetPack has put a package among the system's and this Python does not see it."""
    folder = _SYSTEM_PACKAGES.get(name)
    places = sorted(root.glob(f"usr/lib/python3*/dist-packages/{folder}")) if folder else []
    if not places:
        return None
    own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    folder_of = places[0].parent.parent.name
    compiled = own if folder_of == "python3" else folder_of
    what = "but this environment does not see it" if compiled == own else f"for {compiled}; this is {own}"
    repair = f"{compiled} -m venv --system-site-packages, and install edge_sdk there."
    return f"JetPack's is at {places[0]}, {what}", repair


def advice(name: str, machine: Machine) -> str:
    """The step that installs or replaces what a probe looks at, on this machine."""
    if name in ("torch", "onnx"):
        if machine.jetson:
            return "Not needed on a device."
        return "Needed to distil and export: pip install 'edge_sdk[workstation]'"
    if name == "opencv":
        return "sudo apt install python3-opencv" if machine.jetson else "pip install 'edge_sdk[desktop]'"
    if name in ("onnxruntime", "int8"):
        return f"pip install 'edge_sdk[{'jetson' if machine.jetson else 'desktop'}]'"
    if name in ("tensorrt", "tensorrt_rtx", "pycuda", "polygraphy"):
        return _gpu_advice(name, machine)
    return f"pip install --force-reinstall {name}"


def _gpu_advice(name: str, machine: Machine) -> str:
    if name == "tensorrt" and machine.jetson:
        return "sudo apt install nvidia-jetpack, and in a venv use --system-site-packages"
    if name == "tensorrt_rtx" and machine.jetson:
        return "Not for Jetsons, which have TensorRT itself."
    if name == "polygraphy":
        return "Needed to build engines for TensorRT: pip install polygraphy"
    if not machine.nvidia:
        return "Needs an NVIDIA GPU, and none answers here; ONNX Runtime computes on the CPU."
    return f"pip install {name}"


def dla_advice(machine: Machine) -> str:
    """How TensorRT gets the accelerator's libraries that it asks for, or how to do without."""
    installs = (
        "On the Jetson itself: sudo apt install nvidia-l4t-dla-compiler; then start containers with "
        "--runtime nvidia, from an image of the same JetPack."
    )
    replaces = "JetPack 7.2 has no such library: take a container image made for JetPack 7.2, or run outside."
    if machine.release is None:
        return f"JetPack 6: {installs} {replaces}"
    return replaces if machine.release >= NO_DLA_COMPILER_SINCE else installs
