"""Timed runs of all variants, interleaved, on the machine at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.evaluate.baselines import FlowRunner
from edge_sdk.evaluate.clip import Tick
from edge_sdk.evaluate.timing import Timing, rotation, summarise
from edge_sdk.runtime.result import StageTimes, StepKind

if TYPE_CHECKING:
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.video.frame import Frame


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame of one run: how long its stages took, what was done, and frames since its keyframe."""

    times: StageTimes
    kind: StepKind
    state_age: int


@dataclass(frozen=True)
class Contender:
    """A variant that can be timed: ``reset`` before a run, ``step`` per frame; ``by_runner`` where a runner answers."""

    reset: Callable[[], None]
    step: Callable[[Frame], Sample]
    by_runner: bool = True


@dataclass
class _Run:
    total_ms: list[float] = field(default_factory=list)
    own_ms: list[float | None] = field(default_factory=list)
    keyframes: list[bool] = field(default_factory=list)


def runner_contender(runner: EdgeRunner) -> Contender:
    """A runner under its own schedule."""

    def step(frame: Frame) -> Sample:
        result = runner(frame)
        return Sample(result.times, result.kind, result.state_age)

    return Contender(runner.reset, step)


def flow_contender(baseline: FlowRunner) -> Contender:
    """The flow baseline; all its time counts as that of a step."""
    age = 0

    def step(frame: Frame) -> Sample:
        nonlocal age
        _, kind, total_ms = baseline(frame)
        age = 0 if kind is StepKind.KEYFRAME else age + 1
        times = StageTimes(
            copy_in_ms=0.0, step_ms=total_ms, copy_out_ms=0.0, decode_ms=0.0, total_ms=total_ms
        )
        return Sample(times, kind, age)

    return Contender(baseline.reset, step, by_runner=False)


def measure(
    contenders: Mapping[str, Contender], teacher: str, frames: Sequence[Frame], repeats: int, tick: Tick
) -> dict[str, Timing]:
    """Run every contender over all frames, ``repeats`` times, in an order that rotates.

    Args:
        contenders: by name.
        teacher: name of the one that the others are compared with.
        frames: frames in memory, in order.
        repeats: runs of each.
        tick: called after each run with stage ``"timing"``.

    Returns:
        Statistics by name, in the order of ``contenders``.
    """
    runs: dict[str, list[_Run]] = {name: [] for name in contenders}
    names = list(contenders)
    done = 0
    for repeat in range(repeats):
        for name in rotation(names, repeat):
            runs[name].append(_run(contenders[name], frames))
            done += 1
            tick("timing", done, repeats * len(names))
    teacher_ms = np.array([run.total_ms for run in runs[teacher]])
    return {name: _timing(runs[name], teacher_ms) for name in names}


def _run(contender: Contender, frames: Sequence[Frame]) -> _Run:
    # The variant before left its own weights in the caches; one frame outside the statistics brings ours back.
    contender.reset()
    contender.step(frames[0])
    contender.reset()
    run = _Run()
    for frame in frames:
        sample = contender.step(frame)
        run.total_ms.append(sample.times.total_ms)
        run.own_ms.append(sample.times.total_ms - sample.times.step_ms if contender.by_runner else None)
        run.keyframes.append(sample.kind is StepKind.KEYFRAME)
    return run


def _timing(runs: Sequence[_Run], teacher_ms: np.ndarray) -> Timing:
    own = [[value for value in run.own_ms if value is not None] for run in runs]
    return summarise(
        np.array([run.total_ms for run in runs]),
        teacher_ms,
        runs[0].keyframes,
        np.array(own) if own[0] else None,
    )
