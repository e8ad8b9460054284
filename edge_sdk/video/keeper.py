"""Keeps a live source alive: one reader at a time, replaced when it fails or hangs, and the events that go with it."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable

from edge_sdk.errors import ClosedError, EdgeSdkError, VideoError
from edge_sdk.video.frame import Frame
from edge_sdk.video.reader import Device, Reader
from edge_sdk.video.slot import NewestSlot
from edge_sdk.video.watchdog import LiveSettings, OnEvent, SourceEvent, SourceState, Watchdog

_log = logging.getLogger(__name__)

# How long close() waits for a reader to release the device; a frame at 2 a second takes half of it.
_CLOSE_S = 1.0
# Readers that hang in the driver cost a thread each; beyond this nothing is opened until one of them returns.
_MOST_HANGING = 3

# What is open in this process, for its end: a daemon thread would not live to release its device.
_open: weakref.WeakSet[Keeper] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for keeper in list(_open):
        keeper.close()


class Keeper:
    """Runs the readers of one device and hands their frames to ``slot``.

    Everything is decided in :meth:`step`, under the slot's lock; a thread of its own calls it when something is due.

    Args:
        device: what is read.
        settings: times and pauses.
        slot: where frames go.
        on_event: told every change of state, on the keeper's thread; what it raises is logged.
        clock: seconds, that of the frames.
        reader: makes a reader; for tests.
    """

    def __init__(
        self,
        device: Device,
        settings: LiveSettings,
        slot: NewestSlot,
        *,
        on_event: OnEvent | None = None,
        clock: Callable[[], float] = time.monotonic,
        reader: Callable[[Device, Keeper, Callable[[], float]], Reader] = Reader,
    ) -> None:
        self._device, self._settings, self._slot = device, settings, slot
        self._on_event, self._clock, self._make_reader = on_event, clock, reader
        self._news = threading.Condition(slot.lock)
        self._watchdog = Watchdog(settings, device.name, clock())
        self._events: list[SourceEvent] = []
        self._reader: Reader | None = None
        self._left: list[Reader] = []
        self._failure: EdgeSdkError | None = None
        self._delivering = self._closed = self._forgotten = False
        self._thread: threading.Thread | None = None
        self.size_hw: tuple[int, int] | None = None
        self.fps = 0.0

    @property
    def state(self) -> SourceState:
        """What the source is doing."""
        with self._slot.lock:
            return self._watchdog.state

    def open(self) -> None:
        """Open the device for the first time, wait for its first picture, and begin to watch it.

        Raises:
            EdgeSdkError: it cannot be opened, or does not answer in time.
        """
        _open.add(self)
        with self._slot.lock:
            self._start_reader()
            self._news.wait_for(lambda: self.size_hw or self._failure, self._settings.open_s)
            failure = self._failure
            if failure is None and self.size_hw is None:
                failure = VideoError(
                    f"{self._device.name}: no frame within {self._settings.open_s:g} s of opening.",
                    hint=self._device.hint,
                )
        if failure is not None:
            self.close()
            raise failure
        self._thread = threading.Thread(
            target=self._watch, name=f"edge-sdk-watch {self._device.name}", daemon=True
        )
        self._thread.start()

    def forget(self) -> None:
        """Nobody wants the frames any more: let the threads end by themselves, the reader after the next frame.

        This is what a garbage collector calls, on any thread and in the middle of anything: it takes no lock.
        """
        self._forgotten = True
        reader = self._reader
        if reader is not None:
            reader.stop()

    def close(self) -> None:
        """Release the device, waiting a second at most for a reader that hangs; closing twice does nothing."""
        with self._slot.lock:
            if self._closed:
                return
            self._closed = True
            _open.discard(self)
            self._slot.end(ClosedError(f"{self._device.name}: the source is closed."))
            self._leave_reader()
            self._news.notify_all()
        until_s = time.monotonic() + _CLOSE_S
        for thread in (*self._left, self._thread):
            if thread is not None and thread is not threading.current_thread() and thread.is_alive():
                thread.join(max(0.0, until_s - time.monotonic()))
        if any(reader.is_alive() for reader in self._left):
            _log.warning(
                "%s: the driver does not return, so the device is not released before the process ends. %s",
                self._device.name,
                self._device.hint,
            )

    def step(self) -> float:
        """Do what is due and tell what happened; how many seconds until something else is due."""
        with self._slot.lock:
            now_s = self._clock()
            event = self._watchdog.look(now_s)
            while event is not None:
                self._follow(event)
                event = self._watchdog.look(now_s)
            events, self._events = self._events, []
            due_s = self._watchdog.due_s - now_s
        for happened in events:
            self._tell(happened)
        return due_s

    # What readers report. Each call comes from a reader's thread.

    def grabbed(self, reader: Reader, now_s: float) -> int | None:
        """See :class:`~edge_sdk.video.reader.Desk`."""
        with self._slot.lock:
            # The first picture after an opening only shows that the device delivers, and what.
            if reader is not self._reader or self._watchdog.state is not SourceState.open:
                return None
            seq = self._slot.admit()
            if seq is None:
                self._watchdog.good_frame(now_s)
            return seq

    def opened(self, reader: Reader, size_hw: tuple[int, int], fps: float) -> None:
        """See :class:`~edge_sdk.video.reader.Desk`."""
        with self._slot.lock:
            if reader is not self._reader:
                return
            if self.size_hw is None:
                self.size_hw, self.fps = size_hw, fps
            elif self.size_hw != size_hw:
                raise VideoError(
                    f"{self._device.name}: its frames are {size_hw[0]} x {size_hw[1]} now, "
                    f"before they were {self.size_hw[0]} x {self.size_hw[1]}.",
                    hint="Open the source anew.",
                )
            else:
                self._slot.reconnects += 1
            self._delivering = True
            self._note(self._watchdog.good_frame(self._clock()))

    def deliver(self, reader: Reader, frame: Frame) -> None:
        """See :class:`~edge_sdk.video.reader.Desk`."""
        with self._slot.lock:
            if reader is self._reader:
                self._note(self._watchdog.good_frame(frame.captured_s))
                self._slot.put(frame)

    def spoiled(self, reader: Reader, seq: int | None, reason: str) -> None:
        """See :class:`~edge_sdk.video.reader.Desk`."""
        with self._slot.lock:
            if reader is not self._reader or seq is None:
                return
            first = self._slot.spoiled() == 1
        _log.log(
            logging.WARNING if first else logging.DEBUG,
            "frame %d is left out and counted as corrupt: %s",
            seq,
            reason,
        )

    def failed(self, reader: Reader, error: EdgeSdkError) -> None:
        """See :class:`~edge_sdk.video.reader.Desk`."""
        with self._slot.lock:
            if reader is not self._reader:
                return
            if self.size_hw is None:
                self._failure = error  # the first opening: open() raises it
                self._news.notify_all()
                return
            reason = str(error).removesuffix(error.hint).removeprefix(f"{self._device.name}: ").rstrip(" .")
            event = self._watchdog.failed(self._clock(), reason)
            if event is not None:
                self._follow(event)

    # Under the lock.

    def _follow(self, event: SourceEvent) -> None:
        """Act on a change of state that the watchdog has decided."""
        self._note(event)
        if event.state is SourceState.stalled:
            if self._delivering:
                self._slot.stalls += 1
                self._slot.interrupted()
            self._delivering = False
            self._leave_reader()
        elif event.state is SourceState.reopening:
            self._start_reader()
        elif event.state is SourceState.lost:
            self._leave_reader()
            self._slot.end(VideoError(f"{self._device.name}: lost: {event.reason}.", hint=self._device.hint))

    def _note(self, event: SourceEvent | None) -> None:
        if event is not None:
            self._events.append(event)
            self._news.notify_all()

    def _start_reader(self) -> None:
        self._left = [reader for reader in self._left if reader.is_alive()]
        if self._closed or self._forgotten or len(self._left) >= _MOST_HANGING:
            return  # counts as an opening that does not answer
        self._reader = self._make_reader(self._device, self, self._clock)
        self._reader.start()

    def _leave_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()
            self._left.append(reader)

    # The keeper's thread.

    def _watch(self) -> None:
        while True:
            if self._forgotten:
                self.close()
            with self._slot.lock:
                if self._closed:
                    return
            self.step()
            with self._slot.lock:
                if self._closed or self._forgotten:
                    continue
                wait_s = self._watchdog.due_s - self._clock()
                if not self._events and wait_s > 0:
                    if self._watchdog.state is SourceState.lost:
                        return
                    self._news.wait(min(wait_s, threading.TIMEOUT_MAX))

    def _tell(self, event: SourceEvent) -> None:
        # Once a fault: openings that fail, maybe all night, are details.
        level = {SourceState.open: logging.INFO, SourceState.lost: logging.ERROR}.get(
            event.state, logging.DEBUG
        )
        if event.state is SourceState.stalled and not event.attempt:
            level = logging.WARNING
        _log.log(level, "%s: %s", event.uri, f"{event.state.value}: {event.reason}".rstrip(": "))
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001  (the application's own; it must not end the watching)
            _log.exception("on_event failed for %s of %s", event.state.value, event.uri)
