"""A run in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from edge_sdk.serve.record import BUCKETS_MS, Histogram
from edge_sdk.serve.state import errors_of
from edge_sdk.serve.watch import Seen

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
Sample = tuple[Labels, float]


def prometheus_text(seen: Seen, viewers: int) -> str:
    """All metrics of a run; what could not be read is left out.

    Args:
        seen: the run at this moment.
        viewers: how many watch the pictures.
    """
    lines: list[str] = []
    for part in (_run(seen, viewers), _source(seen), _sensors(seen)):
        lines += part
    return "\n".join(lines) + "\n"


def _run(seen: Seen, viewers: int) -> Iterator[str]:
    record, about = seen.record, seen.about
    labels = {
        "bundle": about.bundle,
        "engine": about.engine,
        "source": about.source,
        "version": about.version,
    }
    yield from _metric("info", "gauge", "What is run.", [(labels, 1)])
    kinds = [({"kind": kind.value}, histogram) for kind, histogram in record.histograms.items()]
    yield from _metric(
        "frames_total",
        "counter",
        "Frames answered, by kind of step.",
        [(kind, h.frames) for kind, h in kinds],
    )
    yield from _histogram("latency_seconds", "Time from call to result, by kind of step.", kinds)
    if record.points:
        yield from _metric(
            "state_age_frames",
            "gauge",
            "Frames since the keyframe that the last answer rests on.",
            [({}, record.points[-1].state_age)],
        )
    told = next((point.trust for point in reversed(record.points) if point.trust is not None), None)
    if told is not None:
        yield from _metric(
            "keyframe_trust_ratio", "gauge", "How much of its keyframe held at the last delta.", [({}, told)]
        )
    if record.answer_age_ms is not None:
        yield from _metric(
            "answer_age_seconds",
            "gauge",
            "From capture to answer, last frame.",
            [({}, record.answer_age_ms / 1e3)],
        )
    if seen.last_frame_s is not None:
        yield from _metric(
            "last_answer_seconds", "gauge", "Time since the last answer.", [({}, seen.last_frame_s)]
        )
    yield from _metric(
        "errors_total",
        "counter",
        "Errors, by where they happened.",
        [({"where": where}, count) for where, count in sorted(errors_of(seen).items())],
    )
    yield from _metric("running_seconds", "gauge", "Time since the start.", [({}, seen.running_s)])
    yield from _metric("viewers", "gauge", "Viewers of the pictures.", [({}, viewers)])


def _source(seen: Seen) -> Iterator[str]:
    yield from _metric(
        "dropped_frames_total", "counter", "Frames that nobody answered.", [({}, seen.dropped)]
    )
    if seen.source is not None:
        fates = ("received", "delivered", "dropped", "corrupt")
        samples = [({"fate": fate}, seen.source[fate]) for fate in fates if fate in seen.source]
        yield from _metric("source_frames_total", "counter", "What became of the source's frames.", samples)
        for name, text in (
            ("stalls", "Times that the source stopped."),
            ("reconnects", "Times that it came back."),
        ):
            if name in seen.source:
                yield from _metric(f"source_{name}_total", "counter", text, [({}, seen.source[name])])
    if seen.submitted is not None:
        fates = ("submitted", "answered", "replaced", "failed")
        samples = [({"fate": fate}, getattr(seen.submitted, fate)) for fate in fates]
        yield from _metric("submitted_frames_total", "counter", "What became of submitted frames.", samples)


def _sensors(seen: Seen) -> Iterator[str]:
    yield from _metric(
        "temperature_celsius",
        "gauge",
        "Temperature, by thermal zone.",
        [({"zone": zone}, value) for zone, value in seen.sensors.temperature_c.items()],
    )
    yield from _metric(
        "power_watts",
        "gauge",
        "Power drawn, by rail or package.",
        [({"rail": rail}, value) for rail, value in seen.sensors.power_w.items()],
    )
    yield from _metric(
        "clock_hertz",
        "gauge",
        "Clock, by processor or unit.",
        [({"clock": clock}, value * 1e6) for clock, value in seen.sensors.clock_mhz.items()],
    )
    yield from _metric(
        "fan_rpm",
        "gauge",
        "Turns of a fan a minute.",
        [({"fan": fan}, value) for fan, value in seen.sensors.fan_rpm.items()],
    )
    told = seen.sensors.throttle_counts or seen.sensors.clock_mhz
    yield from _metric(
        "throttled",
        "gauge",
        "1 while heat or power holds a clock down.",
        [({}, int(bool(seen.sensors.throttled)))] if told else [],
    )
    yield from _metric(
        "throttle_events_total",
        "counter",
        "Times that the hardware throttled since the machine was started, by counter.",
        [({"counter": name}, count) for name, count in seen.sensors.throttle_counts.items()],
    )


def _metric(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """A metric's head and samples; nothing where it has none."""
    lines = [f"edge_sdk_{name}{_labels(labels)} {_value(value)}" for labels, value in samples]
    if lines:
        yield from (f"# HELP edge_sdk_{name} {text}", f"# TYPE edge_sdk_{name} {kind}", *lines)


def _histogram(name: str, text: str, series: Iterable[tuple[Labels, Histogram]]) -> Iterator[str]:
    lines = []
    for labels, histogram in series:
        edges = [_value(edge / 1e3) for edge in BUCKETS_MS]
        for edge, count in (*zip(edges, histogram.cumulative, strict=True), ("+Inf", histogram.frames)):
            lines.append(f"edge_sdk_{name}_bucket{_labels({**labels, 'le': edge})} {count}")
        lines.append(f"edge_sdk_{name}_sum{_labels(labels)} {_value(histogram.sum_ms / 1e3)}")
        lines.append(f"edge_sdk_{name}_count{_labels(labels)} {histogram.frames}")
    if lines:
        yield from (f"# HELP edge_sdk_{name} {text}", f"# TYPE edge_sdk_{name} histogram", *lines)


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _value(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
