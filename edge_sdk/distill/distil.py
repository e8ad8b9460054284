"""``edge-sdk distill``: train the students of a delta network on pairs of frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.distill.candidates import Chooser, Gate
from edge_sdk.distill.channels_last import channels_last
from edge_sdk.distill.convert import Conversion, LayerReport, drop_unused, to_delta
from edge_sdk.distill.delta import DeltaNet, Joined
from edge_sdk.distill.delta_recipe import DeltaLoss, DistillRecipe
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
from edge_sdk.distill.recipes import Optimiser
from edge_sdk.distill.search import BudgetSearch, write_choice
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
        units: Mapping[str, Mapping[str, int]], *, feature_steps: int, teacher_lr: float,
        quantization: SimulatedInt8 | None = None, search: BudgetSearch | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.quantization, self.search = quantization, search
        self.net, self.to_input, self.settings, self.task_loss = net, to_input, loss, task_loss
        self.feature_steps, self.teacher_lr = feature_steps, teacher_lr
        self.cost_share, self._charges = _charges(net, units, loss.cost_by)
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
        gates = [p for gate in self._gates.values() for p in gate.parameters()]
        rate = 1.0 if self.search is None else self.search.settings.gate_rate
        if optimiser.weight_decay > 0 or rate != 1.0:
            groups[0]["params"] = [p for p in own if id(p) not in _ids(gates)]
            groups.append({"params": gates, "lr": optimiser.lr * rate, "weight_decay": 0.0})
        if self.teacher_lr > 0:
            teacher = [p for p in self.net.parameters() if id(p) not in self._trained]
            groups.append({"params": teacher, "lr": optimiser.lr * self.teacher_lr})
        return [group for group in groups if group["params"]]

    def train(self, mode: bool = True) -> PairObjective:
        """Training mode for gates alone: dropout and norms, the teacher's and their copies, stay as deployed."""
        super().train(mode)
        for module in self.net.modules():
            module.training = mode and isinstance(module, Chooser | Joined)
        return self

    @property
    def _gates(self) -> dict[str, Chooser]:
        units = self.net.units.items()
        return {name: unit.g_gate for name, unit in units if unit.g_gate is not None}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts."""
        if self.search is not None and self.training:
            self.search.begin_step(int(self.seen))
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
        total = task + self.settings.feature * feature
        shown = {"task": task.detach(), "feature": feature.detach()}
        self.seen += int(self.training)
        if self.search is not None:
            cost, expected = self.search.loss()
            return self._all_used(total + cost), {**shown, "cost": cost.detach(), "expected_ms": expected}
        cost = self._cost(task)
        return total + self.settings.cost * cost, {**shown, "cost": cost.detach()}

    def _all_used(self, total: Tensor) -> Tensor:
        """``total``; where several processes train, with no weight left out, which they would wait for."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return total
        zeros = [p.sum() * 0 for p in self.net.parameters() if id(p) in self._trained]
        return total + torch.stack([zero.float() for zero in zeros]).sum()

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
        for name, gate in self._gates.items():
            charges = torch.tensor(self._charges[name], device=like.device)
            cost = cost + (gate.shares() * charges).sum() * self.cost_share[name]
        return cost


def _charges(
    net: DeltaNet, units: Mapping[str, Mapping[str, int]], by: str
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The published cost: each unit's part in it, and by unit what each candidate is charged, 0 to 1.

    As published, of the two with a gate the full one is charged alone; of others each its part of the dearest.
    """
    gated = {name: unit for name, unit in net.units.items() if unit.g_gate is not None}
    dearest = {name: float(max(*units[name].values(), 1)) for name in gated}
    total = sum(dearest.values()) if by == "macs" else float(len(gated))
    shares = {name: (value if by == "macs" else 1.0) / total for name, value in dearest.items()}
    charges = {
        name: [1.0, 0.0]
        if isinstance(unit.g_gate, Gate)
        else [units[name][each] / dearest[name] for each in unit.candidates]
        for name, unit in gated.items()
    }
    return shares, charges


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
    search = None if recipe.search is None else BudgetSearch(net, recipe.search, steps=recipe.loop.steps)
    if recipe.start is not None:
        fill_module(net.network, read_weights(recipe.start), recipe.start)
    # Convolutions train a fifth faster so on CPUs.
    net = channels_last(net)
    task_loss = SegmentationLoss(
        recipe.loss.task, task.ignore_label, sampler.frames.class_share(len(task.classes))
    )
    quantization = _simulated(net, recipe, example)
    objective = PairObjective(
        net, to_input, recipe.loss, task_loss, conversion.units, teacher_lr=recipe.teacher_lr,
        feature_steps=round(recipe.loss.feature_until * recipe.loop.steps), quantization=quantization, search=search,
    )  # fmt: skip
    figures = fit(
        objective, sampler, loop=recipe.loop, optimiser=recipe.optimiser, out=recipe.out, stage="distill",
        identity=_identity(recipe), validate=(lambda: _table(objective, recipe, held_out)) if held_out else None,
        progress=progress, resume=resume,
    )  # fmt: skip
    if quantization is not None:
        quantization.remove()
    layers, path = _with_choices(conversion), recipe.out / "student.pt"
    dumped = recipe.model_dump(mode="json")
    meta = {
        "kind": "delta",
        "recipe": dumped,
        "figures": figures,
        "commit": commit,
        "example_hw": list(crop_hw),
    }
    if search is not None:
        meta["choice"] = _finish(search, net, recipe, example)
    if is_writer():
        weights = {name: value.contiguous() for name, value in net.network.state_dict().items()}
        save_checkpoint(path, {"state_dict": weights, "meta": meta})
    return DistillReport(str(path), figures, layers)


def _finish(search: BudgetSearch, net: DeltaNet, recipe: DistillRecipe, example: Tensor) -> dict[str, str]:
    """Leave of the network what was chosen, and write that down.

    Returns:
        the choice.
    """
    search.hold()
    choice = net.choice
    if is_writer():
        write_choice(recipe.out, choice, search.table.predict(choice))
    drop_unused(net.keep_choices(), example)
    return choice


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


def _identity(recipe: DistillRecipe) -> dict[str, Any]:
    """What must be equal for a training to go on; one from before there were kinds, units and choices goes on too."""
    identity = recipe.model_dump(mode="json", exclude={**FREE, "kind": True})
    identity["delta"] = {key: value for key, value in identity["delta"].items() if value != {}}
    return identity


def _with_choices(conversion: Conversion) -> tuple[LayerReport, ...]:
    """The layer table with the choices of single convolutions."""
    rows = []
    for row in conversion.layers:
        unit = conversion.net.units.get(row.name)
        if unit is not None and unit.g_gate is not None:
            low = isinstance(unit.g_gate, Gate) and unit.chosen != "full"
            macs = conversion.units[row.name][unit.chosen]
            row = LayerReport(row.name, True, "low rank" if low else unit.chosen, row.macs, macs)
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
    # A search leaves its choice, and the weights of what it chose.
    delta = recipe.delta.model_copy(update={"choice": {**recipe.delta.choice, **meta.get("choice", {})}})
    net = to_delta(teacher, torch.zeros(1, 3, *meta["example_hw"]), delta).net
    fill_module(net.network, content["state_dict"], path)
    return net.keep_choices().eval(), recipe, meta
