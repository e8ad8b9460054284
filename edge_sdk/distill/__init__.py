"""Training networks on frames or clips and distilling students from them. Workstation only: needs torch."""

from edge_sdk.distill.clips.distil import distill_clips
from edge_sdk.distill.clips.recipes import ClipDistillRecipe, ClipTrainRecipe
from edge_sdk.distill.clips.train import ClipReport, train_clips
from edge_sdk.distill.delta_recipe import DistillRecipe
from edge_sdk.distill.distil import DistillReport, distill
from edge_sdk.distill.recipes import TrainRecipe
from edge_sdk.distill.train import TrainReport, train_teacher

__all__ = [
    "ClipDistillRecipe",
    "ClipReport",
    "ClipTrainRecipe",
    "DistillRecipe",
    "DistillReport",
    "TrainRecipe",
    "TrainReport",
    "distill",
    "distill_clips",
    "train_clips",
    "train_teacher",
]
