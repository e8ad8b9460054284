"""``edge-sdk train`` with ``kind: clips``: a clip network from labels, such as a teacher or an undistilled rival."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from edge_sdk.distill.clips.checkpoints import (
    check_clip_network,
    fill_clip_network,
    make_clip_network,
    save_clip_model,
)
from edge_sdk.distill.clips.data import read_clips
from edge_sdk.distill.clips.network import ClipNetwork
from edge_sdk.distill.clips.objective import Clips, ClipSampler, LabelObjective, clip_figures
from edge_sdk.distill.clips.recipes import ClipData, ClipModel, ClipTrainRecipe
from edge_sdk.distill.loop import FREE, fit, is_writer
from edge_sdk.progress import Progress
from edge_sdk.revision import commit_of_sources
from edge_sdk.tasks.base import TaskSpec


@dataclass(frozen=True)
class ClipReport:
    """What a training of clip networks left.

    Attributes:
        checkpoint: path of the network.
        figures: its last ones; of a student, ``teacher_...`` are its teacher's and ``distilled_...`` its own before it
            was fine-tuned.
        teacher: path of the teacher that was trained along, where one was.
    """

    checkpoint: str
    figures: dict[str, float]
    teacher: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def read_data(data: ClipData, task: TaskSpec, progress: Progress | None = None) -> tuple[Clips, Clips | None]:
    """The clips to train on, and those to validate on where there are any."""
    held_out = read_clips(data.validation, data, task, progress=progress) if data.validation else None
    return read_clips(data.train, data, task, progress=progress), held_out


def begin(model: ClipModel, task: TaskSpec) -> ClipNetwork:
    """A network to train: with fresh weights, or with those of its checkpoint."""
    network = make_clip_network(model.module)
    if model.module.checkpoint is not None:
        fill_clip_network(network, model.module.checkpoint, task)
    return network


def train_clips(
    recipe: ClipTrainRecipe, *, progress: Progress | None = None, resume: bool = True
) -> ClipReport:
    """Train a clip network on labels and write ``model.pt``.

    Raises:
        RecipeError: the data or the factory cannot be used.
        ShapeError: the network does not take the clips, or answers something else than their classes.
        CheckpointError: a checkpoint does not fit, or ``last.pt`` belongs to other settings.
    """
    task, model, commit = recipe.task, recipe.model, commit_of_sources()
    clips, held_out = read_data(recipe.data, task, progress)
    torch.manual_seed(recipe.loop.seed)
    network = begin(model, task)
    check_clip_network(network, model, clips, len(task.classes))
    figures = fit(
        LabelObjective(network, model.preprocess, task.multi_label, "model"),
        ClipSampler(clips, recipe.data, recipe.loop.batch, {"model": model}),
        loop=recipe.loop, optimiser=recipe.optimiser, out=recipe.out, stage="train", progress=progress, resume=resume,
        identity=recipe.model_dump(mode="json", exclude=FREE),
        validate=(lambda: clip_figures(network, held_out, task, model, batch=recipe.loop.batch)) if held_out else None,
    )  # fmt: skip
    path = recipe.out / "model.pt"
    if is_writer():
        meta = {"recipe": recipe.model_dump(mode="json"), "figures": figures, "commit": commit}
        save_clip_model(path, network, model, task, clips, meta)
    return ClipReport(str(path), figures)
