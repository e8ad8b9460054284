"""What NVIDIA's management library tells of a desktop's GPU: clocks, temperature, power, energy, throttling, memory."""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from edge_sdk.gpu import DRIVER, gpu_address

_log = logging.getLogger(__name__)

_INSTALL = "pip install 'edge_sdk[bench]'"
# Reasons for which the driver holds clocks down against the load, by their names in pynvml. Left out: no load, and what
# somebody has set (application clocks, display clocks, GPUs that keep step).
THROTTLE_REASONS = {
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "thermal, by the driver",
    "nvmlClocksEventReasonHwThermalSlowdown": "thermal, by the hardware",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
}
# The same question by its newest name first; older drivers and older pynvml know the later ones.
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_TEMPERATURE = ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV")


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What the GPU told at one moment; what it does not tell is None or missing.

    Attributes:
        clock_mhz: ``gpu`` (its multiprocessors) and ``gpu memory``.
        temperature_c, power_w: of the ``gpu``.
        throttled: what holds its clocks down, as phrases such as ``"gpu: power cap"``.
        own_bytes: memory that this process has on it; None where processes cannot be told apart, as in containers.
        used_bytes: memory in use by all processes.
    """

    clock_mhz: dict[str, float] = field(default_factory=dict)
    temperature_c: dict[str, float] = field(default_factory=dict)
    power_w: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    own_bytes: int | None = None
    used_bytes: int | None = None


class Nvml:
    """The GPU that CUDA calls the first, as the management library sees it.

    Never raises: without the library or the GPU every answer is empty and :attr:`status` says why, and a question that
    the GPU does not answer is not asked again. A Jetson's library answers few.

    Args:
        driver: the CUDA driver's library, which is asked where the GPU is.

    Attributes:
        usable: whether there is a GPU that answers.
        status: in words, for a report.
    """

    def __init__(self, driver: str = DRIVER) -> None:
        self._refused: set[str] = set()
        self._nvml: Any = None
        self._handle: Any = None
        self.usable = False
        self.status = self._open(driver)

    def read(self) -> GpuReading:
        """All figures now; takes about a millisecond."""
        if not self.usable:
            return GpuReading()
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        celsius = self._ask_one_of(_TEMPERATURE, self._constant("NVML_TEMPERATURE_GPU"))
        clocks = {
            "gpu": self._ask("nvmlDeviceGetClockInfo", self._constant("NVML_CLOCK_SM")),
            "gpu memory": self._ask("nvmlDeviceGetClockInfo", self._constant("NVML_CLOCK_MEM")),
        }
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return GpuReading(
            clock_mhz={name: float(value) for name, value in clocks.items() if value is not None},
            temperature_c={} if celsius is None else {"gpu": float(celsius)},
            power_w={} if milliwatts is None else {"gpu": milliwatts / 1e3},
            throttled=self._throttled(),
            own_bytes=self._own_bytes(),
            used_bytes=None if memory is None else int(memory.used),
        )

    def energy_j(self) -> float | None:
        """Energy that the GPU has spent since its driver was loaded, in joules; None where it does not tell."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption") if self.usable else None
        return None if millijoules is None else millijoules / 1e3

    def close(self) -> None:
        """Let go of the library; closing twice does nothing."""
        if self._nvml is not None and self.usable:
            self.usable = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _open(self, driver: str) -> str:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return f"no NVML: nvidia-ml-py is not installed ({_INSTALL})"
        address = gpu_address(driver)
        if address is None:
            return "no NVML: no CUDA driver shows a GPU"
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return f"no NVML: {error}"
        self._nvml = nvml
        try:
            self._handle = nvml.nvmlDeviceGetHandleByPciBusId(address)
        except nvml.NVMLError as error:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()
            return f"no NVML: GPU {address}: {error}"
        self.usable = True
        return "NVML"

    def _throttled(self) -> tuple[str, ...]:
        reasons = self._ask_one_of(_REASONS)
        if reasons is None:
            return ()
        return tuple(
            f"gpu: {phrase}" for name, phrase in THROTTLE_REASONS.items() if reasons & self._constant(name)
        )

    def _own_bytes(self) -> int | None:
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses") or ()
        own = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        return int(own[0]) if own and own[0] is not None else None

    def _constant(self, name: str) -> int:
        """A constant of pynvml; 0 where it is too old to have it, which is no bit of a mask and the first of a list."""
        old = name.replace("ClocksEventReason", "ClocksThrottleReason")
        return int(getattr(self._nvml, name, getattr(self._nvml, old, 0)))

    def _ask_one_of(self, names: tuple[str, ...], *arguments: int) -> Any:
        for name in names:
            answer = self._ask(name, *arguments)
            if answer is not None:
                return answer
        return None

    def _ask(self, name: str, *arguments: int) -> Any:
        """An answer of the library for this GPU; None where it gives none, now and from then on."""
        question = f"{name}{arguments or ''}"
        if question in self._refused:
            return None
        # The second kind comes from a pynvml that is newer than the driver, AttributeError from one that is older.
        errors = (
            self._nvml.NVMLError,
            getattr(self._nvml, "NVMLLibraryMismatchError", AttributeError),
            AttributeError,
        )
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except errors as error:
            self._refused.add(question)
            _log.debug("NVML: %s: %s; not asked again.", question, error)
            return None
