"""What the bench report draws: thinned, without losing a spike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bench.pooled import Pooled
from edge_sdk.bench.samples import Block, FrameColumns, Reading
from edge_sdk.bench.series import dropped_at_ms, envelope, front, sensors, tail

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=200), st.integers(1, 50))
def test_an_envelope_keeps_the_extremes_of_every_span(samples, spans):
    at, values = (np.array(column, float) for column in zip(*samples))
    found = envelope(at, values, spans)
    assert int(found.count.sum()) == len(samples)
    assert (found.count >= 1).all()
    assert (np.diff(found.at) >= 0).all()
    assert found.high.max() == values.max()
    assert found.low.min() == values.min()
    # span by span, by hand: the samples in order of time, cut where the counts say
    ordered = values[np.argsort(at, kind="stable")]
    for part, low, high in zip(np.split(ordered, np.cumsum(found.count)[:-1]), found.low, found.high):
        assert (low, high) == (part.min(), part.max())
    if found.width:
        assert len(found.at) <= spans


def test_an_envelope_of_an_hour_keeps_a_single_spike():
    at = np.arange(108_000) * 33.3
    values = np.full(len(at), 8.0)
    values[70_001] = 90.0
    found = envelope(at, values, 700)
    assert len(found.at) == 700
    assert np.flatnonzero(found.high == 90.0).tolist() == [70_001 * 700 // 108_000]
    assert abs(found.at[found.high == 90.0][0] - at[70_001]) <= found.width


def test_few_samples_stand_by_themselves():
    found = envelope(np.array([3.0, 1.0]), np.array([30.0, 10.0]), 2)
    assert (found.at.tolist(), found.low.tolist(), found.width) == ([1.0, 3.0], [10.0, 30.0], 0.0)


def block(seq, due):
    many = len(seq)
    zeros = (0.0,) * many
    return Block(
        row="subject", round=0, mode="camera", dropped=3,
        frames=FrameColumns(
            kinds="k" * many, seq=seq, due_ms=due, called_ms=due, copy_in_ms=zeros, step_ms=zeros, copy_out_ms=zeros,
            decode_ms=zeros, total_ms=zeros, state_age=(0,) * many,
        ),
    )  # fmt: skip


def test_dropped_frames_are_where_the_camera_had_them():
    blocks = [block((0, 1, 4), (0.0, 10.0, 40.0)), block((9, 11), (100.0, 120.0))]
    assert dropped_at_ms(Pooled.of(blocks)).tolist() == [20.0, 30.0, 110.0]


def test_a_tail_ends_with_the_slowest():
    nines, values = tail(np.arange(1.0, 1001.0))
    assert (nines[0], nines[-1]) == (0.0, 3.0)
    assert (values[0], values[-1]) == (1.0, 1000.0)
    at_99 = np.interp(2.0, nines, values)
    assert at_99 == pytest.approx(np.percentile(np.arange(1.0, 1001.0), 99), rel=1e-3)
    assert (np.diff(values) >= 0).all()


def test_a_tail_of_one_frame():
    values = tail(np.array([5.0]))[1]
    assert values.tolist() == [5.0, 5.0]


def test_sensors_of_a_kind_are_one():
    readings = [
        Reading(at_ms=float(at), clock_mhz={"cpu0": 1000.0 + at, "cpu1": 2000.0, "gpu": 500.0})
        for at in (0, 100)
    ]
    found = sensors(readings, lambda reading: reading.clock_mhz)
    assert [(one.name, one.members) for one in found] == [("cpu", 2), ("gpu", 1)]
    assert found[0].low.tolist() == [1000.0, 1100.0]
    assert found[0].middle.tolist() == [1500.0, 1550.0]
    assert found[0].high.tolist() == [2000.0, 2000.0]


def test_a_single_sensor_keeps_its_number():
    found = sensors([Reading(at_ms=0, temperature_c={"zone0": 40.0})], lambda reading: reading.temperature_c)
    assert [(one.name, one.members) for one in found] == [("zone0", 1)]


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ({"a": (1.0, 0.5), "b": (2.0, 0.6), "c": (3.0, 0.55)}, ("a", "b")),
        ({"a": (1.0, 0.5), "b": (1.0, 0.6)}, ("b",)),
        ({"a": (2.0, 0.6), "b": (1.0, 0.6)}, ("b",)),
        ({"a": (1.0, 0.5)}, ("a",)),
        ({}, ()),
    ],
)
def test_the_front(points, best):
    assert front(points) == best


@given(st.dictionaries(st.text(max_size=3), st.tuples(NUMBERS, NUMBERS), max_size=20))
def test_nothing_beats_a_point_of_the_front(points):
    best = front(points)
    for name, (latency, accuracy) in points.items():
        beaten = any(
            x <= latency and y >= accuracy and (x, y) != (latency, accuracy) for x, y in points.values()
        )
        assert not (name in best and beaten)
        if not beaten:
            assert any(points[one] == points[name] for one in best)
