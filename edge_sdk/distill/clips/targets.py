"""Labels of clips as numbers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from edge_sdk.distill.clips.features import FeatureClip
from edge_sdk.errors import RecipeError
from edge_sdk.tasks.base import TaskSpec


def targets_of(labels: Sequence[str], task: TaskSpec, name: str) -> np.ndarray:
    """A clip's labels as (classes,) float32 of 0 and 1; ``name`` is the clip's, for messages.

    Raises:
        RecipeError: the task is no classification, a label is none of its classes, or there is not one label where it
            needs one.
    """
    if task.kind != "classification":
        raise RecipeError(f"'task.kind': clips are for a classification, got '{task.kind}'.")
    target = np.zeros(len(task.classes), np.float32)
    for label in labels:
        if label not in task.classes:
            near = difflib.get_close_matches(label, task.classes, n=1)
            meant = f" Did you mean '{near[0]}'?" if near else ""
            raise RecipeError(
                f"'task.classes': clip {name} is labelled '{label}', which is none of the {len(task.classes)} "
                f"classes.{meant}",
                hint="Name every class of the labels, in the order of the network's outputs.",
            )
        target[task.classes.index(label)] = 1
    if not task.multi_label and len(labels) != 1:
        raise RecipeError(
            f"'data': expected one label a clip, {name} has {len(labels)}.",
            hint="Set 'task.multi_label' where a clip may be of several classes or of none.",
        )
    return target


def targets_by_number(clip: FeatureClip, task: TaskSpec) -> np.ndarray:
    """The labels of a clip of features, which are positions in the task's classes, as (classes,) float32 of 0 and 1.

    Raises:
        RecipeError: a number that is no position, or what :func:`targets_of` refuses.
    """
    count = len(task.classes)
    for label in clip.labels:
        if not 0 <= label < count:
            raise RecipeError(
                f"'task.classes': clip {clip.name} is labelled {label}, expected 0 to {count - 1}, a position in "
                "the classes.",
                hint="Name every class of the labels; the YouTube-8M of 2018 has 3862, that of 2017 has 4716.",
            )
    return targets_of([task.classes[label] for label in clip.labels], task, clip.name)
