"""Temperatures and power as Linux tells them: thermal zones, power monitors (Jetson's INA chips), energy counters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
    """

    temperature_c: dict[str, float] = field(default_factory=dict)
    power_w: dict[str, float] = field(default_factory=dict)


class SensorReader:
    """Reads a machine's sensors; those that are missing or need other rights are left out.

    Args:
        root: where ``sys`` is found; another folder only in tests.
        clock: seconds.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._class = root / "sys" / "class"
        self._clock = clock
        self._lock = threading.Lock()
        self._read_s: float | None = None
        self._sensors = Sensors()
        self._energy_uj: dict[Path, tuple[float, int]] = {}

    def read(self) -> Sensors:
        """The sensors, at most a second old; safe from any thread."""
        with self._lock:
            now_s = self._clock()
            if self._read_s is None or now_s - self._read_s >= _KEEP_S:
                self._sensors = Sensors(
                    _named(_temperatures(self._class / "thermal")),
                    _named(
                        [*_monitors(self._class / "hwmon"), *self._packages(self._class / "powercap", now_s)]
                    ),
                )
                self._read_s = now_s
            return self._sensors

    def _packages(self, folder: Path, now_s: float) -> Iterator[tuple[str, float]]:
        """Mean power since the last reading, from energy counters; nothing at the first."""
        for zone in sorted(folder.glob("*:*")):
            # Zones within a zone (cores, memory) are counted in it; the mmio zones are the same counters once more.
            counted = zone.name.count(":") > 1 or "-mmio" in zone.name
            energy_uj = None if counted else _number(zone / "energy_uj")
            if energy_uj is None:
                continue
            before = self._energy_uj.get(zone)
            self._energy_uj[zone] = (now_s, energy_uj)
            if before is None or now_s <= before[0]:
                continue
            spent_uj = energy_uj - before[1]
            if spent_uj < 0:  # the counter has begun anew
                spent_uj += _number(zone / "max_energy_range_uj") or 0
            if spent_uj >= 0:
                yield _text(zone / "name") or zone.name, spent_uj * 1e-6 / (now_s - before[0])


def _temperatures(folder: Path) -> Iterator[tuple[str, float]]:
    for zone in sorted(folder.glob("thermal_zone*"), key=_by_number):
        milli_c = _number(zone / "temp")
        if milli_c is not None and _PLAUSIBLE_C[0] <= milli_c / 1e3 <= _PLAUSIBLE_C[1]:
            yield (_text(zone / "type") or zone.name).removesuffix("-thermal"), milli_c / 1e3


def _monitors(folder: Path) -> Iterator[tuple[str, float]]:
    for chip in sorted(folder.glob("hwmon*"), key=_by_number):
        name = _text(chip / "name") or chip.name
        for file in sorted(chip.glob("power*_input"), key=_by_number):
            micro_w = _number(file)
            if micro_w is not None:
                label = _text(file.with_name(file.name.replace("_input", "_label")))
                yield label or name, micro_w * 1e-6
        if name == "ina3221":
            yield from _ina3221(chip)


def _ina3221(chip: Path) -> Iterator[tuple[str, float]]:
    """The rails of a Jetson: voltage times current of each of the chip's three channels."""
    for channel in (1, 2, 3):
        milli_a, milli_v = _number(chip / f"curr{channel}_input"), _number(chip / f"in{channel}_input")
        label = _text(chip / f"in{channel}_label")
        if milli_a is not None and milli_v is not None and label:
            yield label, milli_a * milli_v * 1e-6


def _named(readings: Iterator[tuple[str, float]] | list[tuple[str, float]]) -> dict[str, float]:
    """Readings by name; a name that comes again gets a number."""
    named: dict[str, float] = {}
    for name, value in readings:
        count, free = 1, name
        while free in named:
            count += 1
            free = f"{name} {count}"
        named[free] = value
    return named


def _by_number(path: Path) -> tuple[int, str]:
    return int("".join(filter(str.isdigit, path.name)) or 0), path.name


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:  # not there, not ours to read, or switched off
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
