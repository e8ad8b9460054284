"""``edge-sdk evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from edge_sdk.cli.options import JsonFlag, Limit, RecipeOption, Rival, Teacher, Threads
from edge_sdk.errors import RecipeError
from edge_sdk.files import require_writable
from edge_sdk.optional import require

if TYPE_CHECKING:
    from edge_sdk.evaluate import EvaluateRecipe, Evaluation
    from edge_sdk.evaluate.clips import ClipEvaluateRecipe, ClipEvaluation
    from edge_sdk.progress import Progress


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
    length: Annotated[
        int | None, typer.Option("--length", min=1, help="Of clips: frames of each; else the schedule's.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the HTML report.")] = None,
    recipe: RecipeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare a pair with its teacher, copying, optical flow and a rival; a clip classifier with teacher and rival."""
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
        "length": length,
        "out": out,
    }
    settings = read_settings(recipe, given)
    if settings.out is not None:
        require_writable(settings.out)
        for package in ("jinja2", "matplotlib"):  # known now, not after minutes of work
            require(package, "the report of edge-sdk evaluate (--out)")
    with RichProgress() as progress:
        evaluation = run(settings, progress)
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


def run(settings: EvaluateRecipe | ClipEvaluateRecipe, progress: Progress) -> Evaluation | ClipEvaluation:
    """The evaluation that the settings are of."""
    from edge_sdk.evaluate import EvaluateRecipe, evaluate
    from edge_sdk.evaluate.clips import evaluate_clips

    if isinstance(settings, EvaluateRecipe):
        return evaluate(settings, progress=progress)
    return evaluate_clips(settings, progress=progress)


def read_settings(recipe: Path | None, given: dict[str, Any]) -> EvaluateRecipe | ClipEvaluateRecipe:
    """The recipe, or its defaults, with the options that were given in place of its values.

    Which settings there are is decided by what the bundle does: answer frames, or classify clips.

    Raises:
        RecipeError: a key or value is wrong, or bundle or source is named nowhere.
    """
    from edge_sdk.cli.stage import read_options
    from edge_sdk.evaluate.clips.lineup import is_clip_bundle
    from edge_sdk.evaluate.clips.recipe import ClipEvaluateRecipe
    from edge_sdk.evaluate.recipe import EvaluateRecipe

    needed = ("bundle", "source")
    if is_clip_bundle(given["bundle"] or _bundle_of(recipe)):
        return read_options(ClipEvaluateRecipe, "evaluate", recipe, given, needed)
    return read_options(EvaluateRecipe, "evaluate", recipe, given, needed)


def _bundle_of(recipe: Path | None) -> Path | None:
    """The bundle that a recipe names; None where it cannot be read, which is told where it is read whole."""
    if recipe is None or not recipe.is_file():
        return None
    try:
        data = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    named = data.get("bundle") if isinstance(data, dict) else None
    return Path(named) if isinstance(named, str) else None
