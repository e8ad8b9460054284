"""``edge-sdk distill`` with kind ``skip``: a gated network, and the training of gates that learn."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_sdk.distill.frames import FrameSet, FrameToInput
from edge_sdk.distill.loop import FREE, Batch, Objective, fit, is_writer
from edge_sdk.distill.losses import SegmentationLoss
from edge_sdk.distill.modules import (
    fill_module,
    load_module,
    make_module,
    read_checkpoint,
    save_checkpoint,
)
from edge_sdk.distill.recipes import LoopSettings, Optimiser
from edge_sdk.distill.skip.data import ClipSampler
from edge_sdk.distill.skip.gates import GumbelGate
from edge_sdk.distill.skip.macs import SkipLayer
from edge_sdk.distill.skip.measure import stream_figures
from edge_sdk.distill.skip.net import SkipConversion, SkipPair, to_skip
from edge_sdk.distill.skip.recipes import SkipLoss, SkipRecipe
from edge_sdk.distill.train import check_logits
from edge_sdk.errors import CheckpointError
from edge_sdk.files import require_writable
from edge_sdk.progress import Progress
from edge_sdk.revision import commit_of_sources
from edge_sdk.settings import parse_settings


@dataclass(frozen=True)
class SkipReport:
    """What a conversion or training left: the checkpoint's path, its last figures and what became of each layer."""

    checkpoint: str
    figures: dict[str, float]
    layers: tuple[SkipLayer, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


class SkipObjective(Objective):
    """Task loss of every frame after the keyframe, plus the share of the work that was done.

    Frames follow one another as in use: each reads the state that the one before it left, and gradients pass through.
    """

    def __init__(
        self, conversion: SkipConversion, to_input: FrameToInput, loss: SkipLoss, task_loss: SegmentationLoss,
        *, teacher_lr: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.work = conversion.net, conversion.work
        self.to_input, self.settings, self.task_loss = to_input, loss, task_loss
        self.teacher_lr = teacher_lr
        self._gates = {id(parameter) for parameter in self.net.gate_parameters()}
        for parameter in self.net.parameters():
            parameter.requires_grad_(id(parameter) in self._gates or teacher_lr > 0)

    def groups(self, optimiser: Optimiser) -> list[dict[str, Any]]:
        """Gates at the full rate, the network at its share of it."""
        groups = [{"params": self.net.gate_parameters(), "lr": optimiser.lr}]
        if self.teacher_lr > 0:
            own = [p for p in self.net.parameters() if id(p) not in self._gates]
            groups.append({"params": own, "lr": optimiser.lr * self.teacher_lr})
        return groups

    def train(self, mode: bool = True) -> SkipObjective:
        """Training mode for gates alone: dropout and norms stay as deployed."""
        super().train(mode)
        for module in self.net.modules():
            module.training = mode and isinstance(module, GumbelGate)
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts, of ``frames`` (N, T, H, W, 3) uint8 and ``mask`` (N, H, W) of each last one."""
        frames = batch["frames"]
        count = frames.shape[1]
        with torch.set_grad_enabled(self.teacher_lr > 0):
            _, state = self.net.keyframe(self.to_input(frames[:, 0]))
        tasks, shares = [], []
        for index in range(1, count):
            x = self.to_input(frames[:, index])
            taught = None
            if self.settings.task.source != "labels":
                with torch.no_grad():
                    taught = self.net.teacher(x)
            logits, changes, opened = self.net.measured(x, state)
            state = {**state, **changes}
            labels = batch["mask"].long() if index == count - 1 else None
            tasks.append(self.task_loss(logits, labels, taught))
            shares.append(self.work.open_share(opened).mean())
        task, share = torch.stack(tasks).mean(), torch.stack(shares).mean()
        total = task + self.settings.cost * share
        return total, {"task": task.detach(), "open": share.detach()}


def train_skip(recipe: SkipRecipe, *, progress: Progress | None = None, resume: bool = True) -> SkipReport:
    """Convert the teacher, train its gates where they learn, and write ``student.pt``.

    Raises:
        RecipeError: data, factory or checkpoint cannot be used.
        ConversionError: nothing in the teacher can get a gate.
    """
    task, commit = recipe.task, commit_of_sources()
    require_writable(recipe.out)
    held_out = FrameSet.read(recipe.validation, labelled=True, task=task) if recipe.validation else None
    to_input = FrameToInput(recipe.preprocess)
    sampler = _sampler(recipe)
    example_hw = recipe.preprocess.size_hw or recipe.augment.crop_hw or _frame_hw(sampler, held_out)
    teacher = load_module(recipe.teacher)
    check_logits(teacher, example_hw, len(task.classes), recipe.teacher.factory)
    torch.manual_seed(recipe.loop.seed if recipe.loop is not None else 0)
    conversion = to_skip(teacher, torch.zeros(1, 3, *example_hw), recipe.skip)

    def validate() -> dict[str, float]:
        return _table(conversion, to_input, recipe, held_out) if held_out is not None else {}

    if sampler is None or recipe.loop is None:
        figures = validate()
    else:
        figures = _trained(conversion, to_input, recipe, recipe.loop, sampler, validate, progress, resume)
    path = recipe.out / "student.pt"
    meta = {
        "kind": "skip", "recipe": recipe.model_dump(mode="json"), "figures": figures,
        "commit": commit, "example_hw": list(example_hw),
    }  # fmt: skip
    if is_writer():
        weights = {name: value.contiguous() for name, value in conversion.net.network.state_dict().items()}
        save_checkpoint(path, {"state_dict": weights, "meta": meta})
    return SkipReport(str(path), figures, conversion.work.layers)


def _sampler(recipe: SkipRecipe) -> ClipSampler | None:
    if recipe.data is None or recipe.loop is None:
        return None
    labelled = recipe.loss.task.source == "labels"
    return ClipSampler(recipe.data, recipe.augment, recipe.task, recipe.loop.batch, labelled=labelled)


def _frame_hw(sampler: ClipSampler | None, held_out: FrameSet | None) -> tuple[int, int]:
    """Size to watch the teacher at: that of the frames where there are any."""
    known = sampler.frames if sampler is not None else held_out
    # Work is counted again for the size at hand wherever it is shown; here any size that networks take will do.
    return known.size_hw if known is not None else (256, 256)


def _trained(
    conversion: SkipConversion, to_input: FrameToInput, recipe: SkipRecipe, loop: LoopSettings,
    sampler: ClipSampler, validate: Any, progress: Progress | None, resume: bool,
) -> dict[str, float]:  # fmt: skip
    share = sampler.frames.class_share(len(recipe.task.classes))
    task_loss = SegmentationLoss(recipe.loss.task, recipe.task.ignore_label, share)
    objective = SkipObjective(conversion, to_input, recipe.loss, task_loss, teacher_lr=recipe.teacher_lr)
    return fit(
        objective, sampler, loop=loop, optimiser=recipe.optimiser, out=recipe.out, stage="distill",
        identity=recipe.model_dump(mode="json", exclude=FREE),
        validate=validate if recipe.validation else None, progress=progress, resume=resume,
    )  # fmt: skip


def _table(
    conversion: SkipConversion, to_input: FrameToInput, recipe: SkipRecipe, held_out: FrameSet
) -> dict[str, float]:
    """mIoU by keyframe interval, 1 being the teacher, and the open share between keyframes."""
    figures: dict[str, float] = {}
    for interval in (1, *recipe.intervals):
        found = stream_figures(conversion.net, conversion.work, to_input, held_out, recipe.task, interval)
        figures[f"miou_k{interval}"] = found["miou"]
        if interval > 1:
            figures[f"open_k{interval}"] = found["open"]
    return figures


def load_skip(path: str | Path) -> tuple[SkipPair, SkipRecipe, dict[str, Any]]:
    """The gated network in a ``student.pt`` of kind ``skip``, its recipe, and the checkpoint's meta data.

    Raises:
        CheckpointError: the file is none.
    """
    content = read_checkpoint(path)
    meta = content.get("meta")
    if not isinstance(meta, dict) or meta.get("kind") != "skip":
        raise CheckpointError(
            f"checkpoint {path}: expected a gated network written by edge-sdk distill, found none.",
            hint="Give the student.pt of a distillation of kind skip.",
        )
    recipe = parse_settings(meta["recipe"], SkipRecipe, f"recipe in {path}")
    teacher = make_module(recipe.teacher)
    net = to_skip(teacher, torch.zeros(1, 3, *meta["example_hw"]), recipe.skip).net
    fill_module(net.network, content["state_dict"], path)
    return net.eval(), recipe, meta
