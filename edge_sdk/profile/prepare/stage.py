"""``edge-sdk profile RECIPE``: which tiny pairs tell the cost of a network's candidates, and their bundles."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import edge_sdk
from edge_sdk.bundle import Bundle
from edge_sdk.compile.origins import Origin
from edge_sdk.distill.convert import drop_unused, to_delta
from edge_sdk.distill.delta import DeltaNet
from edge_sdk.distill.modules import load_module, make_module
from edge_sdk.errors import EdgeSdkError, OutputError, RecipeError
from edge_sdk.files import require_writable, write_text
from edge_sdk.profile.measure import measure
from edge_sdk.profile.prepare.bundles import write_pair
from edge_sdk.profile.prepare.parts import Call, fixed_layers, traced
from edge_sdk.profile.prepare.recipe import ProfileRecipe
from edge_sdk.profile.prepare.tiny import Tiny, signature, tiny_settings
from edge_sdk.profile.prepared import INDEX, REFERENCE, ProfileIndex, TinyRef
from edge_sdk.profile.structure import KEPT, Choice, Structure
from edge_sdk.profile.table import CostTable
from edge_sdk.progress import Progress, Silent
from edge_sdk.revision import commit_of_sources
from edge_sdk.tasks.base import TaskSpec

_FULL = "full"


def profile(
    recipe: ProfileRecipe, *, rounds: int | None = None, progress: Progress | None = None
) -> CostTable:
    """Prepare and measure on this machine.

    Raises:
        EdgeSdkError: as :func:`prepare` and :func:`edge_sdk.profile.measure.measure`.
    """
    prepare(recipe, progress=progress)
    return measure(recipe.out, rounds=rounds, progress=progress)


def prepare(recipe: ProfileRecipe, *, progress: Progress | None = None) -> ProfileIndex:
    """Write the folder of tiny and whole bundles that a device measures.

    Raises:
        RecipeError, CheckpointError: the teacher cannot be made.
        ConversionError: the units are not the teacher's, or cannot be converted or exported.
        OutputError: the folder cannot be written to, or holds something else.
    """
    progress = progress or Silent()
    _require_place(recipe.out)
    torch.manual_seed(recipe.seed)
    teacher = (make_module if recipe.teacher.checkpoint is None else load_module)(recipe.teacher).eval()
    survey = _surveyed(teacher, recipe)
    plan = _planned(survey)
    reference = _reference(survey, recipe)
    students = _students(survey, recipe)
    wholes = {REFERENCE: reference, **students}
    wanted: list[tuple[Path, Callable[[], Origin], tuple[int, int]]] = [
        (recipe.out / "tiny" / name, partial(tiny.origin, recipe, name), tiny.call.in_hw)
        for name, tiny in plan.tinies.items()
    ]
    wanted += [
        (recipe.out / "whole" / name, partial(_whole, survey.net, recipe, choice), recipe.frame_hw)
        for name, choice in wholes.items()
    ]
    for done, (place, make, frame_hw) in enumerate(wanted):
        progress.update("prepare", done, len(wanted))
        origin = make()
        if not _is_there(place, origin):
            write_pair(origin, frame_hw, place, recipe)
    progress.update("prepare", len(wanted), len(wanted))
    index = ProfileIndex(
        backend=recipe.backend,
        precision=recipe.precision,
        threads=recipe.threads,
        frame_hw=recipe.frame_hw,
        rounds=recipe.rounds,
        clock=recipe.clock,
        tensorrt=recipe.tensorrt,
        units=plan.units,
        fixed=plan.fixed,
        structure=survey.structure.without(survey.settled()),
        reference=reference,
        students=students,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        sdk_version=edge_sdk.__version__,
        commit=commit_of_sources(),
    )
    write_text(recipe.out / INDEX, index.to_json())
    return index


@dataclass(frozen=True)
class _Survey:
    """The teacher as its units, with every candidate of each, and fixed layers."""

    net: DeltaNet
    layers: dict[str, nn.Module]
    candidates: dict[str, tuple[str, ...]]
    structure: Structure
    calls: dict[str, tuple[Call, ...]]

    def joined(self, part: str) -> bool:
        """Whether what a part reads comes from a unit, rather than from fixed layers alone."""
        return any(source in self.candidates for source in self.structure.reads[part])

    def students(self, part: str) -> dict[str, nn.Module | None]:
        """By candidate, the student of a unit; of a layer, itself in full."""
        if part in self.layers:
            return {_FULL: self.layers[part]}
        return {name: self.net.units[part].student_as(name) for name in self.candidates[part]}

    def teacher_of(self, part: str) -> nn.Module:
        """The teacher's part."""
        return self.layers[part] if part in self.layers else self.net.units[part].restored()

    def settled(self) -> set[str]:
        """Fixed layers that run, or do not, whatever is chosen: the reference's time holds them, no sum needs them."""
        barest, fullest = {}, {}
        for unit, names in self.candidates.items():
            barest[unit] = KEPT if KEPT in names else names[0]
            fullest[unit] = next((name for name in names if name != KEPT), KEPT)
        gone, always_gone = (set(self.structure.vanished(choice)) for choice in (barest, fullest))
        return set(self.layers) & set(self.calls) - (gone - always_gone)


@dataclass(frozen=True)
class _TinyPair:
    """A candidate in its surroundings, before it is written."""

    unit: nn.Module
    candidate: str
    call: Call
    joined: bool

    def origin(self, recipe: ProfileRecipe, name: str) -> Origin:
        """The pair."""
        tiny = Tiny(self.unit, self.call).eval()
        example = torch.zeros(1, 3, *self.call.in_hw)
        settings = tiny_settings(self.candidate, recipe.delta, joined=self.joined)
        net = to_delta(tiny, example, settings).net
        task = TaskSpec(classes=("one", "other"))
        preprocess = recipe.preprocess.model_copy(update={"size_hw": None})
        return Origin(net, task, preprocess, {"profile": name, **_facts(recipe)})


@dataclass
class _Plan:
    """Which tiny pairs are needed; equal ones once."""

    tinies: dict[str, _TinyPair] = field(default_factory=dict)
    units: dict[str, dict[str, tuple[TinyRef, ...]]] = field(default_factory=dict)
    fixed: dict[str, tuple[TinyRef, ...]] = field(default_factory=dict)

    def add(self, survey: _Survey, part: str) -> None:
        """The tiny pairs of a part's candidates."""
        unit, found = survey.teacher_of(part), {}
        for candidate, student in survey.students(part).items():
            calls = () if student is None else survey.calls[part]
            found[candidate] = tuple(
                self._ref(unit, candidate, student, call, survey.joined(part)) for call in calls
            )
        if part in survey.layers:
            self.fixed[part] = found[_FULL]
        else:
            self.units[part] = found

    def _ref(
        self, unit: nn.Module, candidate: str, student: nn.Module | None, call: Call, joined: bool
    ) -> TinyRef:
        names = []
        for what, shape in ((candidate, student), (KEPT, None)):
            names.append(signature(shape, call, joined))
            self.tinies.setdefault(names[-1], _TinyPair(unit, what, call, joined))
        return TinyRef(bundle=names[0], kept=names[1])


def _surveyed(teacher: nn.Module, recipe: ProfileRecipe) -> _Survey:
    example = torch.zeros(1, 3, *(recipe.preprocess.size_hw or recipe.frame_hw))
    net = to_delta(teacher, example, recipe.delta).net
    joins = net.units
    layers = fixed_layers(net.network, joins)
    structure, calls = traced(net.network.eval(), example, {**joins, **layers})
    candidates = {name: join.candidates for name, join in joins.items()}
    return _Survey(net, layers, candidates, structure, calls)


def _planned(survey: _Survey) -> _Plan:
    plan = _Plan()
    settled = survey.settled()
    for part in survey.calls:
        if part not in settled:
            plan.add(survey, part)
    return plan


def _whole(net: DeltaNet, recipe: ProfileRecipe, choice: Choice) -> Origin:
    net = copy.deepcopy(net)
    for name, unit in net.units.items():
        unit.keep(choice[name])
    drop_unused(net, torch.zeros(1, 3, *(recipe.preprocess.size_hw or recipe.frame_hw)))
    made = {"choice": choice, "teacher": recipe.teacher, "delta": recipe.delta, "frame_hw": recipe.frame_hw}
    return Origin(net, recipe.task, recipe.preprocess, {"profile": _plain(made), **_facts(recipe)})


def _facts(recipe: ProfileRecipe) -> dict[str, Any]:
    """What of a recipe and this SDK a bundle depends on, beside its network."""
    keys = {"backend", "precision", "preprocess", "int8", "decode_stride"}
    return {**recipe.model_dump(mode="json", include=keys), "sdk_version": edge_sdk.__version__}


def _plain(value: Any) -> Any:
    """As it is read back from JSON."""
    return json.loads(json.dumps(value, default=lambda each: each.model_dump(mode="json")))


def _reference(survey: _Survey, recipe: ProfileRecipe) -> Choice:
    if recipe.reference is None:
        return {unit: names[0] for unit, names in survey.candidates.items()}
    _check_choice(survey.candidates, recipe.reference)
    return dict(recipe.reference)


def _check_choice(candidates: Mapping[str, tuple[str, ...]], choice: Mapping[str, str]) -> None:
    for unit, candidate in choice.items():
        if candidate not in candidates.get(unit, ()):
            found = (
                ", ".join(candidates[unit]) if unit in candidates else f"a unit of {', '.join(candidates)}"
            )
            raise RecipeError(f"'reference': '{unit}': expected one of {found}, got '{candidate}'.")
    if missing := [unit for unit in candidates if unit not in choice]:
        raise RecipeError(f"'reference': expected a candidate for every unit, got none for '{missing[0]}'.")


def _students(survey: _Survey, recipe: ProfileRecipe) -> dict[str, Choice]:
    """Different students, drawn evenly."""
    there = prod(len(names) for names in survey.candidates.values())
    if recipe.check > there:
        raise RecipeError(f"'check': the candidates make {there} students in all, got {recipe.check}.")
    draw = np.random.default_rng(recipe.seed)
    drawn: dict[tuple[str, ...], Choice] = {}
    while len(drawn) < recipe.check:
        choice = {unit: names[draw.integers(len(names))] for unit, names in survey.candidates.items()}
        drawn.setdefault(tuple(choice.values()), choice)
    return {f"student_{number:02d}": choice for number, choice in enumerate(drawn.values())}


def _is_there(place: Path, origin: Origin) -> bool:
    """Whether an earlier, stopped run left this very bundle."""
    try:
        return Bundle.open(place).manifest.provenance.get("training") == origin.provenance
    except EdgeSdkError:
        return False


def _require_place(folder: Path) -> None:
    require_writable(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "tiny").is_dir():
        raise OutputError(
            f"{folder}: something else is in its place.", hint="Name another folder with --out."
        )
