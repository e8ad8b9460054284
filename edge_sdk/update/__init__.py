"""Safe updates: two slots on a device, and a new bundle that must show itself sound before the old one is given up.

    DEVICE/journal.json    which slot runs, what is on trial; the only truth, replaced whole
    DEVICE/a/  DEVICE/b/   a bundle each

An installation goes staging -> staged -> probing -> trial -> confirmed, or ends as failed or rolled_back. Everything up
to the trial happens in the slot that does not run; the switch, the confirmation and the way back are one rename of the
journal each. So whenever the process is killed or the power fails, the device has a whole bundle to run.
"""

from edge_sdk.update.device import Device, is_device, open_to_run, resolve_bundle
from edge_sdk.update.health import Health
from edge_sdk.update.install import Installed, InstallSettings, install
from edge_sdk.update.journal import TrialSettings
from edge_sdk.update.probe import ProbeSettings

__all__ = [
    "Device",
    "Health",
    "InstallSettings",
    "Installed",
    "ProbeSettings",
    "TrialSettings",
    "install",
    "is_device",
    "open_to_run",
    "resolve_bundle",
]
