"""Time as a run sees it: milliseconds since its beginning. Tests put a simulated clock in its place."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a run takes its time from.

    Attributes:
        origin_s: the run's beginning on the clock of frames, ``time.monotonic()``.
    """

    origin_s: float

    def now_ms(self) -> float:
        """Milliseconds since the beginning of the run."""
        ...

    def sleep_until_ms(self, at_ms: float) -> None:
        """Wait as a program does that waits for its camera; returns at once where the moment has passed."""
        ...


class SystemClock:
    """The machine's monotonic clock; the run begins where it is made."""

    def __init__(self) -> None:
        self.origin_s = time.monotonic()

    def now_ms(self) -> float:
        """Milliseconds since the beginning of the run."""
        return (time.monotonic() - self.origin_s) * 1e3

    def sleep_until_ms(self, at_ms: float) -> None:
        """Sleep; what the system adds to it is part of the frame's wait, as it is in an application."""
        left_ms = at_ms - self.now_ms()
        if left_ms > 0:
            time.sleep(left_ms / 1e3)
