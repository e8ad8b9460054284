from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import RecipeError
from edge_sdk.settings import parse_settings
from edge_sdk.video.watchdog import LiveSettings, SourceEvent, SourceState, Watchdog

SETTINGS = LiveSettings(stall_s=3, open_s=10, pause_s=0.5, pause_growth=2, max_pause_s=4, lost_s=60)


def told(event: SourceEvent | None) -> tuple[str, int, float]:
    assert event is not None
    return event.state.value, event.attempt, event.pause_s


def opened_at(now_s: float, settings: LiveSettings = SETTINGS) -> Watchdog:
    dog = Watchdog(settings, "fake:0", now_s)
    assert told(dog.good_frame(now_s)) == ("open", 0, 0)
    return dog


def test_a_stall_is_found_when_it_is_due_and_not_before() -> None:
    dog = opened_at(100)
    for at in (101, 102.5, 105):
        assert dog.good_frame(at) is None
    assert dog.due_s == 108
    assert dog.look(107.999) is None
    event = dog.look(108)
    assert told(event) == ("stalled", 0, 0.5)
    assert event is not None
    assert (event.reason, event.at_s, event.uri) == ("no frame for 3 s", 108, "fake:0")


def test_pauses_grow_to_the_longest_and_then_the_source_is_lost() -> None:
    dog = opened_at(0)
    events = []
    now = 0.0
    while dog.state is not SourceState.lost:
        now = dog.due_s
        event = dog.look(now)
        events.append((now, *told(event)))
    # A stall after 3 s; each opening gets 10 s; pauses 0.5, 1, 2, 4, 4; the end 60 s after the last frame.
    assert events == [
        (3, "stalled", 0, 0.5),
        (3.5, "reopening", 1, 0.5),
        (13.5, "stalled", 1, 1),
        (14.5, "reopening", 2, 1),
        (24.5, "stalled", 2, 2),
        (26.5, "reopening", 3, 2),
        (36.5, "stalled", 3, 4),
        (40.5, "reopening", 4, 4),
        (50.5, "stalled", 4, 4),
        (54.5, "reopening", 5, 4),
        (60, "lost", 5, 0),
    ]
    assert event is not None
    assert event.reason == "no frame for 60 s and 5 openings; no answer within 10 s of opening"
    assert dog.due_s == math.inf
    assert dog.look(1e9) is dog.good_frame(1e9) is dog.failed(1e9, "late") is None


@pytest.mark.parametrize(("kept_going_s", "pause"), [(0.0, 1.0), (2.9, 1.0), (3.0, 0.5), (100.0, 0.5)])
def test_pauses_start_short_again_only_for_a_source_that_kept_going(
    kept_going_s: float, pause: float
) -> None:
    dog = opened_at(0)
    assert told(dog.failed(1, "unplugged")) == ("stalled", 0, 0.5)
    assert told(dog.look(1.5)) == ("reopening", 1, 0.5)
    assert told(dog.good_frame(2)) == ("open", 1, 0)
    dog.good_frame(2 + kept_going_s)
    assert told(dog.failed(2 + kept_going_s, "unplugged")) == ("stalled", 0, pause)


def test_for_ever_is_for_ever() -> None:
    dog = opened_at(0, LiveSettings(lost_s=math.inf, max_pause_s=5))
    for _ in range(1000):
        assert dog.look(dog.due_s) is not None
    assert dog.state is not SourceState.lost


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from(["frame", "fail", "look"])), max_size=60))
def test_whatever_happens_time_is_due_ahead_and_pauses_stay_in_range(steps) -> None:
    dog, now = opened_at(0), 0.0
    for wait_s, what in steps:
        now += wait_s
        while (event := dog.look(now)) is not None:
            assert 0 <= event.pause_s <= SETTINGS.max_pause_s
        if what == "frame":
            dog.good_frame(now)
        elif what == "fail":
            event = dog.failed(now, "why")
            assert event is None or SETTINGS.pause_s <= event.pause_s <= SETTINGS.max_pause_s
        assert dog.due_s >= now


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stall_s": 0}, "'stall_s': .*greater than 0, got 0"),
        ({"stall_s": "inf"}, "'stall_s': .*finite"),
        ({"pause_growth": 0.5}, "'pause_growth': .*greater than or equal to 1"),
        ({"lost_s": "nan"}, "'lost_s'"),
        ({"stal_s": 1}, "unknown key 'stal_s', did you mean 'stall_s'"),
    ],
)
def test_bad_settings(values: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_settings(values, LiveSettings, "source")
