"""A Jetson's power modes from the files that nvpmodel keeps, which everybody may read."""

from __future__ import annotations

import re

from edge_sdk.sensors.files import SysFiles


class PowerModes:
    """The power modes of this machine; empty on anything but a Jetson.

    Args:
        files: of this machine.

    Attributes:
        names: of all modes by number, such as ``{0: "MAXN", 1: "15W"}``.
    """

    def __init__(self, files: SysFiles) -> None:
        self._files = files
        self.names = listed_modes(files.text(files.root / "etc" / "nvpmodel.conf"))

    def current(self) -> str | None:
        """Name of the mode that is on, or ``"mode 3"`` where modes are not listed; None where nothing tells.

        Containers usually see neither file.
        """
        status = self._files.text(self._files.root / "var" / "lib" / "nvpmodel" / "status")
        found = re.search(r"^pmode:(\d+)", status, re.MULTILINE)
        if found is None:
            return None
        number = int(found[1])
        return self.names.get(number, f"mode {number}")


def listed_modes(conf: str) -> dict[int, str]:
    """Names of the modes by number, from the content of ``/etc/nvpmodel.conf``."""
    found = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", conf, re.MULTILINE)
    return {int(number): name for number, name in found}
