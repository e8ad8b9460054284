"""The HTML report: one file that needs nothing else."""

from __future__ import annotations

from edge_sdk.evaluate.front.document import Front, FrontRow
from edge_sdk.evaluate.front.plots import PURPOSE, colour_name, pair_styles, panels
from edge_sdk.evaluate.front.table import COLUMNS, notes, runs_text, title
from edge_sdk.evaluate.table import milliseconds, share
from edge_sdk.page import fill

_TEMPLATE = "report.html.j2"


def render(front: Front) -> str:
    """The whole report as HTML.

    Raises:
        DependencyError: jinja2 or matplotlib is not installed.
    """
    styles = pair_styles(front)
    return fill(
        __package__,
        _TEMPLATE,
        PURPOSE,
        {},
        front=front,
        bundles=front.bundles,
        title=title(front),
        columns=COLUMNS,
        cells=[(row, [column.text(row) for column in COLUMNS]) for row in front.rows],
        keys={row.name: colour_name(row, styles) for row in front.rows},
        verdicts=verdicts(front),
        notes=notes(front),
        plots=panels(front),
    )


def verdicts(front: Front) -> list[str]:
    """A sentence for each precision and interval: the pair that recovers most."""
    groups = dict.fromkeys((row.engine, row.interval) for row in front.rows if row.kind == "pair")
    return [
        _verdict([row for row in front.of(engine, "pair") if row.interval == interval])
        for engine, interval in groups
    ]


def _verdict(rows: list[FrontRow]) -> str:
    found = [(row.recovered, row) for row in rows if row.recovered is not None]
    shares = [(gain.share, gain.rival, row) for gain, row in found if gain.share is not None]
    head = f"{rows[0].engine}, K={rows[0].interval}: "
    if not shares:
        return f"{head}no pair has a recovered share; the notes say why."
    best, rival, row = max(shares, key=lambda one: one[0])
    return (
        f"{head}{row.who} recovers {best:.2f} ({runs_text(row)} over single runs) of the way from a network of its own "
        f"{milliseconds(row.times.mean_ms.median)} ms, which has {share(rival)}, to the teacher: {share(row.labels)} "
        f"mIoU at {row.times.speedup.median:.2f}x the teacher's frames a second."
    )
