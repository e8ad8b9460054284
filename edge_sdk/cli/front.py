"""``edge-sdk front``."""

from __future__ import annotations

from edge_sdk.cli.options import JsonFlag, OutFolder, Recipe
from edge_sdk.cli.stage import need
from edge_sdk.files import require_writable
from edge_sdk.optional import require
from edge_sdk.settings import load_recipe


def front(recipe: Recipe, out: OutFolder = None, as_json: JsonFlag = False) -> None:
    """Compare pairs with smaller networks on every frame, at the same mean latency: is the pair worth having?

    One run, interleaved, in every precision of the recipe. Leave the machine alone meanwhile; the report says where
    the times were disturbed.
    """
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.cli.progress import RichProgress

    need("front", "onnxruntime", "cv2", recipe=recipe)
    from edge_sdk.evaluate.front import FrontRecipe, measure_front

    settings = load_recipe(recipe, FrontRecipe, out=None if out is None else str(out))
    if settings.out is not None:
        require_writable(settings.out)
        for package in ("jinja2", "matplotlib"):  # known now, not after minutes of work
            require(package, "the report of edge-sdk front (out)")
    with RichProgress() as progress:
        found = measure_front(settings, progress=progress)
        report = found.write_report(settings.out) if settings.out is not None else None
    if as_json:
        emit_json(found)
    else:
        show(found.table(), *([f"report: {report}"] if report is not None else []))
