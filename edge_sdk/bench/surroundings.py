"""Figures of what surrounds the frames: memory, clocks, temperatures, power, and the conditions of the worst frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from edge_sdk.bench.figures import Estimate, Memory, Span, WorstFrame
from edge_sdk.bench.intervals import slope
from edge_sdk.bench.pooled import Pooled
from edge_sdk.bench.samples import KINDS, Block, Mode, Reading

# Slowest answers that are kept, in each mode.
WORST = 10
# Readings below which no slope is taken.
FEWEST_READINGS = 8
_MS_PER_HOUR = 3.6e6
# Share of processors' time taken by others from which a worst frame's conditions tell of it.
_STOLEN_SHARE = 0.01

Sensor = Literal["clock_mhz", "temperature_c", "power_w"]


def span(values: Sequence[float]) -> Span:
    """Of at least one value."""
    return Span(low=min(values), median=float(np.median(values)), high=max(values))


def spans(readings: Sequence[Reading], sensor: Sensor) -> dict[str, Span]:
    """Of each sensor of a kind, over the readings that have it."""
    found: dict[str, list[float]] = {}
    for reading in readings:
        for name, value in getattr(reading, sensor).items():
            found.setdefault(name, []).append(value)
    return {name: span(found[name]) for name in sorted(found)}


def memory(blocks: Sequence[Block], readings: Sequence[Reading]) -> dict[str, Memory]:
    """Memory of the process and of the device.

    Args:
        blocks: of all rows.
        readings: in order of time.
    """
    found = {}
    answered = np.sort(np.concatenate([np.empty(0), *map(_delivered, blocks)]))
    settled_ms = _settled_ms(blocks, readings)
    begins = np.sort(_begins(blocks))
    for kind, name in (("process", "rss_bytes"), ("device", "device_bytes")):
        told = [(r.at_ms, value) for r in readings if (value := getattr(r, name)) is not None]
        if not told:
            continue
        values = [value for _, value in told]
        later = [(at, value) for at, value in told if at >= settled_ms]
        at_ms, grown = np.array([at for at, _ in later]), np.array([float(value) for _, value in later])
        opened = np.searchsorted(begins, at_ms, "right")
        found[kind] = Memory(
            first_bytes=values[0],
            last_bytes=values[-1],
            peak_bytes=max(values),
            growth_bytes_per_hour=_growth(at_ms / _MS_PER_HOUR, grown, opened),
            growth_bytes_per_frame=_growth(
                np.searchsorted(answered, at_ms, "right").astype(float), grown, opened
            ),
        )
    return found


def settled_from(blocks: Sequence[Block], readings: Sequence[Reading]) -> list[Reading]:
    """The readings that growth is taken from."""
    settled_ms = _settled_ms(blocks, readings)
    return [reading for reading in readings if reading.at_ms >= settled_ms]


def _settled_ms(blocks: Sequence[Block], readings: Sequence[Reading]) -> float:
    """Moment after which memory has settled: the end of the first round, or of the first quarter of a single one."""
    if not readings:
        return 0.0
    numbers = {block.round for block in blocks}
    if len(numbers) > 1:
        ends = [_delivered(b).max() for b in blocks if b.round == min(numbers) and len(b.frames)]
        return float(max(ends, default=readings[0].at_ms))
    return readings[0].at_ms + (readings[-1].at_ms - readings[0].at_ms) / 4


def _delivered(block: Block) -> np.ndarray:
    return np.array(block.frames.called_ms, float) + np.array(block.frames.total_ms, float)


def _begins(blocks: Sequence[Block]) -> np.ndarray:
    """(openings,) float64: when each row's runner was opened anew in each round."""
    first: dict[tuple[str, int], float] = {}
    for block in blocks:
        if len(block.frames):
            place = (block.row, block.round)
            first[place] = min(first.get(place, np.inf), block.frames.called_ms[0])
    return np.array(list(first.values()), float)


def _growth(x: np.ndarray, y: np.ndarray, opened: np.ndarray) -> Estimate | None:
    """Slope between two openings: what opening a runner anew adds or gives back is no growth of running it."""
    if len(y) < FEWEST_READINGS:
        return None
    for number in np.unique(opened):
        mask = opened == number
        x = np.where(mask, x - np.median(x[mask]), x)
        y = np.where(mask, y - np.median(y[mask]), y)
    return slope(x, y)


def worst_frames(subject: Mapping[Mode, Pooled], readings: Sequence[Reading]) -> tuple[WorstFrame, ...]:
    """The slowest answers, camera pace first.

    Args:
        subject: its frames by mode.
        readings: in order of time.
    """
    found: list[WorstFrame] = []
    modes: tuple[Mode, ...] = ("camera", "saturated")
    for mode in modes:
        if mode not in subject:
            continue
        pool = subject[mode]
        latency = pool.stages["age" if mode == "camera" else "total"]
        # The earlier of two that are equally slow comes first.
        places = np.lexsort((pool.delivered_ms, -latency))[:WORST]
        found += [_worst(pool, int(place), mode, float(latency[place]), readings) for place in places]
    return tuple(found)


def _worst(pool: Pooled, place: int, mode: Mode, latency: float, readings: Sequence[Reading]) -> WorstFrame:
    stages = {stage: float(values[place]) for stage, values in pool.stages.items()}
    for stage in ("total", "age", *(() if mode == "camera" else ("capture",))):
        del stages[stage]
    at_ms = float(pool.delivered_ms[place])
    preempted = int(pool.preempted[place])
    return WorstFrame(
        mode=mode,
        round=int(pool.round[place]),
        seq=int(pool.seq[place]),
        kind=KINDS[str(pool.letters[place])].value,
        at_ms=at_ms,
        latency_ms=latency,
        stages_ms={stage: value for stage, value in stages.items() if value},
        preempted=None if preempted < 0 else preempted,
        conditions=phrases(min(readings, key=lambda r: abs(r.at_ms - at_ms))) if readings else (),
    )


def phrases(reading: Reading) -> tuple[str, ...]:
    """A reading in short phrases: of each kind of clock the slowest, the hottest zone, the highest rail."""
    slowest: dict[str, float] = {}
    for name, mhz in sorted(reading.clock_mhz.items()):
        kind = name.rstrip("0123456789") or name
        slowest[kind] = min(mhz, slowest.get(kind, mhz))
    found = [f"{kind} {mhz / 1e3:.2f} GHz" for kind, mhz in slowest.items()]
    for values, unit in ((reading.temperature_c, "{:.0f} C"), (reading.power_w, "{:.1f} W")):
        if values:
            name = max(sorted(values), key=lambda key: values[key])
            found.append(f"{name} {unit.format(values[name])}")
    found += [f"throttled ({what})" for what in reading.throttled]
    if reading.stolen is not None and reading.stolen >= _STOLEN_SHARE:
        found.append(f"{reading.stolen:.0%} of the processors' time stolen")
    return tuple(found)
