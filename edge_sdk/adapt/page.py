"""The HTML report: one file that needs nothing else."""

from __future__ import annotations

from edge_sdk.adapt.plots import all_plots
from edge_sdk.adapt.report import AdaptReport, ReportRow
from edge_sdk.adapt.table import columns, percent, title
from edge_sdk.evaluate.table import share
from edge_sdk.page import fill

_TEMPLATE = "report.html.j2"


def render(report: AdaptReport) -> str:
    """The whole report as HTML.

    Raises:
        DependencyError: jinja2 or matplotlib is not installed.
    """
    shown = columns(report)
    names = report.task.classes
    seen = [name for name in names if any(name in row.score.classes for row in report.rows)]
    return fill(
        __package__,
        _TEMPLATE,
        "the report of edge-sdk adapt",
        {"share": share, "percent": percent},
        report=report,
        title=title(report),
        columns=shown,
        cells=[(row, [column.text(row) for column in shown]) for row in report.rows],
        verdicts=verdicts(report),
        classes=seen,
        plots=all_plots(report),
    )


def verdicts(report: AdaptReport) -> list[str]:
    """For each run that learned: how it did, and the best of copying and flow with as many teacher frames."""
    return [_verdict(row, report) for row in report.rows if row.kind == "online"]


def _verdict(row: ReportRow, report: AdaptReport) -> str:
    others = [
        other
        for other in report.rows
        if other.placed is not None and other.share == row.share and other.threshold == row.threshold
    ]
    text = f"{row.name}: the teacher answers {percent(row.share)} of the frames, mean IoU {share(row.score.mean)}"
    if row.model is not None:
        text += f", {row.model.speedup:.1f} times as fast as the teacher alone by the published cost model"
    scored = {other.name: other.score.mean for other in others if other.score.mean is not None}
    if scored:
        best = max(scored, key=lambda name: scored[name])
        text += f". The best without a student and with as many teacher frames: {best}, {share(scored[best])}"
    return text + "."
