"""edge_sdk: distil a cheap student of a per-frame teacher and run the two in turn on an edge device.

Importing this package loads nothing heavy: each name below is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle
    from edge_sdk.errors import EdgeSdkError
    from edge_sdk.runtime.background import BackgroundKeyframes
    from edge_sdk.runtime.drift import DriftSchedule
    from edge_sdk.runtime.recipe import RunRecipe
    from edge_sdk.runtime.result import Result, StepKind
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.runtime.schedule import (
        AlwaysSchedule,
        ChangeSchedule,
        EverySchedule,
        ExternalSchedule,
        SampleSchedule,
    )
    from edge_sdk.runtime.several import MultiRunner
    from edge_sdk.video import open_sink, open_source
    from edge_sdk.video.frame import Frame

__version__ = "0.1.0"

__all__ = [
    "AlwaysSchedule",
    "BackgroundKeyframes",
    "Bundle",
    "ChangeSchedule",
    "DriftSchedule",
    "EdgeRunner",
    "EdgeSdkError",
    "EverySchedule",
    "ExternalSchedule",
    "Frame",
    "MultiRunner",
    "Result",
    "RunRecipe",
    "SampleSchedule",
    "StepKind",
    "__version__",
    "open_sink",
    "open_source",
]

_HOME = {
    "AlwaysSchedule": "edge_sdk.runtime.schedule",
    "BackgroundKeyframes": "edge_sdk.runtime.background",
    "Bundle": "edge_sdk.bundle",
    "ChangeSchedule": "edge_sdk.runtime.schedule",
    "DriftSchedule": "edge_sdk.runtime.drift",
    "EdgeRunner": "edge_sdk.runtime.runner",
    "EdgeSdkError": "edge_sdk.errors",
    "EverySchedule": "edge_sdk.runtime.schedule",
    "ExternalSchedule": "edge_sdk.runtime.schedule",
    "Frame": "edge_sdk.video.frame",
    "MultiRunner": "edge_sdk.runtime.several",
    "Result": "edge_sdk.runtime.result",
    "RunRecipe": "edge_sdk.runtime.recipe",
    "SampleSchedule": "edge_sdk.runtime.schedule",
    "StepKind": "edge_sdk.runtime.result",
    "open_sink": "edge_sdk.video",
    "open_source": "edge_sdk.video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edge_sdk' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
