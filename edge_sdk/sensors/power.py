"""Power as it is drawn: power monitors of boards, and energy counters of processors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_sdk.sensors.files import SysFiles, named

# What a whole board or module takes in, the first that is there.
_INPUTS = ("VDD_IN", "POM_5V_IN")
# Without such a rail the others are added up, but for one that is fed from another of them (AGX Orin).
_WITHIN_ANOTHER = ("VDDQ_VDD2_1V8AO",)
# An INA3221 has three channels; Linux shows a fourth, the sum of shunt voltages, that is no rail.
_CHANNELS = (1, 2, 3)
_NOT_CONNECTED = "NC"


# Files whose product is a rail's power in microwatts: power itself, or current in mA and voltage in mV.
_Rail = tuple[Path, ...]


class Rails:
    """Power rails of this machine by name, in watts.

    Args:
        files: of this machine.
    """

    def __init__(self, files: SysFiles) -> None:
        self._files = files
        self._rails = named(_rails(files))

    def read(self) -> dict[str, float]:
        """All rails that can be read now."""
        return {name: watts for name in self._rails if (watts := self._watts(name)) is not None}

    def whole(self) -> tuple[str, ...]:
        """Names of the rails that together are the whole of a Jetson's module; empty on other machines."""
        known = [name for name, files in self._rails.items() if len(files) > 1]
        for name in _INPUTS:
            if name in known:
                return (name,)
        return tuple(name for name in known if name not in _WITHIN_ANOTHER)

    def read_whole(self, names: tuple[str, ...]) -> float | None:
        """Sum of these rails; None where one of them cannot be read."""
        total = 0.0
        for name in names:
            watts = self._watts(name)
            if watts is None:
                return None
            total += watts
        return total

    def _watts(self, name: str) -> float | None:
        microwatts = 1
        for path in self._rails[name]:
            value = self._files.number(path)
            if value is None:
                return None
            microwatts *= value
        return microwatts / 1e6


def _rails(files: SysFiles) -> Iterator[tuple[str, _Rail]]:
    for chip in files.find("sys/class/hwmon/hwmon*"):
        name = files.text(chip / "name") or chip.name
        for file in sorted(chip.glob("power*_input")):
            label = files.text(file.with_name(file.name.replace("_input", "_label")))
            yield label or name, (file,)
        if name == "ina3221":
            for channel in _CHANNELS:
                label = files.text(chip / f"in{channel}_label")
                if label and label != _NOT_CONNECTED:
                    yield label, (chip / f"curr{channel}_input", chip / f"in{channel}_input")
