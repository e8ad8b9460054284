"""Settings of a delta student: what it may be made of, how it is chosen and how it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from edge_sdk.distill.recipes import (
    Augment,
    LoopSettings,
    ModuleSettings,
    Optimiser,
    PairData,
    Positive,
    Preprocess,
    Share,
    TaskLoss,
)
from edge_sdk.settings import Settings, read_recipe
from edge_sdk.tasks.base import TaskSpec

RankRule = Literal["out", "min"]


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
