"""From trained weights to step graphs in a bundle. Workstation only: needs torch and onnx."""

from edge_sdk.compile.export import export
from edge_sdk.compile.recipes import ExportRecipe

__all__ = ["ExportRecipe", "export"]
