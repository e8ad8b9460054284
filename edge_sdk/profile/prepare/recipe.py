"""Settings of ``edge-sdk profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from edge_sdk.build.recipe import Int8Settings
from edge_sdk.build.tensorrt.settings import TensorRTSettings
from edge_sdk.distill.delta_recipe import DeltaSettings
from edge_sdk.distill.recipes import ModuleSettings, Positive, Preprocess
from edge_sdk.manifest import BackendName, Precision
from edge_sdk.profile.table import Clock
from edge_sdk.settings import Settings
from edge_sdk.tasks.base import TaskSpec


class ProfileRecipe(Settings):
    """What every candidate of every unit costs on a device.

    Args:
        out: folder for the tiny bundles, their index and the table.
        teacher: the network; its checkpoint may be left out, because times do not depend on weights.
        task: what its answers mean, for the whole students' decoding.
        delta: the units and their candidates, as the recipe of ``edge-sdk distill`` has them.
        preprocess: how a frame becomes the network's input.
        frame_hw: height and width of the camera's frames, in pixels.
        backend, precision: what the engines are built for.
        threads: CPU threads of a step; None for the backend's own choice.
        reference: a candidate for every unit, of the student that is built and timed whole and that predictions start
            from; None takes the first candidate of each unit.
        rounds: how often each engine is timed.
        clock: ``wall``, or ``processor`` for the time that the step's own thread has of a processor, which on a machine
            with other work is what the step takes alone; for one thread of ONNX Runtime.
        check: random students that are built and timed whole, to see how well the table predicts them.
        seed: of the random students, and of the weights where there is no checkpoint.
        decode_stride: as of ``edge-sdk export``.
        int8: how INT8 graphs are made; their ranges come from generated frames.
        tensorrt: how TensorRT builds.
    """

    out: Path
    teacher: ModuleSettings
    task: TaskSpec
    delta: DeltaSettings
    preprocess: Preprocess = Preprocess()
    frame_hw: tuple[Positive, Positive]
    backend: BackendName = "onnxruntime"
    precision: Precision = "float32"
    threads: Positive | None = None
    reference: dict[str, str] | None = None
    rounds: Positive = 200
    clock: Clock = "wall"
    check: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    decode_stride: Annotated[int, Field(ge=1, le=8)] = 1
    int8: Int8Settings = Int8Settings()
    tensorrt: TensorRTSettings = TensorRTSettings()

    @model_validator(mode="after")
    def _can_be_built(self) -> ProfileRecipe:
        if (self.backend, self.precision) == ("onnxruntime", "float16"):
            raise ValueError(
                "'precision': expected float32 or int8 for onnxruntime, whose CPU kernels compute float16 in float32"
            )
        if self.clock == "processor" and (self.backend, self.threads) != ("onnxruntime", 1):
            found = f"{self.backend} with threads: {self.threads}"
            raise ValueError(f"'clock': processor needs backend: onnxruntime with threads: 1, got {found}")
        if self.task.kind != "segmentation":
            raise ValueError(f"'task.kind': expected segmentation, got {self.task.kind}")
        return self
