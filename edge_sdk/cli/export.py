"""``edge-sdk export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_sdk.cli.options import JsonFlag, OutFolder, Recipe

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle


def export(recipe: Recipe, out: OutFolder = None, as_json: JsonFlag = False) -> None:
    """Export a teacher, or a teacher and its student, as a bundle of ONNX step graphs."""
    from edge_sdk.cli.output import emit_json, figures_table, show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.stage import need
    from edge_sdk.settings import load_recipe

    need("export", "torch", "onnx", "onnxscript", "onnxruntime", recipe=recipe)
    from edge_sdk import compile as stage

    settings = load_recipe(recipe, stage.ExportRecipe, out=None if out is None else str(out))
    with RichProgress() as progress:
        bundle = stage.export(settings, progress=progress)
    summary = describe(bundle)
    if as_json:
        emit_json(summary)
    else:
        path, size = summary.pop("path"), summary.pop("size_bytes")
        show(figures_table("Exported", summary), f"bundle: {path} ({size / 1e6:.2f} MB)")


def describe(bundle: Bundle) -> dict[str, Any]:
    """What a user wants to know of a bundle just written: path, sizes in bytes, frame and work per step."""
    manifest = bundle.manifest
    steps = {"keyframe": manifest.steps.keyframe, "delta": manifest.steps.delta}
    return {
        "path": bundle.path,
        "size_bytes": sum(record.size_bytes for record in manifest.files.values()),
        "name": manifest.name,
        "method": manifest.method,
        "frame": "x".join(str(n) for n in manifest.frame.shape) + f" {manifest.frame.dtype}",
        "state_bytes": bundle.state_bytes,
        **{f"{name}_macs": step.macs for name, step in steps.items() if step is not None},
    }
