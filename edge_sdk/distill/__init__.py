"""Training per-frame networks and distilling students from them. Workstation only: needs torch."""

from edge_sdk.distill.distil import DistillReport, distill
from edge_sdk.distill.recipes import DistillRecipe, TrainRecipe
from edge_sdk.distill.train import TrainReport, train_teacher

__all__ = ["DistillRecipe", "DistillReport", "TrainRecipe", "TrainReport", "distill", "train_teacher"]
