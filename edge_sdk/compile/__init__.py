"""From trained weights to step graphs in a bundle, in the precision that a device wants. Workstation only.

Importing this package loads nothing heavy: each name below is fetched when it is first used, so that recording a
calibration set loads no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sdk.compile.calibrate import CalibrateRecipe, calibrate
    from edge_sdk.compile.calibration_set import CalibrationSet
    from edge_sdk.compile.export import export
    from edge_sdk.compile.recipes import ExportRecipe

__all__ = ["CalibrateRecipe", "CalibrationSet", "ExportRecipe", "calibrate", "export"]

_HOME = {
    "CalibrateRecipe": "edge_sdk.compile.calibrate",
    "CalibrationSet": "edge_sdk.compile.calibration_set",
    "ExportRecipe": "edge_sdk.compile.recipes",
    "calibrate": "edge_sdk.compile.calibrate",
    "export": "edge_sdk.compile.export",
}


class _Package(ModuleType):
    """A stage's function has the name of its module; importing the module must not put it in the function's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edge_sdk.compile' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


sys.modules[__name__].__class__ = _Package
