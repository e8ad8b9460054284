"""The figures of a desktop's GPU: a made-up management library, and the names used against the real package."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from edge_sdk import nvml
from edge_sdk.nvml import THROTTLE_REASONS, GpuReading, Nvml

GIB = 1 << 30


class Refused(Exception):
    """What the library raises."""


class Newer(Exception):
    """What a pynvml raises that is newer than the driver."""


class Library:
    """pynvml as far as it is used; answers that are exceptions are raised."""

    NVMLError, NVMLLibraryMismatchError = Refused, Newer
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2
    nvmlClocksEventReasonSwPowerCap = 0x4
    nvmlClocksEventReasonHwSlowdown = 0x8
    nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvmlClocksEventReasonHwThermalSlowdown = 0x40
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, **changed):
        self.calls: list[str] = []
        self.answers = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetHandleByPciBusId": "a GPU",
            "nvmlDeviceGetTemperature": 63,
            "nvmlDeviceGetPowerUsage": 211500,
            "nvmlDeviceGetTotalEnergyConsumption": 1_234_500,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=5 * GIB),
            "nvmlDeviceGetComputeRunningProcesses": [
                SimpleNamespace(pid=1, usedGpuMemory=3 * GIB),
                SimpleNamespace(pid=os.getpid(), usedGpuMemory=2 * GIB),
            ],
            "nvmlDeviceGetCurrentClocksEventReasons": 0,
            **changed,
        }

    def nvmlDeviceGetClockInfo(self, handle, kind):
        self.calls.append(f"clock {kind}")
        return {1: 1980, 2: 2619}[kind]

    def __getattr__(self, name):
        if name not in self.answers:
            raise AttributeError(name)
        answer = self.answers[name]

        def ask(*arguments):
            self.calls.append(name)
            if isinstance(answer, Exception):
                raise answer
            assert name in ("nvmlInit", "nvmlShutdown") or arguments[0] in ("a GPU", "0000:01:00.0")
            return answer

        return ask


@pytest.fixture
def library(monkeypatch):
    """Puts a made-up library in place of the real one."""

    def put(address="0000:01:00.0", **changed):
        made = Library(**changed)
        monkeypatch.setitem(sys.modules, "pynvml", made)
        monkeypatch.setattr(nvml, "gpu_address", lambda driver: address)
        return made

    return put


def test_all_figures_of_a_gpu(library):
    library()
    gpu = Nvml()
    assert (gpu.usable, gpu.status) == (True, "NVML")
    assert gpu.read() == GpuReading(
        clock_mhz={"gpu": 1980.0, "gpu memory": 2619.0},
        temperature_c={"gpu": 63.0},
        power_w={"gpu": 211.5},
        throttled=(),
        own_bytes=2 * GIB,
        used_bytes=5 * GIB,
    )
    assert gpu.energy_j() == 1234.5


@pytest.mark.parametrize(
    ("mask", "phrases"),
    [
        (0x0, ()),
        (0x1, ()),
        (0x2 | 0x10 | 0x100, ()),
        (0x4, ("gpu: power cap",)),
        (0x8 | 0x40, ("gpu: hardware slowdown", "gpu: thermal, by the hardware")),
        (0x20, ("gpu: thermal, by the driver",)),
        (0x80 | 0x1, ("gpu: power brake",)),
    ],
)
def test_reasons_for_low_clocks_in_words_and_no_load_and_settings_are_none(mask, phrases, library):
    library(nvmlDeviceGetCurrentClocksEventReasons=mask)
    assert Nvml().read().throttled == phrases


def test_older_names_are_asked_where_newer_ones_are_not_known(library):
    made = library(
        nvmlDeviceGetCurrentClocksEventReasons=Newer("Function Not Found"),
        nvmlDeviceGetCurrentClocksThrottleReasons=0x4,
        nvmlDeviceGetTemperature=Refused("Not Supported"),
        nvmlDeviceGetTemperatureV=55,
    )
    gpu = Nvml()
    for _ in range(3):
        seen = gpu.read()
    assert (seen.throttled, seen.temperature_c) == (("gpu: power cap",), {"gpu": 55.0})
    assert made.calls.count("nvmlDeviceGetCurrentClocksEventReasons") == 1, (
        "what is refused is not asked again"
    )
    assert made.calls.count("nvmlDeviceGetCurrentClocksThrottleReasons") == 3


def test_what_a_gpu_does_not_answer_is_missing(library):
    refused = Refused("Not Supported")
    questions = [
        name for name in Library().answers if name.startswith("nvmlDeviceGet") and "Handle" not in name
    ]
    library(**dict.fromkeys(questions, refused))
    gpu = Nvml()
    assert gpu.read() == GpuReading(clock_mhz={"gpu": 1980.0, "gpu memory": 2619.0})
    assert gpu.energy_j() is None


@pytest.mark.parametrize(
    "processes",
    [
        [],
        [SimpleNamespace(pid=1, usedGpuMemory=GIB)],
        [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)],
    ],
)
def test_memory_of_this_process_is_unknown_where_processes_cannot_be_told_apart(processes, library):
    library(nvmlDeviceGetComputeRunningProcesses=processes)
    seen = Nvml().read()
    assert (seen.own_bytes, seen.used_bytes) == (None, 5 * GIB)


@pytest.mark.parametrize(
    ("put", "status"),
    [
        ({"address": None}, "no NVML: no CUDA driver shows a GPU"),
        ({"nvmlInit": Refused("Driver Not Loaded")}, "no NVML: Driver Not Loaded"),
        (
            {"nvmlDeviceGetHandleByPciBusId": Refused("Not Found")},
            "no NVML: GPU 0000:01:00.0: Not Found",
        ),
    ],
)
def test_without_a_gpu_that_answers_there_is_nothing_and_the_status_says_why(put, status, library):
    made = library(**put)
    gpu = Nvml()
    assert (gpu.usable, gpu.status) == (False, status)
    assert (gpu.read(), gpu.energy_j()) == (GpuReading(), None)
    gpu.close()
    assert made.calls.count("nvmlShutdown") == (1 if "Handle" in str(put) else 0)


def test_without_the_package_the_status_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu = Nvml()
    assert gpu.status == "no NVML: nvidia-ml-py is not installed (pip install 'edge_sdk[bench]')"
    assert gpu.read() == GpuReading()


def test_closing_lets_go_once_and_then_nothing_is_asked(library):
    made = library()
    gpu = Nvml()
    gpu.close()
    gpu.close()
    assert made.calls.count("nvmlShutdown") == 1
    assert (gpu.read(), gpu.energy_j()) == (GpuReading(), None)


def test_every_name_is_one_of_the_real_package():
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for name in Library().answers:
        assert callable(getattr(real, name)), name
    for name in (*nvml._REASONS, *nvml._TEMPERATURE, "nvmlDeviceGetClockInfo"):
        assert callable(getattr(real, name)), name
    for name in ("NVML_TEMPERATURE_GPU", "NVML_CLOCK_SM", "NVML_CLOCK_MEM", *THROTTLE_REASONS):
        assert getattr(real, name) == getattr(Library, name), name
    assert issubclass(real.NVMLError, Exception)


def test_the_real_package_without_a_gpu_is_no_error(tmp_path):
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    gpu = Nvml(str(tmp_path / "libno.such.driver.so"))
    assert gpu.status == "no NVML: no CUDA driver shows a GPU"
