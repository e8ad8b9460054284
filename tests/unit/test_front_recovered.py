"""The recovered share: exact values on hand-made points, and what holds for any points."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.evaluate.front.recovered import LEAST_GAP, Point, envelope, recovered, rival_at

TEACHER = Point("teacher", 16.0, 0.65)
NETS = (Point("quarter", 2.0, 0.55), Point("half", 4.0, 0.63))


def pair(ms: float, accuracy: float) -> Point:
    return Point("pair", ms, accuracy)


@pytest.mark.parametrize(
    ("ms", "accuracy", "rival", "between", "share"),
    [
        (3.0, 0.62, 0.59, ("quarter", "half"), 0.5),
        (4.0, 0.64, 0.63, ("half",), 0.5),
        (2.0, 0.65, 0.55, ("quarter",), 1.0),
        (10.0, 0.645, 0.64, ("half", "teacher"), 0.5),
        (10.0, 0.64, 0.64, ("half", "teacher"), 0.0),
        (10.0, 0.635, 0.64, ("half", "teacher"), -0.5),
        (10.0, 0.655, 0.64, ("half", "teacher"), 1.5),
    ],
)
def test_exact_values(ms, accuracy, rival, between, share):
    found = recovered(pair(ms, accuracy), NETS, TEACHER)
    assert found.rival == pytest.approx(rival, abs=1e-12)
    assert found.between == between
    assert found.share == pytest.approx(share, abs=1e-9)
    assert (found.beside_fastest, found.reason) == (None, "")


def test_the_figures_that_the_measure_was_first_told_with():
    """A pair of 6.6 ms and 0.646 beside one network of 4.3 ms and 0.629 and a teacher of 15.1 ms and 0.651."""
    nets = (Point("eighth", 1.0, 0.5), Point("half", 4.3, 0.629))
    found = recovered(pair(6.6, 0.646), nets, Point("teacher", 15.1, 0.651))
    rival = 0.629 + (6.6 - 4.3) / (15.1 - 4.3) * 0.022
    assert found.share == pytest.approx((0.646 - rival) / (0.651 - rival))
    assert found.share == pytest.approx(0.711, abs=1e-3)


@pytest.mark.parametrize(("ms", "accuracy"), [(16.0, 0.65), (16.0, 0.7), (20.0, 0.66)])
def test_a_pair_that_is_not_faster_than_the_teacher_has_no_share(ms, accuracy):
    found = recovered(pair(ms, accuracy), NETS, TEACHER)
    assert (found.share, found.rival, found.beside_fastest) == (None, None, None)
    assert found.reason == f"not faster than the teacher: {ms:.2f} ms against 16.00 ms"


def test_a_pair_faster_than_every_network_is_compared_with_the_fastest():
    found = recovered(pair(1.5, 0.6), NETS, TEACHER)
    assert (found.share, found.rival, found.between) == (None, 0.55, ("quarter",))
    assert found.beside_fastest == pytest.approx(0.5)
    assert found.reason == (
        "faster than every network: 1.50 ms against 2.00 ms of quarter; "
        "beside that one, which takes more time, 0.50"
    )


def test_nothing_to_recover_where_a_network_is_as_good_as_the_teacher():
    nets = (*NETS, Point("better", 8.0, 0.66))
    found = recovered(pair(9.0, 0.7), nets, TEACHER)
    assert (found.share, found.rival, found.between) == (None, 0.66, ("better",))
    assert found.reason == "nothing to recover: a network of that latency has 0.6600, the teacher 0.6500"
    found = recovered(pair(1.0, 0.7), (Point("better", 8.0, 0.66), Point("worse", 9.0, 0.5)), TEACHER)
    assert found.beside_fastest is None
    assert found.reason == "faster than every network: 1.00 ms against 8.00 ms of better"


def test_a_wider_network_that_is_worse_does_not_weaken_the_rival():
    worse = Point("wide but worse", 8.0, 0.6)
    with_it, without = (recovered(pair(8.0, 0.64), nets, TEACHER) for nets in ((*NETS, worse), NETS))
    assert with_it == without
    assert [point.name for point in envelope([*NETS, worse, TEACHER])] == ["quarter", "half", "teacher"]


def test_a_network_slower_than_the_teacher_does_not_count():
    slow = Point("slow", 20.0, 0.6)
    assert recovered(pair(8.0, 0.64), (*NETS, slow), TEACHER) == recovered(pair(8.0, 0.64), NETS, TEACHER)


MS = st.floats(0.1, 100)
ACCURACY = st.floats(0, 1)
PLACES = st.lists(st.tuples(MS, ACCURACY), min_size=2, max_size=8)


def points(places: list[tuple[float, float]]) -> list[Point]:
    return [Point(f"net {place}", ms, accuracy) for place, (ms, accuracy) in enumerate(places)]


@given(PLACES, st.lists(MS, min_size=2, max_size=6))
def test_the_rival_rises_with_its_time_and_is_no_network_s_worse(places, times):
    nets = points(places)
    line = envelope(nets)
    assert all(a.ms < b.ms and a.accuracy < b.accuracy for a, b in pairwise(line))
    within = sorted(max(ms, line[0].ms) for ms in times)
    found = [rival_at(line, ms)[0] for ms in within]
    assert found == sorted(found)
    for ms, rival in zip(within, found, strict=True):
        assert rival >= max(net.accuracy for net in nets if net.ms <= ms)
        assert rival <= max(net.accuracy for net in nets)


@given(PLACES, MS, ACCURACY, MS, ACCURACY)
def test_what_holds_for_any_points(places, ms, accuracy, teacher_ms, teacher_accuracy):
    nets, teacher = points(places), Point("teacher", teacher_ms, teacher_accuracy)
    found = recovered(pair(ms, accuracy), nets, teacher)
    assert (found.share is None) == bool(found.reason)
    if found.share is None:
        return
    assert found.rival is not None
    assert teacher.accuracy - found.rival >= LEAST_GAP
    assert (found.share > 0) == (accuracy > found.rival) or accuracy == pytest.approx(found.rival)
    # As good as the teacher, and as good as the rival, whatever the latency.
    assert recovered(pair(ms, teacher_accuracy), nets, teacher).share == 1
    assert recovered(pair(ms, found.rival), nets, teacher).share == 0
    # The order in which networks are named is no matter where no two take the same time.
    if len({net.ms for net in nets}) == len(nets):
        assert recovered(pair(ms, accuracy), nets[::-1], teacher) == found
