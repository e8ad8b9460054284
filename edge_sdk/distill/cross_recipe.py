"""Settings of ``edge-sdk distill`` with ``kind: cross``: a student of smaller frames under the teacher's keyframes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.distill.recipes import (
    Augment,
    LoopSettings,
    ModuleSettings,
    Optimiser,
    PairData,
    Positive,
    Preprocess,
    TaskLoss,
)
from edge_sdk.settings import Settings
from edge_sdk.tasks.base import TaskSpec

Join = Literal["correct", "replace"]
Weight = Annotated[float, Field(ge=0)]


class CrossLoss(Settings):
    """Weights of the losses: total = task + alone * alone + features * features.

    Args:
        task: of the pair's answer to the later frame of each pair.
        alone: weight of the same loss of the student's own answer to the later frame, before it is corrected. It keeps
            the student able to stand by itself where the keyframe no longer helps. Nothing with join ``replace``.
        features: weight of the mean squared difference of the features at ``feature_at``, the student's drawn up to
            the teacher's size, over both frames of a pair (arXiv 2209.12797, where it is 100 on the last stage's maps).
        feature_at: name of a module of both networks, which must be equally wide there.
    """

    task: TaskLoss = TaskLoss(source="both")
    alone: Weight = 0.5
    features: Weight = 0.0
    feature_at: str = ""

    @model_validator(mode="after")
    def _place_named(self) -> CrossLoss:
        if self.features > 0 and not self.feature_at:
            raise ValueError("'features' needs 'feature_at', the name of a module of both networks")
        return self


class CrossRecipe(Settings):
    """``edge-sdk distill`` with ``kind: cross``: a student of smaller frames under the teacher's keyframes.

    Args:
        out: folder for checkpoints and the result, ``student.pt``.
        teacher: the trained network; it answers keyframes at full resolution and stays as it is.
        student: another trained network to begin from; None begins with a copy of the teacher.
        scale: share of each side that the student sees. The frame is drawn down inside the graph.
        multiple: the student's sides are rounded up to multiples of this; those of the networks' stride keep the
            places of both networks' answers in line.
        join: ``correct``: the keyframe's residual corrects the student; ``replace``: the student answers alone, without
            state.
        confidence: channels of the convolution that learns where the correction holds; 0 learns two numbers only.
        data: pairs of frames.
        validation: labelled sources of consecutive frames; measured at every interval in ``intervals``.
    """

    kind: Literal["cross"]
    out: Path
    teacher: ModuleSettings
    task: TaskSpec
    student: ModuleSettings | None = None
    scale: Annotated[float, Field(gt=0, lt=1)] = 0.5
    multiple: Positive = 8
    join: Join = "correct"
    confidence: Annotated[int, Field(ge=0)] = 16
    data: PairData
    validation: tuple[str, ...] = ()
    intervals: tuple[Positive, ...] = (5, 10)
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment(scale=(1.0, 1.6))
    loss: CrossLoss = CrossLoss()
    optimiser: Optimiser = Optimiser()
    loop: LoopSettings
