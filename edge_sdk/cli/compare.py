"""``edge-sdk compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.options import BundlePath, JsonFlag, Threads
from edge_sdk.errors import RecipeError
from edge_sdk.files import require_writable
from edge_sdk.optional import require

if TYPE_CHECKING:
    from edge_sdk.parity import CompareRecipe


def compare(
    bundle: BundlePath,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="Frames to record a new reference from, with or without labels."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="The reference's file, *.npz: written with SOURCE, read without."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine", help="Engine set such as onnxruntime-int8; may be repeated. All by default."
        ),
    ] = None,
    interval: Annotated[
        int | None,
        typer.Option("--interval", min=1, help="Keyframe interval of a new reference.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Frames of a new reference, 200 by default.")
    ] = None,
    periods: Annotated[
        int | None,
        typer.Option("--periods", min=1, help="Keyframe periods whose state is kept in a new reference; 4."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", min=0, help="Exit with 1 if an engine loses more points than this."),
    ] = None,
    grown: Annotated[
        float | None, typer.Option("--grown", help="Relative error that counts as grown; 0.05.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also compare inside the graphs, layer by layer; needs onnx.")
    ] = False,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the JSON and the HTML report.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare every precision of a bundle, step by step and over the stream, with one stored float32 reference."""
    from edge_sdk import parity as stage
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.parity.table import meanings, notes, rich_tables

    recorded = {"interval": interval, "limit": limit, "periods": periods}
    settings = read_settings(
        source,
        recorded,
        {
            "bundle": bundle,
            "reference": reference,
            "engines": engine or None,
            "max_drop": max_drop,
            "grown": grown,
            "trace": trace,
            "threads": threads,
            "out": out,
        },
    )
    if out is not None:
        require_writable(out)
        require("jinja2", "the report of edge-sdk compare (--out)")
    if trace:
        require("onnx", "edge-sdk compare --trace")
    with RichProgress() as progress:
        found = stage.compare(settings, progress=progress)
        report = found.write_report(out) if out is not None else None
    if as_json:
        emit_json(found)
    else:
        kept = (
            [f"reference: {found.reference.path}", f"sha256: {found.reference.sha256}"] if reference else []
        )
        written = [f"report: {report}"] if report is not None else []
        show(*rich_tables(found), meanings(found), *notes(found), *kept, *written)
    if found.over_budget:
        raise typer.Exit(1)


def read_settings(source: str | None, recorded: dict[str, Any], given: dict[str, Any]) -> CompareRecipe:
    """The options as settings.

    Raises:
        RecipeError: a value is wrong, there is neither source nor reference, or an option is for a new reference and
            none is recorded.
    """
    from edge_sdk.parity import CompareRecipe
    from edge_sdk.settings import parse_settings

    options = {key: value for key, value in recorded.items() if value is not None}
    if source is None:
        if options:
            name = next(iter(options))
            raise RecipeError(
                f"--{name}: it is of a new reference, and no SOURCE is given to record one from.",
                hint="Name a SOURCE, or leave the option out.",
            )
        if given["reference"] is None:
            raise RecipeError(
                "SOURCE: expected frames to record a reference from, or --reference.",
                hint="Run: edge-sdk compare BUNDLE SOURCE --reference FILE, then on the device: "
                "edge-sdk compare BUNDLE --reference FILE",
            )
    data = {key: value for key, value in given.items() if value is not None}
    if source is not None:
        data["record"] = {"source": source, "threads": given["threads"], **options}
    return parse_settings(data, CompareRecipe, "edge-sdk compare")
