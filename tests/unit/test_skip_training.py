"""Skip-Convolution's count of work, learned gates, checkpoints, and the way to a runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

from torch import nn  # noqa: E402

from edge_sdk.distill.frames import FrameSet, FrameToInput  # noqa: E402
from edge_sdk.distill.recipes import Augment, Motion, Preprocess  # noqa: E402
from edge_sdk.distill.skip import SkipRecipe, SkipSettings, to_skip  # noqa: E402
from edge_sdk.distill.skip.data import ClipSampler  # noqa: E402
from edge_sdk.distill.skip.gates import GumbelGate  # noqa: E402
from edge_sdk.distill.skip.macs import SkipLayer, Work  # noqa: E402
from edge_sdk.distill.skip.measure import StreamWork, follow, stream_figures  # noqa: E402
from edge_sdk.distill.skip.recipes import SkipData  # noqa: E402
from edge_sdk.distill.skip.train import load_skip, train_skip  # noqa: E402
from edge_sdk.errors import CheckpointError, RecipeError  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from edge_sdk.tasks.base import TaskSpec  # noqa: E402
from edge_sdk.video.synthetic import SYNTHETIC_CLASSES  # noqa: E402
from tests import nets  # noqa: E402

CLIP = "synthetic:shapes?height=32&width=48&frames=6"
CLASSES = len(SYNTHETIC_CLASSES)
TASK = TaskSpec(classes=SYNTHETIC_CLASSES)
STILL = Motion(shift=0, zoom=0, turn=0, parallax=0, light=0)


def recipe(folder: Path, **changes: Any) -> SkipRecipe:
    weights = folder / "teacher.pt"
    if not weights.is_file():
        torch.manual_seed(0)
        torch.save(nets.randomise(nets.tiny(CLASSES)).state_dict(), weights)
    content: dict[str, Any] = {
        "out": folder / "run", "task": TASK.model_dump(),
        "teacher": {"factory": "tests.nets:tiny", "arguments": {"classes": CLASSES}, "checkpoint": weights},
    }  # fmt: skip
    return parse_settings(content | changes, SkipRecipe, "recipe")


LEARNED = {
    "skip": {"gate": "gumbel"},
    "data": {"video": [CLIP], "frames": 3},
    "augment": {"crop_hw": [24, 32], "scale": [1.0, 1.0]},
    "loop": {"steps": 6, "batch": 2, "workers": 0, "checkpoint_every": 3, "validate_every": 6},
    "optimiser": {"kind": "adamw", "lr": 0.05, "curve": "constant"},
}


def test_work_of_a_stream_by_hand() -> None:
    layers = (
        SkipLayer("a", True, "gumbel", (100, 20), (10, 2)),
        SkipLayer("b", True, "gumbel", (80,), (5,)),
        SkipLayer("c", False, "excluded", (1000,)),
    )
    work = Work(layers)
    assert work.keyframe == 1200
    opened = {"a": 0.5, "a.call2": 1.0, "b": 0.25}
    assert work.open_share(opened) == pytest.approx((50 + 20 + 20) / 200)
    assert work.between(opened) == pytest.approx(1000 + 17 + 90)
    found = StreamWork.of(work, [None, opened, opened])
    assert found.macs == pytest.approx((1200 + 2 * 1107) / 3)
    assert found.open_share == pytest.approx(0.45)
    assert np.isnan(StreamWork.of(work, [None]).open_share)


@pytest.mark.parametrize(
    ("gate", "gates"), [("input_norm", 0), ("gumbel", 3 * 9 * 16 * 24 + 2 * 8 * 9 * 16 * 24)]
)
def test_work_of_a_network(gate: str, gates: int) -> None:
    work = to_skip(
        nets.randomise(nets.tiny()),
        torch.zeros(1, 3, 32, 48),
        SkipSettings.model_validate({"gate": gate, "exclude": ["8"]}),
    ).work
    area = 16 * 24
    expected = area * 9 * (3 * 8 + 8 * 8 + 8 * 8)
    assert [sum(layer.macs) for layer in work.layers] == [
        area * 9 * 24,
        area * 9 * 64,
        area * 9 * 64,
        area * 8 * 4,
    ]
    every = {layer.name: 1.0 for layer in work.layers}
    assert work.between(every) == pytest.approx(expected + area * 32 + gates)


def test_open_pixels_are_what_is_counted() -> None:
    """One pixel of the frame changes: a 3x3 window sees it nine times, a second one after it 25 times."""
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)).eval()
    conversion = to_skip(network, torch.zeros(1, 3, 12, 12), SkipSettings(eps=0.0))
    first = torch.randn(1, 3, 12, 12)
    second = first.clone()
    second[..., 6, 6] += 1
    with torch.no_grad():
        (_, none), (_, opened) = follow(conversion.net, [first, second], 2)
    assert none is None
    assert opened is not None
    assert opened == pytest.approx({"0": 9 / 144, "1": 25 / 144})


@pytest.mark.parametrize(("frames", "gap"), [(2, 1), (3, 2), (4, 9)])
def test_clips_are_frames_in_order_and_evenly_spread(frames: int, gap: int) -> None:
    data = SkipData(video=(CLIP,), frames=frames, gap=gap)
    sampler = ClipSampler(data, Augment(scale=(1.0, 1.0), flip=0, colour=0), TASK, 3, labelled=True)
    images = sampler.frames.images
    seen = set()
    for seed in range(8):
        batch = sampler(np.random.default_rng(seed))
        assert batch["frames"].shape == (3, frames, 32, 48, 3)
        for clip, mask in zip(batch["frames"].numpy(), batch["mask"].numpy(), strict=True):
            places = [
                next(i for i, image in enumerate(images) if np.array_equal(image, frame)) for frame in clip
            ]
            gaps = set(np.diff(places))
            assert len(gaps) == 1
            assert 1 <= min(gaps) <= gap
            seen |= gaps
            label = sampler.frames.masks[places[-1]]
            assert label is not None
            assert np.array_equal(mask, label)
    assert max(seen) == min(gap, 5 // (frames - 1))


def test_stills_become_clips_that_end_in_them() -> None:
    data = SkipData(stills=(CLIP,), frames=3, motion=STILL)
    sampler = ClipSampler(data, Augment(scale=(1.0, 1.0), flip=0, colour=0), TASK, 2, labelled=True)
    clip = sampler(np.random.default_rng(0))["frames"][0]
    assert any(np.array_equal(clip[-1].numpy(), image) for image in sampler.frames.images)
    assert torch.equal(clip[0], clip[1]), "without motion nothing moves"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": {"gate": "gumbel"}}, "is trained and needs 'data'"),
        ({"skip": {"gate": "gumbel"}, "data": {"video": [CLIP]}}, "is trained and needs 'loop'"),
        ({"loop": {"steps": 3}}, "'loop' is for gate 'gumbel'"),
        ({"kind": "delta"}, "kind"),
        (LEARNED | {"data": {"video": [CLIP], "frames": 1}}, "frames"),
        (LEARNED | {"data": {}}, "expected sources"),
    ],
)
def test_recipes_that_do_not_go_together_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, **changes)


def test_a_video_shorter_than_a_clip_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"at least 7 consecutive frames, .* has 6"):
        ClipSampler(SkipData(video=(CLIP,), frames=7), Augment(), TASK, 1, labelled=False)


def test_a_learned_gate_is_hard_in_value_soft_in_gradient_and_open_half_the_time_at_logit_0() -> None:
    torch.manual_seed(0)
    gate = GumbelGate(nn.Conv2d(2, 4, 1), SkipSettings(gate="gumbel"))
    assert gate.score.bias is not None
    change = torch.zeros(1, 2, 64, 64)
    weight = torch.zeros(4, 2, 1, 1)
    opened = gate.train()(change, weight, None)
    assert set(opened.unique().tolist()) == {0.0, 1.0}
    opened.mean().backward()
    assert gate.score.bias.grad is not None
    assert gate.score.bias.grad.item() > 0
    # Bias 0.6: open in use, and in training with the sigmoid's probability.
    assert abs(float(opened.mean()) - float(torch.sigmoid(torch.tensor(0.6)))) < 0.03
    assert bool(gate.eval()(change, weight, None).all())
    with torch.no_grad():
        gate.score.bias.fill_(-1e-3)
    assert not gate(change, weight, None).any()
    with torch.no_grad():
        gate.score.bias.zero_()
    assert bool(gate(change, weight, None).all()), "a logit of 0 is open"
    assert abs(float(gate.train()(change, weight, None).mean()) - 0.5) < 0.03


def test_gates_learn_to_close_where_work_is_dear_and_the_teacher_stays(tmp_path: Path) -> None:
    dear = recipe(tmp_path, **LEARNED, loss={"cost": 100.0})
    before = torch.load(tmp_path / "teacher.pt", weights_only=True)
    report = train_skip(dear)
    pair, _, meta = load_skip(report.checkpoint)
    assert meta["kind"] == "skip"
    frames = FrameSet.read([CLIP], labelled=True, task=TASK)
    work = to_skip(nets.tiny(CLASSES), torch.zeros(1, 3, 32, 48), dear.skip).work
    found = stream_figures(pair, work, FrameToInput(Preprocess()), frames, TASK, 3)
    assert found["open"] < 0.9, "they begin all open"
    assert report.figures["open"] < 0.6
    loaded = pair.network.state_dict()
    assert torch.equal(loaded["8.weight"], before["8.weight"])


def test_a_stopped_training_goes_on_where_it_was(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Stopper:
        def update(self, stage: str, done: int, total: int, **figures: float) -> None:
            if done == 4:
                raise Stop

    whole = train_skip(recipe(tmp_path, **LEARNED, out=tmp_path / "whole"))
    with pytest.raises(Stop):
        train_skip(recipe(tmp_path, **LEARNED), progress=Stopper())
    resumed = train_skip(recipe(tmp_path, **LEARNED))
    mine, theirs = (torch.load(r.checkpoint, weights_only=True)["state_dict"] for r in (resumed, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_norm_gates_need_no_training_and_survive_the_checkpoint(tmp_path: Path) -> None:
    made = recipe(tmp_path, skip={"eps": 0.3, "block": 2}, validation=[CLIP], intervals=[3])
    report = train_skip(made)
    assert set(report.figures) == {"miou_k1", "miou_k3", "open_k3"}
    assert 0 < report.figures["open_k3"] < 1
    pair, read, _ = load_skip(report.checkpoint)
    assert read == made
    teacher = nets.randomise(nets.tiny(CLASSES))
    teacher.load_state_dict(torch.load(tmp_path / "teacher.pt", weights_only=True))
    fresh = to_skip(teacher, torch.zeros(1, 3, 32, 48), made.skip).net
    first, second = nets.frames(2)
    with torch.no_grad():
        for net_a, net_b in ((pair, fresh),):
            (out_a, state_a), (out_b, state_b) = net_a.keyframe(first), net_b.keyframe(first)
            assert torch.equal(out_a, out_b)
            assert torch.equal(net_a.delta(second, state_a)[0], net_b.delta(second, state_b)[0])


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "meta": {"kind": "delta"}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="expected a gated network"):
        load_skip(tmp_path / "other.pt")


def test_a_runner_with_threshold_0_gives_the_teachers_masks(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxslim")
    from edge_sdk.compile import ExportRecipe, export
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule
    from edge_sdk.video.source import open_source

    report = train_skip(recipe(tmp_path, skip={"eps": 0.0, "block": 4, "reference": "last_open"}))
    bundle = export(
        ExportRecipe(out=tmp_path / "bundle", checkpoint=Path(report.checkpoint), frame_hw=(32, 48))
    )
    with open_source(CLIP) as source:
        frames = [frame.image for frame in source]
    with (
        EdgeRunner(bundle, schedule=AlwaysSchedule()) as teacher,
        EdgeRunner(bundle, schedule=EverySchedule(interval=6)) as gated,
    ):
        differing = [float((teacher(image).mask != gated(image).mask).mean()) for image in frames]
        assert gated.state_bytes > 0
    # An engine may round a fused convolution otherwise than a single one, which can tip a pixel between two classes.
    assert max(differing) <= 0.002
