"""The HTML report: one file that needs nothing else."""

from __future__ import annotations

import base64

from edge_sdk.evaluate.evaluation import Evaluation, Row
from edge_sdk.evaluate.plots import accuracy_name, all_plots, headline
from edge_sdk.evaluate.table import columns, share, title
from edge_sdk.page import fill

_TEMPLATE = "report.html.j2"


def render(evaluation: Evaluation) -> str:
    """The whole report as HTML.

    Raises:
        DependencyError: jinja2 or matplotlib is not installed.
    """
    shown = columns(evaluation)
    return fill(
        __package__,
        _TEMPLATE,
        "the evaluation report",
        {"share": share, "jpeg": _data_uri},
        evaluation=evaluation,
        bundles=evaluation.bundles,
        title=title(evaluation),
        columns=shown,
        cells=[(row, [column.text(row) for column in shown]) for row in evaluation.rows],
        verdicts=verdicts(evaluation),
        accuracy=accuracy_name(evaluation),
        plots=all_plots(evaluation),
        colours=[f"rgb({red}, {green}, {blue})" for blue, green, red in evaluation.task.colours().tolist()],
        farthest=max(row.interval for row in evaluation.rows),
    )


def verdicts(evaluation: Evaluation) -> list[str]:
    """One sentence for each delta row: what it gained in time and lost in accuracy, and the same for the others."""
    return [_verdict(row, evaluation) for row in evaluation.rows if row.variant == "delta"]


def _verdict(delta: Row, evaluation: Evaluation) -> str:
    teacher = next(row for row in evaluation.rows if row.variant == "teacher")
    others = [
        row
        for row in evaluation.rows
        if row.variant == "rival" or (row.variant in ("copy", "flow") and row.interval == delta.interval)
    ]
    speed, points = _gain(delta, teacher, evaluation)
    compared = "; ".join(" ".join((row.variant, *_gain(row, teacher, evaluation))) for row in others)
    name = delta.name.replace(f" K={delta.interval}", "")
    return (
        f"K={delta.interval}: {name} runs at {speed} the teacher's frames a second, {points} points of "
        f"{accuracy_name(evaluation)}. For comparison: {compared}."
    )


def _gain(row: Row, teacher: Row, evaluation: Evaluation) -> tuple[str, str]:
    """Speed and accuracy relative to the teacher, such as ``("2.31x", "-0.8")``."""
    ours, theirs = headline(row, evaluation), headline(teacher, evaluation)
    points = "?" if ours is None or theirs is None else f"{(ours - theirs) * 100:+.1f}"
    return f"{row.timing.speedup.median:.2f}x", points


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
