"""``edge-sdk demo``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Part(str, Enum):
    """What the demo shows."""

    all = "all"
    masks = "masks"
    clips = "clips"


def demo(
    part: Annotated[
        Part, typer.Argument(help="masks: a delta student; clips: a student that sees few frames; or all.")
    ] = Part.masks,
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo makes.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of video, training and noise.")] = 0,
) -> None:
    """Train, distil, export, run and evaluate on synthetic video: the whole way in a few minutes."""
    from edge_sdk.cli.output import show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.stage import need

    need(
        "demo",
        "torch",
        "lightning_fabric",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "cv2",
        "jinja2",
        "matplotlib",
    )
    from edge_sdk.demo import run_demo
    from edge_sdk.demo_clips import run_clip_demo

    shown = []
    with RichProgress() as progress:
        if part is not Part.clips:
            shown += run_demo(out, progress, seed=seed).renderables()
        if part is not Part.masks:
            shown += run_clip_demo(out / "clips", progress, seed=seed).renderables()
    show(*shown)
