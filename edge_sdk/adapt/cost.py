"""What answering a stream costs: by the published model, and by times that were measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edge_sdk.settings import Settings

Milliseconds = Annotated[float, Field(gt=0)]


class Cost(Settings):
    """A sum over a stream.

    Args:
        total_ms: in milliseconds.
        speedup: the teacher's own sum, on every frame, over this one.
    """

    total_ms: Milliseconds
    speedup: float = Field(gt=0)


class CostModel(Settings):
    """What one pass of each kind takes, in milliseconds; the defaults are the published ones, of a V100.

    Args:
        student_ms: one frame by the student.
        teacher_ms: one frame by the teacher.
        update_ms: one update of the student.
    """

    student_ms: Milliseconds = 7.0
    teacher_ms: Milliseconds = 300.0
    update_ms: Milliseconds = 30.0

    def cost(self, frames: int, teacher_frames: int, updates: int) -> Cost:
        """Of ``frames`` frames, of which the teacher answered some and the student the others."""
        return summed(
            frames,
            teacher_frames,
            teacher_ms=self.teacher_ms,
            between_ms=self.student_ms,
            learning_ms=updates * self.update_ms,
        )


def summed(
    frames: int, teacher_frames: int, *, teacher_ms: float, between_ms: float, learning_ms: float = 0.0
) -> Cost:
    """The cost of a stream by times of any kind: (N - n) between + n teacher + learning.

    Args:
        frames, teacher_frames: N and n.
        teacher_ms, between_ms: a frame that the teacher answers, and one of the others.
        learning_ms: all lessons together.
    """
    total = (frames - teacher_frames) * between_ms + teacher_frames * teacher_ms + learning_ms
    return Cost(total_ms=total, speedup=frames * teacher_ms / total)


PUBLISHED = CostModel()
