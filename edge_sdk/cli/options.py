"""Arguments and options that several verbs share, so that each is spelt and explained once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Device(str, Enum):
    """Where a network is trained."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file with every setting of this stage.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder written by 'edge-sdk export'.")]
SOURCES = (
    "Video file, folder of frames, camera:0, v4l2:///dev/video0, csi://0, rtsp://HOST/PATH, joined:A,B, or "
    "synthetic:SCENE?height=..&width=..&frames=.."
)
Source = Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCES)]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", help="YAML file with every setting; options replace its values.")
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine", help="float32, or engines of the bundle such as onnxruntime-int8; else the chosen ones."
    ),
]
Teacher = Annotated[
    Path | None,
    typer.Option("--teacher", help="Per-frame bundle of the teacher; else the bundle's keyframe step."),
]
Rival = Annotated[
    Path | None, typer.Option("--rival", help="Bundle of a smaller per-frame network to compare with.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder for the results, instead of the recipe's.")
]
DeviceOption = Annotated[
    Device | None,
    typer.Option("--device", help="Where to compute, instead of the recipe's.", show_default=False),
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Continue from the last checkpoint, or start over.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of the engine.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Stop after this many frames.")]
Serve = Annotated[
    str | None,
    typer.Option(
        "--serve",
        metavar="[HOST:]PORT",
        help="Show the run as a live page; on this machine alone unless HOST is given (0.0.0.0 for every network).",
    ),
]
ServeToken = Annotated[
    str | None,
    typer.Option(
        "--serve-token",
        help="What viewers must show, instead of a random one; better in the environment: EDGE_SDK_SERVE_TOKEN.",
    ),
]
TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust",
        help="Public key, *.pub: accept only bundles that it signed. May be repeated.",
        show_default=False,
    ),
]
