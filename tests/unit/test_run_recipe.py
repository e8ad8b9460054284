"""A run's settings as YAML: round trip, refusals, and running from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from edge_sdk import EdgeRunner, RunRecipe
from edge_sdk.cli import app
from edge_sdk.errors import EdgeSdkError, FileFormatError, MissingFileError, RecipeError
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.result import Result, StepKind
from edge_sdk.runtime.schedule import AlwaysSchedule, ChangeSchedule, EverySchedule
from edge_sdk.signing import Trust
from tests.graphs import random_images, residual

SIZE = (32, 48)
SOURCE = f"synthetic:shapes?height={SIZE[0]}&width={SIZE[1]}&frames=6&seed=1"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return residual(SIZE).write(tmp_path / "pair").path


RECIPES = [
    RunRecipe(bundle=Path("b")),
    RunRecipe(bundle=Path("b"), source="camera:0", schedule=EverySchedule(interval=7), threads=2),
    RunRecipe(bundle=Path("b"), schedule=ChangeSchedule(threshold=3.25, max_interval=40), engine="float32"),
    RunRecipe(bundle=Path("b"), schedule=AlwaysSchedule(), trust=Trust(keys=(Path("k.pub"),), min_release=3)),
    RunRecipe(
        bundle=Path("b"), backend="tensorrt", schedule=EverySchedule(interval=5), background=BackgroundKeyframes()
    ),
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_written_is_read(recipe: RunRecipe, tmp_path: Path) -> None:
    recipe.write(tmp_path / "run.yaml", header="measured on a board\n\nwith a command: # 'x'")
    assert RunRecipe.load(tmp_path / "run.yaml") == recipe
    lines = (tmp_path / "run.yaml").read_text().splitlines()
    assert lines[:4] == ["# measured on a board", "#", "# with a command: # 'x'", "bundle: b"]
    assert not any("null" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("backend: onnxruntime", RecipeError, "'bundle' is missing"),
        (
            "{bundle: b, shedule: {kind: always}}",
            RecipeError,
            "unknown key 'shedule', did you mean 'schedule'",
        ),
        ("{bundle: b, schedule: {kind: every}}", RecipeError, "interval' is missing"),
        ("{bundle: b, schedule: {kind: often}}", RecipeError, "schedule"),
        ("{bundle: b, threads: 0}", RecipeError, "'threads': .*greater than or equal to 1, got 0"),
        ("{bundle: b, background: {threads: 0}}", RecipeError, "background.threads"),
        ("{bundle: b, trust: {keys: []}}", RecipeError, "trust.keys"),
        ("{bundle: b, source: ''}", RecipeError, "'source'"),
        ("- bundle", FileFormatError, "expected keys and values, got list"),
        ("bundle: [", FileFormatError, "not readable as YAML"),
    ],
)
def test_what_is_no_run_recipe_is_refused(text, error, message, tmp_path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(error, match=message):
        EdgeRunner.from_recipe(tmp_path / "run.yaml")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.yaml"):
        EdgeRunner.from_recipe(tmp_path / "nowhere.yaml")


def test_a_runner_follows_its_recipe(bundle: Path, tmp_path: Path) -> None:
    recipe = RunRecipe(bundle=bundle, engine="float32", schedule=EverySchedule(interval=2), threads=1)
    recipe.write(tmp_path / "run.yaml")
    for given in (recipe, tmp_path / "run.yaml", str(tmp_path / "run.yaml")):
        with EdgeRunner.from_recipe(given) as runner:
            kinds = [runner(image).kind for image in random_images(4, SIZE)]
        assert kinds == [StepKind.KEYFRAME, StepKind.DELTA] * 2
    answered: list[Result] = []
    with EdgeRunner.from_recipe(recipe, threaded=True, on_result=answered.append) as runner:
        runner.submit(np.zeros((*SIZE, 3), np.uint8))
        assert runner.latest(after=-1, timeout_s=30) is not None
    assert len(answered) == 1


def test_a_policy_in_the_recipe_is_asked(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("no key")
    with pytest.raises(EdgeSdkError, match=r"key\.pub"):
        EdgeRunner.from_recipe(RunRecipe(bundle=bundle, trust=Trust(keys=(tmp_path / "key.pub",))))


def ran(*args: object):
    return CliRunner().invoke(app, ["run", *map(str, args), "--json"])


@pytest.fixture
def recipe(bundle: Path, tmp_path: Path) -> Path:
    RunRecipe(bundle=bundle, source=SOURCE, schedule=EverySchedule(interval=3)).write(tmp_path / "run.yaml")
    return tmp_path / "run.yaml"


@pytest.mark.parametrize(
    ("options", "kinds"),
    [((), (2, 4)), (("--interval", 2), (3, 3)), (("--limit", 4), (2, 2))],
)
def test_the_command_takes_a_recipe_and_options_replace_it(recipe, options, kinds) -> None:
    result = ran("--recipe", recipe, *options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["keyframes"], report["deltas"]) == kinds
    assert report["source"] == SOURCE


def test_arguments_replace_the_recipe_too(recipe, bundle, tmp_path) -> None:
    other = residual(SIZE).write(tmp_path / "other").path
    shorter = SOURCE.replace("frames=6", "frames=5")
    report = json.loads(ran(other, shorter, "--recipe", recipe).stdout)
    assert (report["bundle"], report["source"], report["frames"]) == (str(other), shorter, 5)
    # One argument beside a recipe, which names the bundle, is the source.
    report = json.loads(ran(shorter, "--recipe", recipe).stdout)
    assert (report["bundle"], report["source"], report["frames"]) == (str(bundle), shorter, 5)


def test_background_keyframes_come_from_the_recipe(bundle, tmp_path) -> None:
    data = {
        "bundle": str(bundle), "source": SOURCE, "threads": 1, "background": {"threads": 1},
        "schedule": {"kind": "every", "interval": 2},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    report = json.loads(ran("--recipe", tmp_path / "run.yaml").stdout)
    assert (report["keyframes"], report["deltas"]) == (1, 5)  # the first alone is run in turn


def test_the_commands_refusals(recipe, bundle, tmp_path) -> None:
    key = tmp_path / "key.pub"
    key.write_text("no key")
    RunRecipe(bundle=bundle).write(tmp_path / "bare.yaml")
    before = recipe.read_text()
    for args, message in (
        ((bundle,), "SOURCE: expected on the command line or in a recipe. Run: edge-sdk run BUNDLE SOURCE"),
        (("--recipe", tmp_path / "bare.yaml"), "SOURCE: expected"),
        (("--recipe", recipe, "--results", recipe), "--results: expected a place of its own"),
        (("--recipe", recipe, "--trust", key), "key.pub"),
        (("--recipe", recipe, "--engine", "tensorrt-int8"), "it has no engines 'tensorrt-int8'"),
    ):
        result = ran(*args)
        assert result.exit_code == 2, args
        assert message in result.output
    assert recipe.read_text() == before
