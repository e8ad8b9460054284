"""Does a keyframe/delta pair beat a smaller network on every frame at the same mean latency? Accuracy over time."""

from __future__ import annotations

from edge_sdk.evaluate.front.document import Front, FrontRow
from edge_sdk.evaluate.front.pipeline import measure_front
from edge_sdk.evaluate.front.recipe import FrontRecipe
from edge_sdk.evaluate.front.recovered import Point, Recovered, recovered

__all__ = ["Front", "FrontRecipe", "FrontRow", "Point", "Recovered", "measure_front", "recovered"]
