"""Facts of a machine, from made-up files and a made-up driver, and what two machines differ in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edge_sdk.gpu import find_gpu, free_gpu_memory, gpu_address, used_gpu_memory
from edge_sdk.machine import (
    NO_GPU,
    MachineFacts,
    available_memory_bytes,
    differences,
    machine_facts,
    read_l4t,
)

# An Orin as its driver describes it; ``%d`` is what cuInit answers.
DRIVER = r"""
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return %d; }
int cuDeviceGet(int* device, int ordinal) { *device = 0; return ordinal ? 101 : 0; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "Orin", size); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 8000000000ull; return 0; }
int cuDriverGetVersion(int* version) { *version = 12060; return 0; }
int cuDeviceGetAttribute(int* value, int what, int device) {
    *value = what == 16 ? 8 : what == 18 ? 1 : what == 75 ? 8 : what == 76 ? 7 : -1; return 0; }
int cuDeviceGetPCIBusId(char* address, int size, int device) { strncpy(address, "0000:01:00.0", size); return 0; }
static int current, active;
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)4096; active = 1; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* on) { *flags = 0; *on = active; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return current; }
int cuCtxPushCurrent_v2(void* context) { current = 1; return context != (void*)4096; }
int cuCtxPopCurrent_v2(void** context) { current = 0; return 0; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = 3000000000ull; *total = 8000000000ull; return !current; }
"""


def driver(folder: Path, answer: int = 0) -> str:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("the made-up CUDA driver is written in C, and there is no gcc")
    made = folder / f"libcuda{answer}.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(made)],
        input=DRIVER.replace("%d", str(answer)),
        text=True,
        check=True,
    )
    return str(made)


def jetson(root: Path) -> Path:
    """The files of a Jetson Orin Nano under JetPack 6.2."""
    for name, text in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\nmore\n",
        "proc/meminfo": "MemTotal:        7800000 kB\nMemFree:  1 kB\nMemAvailable:    5000000 kB\n",
        "proc/cpuinfo": "processor : 0\nFeatures\t: fp asimd evtstrm asimdhp asimddp\n",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "sys/module/nvidia/version": "540.4.0\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_facts_of_a_jetson(tmp_path: Path) -> None:
    facts = machine_facts("tensorrt", jetson(tmp_path), driver(tmp_path))
    assert facts.device == "Orin, 8 multiprocessors"
    assert facts.compute_capability == "8.7"
    assert facts.memory_bytes == 8_000_000_000
    assert (facts.cuda, facts.driver, facts.l4t) == ("12.6", "540.4.0", "R36.4.3")
    cpu = machine_facts("onnxruntime", tmp_path)
    assert cpu.device == "NVIDIA Jetson Orin Nano Developer Kit"
    assert cpu.cpu_features == ("asimd", "asimddp", "asimdhp")
    assert cpu.memory_bytes == 7_800_000 * 1024
    assert cpu.compute_capability is None
    assert available_memory_bytes(tmp_path) == 5_000_000 * 1024


def test_facts_of_a_pc(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(
        "model name\t: A Processor @ 2 GHz\nflags\t\t: sse avx2 avx512_vnni\n", encoding="utf-8"
    )
    facts = machine_facts("onnxruntime", tmp_path)
    assert facts.device == "A Processor @ 2 GHz"
    assert facts.cpu_features == ("avx2", "avx512_vnni")
    assert facts.l4t is None
    assert machine_facts("tensorrt", tmp_path, "libno.such.driver.so").device == NO_GPU
    assert available_memory_bytes(tmp_path) is None


def test_a_driver_without_a_gpu_is_no_gpu(tmp_path: Path) -> None:
    none = driver(tmp_path, answer=100)
    found = find_gpu(driver(tmp_path))
    assert found is not None
    assert found.integrated
    assert find_gpu(none) is None
    assert free_gpu_memory(none) is None
    assert find_gpu("libc.so.6") is None, "a library of another kind is no driver"
    assert free_gpu_memory(driver(tmp_path)) == 3_000_000_000
    assert (gpu_address(none), used_gpu_memory(none)) == (None, None)


def test_used_memory_is_asked_of_a_gpu_in_use_alone(tmp_path: Path) -> None:
    """Asking an idle GPU would make a context on it, which takes time that a start is measured by."""
    made = driver(tmp_path)
    assert gpu_address(made) == "0000:01:00.0"
    assert used_gpu_memory(made) is None
    assert free_gpu_memory(made) == 3_000_000_000, "which makes the context"
    assert used_gpu_memory(made) == 5_000_000_000


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 1", "R36.4.3"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "R39.2.0"),
        ("something else", None),
        ("", None),
    ],
)
def test_release_of_a_jetson(text: str, release: str | None, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text(text, encoding="utf-8")
    assert read_l4t(tmp_path) == release


ORIN = MachineFacts(
    arch="aarch64", os="linux", device="Orin, 8 multiprocessors", compute_capability="8.7",
    memory_bytes=8 << 30, driver="540.4.0", cuda="12.6", l4t="R36.4.3", cpu_features=("asimd",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "backend", "expected"),
    [
        ({}, "tensorrt", []),
        ({"memory_bytes": 4 << 30}, "tensorrt", []),
        ({"cpu_features": ()}, "tensorrt", []),
        ({"arch": "x86_64"}, "tensorrt", ["its arch is 'aarch64', this machine's is 'x86_64'"]),
        ({"os": "win32"}, "tensorrt", ["its os is 'linux', this machine's is 'win32'"]),
        (
            {"device": "Orin, 16 multiprocessors"},
            "tensorrt",
            ["its device is 'Orin, 8 multiprocessors', this machine's is 'Orin, 16 multiprocessors'"],
        ),
        (
            {"compute_capability": None},
            "tensorrt",
            ["its compute capability is '8.7', this machine's is none"],
        ),
        ({"cuda": "13.0"}, "tensorrt", ["its cuda is '12.6', this machine's is '13.0'"]),
        ({"driver": "595.0"}, "tensorrt", ["its driver is '540.4.0', this machine's is '595.0'"]),
        ({"l4t": "R39.2.0"}, "tensorrt", ["its l4t is 'R36.4.3', this machine's is 'R39.2.0'"]),
        ({"l4t": None, "driver": None, "cuda": None}, "tensorrt", []),
        ({"device": "other", "l4t": "R39.2.0"}, "onnxruntime", []),
        (
            {"cpu_features": ("asimd", "asimddp")},
            "onnxruntime",
            ["its cpu features is asimd, this machine's is asimd asimddp"],
        ),
        ({"cpu_features": ()}, "onnxruntime", ["its cpu features is asimd, this machine's is none"]),
    ],
)
def test_differences(change: dict[str, object], backend: str, expected: list[str]) -> None:
    here = ORIN.model_copy(update=change)
    assert differences(ORIN, here, backend) == expected
    reversed_ = differences(here, ORIN, backend)
    assert len(reversed_) == len(expected)


def test_built_ahead_of_time_for_any_gpu() -> None:
    """TensorRT for RTX builds without a GPU, for any that it supports."""
    built = ORIN.model_copy(update={"device": NO_GPU, "compute_capability": None, "cuda": None})
    assert differences(built, ORIN, "tensorrt", ahead_of_time=True) == []
    assert differences(built, ORIN, "tensorrt") != []
    other = ORIN.model_copy(update={"arch": "x86_64"})
    assert len(differences(built, other, "tensorrt", ahead_of_time=True)) == 1
