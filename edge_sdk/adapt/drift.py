"""Alarms: the student fell behind its teacher at once, or learning does not help any more."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from edge_sdk.adapt.settings import DriftSettings
from edge_sdk.settings import Settings


class Alarm(Settings):
    """Something that a person should look at.

    Args:
        cause: ``drop``: before learning, the student agreed with the teacher far less than it used to, so the scene has
            changed; ``stuck``: it stays below the threshold whatever it learns, so it is too small, or the labels
            contradict each other.
        agreement: that raised it, 0 to 1.
        reference: the running mean that it fell below, or the threshold.
        frames: teacher frames that it took: 1 for a drop.
    """

    cause: Literal["drop", "stuck"]
    agreement: float
    reference: float
    frames: int

    @property
    def message(self) -> str:
        """The alarm in words."""
        if self.cause == "drop":
            return (
                f"agreement with the teacher fell to {self.agreement:.3f} "
                f"from {self.reference:.3f} on average: the scene has changed"
            )
        return (
            f"agreement with the teacher stayed below {self.reference:.2f} after learning "
            f"on {self.frames} teacher frames in a row, at last {self.agreement:.3f}"
        )


@dataclass(frozen=True)
class DriftState:
    """What a watch remembers.

    Args:
        mean: running mean of the agreement before learning; meaningless while nothing was ``seen``.
        seen: teacher frames so far.
        below: how many in a row stayed below the threshold.
        dropped: whether the last one was a drop, which is told once.
    """

    mean: float = 0.0
    seen: int = 0
    below: int = 0
    dropped: bool = False


class DriftWatch:
    """Looks at every teacher frame that was learned from; each alarm is raised once, until things are well again."""

    def __init__(self, settings: DriftSettings, state: DriftState | None = None) -> None:
        self._settings = settings
        self._state = state or DriftState()

    @property
    def state(self) -> DriftState:
        """To go on from after a restart."""
        return self._state

    def see(self, before: float, after: float, threshold: float) -> tuple[Alarm, ...]:
        """Look at one lesson.

        Args:
            before: agreement before learning.
            after: agreement after the last update; NaN counts as below everything.
            threshold: see :class:`~edge_sdk.adapt.settings.AdaptSettings`.
        """
        found = (self._drop(before), self._stuck(after, threshold))
        return tuple(alarm for alarm in found if alarm is not None)

    def _drop(self, before: float) -> Alarm | None:
        state, mean = self._state, self._state.mean
        drop = state.seen > 0 and not mean - before <= self._settings.drop
        self._state = replace(state, dropped=drop)
        if math.isfinite(before):
            # A plain mean at first: an exponential one would take long to forget what it began with.
            share = max(1 / self._settings.mean_over, 1 / (state.seen + 1))
            self._state = replace(self._state, mean=mean + share * (before - mean), seen=state.seen + 1)
        if not drop or state.dropped:
            return None
        return Alarm(cause="drop", agreement=before, reference=mean, frames=1)

    def _stuck(self, after: float, threshold: float) -> Alarm | None:
        below = 0 if after >= threshold else self._state.below + 1
        self._state = replace(self._state, below=below)
        if below != self._settings.stuck_after:
            return None
        return Alarm(cause="stuck", agreement=after, reference=threshold, frames=below)
