"""``edge-sdk evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.options import JsonFlag, Limit, RecipeOption, Rival, Teacher, Threads
from edge_sdk.errors import RecipeError
from edge_sdk.files import require_writable
from edge_sdk.optional import require

if TYPE_CHECKING:
    from edge_sdk.evaluate.recipe import EvaluateRecipe


def evaluate(
    bundle: Annotated[Path | None, typer.Argument(metavar="BUNDLE", help="Bundle to judge.")] = None,
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="Frames, with or without labels.")
    ] = None,
    teacher: Teacher = None,
    rival: Rival = None,
    intervals: Annotated[
        str | None, typer.Option("--intervals", help="Keyframe intervals, such as 5,10.", show_default=False)
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            "--engines", help="Engine sets to compare too, such as onnxruntime-int8.", show_default=False
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help="Timed runs; the median counts.")
    ] = None,
    limit: Limit = None,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the HTML report.")] = None,
    recipe: RecipeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare the runner with its teacher, copying, optical flow and a per-frame network: one run, one table."""
    from edge_sdk import evaluate as stage
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.cli.progress import RichProgress

    given = {
        "bundle": bundle,
        "source": source,
        "teacher": teacher,
        "rival": rival,
        "intervals": None if intervals is None else parse_intervals(intervals),
        "engines": None if engines is None else tuple(engines.split(",")),
        "repeats": repeats,
        "limit": limit,
        "threads": threads,
        "out": out,
    }
    settings = read_settings(recipe, given)
    if settings.out is not None:
        require_writable(settings.out)
        for package in ("jinja2", "matplotlib"):  # known now, not after minutes of work
            require(package, "the report of edge-sdk evaluate (--out)")
    with RichProgress() as progress:
        evaluation = stage.evaluate(settings, progress=progress)
        report = evaluation.write_report(settings.out) if settings.out is not None else None
    if as_json:
        emit_json(evaluation)
    else:
        show(evaluation.table(), *([f"report: {report}"] if report is not None else []))


def parse_intervals(text: str) -> tuple[int, ...]:
    """``"5,10"`` as ``(5, 10)``.

    Raises:
        RecipeError: something in it is not a whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"--intervals: expected whole numbers such as 5,10, got '{text}'.") from None


def read_settings(recipe: Path | None, given: dict[str, Any]) -> EvaluateRecipe:
    """The recipe, or its defaults, with the options that were given in place of its values.

    Raises:
        RecipeError: a key or value is wrong, or bundle or source is named nowhere.
    """
    from edge_sdk.cli.stage import read_options
    from edge_sdk.evaluate.recipe import EvaluateRecipe

    return read_options(EvaluateRecipe, "evaluate", recipe, given, ("bundle", "source"))
