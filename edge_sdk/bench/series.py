"""What the report draws, thinned so that an hour stays readable and its file small, and no spike is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.bench.pooled import Pooled
from edge_sdk.bench.samples import Reading


@dataclass(frozen=True, eq=False)
class Envelope:
    """A curve as its lowest and highest value in each of many short spans of time.

    Args:
        at: (n,) float64, where each span is drawn: the middle of its samples' times.
        low, high: (n,) float64.
        count: (n,) int64, samples in it, at least 1; spans without samples are left out.
        width: of one span; 0 where every sample stands by itself.
    """

    at: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    width: float


def envelope(at: np.ndarray, values: np.ndarray, spans: int) -> Envelope:
    """The lowest and highest value in each of ``spans`` equal spans of time; up to ``spans`` samples stand as they are.

    Args:
        at: (n,) float64, times in any order.
        values: (n,) float64.
        spans: at least 1.
    """
    order = np.argsort(at, kind="stable")
    at, values = np.asarray(at, float)[order], np.asarray(values, float)[order]
    if len(at) <= spans or at[0] == at[-1]:
        return Envelope(at, values, values, np.ones(len(at), np.int64), 0.0)
    width = float(at[-1] - at[0]) / spans
    place = np.minimum(((at - at[0]) / width).astype(np.int64), spans - 1)
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    ends = np.append(starts[1:], len(at)) - 1
    return Envelope(
        at=(at[starts] + at[ends]) / 2,
        low=np.minimum.reduceat(values, starts),
        high=np.maximum.reduceat(values, starts),
        count=ends - starts + 1,
        width=width,
    )


def dropped_at_ms(pool: Pooled) -> np.ndarray:
    """(drops,) float64: when the camera had the frames ready that were never answered, from the gaps in their numbers.

    Frames dropped before the first or after the last answer of a block are in its count alone.
    """
    found = [np.empty(0)]
    for seq, due in zip(pool.block_parts(pool.seq), pool.block_parts(pool.due_ms)):
        for place in np.flatnonzero(np.diff(seq) > 1):
            gap = int(seq[place + 1] - seq[place])
            found.append(due[place] + (due[place + 1] - due[place]) * np.arange(1, gap) / gap)
    return np.concatenate(found)


def tail(values: np.ndarray, points: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """A curve of percentiles, with as much room for 99 to 99.9 % as for 90 to 99 %.

    Args:
        values: (n,) float64, at least one.
        points: at most.

    Returns:
        Nines (0 the fastest, 1 is 90 %, 2 is 99 %, 3 is 99.9 %), and the value at each. The curve ends with the slowest
        sample, at the nines of ``1 - 1 / n``.
    """
    last = np.log10(max(len(values), 1))
    nines = np.linspace(0, last, min(points, max(2, len(values))))
    found = np.percentile(values, 100 * (1 - 10.0**-nines))
    found[-1] = values.max()
    return nines, found


@dataclass(frozen=True, eq=False)
class Sensor:
    """One sensor, or several of a kind, such as all processors' clocks.

    Args:
        name: what they share, such as ``"cpu"``.
        members: how many.
        at_ms: (n,) float64.
        low, middle, high: (n,) float64, over the members at each moment.
    """

    name: str
    members: int
    at_ms: np.ndarray
    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray


def sensors(readings: Sequence[Reading], told: Callable[[Reading], Mapping[str, float]]) -> list[Sensor]:
    """Sensors by the name that is left when trailing numbers are taken off, the highest first.

    Args:
        readings: in order of time.
        told: gives one kind of sensor of a reading.
    """
    groups: dict[str, list[tuple[float, list[float]]]] = {}
    members: dict[str, set[str]] = {}
    for reading in readings:
        now: dict[str, list[float]] = {}
        for name, value in told(reading).items():
            group = re.sub(r"[ _-]?\d+$", "", name) or name
            now.setdefault(group, []).append(value)
            members.setdefault(group, set()).add(name)
        for group, values in now.items():
            groups.setdefault(group, []).append((reading.at_ms, values))
    found = [
        Sensor(
            name=group if len(members[group]) > 1 else next(iter(members[group])),
            members=len(members[group]),
            at_ms=np.array([at for at, _ in samples]),
            low=np.array([min(values) for _, values in samples]),
            middle=np.array([float(np.mean(values)) for _, values in samples]),
            high=np.array([max(values) for _, values in samples]),
        )
        for group, samples in groups.items()
    ]
    return sorted(found, key=lambda sensor: -float(sensor.high.max()))


def front(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """The points that no other beats: none is at once as fast and more accurate, or faster and as accurate.

    Args:
        points: latency and accuracy by name.

    Returns:
        Their names, the fastest first.
    """
    found: list[str] = []
    best = -np.inf
    for name, (_, accuracy) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if accuracy > best:
            found.append(name)
            best = accuracy
    return tuple(found)
