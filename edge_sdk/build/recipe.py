"""Settings of ``edge-sdk build``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edge_sdk.settings import Settings

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
        interval: keyframe interval of the runs.
        max_drop: mIoU points that an engine may lose against the float32 pair.
        limit: frames at most.
        sweep: measure each layer's damage at INT8 and keep the worst in higher precision until ``max_drop`` is met.
    """

    source: str
    interval: Positive = 10
    max_drop: Annotated[float, Field(ge=0, le=100)] = 0.5
    limit: Positive | None = None
    sweep: bool = True


class OnnxRuntimeSettings(Settings):
    """Engines for ONNX Runtime on the CPU.

    Args:
        threads: CPU threads of one step while engines are timed; None for ONNX Runtime's own choice.
    """

    threads: Positive | None = None
