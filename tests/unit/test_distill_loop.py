"""The training loop: resuming, stopping, writing, and several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.delta_recipe import DistillRecipe  # noqa: E402
from edge_sdk.distill.distil import distill, load_student  # noqa: E402
from edge_sdk.distill.frames import FrameSet, FrameToInput  # noqa: E402
from edge_sdk.distill.loop import Objective, fit  # noqa: E402
from edge_sdk.distill.modules import load_module, read_checkpoint, read_weights, save_checkpoint  # noqa: E402
from edge_sdk.distill.recipes import LoopSettings, ModuleSettings, Optimiser, TrainRecipe  # noqa: E402
from edge_sdk.distill.train import frame_miou, train_teacher  # noqa: E402
from edge_sdk.errors import CheckpointError, EdgeSdkError, RecipeError, ShapeError  # noqa: E402
from edge_sdk.revision import commit_of_sources  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from edge_sdk.tasks.base import TaskSpec  # noqa: E402
from edge_sdk.video.synthetic import SYNTHETIC_CLASSES  # noqa: E402
from tests import nets  # noqa: E402

ROOT = Path(__file__).parents[2]
CLIP = "synthetic:shapes?height=32&width=48&frames=6"
TASK = TaskSpec(classes=SYNTHETIC_CLASSES)
TINY: dict[str, Any] = {"factory": "tests.nets:tiny", "arguments": {"classes": len(SYNTHETIC_CLASSES)}}


class Stop(Exception):
    """What a user's Ctrl-C is to the loop."""


class Watcher:
    """Notes every update, and stops the run after one step where it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.seen: list[tuple[str, int, int, dict[str, float]]] = []

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        self.seen.append((stage, done, total, figures))
        if done == self.stop_at:
            raise Stop


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    save_checkpoint(path, nets.randomise(nets.tiny(len(SYNTHETIC_CLASSES))).state_dict())
    return path


def distil_recipe(out: Path, teacher: Path, **changes: Any) -> DistillRecipe:
    data: dict[str, Any] = {
        "out": out,
        "teacher": {**TINY, "checkpoint": teacher},
        "task": TASK.model_dump(),
        "data": {"video": [CLIP], "max_gap": 3},
        "optimiser": {"lr": 0.05, "clip_norm": 5.0},
        "loop": {"steps": 6, "batch": 2, "workers": 0, "checkpoint_every": 3, "accelerator": "cpu"},
    }
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_settings(data, DistillRecipe, "test")


def weights(path: Path) -> dict[str, Tensor]:
    return dict(read_checkpoint(path)["state_dict"])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "changes", [{}, {"optimiser": {"kind": "adamw", "weight_decay": 0.01}, "teacher_lr": 0.1}]
)
def test_a_stopped_distillation_goes_on_bit_for_bit(
    tmp_path: Path, teacher: Path, changes: dict[str, Any]
) -> None:
    straight = distill(distil_recipe(tmp_path / "a", teacher, **changes))
    recipe = distil_recipe(tmp_path / "b", teacher, **changes)
    with pytest.raises(Stop):
        distill(recipe, progress=Watcher(stop_at=4))
    assert not (tmp_path / "b" / "student.pt").exists()
    watcher = Watcher()
    resumed = distill(recipe, progress=watcher)
    assert [done for _, done, _, _ in watcher.seen] == [4, 5, 6]
    assert same(weights(tmp_path / "a" / "student.pt"), weights(tmp_path / "b" / "student.pt"))
    assert resumed.figures == straight.figures
    # A finished run has nothing left to do, and says the same again.
    again = Watcher()
    assert distill(recipe, progress=again).figures == straight.figures
    assert again.seen == []


def test_distillation_trains_students_alone_and_reports(tmp_path: Path, teacher: Path) -> None:
    recipe = distil_recipe(tmp_path, teacher, validation=[CLIP], intervals=[3], loop={"validate_every": 4})
    watcher = Watcher()
    report = distill(recipe, progress=watcher)
    assert report.checkpoint == str(tmp_path / "student.pt")
    assert {"loss", "task", "feature", "cost", "miou_k1", "miou_k3"} <= set(report.figures)
    assert [(stage, done, total) for stage, done, total, _ in watcher.seen] == [
        ("distill", i, 6) for i in range(1, 7)
    ]
    assert "miou_k3" not in watcher.seen[2][3]
    assert "miou_k3" in watcher.seen[3][3]
    # With a keyframe on every frame the pair is the teacher, before and after.
    frames = FrameSet.read([CLIP], labelled=True)
    network = load_module(ModuleSettings(**TINY, checkpoint=teacher))
    expected = frame_miou(network, FrameToInput(recipe.preprocess), frames, TASK)
    assert report.figures["miou_k1"] == pytest.approx(expected, abs=2e-3)
    rows = {row.name: row for row in report.layers}
    assert rows["0"].reason == "first"
    assert rows["8"].reason == "last"
    assert {rows["3"].reason, rows["6"].reason} <= {"full", "low rank"}
    assert report.to_json()["layers"][0]["name"] == "0"

    net, found, meta = load_student(tmp_path / "student.pt")
    assert found == recipe
    assert meta["figures"] == report.figures
    assert meta["commit"] == commit_of_sources()
    assert not net.training
    assert all(len(layer.students()) == 1 for layer in net.layers)
    x = nets.frames(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(net.keyframe(x)[0], network(x), rtol=0, atol=1e-4)
    start = to_start(recipe, network)
    moved = [
        key for key, value in weights(tmp_path / "student.pt").items() if not torch.equal(value, start[key])
    ]
    assert moved
    assert all(".g_" in key for key in moved)


def to_start(recipe: DistillRecipe, network: nn.Module) -> dict[str, Tensor]:
    from edge_sdk.distill.convert import to_delta

    return to_delta(network, torch.zeros(1, 3, *nets.SIZE_HW), recipe.delta).net.network.state_dict()


def test_other_settings_are_not_continued(tmp_path: Path, teacher: Path) -> None:
    recipe = distil_recipe(tmp_path, teacher, loop={"steps": 2, "checkpoint_every": 1})
    distill(recipe)
    other = distil_recipe(tmp_path, teacher, loop={"steps": 2, "checkpoint_every": 1}, optimiser={"lr": 0.01})
    with pytest.raises(CheckpointError, match=r"other settings \(optimiser\).*--no-resume"):
        distill(other)
    watcher = Watcher()
    distill(other, resume=False, progress=watcher)
    assert [done for _, done, _, _ in watcher.seen] == [1, 2]
    # How often to save, and where, is free.
    free = distil_recipe(tmp_path, teacher, loop={"steps": 2, "checkpoint_every": 2}, optimiser={"lr": 0.01})
    watcher = Watcher()
    distill(free, progress=watcher)
    assert watcher.seen == []


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, teacher: Path) -> None:
    recipe = distil_recipe(tmp_path, teacher, optimiser={"lr": 1e30, "clip_norm": None})
    with pytest.raises(
        EdgeSdkError, match=r"distill: the loss became (nan|inf) at step [1-5]\. Lower optimiser.lr"
    ):
        distill(recipe)
    assert not (tmp_path / "student.pt").exists()


def test_a_distillation_may_start_from_anothers_student(tmp_path: Path, teacher: Path) -> None:
    distill(distil_recipe(tmp_path / "a", teacher))
    first = tmp_path / "a" / "student.pt"
    # At a rate of almost nothing the second ends where it started.
    again = distil_recipe(tmp_path / "b", teacher, start=first, optimiser={"lr": 1e-30}, loop={"steps": 1})
    distill(again)
    assert same(weights(first), weights(tmp_path / "b" / "student.pt"))
    with pytest.raises(
        CheckpointError, match=r"teacher.pt does not fit .* missing \(0.bias, 3.bias, 3.g_full.weight"
    ):
        distill(distil_recipe(tmp_path / "c", teacher, start=teacher))


def test_a_bad_student_file(tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a student written by edge-sdk distill"):
        load_student(teacher)


# Training from labels


def train_recipe(out: Path, **changes: Any) -> TrainRecipe:
    data: dict[str, Any] = {
        "out": out,
        "module": TINY,
        "task": TASK.model_dump(),
        "data": [CLIP],
        "augment": {"crop_hw": [24, 32]},
        "loop": {"steps": 4, "batch": 2, "workers": 0, "accelerator": "cpu", "checkpoint_every": 2},
    }
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_settings(data, TrainRecipe, "test")


def test_training_from_labels_resumes_and_learns(tmp_path: Path) -> None:
    longer = {"steps": 40, "checkpoint_every": 20}
    watcher = Watcher()
    report = train_teacher(
        train_recipe(tmp_path / "a", loop=longer, validation=[CLIP], optimiser={"lr": 0.1}), progress=watcher
    )
    losses = [figures["loss"] for _, _, _, figures in watcher.seen]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert 0 < report.figures["miou"] <= 1
    recipe = train_recipe(tmp_path / "b", loop=longer, validation=[CLIP], optimiser={"lr": 0.1})
    with pytest.raises(Stop):
        train_teacher(recipe, progress=Watcher(stop_at=20))
    train_teacher(recipe)
    assert same(weights(tmp_path / "a" / "model.pt"), weights(tmp_path / "b" / "model.pt"))
    loaded = load_module(ModuleSettings(**TINY, checkpoint=tmp_path / "a" / "model.pt"))
    frames = FrameSet.read([CLIP])
    score = frame_miou(loaded, FrameToInput(recipe.preprocess), frames, TASK)
    assert score == pytest.approx(report.figures["miou"], abs=1e-6)


def test_training_from_a_teacher_alone_needs_no_labels(tmp_path: Path, teacher: Path) -> None:
    from edge_sdk.video import open_sink, open_source

    folder = f"{tmp_path}/frames/"
    with open_source(CLIP) as source, open_sink(folder, fps=5, size_hw=(32, 48)) as sink:
        for frame in source:
            sink.write(frame.image)
    recipe = train_recipe(
        tmp_path / "out", data=[folder], loss={"source": "teacher"}, teacher={**TINY, "checkpoint": teacher}
    )
    assert train_teacher(recipe).figures["loss"] > 0
    with pytest.raises(RecipeError, match="expected labels, but frame 0"):
        train_teacher(train_recipe(tmp_path / "other", data=[folder]))


def test_training_begins_from_another_width(tmp_path: Path, teacher: Path) -> None:
    wider = {"factory": "tests.nets:tiny", "arguments": {"classes": 6}}
    still = {"lr": 1e-9, "weight_decay": 0.0}
    recipe = train_recipe(tmp_path / "out", module=wider, start=teacher, optimiser=still)
    train_teacher(recipe)
    named = dict(nets.tiny(6).named_parameters())
    given, got = read_weights(teacher), weights(tmp_path / "out" / "model.pt")
    assert all(torch.allclose(got[name], given[name], atol=1e-6) for name in named)
    with pytest.raises(RecipeError, match="both name weights to begin from"):
        train_recipe(tmp_path, module={**TINY, "checkpoint": str(teacher)}, start=str(teacher))


def test_networks_that_give_other_classes_are_refused(tmp_path: Path, teacher: Path) -> None:
    module = {"factory": "tests.nets:tiny", "arguments": {"classes": 4}}
    with pytest.raises(ShapeError, match=r"tiny: expected class logits \(1, 6, h, w\).*got \(1, 4, 12, 16\)"):
        train_teacher(train_recipe(tmp_path, module=module))
    four = tmp_path / "four.pt"
    save_checkpoint(four, nets.tiny(4).state_dict())
    recipe = train_recipe(tmp_path, loss={"source": "both"}, teacher={**module, "checkpoint": four})
    with pytest.raises(ShapeError, match=r"expected class logits \(1, 6, h, w\)"):
        train_teacher(recipe)


# The loop itself


class Line(Objective):
    """One parameter, pulled to the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.weight - batch["x"].mean()).square() + 0 * torch.rand(())
        return loss, {"draw": torch.rand(())}


def draw(rng: np.random.Generator) -> dict[str, Tensor]:
    return {"x": torch.tensor(rng.normal(size=2))}


def run(
    out: Path, optimiser: Optimiser, workers: int = 0, **loop: Any
) -> tuple[Line, dict[str, Any], Watcher]:
    line, watcher = Line(), Watcher()
    settings = LoopSettings(accelerator="cpu", workers=workers, **{"steps": 8, **loop})
    figures = fit(
        line, draw, loop=settings, optimiser=optimiser, out=out, identity={}, stage="line", progress=watcher
    )
    return line, figures, watcher


def test_a_worker_process_makes_the_same_batches(tmp_path: Path) -> None:
    alone, figures, _ = run(tmp_path / "a", Optimiser(lr=0.1))
    helped, others, _ = run(tmp_path / "b", Optimiser(lr=0.1), workers=1)
    assert torch.equal(alone.weight, helped.weight)
    assert alone.weight.detach() != 0
    assert figures == others


def test_seeds_change_batches_and_draws(tmp_path: Path) -> None:
    one, figures, _ = run(tmp_path / "a", Optimiser(lr=0.1), seed=1)
    two, others, _ = run(tmp_path / "b", Optimiser(lr=0.1), seed=2)
    assert not torch.equal(one.weight, two.weight)
    assert figures["draw"] != others["draw"]


@pytest.mark.parametrize("curve", ["poly", "cosine", "constant"])
def test_learning_rate_curves(tmp_path: Path, curve: str) -> None:
    from edge_sdk.distill.loop import _optimiser

    line = Line()
    optim, schedule = _optimiser(line, Optimiser(lr=2.0, curve=curve, warmup=0.2), 10)  # type: ignore[arg-type]
    rates = []
    for _ in range(10):
        rates.append(optim.param_groups[0]["lr"])
        optim.step()
        schedule.step()
    assert rates[0] == pytest.approx(2 / 3)
    assert rates[1] == pytest.approx(4 / 3)
    shares = np.arange(8) / 8
    expected = {
        "poly": (1 - shares) ** 0.9,
        "cosine": (1 + np.cos(np.pi * shares)) / 2,
        "constant": np.ones(8),
    }
    assert rates[2:] == pytest.approx(2 * expected[curve])


def test_last_checkpoint_is_whole_and_alone(tmp_path: Path) -> None:
    run(tmp_path, Optimiser(lr=0.1), checkpoint_every=3)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    content = read_checkpoint(tmp_path / "last.pt")
    assert content["step"] == 8
    assert set(content) == {"weights", "optimiser", "schedule", "step", "figures", "identity"}


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Optimiser(lr=0.1))

    class Two(Line):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Parameter(torch.zeros(()))

    with pytest.raises(CheckpointError, match="holds other tensors than this training"):
        fit(
            Two(), draw, loop=LoopSettings(steps=9, accelerator="cpu", workers=0), optimiser=Optimiser(),
            out=tmp_path, identity={}, stage="line",
        )  # fmt: skip


SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from edge_sdk.distill import distil, loop
from edge_sdk.distill.delta_recipe import DistillRecipe
from edge_sdk.settings import load_recipe

rank, out = int(os.environ["RANK"]), Path(sys.argv[2])
saved, batches = [], []
for module in (distil, loop):
    real = module.save_checkpoint
    def spy(path, content, real=real):
        saved.append(Path(path).name)
        real(path, content)
    module.save_checkpoint = spy
fit = distil.fit
def watch(objective, draw, **settings):
    def seen(rng):
        batch = draw(rng)
        batches.append(int(batch["frame"].long().sum()))
        return batch
    figures = fit(objective, seen, **settings)
    torch.save([p.detach() for p in objective.net.parameters()], out / f"rank{rank}.pt")
    return figures
distil.fit = watch
distil.distill(load_recipe(sys.argv[1], DistillRecipe))
(out / f"rank{rank}.json").write_text(json.dumps({"saved": saved, "batches": batches}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"quantization": {"start": 0.0}}], ids=["float", "quantization"])
def test_two_processes_under_torchrun(tmp_path: Path, teacher: Path, changes: dict[str, Any]) -> None:
    import json

    recipe = distil_recipe(
        tmp_path / "out", teacher, loop={"steps": 2, "checkpoint_every": 1}, teacher_lr=0.1, **changes
    )
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())  # JSON is YAML
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(tmp_path / "script.py"), str(tmp_path / "recipe.yaml"), str(tmp_path),
        ],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert first
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    notes = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert notes[0]["saved"] == ["last.pt", "last.pt", "student.pt"]
    assert notes[1]["saved"] == []
    # Each process drew batches of its own.
    assert len(notes[0]["batches"]) == len(notes[1]["batches"]) == 2
    assert set(notes[0]["batches"]).isdisjoint(notes[1]["batches"])
    assert set(weights(tmp_path / "out" / "student.pt"))
