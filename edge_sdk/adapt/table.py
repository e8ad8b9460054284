"""How a report's rows read: the terminal, the HTML page and published tables share the columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_sdk.adapt.report import AdaptReport, ReportRow
from edge_sdk.evaluate.table import NOTHING, share

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """One column: heading, how a row's cell reads, and what the heading means."""

    heading: str
    text: Callable[[ReportRow], str]
    meaning: str


def percent(value: float) -> str:
    """A share of 0-1 in percent, one place."""
    return f"{100 * value:.1f} %"


def _learned(row: ReportRow) -> str:
    return str(row.updates) if row.kind == "online" else NOTHING


def columns(report: AdaptReport) -> list[Column]:
    """Columns of this report; without times of the teacher those that rest on them are left out."""
    model = report.cost_model
    with_or_without = "with" if report.background else "without"
    found = [
        Column("row", lambda row: row.name, "what answers the frames between teacher frames"),
        Column(
            "mean IoU",
            lambda row: share(row.score.mean),
            "with the teacher's answers to every frame: true and false positives and false negatives of each class "
            f"added up over all frames, the teacher's own too; mean over classes {with_or_without} background",
        ),
        Column(
            "between",
            lambda row: share(None if row.student is None else row.student.mean),
            "the same over the frames alone that the teacher did not answer",
        ),
        Column("teacher", lambda row: percent(row.share), "share of frames that the teacher answers"),
        Column("updates", _learned, "optimiser steps in all"),
        Column(
            "speed-up, model",
            lambda row: NOTHING if row.model is None else f"{row.model.speedup:.1f}x",
            "against the teacher on every frame, by the published cost model: "
            f"student {model.student_ms:g} ms, teacher {model.teacher_ms:g} ms, update {model.update_ms:g} ms",
        ),
    ]
    if any(row.clock is not None for row in report.rows):
        found.append(
            Column(
                "speed-up, clock",
                lambda row: NOTHING if row.clock is None else f"{row.clock.speedup:.2f}x",
                "the same by the times measured here: mean of the teacher and of the frames between, sum of lessons",
            )
        )
    return found


def title(report: AdaptReport) -> str:
    """One line: what was answered."""
    stream = report.stream
    truth = "recorded masks" if stream.teacher == "recorded" else "its own teacher"
    name = "students" if report.bundle is None else report.bundle.name
    return (
        f"{name} on {stream.uri} ({stream.frames} frames of {stream.width} x {stream.height}) against {truth}"
    )


def rich_table(report: AdaptReport) -> Table:
    """The rows for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = columns(report)
    cells = [[column.text(row) for column in shown] for row in report.rows]
    widths = [
        max(len(column.heading), *(len(line[place]) for line in cells)) for place, column in enumerate(shown)
    ]
    table = Table(
        title=Text(title(report)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        # Full width even where a terminal is narrower: a wrapped line can be read, a cut one not.
        width=sum(widths) + 3 * len(widths),
    )
    for place, column in enumerate(shown):
        table.add_column(column.heading, justify="right" if place else "left", no_wrap=True)
    for row, line in zip(report.rows, cells, strict=True):
        table.add_row(*line, style="bold" if row.kind == "online" else "")
    return table


def markdown(report: AdaptReport) -> str:
    """The rows as a table in Markdown."""
    shown = columns(report)
    lines = [[column.heading for column in shown], ["---"] * len(shown)]
    for row in report.rows:
        cells = [column.text(row) for column in shown]
        lines.append([f"**{cells[0]}**", *cells[1:]] if row.kind == "online" else cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
