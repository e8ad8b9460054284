"""Everything that changes while a program runs, read at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edge_sdk.sensors.clocks import Clocks
from edge_sdk.sensors.energy import energy_counters
from edge_sdk.sensors.files import SysFiles, named
from edge_sdk.sensors.power import Rails
from edge_sdk.sensors.throttle import Throttles

# Outside of this a zone is switched off or broken; Jetsons report -256 for some that are.
_PLAUSIBLE_C = (-60.0, 200.0)
# Reading them takes milliseconds on some boards, and they change slowly.
_KEEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Sensors:
    """What could be read.

    Attributes:
        temperature_c: by thermal zone, in degrees Celsius.
        power_w: by rail or package, in watts.
        clock_mhz: by clock, such as ``"cpu0"`` and ``"gpu"``, in megahertz.
        fan_rpm: by fan, in turns a minute.
        throttled: what holds clocks down, or did since the reading before, as phrases; see :class:`Throttles`.
        throttle_counts: events since the machine was started, by counter.
    """

    temperature_c: dict[str, float] = field(default_factory=dict)
    power_w: dict[str, float] = field(default_factory=dict)
    clock_mhz: dict[str, float] = field(default_factory=dict)
    fan_rpm: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    throttle_counts: dict[str, int] = field(default_factory=dict)


class SensorReader:
    """Reads a machine's sensors; those that are missing or need other rights are left out.

    Args:
        root: where ``sys`` is found; another folder only in tests.
        clock: seconds.
        keep_s: a reading that is younger is given again.

    Attributes:
        files, rails, clocks, throttles: what it reads from, for those who need one part alone.
    """

    def __init__(
        self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic, keep_s: float = _KEEP_S
    ) -> None:
        self._clock, self._keep_s = clock, keep_s
        self.files = SysFiles(root)
        self.rails, self.clocks = Rails(self.files), Clocks(self.files)
        self.throttles = Throttles(self.files, self.clocks)
        self._zones = list(_thermal_zones(self.files))
        self._fans = list(_fans(self.files))
        self._packages = named((counter.name, counter) for counter in energy_counters(self.files))
        self._lock = threading.Lock()
        self._read_s: float | None = None
        self._sensors = Sensors()
        self._energy: dict[str, tuple[float, float]] = {}

    def read(self) -> Sensors:
        """The sensors, at most ``keep_s`` old; safe from any thread."""
        with self._lock:
            now_s = self._clock()
            if self._read_s is None or now_s - self._read_s >= self._keep_s:
                counts = self.throttles.counts()
                self._sensors = Sensors(
                    temperature_c=named(self._temperatures()),
                    power_w=named([*self.rails.read().items(), *self._package_powers(now_s)]),
                    clock_mhz=self.clocks.read(),
                    fan_rpm=named(self._fan_speeds()),
                    throttled=self.throttles.now(counts),
                    throttle_counts=counts,
                )
                self._read_s = now_s
            return self._sensors

    def _temperatures(self) -> Iterator[tuple[str, float]]:
        for name, file in self._zones:
            milli_c = self.files.number(file)
            if milli_c is not None and _PLAUSIBLE_C[0] <= milli_c / 1e3 <= _PLAUSIBLE_C[1]:
                yield name, milli_c / 1e3

    def _fan_speeds(self) -> Iterator[tuple[str, float]]:
        for name, file in self._fans:
            turns = self.files.number(file)
            if turns is not None:
                yield name, float(turns)

    def _package_powers(self, now_s: float) -> Iterator[tuple[str, float]]:
        """Mean power since the last reading, from energy counters; nothing at the first."""
        for name, counter in self._packages.items():
            before, joules = self._energy.get(name), counter.joules()
            self._energy[name] = (now_s, joules)
            if before is not None and now_s > before[0]:
                yield name, (joules - before[1]) / (now_s - before[0])


def _thermal_zones(files: SysFiles) -> Iterator[tuple[str, Path]]:
    for zone in files.find("sys/class/thermal/thermal_zone*"):
        yield (files.text(zone / "type") or zone.name).removesuffix("-thermal"), zone / "temp"


def _fans(files: SysFiles) -> Iterator[tuple[str, Path]]:
    for file in files.find("sys/class/hwmon/hwmon*/fan*_input"):
        label = files.text(file.with_name(file.name.replace("_input", "_label")))
        yield label or files.text(file.parent / "name") or file.parent.name, file
    for file in files.find("sys/class/hwmon/hwmon*/rpm"):  # a Jetson's tachometer
        yield files.text(file.parent / "name") or file.parent.name, file
