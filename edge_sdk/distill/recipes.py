"""Settings that every kind of training shares, and those of a network for every frame."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edge_sdk.settings import Settings
from edge_sdk.tasks.base import TaskSpec

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Statistics of batch norm in training.
Norm = Literal["learn", "keep"]
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class ModuleSettings(Settings):
    """Any ``nn.Module``: where it is made and the weights it gets.

    Args:
        factory: ``package.module:function`` returning a module that maps (N, 3, H, W) to class logits.
        arguments: keyword arguments for the factory.
        checkpoint: its weights, a state dict or a file written by ``edge-sdk train``. Only training starts without.
    """

    factory: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    checkpoint: Path | None = None


class Preprocess(Settings):
    """How a camera frame becomes a network input; the same nodes are exported into every step graph.

    Args:
        mean, std: per channel in 0..255 units and in ``order``.
        order: channel order that the network was trained with.
        size_hw: network input size; ``None`` keeps the frame's.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    order: Literal["RGB", "BGR"] = "RGB"
    size_hw: tuple[Positive, Positive] | None = None


class Augment(Settings):
    """Random changes to a training frame; one draw for all frames of a pair.

    Args:
        crop_hw: size of the training crop; ``None`` keeps the frame's size.
        scale: range of the random zoom before cropping.
        flip: chance of a horizontal mirror.
        colour: half-range of random gain and offset, relative to full scale.
        turn: largest rotation either way, in degrees; ``None`` does not rotate. 180 suits a camera that may look from
            any side, such as straight down.
    """

    crop_hw: tuple[Positive, Positive] | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    flip: Share = 0.5
    colour: Share = 0.2
    turn: Annotated[float, Field(gt=0, le=180)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("expected 0 < smallest <= largest in 'scale'")
        return self


class Optimiser(Settings):
    """Optimiser and learning-rate curve.

    Args:
        kind: ``sgd`` (momentum 0.9) or ``adamw``.
        lr: peak learning rate.
        curve: ``poly`` (power 0.9, as published), ``cosine`` or ``constant``; stepped every iteration.
        warmup: share of the steps over which the rate rises from zero.
        clip_norm: largest gradient norm; ``None`` does not clip.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    curve: Literal["poly", "cosine", "constant"] = "poly"
    warmup: Share = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None


class LoopSettings(Settings):
    """What every training shares.

    Args:
        steps: optimiser steps in all.
        batch: frames (or pairs) a step and device.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        validate_every, checkpoint_every: in steps.
        workers: processes that prepare batches.
        devices: devices on this machine; under ``torchrun`` its world is used.
    """

    steps: Positive
    batch: Positive = 4
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    validate_every: Positive = 500
    checkpoint_every: Positive = 100
    workers: Annotated[int, Field(ge=0)] = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Positive = 1
    seed: int = 0


class TaskLoss(Settings):
    """Loss of the segmentation task.

    Args:
        source: ``labels``, the teacher's own ``teacher`` output, or ``both``.
        class_weights: ``none``, or ``log`` for 1 / ln(1.02 + frequency) over the training labels.
        ohem_prob, ohem_keep: keep only pixels whose true class got less than ``ohem_prob``, but at least ``ohem_keep``
            of them; ``None`` keeps all. As published: 0.9 and 131,072 on Cityscapes.
        teacher_weight: weight of the KL divergence from the teacher's output where ``source`` includes it.
        temperature: softens both sides of that divergence.
    """

    source: Literal["labels", "teacher", "both"] = "labels"
    class_weights: Literal["none", "log"] = "none"
    ohem_prob: Share | None = None
    ohem_keep: Positive = 131_072
    teacher_weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


class TrainRecipe(Settings):
    """``edge-sdk train``: a per-frame network from labelled frames, or distilled frame by frame from a teacher.

    Args:
        out: folder for checkpoints and the result, ``model.pt``.
        data, validation: source URIs with labels.
        unlabelled: sources, each of its own size, of which the teacher's answers alone are learned; their labels, if
            any, are not looked at. They need not show what the labelled frames show: a student is to answer as its
            teacher does, and what the teacher makes of anything tells about it (arXiv 2106.05237).
        unlabelled_share: of each batch's frames, on average, that come from there.
        norm: ``keep`` leaves the statistics of batch norm as they are, and computes with them: for a network that was
            trained to its end and learns on from small batches.
        start: checkpoint of the same network at another width, such as the teacher's, to begin from; see
            :mod:`edge_sdk.distill.widths`. None begins from ``module.checkpoint``, or else from random weights.
        teacher: where the task loss asks for it, the network to learn from.
    """

    kind: Literal["frames"] = "frames"
    out: Path
    module: ModuleSettings
    start: Path | None = None
    task: TaskSpec
    data: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
    unlabelled_share: Share = 0.5
    norm: Norm = "learn"
    validation: tuple[str, ...] = ()
    teacher: ModuleSettings | None = None
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    loss: TaskLoss = TaskLoss()
    optimiser: Optimiser = Optimiser()
    loop: LoopSettings

    @model_validator(mode="after")
    def _teacher_present(self) -> TrainRecipe:
        if self.loss.source != "labels" and self.teacher is None:
            raise ValueError(f"loss.source '{self.loss.source}' needs a 'teacher'")
        if self.unlabelled and self.loss.source == "labels":
            raise ValueError("'unlabelled' needs loss.source 'teacher' or 'both', got 'labels'")
        if self.norm == "keep" and self.start is None and self.module.checkpoint is None:
            raise ValueError("'norm' keep needs 'start' or 'module.checkpoint', whose statistics to keep")
        if self.start is not None and self.module.checkpoint is not None:
            raise ValueError("'start' and 'module.checkpoint' both name weights to begin from, expected one")
        given = self.teacher.checkpoint if self.teacher is not None else None
        if given is not None and given.resolve() == (self.out / "model.pt").resolve():
            raise ValueError(
                f"'out': {self.out} is where the teacher's checkpoint lies, expected another folder"
            )
        return self


class Motion(Settings):
    """Random camera motion that turns a still into a pair; every amount is per frame of gap.

    Args:
        max_gap: largest distance in frames; drawn evenly from 1 for every pair.
        shift: translation, as a share of the frame's side.
        zoom: relative change of scale; forward motion enlarges later frames.
        turn: rotation in degrees.
        parallax: how much nearby things move more than distant ones, 0 to 1: the motion is scaled by a smooth random
            field between ``1 - parallax`` and ``1 + parallax``.
        light: relative change of brightness.
    """

    max_gap: Positive = 9
    shift: Share = 0.006
    zoom: Share = 0.02
    turn: Annotated[float, Field(ge=0)] = 0.15
    parallax: Share = 0.8
    light: Share = 0.004


class PairData(Settings):
    """Where pairs of frames come from.

    Args:
        video: sources of consecutive frames; both frames of a pair are real.
        stills: sources of unrelated frames; the first frame of a pair is the second one under random camera motion.
        max_gap: largest distance between the frames of a pair from video; drawn evenly from 1 for every pair.
        motion: for ``stills``.
        video_share: chance that a pair is from video where there are both kinds; ``None``: by their number of frames.
        between: frames between those of a pair that are drawn too, at even distances, for students that go from frame
            to frame; pairs from video then are at least so far apart.
    """

    video: tuple[str, ...] = ()
    stills: tuple[str, ...] = ()
    max_gap: Positive = 9
    motion: Motion = Motion()
    video_share: Share | None = None
    between: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _some(self) -> PairData:
        if not self.video and not self.stills:
            raise ValueError("expected sources under 'video' or 'stills'")
        if self.video and self.max_gap <= self.between:
            raise ValueError(
                f"'max_gap': expected more than the {self.between} frames between, got {self.max_gap}"
            )
        return self

    def refuse_between(self) -> None:
        """Of a student that sees the two frames of a pair alone.

        Raises:
            ValueError: frames between are asked for.
        """
        if self.between:
            raise ValueError(
                "'data.between': expected 0, as only students of kind cross with 'motion.follow' see frames between, "
                f"got {self.between}"
            )
