"""Build a bundle's engines for this machine: python engines/build.py RECIPE; the same as edge-sdk build RECIPE.

In a program: edge_sdk.build.pipeline.build(load_recipe(path, BuildRecipe)).
"""

from __future__ import annotations

from edge_sdk.cli.build import build
from edge_sdk.cli.report import run_verb

if __name__ == "__main__":
    run_verb(build)
