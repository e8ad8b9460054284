"""Keyframes where the state has drifted: the delta step itself tells how much of its keyframe still holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field, model_validator

from edge_sdk.runtime.result import StepKind
from edge_sdk.settings import Settings

if TYPE_CHECKING:
    from edge_sdk.runtime.schedule import Schedule


@runtime_checkable
class ToldSchedule(Protocol):
    """A :class:`~edge_sdk.runtime.schedule.Schedule` that wants to hear what the delta steps tell."""

    def told(self, trust: float, age: int) -> None:
        """A delta step was run; called after every one, before the next decision.

        Args:
            trust: how much of the keyframe still holds, 0 to 1, as the step tells it.
            age: frames since that keyframe. The next decision is about the same state where its age is one more;
                otherwise a keyframe has been taken over meanwhile.
        """
        ...


class DriftSchedule(Settings):
    """A keyframe where the last delta step trusted its keyframe too little.

    The delta step must have an output ``trust``, as that of a pair with a confidence has. A quiet scene keeps its state
    for as long as it holds, a busy one gets keyframes; no picture is looked at. The keyframe comes one frame after the
    trust fell, because only a delta step finds out.

    Args:
        below: trust under which the next frame is a keyframe, 0 to 1. A trust that is no number counts as 0.
        min_interval: frames from keyframe to keyframe at least, whatever the trust.
        max_interval: frames from keyframe to keyframe at most; None for no limit.
    """

    kind: Literal["drift"] = "drift"
    below: float = Field(gt=0, le=1)
    min_interval: int = Field(default=1, ge=1)
    max_interval: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> DriftSchedule:
        if self.max_interval is not None and self.max_interval < self.min_interval:
            raise ValueError(f"max_interval {self.max_interval} is below min_interval {self.min_interval}")
        return self

    @property
    def uses_delta(self) -> bool:
        """Whether a delta step may be asked for."""
        return self.max_interval != 1

    def start(self) -> Schedule:
        """A fresh schedule for one stream."""
        return _Drift(self)


class _Drift:
    def __init__(self, settings: DriftSchedule) -> None:
        self._settings = settings
        self._drifted_at: int | None = None  # age of the state when it was last told to be untrusted

    def decide(self, image: np.ndarray, age: int | None) -> StepKind:
        # Of a state that was taken over since, nothing has been told yet.
        drifted = self._drifted_at is not None and age == self._drifted_at + 1
        settings = self._settings
        if age is None or (settings.max_interval is not None and age >= settings.max_interval):
            return StepKind.KEYFRAME
        return StepKind.KEYFRAME if drifted and age >= settings.min_interval else StepKind.DELTA

    def told(self, trust: float, age: int) -> None:
        # Not "trust < below": NaN is no trust at all.
        self._drifted_at = None if trust >= self._settings.below else age

    def lost(self, frames: int) -> bool:
        """How far the picture went on meanwhile, no delta step has told."""
        return False

    def reset(self) -> None:
        self._drifted_at = None
