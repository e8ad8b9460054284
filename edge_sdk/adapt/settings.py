"""Settings of online distillation: a student that learns on its stream (JITNet, ICCV 2019, arXiv 1812.02699).

Where the paper, the authors' scripts and later implementations differ, each variant has a name here; docs/online.md
says why the defaults are what they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.settings import Settings

Positive = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Byte = Annotated[int, Field(ge=0, le=255)]
# Factories that a bundle may name by itself. Any other comes from the user: a factory is code that is run.
OWN_FACTORIES = ("edge_sdk.distill.models:",)


class StrideSettings(Settings):
    """How far apart teacher frames are.

    Args:
        minimum, maximum: frames from teacher frame to teacher frame; the stride begins at the minimum, is doubled where
            the student agrees and halved where it does not. Published: 8 and 64.
        due: ``modulo``: frame t is a teacher frame where ``t % stride == 0``, as in the paper's listing; ``ahead``: the
            next one is ``stride`` frames after the last, as in a later implementation.
        change: beyond the paper: a teacher frame also where the picture differs from the last teacher frame's by more
            than this, as a mean of absolute differences of luma in grey levels, and that one is ``minimum`` frames back
            or more. At a fixed camera an empty scene makes the stride long, and what then enters would go unseen. None
            for no such frames.
    """

    minimum: Positive = 8
    maximum: Positive = 64
    due: Literal["modulo", "ahead"] = "modulo"
    change: Annotated[float, Field(gt=0, le=255)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> StrideSettings:
        if self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is below minimum {self.minimum}")
        return self


class AgreementSettings(Settings):
    """How well the student's mask agrees with the teacher's, 0 to 1.

    Args:
        measure: ``mean_iou`` over the classes that either mask has, or ``min_iou``, the worst of them (the authors'
            training loop).
        background: whether class 0 counts.
        smoothing_pixels: added to every intersection and union (the authors' loop: 100), so that a class of few pixels
            moves the figure less.
    """

    measure: Literal["mean_iou", "min_iou"] = "mean_iou"
    background: bool = False
    smoothing_pixels: Annotated[float, Field(ge=0)] = 0.0


class OnlineLoss(Settings):
    """The loss of one update: pixel cross entropy, higher inside the teacher's boxes.

    Args:
        kind: ``cross_entropy``, or ``focal`` (gamma 2, 1 - p between 0.1 and 0.9, times 10; the authors' variant).
        box_weight: weight of a pixel inside a box against one outside; 5 as published, 1 for no boxes.
        box_margin: each box is enlarged by this share of its height and width on every side.
        box_least: boxes of fewer pixels than this are noise and get no weight.
        box_most: boxes of more than this share of the frame are scenery, such as ground, and get no weight.
    """

    kind: Literal["cross_entropy", "focal"] = "cross_entropy"
    box_weight: Annotated[float, Field(ge=1)] = 5.0
    box_margin: Share = 0.15
    box_least: Annotated[int, Field(ge=0)] = 16
    box_most: Share = 1.0


class OnlineOptimiser(Settings):
    """Stochastic gradient descent at a constant rate.

    Args:
        lr, momentum, nesterov, weight_decay: as published: 0.01, 0.9, off in the timed script, 4e-5.
        clip_norm: largest gradient norm; None does not clip, as published.
    """

    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 4e-5
    clip_norm: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _momentum(self) -> OnlineOptimiser:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class MemorySettings(Settings):
    """Past teacher frames that are learned again, against forgetting; not in the paper.

    Args:
        frames: how many are kept; once full, a new one takes the place of a random one (reservoir sampling).
        per_update: how many are drawn for each update, beside the newest frame.
    """

    frames: Positive = 32
    per_update: Positive = 1


class DriftSettings(Settings):
    """When to raise an alarm.

    Args:
        drop: the agreement before learning is lower than its running mean by this.
        mean_over: teacher frames that the running mean reaches back, as an exponential average.
        stuck_after: so many teacher frames in a row stayed below the threshold after all updates.
    """

    drop: Share = 0.2
    mean_over: Positive = 10
    stuck_after: Positive = 5


class ProbeSettings(Settings):
    """What new weights must show on the last teacher frame before they answer a frame of the stream.

    Args:
        drop: largest loss of agreement with the teacher against the weights in use.
        differing: largest share of pixels in which the engine and the trainer, with the same weights, may differ.
    """

    drop: Share = 0.0
    differing: Share = 0.02


class AdaptSettings(Settings):
    """How a runner lets its student learn: ``EdgeRunner(bundle, adapt=AdaptSettings())``.

    Args:
        threshold: agreement from which the student is good enough; published 0.7, 0.8 and 0.9.
        max_updates: optimiser steps a teacher frame at most; published 8.
        order: ``test_first`` measures the agreement before each update, so a frame may need none (the paper's listing);
            ``step_first`` always makes at least one (the authors' loop).
        stride, agreement, loss, optimiser: the algorithm's parts.
        memory: past teacher frames; None, as published, learns from the newest only.
        drift: alarms.
        probe: what new weights must show.
        answer: what a teacher frame is answered with: the ``teacher``'s output, or, with ``pace="in_turn"``, that of
            the ``student`` after its updates (the paper's listing).
        pace: ``beside``: frames go on while the trainer learns; ``in_turn``: every frame waits for the updates of the
            teacher frame before it, as in the paper: for benchmarks, the same every time.
        swap: ``engine``: a new engine is prepared beside the stream and taken between two frames; ``refit``: only the
            layers learn that the bundle leaves open, and their weights alone are exchanged.
        cores: CPU cores that learning may use; frames have the others.
        teacher: folder of recorded masks, one a frame in natural order of names, in place of the bundle's teacher; None
            for the bundle's own.
        teacher_labels: class ids by value of those masks, such as ``{255: 1}``; values not named stay as they are.
        truth: take the labels that the source carries as the teacher's, where it carries any.
        state: folder for weights, stride and log, so that a restart goes on from there; None keeps nothing.
        resume: go on from ``state`` where there is something; False starts over.
        factories: prefixes of ``package.module:function`` names that a bundle may have run to make its networks.
        restarts: how often the trainer's process is started again after it died, within ``restart_window_s``.
        restart_window_s: see ``restarts``, in seconds.
        precision: of the trainer's layers; ``bfloat16`` takes two thirds of the time on CPUs with instructions for it
            (AVX512-BF16, AMX), and the trainer's masks then differ a little from the engine's.
        seed: for the draws from the memory.
    """

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    max_updates: Positive = 8
    order: Literal["test_first", "step_first"] = "test_first"
    stride: StrideSettings = StrideSettings()
    agreement: AgreementSettings = AgreementSettings()
    loss: OnlineLoss = OnlineLoss()
    optimiser: OnlineOptimiser = OnlineOptimiser()
    memory: MemorySettings | None = None
    drift: DriftSettings = DriftSettings()
    probe: ProbeSettings = ProbeSettings()
    answer: Literal["teacher", "student"] = "teacher"
    pace: Literal["beside", "in_turn"] = "beside"
    swap: Literal["engine", "refit"] = "engine"
    cores: Positive = 1
    teacher: Path | None = None
    teacher_labels: dict[Byte, Byte] = Field(default_factory=dict)
    truth: bool = False
    state: Path | None = None
    resume: bool = True
    factories: tuple[str, ...] = OWN_FACTORIES
    restarts: Annotated[int, Field(ge=0)] = 5
    restart_window_s: Annotated[float, Field(gt=0)] = 600.0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> AdaptSettings:
        if self.answer == "student" and self.pace != "in_turn":
            raise ValueError("answer 'student' needs pace 'in_turn': the frame has to wait for the updates")
        if self.teacher is not None and self.truth:
            raise ValueError("give either 'teacher' or 'truth', not both")
        if self.teacher_labels and self.teacher is None:
            raise ValueError("'teacher_labels' is about the masks of 'teacher', and there are none")
        return self

    @property
    def recorded(self) -> bool:
        """Whether the labels were recorded, so that the bundle's teacher is not run."""
        return self.truth or self.teacher is not None
