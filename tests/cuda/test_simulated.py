"""The CUDA files on real pycuda over a simulated driver: each file of ``inside`` in a process of its own.

The dynamic loader finds the driver when a process starts, and this one must not have a GPU that is none.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cuda import prepare

FILES = sorted((Path(__file__).parent / "inside").glob("test_*.py"))
TIMEOUT_S = 240.0


# Compiling pycuda for the first time takes longer than one test may.
@pytest.mark.timeout(1200)
def test_the_driver_and_pycuda_can_be_made() -> None:
    code = "import pycuda.driver as drv; drv.init(); print(drv.Device(0).name())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=prepare.environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "Simulated GPU", done.stderr


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.removeprefix("test_"))
def test_inside(file: Path, tmp_path: Path) -> None:
    check(file, tmp_path)


def test_graphs_with_the_older_layout_of_cuda_python(tmp_path: Path) -> None:
    check(FILES[0].with_name("test_graphs.py"), tmp_path, older=True)


def test_the_device_s_tests_run_over_it_too(tmp_path: Path) -> None:
    """So that they are known to work when a GPU is at hand; torch has none here."""
    check(prepare.ROOT / "tests/device/test_cuda.py", tmp_path, skipped="1")


def check(file: Path, tmp_path: Path, *, older: bool = False, skipped: str = "0") -> None:
    environment = prepare.environment(older=older, EDGE_SDK_SIMULATED_CUDA="1", OMP_NUM_THREADS="1")
    results = tmp_path / "results.xml"
    command = [sys.executable, "-u", "-X", "faulthandler", "-m", "pytest", str(file), "-q"]
    # Where a test hangs, the stacks of all threads are printed before this process loses patience.
    command += ["-p", "no:cacheprovider", "-o", f"faulthandler_timeout={TIMEOUT_S / 2:.0f}"]
    command.append(f"--junitxml={results}")
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"it hangs: {error.stdout!r}\n{error.stderr!r}")
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    suite = ElementTree.parse(results).getroot().find("testsuite")
    assert suite is not None
    assert int(suite.attrib["tests"]) > 0
    # Nothing that stands here may pass by being skipped.
    assert suite.attrib["skipped"] == skipped, done.stdout[-2000:]
