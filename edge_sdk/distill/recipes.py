"""Settings of the workstation stages: training a per-frame network and distilling a student from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edge_sdk.settings import Settings
from edge_sdk.tasks.base import TaskSpec

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
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
    arguments: dict[str, Any] = {}
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
    """

    crop_hw: tuple[Positive, Positive] | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    flip: Share = 0.5
    colour: Share = 0.2

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
        ohem_prob, ohem_keep: keep only pixels whose true class got less than ``ohem_prob``, but at least ``ohem_keep`` of
            them; ``None`` keeps all. PAPERS: 0.9 and 131,072 on Cityscapes.
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
        teacher: where the task loss asks for it, the network to learn from.
    """

    out: Path
    module: ModuleSettings
    task: TaskSpec
    data: tuple[str, ...]
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
        return self
