"""Statistics of repeated timed runs. Pure numbers: nothing here runs or waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from edge_sdk.settings import Settings

# Above this share of the median the spread between runs is too wide to rank variants by small differences.
NOISY_SHARE = 0.10


class Spread(Settings):
    """Median over runs and the distance between the quartiles (linear interpolation)."""

    median: float
    iqr: float = Field(ge=0)

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        """Of one value a run, at least one."""
        low, median, high = np.percentile(np.asarray(values, np.float64), (25, 50, 75))
        return cls(median=float(median), iqr=float(high - low))


class Timing(Settings):
    """How long a variant takes.

    Args:
        mean_ms: each run's mean over its frames.
        p50_ms, p99_ms: each run's percentiles over its frames.
        fps: frames a second that the median mean allows.
        speedup: the teacher's mean over this variant's mean, within each run, so that a slow spell of the machine
            that covers both cancels.
        keyframe_ms, between_ms: medians over all runs of the keyframes and of the other frames; None where there
            are none.
        runner_ms: mean of a frame's time less the bare time of the graph; None where no runner ran.
        noisy: the runs' means spread by more than 10 % of their median.
        frames_ms: the raw times, one tuple a run.
        keyframes: which frames were keyframes.
    """

    mean_ms: Spread
    p50_ms: Spread
    p99_ms: Spread
    fps: float
    speedup: Spread
    keyframe_ms: float | None
    between_ms: float | None
    runner_ms: float | None
    noisy: bool
    frames_ms: tuple[tuple[float, ...], ...]
    keyframes: tuple[bool, ...]

    def per_frame_ms(self) -> np.ndarray:
        """(frames,) float64: each frame's median over the runs."""
        return np.median(np.array(self.frames_ms), axis=0)


def disturbed(noisy: Mapping[str, Spread]) -> tuple[str, ...]:
    """A warning about rows whose runs differ too much; none where there is none.

    Args:
        noisy: means of the runs of such rows, by name.
    """
    if not noisy:
        return ()
    most = max(spread.iqr / spread.median for spread in noisy.values())
    return (
        f"Timing was disturbed, by other work on this machine or by its clock: the means of the runs of "
        f"{', '.join(noisy)} spread by more than 10 % of their median (at most {most:.0%}).",
    )


def rotation(names: Sequence[str], repeat: int) -> list[str]:
    """Order of the variants in one run: each run begins one further on, so that none always follows the same."""
    start = repeat % len(names)
    return [*names[start:], *names[:start]]


def summarise(
    frames_ms: np.ndarray, teacher_ms: np.ndarray, keyframes: Sequence[bool], own_ms: np.ndarray | None = None
) -> Timing:
    """Statistics of one variant.

    Args:
        frames_ms: (runs, frames) float64, time per frame.
        teacher_ms: (runs, frames) float64, the teacher's in the same runs.
        keyframes: per frame, whether it was a keyframe.
        own_ms: (runs, frames) float64, time per frame outside the graph; None where no runner ran.
    """
    means = frames_ms.mean(axis=1)
    mean = Spread.of(means)
    p50, p99 = np.percentile(frames_ms, (50, 99), axis=1)
    flags = np.asarray(keyframes, bool)
    return Timing(
        mean_ms=mean,
        p50_ms=Spread.of(p50),
        p99_ms=Spread.of(p99),
        fps=1000.0 / mean.median,
        speedup=Spread.of(teacher_ms.mean(axis=1) / means),
        keyframe_ms=_median(frames_ms[:, flags]),
        between_ms=_median(frames_ms[:, ~flags]),
        runner_ms=None if own_ms is None else float(own_ms.mean()),
        noisy=mean.iqr > NOISY_SHARE * mean.median,
        # 0.1 microseconds: finer is noise and makes the file longer.
        frames_ms=tuple(tuple(round(float(value), 4) for value in run) for run in frames_ms),
        keyframes=tuple(bool(flag) for flag in flags),
    )


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if values.size else None


def amortised(keyframe: int | None, between: int | None, interval: int) -> int | None:
    """Multiply-accumulates a frame over one keyframe period, rounded; None where a count is missing."""
    if keyframe is None or between is None:
        return None
    return round((keyframe + (interval - 1) * between) / interval)
