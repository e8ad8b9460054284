"""What the live page shows, before anything is served: addresses, who may look, counts, sensors, Prometheus' text."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ClosedError, RecipeError
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import SampleSchedule
from edge_sdk.runtime.worker import WorkerCounts
from edge_sdk.serve.access import Access
from edge_sdk.serve.metrics import prometheus_text
from edge_sdk.serve.record import BUCKETS_MS, Record
from edge_sdk.serve.settings import ServeSettings, parse_address
from edge_sdk.serve.state import state_of
from edge_sdk.serve.watch import shown_uri
from edge_sdk.settings import parse_settings
from edge_sdk.video.slot import SourceStats
from tests.machine_files import orin, write
from tests.serve_world import TOKEN, FakeRunner, answer, camera, watch


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", ("127.0.0.1", 8080)),
        ("0", ("127.0.0.1", 0)),
        (" 65535 ", ("127.0.0.1", 65535)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("jetson.local:8080", ("jetson.local", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
    ],
)
def test_an_address_is_a_port_or_a_host_and_a_port(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":8080", "localhost", "localhost:", "::1:8080", "[::1]", "a:b:1", "65536", "-1", "1.5", "a:-1"],
)
def test_any_other_address_is_refused_with_three_that_are_right(text):
    with pytest.raises(RecipeError, match=r"expected \[HOST:\]PORT .* 0\.0\.0\.0:8080 for the network"):
        parse_address(text)


@pytest.mark.parametrize(
    "token", ["", "short", "0123456789abcde", "with space 0123456", "a&b=cdefghijklmnopq", "é" * 16]
)
def test_a_token_that_does_not_fit_into_a_url_is_refused_and_not_repeated(token):
    with pytest.raises(RecipeError, match="token: expected 16 to 256 letters") as caught:
        parse_settings({"token": token}, ServeSettings, "--serve")
    assert not token or token not in str(caught.value)


def test_settings_that_are_printed_do_not_tell_the_token():
    settings = parse_settings({"token": TOKEN}, ServeSettings, "--serve")
    assert TOKEN not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("token", "authorization", "query", "host", "status"),
    [
        # Without a token: this machine's own names alone, whatever the port (a tunnel has another).
        (None, None, None, "localhost", None),
        (None, None, None, "LOCALHOST:9000", None),
        (None, None, None, "127.0.0.1:8080", None),
        (None, None, None, "127.8.8.8", None),
        (None, None, None, "[::1]:8080", None),
        (None, None, None, "evil.example:8080", 403),
        (None, None, None, "localhost.evil.example", 403),
        (None, None, None, "127.0.0.1.evil.example", 403),
        (None, None, None, "192.168.1.5:8080", 403),
        (None, None, None, "", 403),
        (None, None, None, None, 403),
        (None, f"Bearer {TOKEN}", TOKEN, "evil.example", 403),
        # With one: by header or address, under any name.
        (TOKEN, None, None, "localhost", 401),
        (TOKEN, None, TOKEN, "jetson.local", None),
        (TOKEN, None, TOKEN, None, None),
        (TOKEN, f"Bearer {TOKEN}", None, "jetson.local", None),
        (TOKEN, f"bearer  {TOKEN} ", None, "jetson.local", None),
        (TOKEN, f"Bearer {TOKEN}x", None, "localhost", 401),
        (TOKEN, "Bearer ", None, "localhost", 401),
        (TOKEN, f"Basic {TOKEN}", None, "localhost", 401),
        (TOKEN, f"Bearer x{TOKEN}", TOKEN, "localhost", 401),
        (TOKEN, None, TOKEN[:-1], "localhost", 401),
        (TOKEN, None, TOKEN.upper(), "localhost", 401),
        (TOKEN, None, "", "localhost", 401),
        (TOKEN, None, "é\udcff", "localhost", 401),
    ],
)
def test_who_may_look(token, authorization, query, host, status):
    refusal = Access(token).refusal(authorization=authorization, token=query, host=host)
    assert (refusal and refusal.status) == status
    assert refusal is None or TOKEN not in refusal.text


def test_a_record_counts_kinds_losses_errors_and_the_rate():
    record = Record(history=3, live=True)
    assert record.last_s is None
    assert record.snapshot().frames_per_second is None
    # 0, 1, then 2 and 3 are lost, then a new stream that begins with 0
    for place, seq in enumerate((0, 1, 4, 0)):
        kind = StepKind.KEYFRAME if seq in (0, 4) else StepKind.DELTA
        record.add(answer(seq, ms=10.0 + place, kind=kind, age=place, at_s=100.0 + place / 20))
    record.count_error("step")
    record.count_error("step")
    seen = record.snapshot()
    assert [(point.index, point.seq, point.total_ms) for point in seen.points] == [
        (1, 1, 11.0),
        (2, 4, 12.0),
        (3, 0, 13.0),
    ]
    assert seen.frames == 4
    assert {kind.value: histogram.frames for kind, histogram in seen.histograms.items()} == {
        "keyframe": 3,
        "delta": 1,
    }
    assert (seen.missed, seen.errors) == (2, {"step": 2})
    assert seen.frames_per_second == pytest.approx(20)  # three frames are two intervals of 50 ms
    assert seen.answer_age_ms == pytest.approx(200)
    assert record.last_s == pytest.approx(100.15)


def test_the_age_of_an_answer_is_only_told_where_clocks_agree():
    record = Record(history=3, live=False)
    record.add(answer())
    assert record.snapshot().answer_age_ms is None


@given(st.lists(st.floats(0.01, 3000), min_size=1, max_size=50))
def test_the_histogram_is_that_of_the_latencies(latencies):
    record = Record(history=2, live=False)
    for seq, ms in enumerate(latencies):
        record.add(answer(seq, ms=ms))
    histogram = record.snapshot().histograms[StepKind.DELTA]
    assert histogram.cumulative == tuple(sum(ms <= edge for ms in latencies) for edge in BUCKETS_MS)
    assert histogram.frames == len(latencies)
    assert histogram.sum_ms == pytest.approx(sum(latencies))


def test_the_state_holds_what_the_page_shows_and_only_new_points():
    seen_by = watch(camera(SourceStats(received=9, delivered=6, dropped=2, corrupt=1, stalls=1, age_ms=3.5)))
    seen_by.record.add(answer(0, ms=30, kind=StepKind.KEYFRAME, age=0))
    for seq in (1, 2, 3):
        seen_by.record.add(answer(seq, ms=10 * seq, age=seq))
    state = state_of(seen_by.look(), after=1)
    assert state["points"] == [[2, 2, "delta", 20, 2], [3, 3, "delta", 30, 3]]
    assert state["about"]["source"] == "rtsp://10.0.0.9:554/live"
    assert state["kinds"]["delta"] == {"frames": 3, "mean": 20, "p50": 20, "p99": pytest.approx(29.8)}
    assert state["kinds"]["keyframe"]["frames"] == 1
    assert "skip" not in state["kinds"]
    assert (state["frames"], state["state_age"], state["dropped"], state["errors"]) == (4, 3, 3, {})
    assert state["source"]["stalls"] == 1
    assert state["answer_age_ms"] == pytest.approx(50)
    assert state_of(seen_by.look(), after=3)["points"] == []


def test_the_state_holds_what_the_machine_tells(tmp_path):
    seen_by = watch(root=write(orin(tmp_path), {"sys/class/thermal/cooling_device4/cur_state": 9}))
    state = state_of(seen_by.look(), after=-1)
    assert state["clock_mhz"] == {"cpu0": 1190.4, "cpu4": 729.6, "gpu": 306.0}
    assert state["fan_rpm"] == {"pwm_tach": 2140}
    assert state["throttled"] == ("devfreq-17000000.gpu: state 9",)


@pytest.mark.parametrize(
    ("stats", "counts", "dropped"),
    [
        (None, None, 4),  # the gap in seq is all there is to see
        (SourceStats(dropped=3, corrupt=2), None, 5),
        (SourceStats(dropped=3), WorkerCounts(submitted=9, replaced=2, failed=1), 6),
    ],
)
def test_dropped_frames_are_those_that_nobody_answered(stats, counts, dropped):
    seen_by = watch(camera(stats), FakeRunner(counts))
    for seq in (0, 5):
        seen_by.record.add(answer(seq))
    assert seen_by.look().dropped == dropped


def test_errors_are_told_apart_by_where_they_happened():
    seen_by = watch(runner=FakeRunner(WorkerCounts(failed=2, callback_errors=1), failures=3))
    seen_by.record.count_error("draw")
    assert state_of(seen_by.look(), -1)["errors"] == {
        "draw": 1,
        "step": 2,
        "callback": 1,
        "background_keyframe": 3,
    }


def test_a_closed_runner_can_still_be_looked_at():
    class Closed(FakeRunner):
        keyframe_failures = property(lambda self: _raise())
        counts = property(lambda self: _raise())

        def __init__(self):
            known = FakeRunner()
            self.bundle, self.engine, self.schedule = known.bundle, "float32", known.schedule

    def _raise():
        raise ClosedError("runner: it is not open.")

    seen = watch(runner=Closed()).look()
    assert (seen.submitted, seen.keyframe_failures, seen.dropped) == (None, 0, 0)


def test_what_an_answer_covers_is_said_where_few_frames_are_seen():
    source = SimpleNamespace(uri="synthetic:motions", live=False, fps=30.0)
    seen = watch(source, FakeRunner(schedule=SampleSchedule(length=60, samples=6))).look()
    assert state_of(seen, -1)["about"]["answers"] == (
        "answers cover the clip so far, at most 60 frames (2 s), a new one every 10 frames (0.33 s)"
    )
    assert watch(source).look().about.answers == ""


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://10.0.0.9/a", "rtsp://10.0.0.9/a"),
        ("rtsp://me:p@ss@10.0.0.9/a?token=1", "rtsp://10.0.0.9/a"),
        ("RTSPS://me@10.0.0.9/a#latency=1", "RTSPS://10.0.0.9/a"),
        ("csi://0?width=1280", "csi://0?width=1280"),
        ("synthetic:shapes?seed=1", "synthetic:shapes?seed=1"),
        ("clip@home.mp4", "clip@home.mp4"),
    ],
)
def test_a_source_is_shown_without_its_keys(uri, shown):
    assert shown_uri(uri) == shown


def parsed(text):
    """Samples by name and labels, read by Prometheus' own parser; also what each metric is."""
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(text))
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value for f in families for sample in f.samples
    }
    return samples, {family.name: family.type for family in families}


def test_prometheus_reads_every_metric(tmp_path):
    write(orin(tmp_path), {"sys/class/thermal/cooling_device2/cur_state": 1})
    stats = SourceStats(received=9, delivered=6, dropped=2, corrupt=1, stalls=1, reconnects=1, age_ms=3.5)
    seen_by = watch(camera(stats), FakeRunner(WorkerCounts(submitted=6, answered=5, replaced=1)), tmp_path)
    seen_by.record.add(answer(0, ms=30, kind=StepKind.KEYFRAME, age=0))
    seen_by.record.add(dataclasses.replace(answer(1, ms=4, age=1), trust=0.75))
    seen_by.record.add(answer(2, ms=5000, age=2))
    seen_by.record.count_error("draw")
    samples, kinds = parsed(prometheus_text(seen_by.look(), viewers=2))
    delta, keyframe = ("kind", "delta"), ("kind", "keyframe")
    assert samples["edge_sdk_frames_total", delta] == 2
    assert samples["edge_sdk_frames_total", keyframe] == 1
    bucket = "edge_sdk_latency_seconds_bucket"
    assert [samples[bucket, delta, ("le", le)] for le in ("0.003", "0.005", "1", "+Inf")] == [0, 1, 1, 2]
    assert samples["edge_sdk_latency_seconds_count", delta] == 2
    assert samples["edge_sdk_latency_seconds_sum", delta] == pytest.approx(5.004)
    assert samples["edge_sdk_latency_seconds_sum", keyframe] == pytest.approx(0.03)
    assert samples["edge_sdk_state_age_frames",] == 2
    assert samples["edge_sdk_keyframe_trust_ratio",] == 0.75
    assert samples["edge_sdk_answer_age_seconds",] == pytest.approx(0.05)
    assert samples["edge_sdk_dropped_frames_total",] == 4
    assert samples["edge_sdk_source_frames_total", ("fate", "corrupt")] == 1
    assert samples["edge_sdk_source_stalls_total",] == samples["edge_sdk_source_reconnects_total",] == 1
    assert samples["edge_sdk_submitted_frames_total", ("fate", "answered")] == 5
    assert samples["edge_sdk_errors_total", ("where", "draw")] == 1
    assert samples["edge_sdk_temperature_celsius", ("zone", "cpu")] == 51.25
    assert samples["edge_sdk_power_watts", ("rail", "VDD_IN")] == 6.2
    assert samples["edge_sdk_clock_hertz", ("clock", "gpu")] == 306e6
    assert samples["edge_sdk_fan_rpm", ("fan", "pwm_tach")] == 2140
    assert samples["edge_sdk_throttled",] == 1
    assert samples["edge_sdk_throttle_events_total", ("counter", "power alarm oc3")] == 37
    assert samples["edge_sdk_viewers",] == 2
    assert samples["edge_sdk_last_answer_seconds",] >= 0
    (info,) = (dict(key[1:]) for key in samples if key[0] == "edge_sdk_info")
    assert (info["bundle"], info["engine"]) == ('a "pair"', "onnxruntime-int8")
    assert kinds["edge_sdk_latency_seconds"] == "histogram"
    assert kinds["edge_sdk_frames"] == "counter"
    assert {name for name, kind in kinds.items() if kind == "unknown"} == set()


def test_prometheus_reads_a_run_that_has_not_begun():
    samples, _ = parsed(prometheus_text(watch().look(), viewers=0))
    assert samples["edge_sdk_dropped_frames_total",] == 0
    assert ("edge_sdk_keyframe_trust_ratio",) not in samples
    assert ("edge_sdk_throttled",) not in samples, (
        "where nothing tells, nobody knows that it is not throttled"
    )
    assert not any(name.startswith(("edge_sdk_frames", "edge_sdk_latency")) for name, *_ in samples)


def test_prometheus_labels_survive_odd_names():
    seen = watch().look()
    odd = 'C:\\videos\\"day"\nclip\\n.mp4'
    seen = dataclasses.replace(seen, about=dataclasses.replace(seen.about, source=odd))
    samples, _ = parsed(prometheus_text(seen, viewers=0))
    assert [dict(key[1:])["source"] for key in samples if key[0] == "edge_sdk_info"] == [odd]
