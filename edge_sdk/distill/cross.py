"""Pairs of whole networks: a smaller student under keyframes of the teacher at full resolution.

The student sees every frame at a share of its size (arXiv 2209.12797 resizes inside the network too, bilinearly and
without smoothing first), so its cost falls with the square of that share; or it is a narrower network. The keyframe
step keeps what the student missed of the teacher's answer, and later answers are corrected by it, see
:mod:`edge_sdk.distill.correction`:

    z_t = up(s(down(x_t))) + m * r,    r = z_0 - up(s(down(x_0)))

The confidence m is a sigmoid of how far the student's class shares moved since the keyframe, and of what a small
convolution makes of both of them, class by class. With motion, r and the keyframe's shares are first fetched from
where their places were, see :mod:`edge_sdk.distill.motion`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.channels_last import channels_last
from edge_sdk.distill.correction import Confidence, kept, shares_of
from edge_sdk.distill.cross_recipe import CrossLoss, CrossRecipe, Join, MotionSettings
from edge_sdk.distill.distil import DistillReport, stream_miou
from edge_sdk.distill.frames import FrameSet, FrameToInput, shrunk
from edge_sdk.distill.loop import FREE, Batch, Objective, fit, is_writer
from edge_sdk.distill.losses import SegmentationLoss
from edge_sdk.distill.modules import fill_module, load_module, make_module, read_checkpoint, save_checkpoint
from edge_sdk.distill.motion import Motion, carried, fetched, rows_at, size_of_table, table_of
from edge_sdk.distill.pairs import PairSampler
from edge_sdk.distill.recipes import ModuleSettings
from edge_sdk.distill.steps import TRUST, State, StepPair
from edge_sdk.distill.taps import check_features, drawn_to, feature_loss, map_shape, noted, size_of
from edge_sdk.distill.train import check_logits, frame_miou
from edge_sdk.errors import CheckpointError, RecipeError
from edge_sdk.progress import Progress
from edge_sdk.revision import commit_of_sources
from edge_sdk.settings import parse_settings

KIND = "cross"
# What the frozen teacher's tensors are called in the pair.
_TEACHER = "teacher."


class SmallInput(nn.Module):
    """A network run on its input drawn down: (N, 3, h, w) to class logits of the smaller input's size.

    Args:
        network: gives class logits.
        scale: share of each side that it sees; below 1 the sides are rounded up to multiples of ``multiple``.
    """

    def __init__(self, network: nn.Module, scale: float, multiple: int) -> None:
        super().__init__()
        self.network, self.scale, self.multiple = network, scale, multiple

    def size_of(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width that the network sees of an input of ``size_hw``."""
        if self.scale == 1:
            return size_hw
        height, width = (
            # A little less before rounding up: 0.7 * 80 is a trifle more than 56.
            max(1, -int(-(side * self.scale - 1e-6) // self.multiple)) * self.multiple
            for side in size_hw
        )
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        height, width = int(x.shape[-2]), int(x.shape[-1])
        return self.network(shrunk(x, self.size_of((height, width))))


@dataclass(frozen=True)
class Answer:
    """The student's part of a step.

    Attributes:
        logits: its class logits (N, C, H, W).
        seen: what motion is seen by, (N, D, h, w); None where nobody looks.
        features_hw: height and width of the maps that this was made of.
    """

    logits: Tensor
    seen: Tensor | None = None
    features_hw: tuple[int, int] = (1, 1)


class CrossPair(StepPair):
    """The two steps, over network inputs (N, 3, h, w) at full resolution.

    In training mode the teacher stays as it is: it neither learns nor gathers statistics.

    Args:
        teacher: gives class logits of the whole input.
        student: gives class logits of the drawn-down input, of the same classes.
        join: see :class:`CrossRecipe`; ``replace`` has no state.
        confidence: weighs the correction; None corrects in full.
        motion: where the correction is fetched; None from the same place.
        motion_at: the student's module whose maps show motion; empty for its class logits.
    """

    method = "cross_resolution"
    has_delta = True

    def __init__(
        self, teacher: nn.Module, student: SmallInput, join: Join, confidence: Confidence | None = None,
        motion: Motion | None = None, motion_at: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.teacher, self.student = teacher.requires_grad_(False).eval(), student
        self.join, self.confidence, self.motion, self.motion_at = join, confidence, motion, motion_at

    def train(self, mode: bool = True) -> CrossPair:
        """Training mode of the student."""
        super().train(mode)
        self.teacher.eval()
        return self

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """The teacher's logits (N, C, H, W), and with join ``correct`` the state of :meth:`delta`.

        ``residual``, and where there is a confidence the class shares ``student``, are maps of that size, or with
        motion tables of them; ``seen`` is what motion is found by.
        """
        target = self.teacher(x)
        if self.join == "replace":
            return target, {}
        own = self.answer(x)
        state = kept(target, drawn_to(own.logits, size_of(target)))
        if self.confidence is None:
            del state["student"]
        if self.motion is not None and own.seen is not None:
            state = {name: table_of(maps) for name, maps in state.items()}
            state["seen"] = self.motion.kept(own.seen)
        return target, state

    def delta(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The student's logits, corrected by ``state`` where there is one; nothing is rewritten.

        Where there is a confidence, its mean is told as :data:`~edge_sdk.distill.steps.TRUST`.
        """
        own = self.answer(x)
        if self.join == "replace":
            return own.logits, {}
        if self.motion is None:
            maps, size_hw = state, size_of(state["residual"])
        else:
            size_hw = size_of_table(state["residual"])
            rows = rows_at(self.where(own, state["seen"], size_hw))
            maps = {name: fetched(table, rows) for name, table in state.items() if name != "seen"}
        answer, confidence = self.corrected(drawn_to(own.logits, size_hw), maps)
        return answer, {} if confidence is None else {TRUST: confidence.mean()}

    def answer(self, x: Tensor) -> Answer:
        """The student's own, and what it sees motion by."""
        name = self.motion_at or None
        with noted(self.student.network, name, "motion.feature_at") as found:
            logits = self.student(x)
        if self.motion is None:
            return Answer(logits)
        features = found[0] if found else logits
        return Answer(logits, self.motion.seen(features).float(), size_of(features))

    def where(self, own: Answer, before: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """How far away the keyframe saw what is seen now, (N, 2, H, W) in cells of maps of ``size_hw``.

        Args:
            own: of now.
            before: ``seen`` of the keyframe's state.
            size_hw: height and width.
        """
        if self.motion is None or own.seen is None:
            raise TypeError("the pair does not look for motion")
        return self.motion.where(own.seen, before, self.motion.cell(own.features_hw, size_hw), size_hw)

    def corrected(self, own: Tensor, maps: State) -> tuple[Tensor, Tensor | None]:
        """The student's logits (N, C, H, W) with the keyframe's correction, and the confidence in it.

        Args:
            own: the logits, of the maps' size.
            maps: what the keyframe kept, each place where it is now.
        """
        if self.confidence is None:
            return own + maps["residual"], None
        confidence = self.confidence(shares_of(own), maps["student"])
        return own + confidence * maps["residual"], confidence


class CrossObjective(Objective):
    """Losses of one batch of pairs: the pair's answer, the student's own, and its features against the teacher's."""

    def __init__(
        self, pair: CrossPair, to_input: FrameToInput, loss: CrossLoss, task_loss: SegmentationLoss
    ) -> None:
        super().__init__()
        self.pair, self.to_input, self.settings, self.task_loss = pair, to_input, loss, task_loss

    def weights(self) -> dict[str, Tensor]:
        """All but the teacher, which stays as it is."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(f"pair.{_TEACHER}")}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts; both networks see both frames of every pair in one pass each.

        Where nothing is kept of the earlier frame, they see the later one alone.
        """
        pair, weights = self.pair, self.settings
        correct = pair.join == "correct"
        frames = torch.cat([batch["first"], batch["frame"]]) if correct else batch["frame"]
        x = self.to_input(frames).contiguous(memory_format=torch.channels_last)
        at = weights.feature_at if weights.features else None
        with torch.no_grad(), noted(pair.teacher, at) as taught:
            target = pair.teacher(x).float()
        with noted(pair.student.network, at) as learnt:
            answer = pair.answer(x)
        own, labels = drawn_to(answer.logits, size_of(target)).float(), batch["mask"].long()
        count = len(labels)
        now, later = own[-count:], target[-count:]
        alone = feature = motion = target.new_zeros(())
        corrected = now
        if correct:
            maps = kept(target[:count], own[:count])
            if pair.motion is not None:
                maps, motion = self._carried(maps, answer, target)
            corrected, _ = pair.corrected(now, maps)
            if weights.alone:
                alone = self.task_loss(now, labels, later)
        task = self.task_loss(corrected, labels, later)
        if at is not None:
            feature = feature_loss(learnt[0].float(), taught[0].float())
        parts = {"task": task, "alone": alone, "feature": feature}
        total = task + weights.alone * alone + weights.features * feature
        if pair.motion is not None:
            parts["motion"] = motion
            total = total + weights.motion * motion
        return total, {name: value.detach() for name, value in parts.items()}

    def _carried(self, maps: State, answer: Answer, target: Tensor) -> tuple[State, Tensor]:
        """What is kept of the earlier frames where it is in the later ones, and how far the teacher's answer to the
        earlier ones, carried so, is from that to the later ones."""
        pair = self.pair
        if pair.motion is None or answer.seen is None:
            raise TypeError("the pair does not look for motion")
        first, seen = answer.seen.chunk(2)
        size_hw = size_of(target)
        where = pair.where(replace(answer, seen=seen), pair.motion.kept(first), size_hw)
        earlier, later = target.chunk(2)
        shown = carried(earlier, where).log_softmax(1)
        divergence = F.kl_div(shown, later.log_softmax(1), log_target=True, reduction="none")
        return {name: carried(value, where) for name, value in maps.items()}, divergence.sum(1).mean()


def make_cross(recipe: CrossRecipe, example_hw: tuple[int, int]) -> CrossPair:
    """The pair before it is trained, in evaluation mode: both networks with the weights of their checkpoints.

    Args:
        recipe: what it is made of.
        example_hw: height and width of a network input; the student's maps there say how motion is looked for.

    Raises:
        RecipeError: a factory does not work, a network has no checkpoint, or ``motion`` cannot be seen.
        CheckpointError: weights do not fit.
    """
    return _assembled(recipe, load_module, example_hw)


def _assembled(
    recipe: CrossRecipe, make: Callable[[ModuleSettings], nn.Module], example_hw: tuple[int, int]
) -> CrossPair:
    # Factories draw initial weights: from a seed of ours, and from nobody else's draws.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        teacher = make(recipe.teacher)
        student = copy.deepcopy(teacher) if recipe.student is None else make(recipe.student)
        small = SmallInput(student.eval(), recipe.scale, recipe.multiple)
        classes, confidence, motion = len(recipe.task.classes), None, None
        if recipe.join == "correct" and recipe.confidence != "none":
            confidence = Confidence(classes, recipe.confidence)
        if recipe.motion is not None:
            motion = _motion(recipe.motion, small, example_hw)
    at = recipe.motion.feature_at if recipe.motion is not None else ""
    return CrossPair(teacher, small, recipe.join, confidence, motion, at).eval()


def _motion(settings: MotionSettings, student: SmallInput, example_hw: tuple[int, int]) -> Motion:
    """What looks for motion in the student's maps, which say how many of their cells a block is."""
    shape = map_shape(student.network, settings.feature_at, "motion.feature_at", student.size_of(example_hw))
    given = example_hw[0] / shape[2] if len(shape) == 4 else 0.0
    pool = round(settings.stride / given) if given else 0
    if pool < 1 or min(shape[2:]) < pool:
        raise RecipeError(
            f"'motion.feature_at': expected maps (N, C, h, w) of at least 1/{settings.stride} of the input's "
            f"{example_hw[0]} x {example_hw[1]}, got {shape} of '{settings.feature_at}'.",
            hint="Name an earlier module of the student, or raise motion.stride.",
        )
    return Motion(shape[1], pool, settings.radius, settings.channels)


def distill_cross(
    recipe: CrossRecipe, *, progress: Progress | None = None, resume: bool = True
) -> DistillReport:
    """Distil a student of smaller frames and write ``student.pt``, which holds the teacher too.

    Raises:
        RecipeError: data, factory or checkpoint cannot be used, or ``loss.feature_at`` names nothing comparable.
        ShapeError: a network's output is not class logits.
    """
    task, labelled = recipe.task, recipe.loss.task.source == "labels"
    commit = commit_of_sources()
    sampler = PairSampler(recipe.data, recipe.augment, task, recipe.loop.batch, labelled=labelled)
    held_out = FrameSet.read(recipe.validation, labelled=True, task=task) if recipe.validation else None
    crop_hw = recipe.preprocess.size_hw or recipe.augment.crop_hw or sampler.frames.size_hw
    pair = make_cross(recipe, crop_hw)
    check_logits(pair.teacher, crop_hw, len(task.classes), recipe.teacher.factory)
    named = recipe.student or recipe.teacher
    check_logits(pair.student, crop_hw, len(task.classes), named.factory)
    if recipe.loss.features:
        check_features(pair.teacher, pair.student.network, recipe.loss.feature_at, crop_hw)
    pair = channels_last(pair)
    to_input = FrameToInput(recipe.preprocess)
    share = sampler.frames.class_share(len(task.classes))
    task_loss = SegmentationLoss(recipe.loss.task, task.ignore_label, share)
    objective = CrossObjective(pair, to_input, recipe.loss, task_loss)
    figures = fit(
        objective, sampler, loop=recipe.loop, optimiser=recipe.optimiser, out=recipe.out, stage="distill",
        identity=recipe.model_dump(mode="json", exclude=FREE),
        validate=(lambda: _table(objective, recipe, held_out)) if held_out else None, progress=progress,
        resume=resume,
    )  # fmt: skip
    path = recipe.out / "student.pt"
    meta = {
        "kind": KIND, "recipe": recipe.model_dump(mode="json"), "figures": figures, "commit": commit,
        "example_hw": list(crop_hw),
    }  # fmt: skip
    if is_writer():
        weights = {name: value.contiguous() for name, value in pair.state_dict().items()}
        save_checkpoint(path, {"state_dict": weights, "meta": meta})
    return DistillReport(str(path), figures, ())


def _table(objective: CrossObjective, recipe: CrossRecipe, held_out: FrameSet) -> dict[str, float]:
    """mIoU by keyframe interval, and of the student by itself on every frame."""
    pair, to_input, task = objective.pair, objective.to_input, recipe.task
    figures = {f"miou_k{k}": stream_miou(pair, to_input, held_out, task, k) for k in (1, *recipe.intervals)}
    return {**figures, "miou_alone": frame_miou(pair.student, to_input, held_out, task)}


def load_cross(path: str | Path) -> tuple[CrossPair, CrossRecipe, dict[str, Any]]:
    """The pair in a ``student.pt``, its recipe, and the checkpoint's meta data; the file holds both networks.

    Raises:
        CheckpointError: the file is no student of a cross-resolution distillation, or its weights do not fit.
    """
    content = read_checkpoint(path)
    meta = content.get("meta")
    if not isinstance(meta, dict) or meta.get("kind") != KIND:
        raise CheckpointError(
            f"checkpoint {path}: expected a student of a cross-resolution distillation, found none.",
            hint=f"Give the student.pt of an edge-sdk distill with kind: {KIND}.",
        )
    recipe = parse_settings(meta["recipe"], CrossRecipe, f"recipe in {path}")
    weights = content.get("state_dict")
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"checkpoint {path}: expected the weights of a pair under 'state_dict', found none.",
            hint="Distil again, or copy the file again.",
        )
    # Files from before there was motion do not say it, and do without.
    height, width = meta.get("example_hw", (1, 1))
    pair = _assembled(recipe, make_module, (height, width))
    fill_module(pair, weights, path)
    return pair, recipe, meta
