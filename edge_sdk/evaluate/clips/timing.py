"""What a clip costs: interleaved runs of all rows over the same clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from edge_sdk.evaluate.clip import Tick
from edge_sdk.evaluate.timing import NOISY_SHARE, Spread, rotation
from edge_sdk.runtime.result import StepKind
from edge_sdk.settings import Settings

if TYPE_CHECKING:
    from edge_sdk.evaluate.clips.reading import LoadedClip
    from edge_sdk.runtime.runner import EdgeRunner


class ClipTiming(Settings):
    """How long a row takes over a clip, the frames that it skips included; from frame in to answer out.

    Args:
        clip_ms: each run's mean over its clips.
        speedup: the first row's mean over this row's, within each run, so that a slow spell of the machine that covers
            both cancels.
        seen_ms: median over all runs of a frame that a step was run for.
        skipped_ms: the same of a frame that was skipped; None where there is none.
        runner_ms: mean time outside the graph of a frame that a step was run for.
        noisy: the runs' means spread by more than 10 % of their median.
        runs_ms: the raw times of the clips, one tuple a run.
    """

    clip_ms: Spread
    speedup: Spread
    seen_ms: float
    skipped_ms: float | None = Field(default=None)
    runner_ms: float
    noisy: bool
    runs_ms: tuple[tuple[float, ...], ...]


class _Times:
    """Raw times of one row."""

    def __init__(self) -> None:
        self.runs: list[list[float]] = []
        self.seen: list[float] = []
        self.skipped: list[float] = []
        self.own: list[float] = []

    def run(self, runner: EdgeRunner, clips: Sequence[LoadedClip]) -> None:
        # The row before left its own weights in the caches; one frame outside the statistics brings ours back.
        runner.reset()
        runner(clips[0].frames[0])
        sums = []
        for clip in clips:
            runner.reset()
            total = 0.0
            for frame in clip.frames:
                result = runner(frame)
                times = result.times
                total += times.total_ms
                if result.kind is StepKind.SKIP:
                    self.skipped.append(times.total_ms)
                else:
                    self.seen.append(times.total_ms)
                    self.own.append(times.total_ms - times.step_ms)
            sums.append(total)
        self.runs.append(sums)

    def summary(self, first: np.ndarray) -> ClipTiming:
        means = np.mean(self.runs, axis=1)
        spread = Spread.of(means)
        return ClipTiming(
            clip_ms=spread,
            speedup=Spread.of(first / means),
            seen_ms=float(np.median(self.seen)),
            skipped_ms=float(np.median(self.skipped)) if self.skipped else None,
            runner_ms=float(np.mean(self.own)),
            noisy=spread.iqr > NOISY_SHARE * spread.median,
            runs_ms=tuple(tuple(round(value, 4) for value in run) for run in self.runs),
        )


def measure(
    runners: Mapping[str, EdgeRunner], clips: Sequence[LoadedClip], repeats: int, tick: Tick
) -> dict[str, ClipTiming]:
    """Run every row over all clips, ``repeats`` times, in an order that rotates.

    Args:
        runners: by the row's name; the first is the one that the others are compared with.
        clips: at least one, in memory.
        repeats: runs of each.
        tick: called after each run with stage ``"timing"``.
    """
    times = {name: _Times() for name in runners}
    names = list(runners)
    done = 0
    for repeat in range(repeats):
        for name in rotation(names, repeat):
            times[name].run(runners[name], clips)
            done += 1
            tick("timing", done, repeats * len(names))
    first = np.mean(times[names[0]].runs, axis=1)
    return {name: found.summary(first) for name, found in times.items()}
