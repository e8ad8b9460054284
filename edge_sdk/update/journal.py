"""The journal of a device folder: which slot runs, and how far an update is; one small file that is replaced whole."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edge_sdk.errors import ChecksumError, FileFormatError, RecipeError
from edge_sdk.manifest import Sha256
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.update.disk import Disk

JOURNAL = "journal.json"
SlotName = Literal["a", "b"]
SLOTS: tuple[SlotName, SlotName] = ("a", "b")
UpdateState = Literal["staging", "staged", "probing", "trial", "confirmed", "rolled_back", "failed"]

_NEW = ".journal.new"
_CHECKSUM = "checksum"
_REPAIR = (
    "The slots a and b beside it are bundles: run one by naming it, and install it into a new device folder with: "
    "edge-sdk install BUNDLE DEVICE"
)


class TrialSettings(Settings):
    """When a new bundle is confirmed, and when the old one comes back.

    Args:
        healthy_s: seconds without an error until it is confirmed.
        healthy_frames: answers without an error until it is confirmed; both must be reached in one process.
        max_errors: failed answers in one process that end the trial.
        max_starts: how often a program may start with it and not confirm it; at the next start the old one comes back.
    """

    healthy_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    healthy_frames: int = Field(default=100, ge=1)
    max_errors: int = Field(default=3, ge=1)
    max_starts: int = Field(default=3, ge=1)


class SlotFacts(Settings):
    """What a slot holds.

    Args:
        bundle: the bundle's name.
        manifest_sha256: which bundle it is.
        release, key_id: of its signature, where a policy had it checked.
        installed: ISO 8601 time, UTC.
        confirmed: it ran healthy; only such a slot is gone back to.
    """

    bundle: str
    manifest_sha256: Sha256
    release: int | None = None
    key_id: str | None = None
    installed: str
    confirmed: bool = False


class Update(Settings):
    """The last update.

    Args:
        number: counts the updates of this device.
        slot: where it is installed.
        previous: the slot that ran before; None at the first installation.
        state: how far it is.
        trial: how it is tried.
        starts: how often a program started with it while on trial.
        reason: why it ended as it did, where it is not confirmed.
        changed: ISO 8601 time of the last change, UTC.
    """

    number: int = Field(ge=1)
    slot: SlotName
    previous: SlotName | None
    state: UpdateState
    trial: TrialSettings
    starts: int = Field(default=0, ge=0)
    reason: str = ""
    changed: str


class Floor(Settings):
    """The newest release that was ever confirmed here."""

    release: int
    manifest_sha256: Sha256


class Journal(Settings):
    """Everything that is known about a device folder.

    Args:
        kind, format: what the file is.
        current: the slot that runs; None before the first installation is done.
        slots: what each slot holds whole; a slot that is not named holds nothing, or something unfinished.
        update: the last update.
        floor: no older release is installed.
        signed_only: bundles were installed under a policy that requires signatures; without one nothing is installed.
    """

    kind: Literal["edge_sdk device"] = "edge_sdk device"
    format: Literal[1] = 1
    current: SlotName | None = None
    slots: dict[SlotName, SlotFacts] = Field(default_factory=dict)
    update: Update | None = None
    floor: Floor | None = None
    signed_only: bool = False

    @property
    def on_trial(self) -> Update | None:
        """The update that runs and is not yet confirmed."""
        return self.update if self.update is not None and self.update.state == "trial" else None

    def changed(self, **values: Any) -> Journal:
        """A copy with other values."""
        return self.model_copy(update=values)

    def with_state(self, state: UpdateState, **values: Any) -> Journal:
        """A copy whose update is in another state; ``values`` are of the update."""
        if self.update is None:
            return self
        values = {"state": state, "changed": now(), **values}
        return self.changed(update=self.update.model_copy(update=values))


def now() -> str:
    """ISO 8601 time, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_journal(folder: Path) -> Journal:
    """The journal of a device folder; while another process replaces it, the old or the new one.

    Raises:
        FileFormatError: it is not readable, or of another format.
        ChecksumError: it was changed by hand, or damaged.
    """
    file = folder / JOURNAL
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{file}: not readable as JSON: {error}.", hint=_REPAIR) from error
    if not isinstance(data, dict) or data.get("kind") != "edge_sdk device":
        raise FileFormatError(f"{file}: expected the journal of a device folder, it is none.", hint=_REPAIR)
    if data.pop(_CHECKSUM, None) != _checksum(data):
        raise ChecksumError(f"{file}: it is damaged or was changed by hand.", hint=_REPAIR)
    try:
        return parse_settings(data, Journal, str(file))
    except RecipeError as error:
        raise FileFormatError(str(error), hint="Install the edge_sdk that wrote it.") from None


def write_journal(disk: Disk, folder: Path, journal: Journal) -> None:
    """Replace the journal; when this returns, the new one lasts.

    Raises:
        OutputError: it cannot be written.
    """
    data = journal.model_dump(mode="json")
    text = json.dumps({**data, _CHECKSUM: _checksum(data)}, indent=2) + "\n"
    new = folder / _NEW
    disk.write(new, text.encode())
    disk.sync(new)
    disk.rename(new, folder / JOURNAL)
    disk.sync(folder)


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
