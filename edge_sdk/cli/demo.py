"""``edge-sdk demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
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

    with RichProgress() as progress:
        result = run_demo(out, progress, seed=seed)
    show(*result.renderables())
