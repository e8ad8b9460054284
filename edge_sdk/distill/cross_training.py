"""``edge-sdk distill`` with ``kind: cross``: how the pairs of :mod:`edge_sdk.distill.cross` learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sdk.distill.channels_last import channels_last
from edge_sdk.distill.correction import kept
from edge_sdk.distill.cross import KIND, TEACHER, Answer, CrossPair, make_cross
from edge_sdk.distill.cross_recipe import CrossLoss, CrossRecipe
from edge_sdk.distill.distil import DistillReport, stream_miou
from edge_sdk.distill.frames import FrameSet, FrameToInput
from edge_sdk.distill.loop import FREE, Batch, Objective, fit, is_writer
from edge_sdk.distill.losses import SegmentationLoss
from edge_sdk.distill.modules import save_checkpoint
from edge_sdk.distill.motion import carried
from edge_sdk.distill.pairs import PairSampler
from edge_sdk.distill.recipes import Norm, Optimiser
from edge_sdk.distill.taps import check_features, drawn_to, feature_loss, noted, size_of
from edge_sdk.distill.train import check_logits, frame_miou
from edge_sdk.progress import Progress
from edge_sdk.revision import commit_of_sources


class CrossObjective(Objective):
    """Losses of one batch of pairs: the pair's answer, the student's own, and its features against the teacher's."""

    def __init__(
        self, pair: CrossPair, to_input: FrameToInput, loss: CrossLoss, task_loss: SegmentationLoss,
        student_lr: float = 1.0, student_norm: Norm = "learn",
    ) -> None:  # fmt: skip
        super().__init__()
        self.pair, self.to_input, self.settings, self.task_loss = pair, to_input, loss, task_loss
        self.student_lr = student_lr
        pair.keeps_norm = student_norm == "keep"
        if not student_lr:
            pair.fix_student()

    def groups(self, optimiser: Optimiser) -> list[dict[str, Any]]:
        """The join, and the student at its share of the learning rate."""
        learning = [p for p in self.parameters() if p.requires_grad]
        students = {id(p) for p in self.pair.student.parameters()}
        parts = [p for p in learning if id(p) in students], [p for p in learning if id(p) not in students]
        rates = (self.student_lr * optimiser.lr, optimiser.lr)
        return [{"params": part, "lr": lr} for part, lr in zip(parts, rates, strict=True) if part]

    def weights(self) -> dict[str, Tensor]:
        """All but the teacher, which stays as it is."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(f"pair.{TEACHER}")}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts; the student sees all frames of every pair in one pass, the teacher the two ends.

        Where nothing is kept of the earlier frame, both see the later one alone.
        """
        pair, weights, count = self.pair, self.settings, len(batch["mask"])
        correct = pair.join != "replace"
        frames = [batch["frame"]]
        if correct:
            between = batch["between"].unbind(1) if "between" in batch else ()
            frames = [batch["first"], *between, batch["frame"]]
        x = self.to_input(torch.cat(frames)).contiguous(memory_format=torch.channels_last)
        at = weights.feature_at if weights.features else None
        with torch.no_grad(), noted(pair.teacher, at) as taught:
            target = pair.teacher(_ends(x, count)).float()
        with noted(pair.student.network, at) as learnt:
            answer = pair.answer(x)
        own = drawn_to(answer.logits, size_of(target)).float().split(count)
        labels, later = batch["mask"].long(), target[-count:]
        alone = feature = motion = target.new_zeros(())
        corrected = own[-1]
        if correct:
            corrected, motion = self._corrected(own, answer, target[:count], later)
            if weights.alone:
                alone = self.task_loss(own[-1], labels, later)
        task = self.task_loss(corrected, labels, later)
        if at is not None:
            feature = feature_loss(_ends(learnt[0], count).float(), taught[0].float())
        parts = {"task": task, "alone": alone, "feature": feature}
        total = task + weights.alone * alone + weights.features * feature
        if pair.motion is not None:
            parts["motion"] = motion
            total = total + weights.motion * motion
        return total, {name: value.detach() for name, value in parts.items()}

    def _corrected(
        self, own: tuple[Tensor, ...], answer: Answer, first: Tensor, later: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The last frames' answers with what the first ones left, and how far the teacher's answer to the first ones,
        carried along, is from that to the last ones; zero where nobody looks for motion."""
        pair, steps = self.pair, self._steps(answer, first)
        blended, where = first, torch.zeros_like(first[:, :2])
        moves: Sequence[Tensor | None] = steps or [None]
        for now, step in zip(own[-len(moves) :], moves, strict=True):
            if step is not None:
                where = step + carried(where, step)
            if pair.join == "blend":
                blended = pair.blended(now, blended if step is None else carried(blended, step))[0]
        corrected = blended
        if pair.join == "correct":
            maps = kept(first, own[0])
            found = {name: carried(value, where) for name, value in maps.items()} if steps else maps
            corrected = pair.corrected(own[-1], found)[0]
        if not steps:
            return corrected, first.new_zeros(())
        shown = carried(first, where).log_softmax(1)
        divergence = F.kl_div(shown, later.log_softmax(1), log_target=True, reduction="none")
        return corrected, divergence.sum(1).mean()

    def _steps(self, answer: Answer, first: Tensor) -> list[Tensor]:
        """Motion from each frame to the next, in cells of the maps; none where nobody looks for it."""
        pair = self.pair
        if pair.motion is None or answer.seen is None:
            return []
        found = []
        before, *seen = answer.seen.split(len(first))
        for now in seen:
            found.append(pair.where(replace(answer, seen=now), pair.motion.kept(before), size_of(first)))
            before = now
        return found


def _ends(maps: Tensor, count: int) -> Tensor:
    """Of maps of several frames of ``count`` clips, (F * N, ...), those of the first and the last ones."""
    return torch.cat([maps[:count], maps[-count:]]) if len(maps) > 2 * count else maps


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
    objective = CrossObjective(pair, to_input, recipe.loss, task_loss, recipe.student_lr, recipe.student_norm)
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
