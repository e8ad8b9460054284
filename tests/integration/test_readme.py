"""The README's way from a network of one's own to a running pair, typed as it stands there, at a small size."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from edge_sdk import Bundle, open_sink, open_source
from edge_sdk.cli import app

torch = pytest.importorskip("torch")
for _package in ("lightning_fabric", "onnxscript", "onnxslim", "jinja2", "matplotlib"):
    pytest.importorskip(_package)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STEPS = README[README.index("## Your own model") : README.index("## The stages")]

# A network that knows nothing of edge_sdk: nested containers, a depthwise convolution, one called twice.
NETWORKS = """
from torch import nn

class Network(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.body = nn.ModuleList([
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 32, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        ])
        self.head = nn.Conv2d(32, classes, 1)

    def forward(self, image):
        x = self.body[0](self.stem(image))
        return self.head(self.body[1](self.body[1](x)))

def make_network(classes):
    return Network(classes)
"""

# What makes the recipes small; everything else is as in the README.
SMALLER = {
    "[480, 640]": "[48, 64]",
    "[384, 512]": "[32, 48]",
    "steps: 2000, batch: 4": "steps: 2, batch: 2, workers: 0, accelerator: cpu",
    "clips: 32, frames: 10": "clips: 2, frames: 4",
    "max_drop: 0.5": "max_drop: 100, repeats: 1",  # two steps of training teach nothing that could be kept
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a reader has: a package, a checkpoint, recordings; and the recipes that the README shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").touch()
    (tmp_path / "my_package/networks.py").write_text(NETWORKS)
    from my_package.networks import make_network  # type: ignore[import-not-found]

    torch.manual_seed(0)
    torch.save(make_network(3).state_dict(), "my_network.pt")
    for seed, name in enumerate(("day.mp4", "night.mp4", "clip.mp4")):
        scene = open_source(f"synthetic:shapes?height=48&width=64&frames=12&seed={seed}")
        with open_sink(name, fps=scene.fps, size_hw=scene.size_hw) as sink:
            for frame in scene:
                sink.write(frame.image)
    for block in re.findall(r"```yaml\n(.*?)```", STEPS, re.DOTALL):
        named = re.match(r"# (\w+\.yaml)\n", block)
        assert named is not None
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        Path(named[1]).write_text(block)
    return tmp_path


def test_five_steps_lead_to_a_running_pair_and_its_engines(desk: Path) -> None:
    assert re.findall(r"^\*\*(\d)\. ", STEPS, re.MULTILINE) == list("12345")
    assert all(large in STEPS for large in SMALLER)
    assert sorted(path.name for path in desk.glob("*.yaml")) == [
        "my_build.yaml",
        "my_model.yaml",
        "my_pair.yaml",
        "my_set.yaml",
        "my_student.yaml",
    ]
    commands = [
        shlex.split(line)
        for block in re.findall(r"```console\n(.*?)```", STEPS, re.DOTALL)
        for line in block.splitlines()
    ]
    verbs = ["export", "run", "distill", "export", "run", "evaluate", "calibrate", "build"]
    assert [words[1] for words in commands] == verbs
    for program, *words in commands:
        assert program == "edge-sdk"
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output, result.exception)
    assert Bundle.open("my_model").manifest.method == "per_frame"
    pair = Bundle.open("my_pair")
    assert (pair.manifest.method, pair.size_hw, pair.manifest.name) == ("delta", (48, 64), "my_pair")
    assert {"onnxruntime-float32", "onnxruntime-int8"} <= set(pair.manifest.engines)
    assert "onnxruntime" in pair.manifest.chosen
    for video in ("check.mp4", "annotated.mp4"):
        with open_source(video) as source:
            assert source.frame_count == 12
    rows = json.loads(Path("report/evaluation.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["variant"] in ("teacher", "delta")] == [
        "teacher",
        "delta K=5",
        "delta K=10",
    ]
    assert (desk / "report/report.html").is_file()


def test_the_recipes_keys_that_the_readme_names_exist() -> None:
    from edge_sdk.distill import DistillRecipe

    def field(path: str) -> bool:
        kind: Any = DistillRecipe
        for name in path.split("."):
            if name not in kind.model_fields:
                return False
            kind = kind.model_fields[name].annotation
        return True

    method = README[
        README.index("## The method and its settings") : README.index("## What it is compared with")
    ]
    named = set(re.findall(r"`((?:delta|loss|data|optimiser)\.[\w.]+)`", method))
    assert len(named) > 12
    assert {name for name in named if not field(name)} == set()
    defaults = DistillRecipe.model_validate(
        yaml.safe_load(
            "{out: o, teacher: {factory: 'a:b'}, task: {classes: [a]}, data: {video: [v]}, loop: {steps: 1}}"
        )
    )
    assert f"| {defaults.delta.gamma} |" in method
    assert (defaults.delta.skip_first, defaults.delta.skip_last, defaults.data.max_gap) == (1, 1, 9)
    assert (defaults.loss.feature, defaults.loss.feature_until, defaults.loss.cost) == (0.01, 1 / 3, 0.1)
    assert (defaults.teacher_lr, defaults.loss.cost_by, defaults.loss.task.source) == (0, "macs", "both")


def test_the_recipe_and_program_of_a_stream_that_is_learned_are_valid() -> None:
    from edge_sdk.compile import ExportRecipe

    section = README[README.index("## Learning on the stream") : README.index("## Watching a run")]
    (recipe,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    found = ExportRecipe.model_validate(yaml.safe_load(recipe))
    assert found.online is not None
    assert found.online.members == ((0, 1), (2,))
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(program.splitlines()) <= 10
    names: dict[str, Any] = {}
    exec("\n".join(program.splitlines()[:4]), names)
    assert names["learning"].state == Path("learned")


def test_every_verb_is_there_and_the_stages_name_each() -> None:
    missing = README[README.index("## Not there yet") :].split("## ")[1]
    assert re.findall(r"^- `(\w+)`", missing, re.MULTILINE) == []
    listed = re.findall(
        r"^  (\w+) ", CliRunner().invoke(app, ["--help"]).stdout.split("Commands:")[1], re.MULTILINE
    )
    stages = README[README.index("## The stages") :].split("```")[0]
    named = [
        verb
        for row in re.findall(r"^\| (`[^|]*`) \|", stages, re.MULTILINE)
        for verb in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(named) == sorted(set(listed) - {"demo"})


def test_the_table_of_results_is_what_the_tuning_found() -> None:
    folder = ROOT / "benchmarks" / "camvid" / "tune"
    found = json.loads((folder / "results.json").read_text())
    made = subprocess.run(
        [sys.executable, str(folder / "table.py")],
        input=json.dumps(found), capture_output=True, text=True, check=True,
    )  # fmt: skip
    results = README[README.index("## Results") : README.index("## Not there yet")]
    assert made.stdout in results
    conditions = found["conditions"]
    assert f"commit `{conditions['commit']}`" in results
    assert "+changes" not in conditions["commit"]
    assert f"{conditions['cores']} cores of an {conditions['cpu']}" in results
