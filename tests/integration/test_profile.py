"""``edge-sdk profile`` for real: a small network's candidates measured on ONNX Runtime, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from edge_sdk.cli import app
from edge_sdk.profile import CostTable
from edge_sdk.profile.prepared import INDEX, ProfileIndex
from edge_sdk.settings import parse_settings

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch
from torch import nn

from edge_sdk.profile.prepare import ProfileRecipe, prepare
from edge_sdk.profile.prepare.parts import Call, fixed_layers, traced
from edge_sdk.profile.prepare.tiny import Tiny, signature

SIZE = (64, 96)
HERE = "tests.integration.test_profile"


class Forked(nn.Module):
    """A residual body, and a pool on what a layer beside it makes of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, 1, 1))
        self.side = nn.Conv2d(16, 24, 1)
        self.pool = nn.Sequential(
            nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(32, 16, 3, 1, 1)
        )
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image).relu()
        x = (self.body(x) + x).relu_()
        context = self.pool(self.side(x).relu())
        return self.last(x + nn.functional.interpolate(context, size=x.shape[-2:], mode="bilinear"))


def settings(place: Path, **changes: Any) -> dict[str, Any]:
    return {
        "out": str(place), "teacher": {"factory": f"{HERE}:Forked"}, "task": {"classes": ["a", "b", "c", "d"]},
        "delta": {"include": [], "units": {"body": ["rank/4", "kept"], "pool": ["full", "kept"]}},
        "frame_hw": list(SIZE), "threads": 1, "rounds": 40, **changes,
    }  # fmt: skip


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_a_network_is_followed_from_part_to_part() -> None:
    network = Forked().eval()
    units = {"body": network.body, "pool": network.pool}
    layers = fixed_layers(network, units)
    assert set(layers) == {"first", "side", "last"}
    structure, calls = traced(network, torch.zeros(1, 3, *SIZE), {**units, **layers})
    reads = {part: set(sources) for part, sources in structure.reads.items()}
    assert reads == {
        "first": set(), "body": {"first"}, "side": {"first", "body"}, "pool": {"side"},
        "last": {"first", "body", "pool"},
    }  # fmt: skip
    assert structure.answer == ("last",)
    assert calls["pool"] == (Call((1, 24, 32, 48), (1, 16, 16, 24)),)


@pytest.mark.parametrize(
    "gives", [(1, 16, 32, 48), (1, 16, 16, 24), (1, 8, 11, 16), (1, 8, 1, 1), (1, 4, 64, 96)]
)
def test_a_tiny_network_takes_units_of_any_output_size(gives: tuple[int, ...]) -> None:
    unit = nn.Sequential(nn.AdaptiveAvgPool2d(gives[2:]), nn.Conv2d(16, gives[1], 1))
    tiny = Tiny(unit, Call((1, 16, 32, 48), gives))
    assert tiny(torch.zeros(1, 3, 32, 48)).shape == (1, 2, *gives[2:])


def test_signatures_tell_apart_what_takes_another_time() -> None:
    call = Call((1, 16, 8, 8), (1, 16, 8, 8))
    layers = [
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 1),
        None,
    ]
    found = [signature(layer, call, joined) for layer in layers for joined in (False, True)]
    found.append(signature(layers[0], Call((1, 16, 8, 9), (1, 16, 8, 9)), True))
    assert len(set(found)) == len(found)
    assert signature(nn.Conv2d(16, 16, 3, padding=1), call, True) == found[1]  # other weights, the same time


def test_a_recipe_is_prepared_measured_and_checked(tmp_path: Path) -> None:
    recipe = tmp_path / "profile.yaml"
    recipe.write_text(yaml.safe_dump(settings(tmp_path / "out", check=1)))
    result = invoke("profile", recipe, "--json")
    assert result.exit_code == 0, result.output
    table = CostTable.load(tmp_path / "out/table.json")
    assert json.loads(result.stdout) == json.loads(table.to_json())
    assert (table.backend, table.precision, table.rounds) == ("onnxruntime", "float32", 40)
    assert {unit: set(found) for unit, found in table.units.items()} == {
        "body": {"rank/4", "kept"}, "pool": {"full", "kept"},
    }  # fmt: skip
    assert set(table.fixed) == {"side"}  # the only layer that can vanish
    assert table.structure.vanished({"body": "rank/4", "pool": "kept"}) == ("side",)
    assert table.cost("pool", "kept") == 0 < table.cost("pool", "full") < table.reference.ms.median
    assert table.reference.choice == {"body": "rank/4", "pool": "full"}
    assert table.predict(table.reference.choice) == pytest.approx(table.reference.ms.median)
    (student,) = table.checked
    assert student.predicted_ms == pytest.approx(table.predict(student.choice))


def test_an_int8_table_is_measured_without_torch_and_onnx(tmp_path: Path) -> None:
    recipe = tmp_path / "profile.yaml"
    delta = {"include": [], "units": {"body": ["rank/4", "kept"], "pool": ["kept"]}}
    recipe.write_text(yaml.safe_dump(settings(tmp_path / "int8", precision="int8", delta=delta)))
    result = invoke("profile", recipe, "--prepare-only")
    assert result.exit_code == 0, result.output
    assert "On the device run: edge-sdk profile int8" in result.stdout
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript'): sys.modules[name] = None\n"
        "from edge_sdk.cli import main\n"
        f"sys.argv = ['edge-sdk', 'profile', {str(tmp_path / 'int8')!r}, '--rounds', '7']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Milliseconds above keeping the unit" in done.stdout
    table = CostTable.load(tmp_path / "int8/table.json")
    assert (table.precision, table.rounds, table.checked) == ("int8", 7, ())
    assert table.units["pool"] == {"kept": 0.0}
    assert table.fixed == {}  # what fed the pool alone is in no student
    index = ProfileIndex.load(tmp_path / "int8" / INDEX)
    for name in index.bundles():
        assert (tmp_path / "int8" / name / "engines/onnxruntime-int8/delta.json").is_file()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"precision": "float16"}, ["expected float32 or int8 for onnxruntime"]),
        ({"task": {"kind": "classification", "classes": ["a"]}}, ["'task.kind': expected segmentation"]),
        ({"rounds": 0}, ["'rounds'"]),
        ({"clock": "processor", "threads": 2}, ["'clock': processor needs", "onnxruntime with threads: 2"]),
        ({"clock": "processor", "backend": "tensorrt"}, ["'clock': processor needs", "got tensorrt"]),
        ({"rate": 1}, ["unknown key 'rate'"]),
        ({"reference": {"body": "half", "pool": "full"}}, ["'reference': 'body'", "rank/4, kept", "'half'"]),
        ({"reference": {"bodies": "kept"}}, ["'reference': 'bodies'", "a unit of body, pool"]),
        ({"reference": {"body": "kept"}}, ["'reference'", "got none for 'pool'"]),
        ({"check": 5}, ["'check': the candidates make 4 students in all, got 5"]),
        ({"delta": {"include": [], "units": {"bodies": ["kept"]}}}, ["bodies"]),
        ({"out": HERE.replace(".", "/") + ".py"}, ["cannot be written"]),
        ({"out": "tests"}, ["something else is in its place", "--out"]),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    recipe = tmp_path / "profile.yaml"
    recipe.write_text(yaml.safe_dump(settings(tmp_path / "out", **changes)))
    result = invoke("profile", recipe)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--prepare-only"], "--prepare-only: {tmp} is prepared already"),
        (["--check", "3"], "--check: {tmp} is prepared already"),
        (["--out", "x"], "--out: {tmp} is prepared already"),
        ([], "{tmp}: expected a prepared folder, it holds no profile.json"),
    ],
)
def test_a_folder_takes_no_options_of_a_recipe(tmp_path: Path, args: list[str], part: str) -> None:
    result = invoke("profile", tmp_path, *args)
    assert result.exit_code == 2
    assert part.format(tmp=tmp_path) in result.stderr


def test_a_unit_that_is_no_map_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    with pytest.raises(TypeError, match="expected '1' to map one tensor of four axes to another"):
        traced(network, torch.zeros(1, 3, *SIZE), {"1": network[1]})


def test_a_stopped_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_sdk.profile.prepare import stage

    written: list[Path] = []
    monkeypatch.setattr(stage, "write_pair", lambda origin, hw, place, recipe: written.append(place))
    monkeypatch.setattr(stage, "_is_there", lambda place, origin: place.name == "reference")
    index = prepare(parse_settings(settings(tmp_path / "out"), ProfileRecipe, "test"))
    assert sorted(index.bundles()) == sorted(
        [*(f"{place.parent.name}/{place.name}" for place in written), "whole/reference"]
    )
