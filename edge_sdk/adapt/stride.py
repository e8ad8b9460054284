"""How often the teacher runs: a stride that doubles where the student agrees with it and halves where it does not.

:func:`begin`, :func:`is_teacher`, :func:`next_frame` and :func:`learned` are the published schedule as pure functions
of a :class:`StrideState`; :class:`StrideSchedule` is what a stream asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edge_sdk.adapt.settings import StrideSettings
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import sampled_luma

# Pixels from sample to sample where pictures are compared.
_SAMPLED = 16


@dataclass(frozen=True)
class StrideState:
    """Where a schedule stands, between two frames.

    Args:
        stride: frames from teacher frame to teacher frame.
        frame: number t of the next frame; frames are counted as they arrive, from 0.
        due: a teacher frame is owed: one came due and was put off.
        last: number of the last teacher frame that was learned from; None before the first.
    """

    stride: int
    frame: int = 0
    due: bool = False
    last: int | None = None

    def __post_init__(self) -> None:
        if self.stride < 1 or self.frame < 0:
            raise ValueError(f"expected a stride of at least 1 and a frame of at least 0, got {self}")
        if self.last is not None and not 0 <= self.last < self.frame:
            raise ValueError(f"expected the last teacher frame before frame {self.frame}, got {self.last}")


def begin(settings: StrideSettings) -> StrideState:
    """The state before frame 0."""
    return StrideState(settings.minimum)


def is_teacher(settings: StrideSettings, state: StrideState, *, changed: bool = False) -> bool:
    """Whether frame ``state.frame`` is to be answered by the teacher and learned from.

    Args:
        settings: of the schedule.
        state: before that frame.
        changed: whether its picture has changed since the last teacher frame, see ``StrideSettings.change``.
    """
    if state.due:
        return True
    if changed and (state.last is None or state.frame >= state.last + settings.minimum):
        return True
    if settings.due == "modulo":
        return state.frame % state.stride == 0
    # Not ==: what was learned beside the stream may shorten the stride to one that has passed already.
    return state.last is None or state.frame >= state.last + state.stride


def next_frame(
    settings: StrideSettings, state: StrideState, *, teacher: bool, changed: bool = False
) -> StrideState:
    """The state after frame ``state.frame``.

    Args:
        settings: of the schedule.
        state: before that frame.
        teacher: whether the teacher answered it and it is learned from. Where it is not although
            :func:`is_teacher` said so, the teacher frame stays owed.
        changed: as it was told to :func:`is_teacher`.
    """
    if teacher:
        return replace(state, frame=state.frame + 1, due=False, last=state.frame)
    return replace(state, frame=state.frame + 1, due=is_teacher(settings, state, changed=changed))


def learned(settings: StrideSettings, threshold: float, state: StrideState, agreement: float) -> StrideState:
    """The state once a teacher frame was learned from.

    An agreement of just the threshold halves the stride, as published, and so does NaN.

    Args:
        settings: of the schedule.
        threshold: see :class:`~edge_sdk.adapt.settings.AdaptSettings`.
        state: at any time after that frame.
        agreement: after the frame's last update, 0 to 1.
    """
    if agreement > threshold:
        return replace(state, stride=min(2 * state.stride, settings.maximum))
    return replace(state, stride=max(state.stride // 2, settings.minimum))


def _idle() -> bool:
    return False


class StrideSchedule:
    """One stream's keyframes, by agreement; a :class:`~edge_sdk.runtime.schedule.Schedule`.

    :meth:`observe` may come from another thread than :meth:`decide`; it has to come before ``busy`` is False again,
    else a decision in between is made by the old stride.

    Args:
        settings: of the stride.
        threshold: agreement above which the stride is doubled.
        busy: whether a lesson is under way. A teacher frame that comes due meanwhile is put off until it is over, and a
            keyframe that the stream needs for other reasons is answered but is no teacher frame of this schedule.
    """

    def __init__(self, settings: StrideSettings, threshold: float, busy: Callable[[], bool] = _idle) -> None:
        self._settings = settings
        self._threshold = threshold
        self._busy = busy
        self._lock = threading.Lock()
        self._state = begin(settings)
        self._teaches = False
        self._seen: np.ndarray | None = None  # luma of the last teacher frame

    def decide(self, image: np.ndarray, age: int | None) -> StepKind:
        """Decide for the next frame, see :meth:`edge_sdk.runtime.schedule.Schedule.decide`; never a skip."""
        busy = self._busy()
        luma, changed = self._compared(image)
        with self._lock:
            asked = age is None or is_teacher(self._settings, self._state, changed=changed)
            self._teaches = asked and not busy
            self._state = next_frame(self._settings, self._state, teacher=self._teaches, changed=changed)
        if self._teaches:
            self._seen = luma
        return StepKind.KEYFRAME if self._teaches or age is None else StepKind.DELTA

    def lost(self, frames: int) -> bool:
        """Frames were lost: the next one is the teacher's."""
        return False

    def _compared(self, image: np.ndarray) -> tuple[np.ndarray | None, bool]:
        """The picture's luma where it is of use, and whether it has changed since the last teacher frame."""
        least = self._settings.change
        if least is None:
            return None, False
        luma = sampled_luma(image, _SAMPLED)
        return luma, self._seen is not None and float(np.abs(luma - self._seen).mean()) > least

    @property
    def teaches(self) -> bool:
        """Whether the frame last decided about is one to learn from; a keyframe that came while busy is none."""
        return self._teaches

    def observe(self, agreement: float) -> int:
        """A teacher frame was learned from; returns the stride from now on.

        Args:
            agreement: after its last update.
        """
        with self._lock:
            self._state = learned(self._settings, self._threshold, self._state, agreement)
            return self._state.stride

    @property
    def state(self) -> StrideState:
        """Where the schedule stands; to be kept and given to :meth:`restore`."""
        return self._state

    def restore(self, state: StrideState) -> None:
        """Go on from ``state``; a stride that the settings do not allow becomes the nearest that they do."""
        stride = min(max(state.stride, self._settings.minimum), self._settings.maximum)
        with self._lock:
            self._state = replace(state, stride=stride)

    def reset(self) -> None:
        """A new stream begins: frame 0 at the smallest stride."""
        with self._lock:
            self._state = begin(self._settings)
        self._seen = None
