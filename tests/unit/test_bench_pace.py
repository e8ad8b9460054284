"""The loops of a bench on a simulated clock: every time is known beforehand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bench.pace import GRACE_MS, Reel, camera, live, paired, saturated
from edge_sdk.bench.samples import FrameColumns
from edge_sdk.evaluate.measure import Contender, Sample
from edge_sdk.runtime.result import BareTime, StageTimes, StepKind
from edge_sdk.video.frame import Frame

ORIGIN_S = 500.0
FRAMES = [Frame(np.full((1, 1, 3), value, np.uint8), value, 0.0) for value in range(4)]


class SimulatedClock:
    """Stands still but for what is told it; ``late_ms`` is how much too late a sleeper wakes."""

    def __init__(self, late_ms: float = 0.0) -> None:
        self.origin_s = ORIGIN_S
        self.time_ms = 0.0
        self.late_ms = late_ms

    def now_ms(self) -> float:
        return self.time_ms

    def sleep_until_ms(self, at_ms: float) -> None:
        if at_ms > self.time_ms:
            self.time_ms = at_ms + self.late_ms


class Fake:
    """Answers frame number n in ``spend(n)`` milliseconds; a keyframe every four frames."""

    def __init__(self, clock: SimulatedClock, spend: Callable[[int], float]) -> None:
        self.clock, self.spend = clock, spend
        self.seen: list[Frame] = []
        self.resets = 0

    def step(self, frame: Frame) -> Sample:
        self.seen.append(frame)
        total = self.spend(frame.seq)
        self.clock.time_ms += total
        kind = StepKind.KEYFRAME if frame.seq % 4 == 0 else StepKind.DELTA
        times = StageTimes(copy_in_ms=0.0, step_ms=total, copy_out_ms=0.0, decode_ms=0.0, total_ms=total)
        return Sample(times, kind, frame.seq % 4)

    def reset(self) -> None:
        self.resets += 1

    @property
    def contender(self) -> Contender:
        return Contender(self.reset, self.step)


def paced(*given: Any) -> tuple[FrameColumns, int]:
    recorder, dropped = camera(*given)
    return recorder.columns(), dropped


def ages(frames: FrameColumns) -> list[float]:
    found = zip(frames.due_ms, frames.called_ms, frames.total_ms, strict=True)
    return [round(called + total - due, 3) for due, called, total in found]


def test_reel_has_no_cut() -> None:
    reel = Reel(FRAMES)
    shown = [int(reel.frame(index, 0.0).image[0, 0, 0]) for index in range(14)]
    assert shown == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert [reel.frame(index, 0.0).seq for index in range(3)] == [0, 1, 2]
    assert [int(Reel(FRAMES[:1]).frame(index, 0.0).image[0, 0, 0]) for index in range(3)] == [0, 0, 0]


def test_saturated_gives_the_next_frame_at_once_and_ends_with_a_period() -> None:
    clock = SimulatedClock()
    fake = Fake(clock, lambda seq: 10.0 if seq % 4 == 0 else 2.0)
    frames = saturated(fake.contender, Reel(FRAMES), clock, 20.0, 4).columns()
    assert frames.kinds == "kdddkddd"  # 20 ms are over in the second period, which is run to its end
    assert frames.called_ms == (0.0, 10.0, 12.0, 14.0, 16.0, 26.0, 28.0, 30.0)
    assert frames.due_ms == frames.called_ms
    assert frames.state_age == (0, 1, 2, 3, 0, 1, 2, 3)
    assert fake.resets == 1
    assert [frame.captured_s for frame in fake.seen[:2]] == [ORIGIN_S, ORIGIN_S + 0.010]


def test_saturated_runs_one_period_at_least() -> None:
    clock = SimulatedClock()
    frames = saturated(Fake(clock, lambda _: 1.0).contender, Reel(FRAMES), clock, 0.0, 3).columns()
    assert len(frames) == 3


def test_a_stall_is_seen_in_every_frame_that_waits_behind_it() -> None:
    """Coordinated omission: a loop that waits for the stalled answer before it counts would see one slow frame."""
    clock = SimulatedClock()
    fake = Fake(clock, lambda seq: 45.0 if seq == 3 else 4.0)
    frames, dropped = paced(fake.contender, Reel(FRAMES), clock, 100.0, 100.0, "queue")
    assert dropped == 0
    assert frames.due_ms == tuple(float(due) for due in range(0, 100, 10))
    # Frame 3 takes 45 ms instead of 4; the six after it wait, each 6 ms less than the one before.
    assert ages(frames) == [4.0, 4.0, 4.0, 45.0, 39.0, 33.0, 27.0, 21.0, 15.0, 9.0]
    assert sum(age > 10.0 for age in ages(frames)) == 6
    assert [frame.captured_s for frame in fake.seen] == [ORIGIN_S + due / 1e3 for due in range(0, 100, 10)]


def test_a_stall_drops_frames_where_only_the_newest_is_kept() -> None:
    clock = SimulatedClock()
    fake = Fake(clock, lambda seq: 45.0 if seq == 3 else 4.0)
    frames, dropped = paced(fake.contender, Reel(FRAMES), clock, 100.0, 100.0, "drop")
    assert frames.seq == (0, 1, 2, 3, 7, 8, 9)
    assert dropped == 3
    # Frame 7 was due at 70, the answer to frame 3 was ready at 75.
    assert ages(frames) == [4.0, 4.0, 4.0, 45.0, 9.0, 4.0, 4.0]


def test_waking_late_is_part_of_the_age() -> None:
    clock = SimulatedClock(late_ms=0.5)
    frames, _ = paced(Fake(clock, lambda _: 4.0).contender, Reel(FRAMES), clock, 50.0, 100.0, "queue")
    assert ages(frames) == [4.0, 4.5, 4.5, 4.5, 4.5]


def test_a_rate_that_is_not_sustained_ends_and_counts_what_still_waits() -> None:
    clock = SimulatedClock()
    frames, dropped = paced(
        Fake(clock, lambda _: 30.0).contender, Reel(FRAMES), clock, 2000.0, 100.0, "queue"
    )
    assert len(frames) + dropped == 200
    assert len(frames) == int((2000.0 + GRACE_MS) / 30.0) + 1
    assert ages(frames)[-1] == pytest.approx(30.0 * len(frames) - 10.0 * (len(frames) - 1))


@given(
    spent=st.lists(st.floats(0.5, 60.0), min_size=1, max_size=40),
    late=st.sampled_from(["queue", "drop"]),
)
def test_every_due_frame_is_answered_or_dropped(spent: list[float], late: str) -> None:
    clock = SimulatedClock()
    fake = Fake(clock, lambda seq: spent[seq % len(spent)])
    frames, dropped = paced(fake.contender, Reel(FRAMES), clock, 400.0, 50.0, late)
    assert len(frames) + dropped == 20
    assert list(frames.seq) == sorted(set(frames.seq))
    for seq, due, called in zip(frames.seq, frames.due_ms, frames.called_ms, strict=True):
        assert due == pytest.approx(seq * 20.0)
        assert called >= due - 1e-3
    free = [called + total for called, total in zip(frames.called_ms, frames.total_ms, strict=True)]
    assert all(called >= end - 1e-2 for called, end in zip(frames.called_ms[1:], free, strict=False))


def test_pairs_are_the_same_kinds_through_the_runner_and_bare() -> None:
    clock = SimulatedClock()
    fake = Fake(clock, lambda seq: 10.0 if seq % 4 == 0 else 2.0)

    def bare(kinds: Sequence[StepKind]) -> list[BareTime]:
        clock.time_ms += 15.0
        return [BareTime(kind, 9.5 if kind is StepKind.KEYFRAME else 1.5, None) for kind in kinds]

    found = paired(fake.contender, bare, Reel(FRAMES), clock, 40.0, 4)
    assert found.kinds == "kddd" * 2
    assert found.runner_ms == (10.0, 2.0, 2.0, 2.0) * 2
    assert found.wall_ms == (9.5, 1.5, 1.5, 1.5) * 2
    assert found.gpu_ms == ()


def test_what_a_run_keeps_of_a_frame_is_small() -> None:
    """Else a run of hours would take its own record for memory that the runner loses."""
    clock = SimulatedClock()
    recorder = saturated(Fake(clock, lambda _: 1.0).contender, Reel(FRAMES), clock, 4000.0, 4)
    columns = vars(recorder).values()
    assert len(recorder) == 4000
    assert sum(sys.getsizeof(column) for column in columns) / len(recorder) < 130


def test_live_frames_keep_their_own_times_and_gaps() -> None:
    clock = SimulatedClock()
    given = [(0, 0.0), (1, 33.0), (4, 133.0), (5, 166.0)]

    def source():
        for seq, at_ms in given:
            clock.sleep_until_ms(at_ms + 2.0)  # the way from the sensor to the program
            yield Frame(FRAMES[0].image, seq, ORIGIN_S + at_ms / 1e3)

    recorder, dropped = live(Fake(clock, lambda _: 5.0).contender, source(), clock, 150.0)
    frames = recorder.columns()
    assert (frames.seq, dropped) == ((0, 1, 4, 5), 2)
    assert ages(frames) == [7.0, 7.0, 7.0, 7.0]


def test_a_frame_that_lay_there_before_the_block_is_left_out() -> None:
    clock = SimulatedClock()
    clock.time_ms = 100.0
    given = [Frame(FRAMES[0].image, seq, ORIGIN_S + at_ms / 1e3) for seq, at_ms in ((2, 67.0), (4, 133.0))]

    def source():
        for frame in given:
            clock.sleep_until_ms((frame.captured_s - ORIGIN_S) * 1e3)
            yield frame

    recorder, dropped = live(Fake(clock, lambda _: 5.0).contender, source(), clock, 30.0)
    assert (recorder.columns().seq, dropped) == ((4,), 0)
