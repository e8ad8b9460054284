"""The newest frame of a live source, numbered and counted, from the thread that reads to whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.errors import EdgeSdkError
from edge_sdk.video.base import Selection
from edge_sdk.video.frame import Frame


@dataclass(frozen=True, slots=True)
class SourceStats:
    """What became of a live source's frames since the first one was asked for.

    ``received`` is the sum of ``delivered``, ``dropped``, ``corrupt`` and at most one frame that waits. Every dropped
    or corrupt frame, and every reconnection, leaves a gap of one in ``seq``.

    Attributes:
        received: frames that came, without those left out on request (``start``, ``stride``).
        delivered: frames given to the consumer.
        dropped: frames that a newer one replaced before the consumer asked.
        corrupt: frames that could not be decoded, or of another shape.
        stalls: times that the source stopped delivering.
        reconnects: times that it was opened again and delivered.
        age_ms: from capture to delivery of the frame that was delivered last; None before the first.
    """

    received: int = 0
    delivered: int = 0
    dropped: int = 0
    corrupt: int = 0
    stalls: int = 0
    reconnects: int = 0
    age_ms: float | None = None


class NewestSlot:
    """Holds one frame: a newer one replaces it, taking it empties the slot. Safe from any thread.

    Args:
        selection: which frames are wanted; its ``limit`` is the consumer's affair.
        clock: seconds, that of ``captured_s``.
    """

    def __init__(self, selection: Selection, clock: Callable[[], float]) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._clock = clock
        self._stride = selection.stride
        self._until_wanted = selection.start
        self._asked = False
        self._seq = 0
        self._frame: Frame | None = None
        self._end: EdgeSdkError | None = None
        self._listeners: list[Callable[[], None]] = []
        self._received = self._delivered = self._dropped = self._corrupt = 0
        self.stalls = self.reconnects = 0
        self._age_ms: float | None = None

    def admit(self) -> int | None:
        """A frame was grabbed: its ``seq``, or None where nobody wants it.

        Frames that come before anybody asks are not wanted: a stream begins when its first frame is asked for.
        """
        with self.lock:
            if not self._asked:
                return None
            if self._until_wanted:
                self._until_wanted -= 1
                return None
            self._until_wanted = self._stride - 1
            self._seq += 1
            return self._seq - 1

    def put(self, frame: Frame) -> None:
        """Leave an admitted frame for whoever asks next."""
        with self.lock:
            self._received += 1
            self._dropped += self._frame is not None
            self._frame = frame
            self._changed.notify_all()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def spoiled(self) -> int:
        """An admitted frame is corrupt; how many have been so far."""
        with self.lock:
            self._received += 1
            self._corrupt += 1
            return self._corrupt

    def interrupted(self) -> None:
        """Frames were lost that nobody counted: leave a gap in ``seq``."""
        with self.lock:
            if self._seq:
                self._seq += 1
                self._until_wanted = 0

    def end(self, error: EdgeSdkError) -> None:
        """No more frames will come; whoever waits or asks from now on gets ``error``. The first end counts."""
        with self.lock:
            if self._end is None:
                self._end = error
            self._changed.notify_all()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def take(self, timeout_s: float | None) -> Frame | None:
        """The newest frame that nobody has taken, waiting for one; None where the time is over.

        Raises:
            EdgeSdkError: the source has ended, and its last frame is taken.
        """
        with self.lock:
            self._asked = True
            self._changed.wait_for(lambda: self._frame is not None or self._end is not None, timeout_s)
            frame, self._frame = self._frame, None
            if frame is None:
                if self._end is not None:
                    raise self._end.with_traceback(None)
                return None
            self._delivered += 1
            self._age_ms = (self._clock() - frame.captured_s) * 1e3
            return frame

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener``, which must be quick, after every change, on the thread that made it.

        Returns:
            A function that ends this.
        """
        with self.lock:
            self._listeners.append(listener)

        def end() -> None:
            with self.lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return end

    @property
    def stats(self) -> SourceStats:
        """The counts so far."""
        with self.lock:
            return SourceStats(
                self._received,
                self._delivered,
                self._dropped,
                self._corrupt,
                self.stalls,
                self.reconnects,
                self._age_ms,
            )
