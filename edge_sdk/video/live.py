"""A source that does not wait for its consumer: cameras and network streams."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable, Iterator

from edge_sdk.video.base import Selection, SourceBase
from edge_sdk.video.frame import Frame
from edge_sdk.video.keeper import Keeper
from edge_sdk.video.reader import Device
from edge_sdk.video.slot import NewestSlot, SourceStats
from edge_sdk.video.watchdog import LiveSettings, OnEvent, SourceState


class LiveSource(SourceBase):
    """The newest frame of a device, each delivered once.

    A thread reads the device and keeps only its newest frame, so that a slow consumer sees few frames and no old ones.
    Frames that it missed are a jump in ``seq`` and a count in ``stats``. ``captured_s`` is ``time.monotonic()`` when a
    frame was grabbed. A device that stops is closed and opened again, see :class:`LiveSettings`; what comes then is of
    the same stream, after a jump. ``seq`` goes on from one ``iter()`` to the next, because the camera does.

    The device is released by ``close()``, at the end of a ``with`` block, when the object is forgotten and when the
    interpreter exits; for signals see :func:`edge_sdk.video.signals.exit_on_signals`.

    Args:
        device: what to open.
        settings: how it is watched.
        selection: which frames to deliver; ``start`` counts from the first frame asked for, ``limit`` is for each
            ``iter()``.
        uri: how messages name the source; the device's name by default.
        on_event: told every change of state, on a thread of the source's own; what it raises is logged.

    Raises:
        VideoError: the device cannot be opened, delivers nothing, another size than asked, or tells no rate. While
            iterating: the source is lost.
    """

    live = True

    def __init__(
        self,
        device: Device,
        *,
        settings: LiveSettings | None = None,
        selection: Selection | None = None,
        uri: str | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        super().__init__(uri or device.name)
        self._selection = selection or Selection()
        self._slot = NewestSlot(self._selection, time.monotonic)
        self._keeper = Keeper(device, settings or LiveSettings(), self._slot, on_event=on_event)
        weakref.finalize(self, self._keeper.forget).atexit = False  # at exit the keeper closes itself
        self._keeper.open()
        self.size_hw = self._keeper.size_hw or (0, 0)
        self.fps = self._keeper.fps / self._selection.stride
        self.frame_count = self._selection.limit

    @property
    def stats(self) -> SourceStats:
        """Counts of frames received, dropped and so on, and the age of the last one."""
        return self._slot.stats

    @property
    def state(self) -> SourceState:
        """Whether the device delivers at the moment."""
        return self._keeper.state

    def take(self, timeout_s: float | None = None) -> Frame | None:
        """The newest frame that was not delivered yet; safe from any thread.

        Args:
            timeout_s: how long to wait for one; 0 does not wait, None waits until the source is lost.

        Returns:
            The frame, or None where none came in time.

        Raises:
            VideoError: the source is lost.
            ClosedError: the source is closed, or was closed while waiting.
        """
        self._require_open()
        return self._slot.take(timeout_s)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called, on another thread, whenever :meth:`take` may have something new.

        Returns:
            A function that ends this.
        """
        return self._slot.listen(listener)

    def _frames(self) -> Iterator[Frame]:
        limit = self._selection.limit
        for _ in itertools.count() if limit is None else range(limit):
            frame = self.take()
            if frame is not None:
                yield frame
                self._require_open()

    def _release(self) -> None:
        self._keeper.close()
