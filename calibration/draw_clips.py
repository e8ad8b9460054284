"""Draw calibration clips from your own videos: python calibration/draw_clips.py RECIPE.

Needs the device's packages only (numpy, OpenCV). In a program: edge_sdk.video.clips.draw_clips.
"""

from __future__ import annotations

from edge_sdk.cli.options import JsonFlag, OutFolder, Recipe
from edge_sdk.cli.report import run_verb


def draw_clips(recipe: Recipe, out: OutFolder = None, as_json: JsonFlag = False) -> None:
    """Draw short runs of consecutive frames from recorded videos into a folder of PNGs."""
    from edge_sdk.cli.output import emit_json, figures_table, show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.settings import load_recipe
    from edge_sdk.video import clips as stage

    settings = load_recipe(recipe, stage.CalibrationClipsRecipe, out=None if out is None else str(out))
    with RichProgress() as progress:
        drawn = stage.draw_clips(settings, progress=progress)
    if as_json:
        emit_json(drawn)
        return
    height, width = drawn.size_hw
    figures = {
        "clips": len(drawn.clips),
        "frames a clip": settings.frames,
        "frames": f"{drawn.frame_count}, each {height} x {width}",
        "sources": len(settings.sources),
    }
    show(figures_table("Drawn", figures), f"sha256: {drawn.sha256}\ncalibration clips: {settings.out}")


if __name__ == "__main__":
    run_verb(draw_clips)
