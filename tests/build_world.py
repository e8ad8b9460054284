"""What the tests of builds share: recipes, bundles before and after a build, and what of it was reused."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from edge_sdk.build.pipeline import BuildReport, build
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.settings import parse_settings
from tests import quantised_pairs as pairs

SETS = ("onnxruntime-float32", "onnxruntime-int8")
INT8 = "onnxruntime-int8"


def recipe(folder: Path, **changes: Any) -> BuildRecipe:
    data = {
        "bundle": folder / "bundle", "calibration": folder / "set.npz", "backends": ["onnxruntime"],
        "precisions": ["float32", "int8"], **changes,
    }  # fmt: skip
    return parse_settings(
        {key: value for key, value in data.items() if value is not None}, BuildRecipe, "test"
    )


def accuracy(**changes: Any) -> dict[str, Any]:
    return {"source": pairs.unlabelled(), "interval": pairs.INTERVAL, "limit": 8, "repeats": 2, **changes}


def unbuilt_copy(folder: Path) -> Path:
    """A bundle and its calibration set in ``folder``."""
    shutil.copytree(pairs.origin("recurrent"), folder)
    return folder


def built_copy(folder: Path) -> Path:
    """The same after a build."""
    shutil.copytree(Path(_built().name) / "place", folder)
    return folder


@cache
def _built() -> tempfile.TemporaryDirectory[str]:
    """A build, made once; for copying."""
    root = tempfile.TemporaryDirectory(prefix="edge-sdk-built-")
    build(recipe(unbuilt_copy(Path(root.name) / "place")))
    return root


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file, with the time of its last change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def reused(report: BuildReport) -> dict[tuple[str, str], bool]:
    return {(engine.name, engine.identity.step): engine.reused for engine in report.engines}


def everything(value: bool) -> dict[tuple[str, str], bool]:
    return {(name, step): value for name in SETS for step in ("keyframe", "delta")}
