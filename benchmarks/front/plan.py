"""Every training, cost table and bundle of the front as a recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from settings import FACTORY, INT8, SCENES, SMALL_INPUT, VIEWS, Benchmark, Course, Scene, Student

from edge_sdk.compile import ExportRecipe
from edge_sdk.distill import DistillRecipe, TrainRecipe
from edge_sdk.distill.cross_recipe import CrossLoss, CrossRecipe, MotionSettings
from edge_sdk.distill.delta_recipe import DeltaLoss, DeltaSettings, QuantizationSettings, SearchSettings
from edge_sdk.distill.recipes import (
    Augment,
    LoopSettings,
    ModuleSettings,
    Motion,
    Optimiser,
    PairData,
    Preprocess,
    TaskLoss,
)
from edge_sdk.distill.search import cheapest_choice
from edge_sdk.evaluate.front import FrontRecipe
from edge_sdk.profile.prepare.recipe import ProfileRecipe
from edge_sdk.profile.table import CostTable
from edge_sdk.tasks import TaskSpec

TEACHER, GAMMA4, ONCE = "teacher", "gamma4", "once"
_PAIR_LOSS = TaskLoss(source="both", class_weights="log", teacher_weight=1.0)
_PAIR_AUGMENT = partial(Augment, scale=(1.0, 1.5), colour=0.1)


def task_of(scene: Scene) -> TaskSpec:
    """What the networks of a scene answer."""
    names, palette = zip(*scene.classes, strict=True)
    return TaskSpec(classes=names, palette=palette, ignore_label=scene.ignore)


def module(plan: Benchmark, width: int, checkpoint: Path | None = None) -> ModuleSettings:
    """A network of the family, by width."""
    arguments = {"classes": len(SCENES[plan.scene].classes), "width": width}
    return ModuleSettings(factory=FACTORY, arguments=arguments, checkpoint=checkpoint)


def teacher(plan: Benchmark) -> ModuleSettings:
    """The trained teacher."""
    network = module(plan, plan.teacher.width)
    if plan.teacher.views:
        arguments = {
            "network": network.model_dump(mode="json"),
            "scales": plan.teacher.views,
            "mirror": False,
        }
        network = ModuleSettings(factory=VIEWS, arguments=arguments)
    return network.model_copy(update={"checkpoint": teacher_weights(plan)})


def teacher_weights(plan: Benchmark) -> Path:
    """Of the teacher that looks once; one that looks several times has the same."""
    return plan.folder_of(plan.teacher.once) / TEACHER / "model.pt"


def net_name(width: int) -> str:
    """Of the network of that width for every frame."""
    return f"width{width}"


def joined_name(student: Student) -> str:
    """Of the pair of the teacher and that network."""
    return f"joined{student.name}"


def alone_name(student: Student) -> str:
    """Of that network on every frame, after it has learned in the pair too."""
    return f"width{student.name}_after"


def alone_weights(pair: Path) -> Path:
    """Where that network's weights are, beside the checkpoint of its pair."""
    return pair.with_name("alone.pt")


def pair_name(precision: str, budget: float) -> str:
    """Of the pair that was searched for a precision with that share of the reference student's time."""
    return f"{precision}_{round(100 * budget)}"


def teacher_recipe(plan: Benchmark) -> TrainRecipe:
    """The teacher, from labels."""
    return _frames(plan, TEACHER, plan.teacher.width, plan.teacher_course, None)


def net_recipes(plan: Benchmark) -> dict[str, TrainRecipe]:
    """The rivals by name: narrower copies of the teacher, taught by it on every frame."""
    given = teacher(plan)
    return {
        net_name(width): _frames(plan, net_name(width), width, plan.net_course, given)
        for width in plan.teacher.nets
    }


def rivals(plan: Benchmark) -> dict[str, Path]:
    """Checkpoints of the networks for every frame by name; of a teacher of several views, also what looks once."""
    found = {name: recipe.out / "model.pt" for name, recipe in net_recipes(plan).items()}
    if plan.teacher.views:
        found[ONCE] = teacher_weights(plan)
    return found


def _frames(
    plan: Benchmark, name: str, width: int, course: Course, given: ModuleSettings | None
) -> TrainRecipe:
    scene, taught = SCENES[plan.scene], given is not None
    others = scene.others if plan.others_share and taught else ()
    source: Literal["labels", "teacher", "both"] = "labels"
    if taught:
        source = "teacher" if others else "both"
    return TrainRecipe(
        out=plan.folder / name,
        module=module(plan, width),
        start=given.checkpoint if given is not None else None,
        teacher=given,
        task=task_of(scene),
        data=scene.stills,
        unlabelled=others,
        unlabelled_share=plan.others_share,
        norm="keep" if others else "learn",
        validation=scene.validation,
        preprocess=_preprocess(scene),
        augment=Augment(crop_hw=scene.crop_hw, scale=(0.6, 2.0), colour=0.15),
        loss=TaskLoss(
            source=source,
            class_weights="log",
            teacher_weight=3.0 if taught else 1.0,
        ),
        optimiser=_optimiser(course, None),
        loop=_loop(course, min(course.steps, max(course.steps // 8, 100))),
    )


def delta_of(plan: Benchmark) -> DeltaSettings:
    """The units and their candidates; layers outside of them are low rank."""
    return DeltaSettings(gamma=8, rank_multiple=plan.rank_multiple, candidates="low_rank", units=plan.units)


def profile_recipe(plan: Benchmark, precision: str) -> ProfileRecipe:
    """The cost table of a precision, on this machine."""
    scene = SCENES[plan.scene]
    return ProfileRecipe(
        out=plan.folder / f"cost_{precision}",
        teacher=module(plan, plan.teacher.width),
        task=task_of(scene),
        delta=delta_of(plan),
        preprocess=_preprocess(scene),
        frame_hw=scene.frame_hw,
        precision=precision,
        threads=1,
        rounds=plan.rounds,
        check=plan.check,
        decode_stride=2,
    )


def budget_of(table: CostTable, share: float) -> float:
    """Milliseconds of that share of the reference student's time, or of the cheapest student where that takes more."""
    cheapest = cheapest_choice(table, {unit: tuple(costs) for unit, costs in table.units.items()})
    return max(share * table.reference.ms.median, table.predict(cheapest))


def pair_recipe(plan: Benchmark, precision: str, budget: float, budget_ms: float) -> DistillRecipe:
    """A student searched under a budget; for INT8 with rounding in the loop from the start."""
    search = SearchSettings(
        table=plan.folder / f"cost_{precision}" / "table.json", budget_ms=budget_ms, until=plan.until
    )
    quantization = QuantizationSettings() if precision == "int8" else None
    return _pair(
        plan,
        pair_name(precision, budget),
        delta_of(plan),
        plan.pair_course,
        search=search,
        quantization=quantization,
    )


def gamma4_recipe(plan: Benchmark) -> DistillRecipe:
    """The published form: low rank by 4, a join a layer."""
    return _pair(plan, GAMMA4, DeltaSettings(gamma=4, candidates="low_rank"), plan.gamma4_course)


def joined_recipe(plan: Benchmark, student: Student) -> CrossRecipe:
    """A pair of whole networks: the smaller one answers, corrected by what it missed at the keyframe."""
    scene, small = SCENES[plan.scene], student.scale < 1
    course = plan.half_course if small else plan.join_course
    motion = {**plan.motion, **(plan.motion_half if small else {})}
    begin = plan.folder / net_name(student.width) / "model.pt"
    if plan.teacher.views and student.width not in plan.teacher.nets:
        begin = alone_weights(plan.folder_of(plan.teacher.once) / joined_name(student) / "student.pt")
    return CrossRecipe(
        kind="cross",
        out=plan.folder / joined_name(student),
        teacher=teacher(plan),
        student=module(plan, student.width, begin),
        task=task_of(scene),
        scale=student.scale,
        join=plan.join,
        confidence=plan.confidence,
        student_lr=plan.student_lr,
        motion=MotionSettings(**motion),  # type: ignore[arg-type]  # checked when it is made
        data=PairData(stills=scene.stills, motion=Motion(max_gap=plan.join_gap), between=plan.between),
        validation=scene.validation,
        intervals=plan.teacher.intervals,
        preprocess=_preprocess(scene),
        augment=_PAIR_AUGMENT(crop_hw=scene.crop_hw),
        loss=CrossLoss(task=_PAIR_LOSS),
        optimiser=_optimiser(course, 1.0),
        loop=_loop(course, course.steps),
    )


def _pair(
    plan: Benchmark, name: str, delta: DeltaSettings, course: Course, *, search: SearchSettings | None = None,
    quantization: QuantizationSettings | None = None,
) -> DistillRecipe:  # fmt: skip
    scene = SCENES[plan.scene]
    data = PairData(
        stills=scene.stills, motion=Motion(max_gap=plan.max_gap), video=scene.video,
        video_share=0.25 if scene.video else None, max_gap=scene.video_gap,
    )  # fmt: skip
    return DistillRecipe(
        out=plan.folder / name,
        teacher=teacher(plan),
        task=task_of(scene),
        delta=delta,
        search=search,
        data=data,
        validation=scene.validation,
        intervals=plan.teacher.intervals,
        preprocess=_preprocess(scene),
        augment=_PAIR_AUGMENT(crop_hw=scene.crop_hw),
        loss=DeltaLoss(task=_PAIR_LOSS, feature=0.1, feature_until=0.5, feature_scale="layer"),
        optimiser=_optimiser(course, 1.0),
        quantization=quantization,
        loop=_loop(course, course.steps),
    )  # fmt: skip


def export_recipe(plan: Benchmark, name: str, weights: Path) -> ExportRecipe:
    """The bundle of that checkpoint, which knows all about itself."""
    frame_hw = SCENES[plan.scene].frame_hw
    return ExportRecipe(out=bundle_of(plan, name), checkpoint=weights, frame_hw=frame_hw, decode_stride=2)


def network_recipe(plan: Benchmark, name: str, network: ModuleSettings) -> ExportRecipe:
    """The bundle of a network for every frame."""
    scene = SCENES[plan.scene]
    return ExportRecipe(
        out=bundle_of(plan, name), module=network, task=task_of(scene), preprocess=_preprocess(scene),
        frame_hw=scene.frame_hw, decode_stride=2,
    )  # fmt: skip


def alone(plan: Benchmark, student: Student, weights: Path) -> ModuleSettings:
    """A pair's student on every frame, with those weights."""
    network = module(plan, student.width)
    if student.scale < 1:
        arguments = {"network": network.model_dump(mode="json"), "scale": student.scale}
        network = ModuleSettings(factory=SMALL_INPUT, arguments=arguments)
    return network.model_copy(update={"checkpoint": weights})


def front_recipe(plan: Benchmark, pairs: list[Path]) -> FrontRecipe:
    """Everything in one run."""
    return FrontRecipe(
        teacher=bundle_of(plan, TEACHER),
        nets=(
            *(bundle_of(plan, name) for name in rivals(plan)),
            *(bundle_of(plan, alone_name(student)) for student in plan.teacher.students),
        ),
        pairs=tuple(pairs),
        source=SCENES[plan.scene].validation,
        intervals=plan.teacher.intervals,
        engines=(INT8,),
        repeats=plan.repeats,
        limit=plan.limit,
        threads=1,
        out=plan.folder / "front",
    )


def bundle_of(plan: Benchmark, name: str) -> Path:
    """Where a bundle goes."""
    return plan.folder / "bundles" / name


def _preprocess(scene: Scene) -> Preprocess:
    return Preprocess(size_hw=scene.input_hw)


def _optimiser(course: Course, clip_norm: float | None) -> Optimiser:
    return Optimiser(
        kind="adamw", lr=course.lr, weight_decay=course.weight_decay, curve="cosine", warmup=course.warmup,
        clip_norm=clip_norm,
    )  # fmt: skip


def _loop(course: Course, validate_every: int) -> LoopSettings:
    return LoopSettings(
        steps=course.steps, batch=course.batch, seed=course.seed, precision="bf16-mixed", workers=0,
        validate_every=validate_every, checkpoint_every=100,
    )  # fmt: skip
