"""Tasks: what outputs mean. :func:`task_from_spec` makes the one that a bundle names."""

from __future__ import annotations

from edge_sdk.tasks.base import Prediction, Score, Segmentation, Task, TaskSpec
from edge_sdk.tasks.segmentation import ConfusionScore, SegmentationTask

__all__ = [
    "ConfusionScore",
    "Prediction",
    "Score",
    "Segmentation",
    "SegmentationTask",
    "Task",
    "TaskSpec",
    "task_from_spec",
]

_TASKS = {"segmentation": SegmentationTask}


def task_from_spec(spec: TaskSpec) -> Task:
    """The task that ``spec.kind`` names."""
    return _TASKS[spec.kind](spec)
