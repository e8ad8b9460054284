"""The bundles that an evaluation of clips compares, checked against each other before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_sdk.bundle import FLOAT32, Bundle
from edge_sdk.errors import BundleError, RecipeError
from edge_sdk.evaluate.clips.recipe import ClipEvaluateRecipe
from edge_sdk.evaluate.facts import BundleFacts
from edge_sdk.runtime.schedule import SampleSchedule

Role = Literal["teacher", "student", "rival", "other"]


@dataclass(frozen=True)
class Seat:
    """A row before it has numbers: one bundle on one set of engines."""

    name: str
    role: Role
    bundle: Bundle
    engine: str = FLOAT32


@dataclass(frozen=True)
class Lineup:
    """Who takes part.

    Args:
        bundles: by name, the teacher first where there is one, then the student.
        roles: by the same names.
        length: frames of a clip.
    """

    bundles: dict[str, Bundle]
    roles: dict[str, Role]
    length: int

    @property
    def student(self) -> Bundle:
        """The bundle that is evaluated."""
        return self.bundles["student"]

    def seats(self, engines: tuple[str, ...]) -> Iterator[Seat]:
        """One a bundle, then one for each engine set that a bundle has of those asked for."""
        for name, bundle in self.bundles.items():
            yield Seat(name, self.roles[name], bundle)
        for engine in engines:
            for name, bundle in self.bundles.items():
                if engine in bundle.manifest.engines:
                    yield Seat(f"{name} {engine}", self.roles[name], bundle, engine)

    def facts(self) -> tuple[BundleFacts, ...]:
        """Identity and provenance of each bundle, the student first."""
        names = sorted(self.bundles, key=lambda name: name != "student")
        facts = []
        for name in names:
            role = "subject" if name == "student" else self.roles[name]
            facts.append(BundleFacts.of(role, self.bundles[name]))
        return tuple(facts)


def open_lineup(recipe: ClipEvaluateRecipe) -> Lineup:
    """Open and check the bundles of a recipe.

    Raises:
        MissingFileError, FileFormatError, BundleError: a bundle is not whole, classifies no clips, takes other frames
            or has other classes than the student, sees clips of another length, or lacks engines.
        RecipeError: the length of a clip is nowhere to be found, or two bundles would have one name.
    """
    student = Bundle.open(recipe.bundle)
    for engine in recipe.engines:
        student.engine_for("onnxruntime", engine)
    bundles: dict[str, Bundle] = {}
    roles: dict[str, Role] = {}
    if recipe.teacher is not None:
        bundles["teacher"], roles["teacher"] = Bundle.open(recipe.teacher), "teacher"
    bundles["student"], roles["student"] = student, "student"
    if recipe.rival is not None:
        bundles["rival"], roles["rival"] = Bundle.open(recipe.rival), "rival"
    for path in recipe.others:
        name = path.resolve().name
        if name in bundles:
            raise RecipeError(
                f"others: two rows would be named '{name}'.", hint="Give the folders unlike names."
            )
        bundles[name], roles[name] = Bundle.open(path), "other"
    for name, bundle in bundles.items():
        _check(name, bundle, student)
    return Lineup(bundles, roles, _length(recipe, bundles))


def is_clip_bundle(path: Path | None) -> bool:
    """Whether a bundle is there and classifies clips; what else is wrong with it is found where it is opened."""
    if path is None or not path.is_dir():
        return False
    return Bundle.open(path, verify=False).manifest.task.kind == "classification"


def _check(name: str, bundle: Bundle, student: Bundle) -> None:
    ours, theirs = student.manifest.task, bundle.manifest.task
    if theirs.kind != "classification":
        raise BundleError(
            f"{name} {bundle.path}: its task is {theirs.kind}, expected one that classifies clips.",
            hint="Name bundles of clip classifiers.",
        )
    if bundle.size_hw != student.size_hw:
        found, wanted = (f"{h} x {w}" for h, w in (bundle.size_hw, student.size_hw))
        raise BundleError(
            f"{name} {bundle.path}: it takes frames of {found} (height x width), "
            f"bundle {student.path} takes {wanted}.",
            hint="Export both for the same frame size; what a network makes of a frame is part of its graph.",
        )
    if (ours.classes, ours.multi_label) != (theirs.classes, theirs.multi_label):
        raise BundleError(
            f"{name} {bundle.path}: its classes ({len(theirs.classes)}) are not those of bundle {student.path} "
            f"({len(ours.classes)}), or one of the two alone is multi-label.",
            hint="Compare networks that were trained for the same classes.",
        )


def _length(recipe: ClipEvaluateRecipe, bundles: dict[str, Bundle]) -> int:
    """The clip length that all schedules agree on."""
    found = {
        name: bundle.manifest.schedule.length
        for name, bundle in bundles.items()
        if isinstance(bundle.manifest.schedule, SampleSchedule)
    }
    length = recipe.length if recipe.length is not None else next(iter(found.values()), None)
    if length is None:
        raise RecipeError(
            f"length: the schedule '{bundles['student'].manifest.schedule.kind}' does not say how long a clip is.",
            hint="Give `length`, the frames of a clip.",
        )
    for name, other in found.items():
        if other != length:
            raise BundleError(
                f"{name} {bundles[name].path}: its clips have {other} frames, expected {length}.",
                hint="Export all bundles for clips of one length.",
            )
    return length
