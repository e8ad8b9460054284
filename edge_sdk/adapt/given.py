"""Copies of the frames that lessons are about: the stream goes on writing its own."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A lesson that the stream has given.

    Args:
        seq: the teacher frame's number.
        image: (H, W, 3) uint8 BGR; stays as it is until the lesson after the next one is given.
        label: (H, W) uint8, the teacher's mask; stays until the next lesson is given.
        frame: how many frames the stream had until then, this one counted.
        epoch: which of the runner's streams it was, counted by resets.
    """

    seq: int
    image: np.ndarray
    label: np.ndarray
    frame: int
    epoch: int

    def seq_of(self, frame: int) -> int:
        """Number of the frame that comes after ``frame`` frames, where none was lost since."""
        return self.seq + 1 + max(0, frame - self.frame)


class FrameCopies:
    """Memory for frames, allocated once.

    Args:
        size_hw: height and width.
        keyframes: keep the last keyframe's image too.
    """

    def __init__(self, size_hw: tuple[int, int], keyframes: bool) -> None:
        # The probe still needs the lesson before: two take turns.
        self._images = tuple(np.zeros((*size_hw, 3), np.uint8) for _ in range(2))
        self._label = np.zeros(size_hw, np.uint8)
        self._last = np.zeros((*size_hw, 3), np.uint8) if keyframes else None
        self._last_seq = -1
        self._lock = threading.Lock()  # between who answers keyframes and who binds new engines
        self._turn = 0

    def keyframe(self, seq: int, image: np.ndarray) -> None:
        """A keyframe was answered."""
        with self._lock:
            self._last_seq = seq
            if self._last is not None:
                np.copyto(self._last, image)

    @property
    def any_keyframe(self) -> bool:
        """Whether there was one."""
        return self._last_seq >= 0

    def last_keyframe(self) -> tuple[int, np.ndarray]:
        """Number and a copy of the last keyframe's image; -1 and zeros before the first, or where they are not kept."""
        with self._lock:
            return self._last_seq, self._images[0] if self._last is None else self._last.copy()

    def give(self, seq: int, image: np.ndarray, label: np.ndarray, frame: int, epoch: int) -> Given:
        """A lesson with copies of both arrays."""
        copied = self._images[self._turn]
        self._turn = 1 - self._turn
        np.copyto(copied, image)
        np.copyto(self._label, label)
        return Given(seq, copied, self._label, frame, epoch)
