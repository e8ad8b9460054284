"""Settings of the workstation stages: training a per-frame network and distilling a student from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from edge_sdk.settings import Settings, read_recipe
from edge_sdk.tasks.base import TaskSpec

Positive = Annotated[int, Field(gt=0)]
RankRule = Literal["out", "min"]
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


class DeltaSettings(Settings):
    """How a teacher becomes a delta network.

    Args:
        gamma: compression of the low-rank candidate (4 for segmentation, 16 for detection, as published).
        rank_rule: see :func:`edge_sdk.distill.candidates.rank_of`.
        candidates: ``both`` with a gate (published), or one of the two for every layer.
        skip_first, skip_last: convolutions left as they are at either end, in the order they run.
        include, exclude: patterns (``*`` matches anything) over layer names; exclude wins.
        full: patterns over layer names that get the full candidate alone.
        rank_multiple: raise every rank to a multiple of this (1 as published; 16 suits ONNX Runtime's channel blocks).
        blocks: patterns over module names; such a module gets one student for all its layers, joined at its output.
        kept: patterns over module names; such a module only runs at keyframes, its output there is used until the next.
        units: by pattern over module names, what the student of each such module may be: names of
            :mod:`edge_sdk.distill.kinds`, such as ``full``, ``rank/4``, ``half``, ``kept``. A module gets one student,
            joined at its output; where several are named, training chooses. The first pattern that fits a module
            counts, and a module inside another unit is part of that. Other convolutions go by the settings above.
        choice: by unit, the one candidate that stays of those it may be; others keep all of theirs. In a recipe also
            the path of a ``choice.yaml`` that a search left.
    """

    gamma: Annotated[int, Field(ge=2)] = 4
    rank_rule: RankRule = "out"
    candidates: Literal["both", "full", "low_rank"] = "both"
    skip_first: Annotated[int, Field(ge=0)] = 1
    skip_last: Annotated[int, Field(ge=0)] = 1
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    rank_multiple: Annotated[int, Field(ge=1)] = 1
    blocks: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    units: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    choice: dict[str, str] = Field(default_factory=dict)

    @field_validator("choice", mode="before")
    @classmethod
    def _read(cls, given: object) -> object:
        return read_recipe(given) if isinstance(given, str | Path) else given

    @field_validator("units")
    @classmethod
    def _known(cls, units: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        from edge_sdk.distill.kinds import Kind

        for pattern, names in units.items():
            if not names or len(set(names)) != len(names):
                raise ValueError(f"expected one or more different candidates for '{pattern}'")
            for name in names:
                Kind.parse(name)
        return units


class SearchSettings(Settings):
    """Choosing each unit's candidate under a budget of milliseconds, by gradient (:mod:`edge_sdk.distill.search`).

    Args:
        table: what each candidate costs on the device, as ``edge-sdk profile`` wrote it for the same ``delta``.
        budget_ms: most milliseconds of a delta step there, by the table's sum.
        until: share of the steps that search; then each unit keeps its likeliest candidate, and the rest fine-tunes.
        weight: of the share of the budget by which the expected milliseconds exceed it, in the loss.
        gate_rate: learning rate of the choices as a multiple of the students'.
    """

    table: Path
    budget_ms: Annotated[float, Field(gt=0)]
    until: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    weight: Annotated[float, Field(gt=0)] = 1.0
    gate_rate: Annotated[float, Field(gt=0)] = 10.0


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


class DeltaLoss(Settings):
    """Weights of the three losses: total = task + feature * features + cost * cost.

    Args:
        feature: alpha (0.01 for segmentation as published).
        feature_until: share of the training after which the feature loss is off (a third, as published).
        feature_scale: ``mean``: one constant, the inverse of the first step's mean; ``layer``: the same for each layer;
            ``none``.
        cost: beta, on the share of full candidates (0.1 as published).
        cost_by: weight of each layer in the cost: its multiply-accumulates, or the same for all.
    """

    task: TaskLoss = TaskLoss(source="both")
    feature: Annotated[float, Field(ge=0)] = 0.01
    feature_until: Share = 1 / 3
    feature_scale: Literal["mean", "layer", "none"] = "mean"
    cost: Annotated[float, Field(ge=0)] = 0.1
    cost_by: Literal["macs", "uniform"] = "macs"


class QuantizationSettings(Settings):
    """Quantisation-aware fine-tuning: the pair is trained under INT8 rounding (:mod:`edge_sdk.distill.quantization`).

    Args:
        start: share of the steps after which rounding begins; before, ranges are only observed.
        freeze: share of the steps after which ranges stay as they are.
        momentum: weight of the newest batch in a tensor's moving range.
        keep: patterns (``*`` matches anything) over layer names; such convolutions stay exact. The same as under
            ``int8.keep`` of the build recipe.
        keep_last: leave the last convolution exact, as ``int8.keep_last`` does.
    """

    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    freeze: Share = 0.9
    momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    keep: tuple[str, ...] = ()
    keep_last: bool = True

    @model_validator(mode="after")
    def _observed_first(self) -> QuantizationSettings:
        if self.freeze <= self.start:
            found = f"{self.start} and {self.freeze}"
            raise ValueError(f"expected 'start' < 'freeze', the steps that find the ranges, got {found}")
        return self


class DistillRecipe(Settings):
    """``edge-sdk distill``: a delta student from a trained teacher.

    Args:
        out: folder for checkpoints and the result, ``student.pt``.
        teacher: the trained network.
        delta: which layers get which students.
        data: pairs of frames.
        validation: labelled sources of consecutive frames; measured at every interval in ``intervals``.
        start: an earlier student of the same teacher and ``delta`` settings to go on from, such as one that meets a new
            camera; ``None`` starts from the teacher's kernels.
        teacher_lr: learning rate of the teacher's own weights as a share of the student's (0.1 as published); 0 keeps
            the teacher as it is.
        quantization: train under INT8 rounding, usually a short run from an earlier student (``start``); ``None``
            trains in float alone.
        search: choose among each unit's candidates under a budget; ``None`` leaves it to the published cost.
    """

    kind: Literal["delta"] = "delta"
    out: Path
    teacher: ModuleSettings
    task: TaskSpec
    delta: DeltaSettings = DeltaSettings()
    data: PairData
    validation: tuple[str, ...] = ()
    intervals: tuple[Positive, ...] = (5, 10)
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment(scale=(1.0, 1.6))
    loss: DeltaLoss = DeltaLoss()
    optimiser: Optimiser = Optimiser()
    start: Path | None = None
    teacher_lr: Share = 0.0
    quantization: QuantizationSettings | None = None
    search: SearchSettings | None = None
    loop: LoopSettings

    @model_validator(mode="after")
    def _pairs_alone(self) -> DistillRecipe:
        self.data.refuse_between()
        return self
