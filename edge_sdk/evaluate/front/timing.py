"""Timed runs of all rows, interleaved, on the machine at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

from edge_sdk.evaluate.baselines import FlowRunner
from edge_sdk.evaluate.clip import Clip, Tick
from edge_sdk.evaluate.front.lineup import Seat
from edge_sdk.evaluate.front.recipe import FrontRecipe
from edge_sdk.evaluate.measure import Contender, Sample, flow_contender, measure, runner_contender
from edge_sdk.evaluate.timing import Timing
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule, ExternalSchedule, ScheduleSettings
from edge_sdk.video.frame import Frame


def time_rows(
    recipe: FrontRecipe, clips: Sequence[Clip], seats: Sequence[Seat], tick: Tick
) -> dict[str, Timing]:
    """Times by the row's name; every row really runs under its own interval, each clip from a fresh start.

    Args:
        recipe: repeats and threads.
        clips: of each the first :func:`whole_periods` frames are run.
        seats: the rows, the float32 teacher first.
        tick: progress.
    """
    frames = [frame for clip in clips for frame in clip.frames[: whole_periods(len(clip), recipe.intervals)]]
    with ExitStack() as stack:
        runners = _Runners(recipe, stack)
        contenders = {seat.name: from_seams(runners.contender(seat, frames[0])) for seat in seats}
        return measure(contenders, seats[0].name, frames, recipe.repeats, tick)


def whole_periods(frames: int, intervals: Sequence[int]) -> int:
    """As many of so many frames as hold whole periods of every interval, so that one in K is a keyframe; else all.

    A frame more is one more keyframe, and would make the mean of large intervals too large.
    """
    period = math.lcm(*intervals)
    return frames // period * period or frames


class _Runners:
    """Opens each bundle once in each precision where rows can share it, so that many rows fit into memory."""

    def __init__(self, recipe: FrontRecipe, stack: ExitStack) -> None:
        self._recipe, self._stack = recipe, stack
        self._open: dict[tuple[str, str], EdgeRunner] = {}

    def contender(self, seat: Seat, frame: Frame) -> Contender:
        if seat.kind == "copy":
            skips = EverySchedule(interval=seat.interval, between="skip")
            return runner_contender(self._opened(seat, skips))
        if seat.kind == "pair":
            return pair_contender(self._shared(seat, ExternalSchedule()), seat.interval)
        runner = self._shared(seat, AlwaysSchedule())
        if seat.kind == "flow":
            baseline = FlowRunner(runner, seat.interval)
            baseline.warm_up(frame)
            return flow_contender(baseline)
        return runner_contender(runner)

    def _shared(self, seat: Seat, schedule: ScheduleSettings) -> EdgeRunner:
        key = (seat.entrant.name, seat.engine)
        if key not in self._open:
            self._open[key] = self._opened(seat, schedule)
        return self._open[key]

    def _opened(self, seat: Seat, schedule: ScheduleSettings) -> EdgeRunner:
        return self._stack.enter_context(
            EdgeRunner(
                seat.entrant.bundle,
                backend=seat.backend,
                engine=seat.engine,
                schedule=schedule,
                threads=self._recipe.threads,
            )
        )


def pair_contender(runner: EdgeRunner, interval: int) -> Contender:
    """A pair with a keyframe every ``interval`` frames, on a runner that several intervals share."""
    count = 0

    def reset() -> None:
        nonlocal count
        count = 0
        runner.reset()

    def step(frame: Frame) -> Sample:
        nonlocal count
        if count % interval == 0:
            runner.request_keyframe()
        count += 1
        result = runner(frame)
        return Sample(result.times, result.kind, result.state_age)

    return Contender(reset, step)


def from_seams(contender: Contender) -> Contender:
    """``contender``, reset where a clip begins: at a frame numbered 0."""

    def step(frame: Frame) -> Sample:
        if frame.seq == 0:
            contender.reset()
        return contender.step(frame)

    return Contender(contender.reset, step, contender.by_runner)
