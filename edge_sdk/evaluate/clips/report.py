"""The HTML report on clip classifiers: one file that needs nothing else."""

from __future__ import annotations

from edge_sdk.evaluate.clips.evaluation import ClipEvaluation, ClipRow
from edge_sdk.evaluate.clips.plots import all_plots, colour_names
from edge_sdk.evaluate.clips.table import METRICS, columns, notes, title
from edge_sdk.evaluate.table import share
from edge_sdk.page import fill

_TEMPLATE = "report.html.j2"


def render(evaluation: ClipEvaluation) -> str:
    """The whole report as HTML.

    Raises:
        DependencyError: jinja2 or matplotlib is not installed.
    """
    shown = columns(evaluation)
    return fill(
        __package__,
        _TEMPLATE,
        "the evaluation report",
        {"share": share},
        evaluation=evaluation,
        bundles=evaluation.bundles,
        title=title(evaluation),
        columns=shown,
        cells=[(row, [column.text(row) for column in shown]) for row in evaluation.rows],
        keys=colour_names(evaluation),
        verdicts=verdicts(evaluation),
        notes=notes(evaluation),
        plots=all_plots(evaluation),
    )


def verdicts(evaluation: ClipEvaluation) -> list[str]:
    """A sentence for each row but the first: what it gains in time and loses in accuracy against it."""
    first = evaluation.rows[0]
    return [_verdict(row, first, evaluation.primary) for row in evaluation.rows[1:]]


def _verdict(row: ClipRow, first: ClipRow, primary: str) -> str:
    points = (row.scores[primary] - first.scores[primary]) * 100
    work = ""
    if row.macs is not None and first.macs:
        work = f" and {row.macs / first.macs:.1%} of its multiply-accumulates"
    name = METRICS.get(primary, (primary,))[0]
    return (
        f"{row.name}: {points:+.1f} points of {name} against {first.name}, with {row.seen:g} of {first.seen:g} "
        f"frames seen{work}; {row.timing.speedup.median:.2f} times as fast a clip."
    )
