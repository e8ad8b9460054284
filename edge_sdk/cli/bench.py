"""``edge-sdk bench``."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.options import EngineName, JsonFlag, RecipeOption, Rival, Teacher
from edge_sdk.errors import RecipeError
from edge_sdk.files import require_writable
from edge_sdk.optional import require

if TYPE_CHECKING:
    from edge_sdk.bench.document import BenchDocument
    from edge_sdk.bench.recipe import BenchRecipe

_CHANGED = 1


class Preset(str, Enum):
    """How long a bench takes."""

    quick = "quick"
    standard = "standard"
    soak = "soak"


def bench(
    bundle: Annotated[Path | None, typer.Argument(metavar="BUNDLE", help="Bundle to measure.")] = None,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="Frames, with or without labels, or a camera; else a synthetic scene."
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option("--preset", help="quick: 30 s, standard: 3 min, soak: 10 min.", show_default=False),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Length instead of the preset's.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Rate of the simulated camera, else the source's own.")
    ] = None,
    interval: Annotated[
        int | None, typer.Option("--interval", min=1, help="A keyframe every K frames.")
    ] = None,
    engine: EngineName = None,
    backend: Annotated[str | None, typer.Option("--backend", help="Runtime that computes.")] = None,
    teacher: Teacher = None,
    rival: Rival = None,
    recipe: RecipeOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for bench.json and the HTML report.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare", help="An older bench.json: say what has changed; exit 1 if anything got worse."
        ),
    ] = None,
    document: Annotated[
        Path | None,
        typer.Option("--document", help="A bench.json to show, draw or compare, instead of measuring."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure latency on this device: saturated and at camera pace, beside the bare engine and the baselines.

    The runner is opened anew several times, and every figure carries the interval that the spread between these rounds
    allows. Leave the machine alone meanwhile; the verdict says what disturbed it.
    """
    from edge_sdk.bench.document import BenchDocument
    from edge_sdk.bench.recipe import BenchRecipe
    from edge_sdk.cli.stage import read_options

    given = {
        "bundle": bundle, "source": source, "preset": None if preset is None else preset.value, "seconds": seconds,
        "fps": fps, "engine": engine, "backend": backend, "teacher": teacher, "rival": rival,
        "out": out, "schedule": None if interval is None else {"kind": "every", "interval": interval},
    }  # fmt: skip
    old = None if compare is None else BenchDocument.load(compare)
    if document is not None:
        _refuse(given, document)
        _finish(BenchDocument.load(document), old, out, as_json)
        return
    settings = read_options(BenchRecipe, "bench", recipe, given, ("bundle",))
    _check_out(settings.out)
    _finish(_measured(settings), old, settings.out, as_json)


def _measured(settings: BenchRecipe) -> BenchDocument:
    from edge_sdk.bench.pipeline import bench as stage
    from edge_sdk.cli.progress import RichProgress

    with RichProgress() as progress:
        return stage(settings, progress=progress)


def _finish(found: BenchDocument, old: BenchDocument | None, out: Path | None, as_json: bool) -> None:
    """Compare, write and show."""
    from edge_sdk.bench.compare import compare
    from edge_sdk.bench.report import write_report
    from edge_sdk.bench.table import renderables
    from edge_sdk.cli.output import emit_json, show

    _check_out(out)
    comparison = None if old is None else compare(old, found)
    figures = found.figures
    report = None if out is None else write_report(found, out, comparison, figures=figures)
    if as_json:
        written = json.loads(found.to_json(figures))
        emit_json(written if comparison is None else {"bench": written, "comparison": comparison})
    else:
        shown: list[Any] = renderables(found, figures)
        if comparison is not None:
            shown += comparison.renderables()
        show(*shown, *([f"report: {report}"] if report is not None else []))
    if comparison is not None and comparison.worse:
        raise typer.Exit(_CHANGED)


def _check_out(out: Path | None) -> None:
    """Known now, not after minutes of work."""
    if out is not None:
        require_writable(out)
        for package in ("jinja2", "matplotlib"):
            require(package, "the report of edge-sdk bench (--out)")


def _refuse(given: dict[str, Any], document: Path) -> None:
    """A finished run has its settings; an option beside it would be swallowed."""
    for name, value in given.items():
        if value is not None and name != "out":
            raise RecipeError(
                f"--document: {document} is a finished run, '{name}' was given beside it.",
                hint="Leave out one of the two.",
            )
