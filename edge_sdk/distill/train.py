"""``edge-sdk train``: a per-frame network from labels, from a teacher's output, or from both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.channels_last import channels_last
from edge_sdk.distill.frames import FrameSet, FrameToInput, View
from edge_sdk.distill.loop import FREE, Batch, Objective, fit, is_writer
from edge_sdk.distill.losses import SegmentationLoss
from edge_sdk.distill.modules import (
    fill_module,
    keep_norm,
    load_module,
    make_module,
    read_weights,
    reason_of,
    save_checkpoint,
)
from edge_sdk.distill.recipes import Norm, TrainRecipe
from edge_sdk.distill.widths import fit_width
from edge_sdk.errors import RecipeError, ShapeError
from edge_sdk.progress import Progress
from edge_sdk.revision import commit_of_sources
from edge_sdk.tasks import Segmentation, task_from_spec
from edge_sdk.tasks.base import TaskSpec


@dataclass(frozen=True)
class TrainReport:
    """What a training left: the checkpoint's path and its last figures."""

    checkpoint: str
    figures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


class _FrameObjective(Objective):
    """Loss of a per-frame network."""

    def __init__(
        self, network: nn.Module, to_input: FrameToInput, loss: SegmentationLoss, teacher: nn.Module | None,
        norm: Norm = "learn",
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.to_input, self.loss, self._norm = network, to_input, loss, norm
        # In a list, so that the frozen teacher is neither trained, saved nor put into training mode.
        self._teacher = [teacher.requires_grad_(False)] if teacher is not None else []

    def train(self, mode: bool = True) -> _FrameObjective:
        """Training mode, of batch norm where its statistics are learned."""
        super().train(mode)
        if self._norm == "keep":
            keep_norm(self.network)
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.to_input(batch["frame"]).contiguous(memory_format=torch.channels_last)
        teacher_logits = None
        if self._teacher:
            with torch.no_grad():
                teacher_logits = self._teacher[0].to(x.device)(x)
        return self.loss(self.network(x), batch["mask"].long(), teacher_logits), {}


def frame_miou(network: nn.Module, to_input: FrameToInput, frames: FrameSet, task: TaskSpec) -> float:
    """mIoU of a per-frame network over labelled frames, each at its full size."""
    score = task_from_spec(task).score()
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.no_grad():
        for image, mask in zip(frames.images, frames.masks, strict=True):
            if mask is not None:
                logits = network(to_input(torch.from_numpy(image)[None].to(device)))
                score.update(Segmentation(mask_of(logits, mask.shape)), Segmentation(mask))
    network.train(was_training)
    return score.compute()[score.primary]


def mask_of(logits: Tensor, size_hw: tuple[int, ...]) -> np.ndarray:
    """Class mask (H, W) uint8 of logits (1, C, h, w), up-sampled bilinearly."""
    full = F.interpolate(logits.float(), size=size_hw, mode="bilinear", align_corners=False)
    return full[0].argmax(0).to(torch.uint8).cpu().numpy()


def check_logits(network: nn.Module, size_hw: tuple[int, int], classes: int, name: str) -> None:
    """Run a module once and refuse what is not class logits (1, classes, h, w).

    Raises:
        ShapeError: naming what came out.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            out: Any = network(torch.zeros(1, 3, *size_hw))
    except Exception as error:  # it is the user's code
        raise ShapeError(
            f"{name}: refuses an input of (1, 3, {size_hw[0]}, {size_hw[1]}): {reason_of(error)}.",
            hint="Give it a size that it takes: preprocess.size_hw, or augment.crop_hw in training.",
        ) from error
    network.train(was_training)
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[1] != classes:
        raise ShapeError(
            f"{name}: expected class logits (1, {classes}, h, w) for an input of (1, 3, {size_hw[0]}, {size_hw[1]}), "
            f"got {shape}.",
            hint="Match the factory's class count to task.classes, or wrap the module to return its logits alone.",
        )


@dataclass(frozen=True)
class _Frames:
    """What batches are drawn from.

    Attributes:
        frames: with labels, where the recipe asks for them.
        unlabelled: every frame of the further sources, as its source, of its own size, and its number there.
        recipe: how they are seen, and how often a frame is one of the further ones.
    """

    frames: FrameSet
    unlabelled: tuple[tuple[FrameSet, int], ...]
    recipe: TrainRecipe

    @classmethod
    def read(cls, recipe: TrainRecipe) -> _Frames:
        """All sources.

        Raises:
            RecipeError: data cannot be used, or sizes differ where nothing is cropped.
        """
        frames = FrameSet.read(recipe.data, labelled=recipe.loss.source != "teacher", task=recipe.task)
        further = tuple(FrameSet.read((uri,)) for uri in recipe.unlabelled)
        if recipe.augment.crop_hw is None:
            for uri, found in zip(recipe.unlabelled, further, strict=True):
                if found.size_hw != frames.size_hw:
                    raise RecipeError(
                        "'unlabelled': expected frames of {} x {} as in 'data', got {} x {} in {}.".format(
                            *frames.size_hw, *found.size_hw, uri
                        ),
                        hint="Set augment.crop_hw: crops are of one size.",
                    )
        return cls(frames, tuple((found, at) for found in further for at in range(len(found))), recipe)

    def __call__(self, rng: np.random.Generator) -> Batch:
        """A batch of augmented frames and masks; where a frame has no mask, all of it is ignored."""
        recipe, images, masks = self.recipe, [], []
        ignored = recipe.task.ignore_label
        for index in rng.integers(0, len(self.frames), recipe.loop.batch):
            frames, at, mask = self.frames, int(index), self.frames.masks[index]
            if self.unlabelled and rng.random() < recipe.unlabelled_share:
                frames, at = self.unlabelled[rng.integers(0, len(self.unlabelled))]
                mask = None
            view = View(rng, recipe.augment, frames.size_hw)
            images.append(torch.from_numpy(view.image(frames.images[at])))
            known = mask if mask is not None else np.full(frames.size_hw, ignored, np.uint8)
            masks.append(torch.from_numpy(view.mask(known, ignored)))
        return {"frame": torch.stack(images), "mask": torch.stack(masks)}


def train_teacher(
    recipe: TrainRecipe, *, progress: Progress | None = None, resume: bool = True
) -> TrainReport:
    """Train a per-frame network and write ``model.pt``.

    Raises:
        RecipeError: the data or the factory cannot be used.
        ShapeError: the network's output is not class logits.
    """
    task, commit = recipe.task, commit_of_sources()
    drawn = _Frames.read(recipe)
    frames = drawn.frames
    held_out = FrameSet.read(recipe.validation, labelled=True, task=task) if recipe.validation else None
    torch.manual_seed(recipe.loop.seed)
    network = make_module(recipe.module)
    if recipe.module.checkpoint is not None:
        fill_module(network, read_weights(recipe.module.checkpoint), recipe.module.checkpoint)
    if recipe.start is not None:
        fit_width(network, read_weights(recipe.start), recipe.start)
    crop_hw = recipe.preprocess.size_hw or recipe.augment.crop_hw or frames.size_hw
    check_logits(network, crop_hw, len(task.classes), recipe.module.factory)
    teacher = None
    if recipe.teacher is not None:
        teacher = load_module(recipe.teacher)
        check_logits(teacher, crop_hw, len(task.classes), recipe.teacher.factory)
    network = channels_last(network)
    to_input = FrameToInput(recipe.preprocess)
    loss = SegmentationLoss(recipe.loss, task.ignore_label, frames.class_share(len(task.classes)))
    objective = _FrameObjective(network, to_input, loss, teacher, recipe.norm)

    figures = fit(
        objective, drawn, loop=recipe.loop, optimiser=recipe.optimiser, out=recipe.out,
        # Checkpoints from before there were kinds go on too.
        identity=recipe.model_dump(mode="json", exclude={**FREE, "kind": True}),
        stage="train", progress=progress, resume=resume,
        validate=(lambda: {"miou": frame_miou(network, to_input, held_out, task)}) if held_out else None,
    )  # fmt: skip
    path = recipe.out / "model.pt"
    meta = {
        "kind": "per_frame",
        "recipe": recipe.model_dump(mode="json"),
        "figures": figures,
        "commit": commit,
    }
    if is_writer():
        weights = {k: v.contiguous() for k, v in network.state_dict().items()}
        save_checkpoint(path, {"state_dict": weights, "meta": meta})
    return TrainReport(str(path), figures)
