"""What the page asks for again and again, as plain values for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from edge_sdk.runtime.result import StepKind
from edge_sdk.serve.record import Point
from edge_sdk.serve.watch import Seen


def state_of(seen: Seen, after: int) -> dict[str, Any]:
    """The run as the page shows it; times in milliseconds unless the name says otherwise.

    Args:
        seen: the run at this moment.
        after: index of the last frame that the page has, -1 for none; ``points`` begins after it.
    """
    points = seen.record.points
    return {
        "about": dataclasses.asdict(seen.about),
        "frames": seen.record.frames,
        "frames_per_second": seen.record.frames_per_second,
        "kinds": {kind.value: _kind(seen, kind) for kind in StepKind if kind in seen.record.histograms},
        "state_age": points[-1].state_age if points else None,
        "answer_age_ms": seen.record.answer_age_ms,
        "dropped": seen.dropped,
        "source": seen.source,
        "submitted": None if seen.submitted is None else dataclasses.asdict(seen.submitted),
        "errors": errors_of(seen),
        "temperature_c": seen.sensors.temperature_c,
        "power_w": seen.sensors.power_w,
        "clock_mhz": seen.sensors.clock_mhz,
        "fan_rpm": seen.sensors.fan_rpm,
        "throttled": seen.sensors.throttled,
        "last_frame_s": seen.last_frame_s,
        "running_s": seen.running_s,
        # index, seq, kind, latency, state age: lists, because there may be many
        "points": [_plain(point) for point in points if point.index > after],
    }


def errors_of(seen: Seen) -> dict[str, int]:
    """Errors since the start, by where they happened."""
    errors = dict(seen.record.errors)
    if seen.keyframe_failures:
        errors["background_keyframe"] = seen.keyframe_failures
    if seen.submitted is not None:
        errors |= {"step": errors.get("step", 0) + seen.submitted.failed}
        errors |= {"callback": errors.get("callback", 0) + seen.submitted.callback_errors}
    return {where: count for where, count in errors.items() if count}


def _kind(seen: Seen, kind: StepKind) -> dict[str, Any]:
    """Frames since the start; mean, median and tail of the last ones."""
    recent = [point.total_ms for point in seen.record.points if point.kind is kind]
    figures: dict[str, Any] = {"frames": seen.record.histograms[kind].frames}
    if recent:
        p50, p99 = np.percentile(recent, (50, 99)).tolist()
        figures |= {"mean": float(np.mean(recent)), "p50": p50, "p99": p99}
    return figures


def _plain(point: Point) -> list[Any]:
    return [point.index, point.seq, point.kind.value, round(point.total_ms, 3), point.state_age]
