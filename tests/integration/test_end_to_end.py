"""The whole way through the command, with recipes, on synthetic video: files, JSON, and what a device needs of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from edge_sdk import Bundle, EdgeRunner, open_source
from edge_sdk.cli import app
from edge_sdk.video import SYNTHETIC_CLASSES

for _package in ("torch", "lightning_fabric", "onnxscript", "onnxslim", "jinja2", "matplotlib"):
    pytest.importorskip(_package)

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 48, 64
NETWORK = {"factory": "edge_sdk.distill.models:small_segmenter"}
TASK = {"classes": list(SYNTHETIC_CLASSES)}
LOOP = {"steps": 3, "batch": 2, "workers": 0, "accelerator": "cpu"}
AUGMENT = {"crop_hw": [32, 48]}


def scene(seed: int, frames: int = 8) -> str:
    return f"synthetic:shapes?height={HEIGHT}&width={WIDTH}&frames={frames}&seed={seed}"


def edge_sdk(*words: str | Path) -> Any:
    """Run the command and return its JSON, or ``None`` where it was not asked for."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout) if "--json" in words else None


def write_recipe(path: Path, **values: Any) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def trained(work: Path) -> dict[str, Any]:
    module = {**NETWORK, "arguments": {"classes": len(SYNTHETIC_CLASSES), "width": 16}}
    recipe = write_recipe(
        work / "train.yaml", out=str(work / "teacher"), module=module, task=TASK, data=[scene(1), scene(2)],
        validation=[scene(3)], augment=AUGMENT, loop=LOOP,
    )  # fmt: skip
    return edge_sdk("train", recipe, "--json")


@pytest.fixture(scope="module")
def distilled(work: Path, trained: dict[str, Any]) -> dict[str, Any]:
    module = {**NETWORK, "arguments": {"classes": len(SYNTHETIC_CLASSES), "width": 16}}
    recipe = write_recipe(
        work / "distill.yaml", out=str(work / "student"), teacher={**module, "checkpoint": trained["checkpoint"]},
        task=TASK, data={"video": [scene(1), scene(2)], "max_gap": 3}, validation=[scene(3)], intervals=[4],
        augment=AUGMENT, loop=LOOP,
    )  # fmt: skip
    return edge_sdk("distill", recipe, "--json")


@pytest.fixture(scope="module")
def exported(work: Path, distilled: dict[str, Any]) -> dict[str, Any]:
    recipe = write_recipe(
        work / "export.yaml", checkpoint=distilled["checkpoint"], frame_hw=[HEIGHT, WIDTH],
        out=str(work / "bundle"), schedule={"kind": "every", "interval": 4},
    )  # fmt: skip
    return edge_sdk("export", recipe, "--json")


def test_training_leaves_a_checkpoint_and_its_figures(trained: dict[str, Any], work: Path) -> None:
    assert trained["checkpoint"] == str(work / "teacher/model.pt")
    assert {path.name for path in (work / "teacher").iterdir()} == {"model.pt", "last.pt"}
    assert set(trained["figures"]) >= {"loss", "miou"}
    assert 0 <= trained["figures"]["miou"] <= 1


def test_distilling_leaves_a_student_and_says_what_became_of_each_layer(
    distilled: dict[str, Any], work: Path
) -> None:
    assert distilled["checkpoint"] == str(work / "student/student.pt")
    assert set(distilled["figures"]) >= {"loss", "task", "feature", "cost", "miou_k1", "miou_k4"}
    layers = {layer["name"]: layer for layer in distilled["layers"]}
    assert not layers["stem.0.0"]["converted"]
    assert layers["stem.0.0"]["reason"] == "first"
    converted = [layer for layer in layers.values() if layer["converted"]]
    assert converted
    assert all(0 < layer["student_macs"] <= layer["macs"] for layer in converted)


def test_exporting_leaves_a_bundle_that_knows_where_it_came_from(
    exported: dict[str, Any], distilled: dict[str, Any], work: Path
) -> None:
    bundle = Bundle.open(exported["path"])
    assert bundle.path == work / "bundle"
    assert set(bundle.manifest.files) >= {"keyframe.onnx", "delta.onnx"}
    assert bundle.manifest.method == "delta"
    assert bundle.manifest.task.classes == SYNTHETIC_CLASSES
    assert 0 < exported["delta_macs"] < exported["keyframe_macs"]
    assert exported["state_bytes"] == bundle.state_bytes > 0
    provenance: Any = bundle.manifest.provenance
    assert provenance["export"]["checkpoint"] == distilled["checkpoint"]
    assert provenance["training"]["recipe"]["data"]["video"] == [scene(1), scene(2)]
    assert provenance["training"]["figures"]["miou_k4"] == distilled["figures"]["miou_k4"]


@pytest.mark.parametrize("source", ["scene", "video", "folder"])
def test_running_writes_a_video_that_plays_from_any_source(
    source: str, exported: dict[str, Any], work: Path, tmp_path: Path
) -> None:
    uri: str | Path = scene(4)
    if source != "scene":
        # What one run wrote is what the next one reads.
        uri = tmp_path / ("frames" if source == "folder" else "clip.avi")
        edge_sdk("run", work / "bundle", scene(4), "--out", f"{uri}/" if source == "folder" else uri)
    told = edge_sdk("run", work / "bundle", uri, "--out", tmp_path / "annotated.mp4", "--json")
    assert [told[key] for key in ("frames", "keyframes", "deltas")] == [8, 2, 6]
    with open_source(tmp_path / "annotated.mp4") as video:
        frames = list(video)
    assert [frame.seq for frame in frames] == list(range(8))
    assert {frame.image.shape for frame in frames} == {(HEIGHT, WIDTH, 3)}
    assert all(frame.image.std() > 0 for frame in frames)


def test_the_command_answers_as_the_library_does(
    exported: dict[str, Any], work: Path, tmp_path: Path
) -> None:
    edge_sdk("run", work / "bundle", scene(4), "--results", tmp_path / "lines.jsonl", "--interval", "3")
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    with EdgeRunner(work / "bundle") as runner, open_source(scene(4)) as source:
        first = next(iter(runner.stream(source)))[1]
        share = float((first.mask == np.argmax(np.bincount(first.mask.ravel()))).mean())
    assert max(lines[0]["share"].values()) == pytest.approx(share, abs=1e-6)
    assert [line["kind"] for line in lines] == (["keyframe", "delta", "delta"] * 3)[:8]


def test_evaluating_puts_all_in_one_table_and_a_report(exported: dict[str, Any], work: Path) -> None:
    recipe = write_recipe(
        work / "evaluate.yaml", bundle=str(work / "bundle"), source=scene(5), intervals=[2, 4], repeats=1,
        out=str(work / "report"),
    )  # fmt: skip
    told = edge_sdk("evaluate", "--recipe", recipe, "--json")
    names = [row["name"] for row in told["rows"]]
    assert names == [
        "teacher (keyframe step)",
        *(f"{kind} K={k}" for k in (2, 4) for kind in ("copy", "flow", "delta")),
    ]
    rows = {row["name"]: row for row in told["rows"]}
    assert rows["teacher (keyframe step)"]["agreement"] == 1
    # At the keyframe the delta runner is the teacher.
    assert rows["delta K=4"]["by_distance"][0]["agreement"] == pytest.approx(1, abs=1e-6)
    assert rows["delta K=4"]["macs"] < rows["teacher (keyframe step)"]["macs"]
    assert {path.name for path in (work / "report").iterdir()} == {"evaluation.json", "report.html"}
    assert json.loads((work / "report/evaluation.json").read_text())["recipe"]["repeats"] == 1


def test_the_script_exports_the_same_bundle(exported: dict[str, Any], work: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "engines/export.py"), str(work / "export.yaml"), "--json"]
    done = subprocess.run(
        [*script, "--out", str(tmp_path / "bundle")],
        capture_output=True, text=True, check=False, timeout=250, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    same = ("method", "frame", "state_bytes", "keyframe_macs", "delta_macs")
    assert {key: json.loads(done.stdout)[key] for key in same} == {key: exported[key] for key in same}


def test_the_demos_trainings_are_valid_recipes(tmp_path: Path) -> None:
    """The demo itself takes minutes: ``make demo``."""
    from edge_sdk import demo
    from edge_sdk.distill import DistillRecipe, TrainRecipe

    with open_source(demo._scene(0, 12)) as source:
        assert (source.size_hw, source.frame_count) == (demo.FRAME_HW, 12)
    recipes = dict(demo._training(tmp_path, (demo._scene(1, 12),), 0))
    kinds = [type(recipe) for recipe in recipes.values()]
    assert kinds == [TrainRecipe, TrainRecipe, DistillRecipe]
    for recipe in recipes.values():
        # Written out and read back: a user can start from it.
        text = yaml.safe_dump(recipe.model_dump(mode="json"))
        assert type(recipe).model_validate(yaml.safe_load(text)) == recipe
    outs = [recipe.out for recipe in recipes.values()]
    assert len(set(outs)) == 3
    teacher = recipes["distil student"].teacher
    assert teacher is not None
    assert teacher.checkpoint == recipes["train teacher"].out / "model.pt"


# As sitecustomize.py it takes effect in every Python process, also in those that the doctor starts.
ONLY_A_DEVICES_PACKAGES = """
import sys

KEPT_OUT = {"torch", "onnx", "onnxscript", "onnxslim", "lightning_fabric", "torchmetrics", "matplotlib", "jinja2"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in KEPT_OUT:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def on_a_device(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python where only the device's packages can be imported."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(ONLY_A_DEVICES_PACKAGES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, env=environment
        )

    return run


@pytest.mark.parametrize("package", ["torch", "onnx", "lightning_fabric", "matplotlib", "jinja2"])
def test_the_imitated_device_lacks_the_package(on_a_device, package: str) -> None:
    """Otherwise the tests below would show nothing."""
    assert f"No module named '{package}'" in on_a_device("-c", f"import {package}").stderr


def test_a_device_runs_the_bundle_in_a_program_of_its_own(
    on_a_device, exported: dict[str, Any], work: Path
) -> None:
    program = (
        "import sys, edge_sdk\n"
        "bundle = edge_sdk.Bundle.open(sys.argv[1])\n"
        "with edge_sdk.EdgeRunner(bundle) as runner, edge_sdk.open_source(sys.argv[2]) as source:\n"
        "    print([result.kind.value for _, result in runner.stream(source)])\n"
        "print(sorted(KEPT_OUT & set(sys.modules)))\n"
    ).replace("KEPT_OUT", "sys.modules['sitecustomize'].KEPT_OUT")
    done = on_a_device("-c", program, work / "bundle", scene(4))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str((["keyframe"] + ["delta"] * 3) * 2), "[]"]


def test_a_device_runs_the_bundle_by_command(
    on_a_device, exported: dict[str, Any], work: Path, tmp_path: Path
) -> None:
    done = on_a_device(
        "-m", "edge_sdk", "run", work / "bundle", scene(4), "--out", tmp_path / "out.mp4", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 8
    with open_source(tmp_path / "out.mp4") as video:
        assert video.frame_count == 8


def test_a_devices_doctor_finds_no_problem_and_says_what_is_absent(on_a_device) -> None:
    done = on_a_device("-m", "edge_sdk", "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["problems"] == 0
    status = {check["item"].split()[0].lower(): check["status"] for check in told["checks"]}
    assert status["torch"] == "absent"
    assert status["onnxruntime"] == "ok"


@pytest.mark.parametrize("verb", ["train", "distill", "export", "demo"])
def test_a_device_is_told_what_the_other_verbs_need(on_a_device, verb: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("out: x\n")
    done = on_a_device("-m", "edge_sdk", verb, *([] if verb == "demo" else [tmp_path / "recipe.yaml"]))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"edge-sdk {verb} needs the package torch" in line
    assert "pip install 'edge_sdk[workstation]'" in line


def test_a_report_that_cannot_be_drawn_is_refused_before_the_work(
    on_a_device, exported: dict[str, Any], work: Path, tmp_path: Path
) -> None:
    done = on_a_device("-m", "edge_sdk", "evaluate", work / "bundle", scene(5), "--out", tmp_path / "report")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--out) needs the package jinja2" in line
