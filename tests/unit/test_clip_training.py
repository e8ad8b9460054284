"""Training and distilling clip networks: what reaches whom, stopping and going on, and what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

from torch import nn  # noqa: E402

from edge_sdk.distill.clips.checkpoints import check_clip_network, load_clip_model, make_clip_network  # noqa: E402
from edge_sdk.distill.clips.data import ClipSet, FeatureSet, joined  # noqa: E402
from edge_sdk.distill.clips.distil import distill_clips  # noqa: E402
from edge_sdk.distill.clips.objective import (  # noqa: E402
    ClipSampler,
    DistillObjective,
    LabelObjective,
    Sight,
    clip_figures,
    scores_of,
)
from edge_sdk.distill.clips.recipes import ClipData, ClipLoss, ClipModel  # noqa: E402
from edge_sdk.distill.clips.train import train_clips  # noqa: E402
from edge_sdk.distill.modules import read_checkpoint  # noqa: E402
from edge_sdk.distill.recipes import Preprocess  # noqa: E402
from edge_sdk.errors import CheckpointError, EdgeSdkError, RecipeError, ShapeError  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from edge_sdk.tasks.base import TaskSpec  # noqa: E402
from tests import clip_training as world  # noqa: E402

DATA = ClipData(train=("memory:0",), length=world.LENGTH, colour=0, shift=0)


class Stop(Exception):
    """What a user's Ctrl-C is to the loop."""


class Watcher:
    """Notes every step, and stops the run after one of a stage where it is told to."""

    def __init__(self, stage: str = "", stop_at: int = 0) -> None:
        self.stop = (stage, stop_at)
        self.seen: list[tuple[str, int]] = []

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        self.seen.append((stage, done))
        if (stage, done) == self.stop:
            raise Stop


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    world.in_memory(monkeypatch)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        world.in_memory(patch)
        return Path(train_clips(world.train_recipe(tmp_path_factory.mktemp("teacher"))).checkpoint)


def kept(path: Path | str) -> dict[str, Any]:
    return dict(read_checkpoint(path)["state_dict"])


def clip_model(samples: int, sampling: str) -> ClipModel:
    return parse_settings(world.model(samples, sampling=sampling), ClipModel, "test")


# Training on labels.


def test_a_network_learns_and_its_file_is_whole(tmp_path: Path) -> None:
    report = train_clips(world.train_recipe(tmp_path, {"steps": 60}))
    assert report.figures["top1"] == 1.0
    assert set(report.figures) == {"loss", "top1", "map", "gap"}
    network, model, task, meta = load_clip_model(report.checkpoint)
    assert not network.training
    assert (model.samples, model.module.checkpoint) == (4, Path(report.checkpoint))
    assert task.classes == world.CLASSES
    assert (meta["length"], meta["frame_hw"], meta["features"]) == (world.LENGTH, [8, 8], None)
    assert meta["figures"] == report.figures
    found = clip_figures(network, world.clips(seed=1), task, model, batch=5)
    assert found == {name: report.figures[name] for name in found}


def test_trained_on_generated_motions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from edge_sdk.video.motions import MOTION_CLASSES

    recipe = world.train_recipe(
        tmp_path,
        {"steps": 2},
        task={"kind": "classification", "classes": MOTION_CLASSES},
        model=world.model(3, arguments={"classes": 12}, preprocess={"size_hw": [8, 12]}),
        data={"train": ["synthetic:motions?clips=4&height=16&width=16&frames=6"], "length": 6},
    )
    _, _, task, meta = load_clip_model(train_clips(recipe).checkpoint)
    assert (task.classes, meta["frame_hw"]) == (MOTION_CLASSES, [16, 16])


@pytest.mark.parametrize("stage", ["train", "distill", "fine-tune"])
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(stage: str, tmp_path: Path) -> None:
    def run(out: Path, progress: Watcher) -> str:
        dropout = world.model(arguments={"dropout": 0.5})
        if stage == "train":
            return train_clips(world.train_recipe(out, model=dropout), progress=progress).checkpoint
        recipe = world.distil_recipe(out, teacher=dropout, finetune=4)
        return distill_clips(recipe, progress=progress).checkpoint

    whole = kept(run(tmp_path / "whole", Watcher()))
    with pytest.raises(Stop):
        run(tmp_path / "stopped", Watcher(stage, 3))
    again = Watcher()
    assert world.equal(kept(run(tmp_path / "stopped", again)), whole)
    # What was done before its last checkpoint is not done again.
    assert again.seen[0] == (stage, 3)


# Distillation.


@pytest.mark.parametrize(
    "loss", [{"representation": 1.0}, {"prediction": 50.0, "features": 100.0, "label": 0.0}]
)
def test_a_teacher_that_is_trained_along_is_as_if_it_were_trained_alone(
    loss: dict[str, float], tmp_path: Path
) -> None:
    own = world.model(arguments={"dropout": 0.5})
    alone = train_clips(world.train_recipe(tmp_path / "alone", model=own))
    recipe = world.distil_recipe(tmp_path / "along", teacher=own, student=world.model(), loss=loss)
    along = distill_clips(recipe)
    assert along.teacher is not None
    assert world.equal(kept(along.teacher), kept(alone.checkpoint))
    for name in ("top1", "map", "gap"):
        assert along.figures[f"teacher_{name}"] == alone.figures[name]
    assert load_clip_model(along.teacher)[3]["figures"]["top1"] == alone.figures["top1"]


def test_a_student_has_fresh_weights_of_its_own(tmp_path: Path) -> None:
    same = {"teacher": world.model(), "student": world.model()}
    recipe = world.distil_recipe(tmp_path, **same, optimiser={"lr": 1e-30})
    report = distill_clips(recipe)
    assert report.teacher is not None
    assert not torch.equal(kept(report.checkpoint)["conv.weight"], kept(report.teacher)["conv.weight"])


def objective(
    loss: ClipLoss, *, parallel: bool, train_norm: bool = False
) -> tuple[DistillObjective, dict[str, Any]]:
    torch.manual_seed(0)
    models = {"teacher": clip_model(4, "uniform"), "student": clip_model(4, "uniform")}
    student, teacher = (make_clip_network(models[role].module) for role in ("student", "teacher"))
    made = DistillObjective(
        student, teacher, (Preprocess(), Preprocess()), loss, multi_label=False, parallel=parallel,
        train_norm=train_norm,
    )  # fmt: skip
    return made.train(), ClipSampler(world.clips(), DATA, 4, models)(np.random.default_rng(0))


def test_gradients_of_the_students_losses_never_reach_the_teacher() -> None:
    every = ClipLoss(label=1, representation=1, prediction=1, features=1, places=1)
    made, batch = objective(every, parallel=True)
    made(batch)[0].backward()
    through_both = [parameter.grad for parameter in made._teacher[0].parameters()]
    made, batch = objective(every, parallel=True)
    alone = LabelObjective(made._teacher[0], Preprocess(), False, "teacher")
    alone(batch)[0].backward()
    for one, parameter in zip(through_both, made._teacher[0].parameters(), strict=True):
        assert one is not None
        assert parameter.grad is not None
        assert torch.equal(one, parameter.grad)
    made, batch = objective(every, parallel=False)
    made(batch)[0].backward()
    assert all(parameter.grad is None for parameter in made._teacher[0].parameters())
    assert all(parameter.grad is not None for parameter in made.student.parameters())


@pytest.mark.parametrize("train_norm", [False, True])
def test_a_frozen_teacher_stays_as_it_is(train_norm: bool) -> None:
    made, batch = objective(ClipLoss(features=1), parallel=False, train_norm=train_norm)
    frozen = made._teacher[0]
    before = {name: value for name, value in world.weights(frozen).items() if "num_batches" not in name}
    made(batch)
    after = world.weights(frozen)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not [name for name in made.weights() if "teacher" in name and "sight" not in name]
    norm = next(module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d))
    modes = [module.training for module in frozen.modules() if module is not norm]
    assert norm.training is train_norm
    assert not any(modes)
    task = TaskSpec(**world.TASK)
    clip_figures(frozen, world.clips(), task, clip_model(4, "uniform"), batch=4)
    assert norm.training is train_norm


def test_with_train_norm_the_teacher_sees_each_batch_by_its_own_statistics() -> None:
    parts = []
    for train_norm in (False, True):
        made, batch = objective(ClipLoss(features=1), parallel=False, train_norm=train_norm)
        parts.append(float(made(batch)[1]["features"]))
    assert parts[0] != parts[1]


def test_serial_training_with_fine_tuning(teacher: Path, tmp_path: Path) -> None:
    recipe = world.distil_recipe(tmp_path, teacher=world.model(checkpoint=teacher), finetune=2)
    report = distill_clips(recipe)
    assert report.teacher is None
    assert not (tmp_path / "teacher.pt").exists()
    metrics = {"top1", "map", "gap"}
    assert {*metrics, *(f"distilled_{m}" for m in metrics), *(f"teacher_{m}" for m in metrics)} <= set(
        report.figures
    )
    assert report.figures["teacher_top1"] == load_clip_model(teacher)[3]["figures"]["top1"]
    assert load_clip_model(report.checkpoint)[3]["figures"] == report.figures
    # Another length of the fine-tuning does not do the distillation again, but does the fine-tuning.
    longer = recipe.model_copy(update={"finetune": 3})
    with pytest.raises(CheckpointError, match=r"other settings .*finetune"):
        distill_clips(longer)
    watcher = Watcher()
    (tmp_path / "finetune" / "last.pt").unlink()
    distill_clips(longer, progress=watcher)
    assert watcher.seen == [("fine-tune", 1), ("fine-tune", 2), ("fine-tune", 3)]


def test_of_clips_without_labels_a_student_learns_what_its_teacher_makes(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {
        "teacher": world.model(checkpoint=teacher),
        "loss": {"label": 1, "prediction": 1},
    }
    shown: list[int] = []
    draw = ClipSet.batch

    def watched(self: ClipSet, *rest: Any) -> Any:
        batch = draw(self, *rest)
        shown.append(int(batch["target"].isnan().all(1).sum()))
        return batch

    monkeypatch.setattr(ClipSet, "batch", watched)
    few = distill_clips(world.distil_recipe(tmp_path / "few", **given))
    assert shown
    assert not any(shown)
    shown.clear()
    more = distill_clips(world.distil_recipe(tmp_path / "more", unlabelled=["memory:9"], finetune=2, **given))
    assert any(shown[:-2])
    assert not any(shown[-2:]), "labels alone are what fine-tuning learns from"
    assert kept(few.checkpoint)["head.weight"].ne(kept(more.checkpoint)["head.weight"]).any()
    assert np.isfinite(more.figures["loss"])


def test_clips_without_labels_have_the_size_of_the_others() -> None:
    first, other = world.clips(), world.clips()
    both = joined(first, replace(other, targets=np.full_like(other.targets, np.nan)))
    assert len(both) == len(first) + len(other)
    assert np.isnan(both.targets).any(1).sum() == len(other)
    with pytest.raises(ShapeError, match=r"'unlabelled'.*differ.*size_hw"):
        joined(first, replace(other, clips=other.clips[:, :, :4]))


def test_a_student_of_smaller_frames_learns_by_maps_and_places(teacher: Path, tmp_path: Path) -> None:
    small = world.model(4, arguments={"width": 4}, preprocess={"size_hw": [4, 4]})
    loss = {"label": 1, "features": 100, "places": 200, "temperature": 2}
    recipe = world.distil_recipe(
        tmp_path, teacher=world.model(checkpoint=teacher), student=small, loss=loss, train_norm=True
    )
    report = distill_clips(recipe)
    assert {"features", "places", "label"} <= set(report.figures)
    assert load_clip_model(report.checkpoint)[1].preprocess.size_hw == (4, 4)


# What is seen.


def test_networks_see_the_frames_of_their_sampling_and_no_others_travel() -> None:
    models = {
        "teacher": clip_model(3, "last"),
        "student": clip_model(2, "uniform"),
        "rival": clip_model(2, "first"),
    }
    batch = ClipSampler(world.clips(), DATA, 5, models)(np.random.default_rng(0))
    assert batch["clip"].shape == (5, 5, 8, 8, 3)
    plain = Preprocess(mean=(0, 0, 0), std=(1, 1, 1))
    for role, expected in (("teacher", [3, 4, 5]), ("student", [0, 3]), ("rival", [0, 1])):
        x = Sight(plain)(batch["clip"], batch[role])
        assert x.shape == (5, len(expected), 3, 8, 8)
        assert x[:, :, 0, 0, 0].tolist() == [expected] * 5


def test_networks_of_one_random_sampling_see_the_same_frames_and_others_every_time() -> None:
    models = {role: clip_model(3, "random") for role in ("teacher", "student")}
    sampler = ClipSampler(world.clips(), DATA, 2, models)
    drawn = []
    for seed in range(8):
        batch = sampler(np.random.default_rng(seed))
        assert torch.equal(batch["teacher"], batch["student"])
        assert batch["clip"].shape[1] == 3
        drawn.append(tuple(batch["clip"][0, :, 0, 0, 0].tolist()))
    assert len(set(drawn)) > 1
    assert all(frames == tuple(sorted(frames)) for frames in drawn)


def test_random_frames_of_validation_come_from_the_seed() -> None:
    torch.manual_seed(0)
    model = clip_model(2, "random")
    network, task = make_clip_network(model.module), TaskSpec(**world.TASK)
    runs = [clip_figures(network, world.clips(), task, model, batch=4, seed=seed) for seed in (0, 0)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_are_shares_or_each_by_itself(multi_label: bool) -> None:
    logits = torch.tensor([[0.0, 0.0, 100.0], [1.0, 1.0, 1.0]])
    sums = scores_of(logits, multi_label).sum(1)
    assert torch.allclose(sums, torch.tensor([2.0, 3 * 0.731058] if multi_label else [1.0, 1.0]))


def test_several_labels_and_feature_vectors() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    clips = FeatureSet(values, np.full(6, 5), np.eye(3, dtype=np.float32)[np.arange(6) % 3], ("c",) * 6)
    module = {"factory": "tests.clip_training:vectors", "arguments": {"classes": 3, "dim": 4}}
    model = parse_settings(world.model(3, module=module), ClipModel, "test")
    network = make_clip_network(model.module)
    assert check_clip_network(network, model, clips, 3).maps is None
    batch = ClipSampler(clips, DATA, 4, {"model": model})(rng)
    assert batch["clip"].shape == (4, 3, 4)
    loss, _ = LabelObjective(network, model.preprocess, True, "model")(batch)
    assert float(loss.detach()) > 0
    task = TaskSpec(kind="classification", classes=("a", "b", "c"), multi_label=True)
    assert set(clip_figures(network, clips, task, model, batch=4)) == {"top1", "map", "gap"}


# What is refused.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": world.model(7)}, RecipeError, "'samples': expected 1 to 6"),
        ({"model": world.model(module={"factory": "torch.nn:Identity", "arguments": {}})}, RecipeError, "ClipNetwork"),
        ({"model": world.model(arguments={"classes": 5})}, ShapeError, r"logits \(1, 3\).*got logits \(1, 5\)"),
        (
            {"model": world.model(module={"factory": "tests.clip_training:vectors"}, arguments={"dim": 4})},
            ShapeError, "refuses a clip of 4 frames of 8 x 8",
        ),
    ],
)  # fmt: skip
def test_a_network_that_does_not_fit_is_refused_before_it_is_trained(
    changes: dict[str, Any], error: type[EdgeSdkError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train_clips(world.train_recipe(tmp_path, **changes))
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "loss", "message"),
    [
        ({"width": 6}, {"representation": 1}, "one width, got 6 of the student and 4 of the teacher"),
        ({"width": 6}, {"features": 1}, "as many channels, got 6 of the student and 4.*Use 'loss.places'"),
        ({"maps": False}, {"features": 1}, "the student gives no feature maps"),
        ({"places": False}, {"places": 1}, "'loss.places': Tiny does not classify places"),
    ],
)
def test_networks_that_a_loss_cannot_compare_are_refused(
    arguments: dict[str, Any], loss: dict[str, float], message: str, tmp_path: Path
) -> None:
    recipe = world.distil_recipe(tmp_path, student=world.model(arguments=arguments), loss=loss)
    with pytest.raises(ShapeError, match=message):
        distill_clips(recipe)


def test_a_teacher_of_other_classes_is_refused(teacher: Path, tmp_path: Path) -> None:
    turned = {**world.TASK, "classes": world.CLASSES[::-1]}
    recipe = world.distil_recipe(tmp_path, teacher=world.model(checkpoint=teacher), task=turned)
    with pytest.raises(CheckpointError, match="in another order"):
        distill_clips(recipe)


def test_what_is_no_clip_network_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "meta": {"kind": "delta"}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="expected a clip network"):
        load_clip_model(tmp_path / "other.pt")


def test_other_settings_do_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    train_clips(world.train_recipe(tmp_path))
    with pytest.raises(CheckpointError, match="other settings"):
        train_clips(world.train_recipe(tmp_path, model=world.model(3)))
    train_clips(world.train_recipe(tmp_path, model=world.model(3)), resume=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"label": 1}}, "nothing in it needs the teacher; use edge-sdk train"),
        ({"loss": {"label": 0}}, "at least one loss with a weight above 0"),
        ({"loss": {"features": 100}}, "give both the same samples"),
        ({"loss": {"prediction": 1, "temperature": 0}}, "'loss.temperature'"),
        ({"loss": {"prediction": -1}}, "'loss.prediction'"),
        ({"student": world.model(2, sampling="even")}, "'student.sampling'"),
        ({"finetune_lr": 2}, "'finetune_lr'"),
        ({"kind": "delta"}, "'kind'"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        world.distil_recipe(tmp_path, **changes)
