"""``edge-sdk tune``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.evaluate import parse_intervals
from edge_sdk.cli.options import JsonFlag, RecipeOption, Rival
from edge_sdk.files import require_writable
from edge_sdk.optional import require

if TYPE_CHECKING:
    from rich.table import Table

    from edge_sdk.bench.choice import Point
    from edge_sdk.bench.tune import Tuning

_NOTHING_CHOSEN = 1


def tune(
    bundle: Annotated[Path | None, typer.Argument(metavar="BUNDLE", help="Bundle to tune.")] = None,
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="Frames, with or without labels; no camera.")
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            "--engines", help="Engine sets, such as float32,onnxruntime-int8, or all.", show_default=False
        ),
    ] = None,
    intervals: Annotated[
        str | None, typer.Option("--intervals", help="Keyframe intervals, 5,10,20 unless given.")
    ] = None,
    schedules: Annotated[
        str | None, typer.Option("--schedules", help="Of every,change,drift,background; all unless given.")
    ] = None,
    max_ms: Annotated[float | None, typer.Option("--max-ms", help="Mean time of a frame at most.")] = None,
    max_p99_ms: Annotated[
        float | None, typer.Option("--max-p99-ms", help="99th percentile of the time of a frame at most.")
    ] = None,
    min_miou: Annotated[float | None, typer.Option("--min-miou", help="Score at least, 0 to 1.")] = None,
    max_loss: Annotated[
        float | None,
        typer.Option("--max-loss", help="Score below the float32 teacher's at most, such as 0.01."),
    ] = None,
    rival: Rival = None,
    backend: Annotated[str | None, typer.Option("--backend", help="Runtime that computes.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for bench.json, the HTML report and the scores.")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="RUN.yaml", help="Run recipe to write for what was chosen."),
    ] = None,
    recipe: RecipeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure precision x interval x schedule on this device, and choose what meets the limits.

    Of the rows that keep every limit the fastest is chosen where accuracy is limited, else the most accurate; of rows
    that tie the simpler. Exit code 1, and no recipe, where nothing keeps them. What was chosen runs with
    'edge-sdk run --recipe RUN.yaml SOURCE'. Time, frames, threads and more are settings of --recipe.
    """
    from edge_sdk.bench.tune import TuneRecipe
    from edge_sdk.bench.tune import tune as stage
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.stage import read_options

    given = {
        "bundle": bundle, "source": source, "engines": "all" if engines == "all" else _names(engines),
        "intervals": None if intervals is None else parse_intervals(intervals), "schedules": _names(schedules),
        "max_ms": max_ms, "max_p99_ms": max_p99_ms, "min_miou": min_miou, "max_loss": max_loss, "rival": rival,
        "backend": backend, "out": out, "write": write,
    }  # fmt: skip
    settings = read_options(TuneRecipe, "tune", recipe, given, ("bundle", "source"))
    _check_outputs(settings.out, settings.write)
    with RichProgress() as progress:
        tuning = stage(settings, progress=progress)
    report = _write(tuning, settings.out, settings.write)
    if as_json:
        emit_json(summary(tuning))
    else:
        written = [f"report: {report}"] if report is not None else []
        if tuning.run is not None and settings.write is not None:
            written.append(f"run recipe: {settings.write}")
        notes = [f"note: {note}" for note in tuning.notes]
        show(table(tuning), *notes, *tuning.lines(), *written)
    if settings.given and tuning.run is None:
        raise typer.Exit(_NOTHING_CHOSEN)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(text.split(","))


def _check_outputs(out: Path | None, write: Path | None) -> None:
    """Known now, not after minutes of work."""
    if write is not None:
        require_writable(write.parent)
    if out is not None:
        require_writable(out)
        for package in ("jinja2", "matplotlib"):
            require(package, "the report of edge-sdk tune (--out)")


def _write(tuning: Tuning, out: Path | None, write: Path | None) -> Path | None:
    """The report and the run recipe; the report's place."""
    if write is not None and tuning.run is not None:
        tuning.write(write, f"edge-sdk {shlex.join(sys.argv[1:])}")
    if out is None:
        return None
    from edge_sdk.bench.report import write_report

    return write_report(tuning.document, out, choice=tuning.choice)


def summary(tuning: Tuning) -> dict[str, Any]:
    """Everything about a tuning but the raw samples, as JSON."""
    return {
        "choice": tuning.choice,
        "limits": tuning.recipe.given,
        "labelled": tuning.labelled,
        "points": [
            {**point.model_dump(mode="json"), "settings": tuning.document.row(point.row)}
            for point in tuning.points
        ],
        "run": tuning.run,
        "at_camera_pace": tuning.paced,
        "notes": tuning.notes,
        "conditions": tuning.document.conditions,
        "verdict": tuning.document.verdict,
    }


def table(tuning: Tuning) -> Table:
    """The rows, the fastest first."""
    from rich import box
    from rich.table import Table

    from edge_sdk.bench.table import estimate
    from edge_sdk.evaluate.table import milliseconds, share

    against = "the labels" if tuning.labelled else "the float32 teacher's answers"
    headings = ("row", "mean ms", "p99 ms", "mIoU", "loss", "agreement", "")
    points = sorted(tuning.points, key=lambda point: point.mean_ms.value)
    cells = []
    for point in points:
        row = tuning.document.row(point.row)
        cells.append(
            (
                point.row if row.engine in point.row else f"{point.row} ({row.engine})",
                estimate(point.mean_ms),
                milliseconds(point.p99_ms.value),
                share(point.score),
                f"{point.loss:.3f}",
                share(row.agreement),
                _marks(tuning, point),
            )
        )
    widths = [max(len(heading), *(len(line[at]) for line in cells)) for at, heading in enumerate(headings)]
    found = Table(
        title=f"saturated, mean of all frames; mIoU with {against}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        # Full width even where a terminal is narrower or there is none: a wrapped line can be read, a cut one not.
        width=sum(widths) + 3 * len(widths),
    )
    for heading in headings:
        found.add_column(heading, justify="left" if heading in ("row", "") else "right", no_wrap=True)
    for point, line in zip(points, cells, strict=True):
        found.add_row(*line, style="bold" if point.row == tuning.choice.row else "")
    return found


def _marks(tuning: Tuning, point: Point) -> str:
    """What stands out about a row."""
    from edge_sdk.bench.choice import excesses

    marks = ["chosen"] if point.row == tuning.choice.row else []
    marks += ["front"] if point.row in tuning.choice.front else []
    marks += [
        f"over --{name.replace('_', '-')}"
        for name in excesses(point, tuning.recipe)
        if name.startswith("max")
    ]
    marks += ["below --min-miou"] if "min_miou" in excesses(point, tuning.recipe) else []
    return ", ".join(marks)
