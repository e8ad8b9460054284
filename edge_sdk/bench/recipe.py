"""Settings of ``edge-sdk bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.manifest import FLOAT32
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.schedule import ScheduleSettings
from edge_sdk.settings import Settings
from edge_sdk.video.uri import SourceText

Preset = Literal["quick", "standard", "soak"]
# Length in seconds and rounds of each preset. A round opens the runner anew, so that what differs from one start to
# the next (where memory lies, which kernels are chosen) is in the spread and not only in the figures.
PRESETS: dict[Preset, tuple[float, int]] = {"quick": (30.0, 5), "standard": (180.0, 9), "soak": (600.0, 5)}
MIN_ROUND_S = 2.0


class BenchRecipe(Settings):
    """What is measured, how long, and at which rate.

    Args:
        bundle: the bundle to measure.
        source: URI of the frames; None for a synthetic scene of the bundle's size, on which accuracy means nothing
            and is not measured. A live source is measured at its own pace alone, without accuracy or other rows; what
            is set here for them is then refused.
        backend: name of the runtime.
        engine: which engines; None for those that the bundle has chosen for this backend.
        schedule: which frames are keyframes; None for the bundle's own schedule.
        background: keyframes beside the frames; None runs them in turn.
        threads: CPU threads of one step; None for the backend's own choice.
        teacher: a per-frame bundle of the same teacher without the work of writing state; None: the keyframe step.
        rival: a per-frame bundle to compare with, such as a distilled network of the same mean latency.
        accuracy: score every row over the clip before anything is timed: a pass for each alignment of the keyframes.
        baselines: measure teacher, copying, optical flow and the rival in the same run.
        engines: more engine sets of the bundle that get rows of their own.
        intervals: more keyframe intervals that get rows of their own, in every engine.
        preset: length and number of rounds; see ``PRESETS``.
        seconds: length instead of the preset's.
        rounds: rounds instead of the preset's, at least 2: the spread between them is the error of every figure.
        fps: rate of the simulated camera, frames a second; None for the source's own.
        camera_share: share of the time that is spent at camera pace; the rest is saturated.
        late: what becomes of a frame that comes while an older one is being answered: ``queue`` keeps it waiting, so
            that one slow frame is seen in all that wait behind it; ``drop`` keeps only the newest, as live sources do.
        deadline_ms: age at delivery above which an answer is late; None for one period of the camera.
        limit: most frames of the source to hold in memory; they are shown forwards and backwards, again and again.
        out: folder for the JSON and the HTML report; None where only the table is wanted.
    """

    bundle: Path
    source: SourceText | None = None
    backend: str = "onnxruntime"
    engine: str | None = None
    schedule: ScheduleSettings | None = None
    background: BackgroundKeyframes | None = None
    threads: int | None = Field(default=None, ge=1)
    teacher: Path | None = None
    rival: Path | None = None
    accuracy: bool = True
    baselines: bool = True
    engines: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    intervals: tuple[Annotated[int, Field(ge=2)], ...] = ()
    preset: Preset = "standard"
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    rounds: int | None = Field(default=None, ge=2, le=100)
    fps: float | None = Field(default=None, gt=0, le=10_000, allow_inf_nan=False)
    camera_share: float = Field(default=0.45, ge=0, le=0.9)
    late: Literal["queue", "drop"] = "queue"
    deadline_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    limit: int = Field(default=300, ge=2)
    out: Path | None = None

    @model_validator(mode="after")
    def _rounds_fit(self) -> BenchRecipe:
        if self.round_s < MIN_ROUND_S:
            raise ValueError(
                f"{self.length_s:g} seconds in {self.round_count} rounds leave {self.round_s:g} s a round, "
                f"expected at least {MIN_ROUND_S:g} s"
            )
        if len(set(self.engines)) != len(self.engines) or len(set(self.intervals)) != len(self.intervals):
            raise ValueError(f"engines and intervals: each once (the exported graphs are '{FLOAT32}')")
        return self

    @property
    def length_s(self) -> float:
        """Seconds in all."""
        return PRESETS[self.preset][0] if self.seconds is None else self.seconds

    @property
    def round_count(self) -> int:
        """How often the runner is opened anew."""
        return PRESETS[self.preset][1] if self.rounds is None else self.rounds

    @property
    def round_s(self) -> float:
        """Seconds of one round."""
        return self.length_s / self.round_count
