"""Training a network for every frame on frames that nobody labelled, and with batch norm left as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

from edge_sdk.distill.modules import read_weights, save_checkpoint  # noqa: E402
from edge_sdk.distill.recipes import TrainRecipe  # noqa: E402
from edge_sdk.distill.train import _Frames, train_teacher  # noqa: E402
from edge_sdk.errors import RecipeError  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from edge_sdk.tasks.base import TaskSpec  # noqa: E402
from edge_sdk.video.synthetic import SYNTHETIC_CLASSES  # noqa: E402
from tests import nets  # noqa: E402

CLIP = "synthetic:shapes?height=32&width=48&frames=6"
OTHER = "synthetic:shapes?height=48&width=64&frames=9&seed=3"
NET: dict[str, Any] = {"factory": "tests.nets:tiny", "arguments": {"classes": len(SYNTHETIC_CLASSES)}}
IGNORED = TaskSpec(classes=SYNTHETIC_CLASSES).ignore_label


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    save_checkpoint(path, nets.randomise(nets.tiny(len(SYNTHETIC_CLASSES))).state_dict())
    return str(path)


def recipe(out: Path, teacher: str, **changes: Any) -> TrainRecipe:
    data: dict[str, Any] = {
        "out": str(out), "module": {**NET, "checkpoint": teacher}, "teacher": {**NET, "checkpoint": teacher},
        "task": {"classes": SYNTHETIC_CLASSES}, "data": [CLIP], "unlabelled": [OTHER], "loss": {"source": "both"},
        "augment": {"crop_hw": [24, 32]}, "optimiser": {"lr": 0.05},
        "loop": {"steps": 4, "batch": 2, "workers": 0, "accelerator": "cpu"},
    } | changes  # fmt: skip
    return parse_settings(data, TrainRecipe, "test")


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_frames_is_unlabelled(share: float, tmp_path: Path, teacher: str) -> None:
    """Their labels, which this source has, are ignored pixels."""
    drawn = _Frames.read(recipe(tmp_path, teacher, unlabelled_share=share, loop={"steps": 1, "batch": 400}))
    batch = drawn(np.random.default_rng(0))
    assert batch["frame"].shape == (400, 24, 32, 3)
    bare = (batch["mask"] == IGNORED).flatten(1).all(1).float().mean()
    assert bare == pytest.approx(share, abs=0.06)


def test_every_unlabelled_frame_is_drawn(tmp_path: Path, teacher: str) -> None:
    drawn = _Frames.read(recipe(tmp_path, teacher, unlabelled=[OTHER, CLIP]))
    found = [(len(frames), at) for frames, at in drawn.unlabelled]
    assert found == [*((9, at) for at in range(9)), *((6, at) for at in range(6))]


@pytest.mark.parametrize("source", ["teacher", "both"])
def test_a_student_learns_from_them(source: str, tmp_path: Path, teacher: str) -> None:
    """Beginning as its own teacher, it has nothing to learn from the teacher and something from labels."""
    given = recipe(tmp_path, teacher, unlabelled_share=1.0, norm="keep", loss={"source": source})
    report = train_teacher(given)
    assert report.figures["loss"] == pytest.approx(0, abs=1e-6)
    labelled = recipe(
        tmp_path / "labelled", teacher, unlabelled_share=0.0, norm="keep", loss={"source": "both"}
    )
    assert train_teacher(labelled).figures["loss"] > 0.1


@pytest.mark.parametrize("norm", ["learn", "keep"])
def test_batch_norm_keeps_its_statistics(norm: str, tmp_path: Path, teacher: str) -> None:
    """Weights learn all the same."""
    report = train_teacher(recipe(tmp_path, teacher, norm=norm))
    before, after = read_weights(Path(teacher)), read_weights(Path(report.checkpoint))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.endswith("weight") for name in changed)
    assert any("running_" in name for name in changed) == (norm == "learn")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"source": "labels"}}, "'unlabelled' needs loss.source 'teacher' or 'both'"),
        ({"norm": "keep", "module": NET}, "'norm' keep needs 'start' or 'module.checkpoint'"),
        ({"norm": "hold"}, "norm"),
        ({"unlabelled_share": 1.5}, "unlabelled_share"),
        ({"augment": {}}, "expected frames of 32 x 48 as in 'data', got 48 x 64 in synthetic:.*"),
    ],
)
def test_bad_recipes(changes: dict[str, Any], message: str, tmp_path: Path, teacher: str) -> None:
    with pytest.raises(RecipeError, match=message):
        train_teacher(recipe(tmp_path, teacher, **changes))
    assert not (tmp_path / "model.pt").exists()
