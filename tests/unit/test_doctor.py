"""The doctor, on machines made of small files and fake packages."""

from __future__ import annotations

import json
import os
import stat
import sys

import pytest
from typer.testing import CliRunner

from edge_sdk.cli import app
from edge_sdk.doctor import Check, Machine, diagnose
from edge_sdk.doctor.checks import (
    check_dla,
    check_gpu,
    check_jetpack,
    check_machine,
    check_power,
    check_python,
    probe,
)
from edge_sdk.doctor.probes import PROBES, answer
from edge_sdk.doctor.repairs import advice, find_machine
from tests.machine_files import laptop, orin

PLAIN = Machine(l4t=None, nvidia=False)
ORIN = Machine(l4t="R36.4.3", nvidia=True)
THOR = Machine(l4t="R39.2.0", nvidia=True)
UNSEEN = Machine(l4t=None, nvidia=True, tegra=True)
NO_DRIVER = Check("gpu", "no CUDA driver answers", "absent")


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes a program that prints a text and exits with a code; nothing else is on the path."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name, text, code=0):
        file = tmp_path / name
        file.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.write({text!r})\nsys.exit({code})\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return make


def test_every_installed_backend_computes_and_the_command_agrees():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    checks = {check["item"]: check for check in report["checks"]}
    assert {"python", *PROBES, "jetpack", "dla library", "power mode", "machine"} == set(checks)
    assert checks["numpy"]["status"] == checks["onnxruntime"]["status"] == "ok", checks
    # Which of the two is a fact of this machine's CPU.
    assert checks["int8"]["status"] in ("ok", "caution"), checks
    assert report["problems"] == sum(check["status"] == "problem" for check in checks.values())
    assert result.exit_code == (1 if report["problems"] else 0)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("caution", 0), ("absent", 0), ("problem", 1)])
def test_only_a_problem_makes_the_command_fail(status, code, monkeypatch):
    check = Check("gpu", "[found]", status, "repair [it]")
    monkeypatch.setattr("edge_sdk.doctor.diagnose", lambda: [check])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code
    for part in ("gpu", "[found]", status, "repair [it]", f"{code} problem"):
        assert part in result.stdout


def test_a_package_that_kills_its_process_is_a_problem_with_a_repair(package):
    package("tensorrt", "import os\nos.abort()\n")
    check = probe("tensorrt", ORIN)
    assert (check.status, check.found) == ("problem", "kills the process that imports it (SIGABRT)")
    assert "--system-site-packages" in check.repair


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        (
            "torch",
            "raise OSError('libcudart.so.13: cannot open shared object file')",
            "OSError: libcudart.so.13",
        ),
        ("onnxruntime", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("onnxruntime", "import sys\nsys.exit(3)", "fails with exit code 3: no message"),
        (
            "cv2",
            "raise ImportError('numpy.core.multiarray failed to import')",
            "compiled for another NumPy than",
        ),
        ("pycuda", "VERSION_TEXT = '1'", "No module named 'pycuda.driver'"),
    ],
)
def test_a_broken_package_is_a_problem_that_says_what_came(package, name, source, found):
    package(name, source + "\n")
    check = probe("opencv" if name == "cv2" else name, PLAIN)
    assert check.status == "problem"
    assert found in check.found
    assert check.repair != ""


def test_a_package_that_computes_wrongly_is_a_problem(package):
    package(
        "onnxruntime",
        "import numpy as np\n__version__ = '9'\n"
        "def get_available_providers(): return ['CPUExecutionProvider']\n"
        "class InferenceSession:\n"
        "    def __init__(self, model, providers): pass\n"
        "    def run(self, names, feed): return [np.array([3.0, 4.0], np.float32)]\n",
    )
    assert probe("onnxruntime", PLAIN).found == "9 (CPU): [3, -4] came out as [3.0, 4.0]"


def test_what_a_package_prints_when_imported_does_not_disturb(package):
    package("pycuda", "print('hello')\nVERSION_TEXT = '2026.1'\n")
    package(
        "pycuda/driver",
        "def init(): pass\nclass Device:\n    @staticmethod\n    def count(): return 1\n",
    )
    assert probe("pycuda", PLAIN) == Check("pycuda", "2026.1, 1 devices", "ok")


def test_a_mere_folder_of_a_packages_name_is_not_the_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tensorrt_rtx").mkdir()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert answer("tensorrt") == {"status": "absent", "found": "not installed", "repair": ""}


def test_numpy_may_not_be_absent(monkeypatch):
    monkeypatch.setattr(
        "edge_sdk.doctor.checks.subprocess.run", _answers('{"status": "absent", "found": "-", "repair": ""}')
    )
    assert probe("numpy", PLAIN).status == "problem"
    assert probe("torch", PLAIN).status == "absent"


def test_two_opencv_wheels_and_a_wheel_on_a_jetson_are_problems(monkeypatch):
    pytest.importorskip("cv2")

    def wheels(*names):
        listed = [type("Distribution", (), {"metadata": {"Name": name}})() for name in names]
        monkeypatch.setattr("edge_sdk.doctor.probes.metadata.distributions", lambda: listed)

    monkeypatch.delenv("EDGE_SDK_JETSON", raising=False)
    wheels("opencv-python", "numpy")
    assert answer("opencv")["status"] == "ok"
    wheels("opencv-python", "opencv-python-headless")
    both = answer("opencv")
    assert both["status"] == "problem"
    assert "opencv-python and opencv-python-headless overwrite each other" in both["found"]
    assert both["repair"].startswith("pip uninstall opencv-python opencv-python-headless")
    monkeypatch.setenv("EDGE_SDK_JETSON", "1")
    wheels("opencv-python")
    hidden = answer("opencv")
    assert hidden["status"] == "problem"
    assert "opencv-python hides JetPack's own" in hidden["found"]
    assert hidden["repair"] == "pip uninstall opencv-python"


@pytest.mark.parametrize(
    ("machine", "version", "status", "repair"),
    [
        (PLAIN, (3, 10, 1), "ok", ""),
        (PLAIN, (3, 12, 9), "ok", ""),
        (PLAIN, (3, 13, 0), "problem", "Use Python 3.10, 3.11 or 3.12."),
        (PLAIN, (3, 9, 2), "problem", "Use Python 3.10, 3.11 or 3.12."),
        (ORIN, (3, 10, 12), "ok", ""),
        (ORIN, (3, 11, 0), "problem", "JetPack 6's own packages are compiled for Python 3.10"),
    ],
)
def test_python_must_be_one_that_the_bindings_are_compiled_for(machine, version, status, repair):
    check = check_python(machine, version)
    assert check.status == status
    assert check.repair.startswith(repair)
    assert ".".join(map(str, version)) in check.found


@pytest.mark.parametrize(
    ("release", "status", "found"),
    [
        (None, "absent", "not a Jetson"),
        ("R35 (release), REVISION: 1.0, GCID: 1", "problem", "JetPack 5, R35.1.0"),
        (
            "R36 (release), REVISION: 4.3, GCID: 1",
            "ok",
            "JetPack 6, R36.4.3; brings Python 3.10, CUDA 12, TensorRT 10.3",
        ),
        (
            "R39 (release), REVISION: 2.0, GCID: 1",
            "ok",
            "JetPack 7.2, R39.2.0; brings Python 3.12, CUDA 13.2",
        ),
        ("R77 (release), REVISION: 0.1, GCID: 1", "ok", "R77.0.1: not a release"),
    ],
)
def test_jetpack_is_read_from_its_release_file(tmp_path, release, status, found):
    if release is not None:
        write(tmp_path / "etc/nv_tegra_release", f"# {release}\n# KERNEL_VARIANT: oot\n")
    check = check_jetpack(find_machine(tmp_path))
    assert check.status == status
    assert check.found.startswith(found)


def test_a_jetson_whose_release_is_hidden_is_known_by_its_board(tmp_path):
    write(
        tmp_path / "proc/device-tree/compatible",
        "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
    )
    machine = find_machine(tmp_path)
    assert machine == UNSEEN
    check = check_jetpack(machine)
    assert (check.status, check.found) == (
        "caution",
        "a Jetson whose /etc/nv_tegra_release is not to be seen",
    )
    assert "docker run -v" in check.repair
    assert advice("opencv", machine) == "sudo apt install python3-opencv"


@pytest.mark.parametrize(
    ("name", "machine", "expected"),
    [
        ("opencv", ORIN, "sudo apt install python3-opencv"),
        ("opencv", PLAIN, "pip install 'edge_sdk[desktop]'"),
        ("onnxruntime", ORIN, "pip install 'edge_sdk[jetson]'"),
        ("torch", ORIN, "Not needed on a device."),
        ("tensorrt", PLAIN, "Needs an NVIDIA GPU"),
        ("tensorrt", Machine(None, nvidia=True), "pip install tensorrt"),
        ("pycuda", ORIN, "pip install pycuda"),
        ("tensorrt_rtx", ORIN, "Not for Jetsons"),
        ("polygraphy", PLAIN, "Needed to build engines for TensorRT: pip install polygraphy"),
        ("int8", PLAIN, "pip install 'edge_sdk[desktop]'"),
    ],
)
def test_advice_fits_the_machine(name, machine, expected):
    assert advice(name, machine).startswith(expected)


def test_the_gpu_is_what_the_driver_shows_beside_what_nvidia_smi_says(program):
    seen = Check("gpu", "Orin, compute capability 8.7", "ok")
    assert check_gpu(NO_DRIVER, PLAIN) == Check("gpu", "no CUDA driver, no nvidia-smi", "absent")
    assert check_gpu(seen, ORIN) == seen
    program("nvidia-smi", "Orin, 540.4, [N/A]\nOther, 1, 2\n")
    whole = Check("gpu", "Orin, compute capability 8.7; nvidia-smi: Orin, 540.4, [N/A]; Other, 1, 2", "ok")
    assert check_gpu(seen, ORIN) == whole


def test_a_gpu_that_does_not_answer_is_a_problem_where_there_should_be_one(program):
    container = check_gpu(NO_DRIVER, ORIN)
    assert (container.status, container.found) == ("problem", "a Jetson whose CUDA driver does not answer")
    assert "--runtime nvidia" in container.repair
    killed = check_gpu(Check("gpu", "kills the process", "problem"), PLAIN)
    assert (killed.found, killed.status) == ("kills the process", "problem")
    program("nvidia-smi", "A100, 1, 2\n")
    hidden = check_gpu(NO_DRIVER, PLAIN)
    assert (hidden.status, hidden.found) == (
        "problem",
        "nvidia-smi shows A100, 1, 2, but no CUDA driver answers",
    )
    assert "--gpus all" in hidden.repair
    program("nvidia-smi", "Driver/library version mismatch\n", code=18)
    broken = check_gpu(NO_DRIVER, PLAIN)
    assert (broken.status, broken.found) == ("problem", "Driver/library version mismatch")
    assert broken.repair != ""


LIBRARY = "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"


@pytest.mark.parametrize(
    ("machine", "content", "status", "found", "repair"),
    [
        (PLAIN, None, "absent", "not a Jetson", ""),
        (ORIN, "whole", "ok", LIBRARY, ""),
        (
            ORIN,
            None,
            "problem",
            "no libnvdla_compiler.so; TensorRT of JetPack 6",
            "apt install nvidia-l4t-dla-compiler",
        ),
        (ORIN, "", "problem", "is empty, a container's placeholder", "apt install nvidia-l4t-dla-compiler"),
        (THOR, None, "absent", "this JetPack's own TensorRT needs none", ""),
        (UNSEEN, None, "problem", "no libnvdla_compiler.so", "JetPack 7.2 has no such library"),
    ],
)
def test_the_library_of_the_accelerator_is_looked_for(machine, content, status, found, repair, tmp_path):
    if content is not None:
        write(tmp_path / LIBRARY, content)
    check = check_dla(machine, tmp_path)
    assert check.status == status
    assert found in check.found
    assert repair in check.repair


@pytest.mark.parametrize(
    ("machine", "repair"),
    [
        (ORIN, "On the Jetson itself: sudo apt install nvidia-l4t-dla-compiler"),
        (THOR, "JetPack 7.2 has no such library: take a container image made for JetPack 7.2"),
        (UNSEEN, "JetPack 6: On the Jetson itself"),
    ],
)
@pytest.mark.parametrize(
    "message",
    [
        "libnvdla_compiler.so: cannot open shared object file: No such file or directory",
        "/usr/local/cuda/compat/libnvcudla.so: undefined symbol: _ZN5nvdla8IRuntime",
    ],
)
def test_tensorrt_that_misses_the_accelerators_library_is_recognised(package, machine, repair, message):
    package("tensorrt", f"raise ImportError({message!r})\n")
    check = probe("tensorrt", machine)
    assert (check.status, check.found) == ("problem", f"ImportError: {message}")
    assert check.repair.startswith(repair)


@pytest.mark.parametrize(
    ("folder", "found"),
    [
        (f"python3.{sys.version_info[1]}", "but this environment does not see it"),
        ("python3", "but this environment does not see it"),
        ("python3.8", f"for python3.8; this is python3.{sys.version_info[1]}"),
    ],
)
def test_jetpacks_tensorrt_outside_a_virtual_environment_is_found(folder, found, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "edge_sdk.doctor.checks.subprocess.run", _answers('{"status": "absent", "found": "-", "repair": ""}')
    )
    write(tmp_path / f"usr/lib/{folder}/dist-packages/tensorrt/__init__.py", "")
    check = probe("tensorrt", ORIN, tmp_path)
    assert check.status == "problem"
    assert check.found.endswith(found)
    assert "-m venv --system-site-packages" in check.repair
    assert probe("tensorrt", PLAIN, tmp_path).status == "absent"


def test_the_power_mode_and_how_clocks_are_set(program, tmp_path):
    assert check_power(tmp_path).status == "absent"
    governed = Check("power mode", "clock governors: powersave; clocks float with the load", "ok")
    assert check_power(laptop(tmp_path / "laptop")) == governed
    clocks = (
        "clock governors: nvhost_podgov, schedutil; clocks float with the load; cpu0 at most 1510 of 1728 MHz; "
        "cpu4 at most 1510 of 1728 MHz; gpu at most 625 of 1020 MHz"
    )
    board = orin(tmp_path / "orin")
    assert check_power(board) == Check("power mode", f"15W; {clocks}", "ok")
    program("nvpmodel", "NV Power Mode: MAXN\n0\n")
    assert check_power(board) == Check("power mode", f"NV Power Mode: MAXN 0; {clocks}", "ok")
    assert check_power(tmp_path) == Check("power mode", "NV Power Mode: MAXN 0", "ok")
    program("nvpmodel", "", code=255)
    assert check_power(board).status == "problem"


def test_memory_is_read_from_meminfo(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(
        "MemTotal: 8388608 kB\nMemAvailable: 1048576 kB\nHugePages_Total: 0\n"
    )
    found = check_machine(tmp_path).found
    assert "8.0 GiB memory, 1.0 GiB free" in found
    assert f"{len(os.sched_getaffinity(0))} cores" in found
    assert "memory unknown" in check_machine(tmp_path / "no").found


def test_a_whole_report_on_a_jetson_of_files(tmp_path, monkeypatch):
    write(tmp_path / "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3\n")
    monkeypatch.setattr(
        "edge_sdk.doctor.checks.subprocess.run", _answers('{"status": "absent", "found": "-", "repair": ""}')
    )
    checks = {check.item: check for check in diagnose(tmp_path)}
    assert checks["tensorrt"].repair.startswith("sudo apt install nvidia-jetpack")
    assert checks["jetpack"].found.startswith("JetPack 6")


def _answers(line):
    def run(*args, **kwargs):
        return type("Done", (), {"returncode": 0, "stdout": line, "stderr": ""})()

    return run
