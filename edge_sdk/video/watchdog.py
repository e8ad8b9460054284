"""When a live source has stalled, how long to wait before it is opened again, and when it is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pydantic import Field

from edge_sdk.settings import Settings


class LiveSettings(Settings):
    """How a live source is watched; times in seconds.

    Args:
        stall_s: without a good frame for this long the source is closed and opened again.
        open_s: an opening that has not delivered its first frame after this long has failed.
        pause_s: wait before the first opening after a stall.
        pause_growth: each further wait is this many times longer.
        max_pause_s: but never longer than this.
        lost_s: without a good frame for this long, openings included, the source is lost for good and whoever reads
            it gets an error; ``inf`` goes on for ever.
    """

    stall_s: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    open_s: float = Field(default=15.0, gt=0, allow_inf_nan=False)
    pause_s: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    pause_growth: float = Field(default=2.0, ge=1, allow_inf_nan=False)
    max_pause_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    lost_s: float = Field(default=300.0, gt=0)


class SourceState(str, Enum):
    """What a live source is doing.

    ``open``: it delivers. ``stalled``: it has stopped or could not be opened, its device is closed and a pause runs.
    ``reopening``: its device is being opened. ``lost``: it will not be opened again.
    """

    open = "open"
    stalled = "stalled"
    reopening = "reopening"
    lost = "lost"


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """A live source has changed its state.

    Attributes:
        uri: which source.
        state: what it is now.
        at_s: when, on the clock of the frames' ``captured_s``.
        attempt: number of the opening that begins, failed or succeeded, counted since the source last kept going; 0 for
            the very first and for a stall of a source that delivered.
        pause_s: the wait that begins (``stalled``) or has just ended (``reopening``); 0 else.
        reason: why, in words; empty for ``open``.
    """

    uri: str
    state: SourceState
    at_s: float
    attempt: int = 0
    pause_s: float = 0.0
    reason: str = ""


OnEvent = Callable[[SourceEvent], None]


class Watchdog:
    """The times and pauses of one source, without threads: told what happened, it says what is due.

    Args:
        settings: the times.
        uri: goes into the events.
        now_s: time of creation, when the first opening begins.
    """

    def __init__(self, settings: LiveSettings, uri: str, now_s: float) -> None:
        self._settings, self._uri = settings, uri
        self.state = SourceState.reopening
        self.reason = ""
        self._attempt = 0
        self._pause_s = settings.pause_s
        self._since_s = self._good_s = now_s

    @property
    def due_s(self) -> float:
        """When :meth:`look` has something to do if nothing happens before; ``inf`` once the source is lost."""
        settings = self._settings
        if self.state is SourceState.lost:
            return float("inf")
        if self.state is SourceState.open:
            return self._good_s + settings.stall_s
        wait_s = settings.open_s if self.state is SourceState.reopening else self._pause_s
        return min(self._since_s + wait_s, self._good_s + settings.lost_s)

    def good_frame(self, now_s: float) -> SourceEvent | None:
        """A frame came; the first one after an opening makes the source ``open``."""
        if self.state not in (SourceState.open, SourceState.reopening):
            return None
        self._good_s = now_s
        if self.state is SourceState.open:
            # Pauses start short again only for a source that has kept going: one that dies at once is no better.
            if now_s - self._since_s >= self._settings.stall_s:
                self._pause_s, self._attempt = self._settings.pause_s, 0
            return None
        return self._become(SourceState.open, now_s, attempt=self._attempt)

    def failed(self, now_s: float, reason: str) -> SourceEvent | None:
        """The device stopped, could not be opened, or did not answer; a pause begins."""
        if self.state not in (SourceState.open, SourceState.reopening):
            return None
        if self._attempt:
            grown_s = self._pause_s * self._settings.pause_growth
            self._pause_s = min(grown_s, self._settings.max_pause_s)
        attempt = self._attempt if self.state is SourceState.reopening else 0
        return self._become(SourceState.stalled, now_s, attempt=attempt, pause_s=self._pause_s, reason=reason)

    def look(self, now_s: float) -> SourceEvent | None:
        """What has fallen due by ``now_s``: a stall, the end of a pause, the end of hope; None where nothing has."""
        if now_s < self.due_s:
            return None
        settings = self._settings
        if self.state is SourceState.open:
            return self.failed(now_s, f"no frame for {settings.stall_s:g} s")
        if now_s >= self._good_s + settings.lost_s:
            reason = f"no frame for {settings.lost_s:g} s and {self._attempt} openings; {self.reason}"
            return self._become(SourceState.lost, now_s, attempt=self._attempt, reason=reason)
        if self.state is SourceState.reopening:
            return self.failed(now_s, f"no answer within {settings.open_s:g} s of opening")
        self._attempt += 1
        return self._become(
            SourceState.reopening, now_s, attempt=self._attempt, pause_s=self._pause_s, reason=self.reason
        )

    def _become(
        self, state: SourceState, now_s: float, *, attempt: int = 0, pause_s: float = 0.0, reason: str = ""
    ) -> SourceEvent:
        self.state, self.reason, self._since_s = state, reason, now_s
        return SourceEvent(self._uri, state, now_s, attempt, pause_s, reason)
