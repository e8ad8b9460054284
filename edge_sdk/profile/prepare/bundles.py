"""A pair in memory to a bundle with the graphs of the precision that is measured."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edge_sdk.build.pipeline import build
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.bundle import Bundle
from edge_sdk.compile.calibrate import CalibrateRecipe, DrawSettings, calibrate
from edge_sdk.compile.export import export_origin
from edge_sdk.compile.origins import Origin
from edge_sdk.compile.recipes import ExportRecipe
from edge_sdk.profile.prepare.recipe import ProfileRecipe

# Of masks of few pixels a single one that rounds the other way is a large share; nothing is decided by them here.
_TOLERANCE = 0.05
_CLIPS, _FRAMES = 3, 3


def write_pair(origin: Origin, frame_hw: tuple[int, int], place: Path, recipe: ProfileRecipe) -> Bundle:
    """Export a pair and make the graphs of the precision asked, calibrated on generated frames.

    Args:
        origin: the pair.
        frame_hw: height and width of its frames.
        place: the bundle's folder.
        recipe: precision, backend and settings.

    Raises:
        ConversionError, EngineError: torch or ONNX Runtime refuses the pair.
        LintError: the backend would.
    """
    bundle = export_origin(
        ExportRecipe(
            out=place,
            module=recipe.teacher,
            task=origin.task,
            frame_hw=frame_hw,
            decode_stride=recipe.decode_stride,
            tolerance=_TOLERANCE,
        ),
        origin,
    )
    if recipe.precision == "float32":
        return bundle
    with tempfile.TemporaryDirectory(prefix="edge-sdk-profile-") as folder:
        calibration = Path(folder) / "set.npz"
        calibrate(CalibrateRecipe(bundle=place, draw=_scene(recipe), out=calibration, threads=recipe.threads))
        typed = BuildRecipe(
            bundle=place,
            calibration=calibration,
            backends=(recipe.backend,),
            precisions=(recipe.precision,),
            int8=recipe.int8,
            tensorrt=recipe.tensorrt,
        )
        return build(typed, graphs_only=True).bundle


def _scene(recipe: ProfileRecipe) -> DrawSettings:
    """Generated frames; of a tiny bundle they are resized to its size."""
    height, width = recipe.frame_hw
    source = f"synthetic:shapes?height={height}&width={width}&frames=40&seed=1"
    return DrawSettings(sources=(source,), clips=_CLIPS, frames=_FRAMES)
