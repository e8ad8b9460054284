"""``edge-sdk calibrate``."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.options import JsonFlag, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_sdk.compile.calibration_set import CalibrationSet


def calibrate(
    recipe: Recipe,
    out: Annotated[
        Path | None, typer.Option("--out", help="File for the set, *.npz, instead of the recipe's.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run the float32 pair over your clips and record what each step graph receives, for INT8 and FP16."""
    from edge_sdk.cli.output import emit_json, figures_table, show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.stage import need
    from edge_sdk.settings import load_recipe

    need("calibrate", "onnxruntime", "cv2", recipe=recipe)
    from edge_sdk import compile as stage

    settings = load_recipe(recipe, stage.CalibrateRecipe, out=None if out is None else str(out))
    with RichProgress() as progress:
        found = stage.calibrate(settings, progress=progress)
    summary = describe(found)
    if as_json:
        emit_json(summary)
        return
    passes = {f"{step} passes": by_distance(counts) for step, counts in found.header.counts.items()}
    figures = {key: summary[key] for key in ("bundle", "clips", "frames", "sources", "runtime")}
    where = f"sha256: {found.sha256}\ncalibration set: {found.path} ({found.size_bytes / 1e6:.1f} MB)"
    show(figures_table("Calibration set", {**figures, **passes}), *unreached(found), where)


def by_distance(counts: Sequence[int]) -> str:
    """Passes at distance 0, 1, 2, ... as text, such as ``"32 at each distance 1-9"``."""
    parts = []
    for count, run in groupby(enumerate(counts), key=lambda pair: pair[1]):
        distances = [distance for distance, _ in run]
        if not count:
            continue
        if len(distances) == 1:
            parts.append(f"{count} at distance {distances[0]}")
        else:
            parts.append(f"{count} at each distance {distances[0]}-{distances[-1]}")
    return ", ".join(parts)


def unreached(found: CalibrationSet) -> list[str]:
    """One line if the bundle's own schedule goes further from the keyframe than the clips do."""
    reached, interval = len(found.header.counts.get("delta", ())), found.header.interval
    if not reached or reached >= interval:
        return []
    return [
        f"Note: the clips end at distance {reached - 1} from the keyframe; the bundle's schedule, a keyframe every "
        f"{interval} frames, goes to {interval - 1}. Longer clips reach it."
    ]


def describe(found: CalibrationSet) -> dict[str, Any]:
    """What a user wants to know of a calibration set just written; ``passes`` by step and distance 0, 1, 2, ...."""
    header = found.header
    return {
        "path": found.path,
        "size_bytes": found.size_bytes,
        "sha256": found.sha256,
        "bundle": header.bundle,
        "graphs": header.graphs,
        "clips": len(header.clips),
        "frames": sum(len(clip.frames) for clip in header.clips),
        "sources": len({clip.source for clip in header.clips}),
        "clips_sha256": header.clips_sha256,
        "interval": header.interval,
        "passes": header.counts,
        "runtime": header.runtime,
    }
