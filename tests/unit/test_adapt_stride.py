"""The stride of online distillation against a literal transcription of what was published."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.adapt.settings import StrideSettings
from edge_sdk.adapt.stride import StrideSchedule, StrideState, begin, is_teacher, learned, next_frame
from edge_sdk.runtime.result import StepKind

IMAGE = np.zeros((2, 2, 3), np.uint8)
AGREEMENTS = st.floats(0, 1)
THRESHOLDS = st.sampled_from([0.7, 0.8, 0.9])
LADDERS = st.tuples(st.integers(1, 12), st.integers(0, 6)).map(
    lambda pair: (pair[0], pair[0] << pair[1])
) | st.tuples(st.integers(1, 12), st.integers(0, 90)).map(lambda pair: (pair[0], pair[0] + pair[1]))

Measure = Callable[[int], float]


def published_modulo(frames: int, low: int, high: int, threshold: float, measure: Measure) -> list[int]:
    """The paper's listing: teacher where t mod delta == 0. ``measure(t)``: a after the updates of frame t."""
    teacher = []
    delta = low
    for t in range(frames):
        if t % delta == 0:
            teacher.append(t)
            a = measure(t)
            if a > threshold:
                delta = min(2 * delta, high)
            else:
                delta = max(delta // 2, low)
    return teacher


def published_ahead(frames: int, low: int, high: int, threshold: float, measure: Measure) -> list[int]:
    """The later implementation: the next teacher frame is at t + delta."""
    teacher = []
    delta, due = low, 0
    for t in range(frames):
        if t == due:
            teacher.append(t)
            a = measure(t)
            if a > threshold:
                delta = min(2 * delta, high)
            else:
                delta = max(delta // 2, low)
            due = t + delta
    return teacher


PUBLISHED = {"modulo": published_modulo, "ahead": published_ahead}


@pytest.mark.parametrize("due", ["modulo", "ahead"])
@given(
    ladder=LADDERS,
    threshold=THRESHOLDS,
    agreements=st.lists(AGREEMENTS | st.sampled_from([0.7, 0.8, 0.9]), min_size=1, max_size=40),
    frames=st.integers(1, 600),
)
def test_schedule_is_the_published_one(
    due: str, ladder: tuple[int, int], threshold: float, agreements: list[float], frames: int
) -> None:
    low, high = ladder
    settings = StrideSettings.model_validate({"minimum": low, "maximum": high, "due": due})
    expected = PUBLISHED[due](frames, low, high, threshold, lambda t: agreements[t % len(agreements)])

    state, pure = begin(settings), []
    for t in range(frames):
        assert state.frame == t
        teacher = is_teacher(settings, state)
        if teacher:
            pure.append(t)
        state = next_frame(settings, state, teacher=teacher)
        if teacher:
            state = learned(settings, threshold, state, agreements[t % len(agreements)])
    assert pure == expected

    schedule, asked = StrideSchedule(settings, threshold), []
    for t in range(frames):
        if schedule.decide(IMAGE, None if t == 0 else 1) is StepKind.KEYFRAME:
            assert schedule.teaches
            asked.append(t)
            schedule.observe(agreements[t % len(agreements)])
    assert asked == expected
    assert schedule.state == state


@pytest.mark.parametrize(
    ("stride", "agreement", "after"),
    [
        (8, 0.81, 16),
        (8, 0.8, 8),
        (16, 0.8, 8),  # the threshold itself does not double
        (16, 0.79, 8),
        (64, 1.0, 64),
        (32, 1.0, 64),
        (48, 1.0, 64),
        (8, 0.0, 8),
        (9, 0.0, 8),
        (33, 0.0, 16),
        (64, math.nan, 32),
    ],
)
def test_doubled_and_halved(stride: int, agreement: float, after: int) -> None:
    assert learned(StrideSettings(), 0.8, StrideState(stride), agreement) == StrideState(after)


@given(
    due=st.sampled_from(["modulo", "ahead"]),
    lasting=st.lists(st.integers(1, 30), min_size=1, max_size=10),
    forced=st.sets(st.integers(0, 300), max_size=6),
    agreements=st.lists(AGREEMENTS, min_size=1, max_size=10),
)
def test_beside_the_stream_a_lesson_at_a_time(
    due: str, lasting: list[int], forced: set[int], agreements: list[float]
) -> None:
    """Lessons of any length: none begins while one is under way, and none that came due is forgotten."""
    settings = StrideSettings.model_validate({"minimum": 4, "maximum": 32, "due": due})
    until, lessons, owed = 0, 0, False
    now = 0
    schedule = StrideSchedule(settings, 0.8, busy=lambda: now < until)
    for now in range(300):
        if now == until and lessons:
            schedule.observe(agreements[lessons % len(agreements)])
        busy = now < until
        before = schedule.state
        owed = owed or is_teacher(settings, before)
        kind = schedule.decide(IMAGE, None if now == 0 or now in forced else 1)
        if now == 0 or now in forced:
            assert kind is StepKind.KEYFRAME
        if schedule.teaches:
            assert not busy
            assert kind is StepKind.KEYFRAME
            assert owed or now == 0 or now in forced
            until, lessons, owed = now + lasting[lessons % len(lasting)], lessons + 1, False
            assert schedule.state.last == now
        else:
            assert busy or not owed  # what came due is put off only while there is a lesson
            assert kind is StepKind.DELTA or now in forced
        assert schedule.state.due == owed
        assert 4 <= schedule.state.stride <= 32


def test_a_forced_keyframe_does_not_move_the_grid_but_is_a_teacher_frame() -> None:
    schedule = StrideSchedule(StrideSettings(minimum=8, maximum=8), 0.8)
    kinds = [schedule.decide(IMAGE, None if t in (0, 3) else 1) for t in range(17)]
    assert [t for t, kind in enumerate(kinds) if kind is StepKind.KEYFRAME] == [0, 3, 8, 16]
    ahead = StrideSchedule(StrideSettings(minimum=8, maximum=8, due="ahead"), 0.8)
    kinds = [ahead.decide(IMAGE, None if t in (0, 3) else 1) for t in range(20)]
    assert [t for t, kind in enumerate(kinds) if kind is StepKind.KEYFRAME] == [0, 3, 11, 19]


@given(
    due=st.sampled_from(["modulo", "ahead"]),
    agreements=st.lists(AGREEMENTS, min_size=60, max_size=60),
    cut=st.integers(1, 59),
)
def test_restored_it_goes_on_as_if_nothing_had_happened(due: str, agreements: list[float], cut: int) -> None:
    settings = StrideSettings.model_validate({"minimum": 2, "maximum": 16, "due": due})

    def play(schedule: StrideSchedule, frames: range) -> list[int]:
        found = []
        for t in frames:
            if schedule.decide(IMAGE, 1) is StepKind.KEYFRAME:
                found.append(t)
                schedule.observe(agreements[t])
        return found

    whole = StrideSchedule(settings, 0.8)
    expected = play(whole, range(60))
    first, second = StrideSchedule(settings, 0.8), StrideSchedule(settings, 0.8)
    found = play(first, range(cut))
    second.restore(first.state)
    assert found + play(second, range(cut, 60)) == expected


def test_restored_under_other_settings_and_reset() -> None:
    schedule = StrideSchedule(StrideSettings(minimum=4, maximum=16), 0.8)
    schedule.restore(StrideState(64, frame=128, last=64))
    assert schedule.state == StrideState(16, frame=128, last=64)
    schedule.reset()
    assert schedule.state == StrideState(4)


@pytest.mark.parametrize(
    "bad", [{"stride": 0}, {"stride": 1, "frame": -1}, {"stride": 8, "frame": 3, "last": 3}]
)
def test_impossible_states(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        StrideState(**bad)  # type: ignore[arg-type]  # the table is of numbers only


def test_observing_from_another_thread_loses_no_frame() -> None:
    schedule = StrideSchedule(StrideSettings(minimum=1, maximum=1024), 0.8)
    thread = threading.Thread(target=lambda: [schedule.observe(0.9) for _ in range(2000)])
    thread.start()
    for _ in range(2000):
        schedule.decide(IMAGE, 1)
    thread.join()
    assert schedule.state.frame == 2000
    assert schedule.state.stride == 1024


def _seen(schedule: StrideSchedule, levels: list[int]) -> list[int]:
    """Numbers of the frames, of one grey level each, that the teacher is asked about, all of them agreed with."""
    asked = []
    for number, level in enumerate(levels):
        if (
            schedule.decide(np.full((32, 32, 3), level, np.uint8), None if number == 0 else 1)
            is StepKind.KEYFRAME
        ):
            asked.append(number)
            schedule.observe(1.0)
    return asked


def test_a_change_of_the_picture_brings_a_teacher_frame_but_not_sooner_than_the_smallest_stride() -> None:
    levels = [100] * 40 + [120] * 10 + [140] * 40
    assert _seen(StrideSchedule(StrideSettings(), 0.8), levels) == [0, 16, 32, 64]
    # Frame 40 differs by 20 levels: asked at once, since frame 32 is 8 frames back; frame 50 differs by 20 more.
    assert _seen(StrideSchedule(StrideSettings(change=10.0), 0.8), levels) == [0, 16, 32, 40, 50, 64]
    assert _seen(StrideSchedule(StrideSettings(change=20.0), 0.8), levels) == [0, 16, 32, 50, 64]
    # A picture that never rests is asked about every eighth time.
    busy = [0, 50] * 30
    found = _seen(StrideSchedule(StrideSettings(change=10.0), 0.8), busy)
    assert min(np.diff(found)) >= 8
    assert max(np.diff(found)) <= 9


def test_a_change_while_busy_stays_owed() -> None:
    busy = False
    schedule = StrideSchedule(StrideSettings(change=10.0), 0.8, busy=lambda: busy)
    dark, bright = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 50, np.uint8)
    assert schedule.decide(dark, None) is StepKind.KEYFRAME
    busy = True
    for _ in range(9):
        assert schedule.decide(bright, 1) is StepKind.DELTA
    busy = False
    # The picture is as it was, yet what was missed is made up for.
    assert schedule.decide(dark, 1) is StepKind.KEYFRAME
    assert schedule.decide(dark, 1) is StepKind.DELTA
