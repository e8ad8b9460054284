"""The bench report's plots. What was not measured becomes a sentence, never an empty plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.figures import ALL, STAGES, Figures
from edge_sdk.bench.pooled import Pooled
from edge_sdk.bench.samples import KINDS, Mode
from edge_sdk.bench.series import Envelope, tail
from edge_sdk.drawing import COLOURS, INK, svg
from edge_sdk.evaluate.table import milliseconds

PURPOSE = "the bench report"
# What a user waits for, by mode: its stage and its name on an axis.
LATENCY = {"camera": ("age", "age at delivery, ms"), "saturated": ("total", "call to answer, ms")}
WIDE_INCHES = 11.4
_HALF = (5.6, 3.5)
# Matplotlib thins lines by itself; what is drawn here has been thinned, and every spike is meant.
EXACT = {"path.simplify": False}
_SPANS = 700
_DETAIL_FRAMES = 90
# From these ratios of the highest value to the usual one, or the lowest, on the scale is logarithmic.
_LOG_FROM_SPIKE = 12.0
_LOG_FROM_CURVES = 1.5
_FAR_DEADLINE = 3.0
_MODES: tuple[Mode, ...] = ("camera", "saturated")


@dataclass(frozen=True)
class Plot:
    """A figure of the report.

    Args:
        title: what it shows.
        svg: None where there is nothing to show.
        caption: how to read it, or why it is not there.
    """

    title: str
    svg: str | None
    caption: str


def time_unit(span_ms: float) -> tuple[float, str]:
    """Milliseconds in one unit of a time axis of that length, and its name."""
    if span_ms < 600e3:
        return 1e3, "seconds"
    return (60e3, "minutes") if span_ms < 3 * 3600e3 else (3600e3, "hours")


def subject_pool(document: BenchDocument, mode: Mode) -> Pooled | None:
    """The subject's frames in a mode; None where it answered none."""
    blocks = [block for block in document.blocks if (block.row, block.mode) == (SUBJECT, mode)]
    return Pooled.of(blocks) if any(len(block.frames) for block in blocks) else None


def slowest_mode(document: BenchDocument) -> tuple[Pooled, Mode] | None:
    """Where the slowest answer is looked for: at camera pace, or saturated where that was not run."""
    for mode in _MODES:
        pool = subject_pool(document, mode)
        if pool is not None:
            return pool, mode
    return None


def latency_scale(axes: Any, values: np.ndarray, deadline_ms: float | None) -> bool:
    """Limits that show every value; logarithmic where the slowest dwarfs the usual.

    Returns:
        Whether the deadline is in the picture.
    """
    highest, usual = float(values.max()), float(np.median(values))
    low = values[values > 0].min(initial=highest)
    if usual > 0 and highest / usual > _LOG_FROM_SPIKE:
        shown = deadline_ms is not None
        top = max(highest, deadline_ms or 0)
        axes.set_yscale("log")
        axes.set_ylim(min(low, deadline_ms or low) / 1.3, top * 1.3)
        return shown
    shown = deadline_ms is not None and deadline_ms <= _FAR_DEADLINE * highest
    axes.set_ylim(0, max(highest, deadline_ms if shown and deadline_ms else 0) * 1.08 or 1)
    return shown


def bars(axes: Any, found: Envelope, unit_ms: float, **style: Any) -> None:
    """An envelope as one upright stroke a span, from its lowest to its highest value; a single sample is a dot."""
    x = np.repeat(found.at / unit_ms, 3)
    y = np.column_stack((found.low, found.high, np.full(len(found.at), np.nan))).ravel()
    axes.plot(x, y, solid_capstyle="round", **style)


def legend_above(axes: Any, columns: int | None = None) -> None:
    """A legend in one line above the plot, where no data are."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, names, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns or len(handles),
            columnspacing=1.2, handlelength=1.6, borderaxespad=0.2,
        )  # fmt: skip


def detail(document: BenchDocument, pool: Pooled, mode: Mode) -> Plot:
    """The frames round the slowest answer, one bar each: waiting below, work above."""
    stage, label = LATENCY[mode]
    slowest = int(np.argmax(pool.stages[stage]))
    own = np.flatnonzero(pool.block == pool.block[slowest])
    first = max(int(own[0]), min(slowest - _DETAIL_FRAMES // 2, int(own[-1]) - _DETAIL_FRAMES + 1))
    shown = np.arange(first, min(first + _DETAIL_FRAMES, int(own[-1]) + 1))
    seq = pool.seq[shown]
    waited = np.maximum(pool.stages["capture"][shown], 0) if mode == "camera" else np.zeros(len(shown))
    missing = sorted(set(range(int(seq[0]), int(seq[-1]) + 1)) - set(seq.tolist()))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        if waited.max() > 0:
            axes.bar(seq, waited, 0.8, color=COLOURS["capture"], label="waited for the frame before")
        for letter, kind in KINDS.items():
            mask = pool.letters[shown] == letter
            if mask.any():
                style = {"color": COLOURS[kind.value], "label": kind.value}
                axes.bar(seq[mask], pool.stages["total"][shown][mask], 0.8, bottom=waited[mask], **style)
        if mode == "camera" and document.deadline_ms <= _FAR_DEADLINE * pool.stages[stage][shown].max():
            axes.axhline(
                document.deadline_ms, color=INK, linestyle=(0, (4, 2)), linewidth=1, label="deadline"
            )
        if missing:
            axes.plot(
                missing, np.zeros(len(missing)), "x", color=COLOURS["rest"], label="dropped", clip_on=False
            )
        axes.grid(axis="x", visible=False)
        axes.set_xlim(seq[0] - 1, seq[-1] + 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(f"frame of round {pool.round[slowest]}")
        axes.set_ylabel(label)
        legend_above(axes)

    return Plot(
        f"The slowest answer and the frames round it, {mode_name(mode, document)}",
        svg("detail", draw, PURPOSE, size_inches=(WIDE_INCHES, 2.6), settings=EXACT),
        f"Frame {pool.seq[slowest]} of round {pool.round[slowest]} took {milliseconds(pool.stages[stage][slowest])} "
        "ms. A bar is one frame; a frame that has to wait is as late as the one before it makes it.",
    )


def mode_name(mode: str, document: BenchDocument) -> str:
    """As the report calls it."""
    return f"at camera pace, {document.source.fps:g} frames/s" if mode == "camera" else "saturated"


def distribution(document: BenchDocument, mode: Mode) -> Plot:
    """Percentiles of the subject's latency by kind of frame, and the teacher's beside them."""
    title = f"Percentiles of latency, {mode_name(mode, document)}"
    pool = subject_pool(document, mode)
    if pool is None:
        return Plot(title, None, f"The subject answered no frame {mode_name(mode, document)}: not measured.")
    stage, label = LATENCY[mode]
    curves: list[tuple[str, tuple[np.ndarray, np.ndarray], str, Any]] = [
        (kind, tail(pool.stages[stage][mask]), COLOURS.get(kind, INK), "-")
        for kind, mask in pool.kinds()
        if kind != ALL or len(set(pool.letters.tolist())) > 1
    ]
    teacher = [block for block in document.blocks if (block.row, block.mode) == ("teacher", mode)]
    if any(len(block.frames) for block in teacher):
        times = Pooled.of(teacher).stages[stage]
        curves.append(("teacher", tail(times), COLOURS["teacher"], (0, (4, 2))))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for name, (nines, values), colour, dashes in curves:
            axes.plot(nines, values, color=colour, linestyle=dashes, linewidth=1.5, label=name)
            axes.plot(nines[-1], values[-1], "o", color=colour, markersize=3.5)
        far = max(3.0, max(nines[-1] for _, (nines, _), _, _ in curves))
        ticks = [0, np.log10(2), 1, 2, *range(3, int(far) + 1)]
        names = ["0", "50", *(f"{100 * (1 - 10.0**-n):.{max(0, n - 2)}f}" for n in range(1, int(far) + 1))]
        axes.set_xticks(ticks, names)
        lows = [values[values > 0].min(initial=np.inf) for _, (_, values), _, _ in curves]
        if max(values.max() for _, (_, values), _, _ in curves) / min(lows) > _LOG_FROM_CURVES:
            axes.set_yscale("log")
        axes.set_xlabel("percent of frames that are at least as fast")
        axes.set_ylabel(label + (" (log scale)" if axes.get_yscale() == "log" else ""))
        legend_above(axes)

    return Plot(
        title,
        svg(f"tail-{mode}", draw, PURPOSE, size_inches=_HALF, settings=EXACT),
        "Each step to the right is ten times rarer. A curve ends with the slowest frame of its kind (dot).",
    )


def stages(document: BenchDocument, figures: Figures) -> Plot:
    """Mean time of each stage, stacked, by kind of frame; beside it the same without the step, which hides the rest."""
    title = "Where the time goes"
    found = _stage_means(figures)
    if not found:
        return Plot(title, None, "The subject answered no frame: not measured.")
    present = [stage for stage in (*STAGES, "rest") if any(means.get(stage) for _, means in found)]
    places = np.arange(len(found))

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (3, 2)})
        for axes, shown in ((left, present), (right, [stage for stage in present if stage != "step"])):
            begin = np.zeros(len(found))
            for stage in shown:
                width = np.array([means.get(stage, 0.0) for _, means in found])
                axes.barh(places, width, 0.7, left=begin, color=COLOURS[stage.replace(" ", "-")], label=stage)
                begin = begin + width
            axes.grid(axis="y", visible=False)
            axes.set_xlim(0, (begin.max() or 1) * 1.22)
            axes.locator_params(axis="x", nbins=6)
            style = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
            for place, end in zip(places, begin):
                axes.annotate(milliseconds(end), (end, place), (4, 0), **style)
        left.set_yticks(places, [name for name, _ in found])
        left.invert_yaxis()
        left.set_xlabel("mean milliseconds a frame")
        right.set_xlabel("the same without the step")
        legend_above(left)

    return Plot(
        title,
        svg("stages", draw, PURPOSE, size_inches=(WIDE_INCHES, 0.9 + 0.36 * len(found)), settings=EXACT),
        "Means add up, percentiles do not: those are in the table. 'capture' is the time that a frame waits for the "
        "runner to be free; 'rest' is what a call takes beside its stages.",
    )


def _stage_means(figures: Figures) -> list[tuple[str, dict[str, float]]]:
    """Milliseconds by stage, for each mode and kind of frame."""
    found = []
    for mode in _MODES:
        row = figures.row(SUBJECT, mode)
        whole = {} if row is None else row.stages["total"]
        for kind in (ALL, "keyframe", "delta", "skip"):
            if row is not None and kind in whole:
                means = {
                    stage: row.stages[stage][kind].mean_ms.value
                    for stage in STAGES
                    if stage not in ("total", "age") and kind in row.stages.get(stage, {})
                }
                inner = sum(value for stage, value in means.items() if stage != "capture")
                means["rest"] = max(0.0, whole[kind].mean_ms.value - inner)
                found.append((f"{mode}: {kind}", means))
    return found
