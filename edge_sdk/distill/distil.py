"""``edge-sdk distill``: train the students of a delta network on pairs of frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.distill.candidates import Gate
from edge_sdk.distill.convert import Conversion, LayerReport, to_delta
from edge_sdk.distill.delta import DeltaConv2d, DeltaNet
from edge_sdk.distill.frames import FrameSet, FrameToInput
from edge_sdk.distill.loop import FREE, Batch, Objective, fit, is_writer
from edge_sdk.distill.losses import SegmentationLoss
from edge_sdk.distill.modules import (
    fill_module,
    load_module,
    make_module,
    read_checkpoint,
    read_weights,
    save_checkpoint,
)
from edge_sdk.distill.pairs import PairSampler
from edge_sdk.distill.quantization import SimulatedInt8
from edge_sdk.distill.recipes import DeltaLoss, DistillRecipe, Optimiser
from edge_sdk.distill.steps import State, StepPair
from edge_sdk.distill.tape import Pass
from edge_sdk.distill.train import check_logits, mask_of
from edge_sdk.errors import CheckpointError
from edge_sdk.progress import Progress
from edge_sdk.revision import commit_of_sources
from edge_sdk.settings import parse_settings
from edge_sdk.tasks import Segmentation, task_from_spec
from edge_sdk.tasks.base import TaskSpec


@dataclass(frozen=True)
class DistillReport:
    """What a distillation left: the student's path, its last figures and what became of each layer."""

    checkpoint: str
    figures: dict[str, float]
    layers: tuple[LayerReport, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


class PairObjective(Objective):
    """Task, feature and cost loss of one batch of pairs (arXiv 2203.09594, section 3).

    Three passes: the teacher on the earlier frame (writing the state), the teacher on the later frame (each layer's
    true change, and its output), the student on the later frame; with ``quantization`` under its rounding.
    """

    scale: Tensor
    seen: Tensor

    def __init__(
        self, net: DeltaNet, to_input: FrameToInput, loss: DeltaLoss, task_loss: SegmentationLoss,
        layers: tuple[LayerReport, ...], *, feature_steps: int, teacher_lr: float,
        quantization: SimulatedInt8 | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.quantization = quantization
        self.net, self.to_input, self.settings, self.task_loss = net, to_input, loss, task_loss
        self.feature_steps, self.teacher_lr = feature_steps, teacher_lr
        share = {row.name: float(row.macs) if loss.cost_by == "macs" else 1.0 for row in layers}
        gated = [layer for layer in net.layers if layer.g_gate is not None]
        total = sum(share[layer.label] for layer in gated)
        self.cost_share = {layer.label: share[layer.label] / total for layer in gated}
        self._trained = _ids(net.student_parameters())
        for parameter in net.parameters():
            parameter.requires_grad_(id(parameter) in self._trained or teacher_lr > 0)
        # Inverse feature loss of the first moving pairs, for all layers or for each; zero while it is not known.
        joins = net.joins
        self.register_buffer("scale", torch.zeros(joins if loss.feature_scale == "layer" else 1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def groups(self, optimiser: Optimiser) -> list[dict[str, Any]]:
        """Students and gates at the full rate, the teacher at its share of it; no weight decay on gates."""
        own = [p for p in self.net.parameters() if id(p) in self._trained]
        groups: list[dict[str, Any]] = [{"params": own, "lr": optimiser.lr}]
        if optimiser.weight_decay > 0:
            gates = [layer.g_gate.logit for layer in self.net.layers if layer.g_gate is not None]
            groups[0]["params"] = [p for p in own if id(p) not in _ids(gates)]
            groups.append({"params": gates, "lr": optimiser.lr, "weight_decay": 0.0})
        if self.teacher_lr > 0:
            teacher = [p for p in self.net.parameters() if id(p) not in self._trained]
            groups.append({"params": teacher, "lr": optimiser.lr * self.teacher_lr})
        return [group for group in groups if group["params"]]

    def train(self, mode: bool = True) -> PairObjective:
        """Training mode for gates alone: dropout and norms, the teacher's and their copies, stay as deployed."""
        super().train(mode)
        for module in self.net.modules():
            module.training = mode and isinstance(module, Gate | DeltaConv2d)
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts."""
        if self.quantization is None:
            return self._loss(batch)
        with self.quantization.training_step(int(self.seen)):
            return self._loss(batch)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        first, later = (
            self.to_input(batch[name]).contiguous(memory_format=torch.channels_last)
            for name in ("first", "frame")
        )
        state: State = {}
        with torch.set_grad_enabled(self.teacher_lr > 0):
            self.net.run(Pass.KEYFRAME, first, state, "published")
        with_features = int(self.seen) < self.feature_steps
        teacher_logits: Tensor | None = None
        true_change: State = {}
        if with_features or self.settings.task.source != "labels":
            with torch.no_grad():
                teacher_logits, true_change = self.net.run(Pass.REFERENCE, later, state, "published")
        logits, change = self.net.run(Pass.DELTA, later, state, "published")
        task = self.task_loss(logits, batch["mask"].long(), teacher_logits)
        feature = self._feature(change, true_change) if with_features else task.new_zeros(())
        cost = self._cost(task)
        self.seen += int(self.training)
        total = task + self.settings.feature * feature + self.settings.cost * cost
        return total, {"task": task.detach(), "feature": feature.detach(), "cost": cost.detach()}

    def _feature(self, change: State, true_change: State) -> Tensor:
        errors = torch.stack([(change[key] - true_change[key]).square().mean() for key in change])
        if self.settings.feature_scale == "none":
            return errors.mean()
        found, power = errors.detach(), torch.stack([true_change[key].square().mean() for key in change])
        if self.settings.feature_scale == "mean":
            found, power = found.mean()[None], power.mean()[None]
        # Nothing is learnt of the scale where nothing moved, or where the error is one of rounding.
        fresh = (self.scale == 0) & (found > 1e-6 * power)
        self.scale.copy_(torch.where(fresh, 1 / found.clamp(min=1e-30), self.scale))
        return (errors * self.scale).mean()

    def _cost(self, like: Tensor) -> Tensor:
        cost = like.new_zeros(())
        for layer in self.net.layers:
            if layer.g_gate is not None:
                cost = cost + torch.sigmoid(layer.g_gate.logit) * self.cost_share[layer.label]
        return cost


def _ids(parameters: Iterable[nn.Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def stream_miou(
    net: StepPair, to_input: FrameToInput, frames: FrameSet, task: TaskSpec, interval: int
) -> float:
    """mIoU of the pair over labelled clips with a keyframe every ``interval`` frames, each clip from a keyframe on."""
    score = task_from_spec(task).score()
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    with torch.no_grad():
        for start, stop in frames.clips:
            state: State = {}
            for index in range(start, stop):
                x = to_input(torch.from_numpy(frames.images[index])[None].to(device))
                if (index - start) % interval == 0:
                    logits, state = net.keyframe(x)
                else:
                    logits, _ = net.delta(x, state)
                mask = frames.masks[index]
                if mask is not None:
                    score.update(Segmentation(mask_of(logits, mask.shape)), Segmentation(mask))
    net.train(was_training)
    return score.compute()[score.primary]


def distill(recipe: DistillRecipe, *, progress: Progress | None = None, resume: bool = True) -> DistillReport:
    """Distil a delta student and write ``student.pt``.

    Raises:
        RecipeError: data, factory or checkpoint cannot be used.
        ConversionError: nothing in the teacher can be converted.
    """
    task, labelled = recipe.task, recipe.loss.task.source == "labels"
    commit = commit_of_sources()
    sampler = PairSampler(recipe.data, recipe.augment, task, recipe.loop.batch, labelled=labelled)
    held_out = FrameSet.read(recipe.validation, labelled=True, task=task) if recipe.validation else None
    to_input = FrameToInput(recipe.preprocess)
    crop_hw = recipe.preprocess.size_hw or recipe.augment.crop_hw or sampler.frames.size_hw
    teacher = load_module(recipe.teacher)
    check_logits(teacher, crop_hw, len(task.classes), recipe.teacher.factory)
    torch.manual_seed(recipe.loop.seed)
    example = torch.zeros(1, 3, *crop_hw)
    conversion = to_delta(teacher, example, recipe.delta)
    net = conversion.net
    if recipe.start is not None:
        fill_module(net.network, read_weights(recipe.start), recipe.start)
    # Convolutions train a fifth faster so on CPUs.
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    task_loss = SegmentationLoss(
        recipe.loss.task, task.ignore_label, sampler.frames.class_share(len(task.classes))
    )
    quantization = _simulated(net, recipe, example)
    objective = PairObjective(
        net, to_input, recipe.loss, task_loss, conversion.layers, teacher_lr=recipe.teacher_lr,
        feature_steps=round(recipe.loss.feature_until * recipe.loop.steps), quantization=quantization,
    )  # fmt: skip
    figures = fit(
        objective, sampler, loop=recipe.loop, optimiser=recipe.optimiser, out=recipe.out, stage="distill",
        # Checkpoints from before there were kinds go on too.
        identity=recipe.model_dump(mode="json", exclude={**FREE, "kind": True}),
        validate=(lambda: _table(objective, recipe, held_out)) if held_out else None, progress=progress,
        resume=resume,
    )  # fmt: skip
    if quantization is not None:
        quantization.remove()
    path = recipe.out / "student.pt"
    meta = {
        "kind": "delta", "recipe": recipe.model_dump(mode="json"), "figures": figures, "commit": commit,
        "example_hw": list(crop_hw),
    }  # fmt: skip
    if is_writer():
        weights = {name: value.contiguous() for name, value in net.network.state_dict().items()}
        save_checkpoint(path, {"state_dict": weights, "meta": meta})
    return DistillReport(str(path), figures, _with_choices(conversion))


def _simulated(net: DeltaNet, recipe: DistillRecipe, example: Tensor) -> SimulatedInt8 | None:
    if recipe.quantization is None:
        return None
    return SimulatedInt8(net, recipe.quantization, steps=recipe.loop.steps, example=example)


def _table(objective: PairObjective, recipe: DistillRecipe, held_out: FrameSet) -> dict[str, float]:
    """mIoU by keyframe interval, of the float pair and, once the training rounds, of the rounded one too."""

    def score(interval: int) -> float:
        return stream_miou(objective.net, objective.to_input, held_out, recipe.task, interval)

    intervals, rounded = (1, *recipe.intervals), objective.quantization
    figures = {f"miou_k{k}": score(k) for k in intervals}
    if rounded is not None and int(objective.seen) > rounded.start_step:
        with rounded.rounding():
            figures |= {f"miou_k{k}_int8": score(k) for k in intervals}
    return figures


def _with_choices(conversion: Conversion) -> tuple[LayerReport, ...]:
    """The layer table with the gates' choices."""
    choices = {layer.label: layer for layer in conversion.net.layers if layer.g_gate is not None}
    rows = []
    for row in conversion.layers:
        gate = choices[row.name].g_gate if row.name in choices else None
        if gate is not None:
            macs = row.macs if gate.full else row.student_macs
            row = LayerReport(row.name, True, "full" if gate.full else "low rank", row.macs, macs)
        rows.append(row)
    return tuple(rows)


def load_student(path: Any) -> tuple[DeltaNet, DistillRecipe, dict[str, Any]]:
    """The deployed pair in a ``student.pt``, its recipe, and the checkpoint's meta data.

    Raises:
        CheckpointError: the file is no student of ``edge-sdk distill``.
    """
    content = read_checkpoint(path)
    meta = content.get("meta")
    if not isinstance(meta, dict) or meta.get("kind") != "delta":
        raise CheckpointError(
            f"checkpoint {path}: expected a student written by edge-sdk distill, found none.",
            hint="Give the student.pt of a distillation.",
        )
    recipe = parse_settings(meta["recipe"], DistillRecipe, f"recipe in {path}")
    teacher = make_module(recipe.teacher)
    net = to_delta(teacher, torch.zeros(1, 3, *meta["example_hw"]), recipe.delta).net
    fill_module(net.network, content["state_dict"], path)
    return net.keep_choices().eval(), recipe, meta
