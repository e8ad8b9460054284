"""Clocks of the processors, a Jetson's GPU and its memory, and what they are set to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.sensors.files import SysFiles

# One frequency policy a core on a PC. Some kernels interrupt a core to tell its clock, so a machine of many cores is
# asked for a sample of them.
_MOST_POLICIES = 16
# devfreq devices: 57000000.gpu (Nano), 17000000.gp10b (TX2), .gv11b (Xavier), .ga10b or .gpu (Orin), gpu-gpc-0 and
# gpu-nvd-0 (Thor: graphics and video).
_GPU = re.compile(r"gpu$|\.g[a-z]\d+b$|^gpu-gpc-\d+$")
# Memory: in devfreq on Thor; elsewhere in debugfs, which root alone may read.
_EMC_DEVFREQ = "bwmgr"
_EMC_DEBUG = Path("sys/kernel/debug/bpmp/debug/clk/emc/rate")
# In a megahertz. Dividing gives the nearest number, which is short in JSON; multiplying by 1e-3 does not.
_KHZ, _HZ = 1e3, 1e6


@dataclass(frozen=True, slots=True)
class ClockSettings:
    """How the clocks are set.

    Attributes:
        locked: every clock that can be looked at has its lower limit at its upper one, as ``jetson_clocks`` sets it;
            None where none can be looked at.
        governors: of the processors and the GPU, each once, sorted.
        limits: clocks whose upper limit is set below what the hardware can, as phrases such as
            ``"cpu0 at most 1510 of 1984 MHz"``. A power mode does that, and cooling does.
    """

    locked: bool | None
    governors: tuple[str, ...]
    limits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Clock:
    """Files of one clock, and how many of their units make a megahertz."""

    name: str
    unit: float
    current: Path
    low: Path
    high: Path
    governor: Path
    hardware: Path


class Clocks:
    """The clocks of this machine that Linux shows.

    Args:
        files: of this machine.
    """

    def __init__(self, files: SysFiles) -> None:
        self._files = files
        self._clocks = [*_processors(files), *_devices(files)]
        self._begun_at = {clock.name: self._limit_mhz(clock) for clock in self._clocks}

    def read(self) -> dict[str, float]:
        """Megahertz by name: ``cpu0`` for the processors that share their clock with processor 0, ``gpu``, ``emc``.

        Of processors it is what the kernel has asked for last: hardware that slows down by itself, as a Jetson's does
        on a power alarm, is seen in the counts of :class:`edge_sdk.sensors.throttle.Throttles`.
        """
        found = {}
        for clock in self._clocks:
            value = self._files.number(clock.current)
            if value:
                found[clock.name] = value / clock.unit
        return found

    def lowered(self) -> Iterator[str]:
        """Upper limits that are lower than they were at the start, as phrases: somebody cools, or changed the mode."""
        for clock in self._clocks:
            before, now = self._begun_at[clock.name], self._limit_mhz(clock)
            if before is not None and now is not None and now < before:
                yield f"{clock.name}: limit lowered from {before:.0f} to {now:.0f} MHz"

    def settings(self) -> ClockSettings:
        """How they are set now."""
        locked, governors, limits = [], set(), []
        for clock in self._clocks:
            low, high = self._files.number(clock.low), self._files.number(clock.high)
            if low is not None and high is not None:
                locked.append(low == high)
            if governor := self._files.text(clock.governor):
                governors.add(governor)
            most = self._most(clock)
            if high is not None and most is not None and high < most:
                limits.append(f"{clock.name} at most {high / clock.unit:.0f} of {most / clock.unit:.0f} MHz")
        return ClockSettings(
            locked=all(locked) if locked else None,
            governors=tuple(sorted(governors)),
            limits=tuple(limits),
        )

    def _most(self, clock: _Clock) -> int | None:
        """The highest that the hardware can; devfreq lists all that it can."""
        listed = [int(part) for part in self._files.text(clock.hardware).split() if part.isdigit()]
        return max(listed, default=None)

    def _limit_mhz(self, clock: _Clock) -> float | None:
        value = self._files.number(clock.high)
        return None if value is None else value / clock.unit


def _processors(files: SysFiles) -> Iterator[_Clock]:
    policies = files.find("sys/devices/system/cpu/cpufreq/policy[0-9]*")
    step = -(-len(policies) // _MOST_POLICIES) or 1
    for folder in policies[::step]:
        yield _Clock(
            name="cpu" + folder.name.removeprefix("policy"),
            unit=_KHZ,
            current=folder / "scaling_cur_freq",
            low=folder / "scaling_min_freq",
            high=folder / "scaling_max_freq",
            governor=folder / "scaling_governor",
            hardware=folder / "cpuinfo_max_freq",
        )


def _devices(files: SysFiles) -> Iterator[_Clock]:
    seen: set[str] = set()
    for folder in files.find("sys/class/devfreq/*"):
        name = "emc" if folder.name == _EMC_DEVFREQ else "gpu" if _GPU.search(folder.name) else ""
        if name and name not in seen:
            seen.add(name)
            yield _Clock(
                name=name,
                unit=_HZ,
                current=folder / "cur_freq",
                low=folder / "min_freq",
                high=folder / "max_freq",
                governor=folder / "governor",
                hardware=folder / "available_frequencies",
            )
    debug = files.root / _EMC_DEBUG
    if "emc" not in seen and files.number(debug) is not None:
        none = debug.with_name("none")
        yield _Clock(name="emc", unit=_HZ, current=debug, low=none, high=none, governor=none, hardware=none)
