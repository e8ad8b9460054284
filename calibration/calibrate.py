"""Record a calibration set: python calibration/calibrate.py RECIPE; the same as edge-sdk calibrate RECIPE.

In a program: edge_sdk.compile.calibrate(load_recipe(path, CalibrateRecipe)).
"""

from __future__ import annotations

from edge_sdk.cli.calibrate import calibrate
from edge_sdk.cli.report import run_verb

if __name__ == "__main__":
    run_verb(calibrate)
