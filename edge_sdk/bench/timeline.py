"""The bench report's plots over the time of the run: latency with the machine's state below it, and memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_sdk.bench.document import BenchDocument
from edge_sdk.bench.figures import Figures
from edge_sdk.bench.plots import (
    EXACT,
    LATENCY,
    PURPOSE,
    WIDE_INCHES,
    Plot,
    bars,
    latency_scale,
    legend_above,
    mode_name,
    subject_pool,
    time_unit,
)
from edge_sdk.bench.pooled import Pooled
from edge_sdk.bench.samples import KINDS, Mode, Reading
from edge_sdk.bench.series import Envelope, Sensor, dropped_at_ms, envelope, sensors
from edge_sdk.bench.surroundings import settled_from
from edge_sdk.bench.wording import growth
from edge_sdk.drawing import COLOURS, INK, LINE, svg

# Spans of time that a plot is cut into at most: about one for each pixel of its width that has data.
_SPANS = 700
_MS_PER_HOUR = 3.6e6
# Colours of sensors, and how many are drawn; the table has all.
_PALETTE = ("step", "keyframe", "copy-in", "copy-out")


def timeline(document: BenchDocument) -> Plot:
    """Latency of the subject's frames over the run, with the machine's clocks and temperatures below it."""
    title = "Latency over the run"
    mode: Mode = "camera"
    pool = subject_pool(document, mode)
    before = ""
    if pool is None:
        mode, before = "saturated", "Not measured at camera pace; shown saturated instead. "
        pool = subject_pool(document, mode)
    if pool is None:
        return Plot(title, None, "The subject answered no frame: there is nothing to show.")
    span_ms = max(float(pool.delivered_ms.max()), *(reading.at_ms for reading in document.readings), 0.0)
    unit_ms, unit = time_unit(span_ms)
    frames = _frames(pool, mode)
    panels = _panels(document)
    drops = envelope(dropped_at_ms(pool), np.zeros(len(dropped_at_ms(pool))), _SPANS).at
    in_sight: list[bool] = []

    def draw(figure: Any) -> None:
        ratios = [3.2, *(1.0 for _ in panels)]
        grid = figure.subplots(
            len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios}
        )
        axes, *below = grid[:, 0]
        in_sight.append(_draw_frames(axes, pool, frames, drops, unit_ms, mode, document))
        for place, (panel, (label, found)) in enumerate(zip(below, panels)):
            _draw_sensors(panel, found, unit_ms)
            if place == 0:
                _mark_throttled(panel, document.readings, unit_ms)
            panel.set_ylabel(label)
            legend_above(panel)
        last = grid[-1, 0]
        last.set_xlim(-0.01 * span_ms / unit_ms, 1.01 * span_ms / unit_ms)
        last.set_xlabel(f"{unit} since the beginning of the run")

    size = (WIDE_INCHES, 3.1 + 1.25 * len(panels))
    drawn = svg("timeline", draw, PURPOSE, size_inches=size, settings=EXACT)
    caption = before + _caption(pool, frames, mode, unit_ms)
    if mode == "camera" and not in_sight[0]:
        caption += f" The deadline of {document.deadline_ms:.3g} ms is far above all of them."
    if any(len(found) > len(_PALETTE) for _, found in panels):
        caption += f" Of each kind of sensor the {len(_PALETTE)} highest are drawn; the table has all."
    if not panels:
        caption += " Clocks and temperatures: not told by this machine."
    return Plot(f"{title}, {mode_name(mode, document)}", drawn, caption)


def _frames(pool: Pooled, mode: Mode) -> dict[str, Envelope]:
    """Latency by letter, where frames are drawn at the moment that the camera had them ready."""
    latency = pool.stages[LATENCY[mode][0]]
    return {
        letter: envelope(pool.due_ms[mask], latency[mask], _SPANS)
        for letter in KINDS
        if (mask := pool.letters == letter).any()
    }


def _draw_frames(
    axes: Any,
    pool: Pooled,
    frames: dict[str, Envelope],
    drops: np.ndarray,
    unit_ms: float,
    mode: Mode,
    document: BenchDocument,
) -> bool:
    stage, label = LATENCY[mode]
    deadline_ms = document.deadline_ms if mode == "camera" else None
    shown = latency_scale(axes, pool.stages[stage], deadline_ms)
    # Saturated blocks are short and many: the frames themselves show where they are.
    for times in pool.block_parts(pool.due_ms) if mode == "camera" else ():
        axes.axvspan(times[0] / unit_ms, times[-1] / unit_ms, color=LINE, alpha=0.25, linewidth=0, zorder=0)
    thick = 2.6 if len(pool) < _SPANS else 1.4
    # Rare kinds on top: there are fewer keyframes than others, except where all are.
    for letter in sorted(frames, key=lambda one: -int(frames[one].count.sum())):
        kind = KINDS[letter].value
        bars(axes, frames[letter], unit_ms, color=COLOURS[kind], linewidth=thick, label=kind)
    if shown and deadline_ms is not None:
        name = f"deadline {deadline_ms:.3g} ms"
        axes.axhline(deadline_ms, color=INK, linestyle=(0, (4, 2)), linewidth=1, label=name)
    dropped = sum(block.dropped for block in pool.blocks)
    if len(drops):
        top = np.ones(len(drops))
        style = {"color": COLOURS["rest"], "markersize": 4.5, "label": f"dropped ({dropped})"}
        axes.plot(drops / unit_ms, top, "x", transform=axes.get_xaxis_transform(), clip_on=False, **style)
    axes.set_ylabel(label + ("\n(log scale)" if axes.get_yscale() == "log" else ""))
    axes.grid(axis="x", visible=False)
    legend_above(axes)
    return shown


def _caption(pool: Pooled, frames: dict[str, Envelope], mode: Mode, unit_ms: float) -> str:
    widest = max(found.width for found in frames.values())
    if widest == 0:
        how = f"{len(pool)} frames, a dot each."
    else:
        most = max(int(found.count.max()) for found in frames.values())
        how = (
            f"{len(pool)} frames; a stroke reaches from the fastest to the slowest of a kind within "
            f"{widest / 1e3:.2g} s (up to {most} frames), so that no spike is lost."
        )
    dropped = sum(block.dropped for block in pool.blocks)
    drops = f" Crosses: {dropped} frames that were never answered." if dropped else ""
    return f"{how}{' Shaded: when the camera set the pace.' if mode == 'camera' else ''}{drops}"


def _panels(document: BenchDocument) -> list[tuple[str, list[Sensor]]]:
    readings = sorted(document.readings, key=lambda reading: reading.at_ms)
    clocks = sensors(readings, lambda reading: {k: v / 1e3 for k, v in reading.clock_mhz.items()})
    heat = sensors(readings, lambda reading: reading.temperature_c)
    return [(label, found) for label, found in (("GHz", clocks), ("°C", heat)) if found]


def _draw_sensors(axes: Any, found: list[Sensor], unit_ms: float) -> None:
    for sensor, colour in zip(found, _PALETTE):
        low, high = (envelope(sensor.at_ms, values, _SPANS) for values in (sensor.low, sensor.high))
        middle = envelope(sensor.at_ms, sensor.middle, _SPANS)
        at = low.at / unit_ms
        style = {"color": COLOURS[colour]}
        if (high.high > low.low).any():
            axes.fill_between(at, low.low, high.high, alpha=0.25, linewidth=0, **style)
        name = f"{sensor.name} (mean of {sensor.members})" if sensor.members > 1 else sensor.name
        axes.plot(at, (middle.low + middle.high) / 2, linewidth=1.3, label=name, **style)
    axes.margins(y=0.2)
    axes.ticklabel_format(axis="y", useOffset=False)


def _mark_throttled(axes: Any, readings: tuple[Reading, ...], unit_ms: float) -> None:
    at = np.array([reading.at_ms for reading in readings if reading.throttled])
    if len(at):
        at = envelope(at, at, _SPANS).at / unit_ms
        style = {"color": COLOURS["rest"], "markersize": 6, "label": "throttled"}
        axes.plot(at, np.zeros(len(at)), "|", transform=axes.get_xaxis_transform(), clip_on=False, **style)


def memory(document: BenchDocument, figures: Figures) -> Plot:
    """Memory over the run, with its slope."""
    title = "Memory over the run"
    readings = sorted(document.readings, key=lambda reading: reading.at_ms)
    if not figures.memory:
        return Plot(title, None, "Not measured: this machine told nothing of its memory.")
    fields = {"process": "rss_bytes", "device": "device_bytes"}
    settled = settled_from(document.blocks, readings)
    unit_ms, unit = time_unit(readings[-1].at_ms)

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(figures.memory), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (kind, found) in zip(panels, figures.memory.items()):
            at, used = _told(readings, fields[kind])
            curve = envelope(at, used / 1e6, _SPANS)
            x, style = curve.at / unit_ms, {"color": COLOURS["step"]}
            axes.fill_between(x, curve.low, curve.high, alpha=0.3, linewidth=0, **style)
            axes.plot(x, (curve.low + curve.high) / 2, linewidth=1.4, label=kind, **style)
            slope = found.growth_bytes_per_hour
            if slope is not None:
                at, used = _told(settled, fields[kind])
                base = np.median(used - slope.value * at / _MS_PER_HOUR)
                ends = np.array([at[0], at[-1]])
                line = (base + slope.value * ends / _MS_PER_HOUR) / 1e6
                axes.plot(ends / unit_ms, line, color=INK, linestyle=(0, (4, 2)), linewidth=1, label="slope")
            # A curve that hardly moves must not look as if it did.
            middle, reach = (curve.low.min() + curve.high.max()) / 2, curve.high.max() - curve.low.min()
            reach = max(reach * 1.2, 0.02 * middle, 0.1)
            axes.set_ylim(middle - reach / 2, middle + reach / 2)
            axes.ticklabel_format(axis="y", useOffset=False)
            axes.set_ylabel("MB")
            legend_above(axes)
        panels[-1].set_xlabel(f"{unit} since the beginning of the run")

    lines = [f"{kind}: {growth(found)}" for kind, found in figures.memory.items()]
    return Plot(
        title,
        svg("memory", draw, PURPOSE, size_inches=(5.6, 1.6 + 1.4 * len(lines)), settings=EXACT),
        "; ".join(lines) + ". The axis does not begin at zero.",
    )


def _told(readings: list[Reading], field: str) -> tuple[np.ndarray, np.ndarray]:
    """Times in milliseconds and bytes of the readings that have ``field``."""
    found = [
        (reading.at_ms, float(value))
        for reading in readings
        if (value := getattr(reading, field)) is not None
    ]
    return np.array([at for at, _ in found]), np.array([used for _, used in found])
