"""Latency tests on the device: numbers that hold, the conditions they hold under, and budgets that fail a build.

Importing this package loads nothing heavy: each name below is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sdk.bench.budget import Budget, Relative, check, times, within
    from edge_sdk.bench.document import BenchDocument
    from edge_sdk.bench.pipeline import bench
    from edge_sdk.bench.recipe import BenchRecipe

__all__ = ["BenchDocument", "BenchRecipe", "Budget", "Relative", "bench", "check", "times", "within"]

_HOME = {
    "BenchDocument": "edge_sdk.bench.document",
    "BenchRecipe": "edge_sdk.bench.recipe",
    "Budget": "edge_sdk.bench.budget",
    "Relative": "edge_sdk.bench.budget",
    "bench": "edge_sdk.bench.pipeline",
    "check": "edge_sdk.bench.budget",
    "times": "edge_sdk.bench.budget",
    "within": "edge_sdk.bench.budget",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edge_sdk.bench' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
