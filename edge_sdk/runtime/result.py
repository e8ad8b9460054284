"""What one call of the runner returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.tasks.base import Prediction, Segmentation

if TYPE_CHECKING:
    from edge_sdk.tasks.base import Task


class StepKind(str, Enum):
    """What was run for a frame."""

    KEYFRAME = "keyframe"
    DELTA = "delta"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Wall-clock time of each stage, in milliseconds; a stage that was not run is 0.

    Args:
        copy_in_ms: frame into the graph's input buffer, and on a GPU from there to the device.
        step_ms: the graph itself, as the backend runs it, launching and waiting included.
        copy_out_ms: outputs from the device to the host; 0 where the host computes.
        decode_ms: outputs to a prediction.
        total_ms: call to result, including the checks and the schedule's decision; at least the sum of the stages.
        gpu_ms: the GPU's own time for the graph, part of ``step_ms``; None where no step was run on a GPU.
    """

    copy_in_ms: float
    step_ms: float
    copy_out_ms: float
    decode_ms: float
    total_ms: float
    gpu_ms: float | None = None


@dataclass(frozen=True, slots=True)
class BareTime:
    """One run of a step with nothing around it.

    Args:
        kind: keyframe or delta.
        wall_ms: start to end of the run in milliseconds, a GPU's copies included.
        gpu_ms: the GPU's own time for the graph; None where the host computes.
    """

    kind: StepKind
    wall_ms: float
    gpu_ms: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The answer for one frame.

    The prediction's arrays are read-only views of the runner's memory: they hold this frame's answer until
    the runner is called again; :meth:`copy` keeps it.

    Args:
        prediction: what the task decoded.
        kind: which step was run.
        seq: the frame's number.
        captured_s: the frame's capture time in seconds, as its source gave it.
        delivered_s: when this result was ready, ``time.monotonic()`` in seconds. Less ``captured_s`` this is
            the age of the answer where the source's clock is the same, as a camera's is.
        state_age: frames since the keyframe that this answer rests on; 0 for a keyframe.
        times: how long each stage took.
        task: the task that decoded the prediction.
        trust: how much of the keyframe still held, 0 to 1, as the delta step told it; None for other steps, and where
            the bundle's delta step does not tell.
    """

    prediction: Prediction
    kind: StepKind
    seq: int
    captured_s: float
    delivered_s: float
    state_age: int
    times: StageTimes
    task: Task
    trust: float | None = None

    @property
    def mask(self) -> np.ndarray:
        """The class ids of a segmentation, (H, W) uint8, read-only.

        Raises:
            TypeError: the task is no segmentation.
        """
        if not isinstance(self.prediction, Segmentation):
            raise TypeError(f"mask: a {self.task.spec.kind} result has none; read result.prediction.")
        return self.prediction.mask

    def plot(self, image_bgr: np.ndarray, alpha: float = 0.5) -> np.ndarray:
        """A new (H, W, 3) uint8 BGR image with the prediction drawn over ``image_bgr``; ``alpha`` in 0-1."""
        return self.task.draw(image_bgr, self.prediction, alpha)

    def copy(self) -> Result:
        """This result with a prediction in memory of its own, valid for as long as it is kept."""
        return replace(self, prediction=self.prediction.copy())
