"""Measure a pair against what a user would do without it: accuracy over labels and time, and milliseconds."""

from __future__ import annotations

from edge_sdk.evaluate.evaluation import Evaluation, Row
from edge_sdk.evaluate.pipeline import evaluate
from edge_sdk.evaluate.recipe import EvaluateRecipe

__all__ = ["EvaluateRecipe", "Evaluation", "Row", "evaluate"]
