"""Every recipe in the repository is one that its stage takes."""

from __future__ import annotations

import importlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_sdk.bench.tune import TuneRecipe
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.cli.stage import TRAININGS
from edge_sdk.evaluate.front.recipe import FrontRecipe
from edge_sdk.evaluate.recipe import EvaluateRecipe
from edge_sdk.settings import Settings, load_recipe
from edge_sdk.video.clips import CalibrationClipsRecipe

pytest.importorskip("torch")  # edge_sdk.distill and edge_sdk.compile load it

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    path for folder in ("benchmarks", "calibration", "engines") for path in (ROOT / folder).rglob("*.yaml")
)
BUILT = re.compile(r"(^|/)(runs|built)/")


def kind_of(data: dict[str, Any]) -> type[Settings]:
    """The settings model of the stage that a recipe is for, told by keys that no other stage has."""
    from edge_sdk.compile import CalibrateRecipe, ExportRecipe
    from edge_sdk.distill import DistillRecipe, TrainRecipe

    # Trainings say their kind; those without one are told by their keys, as all other stages are.
    training = "distill" if "teacher" in data else "train"
    if data.get("kind") in TRAININGS[training]:
        return TRAININGS[training][data["kind"]].load()[0]
    kinds: tuple[tuple[str, type[Settings]], ...] = (
        ("pairs", FrontRecipe),
        ("frame_hw", ExportRecipe),
        ("draw", CalibrateRecipe),
        ("sources", CalibrationClipsRecipe),
        ("clips", CalibrateRecipe),
        ("calibration", BuildRecipe),
        ("write", TuneRecipe),
        ("bundle", EvaluateRecipe),
        ("module", TrainRecipe),
        ("teacher", DistillRecipe),
    )
    return next(kind for key, kind in kinds if key in data)


def values(data: Any) -> list[tuple[str, Any]]:
    """Every key and its value, at any depth."""
    if isinstance(data, list):
        return [pair for item in data for pair in values(item)]
    if not isinstance(data, dict):
        return []
    return [pair for key, item in data.items() for pair in ((key, item), *values(item))]


def test_the_folders_hold_recipes() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in RECIPES} == {"benchmarks", "calibration", "engines"}


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_a_recipe_is_taken_by_its_stage(path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe = load_recipe(path, kind_of(data))
    # What a recipe makes goes where git does not look.
    out = getattr(recipe, "out", None)
    assert out is None or BUILT.search(str(out)), out
    for key, value in values(data):
        if key == "factory" and not value.startswith("my_package."):
            module, _, name = value.partition(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_the_benchmarks_recipes_hang_together() -> None:
    from edge_sdk.compile import CalibrateRecipe, ExportRecipe
    from edge_sdk.distill import DistillRecipe, TrainRecipe

    teacher = load_recipe(ROOT / "benchmarks/camvid/teacher.yaml", TrainRecipe)
    stages = [
        load_recipe(ROOT / f"benchmarks/camvid/{name}.yaml", DistillRecipe)
        for name in ("student", "student_long", "student_last")
    ]
    engine = load_recipe(ROOT / "engines/camvid_ddrnet.yaml", ExportRecipe)
    clips = load_recipe(ROOT / "calibration/camvid.yaml", CalibrationClipsRecipe)
    for distilled in stages:
        assert distilled.teacher.checkpoint == teacher.out / "model.pt"
        assert distilled.teacher.factory == teacher.module.factory
        assert distilled.teacher.arguments == teacher.module.arguments
        assert distilled.task.classes == teacher.task.classes
        assert distilled.delta == stages[0].delta
    for earlier, later in pairwise(stages):
        assert later.start == earlier.out / "student.pt"
    assert engine.checkpoint == stages[-1].out / "student.pt"
    recorded = load_recipe(ROOT / "calibration/camvid_set.yaml", CalibrateRecipe)
    assert (recorded.bundle, recorded.clips) == (engine.out, clips.out)
    # Neither training nor calibration sees what is measured.
    measured = {*teacher.validation, *(uri for stage in stages for uri in stage.validation)}
    pairs = [stage.data for stage in stages]
    seen = {*teacher.data, *clips.sources, *(uri for data in pairs for uri in (*data.video, *data.stills))}
    assert not {uri.split("?")[0].rstrip("/") for uri in measured} & {
        uri.split("?")[0].rstrip("/") for uri in seen
    }
