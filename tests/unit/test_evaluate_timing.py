"""Statistics of timed runs, with exact numbers."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.evaluate.measure import Contender, Sample, measure
from edge_sdk.evaluate.timing import Spread, Timing, amortised, rotation, summarise
from edge_sdk.runtime.result import StageTimes, StepKind
from edge_sdk.video.frame import Frame


@pytest.mark.parametrize(
    ("values", "median", "iqr"),
    [
        ([4.0], 4.0, 0.0),
        ([1.0, 3.0], 2.0, 1.0),
        ([5.0, 1.0, 4.0, 2.0, 3.0], 3.0, 2.0),
        ([1.0, 1.0, 1.0, 9.0], 1.0, 2.0),
    ],
)
def test_spread(values, median, iqr):
    assert Spread.of(values) == Spread(median=median, iqr=iqr)


def test_summary_of_known_times():
    teacher = np.array([[10.0, 10.0], [20.0, 20.0], [12.0, 12.0]])
    times = np.array([[6.0, 2.0], [8.0, 4.0], [9.0, 3.0]])  # means 4, 6, 6
    timing = summarise(times, teacher, [True, False], own_ms=np.full((3, 2), 0.25))
    assert timing.mean_ms == Spread(median=6.0, iqr=1.0)
    assert timing.p50_ms == Spread(median=6.0, iqr=1.0)
    assert timing.p99_ms.median == pytest.approx(7.96)  # 4 + 0.99 x 4 of the second run
    assert timing.fps == pytest.approx(1000 / 6)
    # Within each run: 10/4, 20/6, 12/6. The slow second run of both does not count against either.
    assert timing.speedup.median == pytest.approx(2.5)
    assert (timing.keyframe_ms, timing.between_ms, timing.runner_ms) == (8.0, 3.0, 0.25)
    assert timing.frames_ms == ((6.0, 2.0), (8.0, 4.0), (9.0, 3.0))
    assert timing.per_frame_ms().tolist() == [8.0, 3.0]


def test_what_there_is_none_of_is_none():
    times = np.ones((2, 3))
    every = summarise(times, times, [True] * 3)
    assert (every.keyframe_ms, every.between_ms, every.runner_ms) == (1.0, None, None)


@pytest.mark.parametrize(("means", "noisy"), [([10.0, 10.4, 10.8], False), ([10.0, 12.0, 14.0], True)])
def test_wide_spread_is_flagged(means, noisy):
    times = np.array(means)[:, None]
    assert summarise(times, times, [True]).noisy is noisy


def test_timing_survives_json():
    times = np.random.default_rng(0).uniform(1, 2, (3, 4))
    timing = summarise(times, times, [True, False, False, True])
    assert Timing.model_validate_json(timing.model_dump_json()) == timing


def test_rotation_begins_one_further_each_run():
    assert [rotation("abc", repeat) for repeat in range(4)] == [list(x) for x in ("abc", "bca", "cab", "abc")]


@pytest.mark.parametrize(
    ("keyframe", "between", "interval", "macs"),
    [
        (100, 10, 1, 100),
        (100, 10, 10, 19),
        (100, 0, 10, 10),
        (None, 1, 5, None),
        (1, None, 5, None),
        (10, 3, 4, 5),
    ],
)
def test_amortised_macs(keyframe, between, interval, macs):
    assert amortised(keyframe, between, interval) == macs


class Fake:
    """A contender with a clock of its own, that writes down what was asked of it."""

    def __init__(self, name: str, log: list[str], times: dict[StepKind, float], own_ms: float | None) -> None:
        self.name, self.log, self.times, self.own_ms = name, log, times, own_ms
        self.count = 0

    def reset(self) -> None:
        self.count = 0
        self.log.append(f"{self.name} reset")

    def step(self, frame: Frame) -> Sample:
        kind = StepKind.KEYFRAME if self.count % 2 == 0 else StepKind.DELTA
        self.count += 1
        self.log.append(f"{self.name} {frame.seq}")
        total_ms = self.times[kind]
        times = StageTimes(
            copy_in_ms=0.0,
            step_ms=total_ms - (self.own_ms or 0.0),
            copy_out_ms=0.0,
            decode_ms=0.0,
            total_ms=total_ms,
        )
        return Sample(times, kind, 0)

    def contender(self) -> Contender:
        return Contender(self.reset, self.step, by_runner=self.own_ms is not None)


def test_measure_interleaves_and_leaves_the_first_frame_out():
    log: list[str] = []
    ticks: list[tuple[str, int, int]] = []
    slow = Fake("slow", log, {StepKind.KEYFRAME: 8.0, StepKind.DELTA: 8.0}, None)
    fast = Fake("fast", log, {StepKind.KEYFRAME: 6.0, StepKind.DELTA: 2.0}, 0.5)
    frames = [Frame(np.zeros((1, 1, 3), np.uint8), seq, 0.0) for seq in range(2)]
    contenders = {"slow": slow.contender(), "fast": fast.contender()}
    timings = measure(contenders, "slow", frames, 2, lambda *tick: ticks.append(tick))

    def run(name: str) -> list[str]:
        return [f"{name} reset", f"{name} 0", f"{name} reset", f"{name} 0", f"{name} 1"]

    assert log == run("slow") + run("fast") + run("fast") + run("slow")
    assert ticks == [("timing", done, 4) for done in (1, 2, 3, 4)]
    assert list(timings) == ["slow", "fast"]
    assert timings["fast"].frames_ms == ((6.0, 2.0), (6.0, 2.0))
    assert timings["fast"].keyframes == (True, False)
    assert timings["fast"].speedup == Spread(median=2.0, iqr=0.0)
    assert (timings["slow"].runner_ms, timings["fast"].runner_ms) == (None, 0.5)
