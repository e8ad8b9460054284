"""What holds clocks down against the system's wish: heat, too little current, too much power."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from edge_sdk.sensors.clocks import Clocks
from edge_sdk.sensors.files import SysFiles

# Cooling devices that cool by slowing something down. Others are fans, backlights, radios, a notice that the surface
# is hot, or a setting that is always on ("TCC Offset").
_SLOWING = re.compile(
    r"throttle-alert$|^cpufreq-|^devfreq-|^thermal-(cpufreq|devfreq|idle|cpuidle)|^processor$|^intel_powerclamp$",
    re.IGNORECASE,
)
_CORE, _PACKAGE = "core_throttle_count", "package_throttle_count"


class Throttles:
    """Counts of throttling since the machine was started, and what throttles now.

    Args:
        files: of this machine.
        clocks: whose limits are watched.
    """

    def __init__(self, files: SysFiles, clocks: Clocks) -> None:
        self._files, self._clocks = files, clocks
        folders = [
            path.parent for path in files.find(f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{_CORE}")
        ]
        self._cores = [folder / _CORE for folder in folders]
        self._packages = [folder / _PACKAGE for folder in folders]
        # Alarms of a Jetson, each of which makes the hardware slow down: on Orin oc1 is too low a voltage, oc2 too high
        # a mean current, oc3 a peak of current.
        self._alarms = files.find("sys/class/hwmon/hwmon*/oc[0-9]_event_cnt")
        self._cooling = [
            (kind, folder / "cur_state")
            for folder in files.find("sys/class/thermal/cooling_device*")
            if _SLOWING.search(kind := files.text(folder / "type"))
        ]
        self._before = self.counts()

    def counts(self) -> dict[str, int]:
        """Events by counter; counters that the machine has not are missing.

        ``cpu core thermal`` is the sum over processors, the two of one core each counting theirs; ``cpu package
        thermal`` is told to every processor of the package, so it is the highest of them.
        """
        counts: dict[str, int] = {}
        if cores := self._numbers(self._cores):
            counts["cpu core thermal"] = sum(cores)
        if packages := self._numbers(self._packages):
            counts["cpu package thermal"] = max(packages)
        for path in self._alarms:
            value = self._files.number(path)
            if value is not None:
                name = f"power alarm {path.name.split('_')[0]}"
                counts[name] = counts.get(name, 0) + value
        return counts

    def now(self, counts: dict[str, int]) -> tuple[str, ...]:
        """What throttles, or has since the last call, as phrases such as ``"gpu-throttle-alert: state 1"``.

        Args:
            counts: as they are now.
        """
        before, self._before = self._before, counts
        phrases = [
            f"{name}: {count} {'event' if count == 1 else 'events'}"
            for name, count in events_between(before, counts).items()
        ]
        for kind, path in self._cooling:
            state = self._files.number(path)
            if state is not None and state > 0:
                phrases.append(f"{kind}: state {state}")
        phrases += self._clocks.lowered()
        return tuple(dict.fromkeys(phrases))

    def _numbers(self, paths: list[Path]) -> list[int]:
        return [value for path in paths if (value := self._files.number(path)) is not None]


def events_between(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """How far each counter went; those that stood still are left out, one that began anew counts from zero."""
    gone = {}
    for name, count in after.items():
        earlier = before.get(name, 0)
        gone[name] = count - earlier if count >= earlier else count
    return {name: count for name, count in gone.items() if count > 0}
