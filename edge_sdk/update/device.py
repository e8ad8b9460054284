"""A device folder: opening it to run, confirming what is on trial, and going back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from edge_sdk.bundle import Bundle
from edge_sdk.errors import MissingFileError, UpdateError
from edge_sdk.signing import Trust
from edge_sdk.update.disk import Disk
from edge_sdk.update.journal import (
    JOURNAL,
    SLOTS,
    Floor,
    Journal,
    SlotName,
    read_journal,
    write_journal,
)
from edge_sdk.update.lock import locked

_log = logging.getLogger(__name__)

# The journal's lock is held for milliseconds; one that is not given back by then never will be.
_PATIENCE_S = 10.0
_JOURNAL_LOCK = ".journal.lock"
INSTALL_LOCK = ".install.lock"


def is_device(path: str | Path) -> bool:
    """Whether ``path`` is a device folder, rather than a bundle."""
    return (Path(path) / JOURNAL).is_file()


def resolve_bundle(path: str | Path) -> Path:
    """The folder of the bundle to run: ``path`` itself, or of a device folder the slot that runs.

    Of a bundle on trial this counts as one start; where it was started too often without being confirmed, the old one
    comes back here.

    Raises:
        UpdateError: nothing is installed in the device folder yet.
        FileFormatError: its journal is damaged.
        OutputError: a start cannot be counted, because the device folder cannot be written to.
    """
    return Device(path).start() if is_device(path) else Path(path)


def open_to_run(bundle: str | Path | Bundle, trust: Trust | None = None) -> Bundle:
    """Open what a runner is given: a bundle, the folder of one, or a device folder.

    Raises:
        EdgeSdkError: as :func:`resolve_bundle` and :meth:`Bundle.open`.
    """
    if not isinstance(bundle, Bundle):
        return Bundle.open(resolve_bundle(bundle), trust=trust)
    # It was opened under whatever policy its owner had; this one is asked too.
    return bundle if trust is None else Bundle.open(bundle.path, trust=trust)


class Device:
    """A device folder that is there; made by :func:`edge_sdk.update.install.install`.

    Args:
        path: the folder.
        disk: what changes the file system.

    Raises:
        MissingFileError: it is no device folder.
    """

    def __init__(self, path: str | Path, *, disk: Disk | None = None) -> None:
        self.path = Path(path)
        self.disk = disk or Disk()
        if not is_device(self.path):
            raise MissingFileError(
                f"device folder: expected {JOURNAL} in {self.path}, found none.",
                hint="Make one with: edge-sdk install BUNDLE DEVICE",
            )

    def journal(self) -> Journal:
        """The journal as it is now.

        Raises:
            FileFormatError, ChecksumError: it is damaged.
        """
        return read_journal(self.path)

    def slot(self, name: SlotName) -> Path:
        """Folder of a slot."""
        return self.path / name

    def start(self) -> Path:
        """Count a start and return the folder of the bundle to run; see :func:`resolve_bundle`."""
        journal = self.journal()
        if journal.on_trial is not None:
            journal = self.change(lambda known: _started(known, self.path))
        if journal.current is None:
            raise UpdateError(
                f"device folder {self.path}: no installation is finished yet.",
                hint="Install a bundle with: edge-sdk install BUNDLE DEVICE",
            )
        return self.slot(journal.current)

    def confirm(self, number: int | None = None) -> bool:
        """Keep the bundle that is on trial.

        Args:
            number: only if it is this update; None for any.

        Returns:
            Whether there was anything to confirm.
        """
        done = False

        def edit(journal: Journal) -> Journal:
            nonlocal done
            done = _is_on_trial(journal, number)
            return confirmed(journal) if done else journal

        self.change(edit)
        return done

    def end_trial(self, reason: str, number: int | None = None) -> bool:
        """Go back from the bundle that is on trial.

        Args:
            reason: why, for people.
            number: only if it is this update; None for any.

        Returns:
            Whether there was a trial to end.
        """
        done = False

        def edit(journal: Journal) -> Journal:
            nonlocal done
            done = _is_on_trial(journal, number)
            return _gone_back(journal, reason, self.path) if done else journal

        self.change(edit)
        return done

    def rollback(self, reason: str = "asked for") -> Journal:
        """Go back to the bundle that ran before, from a trial or after it was confirmed.

        Raises:
            UpdateError: there is none that was ever confirmed, or an installation is using its slot.
        """
        with self.installing():
            return self.change(lambda journal: _gone_back(journal, reason, self.path))

    def installing(self) -> AbstractContextManager[None]:
        """Hold the slot that does not run, within the block.

        Raises:
            UpdateError: another process holds it.
        """
        return locked(
            self.path / INSTALL_LOCK,
            wait_s=0,
            busy=f"device folder {self.path}: another installation is going on",
            hint="Wait for it to end.",
        )

    def change(self, edit: Callable[[Journal], Journal]) -> Journal:
        """Replace the journal by what ``edit`` makes of it, while nobody else does.

        Returns:
            The new journal.
        """
        with locked(
            self.path / _JOURNAL_LOCK,
            wait_s=_PATIENCE_S,
            busy=f"device folder {self.path}: its journal is held",
            hint="End that process.",
        ):
            old = self.journal()
            new = edit(old)
            if new != old:
                write_journal(self.disk, self.path, new)
            return new


def other(slot: SlotName | None) -> SlotName:
    """The slot that does not run."""
    return SLOTS[1] if slot == SLOTS[0] else SLOTS[0]


def confirmed(journal: Journal) -> Journal:
    """The journal with its update confirmed, and no older release accepted from now on."""
    update = journal.update
    if update is None:
        return journal
    facts = journal.slots[update.slot].model_copy(update={"confirmed": True})
    floor = journal.floor
    if facts.release is not None and (floor is None or facts.release > floor.release):
        floor = Floor(release=facts.release, manifest_sha256=facts.manifest_sha256)
    return journal.with_state("confirmed").changed(slots={**journal.slots, update.slot: facts}, floor=floor)


def _is_on_trial(journal: Journal, number: int | None) -> bool:
    return journal.on_trial is not None and number in (None, journal.on_trial.number)


def _started(journal: Journal, where: Path) -> Journal:
    """The journal after one more start, or back at the old bundle where there were too many."""
    update = journal.on_trial
    if update is None:
        return journal
    if update.starts >= update.trial.max_starts:
        reason = f"started {update.starts} times and never ran healthy for long enough"
        return _gone_back(journal, reason, where)
    return journal.with_state("trial", starts=update.starts + 1)


def _gone_back(journal: Journal, reason: str, where: Path) -> Journal:
    """The journal with the other slot as the one that runs.

    Raises:
        UpdateError: it was never confirmed, or holds nothing.
    """
    target = other(journal.current)
    facts = journal.slots.get(target)
    if journal.current is None or facts is None or not facts.confirmed:
        raise UpdateError(
            f"device folder {where}: slot {target} holds no bundle that ever ran healthy here.",
            hint="Install one with: edge-sdk install BUNDLE DEVICE",
        )
    left = journal.current
    _log.warning("update: going back from slot %s to slot %s: %s", left, target, reason)
    slots = {**journal.slots, left: journal.slots[left].model_copy(update={"confirmed": False})}
    return journal.with_state("rolled_back", slot=left, previous=target, reason=reason).changed(
        current=target, slots=slots
    )
