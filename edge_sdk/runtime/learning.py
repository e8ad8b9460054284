"""What a stream knows of learning: somebody decides about keyframes, sees their answers, and brings new engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_sdk.runtime.engine import BoundStep, Engine
from edge_sdk.runtime.schedule import Schedule
from edge_sdk.video.frame import Truth

if TYPE_CHECKING:
    from edge_sdk.runtime.stream import Stream


@dataclass(frozen=True, slots=True, eq=False)
class NewEngines:
    """Engines with new weights, bound to a stream's buffers and run at least once; see ``Stream.bind_new``.

    Args:
        keyframes: one binding a bank of state; None where the keyframe step stays as it is.
        deltas: one binding a bank and slot.
        bank: the bank that the new keyframe step has written from the last keyframe's frame; None without state.
        keyframe_seq: that frame's number.
        epoch: which of the runner's streams, counted by resets, that frame was of.
        engines: what is bound, for whoever closes it.
    """

    keyframes: tuple[BoundStep, ...] | None
    deltas: tuple[tuple[BoundStep, ...], ...]
    bank: int | None
    keyframe_seq: int
    epoch: int
    engines: tuple[Engine, ...]


class Learning(Protocol):
    """One stream's learner, as the stream sees it. All calls come from the thread that runs the frames.

    Attributes:
        schedule: decides about keyframes in place of the bundle's.
    """

    schedule: Schedule

    def attach(self, stream: Stream) -> None:
        """The stream is ready; new engines are to be bound to its buffers."""
        ...

    def collect(self) -> NewEngines | None:
        """New engines that are ready to be used from this frame on; never waits, unless learning is in turn."""
        ...

    def took(self, engines: NewEngines) -> None:
        """The stream uses ``engines`` from now on; those of before are of no use to it any more."""
        ...

    def label(self, seq: int, truth: Truth | None) -> np.ndarray | None:
        """A recorded teacher's answer to a keyframe, (H, W) uint8; None where the keyframe step is to be run."""
        ...

    def keyframe(self, seq: int, image: np.ndarray, mask: np.ndarray) -> bool:
        """A keyframe was answered; both arrays are copied where they are wanted.

        Args:
            seq: the frame's number.
            image: (H, W, 3) uint8 BGR.
            mask: (H, W) uint8, the teacher's.

        Returns:
            Whether the student, with what it has just learned, is to answer this frame in the teacher's place.
        """
        ...

    def reset(self) -> None:
        """A new stream begins; weights stay as they are."""
        ...

    def close(self) -> None:
        """End learning; closing twice does nothing."""
        ...
