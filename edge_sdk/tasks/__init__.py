"""Tasks: what outputs mean. :func:`task_from_spec` makes the one that a bundle names."""

from __future__ import annotations

from edge_sdk.tasks.base import Classification, Prediction, Score, Segmentation, Task, TaskSpec
from edge_sdk.tasks.classification import ClassificationScore, ClassificationTask
from edge_sdk.tasks.segmentation import ConfusionScore, SegmentationTask

__all__ = [
    "Classification",
    "ClassificationScore",
    "ClassificationTask",
    "ConfusionScore",
    "Prediction",
    "Score",
    "Segmentation",
    "SegmentationTask",
    "Task",
    "TaskSpec",
    "task_from_spec",
]


def task_from_spec(spec: TaskSpec) -> Task:
    """The task that ``spec.kind`` names."""
    return ClassificationTask(spec) if spec.kind == "classification" else SegmentationTask(spec)
