"""Settings of ``edge-sdk distill`` with ``kind: cross``: a smaller network under the teacher's keyframes.

It is smaller because it sees smaller frames, because it is narrower, or both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.distill.recipes import (
    Augment,
    LoopSettings,
    ModuleSettings,
    Norm,
    Optimiser,
    PairData,
    Positive,
    Preprocess,
    Share,
    TaskLoss,
)
from edge_sdk.settings import Settings
from edge_sdk.tasks.base import TaskSpec

Join = Literal["correct", "blend", "replace"]
Weight = Annotated[float, Field(ge=0)]


class CrossLoss(Settings):
    """Weights of the losses: total = task + alone * alone + features * features + motion * motion.

    Args:
        task: of the pair's answer to the later frame of each pair.
        alone: weight of the same loss of the student's own answer to the later frame, before it is corrected. It keeps
            the student able to stand by itself where the keyframe no longer helps. Nothing with join ``replace``.
        features: weight of the mean squared difference of the features at ``feature_at``, the student's drawn up to
            the teacher's size, over both frames of a pair (arXiv 2209.12797, where it is 100 on the last stage's maps).
        feature_at: name of a module of both networks, which must be equally wide there.
        motion: weight of the divergence of the teacher's answer to the later frame from its answer to the earlier one,
            carried by the motion that was seen; it needs no labels. Nothing where motion is not looked for.
    """

    task: TaskLoss = TaskLoss(source="both")
    alone: Weight = 0.5
    features: Weight = 0.0
    feature_at: str = ""
    motion: Weight = 1.0

    @model_validator(mode="after")
    def _place_named(self) -> CrossLoss:
        if self.features > 0 and not self.feature_at:
            raise ValueError("'features' needs 'feature_at', the name of a module of both networks")
        return self


class MotionSettings(Settings):
    """Coarse block motion in the delta step, by which what the keyframe kept is fetched from where it was.

    Args:
        radius: largest motion along each axis, in blocks.
        stride: side of a block, in pixels of the network's input at full size.
        channels: of what is kept of each block, once for each of the (2 radius + 1)^2 shifts.
        feature_at: name of a module of the student whose maps show the motion, such as its last at 1/8 of the frame
            that still keeps details; empty takes its class logits, which show less of it.
        follow: look for motion since the frame before instead of since the keyframe, and add it up. Motion is smaller
            then, so blocks can be; the delta step rewrites a part of its state.
    """

    radius: Annotated[int, Field(ge=1, le=8)] = 2
    stride: Positive = 16
    channels: Positive = 8
    feature_at: str = ""
    follow: bool = False


class CrossRecipe(Settings):
    """``edge-sdk distill`` with ``kind: cross``: a smaller network under the teacher's keyframes.

    Args:
        out: folder for checkpoints and the result, ``student.pt``.
        teacher: the trained network; it answers keyframes at full resolution and stays as it is.
        student: another trained network to begin from; None begins with a copy of the teacher.
        scale: share of each side that the student sees. The frame is drawn down inside the graph; 1 is for a student
            that is smaller in itself.
        multiple: the student's sides are rounded up to multiples of this, for networks that take no others.
        join: ``correct``: the keyframe's residual corrects the student; ``blend``: the student's answer is mixed with
            the last frame's, that of the keyframe at first, for students nearly as good as the teacher; ``replace``:
            the student answers alone, without state.
        confidence: channels of the convolution that learns where the correction holds; 0 learns two numbers only, and
            ``none`` always corrects in full, which ``blend`` cannot.
        motion: fetch the correction from where its place was at the keyframe; None takes it from the same place.
        data: pairs of frames.
        student_lr: learning rate of the student's own weights as a share of the join's; 0 keeps it as it is, the
            statistics of its batch norm too.
        student_norm: ``keep`` leaves those statistics as they are while the student learns, and computes with them. A
            student that was trained to its end loses more by statistics of a few frames of one place than it learns.
        validation: labelled sources of consecutive frames; measured at every interval in ``intervals``.
    """

    kind: Literal["cross"]
    out: Path
    teacher: ModuleSettings
    task: TaskSpec
    student: ModuleSettings | None = None
    scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    multiple: Positive = 1
    join: Join = "correct"
    confidence: Annotated[int, Field(ge=0)] | Literal["none"] = 16
    motion: MotionSettings | None = None
    student_lr: Share = 1.0
    student_norm: Norm = "learn"
    data: PairData
    validation: tuple[str, ...] = ()
    intervals: tuple[Positive, ...] = (5, 10)
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment(scale=(1.0, 1.6))
    loss: CrossLoss = CrossLoss()
    optimiser: Optimiser = Optimiser()
    loop: LoopSettings

    @model_validator(mode="after")
    def _smaller(self) -> CrossRecipe:
        if self.scale == 1 and self.student is None:
            raise ValueError("'scale' 1 needs 'student', a trained network smaller than the teacher")
        if self.join == "replace" and self.motion is not None:
            raise ValueError(
                "'motion' needs join 'correct' or 'blend': without state there is nothing to fetch"
            )
        if self.join == "blend" and self.confidence == "none":
            raise ValueError(
                "join 'blend' needs 'confidence': in full, the keyframe's answer would stay for ever"
            )
        if self.join == "blend" and self.motion is not None and not self.motion.follow:
            raise ValueError(
                "join 'blend' needs 'motion.follow': the last answer is that of the frame before"
            )
        if self.student_lr == 0 and (
            self.join == "replace" or (self.confidence == "none" and not self.motion)
        ):
            raise ValueError("'student_lr' 0 needs a join that learns: 'confidence' or 'motion'")
        if self.motion is None or not self.motion.follow:
            self.data.refuse_between()
        return self
