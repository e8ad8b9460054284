"""Every training as a recipe, in an order in which a teacher comes before its students."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from settings import (
    CLASSES,
    FEWER_BASELINE,
    FEWER_CLAIMED,
    SMALLER_BASELINE,
    SMALLER_CLAIMED,
    Benchmark,
    Clips,
    Course,
    Network,
    StudentRow,
)

from edge_sdk.distill.clips.recipes import (
    ClipData,
    ClipDistillRecipe,
    ClipLoss,
    ClipModel,
    ClipTrainRecipe,
    Sampling,
)
from edge_sdk.distill.recipes import LoopSettings, ModuleSettings, Optimiser, Preprocess
from edge_sdk.tasks import TaskSpec

TEACHER = "teacher"
TASK = TaskSpec(kind="classification", classes=CLASSES)


@dataclass(frozen=True)
class Training:
    """One training.

    Args:
        table: ``fewer``, ``losses``, ``samplings`` or ``smaller``.
        network: family, or kind of network.
        row: as in the table.
        seed: of weights, batches and training clips.
        recipe: what is run; its folder is named by a hash of the recipe, so that a change is a training of its own.
        after: name of the training that must be done before, where there is one.
    """

    table: str
    network: str
    row: str
    seed: int
    recipe: ClipTrainRecipe | ClipDistillRecipe
    after: str | None = None

    @property
    def name(self) -> str:
        """Unique in the benchmark."""
        return name_of(self.table, self.network, self.row, self.seed)

    @property
    def result(self) -> Path:
        """The checkpoint that it makes."""
        return self.recipe.out / ("model.pt" if isinstance(self.recipe, ClipTrainRecipe) else "student.pt")

    @property
    def note(self) -> Path:
        """Says that it is done: figures, seconds, commit."""
        return self.recipe.out / "done.json"


def name_of(*parts: object) -> str:
    """The name of a training (table, network, row and seed), or of a part of one, fit for a folder."""
    return "-".join(re.sub(r"[^0-9A-Za-z]+", "_", str(part)) for part in parts)


def trainings(plan: Benchmark) -> dict[str, Training]:
    """All of them by name."""
    found: dict[str, Training] = {}
    for training in (*_fewer(plan), *_losses(plan), *_samplings(plan), *_smaller(plan)):
        if training.name in found:
            raise ValueError(f"two trainings are named {training.name}")
        found[training.name] = training
    return found


def _fewer(plan: Benchmark) -> Iterator[Training]:
    fewer = plan.fewer
    for name, family in fewer.families.items():
        for seed in plan.seeds:
            yield _teacher(plan, "fewer", name, seed)
            yield _undistilled(plan, name, "uniform", "fewer", FEWER_BASELINE, seed, fewer.student)
            yield _distilled(
                plan, name, "uniform", "fewer", FEWER_CLAIMED, seed, family.claimed, fewer.student
            )


def _losses(plan: Benchmark) -> Iterator[Training]:
    name, short = plan.fewer.compared, plan.fewer.short
    for seed in plan.further_seeds:
        if seed not in plan.seeds:
            yield _teacher(plan, "fewer", name, seed)
        yield _undistilled(plan, name, "uniform", "losses", FEWER_BASELINE, seed, short)
        for row, student in plan.fewer.families[name].rows().items():
            yield _distilled(plan, name, "uniform", "losses", row, seed, student, short)


def _samplings(plan: Benchmark) -> Iterator[Training]:
    fewer = plan.fewer
    name = fewer.compared
    for sampling in fewer.samplings:
        # Uniform is in the table of losses.
        for seed in plan.further_seeds if sampling != "uniform" else ():
            yield _undistilled(
                plan, name, sampling, "samplings", f"{sampling}, no teacher", seed, fewer.short
            )
            yield _distilled(
                plan, name, sampling, "samplings", f"{sampling}, distilled", seed,
                fewer.families[name].claimed, fewer.short,
            )  # fmt: skip


def _smaller(plan: Benchmark) -> Iterator[Training]:
    smaller = plan.smaller
    clips, seen = smaller.clips, smaller.clips.length
    for name, network in smaller.networks.items():
        for seed in dict.fromkeys((*plan.seeds, *plan.further_seeds)):
            teacher = _teacher(plan, "smaller", name, seed)
            yield teacher
            for row, low in smaller.rows(name).items():
                if seed not in (
                    plan.seeds if row in (SMALLER_BASELINE, SMALLER_CLAIMED) else plan.further_seeds
                ):
                    continue
                model = _model(low.network or network, seen, side=smaller.side)
                if low.loss is None:
                    yield _trained(plan, "smaller", name, row, seed, model, clips, smaller.student)
                else:
                    yield _taught(
                        plan, "smaller", name, row, seed, _model(network, seen), model, clips, smaller.student,
                        low.loss, teacher, train_norm=smaller.train_norm,
                    )  # fmt: skip


def _teacher(plan: Benchmark, table: str, name: str, seed: int) -> Training:
    if table == "fewer":
        clips, course = plan.fewer.clips, plan.fewer.teacher
        model = _model(plan.fewer.families[name].teacher, clips.length)
    else:
        clips, course = plan.smaller.clips, plan.smaller.teacher
        model = _model(plan.smaller.networks[name], clips.length)
    return _trained(plan, table, name, TEACHER, seed, model, clips, course)


def _undistilled(
    plan: Benchmark, name: str, sampling: Sampling, table: str, row: str, seed: int, course: Course
) -> Training:
    """The student on the labels alone, for as many steps as the distilled one has in all."""
    fewer = plan.fewer
    model = _model(fewer.families[name].student, fewer.samples, sampling)
    return _trained(plan, table, name, row, seed, model, fewer.clips, course, course.steps + course.finetune)


def _distilled(
    plan: Benchmark, name: str, sampling: Sampling, table: str, row: str, seed: int, student: StudentRow,
    course: Course,
) -> Training:  # fmt: skip
    fewer, family = plan.fewer, plan.fewer.families[name]
    return _taught(
        plan, table, name, row, seed, _model(family.teacher, fewer.clips.length),
        _model(family.student, fewer.samples, sampling), fewer.clips, course, student.loss,
        None if student.parallel else _teacher(plan, "fewer", name, seed),
        finetune=course.finetune if student.finetuned else 0, unlabelled=student.unlabelled,
    )  # fmt: skip


def _model(
    network: Network, samples: int, sampling: Sampling = "uniform", side: int | None = None
) -> ClipModel:
    counted = {"samples": samples} if network.with_samples else {}
    arguments = {"classes": len(CLASSES), **counted, **network.arguments}
    return ClipModel(
        module=ModuleSettings(factory=network.factory, arguments=arguments),
        samples=samples,
        sampling=sampling,
        preprocess=Preprocess(size_hw=None if side is None else (side, side)),
    )


def _trained(
    plan: Benchmark, table: str, name: str, row: str, seed: int, model: ClipModel, clips: Clips, course: Course,
    steps: int | None = None,
) -> Training:  # fmt: skip
    recipe = ClipTrainRecipe(
        kind="clips", out=Path("unnamed"), model=model, task=TASK, data=_data(clips, course, seed),
        optimiser=_optimiser(course), loop=_loop(course, seed, steps or course.steps),
    )  # fmt: skip
    return Training(table, name, row, seed, _placed(plan, recipe, name_of(table, name, row, seed)))


def _taught(
    plan: Benchmark, table: str, name: str, row: str, seed: int, teacher: ClipModel, student: ClipModel, clips: Clips,
    course: Course, loss: ClipLoss, frozen: Training | None, *, finetune: int = 0, train_norm: bool = False,
    unlabelled: bool = True,
) -> Training:  # fmt: skip
    if frozen is not None:
        module = teacher.module.model_copy(update={"checkpoint": frozen.result})
        teacher = teacher.model_copy(update={"module": module})
    recipe = ClipDistillRecipe(
        kind="clips", out=Path("unnamed"), teacher=teacher, student=student, task=TASK,
        data=_data(clips, course, seed), unlabelled=clips.unlabelled_uris(seed) if unlabelled else (), loss=loss,
        train_norm=train_norm and frozen is not None, finetune=finetune,
        finetune_lr=course.finetune_lr, optimiser=_optimiser(course), loop=_loop(course, seed, course.steps),
    )  # fmt: skip
    placed = _placed(plan, recipe, name_of(table, name, row, seed))
    return Training(table, name, row, seed, placed, None if frozen is None else frozen.name)


def _data(clips: Clips, course: Course, seed: int) -> ClipData:
    # Never mirrored: left and right are classes.
    return ClipData(
        train=(clips.train_uri(seed),), validation=(clips.validation_uri,), length=clips.length, flip=0.0,
        colour=course.colour, shift=course.shift,
    )  # fmt: skip


def _optimiser(course: Course) -> Optimiser:
    return Optimiser(
        kind="adamw", lr=course.lr, weight_decay=course.weight_decay, curve="cosine", warmup=course.warmup,
        clip_norm=course.clip_norm,
    )  # fmt: skip


def _loop(course: Course, seed: int, steps: int) -> LoopSettings:
    # Batches are made in the process itself: two trainings run at once, each on a core.
    return LoopSettings(
        steps=steps, batch=course.batch, seed=seed, validate_every=steps, checkpoint_every=100, workers=0,
        accelerator="cpu",
    )  # fmt: skip


def _placed(
    plan: Benchmark, recipe: ClipTrainRecipe | ClipDistillRecipe, name: str
) -> ClipTrainRecipe | ClipDistillRecipe:
    """The recipe with its folder, named by its content, the teacher's folder included."""
    content = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return recipe.model_copy(update={"out": plan.runs / f"{name}-{digest}"})
