"""Memory, sensors, and the conditions of the worst frames, against numbers worked out by hand."""

from __future__ import annotations

from edge_sdk.bench.figures import Span
from edge_sdk.bench.samples import Reading
from edge_sdk.bench.statistics import compute
from edge_sdk.bench.surroundings import WORST, phrases
from tests.bench_blocks import T1, block, document_of, near


def test_memory_grows_by_hour_and_by_frame():
    # A frame every 100 ms; a reading a second, 1000 bytes more each. The first round ends after 10 s.
    blocks = [block("k" * 100, [100.0] * 100, round=number, from_ms=10_000.0 * number) for number in range(3)]
    readings = tuple(
        Reading(at_ms=1000.0 * second, rss_bytes=(900_000 if second < 10 else 1_000_000) + 1000 * second)
        for second in range(30)
    )
    found = compute(document_of(*blocks, readings=readings)).memory
    assert list(found) == ["process"]
    process = found["process"]
    assert (process.first_bytes, process.last_bytes, process.peak_bytes) == (900_000, 1_029_000, 1_029_000)
    assert near(process.growth_bytes_per_hour, 3.6e6, 3.6e6, 3.6e6)
    assert near(process.growth_bytes_per_frame, 100.0, 100.0, 100.0)


def test_what_opening_a_runner_adds_is_no_growth():
    blocks = [block("k" * 100, [100.0] * 100, round=number, from_ms=10_000.0 * number) for number in range(3)]
    readings = tuple(
        Reading(at_ms=1000.0 * second + 500, rss_bytes=1_000_000 + 50_000 * (second // 10) + 10 * second)
        for second in range(30)
    )
    process = compute(document_of(*blocks, readings=readings)).memory["process"]
    assert near(process.growth_bytes_per_hour, 36_000.0, 36_000.0, 36_000.0)


def test_memory_of_one_long_round_settles_in_its_first_quarter():
    readings = tuple(
        Reading(at_ms=1000.0 * second, device_bytes=10_000 if second < 3 else 20_000) for second in range(13)
    )
    found = compute(document_of(block("k", [1.0]), readings=readings)).memory["device"]
    assert near(found.growth_bytes_per_hour, 0.0, 0.0, 0.0)
    assert found.growth_bytes_per_frame is None  # no frame was answered between them


def test_fewer_than_eight_readings_tell_no_growth():
    readings = tuple(Reading(at_ms=1000.0 * second, rss_bytes=1) for second in range(9))
    assert (
        compute(document_of(block("k", [1.0]), readings=readings)).memory["process"].growth_bytes_per_hour
        is None
    )


def test_sensors_and_yardstick():
    readings = (
        Reading(at_ms=2.0, clock_mhz={"cpu0": 1500.0}, temperature_c={"soc": 60.0}, stolen=0.5),
        Reading(at_ms=0.0, clock_mhz={"cpu0": 1000.0, "gpu": 900.0}, power_w={"VDD": 7.0}),
        Reading(at_ms=1.0, clock_mhz={"cpu0": 1800.0}, stolen=0.0),
    )
    blocks = [
        block("k", [1.0], yardstick_ms=2.0), block("k", [1.0], yardstick_ms=9.0, mode="warm-up"),
        block("k", [1.0], yardstick_ms=8.0, round=1),
    ]  # fmt: skip
    found = compute(document_of(*blocks, readings=readings))
    assert found.clocks_mhz == {
        "cpu0": Span(low=1000.0, median=1500.0, high=1800.0), "gpu": Span(low=900.0, median=900.0, high=900.0),
    }  # fmt: skip
    assert found.temperatures_c == {"soc": Span(low=60.0, median=60.0, high=60.0)}
    assert found.power_w == {"VDD": Span(low=7.0, median=7.0, high=7.0)}
    assert found.stolen == Span(low=0.0, median=0.25, high=0.5)
    assert found.yardstick_by_round_ms == (2.0, 8.0)
    assert near(found.yardstick_ms, 5.0, 5 / 2**T1, 5 * 2**T1)


def test_the_worst_frames_and_their_conditions():
    due = [10.0 * index for index in range(12)]
    paced = block("kdd" * 4, [5.0] * 5 + [40.0] + [5.0] * 6, mode="camera", due_ms=due)
    alone = block("kd", [9.0, 30.0], from_ms=500.0, round=1)
    readings = (
        Reading(at_ms=0.0),
        Reading(
            at_ms=100.0,
            clock_mhz={"cpu0": 1800.0, "cpu1": 1204.0, "gpu": 900.0},
            temperature_c={"cpu": 55.0, "gpu": 61.4},
            power_w={"VDD_IN": 12.34, "VDD_CPU": 4.0},
            throttled=("gpu: thermal",),
            stolen=0.25,
        ),
    )
    worst = compute(document_of(paced, alone, readings=readings)).worst
    assert [frame.mode for frame in worst] == ["camera"] * WORST + ["saturated"] * 2
    first = worst[0]
    assert (first.round, first.seq, first.kind, first.at_ms, first.latency_ms) == (0, 5, "delta", 90.0, 40.0)
    assert (first.stages_ms, first.preempted) == ({"step": 40.0}, None)
    assert first.conditions == (
        "cpu 1.20 GHz", "gpu 0.90 GHz", "gpu 61 C", "VDD_IN 12.3 W", "throttled (gpu: thermal)",
        "25% of the processors' time stolen",
    )  # fmt: skip
    assert worst[1].stages_ms == {"capture": 30.0, "step": 5.0}
    assert [frame.latency_ms for frame in worst[10:]] == [30.0, 9.0]
    # Equally slow: the earlier one first.
    assert [frame.seq for frame in worst if frame.latency_ms == 5.0] == [0, 1, 2]


def test_a_reading_that_tells_nothing_has_no_phrases():
    assert phrases(Reading(at_ms=0.0, stolen=0.001)) == ()
