"""The demo's clips, and the plan of their benchmark: recipes, names, tables and claims. Nothing is trained here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from edge_sdk import demo_clips
from edge_sdk.distill.clips.checkpoints import make_clip_network
from edge_sdk.distill.clips.recipes import ClipDistillRecipe, ClipTrainRecipe
from edge_sdk.evaluate.clips import ClipEvaluation, evaluate_clips
from edge_sdk.evaluate.clips.recipe import ClipEvaluateRecipe
from edge_sdk.settings import parse_settings
from edge_sdk.video import open_clips
from tests.clip_bundles import random_clips, write_clip_bundle, write_clips

ROOT = Path(__file__).parents[2]
MODULES = ("settings", "plan", "measure", "words", "run")


@pytest.fixture(scope="module")
def benchmark() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, which lie in no package."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(ROOT / "benchmarks" / "clips"))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.pop(0)
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def test_the_demos_trainings_are_valid_recipes(tmp_path):
    """The demo itself takes a minute: ``edge-sdk demo clips``."""
    recipes = demo_clips.trainings(tmp_path, 0)
    assert [type(recipe) for recipe in recipes.values()] == [
        ClipTrainRecipe,
        ClipTrainRecipe,
        ClipDistillRecipe,
    ]
    for recipe in recipes.values():
        text = yaml.safe_dump(recipe.model_dump(mode="json"))
        assert type(recipe).model_validate(yaml.safe_load(text)) == recipe
    taught = recipes["distil student"]
    assert taught.teacher.module.checkpoint == recipes["train teacher"].out / "model.pt"
    assert taught.student.module == recipes["train rival"].model.module
    assert len({recipe.out for recipe in recipes.values()}) == 3
    training, test = open_clips(taught.data.train[0]), open_clips(demo_clips.clip_uri(4, 0))
    assert not {clip.uri for clip in training} & {clip.uri for clip in test}
    with test[0].open() as source:
        assert (source.size_hw, source.frame_count) == ((demo_clips.SIDE,) * 2, demo_clips.LENGTH)


@pytest.mark.parametrize("name", ["FULL", "TRIAL"])
def test_every_training_of_the_benchmark_is_a_recipe_with_its_teacher_before_it(benchmark, name):
    every = benchmark["plan"].trainings(getattr(benchmark["settings"], name))
    done: set[str] = set()
    for training in every.values():
        recipe = training.recipe
        text = yaml.safe_dump(recipe.model_dump(mode="json"))
        assert type(recipe).model_validate(yaml.safe_load(text)) == recipe
        if training.after is not None:
            assert training.after in done
            assert recipe.teacher.module.checkpoint == every[training.after].result
        done.add(training.name)
    assert len({training.recipe.out for training in every.values()}) == len(every)
    tested = {getattr(benchmark["settings"], name).fewer.clips.test_uri}
    assert not tested & {uri for training in every.values() for uri in training.recipe.data.train}


def test_every_network_of_the_benchmark_can_be_made(benchmark):
    models = {}
    for training in benchmark["plan"].trainings(benchmark["settings"].FULL).values():
        recipe = training.recipe
        for model in (
            (recipe.model,) if isinstance(recipe, ClipTrainRecipe) else (recipe.teacher, recipe.student)
        ):
            models[str(model.module.arguments), model.module.factory] = model
    for model in models.values():
        bare = model.module.model_copy(update={"checkpoint": None})
        assert sum(parameter.numel() for parameter in make_clip_network(bare).parameters()) > 0


def test_a_changed_setting_is_another_training(benchmark):
    settings, plan = benchmark["settings"], benchmark["plan"]
    before = plan.trainings(settings.TRIAL)
    course = replace(settings.TRIAL.fewer.teacher, lr=0.5)
    after = plan.trainings(replace(settings.TRIAL, fewer=replace(settings.TRIAL.fewer, teacher=course)))
    changed = {name for name in before if before[name].recipe.out != after[name].recipe.out}
    # Teachers of that table, and every student whose frozen teacher is one of them.
    wanted = {
        name
        for name, one in before.items()
        if one.table in ("fewer", "losses", "samplings")
        and (one.row == "teacher" or (one.after is not None and one.after.startswith("fewer")))
    }
    assert changed == wanted
    assert wanted


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> ClipEvaluation:
    root = tmp_path_factory.mktemp("world")
    for name, samples in (("teacher", 12), ("student", 3), ("rival", 1)):
        write_clip_bundle(root / name, samples)
    write_clips(root / "list", random_clips(1))
    data = {
        "bundle": root / "student", "teacher": root / "teacher", "rival": root / "rival",
        "source": str(root / "list"), "repeats": 1, "timed": 1, "threads": 1,
    }  # fmt: skip
    return evaluate_clips(parse_settings(data, ClipEvaluateRecipe, "recipe"))


def _as(evaluation: ClipEvaluation, top1: dict[str, float], speedup: float, macs: int) -> ClipEvaluation:
    """The evaluation with other figures."""
    rows = []
    for row in evaluation.rows:
        timing = row.timing
        if row.name == "student":
            faster = timing.speedup.model_copy(update={"median": speedup})
            timing = timing.model_copy(update={"speedup": faster})
        changes = {"scores": row.scores | {"top1": top1[row.name]}, "timing": timing}
        rows.append(row.model_copy(update=changes | {"macs": macs if row.name == "student" else 1000}))
    return evaluation.model_copy(update={"rows": tuple(rows)})


@pytest.mark.parametrize(
    ("top1", "speedup", "macs", "missed"),
    [
        ((0.90, 0.885, 0.86), 3.1, 149, set()),
        ((0.90, 0.875, 0.85), 3.1, 149, {"points below"}),
        ((0.90, 0.89, 0.88), 3.1, 149, {"points above"}),
        ((0.90, 0.885, 0.86), 2.9, 149, {"3 times faster"}),
        ((0.90, 0.885, 0.86), 1.2, 149, {"3 times faster", "measured time"}),
        ((0.90, 0.885, 0.86), 3.1, 151, {"multiply-accumulates"}),
    ],
)
def test_claims_hold_where_they_should_and_nowhere_else(benchmark, evaluation, top1, speedup, macs, missed):
    words, plan = benchmark["words"], benchmark["settings"].TRIAL
    shown = _as(evaluation, dict(zip(("teacher", "student", "rival"), top1, strict=True)), speedup, macs)
    networks = [("fewer", name) for name in plan.fewer.families] + [
        ("smaller", name) for name in plan.smaller.networks
    ]
    every = benchmark["plan"].trainings(plan)
    notes = {name: {"figures": {"top1": 0.5}, "seconds": 1.0, "commit": "abc"} for name in every}
    found = words.Found(plan, every, notes, {(*key, 0): shown for key in networks})
    proofs = words.claims(found)
    assert len(proofs) == 3 * 4 + 3 * 3
    for claim, _, holds in proofs:
        assert holds != any(part in claim for part in missed), claim
    text = words.results(found, "python run.py", proofs)
    assert text.count("**no**") == sum(not holds for _, _, holds in proofs)
    assert f"| hrnn | teacher | {100 * top1[0]:.1f} |" in text
    assert "50.0" in text
    assert len(words.document(found, "python run.py", proofs)["trainings"]) == len(every)


def test_a_cell_over_seeds(benchmark):
    spread = benchmark["words"].spread
    assert (spread([]), spread([90.0]), spread([90.0, 92.0])) == ("", "90.0", "91.0 (90.0-92.0)")
