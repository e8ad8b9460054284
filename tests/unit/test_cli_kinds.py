"""What ``edge-sdk train`` and ``distill`` do is said by the recipe's kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from edge_sdk.cli import app
from edge_sdk.cli.options import Device
from edge_sdk.cli.stage import TRAININGS, kind_of, read_training
from edge_sdk.errors import FileFormatError, RecipeError
from edge_sdk.settings import Settings, load_recipe

KINDS = [(verb, kind) for verb, kinds in TRAININGS.items() for kind in kinds]


def write(folder: Path, **values: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(("verb", "kind"), KINDS)
def test_a_kind_names_settings_of_that_kind_and_a_stage(verb: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("lightning_fabric")
    model, work = kind_of(verb, write(tmp_path, kind=kind)).load()
    assert issubclass(model, Settings)
    assert callable(work)
    field = model.model_fields["kind"]
    assert field.annotation.__args__ == (kind,)  # type: ignore[union-attr]


@pytest.mark.parametrize(("verb", "first"), [("train", "frames"), ("distill", "delta")])
def test_without_a_kind_a_recipe_is_what_it_always_was(verb: str, first: str, tmp_path: Path) -> None:
    assert kind_of(verb, write(tmp_path, out="o")) is TRAININGS[verb][first]


@pytest.mark.parametrize(
    ("verb", "kind", "message"),
    [
        ("train", "delta", "edge-sdk train knows frames, clips, got 'delta'. Run: edge-sdk distill"),
        ("distill", "frames", "knows delta, clips, cross, skip, got 'frames'. Run: edge-sdk train"),
        ("train", "clip", "got 'clip'. Without a kind it is frames."),
        ("distill", "", "got ''. Without a kind it is delta."),
        ("distill", None, "got None."),
        ("train", ["clips"], "got \\['clips'\\]."),
        ("train", {"clips": 1}, "got {'clips': 1}."),
        ("train", 3, "got 3."),
    ],
)
def test_another_kind_is_an_error_that_names_those_there_are(
    verb: str, kind: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        kind_of(verb, write(tmp_path, kind=kind))


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("lightning_fabric")
    done = CliRunner().invoke(app, ["train", str(write(tmp_path, kind="skip"))])
    assert done.exit_code == 2
    assert "got 'skip'. Run: edge-sdk distill" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_recipe_of_clips_is_read_as_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("lightning_fabric")
    done = CliRunner().invoke(app, ["distill", str(write(tmp_path, kind="clips", out="o")), "--json"])
    assert done.exit_code == 2
    assert "'student' is missing" in done.stderr
    assert "'loss' is missing" in done.stderr


def test_what_is_no_recipe_is_refused_before_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("- kind: clips\n")
    with pytest.raises(FileFormatError, match="expected keys and values, got list"):
        kind_of("train", path)


def test_a_device_has_no_meaning_where_nothing_is_trained(tmp_path: Path) -> None:
    class Still(Settings):
        loop: None = None

    with pytest.raises(RecipeError, match=r"--device.*nothing in it is trained"):
        read_training(write(tmp_path), Still, out=None, device=Device.cpu)


@pytest.mark.parametrize("name", ["TrainRecipe", "DistillRecipe"])
def test_recipes_kept_before_there_were_kinds_still_load(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from edge_sdk import distill

    task = {"classes": ["a"]}
    common = {"out": "o", "task": task, "loop": {"steps": 1}}
    own: dict[str, dict[str, object]] = {
        "TrainRecipe": {"module": {"factory": "a:b"}, "data": ["x"]},
        "DistillRecipe": {"teacher": {"factory": "a:b"}, "data": {"stills": ["x"]}},
    }
    kept = json.loads(json.dumps({**common, **own[name]}))
    recipe = load_recipe(write(tmp_path, **kept), getattr(distill, name))
    assert recipe.kind == next(iter(TRAININGS["train" if name == "TrainRecipe" else "distill"]))
