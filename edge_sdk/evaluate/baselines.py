"""What a user would do without a delta step: keep the last keyframe's mask, or move it along optical flow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.evaluate.flow import FlowWarp
from edge_sdk.evaluate.metrics import Planned
from edge_sdk.runtime.result import StepKind
from edge_sdk.tasks import Segmentation

if TYPE_CHECKING:
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.video.frame import Frame


def copied(plan: Sequence[Planned], teacher: Sequence[Segmentation]) -> Iterator[tuple[Planned, np.ndarray]]:
    """Every frame gets the teacher's mask of its keyframe, (H, W) uint8."""
    for planned in plan:
        yield planned, teacher[planned.key].mask


def flowed(
    plan: Sequence[Planned], teacher: Sequence[Segmentation], images: Sequence[np.ndarray]
) -> Iterator[tuple[Planned, np.ndarray]]:
    """Every frame gets the teacher's mask of its keyframe, warped by flow between the two.

    Flow is always taken directly from the frame to its keyframe: chaining it would add up rounding and drift.

    Args:
        plan: of :func:`edge_sdk.evaluate.metrics.plan`.
        teacher: the teacher's mask per frame.
        images: (H, W, 3) uint8 BGR frames.
    """
    flow = FlowWarp()
    known = np.empty(0, np.uint8)
    for planned in plan:
        mask = teacher[planned.key].mask
        if planned.distance == 0:
            known = flow.grey(images[planned.index])
            yield planned, mask
        else:
            yield planned, flow.warp(mask, flow.lookup(flow.grey(images[planned.index]), known))


class FlowRunner:
    """The flow baseline as it would run on a device, for timing.

    Args:
        runner: runs the teacher on every frame that it is given.
        interval: frames from keyframe to keyframe, with keyframes at 0, K, 2K, ...
    """

    def __init__(self, runner: EdgeRunner, interval: int) -> None:
        self._runner = runner
        self._interval = interval
        self._flow = FlowWarp()
        self._mask = self._known = np.empty(0, np.uint8)
        self._count = 0

    def warm_up(self, frame: Frame) -> None:
        """Let OpenCV set up its threads and buffers outside the statistics."""
        grey = self._flow.grey(frame.image)
        self._flow.warp(grey, self._flow.lookup(grey, grey))

    def reset(self) -> None:
        """Start a new pass."""
        self._runner.reset()
        self._count = 0

    def __call__(self, frame: Frame) -> tuple[np.ndarray, StepKind, float]:
        """One frame.

        Returns:
            The mask, (H, W) uint8; what was done (a warp is a skip: no graph ran); milliseconds in all.
        """
        began = time.perf_counter()
        due = self._count % self._interval == 0
        self._count += 1
        if due:
            # The mask is a view of the runner's memory, which is not written before the next keyframe.
            mask = self._mask = self._runner(frame).mask
            self._known = self._flow.grey(frame.image)
        else:
            mask = self._flow.warp(self._mask, self._flow.lookup(self._flow.grey(frame.image), self._known))
        elapsed_ms = (time.perf_counter() - began) * 1e3
        return mask, StepKind.KEYFRAME if due else StepKind.SKIP, elapsed_ms
