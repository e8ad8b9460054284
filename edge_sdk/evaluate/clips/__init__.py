"""Measure clip classifiers over labelled clips: how often they are right, how soon, and what a clip costs."""

from __future__ import annotations

from edge_sdk.evaluate.clips.evaluation import ClipEvaluation, ClipRow
from edge_sdk.evaluate.clips.pipeline import evaluate_clips
from edge_sdk.evaluate.clips.recipe import ClipEvaluateRecipe

__all__ = ["ClipEvaluateRecipe", "ClipEvaluation", "ClipRow", "evaluate_clips"]
