"""Energy that the machine has spent: from counters where it has some, else summed up from power."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from edge_sdk.sensors.files import SysFiles
from edge_sdk.sensors.power import Rails

# Power that was read longer ago says nothing of the time since.
_LONGEST_GAP_S = 10.0


class EnergyMeter:
    """Joules since it was made; never falls. Safe from any thread.

    A Jetson has no energy counter: the power of its whole module, as its INA3221 tells it, is summed up between looks,
    so the meter must be looked at every second or so. Elsewhere processor packages count their energy (powercap), and
    so does memory where it is a domain of its own; a GPU's counter may be added.

    Args:
        files: of this machine.
        rails: where power is read.
        clock: seconds.
        counter: joules of something that Linux does not count, such as a GPU; None where it does not tell.
        counter_name: what that is.

    Attributes:
        source: what is counted, such as ``"powercap package-0"``; None where nothing is.
    """

    def __init__(
        self,
        files: SysFiles,
        rails: Rails,
        clock: Callable[[], float],
        counter: Callable[[], float | None] | None = None,
        counter_name: str = "",
    ) -> None:
        self._clock, self._rails = clock, rails
        self._lock = threading.Lock()
        self._whole = rails.whole()
        self._counters = [] if self._whole else energy_counters(files)
        self._more = None if self._whole or counter is None or counter() is None else counter
        self._more_last: float | None = None
        self._integral_j = self._more_j = 0.0
        self._power: tuple[float, float] | None = None
        parts = [f"power of {' + '.join(self._whole)}, summed up"] if self._whole else []
        parts += [f"powercap {zone.name}" for zone in self._counters]
        parts += [counter_name] if self._more is not None else []
        self.source: str | None = ", ".join(parts) or None
        self.joules()

    def joules(self) -> float | None:
        """Energy until now; None where nothing tells."""
        with self._lock:
            if self.source is None:
                return None
            if self._whole:
                self._integrate()
            if self._more is not None:
                self._follow(self._more())
            return self._integral_j + self._more_j + sum(zone.joules() for zone in self._counters)

    def _integrate(self) -> None:
        watts = self._rails.read_whole(self._whole)
        if watts is None:
            return
        now_s = self._clock()
        if self._power is not None and 0 < now_s - self._power[0] <= _LONGEST_GAP_S:
            self._integral_j += (now_s - self._power[0]) * (watts + self._power[1]) / 2
        self._power = (now_s, watts)

    def _follow(self, joules: float | None) -> None:
        if joules is None:
            return
        if self._more_last is not None:
            self._more_j += max(0.0, joules - self._more_last)
        self._more_last = joules


class EnergyCounter:
    """One of the processor's energy counters, followed over its end.

    Args:
        files: of this machine.
        zone: its folder.

    Attributes:
        name: of what it counts, such as ``"package-0"``.
        readable: whether it can be read; many systems let root alone.
    """

    def __init__(self, files: SysFiles, zone: Path) -> None:
        self._files, self._file = files, zone / "energy_uj"
        self._range_uj = files.number(zone / "max_energy_range_uj") or 0
        self._last_uj = files.number(self._file)
        self._sum_uj = 0
        self.readable = self._last_uj is not None
        self.name = files.text(zone / "name") or zone.name

    def joules(self) -> float:
        """Energy since it was made."""
        value = self._files.number(self._file)
        if value is not None and self._last_uj is not None:
            gone = value - self._last_uj
            self._sum_uj += gone if gone >= 0 else max(0, gone + self._range_uj)
            self._last_uj = value
        return self._sum_uj / 1e6


def energy_counters(files: SysFiles) -> list[EnergyCounter]:
    """Energy counters of powercap that can be read and add up: of each package, and of memory.

    Other zones within a package are counted in it; the mmio zones are the same counters once more; psys is the whole
    platform, packages included.
    """
    counters = []
    for zone in files.find("sys/class/powercap/*:*"):
        name = files.text(zone / "name")
        within = zone.name.count(":") > 1 and name != "dram"
        if not within and "-mmio" not in zone.name and name != "psys":
            counters.append(EnergyCounter(files, zone))
    return [counter for counter in counters if counter.readable]
