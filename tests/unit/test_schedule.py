from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import RecipeError
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import (
    AlwaysSchedule,
    ChangeSchedule,
    DriftSchedule,
    EverySchedule,
    ExternalSchedule,
    SampleSchedule,
    Schedule,
    ScheduleSettings,
)
from edge_sdk.settings import Settings, parse_settings

BLANK = np.zeros((8, 8, 3), np.uint8)


class Holder(Settings):
    schedule: ScheduleSettings


def grey(level: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def decisions(schedule: Schedule, images: list[np.ndarray], lost: frozenset[int] = frozenset()) -> str:
    """One letter a frame; ages are counted as the runner counts them, ``lost`` are frames that need a keyframe."""
    letters, age = "", 0
    for index, image in enumerate(images):
        needed = index == 0 or index in lost
        kind = schedule.decide(image, None if needed else age + 1)
        assert kind is StepKind.KEYFRAME or not needed
        age = 0 if kind is StepKind.KEYFRAME else age + 1
        letters += kind.value[0]
    return letters


@pytest.mark.parametrize(
    ("settings", "lost", "expected"),
    [
        (AlwaysSchedule(), (), "kkkkkkkkkk"),
        (EverySchedule(interval=1), (), "kkkkkkkkkk"),
        (EverySchedule(interval=3), (), "kddkddkddk"),
        (EverySchedule(interval=3, phase=1), (), "kkddkddkdd"),
        (EverySchedule(interval=3, phase=2), (), "kdkddkddkd"),
        (EverySchedule(interval=4, between="skip"), (), "ksssksssks"),
        (EverySchedule(interval=5), (2,), "kdkddkdddd"),
        (EverySchedule(interval=20), (), "kddddddddd"),
        (DriftSchedule(below=0.5), (), "kddddddddd"),
        (DriftSchedule(below=0.5, max_interval=3), (), "kddkddkddk"),
        (DriftSchedule(below=0.5, max_interval=1), (), "kkkkkkkkkk"),
        (DriftSchedule(below=0.5), (2, 3), "kdkkdddddd"),
        (ExternalSchedule(), (), "kddddddddd"),
        (ExternalSchedule(), (4, 5), "kdddkkdddd"),
        (ExternalSchedule(max_interval=4), (), "kdddkdddkd"),
        (ExternalSchedule(max_interval=4), (2,), "kdkdddkddd"),
        (ChangeSchedule(threshold=5), (), "kddddddddd"),
        (ChangeSchedule(threshold=5, max_interval=3), (), "kddkddkddk"),
        (ChangeSchedule(threshold=5, max_interval=4, between="skip"), (), "ksssksssks"),
        (SampleSchedule(length=1, samples=1), (), "kkkkkkkkkk"),
        (SampleSchedule(length=4, samples=1), (), "ksssksssks"),
        (SampleSchedule(length=4, samples=4), (), "kdddkdddkd"),
        (SampleSchedule(length=4, samples=2), (), "ksdsksdsks"),
        # 3 of 8: frames 0, 2 and 5.
        (SampleSchedule(length=8, samples=3), (), "ksdssdssks"),
        (SampleSchedule(length=4, samples=2, restart=False), (), "ksdsdsdsds"),
        (SampleSchedule(length=5, samples=1, restart=False), (), "kssssdssss"),
        # A keyframe that is needed begins a clip, wherever it falls.
        (SampleSchedule(length=4, samples=2), (3,), "ksdksdsksd"),
        (SampleSchedule(length=4, samples=2), (1, 2), "kkksdsksds"),
        (SampleSchedule(length=4, samples=2, restart=False), (5,), "ksdsdksdsd"),
    ],
)
def test_decisions_on_a_still_picture(
    settings: ScheduleSettings, lost: tuple[int, ...], expected: str
) -> None:
    assert decisions(settings.start(), [BLANK] * 10, frozenset(lost)) == expected


@pytest.mark.parametrize(
    ("settings", "levels", "expected"),
    [
        # The threshold itself is no change; the difference is to the keyframe, so slow drift adds up.
        (ChangeSchedule(threshold=10), (0, 10, 11, 11, 21, 22), "kdkddk"),
        (ChangeSchedule(threshold=10), (0, 5, 10, 15, 20, 25), "kddkdd"),
        (ChangeSchedule(threshold=0), (0, 0, 1, 1), "kdkd"),
        (ChangeSchedule(threshold=10, min_interval=3), (0, 99, 99, 99, 99), "kddkd"),
        (ChangeSchedule(threshold=255), (0, 255, 0, 255), "kddd"),
        (ChangeSchedule(threshold=10), (200, 100, 100), "kkd"),  # darker is a change too, no wrap-around
    ],
)
def test_change_against_the_keyframe(
    settings: ChangeSchedule, levels: tuple[int, ...], expected: str
) -> None:
    assert decisions(settings.start(), [grey(level) for level in levels]) == expected


def test_change_compares_with_a_keyframe_it_did_not_choose() -> None:
    schedule = ChangeSchedule(threshold=10).start()
    images = [grey(0), grey(8), grey(12), grey(12)]
    assert decisions(schedule, images) == "kdkd"
    schedule.reset()
    # Frame 1 is forced; frame 2 is 4 levels from it and 12 from frame 0.
    assert decisions(schedule, images, lost=frozenset({1})) == "kkdd"


def test_change_reads_every_32nd_pixel_only() -> None:
    changed = grey(0, 96)
    changed[1::2, :] = 255
    assert decisions(ChangeSchedule(threshold=1).start(), [grey(0, 96), changed]) == "kd"
    assert decisions(ChangeSchedule(threshold=1, stride=1).start(), [grey(0, 96), changed]) == "kk"


def test_luma_weighs_green_most() -> None:
    green, blue = grey(0), grey(0)
    green[..., 1], blue[..., 0] = 20, 20  # luma 11.7 and 2.3
    settings = ChangeSchedule(threshold=10)
    assert decisions(settings.start(), [BLANK, green]) == "kk"
    assert decisions(settings.start(), [BLANK, blue]) == "kd"


@settings(max_examples=60)
@given(length=st.integers(1, 40), data=st.data(), clips=st.integers(1, 3), restart=st.booleans())
def test_so_many_frames_of_each_clip_are_seen(
    length: int, data: st.DataObject, clips: int, restart: bool
) -> None:
    samples = data.draw(st.integers(1, length))
    schedule = SampleSchedule(length=length, samples=samples, restart=restart)
    letters = decisions(schedule.start(), [BLANK] * (length * clips))
    for clip in range(clips):
        part = letters[clip * length : (clip + 1) * length]
        assert length - part.count("s") == samples
        assert tuple(place for place, letter in enumerate(part) if letter != "s") == schedule.seen
        assert part[0] == ("k" if restart or clip == 0 else "d")
        assert "k" not in part[1:]
    # Spread evenly: from one to the next the distance differs by one frame at most.
    steps = np.diff((*schedule.seen, length))
    assert steps.max() - steps.min() <= 1
    coverage = schedule.coverage(25.0)
    assert (coverage.frames, coverage.every_frames) == (length, steps.max())
    assert (coverage.seconds, coverage.every_s) == pytest.approx((length / 25, steps.max() / 25))


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (
            SampleSchedule(length=60, samples=6),
            "answers cover the clip so far, at most 60 frames (2 s), a new one every 10 frames (0.33 s)",
        ),
        (
            SampleSchedule(length=60, samples=60, restart=False),
            "answers cover the last 60 frames (2 s), a new one every frame (0.033 s)",
        ),
    ],
)
def test_the_latency_of_an_answer_is_said(schedule: SampleSchedule, text: str) -> None:
    assert str(schedule.coverage(30.0)) == text


@given(interval=st.integers(1, 12), data=st.data(), count=st.integers(1, 60))
def test_every_keeps_its_grid(interval: int, data: st.DataObject, count: int) -> None:
    phase = data.draw(st.integers(0, interval - 1))
    letters = decisions(EverySchedule(interval=interval, phase=phase).start(), [BLANK] * count)
    keyframes = {index for index, letter in enumerate(letters) if letter == "k"}
    assert keyframes == {0} | set(range(phase, count, interval))


SETTINGS = st.one_of(
    st.builds(AlwaysSchedule),
    st.builds(EverySchedule, interval=st.integers(1, 6), between=st.sampled_from(["delta", "skip"])),
    st.builds(
        ChangeSchedule,
        threshold=st.integers(0, 100),
        max_interval=st.none() | st.integers(1, 9),
        between=st.sampled_from(["delta", "skip"]),
    ),
    st.builds(DriftSchedule, below=st.just(0.5), max_interval=st.none() | st.integers(1, 9)),
    st.builds(SampleSchedule, length=st.integers(4, 9), samples=st.integers(1, 4), restart=st.booleans()),
    st.builds(ExternalSchedule, max_interval=st.none() | st.integers(1, 9)),
)
LEVELS = st.lists(st.integers(0, 255), min_size=1, max_size=30)


@given(settings=SETTINGS, levels=LEVELS, lost=st.frozensets(st.integers(0, 30)), before=LEVELS)
def test_properties_of_every_schedule(
    settings: ScheduleSettings, levels: list[int], lost: frozenset[int], before: list[int]
) -> None:
    images = [grey(level) for level in levels]
    schedule = settings.start()
    letters = decisions(schedule, images, lost)
    assert all(letters[index] == "k" for index in {0} | lost if index < len(letters))
    assert settings.uses_delta or "d" not in letters
    longest = getattr(settings, "max_interval", None) or getattr(settings, "interval", None)
    assert longest is None or "k" in letters[-longest:]

    schedule.reset()
    decisions(schedule, [grey(level) for level in before])
    schedule.reset()
    assert decisions(schedule, images, lost) == letters
    assert Holder.model_validate_json(Holder(schedule=settings).model_dump_json()).schedule == settings


@given(settings=SETTINGS, first=LEVELS, second=LEVELS)
def test_two_schedules_of_one_setting_are_independent(
    settings: ScheduleSettings, first: list[int], second: list[int]
) -> None:
    alone = decisions(settings.start(), [grey(level) for level in first])
    one, other = settings.start(), settings.start()
    decisions(other, [grey(level) for level in second])
    assert decisions(one, [grey(level) for level in first]) == alone


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"kind": "sometimes"},
            r"'schedule'.*'sometimes'.*expected tags.*'always', 'every', 'change', 'drift', 'sample', 'external'",
        ),
        ({"interval": 5}, r"'schedule'.*kind"),
        ({"kind": "every"}, r"'schedule.every.interval' is missing"),
        ({"kind": "every", "interval": 0}, r"interval'.*greater than or equal to 1, got 0"),
        ({"kind": "every", "interval": 5, "phase": 5}, r"phase must be below interval \(5\), it is 5"),
        ({"kind": "every", "interval": 5, "phase": -1}, r"phase'.*greater than or equal to 0, got -1"),
        ({"kind": "every", "interval": 5, "between": "copy"}, r"between'.*'delta' or 'skip', got 'copy'"),
        ({"kind": "every", "intervall": 5}, r"unknown key 'schedule.every.intervall'"),
        ({"kind": "change", "threshold": -1}, r"threshold'.*greater than or equal to 0"),
        ({"kind": "change", "threshold": 300}, r"threshold'.*less than or equal to 255"),
        (
            {"kind": "change", "threshold": 1, "min_interval": 9, "max_interval": 3},
            r"max_interval 3 is below min_",
        ),
        ({"kind": "change", "threshold": 1, "between": "copy"}, r"between'.*'delta' or 'skip', got 'copy'"),
        ({"kind": "drift"}, r"'schedule.drift.below' is missing"),
        ({"kind": "drift", "below": 0}, r"below'.*greater than 0, got 0"),
        ({"kind": "drift", "below": 1.5}, r"below'.*less than or equal to 1, got 1\.5"),
        (
            {"kind": "drift", "below": 0.5, "min_interval": 9, "max_interval": 3},
            r"max_interval 3 is below min_interval 9",
        ),
        ({"kind": "drift", "below": 0.5, "between": "skip"}, r"unknown key 'schedule.drift.between'"),
        ({"kind": "sample", "length": 5}, r"'schedule.sample.samples' is missing"),
        ({"kind": "sample", "length": 5, "samples": 6}, r"samples must be at most length \(5\), it is 6"),
        ({"kind": "sample", "length": 5, "samples": 0}, r"samples'.*greater than or equal to 1, got 0"),
        ({"kind": "external", "max_interval": 0}, r"max_interval'.*greater than or equal to 1"),
        ({"kind": "always", "interval": 1}, r"unknown key 'schedule.always.interval'"),
    ],
)
def test_bad_settings_are_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_settings({"schedule": data}, Holder, "recipe")


def bearing(settings: SampleSchedule, frames: list[int]) -> str:
    """One letter for each frame that came, by its number in the stream; whoever bears no loss begins anew."""
    schedule, letters, last, age = settings.start(), "", -1, 0
    for seq in frames:
        missed = seq - last - 1
        whole = last >= 0 and (missed == 0 or schedule.lost(missed))
        kind = schedule.decide(BLANK, age + 1 + missed if whole else None)
        age, last = (0 if kind is StepKind.KEYFRAME else age + 1 + missed), seq
        letters += kind.value[0]
    return letters


@pytest.mark.parametrize(
    ("settings", "frames", "expected"),
    [
        # Seen are 0, 3 and 6 of each 9; frame 1 is lost, which nobody would have seen.
        ((9, 3, True), [0, 2, 3, 4, 5, 6], "ksdssd"),
        # The sample at 3 is lost and taken late, the next one is where it was.
        ((9, 3, True), [0, 1, 2, 4, 5, 6, 7], "kssdsds"),
        ((9, 3, True), [0, 1, 2, 5, 6, 7], "kssdds"),
        # As many as lie between two samples.
        ((9, 3, True), [0, 1, 5, 6, 7, 8], "kskssd"),
        # The clip's end is among the lost: the next clip begins with the frame that comes, and keeps its places.
        ((9, 3, True), [0, 1, 2, 3, 6, 7, 8, 10, 11, 12], "kssddssksd"),
        # Without restart it is a late sample like any other.
        ((4, 1, False), [0, 1, 3, 5, 6], "kssds"),
        # Where every frame is seen, each one counts.
        ((4, 4, True), [0, 1, 3, 4], "kdkd"),
    ],
)
def test_what_a_clip_bears_of_lost_frames(
    settings: tuple[int, int, bool], frames: list[int], expected: str
) -> None:
    length, samples, restart = settings
    assert bearing(SampleSchedule(length=length, samples=samples, restart=restart), frames) == expected


@given(
    lost=st.integers(1, 20),
    which=st.sampled_from(
        [AlwaysSchedule(), EverySchedule(interval=5), ExternalSchedule(), DriftSchedule(below=0.5)]
    ),
)
def test_other_schedules_bear_no_loss(lost: int, which: Settings) -> None:
    schedule: Schedule = which.start()  # type: ignore[attr-defined]
    assert not schedule.lost(lost)
