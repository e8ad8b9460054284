"""What the machine tells during a run: a reading a second, energy, and how the machine was set."""

from __future__ import annotations

import logging
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from edge_sdk.bench.document import Machine, TelemetryCost
from edge_sdk.bench.samples import Reading
from edge_sdk.gpu import used_gpu_memory
from edge_sdk.nvml import GpuReading, Nvml
from edge_sdk.sensors import ClockSettings, EnergyMeter, PowerModes, SensorReader, Sensors, SysFiles
from edge_sdk.sensors.throttle import events_between

if TYPE_CHECKING:
    from edge_sdk.runtime.cuda.device import CudaReport

_log = logging.getLogger(__name__)
T = TypeVar("T")

PERIOD_S = 1.0
# A reading that takes longer is told of: it is no longer out of the way.
_SLOW_MS = 250.0
# How long the end of a run waits for a reading that hangs in a sensor.
_PATIENCE_S = 5.0


class Telemetry:
    """Takes a reading at the beginning of a ``with`` block, every second in a thread of its own, and at the end.

    A sensor that is missing, slow or broken never disturbs the run: what cannot be read is missing in the readings, and
    what fails in an unforeseen way is logged once and left alone.

    Args:
        now_ms: the run's clock, milliseconds since its beginning.
        gpu: the GPU that the run computes on, as NVIDIA's management library shows it; None for a run on the CPU.
        device_memory: bytes in use on the GPU, where the library does not tell; None when it is not to be asked.
        root: where ``etc``, ``proc``, ``sys`` and ``var`` are found; another folder only in tests.
        period_s: seconds from one reading to the next.
        wait: waits so many seconds and says whether to stop; another one only in tests.
    """

    def __init__(
        self,
        now_ms: Callable[[], float],
        *,
        gpu: Nvml | None = None,
        device_memory: Callable[[], int | None] | None = None,
        root: Path = Path("/"),
        period_s: float = PERIOD_S,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._now_ms, self._period_ms = now_ms, period_s * 1e3
        self._gpu, self._device_memory = gpu, device_memory
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        # Held while a reading is taken, which a sensor may make long; looking at those that were taken needs no lock.
        self._lock = threading.Lock()
        self._broken: set[str] = set()
        self._readings: list[tuple[Reading, int | None]] = []
        self._took_ms: list[float] = []
        self._cpu_ms = 0.0
        self._reader = SensorReader(root, self._now_s, keep_s=0.0)
        self._files = self._reader.files
        self._energy = EnergyMeter(
            self._files,
            self._reader.rails,
            self._now_s,
            gpu.energy_j if gpu is not None else None,
            "NVML gpu",
        )
        self._processors = _Processors(self._files)
        self._modes = PowerModes(self._files)
        self._settings = ClockSettings(None, (), ())
        self._power_mode: str | None = None
        self._events_before: dict[str, int] = {}
        self._events: dict[str, int] | None = None

    @classmethod
    def of(cls, now_ms: Callable[[], float], *, on_gpu: bool) -> Telemetry:
        """Telemetry of this machine for a run that computes on its GPU, or on its CPU alone."""
        if not on_gpu:
            return cls(now_ms)
        return cls(now_ms, gpu=Nvml(), device_memory=used_gpu_memory)

    def __enter__(self) -> Telemetry:
        self._settings = self._safely("clock settings", self._reader.clocks.settings, self._settings)
        self._power_mode = self._safely("power mode", self._modes.current, None)
        self._events_before = self._safely("throttle counters", self._reader.throttles.counts, {})
        self.read()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            _log.warning("Telemetry: a sensor does not answer; the last reading is missing.")
            return
        self.read()
        self._events = self.throttle_events()
        if self._gpu is not None:
            self._gpu.close()

    def read(self) -> Reading:
        """Take a reading now; safe from any thread. Some milliseconds."""
        with self._lock:
            began_s, cpu_s = time.perf_counter(), time.thread_time()
            at_ms = self._now_ms()
            seen = self._safely("sensors", self._reader.read, Sensors())
            gpu = (
                self._safely("NVML", self._gpu.read, GpuReading()) if self._gpu is not None else GpuReading()
            )
            self._safely("energy", self._energy.joules, None)
            used_bytes = gpu.used_bytes
            if used_bytes is None and self._device_memory is not None:
                used_bytes = self._safely("GPU memory", self._device_memory, None)
            reading = Reading(
                at_ms=at_ms,
                rss_bytes=self._safely("memory", self._rss_bytes, None),
                device_bytes=used_bytes,
                clock_mhz={**seen.clock_mhz, **gpu.clock_mhz},
                temperature_c={**seen.temperature_c, **gpu.temperature_c},
                power_w={**seen.power_w, **gpu.power_w},
                throttled=(*seen.throttled, *gpu.throttled),
                stolen=self._safely("stolen time", self._processors.stolen, None),
            )
            self._readings.append((reading, gpu.own_bytes))
            self._took(time.perf_counter() - began_s, time.thread_time() - cpu_s)
            return reading

    @property
    def readings(self) -> tuple[Reading, ...]:
        """All so far, in order.

        Device memory is this process's own where any reading tells it, else that of all processes.
        """
        taken = tuple(self._readings)
        if all(own_bytes is None for _, own_bytes in taken):
            return tuple(reading for reading, _ in taken)
        return tuple(reading.model_copy(update={"device_bytes": own_bytes}) for reading, own_bytes in taken)

    def energy_j(self) -> float | None:
        """Energy that the machine has spent since this was made, in joules; None where it does not tell.

        Take it before and after what is measured. What it rests on is told in :attr:`sources`.
        """
        return self._safely("energy", self._energy.joules, None)

    @property
    def cost(self) -> TelemetryCost:
        """What the readings so far took."""
        took = tuple(self._took_ms) or (0.0,)
        return TelemetryCost(
            readings=len(self._took_ms),
            median_ms=statistics.median(took),
            worst_ms=max(took),
            cpu_ms=self._cpu_ms,
        )

    def throttle_events(self) -> dict[str, int]:
        """Times that the hardware throttled since the beginning of the block, until now or its end, by counter."""
        if self._events is not None:
            return dict(self._events)
        now: dict[str, int] = self._safely("throttle counters", self._reader.throttles.counts, {})
        return events_between(self._events_before, now)

    def machine(self, report: CudaReport | None = None) -> Machine:
        """How the machine was set when the block began, and what has happened to it until now or the block's end.

        Args:
            report: what a GPU backend chose; None for one that makes no such report.
        """
        return Machine(
            accelerator=None if report is None else report.device,
            power_mode=self._power_mode,
            clocks_locked=self._settings.locked,
            governors=self._settings.governors,
            limits=self._settings.limits,
            engine_report={} if report is None else describe_report(report),
            throttle_events=self.throttle_events(),
            telemetry=self.sources,
            telemetry_cost=self.cost,
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """Where readings came from, and why some are missing, as phrases for a report."""
        taken = tuple(self._readings)
        told = (("clock_mhz", "clocks"), ("temperature_c", "temperatures"), ("power_w", "power"))
        there = ", ".join(name for key, name in told if any(getattr(reading, key) for reading, _ in taken))
        own = any(own_bytes is not None for _, own_bytes in taken)
        used = any(reading.device_bytes is not None for reading, _ in taken)
        phrases = [there] if there else []
        if self._energy.source is not None:
            phrases.append(f"energy: {self._energy.source}")
        if any(self._files.forbidden(path) for path in self._files.find("sys/class/powercap/*:0/energy_uj")):
            phrases.append("no powercap: its energy counters are readable by root alone")
        if self._gpu is not None:
            phrases.append(self._gpu.status)
        if used:
            phrases.append(f"GPU memory: {'of this process' if own else 'of all processes'}")
        return tuple(phrases)

    def _run(self) -> None:
        """Readings on a grid of the period; one that took too long skips those it has missed."""
        next_ms = self._now_ms() + self._period_ms
        while not self._wait(max(0.0, next_ms - self._now_ms()) / 1e3):
            self.read()
            while next_ms <= self._now_ms():
                next_ms += self._period_ms

    def _now_s(self) -> float:
        return self._now_ms() / 1e3

    def _rss_bytes(self) -> int | None:
        """Resident memory of this process."""
        parts = self._files.text(self._files.root / "proc" / "self" / "statm").split()
        return int(parts[1]) * os.sysconf("SC_PAGE_SIZE") if len(parts) > 1 else None

    def _took(self, wall_s: float, cpu_s: float) -> None:
        wall_ms = wall_s * 1e3
        if wall_ms > _SLOW_MS and max(self._took_ms, default=0.0) <= _SLOW_MS:
            _log.warning("Telemetry: a reading took %.0f ms.", wall_ms)
        self._took_ms.append(wall_ms)
        self._cpu_ms += cpu_s * 1e3

    def _safely(self, what: str, ask: Callable[[], T], otherwise: T) -> T:
        """The answer; whatever is wrong with a sensor, the run goes on."""
        if what in self._broken:
            return otherwise
        try:
            return ask()
        except Exception:  # noqa: BLE001  (a run goes on without a sensor, and says so)
            self._broken.add(what)
            _log.warning("Telemetry: %s cannot be read, and will be missing.", what, exc_info=True)
            return otherwise


class _Processors:
    """Share of the processors' time that a hypervisor gave to others, from one look to the next."""

    def __init__(self, files: SysFiles) -> None:
        self._files, self._file = files, files.root / "proc" / "stat"
        self._before = self._times()

    def stolen(self) -> float | None:
        """Since the last look, 0-1; None where Linux does not tell, or no time has passed."""
        before, now = self._before, self._times()
        self._before = now
        if before is None or now is None or now[0] <= before[0]:
            return None
        return min(1.0, max(0.0, (now[1] - before[1]) / (now[0] - before[0])))

    def _times(self) -> tuple[int, int] | None:
        """All time and stolen time. The first eight columns are all: guests are counted in user time."""
        parts = self._files.text(self._file).split("\n", 1)[0].split()
        if len(parts) < 9 or parts[0] != "cpu":
            return None
        times = [int(part) for part in parts[1:9]]
        return sum(times), times[7]


def describe_report(report: CudaReport) -> dict[str, str]:
    """What a GPU backend chose, in words, for a report."""
    described = {
        "compute capability": report.compute_capability,
        "memory of its own": "no, the machine's" if report.integrated else "yes",
        "stream priorities": report.priorities,
    }
    if report.memory is not None:
        reason = f": {report.memory_reason}" if report.memory_reason else ""
        described["host memory"] = f"{report.memory}{reason}"
    for kind, took_ms in report.memory_ms.items():
        described[f"one frame in and out, {kind}"] = f"{took_ms:.3f} ms"
    for step, state in report.graphs.items():
        described[f"graph of {step}"] = state
    return described
