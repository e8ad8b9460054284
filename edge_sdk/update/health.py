"""Health of a bundle on trial: told of every answer, it confirms the bundle or brings the old one back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from edge_sdk.bundle import Bundle
from edge_sdk.errors import VideoError
from edge_sdk.update.device import Device, is_device
from edge_sdk.update.disk import Disk
from edge_sdk.update.journal import Update

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Health:
    """Watches the trial of the bundle that a program runs::

        with EdgeRunner("device") as runner:
            health = Health(runner.bundle)
            for frame, result in health.watch(runner.stream(camera)):
                ...

    After ``healthy_s`` seconds and ``healthy_frames`` answers without an error (see
    :class:`edge_sdk.update.journal.TrialSettings`) the bundle is confirmed; after ``max_errors`` errors the old one
    comes back. A program that dies or hangs and is started again counts as a start, see
    :func:`edge_sdk.update.device.resolve_bundle`. Of a bundle that is not on trial, or lies outside of any device
    folder, nothing is kept and nothing is spent.

    Calls may come from one thread at a time.

    Args:
        bundle: what the program runs, as its runner opened it.
        clock: seconds that grow evenly.
        disk: what changes the file system.

    Raises:
        FileFormatError: the device folder's journal is damaged.
    """

    def __init__(
        self, bundle: Bundle, *, clock: Callable[[], float] = time.monotonic, disk: Disk | None = None
    ) -> None:
        self._clock = clock
        self._device: Device | None = None
        self._update = _trial_of(bundle)
        if self._update is not None:
            self._device = Device(bundle.path.parent, disk=disk)
        self._since: float | None = None
        self._frames = self._errors = 0
        self._rolled_back = False

    @property
    def on_trial(self) -> bool:
        """Whether it is still to be shown that the bundle is sound."""
        return self._update is not None

    @property
    def rolled_back(self) -> bool:
        """Whether the old bundle was brought back: close the runner and open the device folder again."""
        return self._rolled_back

    def ok(self) -> None:
        """An answer came.

        Raises:
            UpdateError, OutputError: the bundle cannot be confirmed, because the journal cannot be written.
        """
        if self._update is None or self._device is None:
            return
        now = self._clock()
        # From the first answer: loading and waiting for the camera show nothing.
        self._since = now if self._since is None else self._since
        self._frames += 1
        trial = self._update.trial
        if self._frames >= trial.healthy_frames and now - self._since >= trial.healthy_s:
            if self._device.confirm(self._update.number):
                _log.info("update: slot %s is confirmed after %d frames", self._update.slot, self._frames)
            self._update = None

    def error(self, error: BaseException | str) -> bool:
        """An answer failed; time and answers count from the start again.

        Returns:
            Whether the old bundle was brought back.

        Raises:
            UpdateError, OutputError: it cannot be, because the journal cannot be written.
        """
        if self._update is None or self._device is None:
            return self._rolled_back
        self._errors += 1
        self._since, self._frames = None, 0
        if self._errors >= self._update.trial.max_errors:
            reason = f"{self._errors} answers failed, the last: {' '.join(str(error).split())}"
            self._rolled_back = self._device.end_trial(reason, self._update.number)
            self._update = None
        return self._rolled_back

    def watch(self, answers: Iterable[T]) -> Iterator[T]:
        """Pass answers on, each counted once it was dealt with; an error on the way is counted and raised.

        What a camera or file does wrong is no fault of the bundle's and is not counted.
        """
        iterator = iter(answers)
        while True:
            try:
                answer = next(iterator)
            except StopIteration:
                return
            except VideoError:
                raise
            except Exception as error:
                self.error(error)
                raise
            yield answer
            self.ok()


def _trial_of(bundle: Bundle) -> Update | None:
    """The update that brought ``bundle``, where it is on trial."""
    folder = bundle.path.parent
    if not is_device(folder):
        return None
    journal = Device(folder).journal()
    update = journal.on_trial
    if update is None or update.slot != bundle.path.name:
        return None
    # The slot may hold another bundle since this program opened it.
    return update if journal.slots[update.slot].manifest_sha256 == bundle.manifest_sha256 else None
