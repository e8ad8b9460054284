"""Export a bundle of ONNX step graphs: python engines/export.py RECIPE; the same as edge-sdk export RECIPE.

In a program: edge_sdk.compile.export(load_recipe(path, ExportRecipe)).
"""

from __future__ import annotations

from edge_sdk.cli.export import export
from edge_sdk.cli.report import run_verb

if __name__ == "__main__":
    run_verb(export)
