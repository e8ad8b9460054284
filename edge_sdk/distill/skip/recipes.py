"""Settings of Skip-Convolution: which convolutions get a gate, what opens it, and how learned gates are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.distill.recipes import (
    Augment,
    LoopSettings,
    ModuleSettings,
    Motion,
    Optimiser,
    Positive,
    Preprocess,
    Share,
    TaskLoss,
)
from edge_sdk.settings import Settings
from edge_sdk.tasks.base import TaskSpec


class SkipSettings(Settings):
    """How a network becomes one that skips what did not change.

    Args:
        gate: what opens a pixel of a layer's output. ``input_norm``: the mean change of the inputs that it reads is
            above ``eps``; ``output_norm``: the same times the mean size of the layer's weights; ``gumbel``: a small
            convolution over the change, which is trained.
        eps: threshold of the norm gates; 0 opens wherever anything changed, and the answer is the teacher's.
        scale: what ``eps`` is in: ``absolute``, one number for all layers as published; ``layer``: a share of the
            layer's own mean input (``input_norm``) or output (``output_norm``) at the keyframe.
        block: side of the squares, in output pixels of each layer, that open together; one open pixel opens its square.
        update: what an open pixel becomes. ``refresh``: the layer's output for the frame at hand; ``residual``, as
            published: the output kept so far plus the layer's response to the change. Both cost the same; what was
            skipped before is made good by the first and stays lost in the second.
        reference: what a change is measured from. ``previous``, as published: the frame before, so that slow changes
            are never seen; ``last_open``: what the pixel was when it was last open, so that they add up.
        skip_first, skip_last: convolutions left as they are at either end, in the order they run.
        include, exclude: patterns (``*`` matches anything) over layer names; exclude wins.
    """

    gate: Literal["input_norm", "output_norm", "gumbel"] = "input_norm"
    eps: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.1
    scale: Literal["absolute", "layer"] = "absolute"
    block: Literal[1, 2, 4, 8] = 1
    update: Literal["refresh", "residual"] = "refresh"
    reference: Literal["previous", "last_open"] = "previous"
    skip_first: Annotated[int, Field(ge=0)] = 0
    skip_last: Annotated[int, Field(ge=0)] = 0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _adds_up_once(self) -> SkipSettings:
        if self.reference == "last_open" and self.update == "residual":
            # A pixel's change is read by its neighbours too, of which some were open: they would add it again.
            raise ValueError("reference 'last_open' needs update 'refresh', got 'residual'")
        fields = type(self).model_fields
        if self.gate == "gumbel" and any(
            getattr(self, key) != fields[key].default for key in ("eps", "scale")
        ):
            raise ValueError("'eps' and 'scale' are of the norm gates, gate 'gumbel' learns when to open")
        return self


class SkipData(Settings):
    """Short clips that learned gates are trained on: the first frame is the keyframe.

    Args:
        video: sources of consecutive frames.
        stills: sources of unrelated frames; each becomes the last frame of a clip under random camera motion.
        frames: frames of a clip.
        gap: largest distance between neighbours of a clip from video; drawn evenly from 1 for every clip.
        motion: for ``stills``, frame by frame; its ``max_gap`` is not used.
        video_share: chance that a clip is from video where there are both kinds; ``None``: by their number of frames.
    """

    video: tuple[str, ...] = ()
    stills: tuple[str, ...] = ()
    frames: Annotated[int, Field(ge=2)] = 3
    gap: Positive = 1
    motion: Motion = Motion()
    video_share: Share | None = None

    @model_validator(mode="after")
    def _some(self) -> SkipData:
        if not self.video and not self.stills:
            raise ValueError("expected sources under 'video' or 'stills'")
        return self


class SkipLoss(Settings):
    """Weights of the losses: total = task + cost * open share.

    Args:
        task: on every frame after the keyframe; where it is of labels, on the clip's last frame.
        cost: beta: weight of the share of the multiply-accumulates that are computed, 0 to 1, mean over layers and
            frames. The release names no value; 0.5 was too much on camvid (benchmarks/skip).
    """

    task: TaskLoss = TaskLoss(source="teacher")
    cost: Annotated[float, Field(ge=0)] = 0.1


class SkipRecipe(Settings):
    """``edge-sdk distill`` with kind ``skip``: a network with gates. Norm gates need no training and take none.

    Args:
        out: folder for checkpoints and the result, ``student.pt``.
        teacher: the trained network.
        skip: the gates.
        data, loop: of the training of ``gumbel`` gates.
        validation: labelled sources of consecutive frames; mIoU and open share are measured at each of ``intervals``.
        teacher_lr: learning rate of the network's own weights as a share of the gates'; 0 keeps the teacher as it is.
    """

    kind: Literal["skip"] = "skip"
    out: Path
    teacher: ModuleSettings
    task: TaskSpec
    skip: SkipSettings = SkipSettings()
    data: SkipData | None = None
    validation: tuple[str, ...] = ()
    intervals: tuple[Positive, ...] = (4, 10)
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment(scale=(1.0, 1.6))
    loss: SkipLoss = SkipLoss()
    optimiser: Optimiser = Optimiser(kind="adamw", lr=0.01)
    teacher_lr: Share = 0.0
    loop: LoopSettings | None = None

    @model_validator(mode="after")
    def _trained_or_not(self) -> SkipRecipe:
        trained = self.skip.gate == "gumbel"
        for name in ("data", "loop"):
            if trained and getattr(self, name) is None:
                raise ValueError(f"gate 'gumbel' is trained and needs '{name}'")
            if not trained and getattr(self, name) is not None:
                raise ValueError(f"'{name}' is for gate 'gumbel'; gate '{self.skip.gate}' is not trained")
        return self
