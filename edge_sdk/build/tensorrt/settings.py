"""Settings of the TensorRT builder, and what passes between it and its child process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.manifest import Precision, StepName
from edge_sdk.settings import Settings

MIB = 1 << 20


class TensorRTSettings(Settings):
    """How TensorRT builds.

    Precision is not among them: it is in the graph, on every version of TensorRT.

    Args:
        runtime: ``tensorrt``, its drop-in ``tensorrt_rtx``, or ``auto``, the first of the two that is installed.
        workspace_bytes: scratch memory that a layer may use; never more than is free. None for what is free.
        optimisation_level: 0 builds fastest, 5 searches longest.
        aux_streams: CUDA streams beside the main one; 0 takes the least memory, None leaves it to TensorRT.
        dla_core: build for this DLA core; None for the GPU.
        dla_fallback: run on the GPU what the DLA cannot; else that is an error.
        tf32: let float32 products be computed in TF32.
        version_compatible: let newer releases load the plan; it may be slower and holds a small runtime of its own.
        exclude_lean_runtime: leave that runtime out of a version-compatible plan.
        refittable: let weights be replaced later; it costs fusions and so speed. Of a student that learns on the
            stream only the layers that its bundle leaves open, else all.
        use_timing_cache: keep what was measured while building, so that the next build takes a fraction of the time.
        timing_cache: folder of timing caches, one per device, version and settings; None for the user's cache folder.
        precision_tolerance: share of the layers that the graph asks to be run in INT8 or float16 and that the plan may
            run in a higher precision; more is an error.
        timeout_s: a build that takes longer is ended; None waits for ever.
    """

    runtime: Literal["auto", "tensorrt", "tensorrt_rtx"] = "auto"
    workspace_bytes: Annotated[int, Field(ge=MIB)] | None = None
    optimisation_level: Annotated[int, Field(ge=0, le=5)] = 3
    aux_streams: Annotated[int, Field(ge=0)] | None = None
    dla_core: Annotated[int, Field(ge=0)] | None = None
    dla_fallback: bool = True
    tf32: bool = False
    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    refittable: bool = False
    use_timing_cache: bool = True
    timing_cache: Path | None = None
    precision_tolerance: Annotated[float, Field(ge=0, le=1)] = 0.1
    timeout_s: Annotated[float, Field(gt=0)] | None = 7200.0

    @model_validator(mode="after")
    def _fits(self) -> TensorRTSettings:
        if self.exclude_lean_runtime and not self.version_compatible:
            raise ValueError("'exclude_lean_runtime' needs 'version_compatible'")
        if self.dla_core is not None and self.runtime == "tensorrt_rtx":
            raise ValueError("'dla_core': tensorrt_rtx knows no DLA")
        return self

    @property
    def cache_folder(self) -> Path:
        """Where timing caches are kept."""
        if self.timing_cache is not None:
            return self.timing_cache.expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge_sdk" / "tensorrt"


class Job(Settings):
    """What the child process is to do.

    Args:
        graph: the ONNX file.
        plan: where to put the plan.
        step, precision: which engine it is.
        settings: the recipe's.
        open: names of the weights that can be exchanged later, in place of all, where ``settings.refittable`` is set.
    """

    graph: Path
    plan: Path
    step: StepName
    precision: Precision
    settings: TensorRTSettings
    open: tuple[str, ...] = ()


class Outcome(Settings):
    """What the child process found.

    Args:
        runtime: module and version that built the plan.
        workspace_bytes: the limit that was set; None for TensorRT's own.
        asked: precision that the graph asks for, by name of each layer that does the work.
        realised: precision that the plan runs that layer in, by the same names, "" where the inspector does not say;
            None where the plan could not be read back.
        realised_unknown: why ``realised`` is None.
        notes: what a person should know.
    """

    runtime: str
    workspace_bytes: int | None
    asked: dict[str, str]
    realised: dict[str, str] | None
    realised_unknown: str = ""
    notes: tuple[str, ...] = ()
