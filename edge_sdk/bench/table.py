"""What a bench prints on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.figures import Distribution, Estimate, Figures, RowFigures
from edge_sdk.bench.samples import Mode
from edge_sdk.bench.verdict import Verdict
from edge_sdk.evaluate.table import NOTHING, milliseconds, share, size

if TYPE_CHECKING:
    from rich.table import Table

# What settles in the first minutes of a process is no slope.
_SLOPE_FROM_MS = 120_000.0
_KINDS = ("all", "keyframe", "delta", "skip")
_MODES: tuple[Mode, ...] = ("camera", "saturated")


def renderables(document: BenchDocument, figures: Figures | None = None) -> list[Any]:
    """Verdict, tables and lines, in the order of a reader's questions.

    Args:
        document: the run.
        figures: its figures where they are computed already.
    """
    figures = document.figures if figures is None else figures
    verdict = Verdict.of(document, figures)
    lines = [f"verdict: {verdict.grade}"]
    lines += [f"  {reason}" for reason in verdict.reasons]
    lines += [f"  {remark}" for remark in verdict.remarks]
    # A live source gives its frames at its own pace alone.
    saturated = any(row.mode == "saturated" for row in figures.rows)
    tables: list[Any] = [_rows_table(document, figures)] if saturated else []
    for mode in _MODES:
        row = figures.row(SUBJECT, mode)
        if row is not None:
            tables.append(_stages_table(row, document))
    return [*tables, "\n".join((*_lines(document, figures), *lines))]


def estimate(value: Estimate | None) -> str:
    """A time in milliseconds with half its 95 % interval."""
    if value is None:
        return NOTHING
    if value.low is None or value.high is None:
        return milliseconds(value.value)
    return f"{milliseconds(value.value)} ±{milliseconds((value.high - value.low) / 2)}"


def _within(value: Estimate, unit: float) -> str:
    return (
        ""
        if value.low is None or value.high is None
        else f" ({value.low / unit:+.1f} to {value.high / unit:+.1f})"
    )


def _rows_table(document: BenchDocument, figures: Figures) -> Table:
    from rich.table import Table

    table = Table(title="saturated: every row on the same frames, in one run", title_justify="left")
    table.add_column("row")
    for heading in ("mean ms", "p50", "p99", "max", "keyframes", "times teacher", "mIoU", "agreement"):
        table.add_column(heading, justify="right")
    for row in document.rows:
        found = figures.row(row.name, "saturated")
        latency = None if found is None else found.latency()
        if found is None or latency is None:
            continue
        speed = found.speedup
        table.add_row(
            _name(row.name, row.engine),
            estimate(latency.mean_ms),
            milliseconds(latency.p50_ms.value),
            milliseconds(latency.p99_ms.value),
            milliseconds(latency.max_ms),
            f"{found.keyframe_share:.1%}",
            NOTHING if speed is None else f"{speed.value:.2f}",
            share(row.labels),
            share(row.agreement),
        )
    return table


def _stages_table(row: RowFigures, document: BenchDocument) -> Table:
    from rich.table import Table

    what = f"camera pace, {document.source.fps:g} frames/s" if row.mode == "camera" else "saturated"
    table = Table(title=f"{SUBJECT}, {what}", title_justify="left")
    table.add_column("stage")
    table.add_column("frames")
    for heading in ("count", "mean ms", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(heading, justify="right")
    for stage, kinds in row.stages.items():
        for kind in _KINDS:
            if kind in kinds and (kind == "all" or stage in ("step", "total", "age")):
                table.add_row(stage, kind, *_cells(kinds[kind]))
    return table


def _cells(found: Distribution) -> tuple[str, ...]:
    return (
        str(found.frames),
        estimate(found.mean_ms),
        *(milliseconds(value.value) for value in (found.p50_ms, found.p90_ms, found.p99_ms)),
        milliseconds(found.p999_ms),
        milliseconds(found.max_ms),
    )


def _lines(document: BenchDocument, figures: Figures) -> list[str]:
    lines = []
    camera = figures.row(SUBJECT, "camera")
    if camera is not None and camera.deadline is not None:
        met = camera.deadline
        lines.append(
            f"deadline {milliseconds(met.deadline_ms)} ms: {met.late} of {met.frames} frames late, {met.dropped} "
            f"dropped, miss rate {met.miss_rate.value:.3%}"
            + (f"; jitter p99 {milliseconds(camera.jitter.p99_ms)} ms" if camera.jitter else "")
        )
    if figures.cost:
        parts = ", ".join(
            f"{kind} {estimate(cost.own_ms)} ms over {milliseconds(cost.bare_ms)} ({cost.share:.1%})"
            for kind, cost in figures.cost.items()
        )
        lines.append(f"the runner's own cost over the bare engine: {parts}")
    cold = figures.cold
    first = ", ".join(f"{step} {milliseconds(value)} ms" for step, value in cold.first_ms.items())
    lines.append(
        f"cold start: check {milliseconds(cold.check_ms)} ms, load {milliseconds(cold.load_ms)} ms, first runs: {first}"
    )
    long = document.readings and document.readings[-1].at_ms >= _SLOPE_FROM_MS
    for name, memory in figures.memory.items():
        grows = memory.growth_bytes_per_hour if long else None
        slope = "" if grows is None else f", slope {grows.value / 1e6:+.1f} MB an hour{_within(grows, 1e6)}"
        lines.append(f"{name} memory: peak {size(memory.peak_bytes)}{slope}")
    saturated = figures.row(SUBJECT, "saturated")
    if saturated is not None and saturated.throughput_fps is not None:
        lines.append(f"throughput: {saturated.throughput_fps.value:.1f} frames/s")
    if saturated is not None and saturated.energy_mj is not None:
        lines.append(f"energy: {saturated.energy_mj.value:.0f} mJ a frame")
    if figures.worst:
        lines.append(f"worst: {figures.worst[0].line()}")
    return lines


def _name(row: str, engine: str) -> str:
    return row if engine in row else f"{row} ({engine})"
