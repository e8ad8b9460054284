"""Settings of ``edge-sdk build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.build.tensorrt.settings import TensorRTSettings
from edge_sdk.manifest import BackendName, Precision
from edge_sdk.settings import Settings
from edge_sdk.video.uri import SourceText

Positive = Annotated[int, Field(gt=0)]


class Int8Settings(Settings):
    """How INT8 graphs are made.

    Args:
        method: how a tensor's range is found from the calibration passes: its ``minmax``, a ``percentile`` of its
            values, or the range of least ``entropy`` loss.
        percentile: of the values that the range covers, in percent, for ``percentile``.
        passes: calibration passes a step that are looked at, evenly chosen; None for all.
        keep: patterns (``*`` matches anything) over layer names; such layers stay in higher precision.
        keep_last: keep each step's last convolution, the one that the answer is read from, in higher precision.
        state_layout: ``nhwc`` or ``nchw``, the order in which the state's bytes lie.
        remainder: precision of what is not INT8, on TensorRT; ONNX Runtime's is always float32.
    """

    method: Literal["minmax", "percentile", "entropy"] = "minmax"
    percentile: Annotated[float, Field(gt=90, le=100)] = 99.999
    passes: Positive | None = 64
    keep: tuple[str, ...] = ()
    keep_last: bool = True
    state_layout: Literal["nhwc", "nchw"] = "nhwc"
    remainder: Literal["float32", "float16"] = "float16"


class Float16Settings(Settings):
    """How float16 graphs are made.

    Args:
        keep: patterns over layer names; such layers stay in float32.
        largest: a node stays in float32 where the calibration passes reach a magnitude above this; float16 ends at
            65504.
        state_layout: the order in which the state lies, as for INT8.
    """

    keep: tuple[str, ...] = ()
    largest: Annotated[float, Field(gt=0, le=65504)] = 16384.0
    state_layout: Literal["nhwc", "nchw"] = "nhwc"


class AccuracySettings(Settings):
    """What a lower precision may cost, and on which frames it is found out.

    Args:
        source: URI of the frames, see :func:`edge_sdk.video.open_source`; labels are used where it has them, else
            the float32 pair's own answers stand in for them.
        interval: keyframe interval of the runs; a bundle that sees a few frames of each clip keeps to its schedule.
        max_drop: points of mIoU, or of top-1 of clips, that an engine may lose against the float32 pair.
        limit: frames at most.
        sweep: measure each layer's damage at INT8 and keep the worst in higher precision until ``max_drop`` is met:
            ``auto`` where INT8 breaks the budget, ``always`` to have the table of damages in any case, or ``never``.
        repeats: timed runs that the choice rests on.
    """

    source: SourceText
    interval: Positive = 10
    max_drop: Annotated[float, Field(ge=0, le=100)] = 0.5
    limit: Positive | None = None
    sweep: Literal["auto", "always", "never"] = "auto"
    repeats: Positive = 5


class OnnxRuntimeSettings(Settings):
    """Engines for ONNX Runtime on the CPU.

    Args:
        threads: CPU threads of one step while engines are timed; None for ONNX Runtime's own choice.
    """

    threads: Positive | None = None


class BuildRecipe(Settings):
    """From a bundle's step graphs to engines for the machine that this runs on.

    Args:
        bundle: the exported bundle.
        out: where the bundle with graphs and engines goes; None extends ``bundle`` itself.
        calibration: calibration set of that bundle, from ``edge-sdk calibrate``; INT8 and float16 graphs need it.
        backends: what to build for; ``auto``: every backend whose package is installed here.
        precisions: what to build. ONNX Runtime's CPU kernels compute float16 in float32, so there it is left out.
        int8, float16: how those graphs are made.
        accuracy: what they may cost, and the frames to find out; None: nothing is tried out, timed or chosen.
        tensorrt, onnxruntime: the builders' settings.
    """

    bundle: Path
    out: Path | None = None
    calibration: Path | None = None
    backends: Literal["auto"] | Annotated[tuple[BackendName, ...], Field(min_length=1)] = "auto"
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("float32", "float16", "int8")
    int8: Int8Settings = Int8Settings()
    float16: Float16Settings = Float16Settings()
    accuracy: AccuracySettings | None = None
    tensorrt: TensorRTSettings = TensorRTSettings()
    onnxruntime: OnnxRuntimeSettings = OnnxRuntimeSettings()

    @model_validator(mode="after")
    def _each_once(self) -> BuildRecipe:
        for name in ("precisions", "backends"):
            values = getattr(self, name)
            if values != "auto" and len(set(values)) != len(values):
                raise ValueError(f"expected each of '{name}' once")
        return self
