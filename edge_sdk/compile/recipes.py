"""Settings of ``edge-sdk export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from edge_sdk.distill.online import OnlineRecipe
from edge_sdk.distill.recipes import ModuleSettings, Positive, Preprocess
from edge_sdk.runtime.schedule import ScheduleSettings
from edge_sdk.settings import Settings
from edge_sdk.tasks.base import TaskSpec


class ExportRecipe(Settings):
    """From trained weights to a bundle of step graphs.

    Give one of three: ``checkpoint`` (what ``edge-sdk train`` or ``edge-sdk distill`` wrote; it knows its network, task
    and preprocessing); ``module``, ``task`` and ``preprocess`` for a network trained elsewhere; or ``online``.

    Args:
        out: the bundle's folder.
        name: name of the bundle; ``None`` takes the folder's.
        online: teacher and student that go on learning on the stream; knows its task and preprocessing.
        frame_hw: height and width of the camera's frames, in pixels.
        decode_stride: of a segmentation, decide the class of every pixel (1), or of every second one (2), ...,
            repeated between.
        sliding: of a clip network's checkpoint, answer anew at every seen frame from the last ones that a clip has,
            instead of clip after clip; costs the aggregator over all of them each time.
        matmul_resize: write bilinear resizing as matrix products, exact and faster on CPUs.
        schedule: the bundle's default schedule; ``None``: of a clip network the frames that it was trained on; else a
            keyframe every 5 frames, or always where there is no delta.
        opset: ONNX operator set.
        tolerance: largest difference between torch and ONNX Runtime in a state tensor, relative to its largest value;
            masks may differ on the same share of pixels, scores by as much.
    """

    out: Path
    name: str | None = None
    checkpoint: Path | None = None
    module: ModuleSettings | None = None
    online: OnlineRecipe | None = None
    task: TaskSpec | None = None
    preprocess: Preprocess = Preprocess()
    frame_hw: tuple[Positive, Positive]
    decode_stride: Annotated[int, Field(ge=1, le=8)] = 1
    sliding: bool = False
    matmul_resize: bool = True
    schedule: ScheduleSettings | None = None
    opset: Annotated[int, Field(ge=17, le=21)] = 18
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-3

    @model_validator(mode="after")
    def _one_origin(self) -> ExportRecipe:
        given = [name for name in ("checkpoint", "module", "online") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(f"'{name}'" for name in given) or "none"
            raise ValueError(f"expected one of 'checkpoint', 'module' and 'online', got {found}")
        if self.module is not None and self.task is None:
            raise ValueError("'module' needs a 'task'")
        known = sorted({"task", "preprocess"} & self.model_fields_set)
        if self.module is None and known:
            raise ValueError(f"'{given[0]}' knows its own {' and '.join(known)}, expected none here")
        return self
