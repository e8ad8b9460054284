"""``edge-sdk distill`` with ``kind: clips``: a student that sees fewer or smaller frames than its teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch

from edge_sdk.distill.clips.checkpoints import check_clip_network, check_comparable, save_clip_model
from edge_sdk.distill.clips.data import joined, read_clips
from edge_sdk.distill.clips.network import ClipNetwork
from edge_sdk.distill.clips.objective import (
    Clips,
    ClipSampler,
    DistillObjective,
    LabelObjective,
    clip_figures,
)
from edge_sdk.distill.clips.recipes import ClipDistillRecipe
from edge_sdk.distill.clips.train import ClipReport, begin, read_data
from edge_sdk.distill.loop import FREE, fit, is_writer
from edge_sdk.progress import Progress
from edge_sdk.revision import commit_of_sources

Figures = dict[str, float]
# Folder of the fine-tuning's checkpoints, inside the recipe's.
_FINETUNE = "finetune"
# Between the seeds that teacher and student get their fresh weights from.
_STUDENT = 0x57D


def distill_clips(
    recipe: ClipDistillRecipe, *, progress: Progress | None = None, resume: bool = True
) -> ClipReport:
    """Distil a clip student and write ``student.pt``; a teacher that is trained along becomes ``teacher.pt``.

    Raises:
        RecipeError: the data or a factory cannot be used.
        ShapeError: a network does not take the clips or answers something else, or a loss cannot compare the two.
        CheckpointError: a checkpoint does not fit, or ``last.pt`` belongs to other settings.
    """
    task, commit = recipe.task, commit_of_sources()
    clips, held_out = read_data(recipe.data, task, progress)
    student, teacher = _networks(recipe)
    seen = (
        check_clip_network(student, recipe.student, clips, len(task.classes)),
        check_clip_network(teacher, recipe.teacher, clips, len(task.classes)),
    )
    check_comparable(recipe.loss, (student, teacher), seen)
    shown = clips
    if recipe.unlabelled:
        shown = joined(
            clips, read_clips(recipe.unlabelled, recipe.data, task, labelled=False, progress=progress)
        )
    figures = _distil(recipe, student, teacher, shown, held_out, progress, resume)
    if recipe.finetune:
        figures = _finetune(recipe, student, clips, held_out, figures, progress, resume)
    meta = {"recipe": recipe.model_dump(mode="json"), "figures": figures, "commit": commit}
    path, along = recipe.out / "student.pt", None
    if is_writer():
        save_clip_model(path, student, recipe.student, task, clips, meta)
    if is_parallel(recipe):
        along = recipe.out / "teacher.pt"
        if is_writer():
            own = {key.removeprefix("teacher_"): value for key, value in figures.items() if "teacher_" in key}
            save_clip_model(along, teacher, recipe.teacher, task, clips, {**meta, "figures": own})
    return ClipReport(str(path), figures, None if along is None else str(along))


def is_parallel(recipe: ClipDistillRecipe) -> bool:
    """Whether the teacher is trained along with the student."""
    return recipe.teacher.module.checkpoint is None


def _networks(recipe: ClipDistillRecipe) -> tuple[ClipNetwork, ClipNetwork]:
    """Student and teacher. A teacher that is trained along begins as if it were trained alone with this seed."""
    torch.manual_seed(recipe.loop.seed)
    teacher = begin(recipe.teacher, recipe.task)
    # Weights of its own, as published: two of one architecture would else begin as one.
    torch.manual_seed(recipe.loop.seed + _STUDENT)
    return begin(recipe.student, recipe.task), teacher


def _distil(
    recipe: ClipDistillRecipe, student: ClipNetwork, teacher: ClipNetwork, clips: Clips, held_out: Clips | None,
    progress: Progress | None, resume: bool,
) -> Figures:  # fmt: skip
    objective = DistillObjective(
        student, teacher, (recipe.student.preprocess, recipe.teacher.preprocess), recipe.loss,
        multi_label=recipe.task.multi_label, parallel=is_parallel(recipe), train_norm=recipe.train_norm,
    )  # fmt: skip
    roles = {"teacher": recipe.teacher, "student": recipe.student}
    return fit(
        objective, ClipSampler(clips, recipe.data, recipe.loop.batch, roles), loop=recipe.loop,
        optimiser=recipe.optimiser, out=recipe.out, stage="distill", progress=progress, resume=resume,
        identity=recipe.model_dump(mode="json", exclude={**FREE, "finetune": True, "finetune_lr": True}),
        validate=_validation(recipe, student, teacher, held_out) if held_out is not None else None,
    )  # fmt: skip


def _validation(
    recipe: ClipDistillRecipe, student: ClipNetwork, teacher: ClipNetwork, held_out: Clips
) -> Callable[[], Figures]:
    """Figures of the student, and of the teacher as ``teacher_...``: measured once where it is frozen."""
    frozen: Figures = {}

    def measured() -> Figures:
        found = clip_figures(teacher, held_out, recipe.task, recipe.teacher, batch=recipe.loop.batch)
        return {f"teacher_{name}": value for name, value in found.items()}

    def validate() -> Figures:
        if is_parallel(recipe) or not frozen:
            frozen.update(measured())
        own = clip_figures(student, held_out, recipe.task, recipe.student, batch=recipe.loop.batch)
        return {**own, **frozen}

    return validate


def _finetune(
    recipe: ClipDistillRecipe, student: ClipNetwork, clips: Clips, held_out: Clips | None, distilled: Figures,
    progress: Progress | None, resume: bool,
) -> Figures:  # fmt: skip
    """The student on the labels alone; returns its figures, those before as ``distilled_...``, and the teacher's."""
    out, task, model = recipe.out / _FINETUNE, recipe.task, recipe.student
    # Another seed: else the first batches of the distillation would come again.
    loop = recipe.loop.model_copy(update={"steps": recipe.finetune, "seed": recipe.loop.seed + 1})
    optimiser = recipe.optimiser.model_copy(update={"lr": recipe.optimiser.lr * recipe.finetune_lr})
    figures = fit(
        LabelObjective(student, model.preprocess, task.multi_label, "student"),
        ClipSampler(clips, recipe.data, loop.batch, {"student": model}),
        loop=loop, optimiser=optimiser, out=out, stage="fine-tune", progress=progress, resume=resume,
        identity={**recipe.model_dump(mode="json", exclude=FREE), "phase": _FINETUNE},
        validate=(lambda: clip_figures(student, held_out, task, model, batch=loop.batch)) if held_out else None,
    )  # fmt: skip
    before = {f"distilled_{k}": v for k, v in distilled.items() if k in figures and k != "loss"}
    teachers = {key: value for key, value in distilled.items() if key.startswith("teacher_")}
    return {**figures, **before, **teachers}
