"""The HTML report of a bench: one file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.bench import plots, sheets, timeline, tradeoff
from edge_sdk.bench.document import JSON_NAME, REPORT_NAME, BenchDocument
from edge_sdk.bench.samples import Mode
from edge_sdk.bench.verdict import Verdict
from edge_sdk.bench.wording import GRADES, conditions, gain, row_text, source_text
from edge_sdk.files import write_text
from edge_sdk.page import fill

if TYPE_CHECKING:
    from edge_sdk.bench.choice import Choice
    from edge_sdk.bench.comparison import Comparison
    from edge_sdk.bench.figures import Figures

_TEMPLATE = "bench.html.j2"
_MODES: tuple[Mode, ...] = ("camera", "saturated")


def write_report(
    document: BenchDocument,
    folder: str | Path,
    comparison: Comparison | None = None,
    choice: Choice | None = None,
    figures: Figures | None = None,
) -> Path:
    """Write ``bench.json`` and the self-contained ``bench.html`` into ``folder``.

    Args:
        document: the run.
        folder: made where it is missing.
        comparison: with an older run.
        choice: which row meets a user's limits.
        figures: the run's, where they are computed already.

    Returns:
        The HTML file.

    Raises:
        DependencyError: jinja2 or matplotlib is not installed.
        OutputError: nothing can be written there.
    """
    figures = document.figures if figures is None else figures
    html = render(document, comparison, choice, figures)
    target = Path(folder)
    write_text(target / JSON_NAME, document.to_json(figures))
    write_text(target / REPORT_NAME, html)
    return target / REPORT_NAME


def render(
    document: BenchDocument,
    comparison: Comparison | None = None,
    choice: Choice | None = None,
    figures: Figures | None = None,
) -> str:
    """The whole report as HTML.

    Args:
        document: the run.
        comparison: with an older run; a section of the report.
        choice: which row meets a user's limits; marked among the others.
        figures: the run's, where they are computed already.

    Raises:
        DependencyError: jinja2 or matplotlib is not installed.
    """
    figures = document.figures if figures is None else figures
    verdict = Verdict.of(document, figures)
    chosen = None if choice is None else choice.row
    subject = document.bundles[0].name if document.bundles else str(document.recipe.bundle)
    return fill(
        __package__,
        _TEMPLATE,
        plots.PURPOSE,
        {},
        document=document,
        bundles=document.bundles,
        words=sheets.WORDS,
        subject=subject,
        what=row_text(document.rows[0]),
        source=source_text(document),
        verdict=verdict,
        grade=GRADES[verdict.grade],
        gain=gain(document, figures),
        rows=[sheets.rows(document, figures, mode, chosen) for mode in ("saturated", "camera")],
        stage_tables=[sheets.stages(document, figures, mode) for mode in _MODES],
        accuracy=tradeoff.accuracy(document, figures, chosen),
        choice=choice,
        cost=sheets.cost(figures),
        cold=sheets.cold(document, figures),
        memory_table=sheets.memory(figures),
        worst=sheets.worst(document, figures),
        comparison=comparison,
        changes=None if comparison is None else sheets.comparison(comparison),
        conditions=conditions(document, figures),
        sensors=sheets.sensors(figures),
        **_plots(document, figures),
    )


def _plots(document: BenchDocument, figures: Figures) -> dict[str, Any]:
    pace = plots.slowest_mode(document)
    return {
        "timeline": timeline.timeline(document),
        "detail": None if pace is None else plots.detail(document, *pace),
        "tails": [plots.distribution(document, mode) for mode in _MODES],
        "stages": plots.stages(document, figures),
        "memory": timeline.memory(document, figures),
    }
