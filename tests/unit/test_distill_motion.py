"""Coarse block motion: what it finds, what is fetched from there, and that a pair learns and runs with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("onnx", reason="graphs are made with onnx")
pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.build.recipe import Int8Settings  # noqa: E402
from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.compile.calibration_set import CalibrationSet  # noqa: E402
from edge_sdk.compile.quantize.variants import Quantizer  # noqa: E402
from edge_sdk.distill.correction import Confidence, shares_of  # noqa: E402
from edge_sdk.distill.cross import CrossPair, SmallInput, load_cross, make_cross  # noqa: E402
from edge_sdk.distill.cross_training import CrossObjective, distill_cross  # noqa: E402
from edge_sdk.distill.frames import FrameSet, FrameToInput  # noqa: E402
from edge_sdk.distill.losses import SegmentationLoss  # noqa: E402
from edge_sdk.distill.motion import Motion, carried, fetched, rows_at, table_of  # noqa: E402
from edge_sdk.distill.pairs import PairSampler  # noqa: E402
from edge_sdk.distill.recipes import Augment, PairData  # noqa: E402
from edge_sdk.distill.steps import TRUST  # noqa: E402
from edge_sdk.errors import RecipeError  # noqa: E402
from edge_sdk.manifest import StepName  # noqa: E402
from tests import clip_nets, step_pairs  # noqa: E402
from tests.cross_recipes import CLASSES, CLIP, SIZE_HW, TASK, module, recipe  # noqa: E402


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sharp(channels: int, radius: int, pool: int = 1) -> Motion:
    """Looks at the features as they are, and is sure of what it sees."""
    motion = Motion(channels, pool, radius, channels).eval()
    with torch.no_grad():
        motion.project[0].weight.copy_(torch.eye(channels)[:, :, None, None])  # type: ignore[operator]
        motion.sharpness.fill_(400.0)
    return motion


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """What a camera sees whose picture went down and right; what comes in repeats the border."""
    height, width = x.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    return x[..., rows, :][..., (torch.arange(width) - right).clamp(0, width - 1)]


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 11, 25), (1, 3)])
def test_shares_are_the_softmax(shape: tuple[int, ...]) -> None:
    x = 30 * maps(0, *shape)
    assert torch.allclose(shares_of(x), x.softmax(1), atol=1e-6)


@given(st.integers(-2, 2), st.integers(-2, 2), st.integers(1, 3), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_shift_by_whole_cells_is_found_and_undone(down: int, right: int, pool: int, seed: int) -> None:
    motion, size = sharp(8, 2, pool), (8 * pool, 9 * pool)
    # As distinct as eight channels allow, and alike within a cell.
    before = maps(seed, 1, 8, 8, 9).repeat_interleave(pool, 2).repeat_interleave(pool, 3)
    now = shifted(before, down * pool, right * pool)
    state = maps(seed + 1, 1, 3, *size)
    with torch.no_grad():
        where = motion.where(
            motion.seen(now), motion.kept(motion.seen(before)), motion.cell(size, size), size
        )
        back = fetched(table_of(state), rows_at(where))
    inner = (..., slice(3 * pool, -3 * pool), slice(3 * pool, -3 * pool))  # where nothing came in
    expected = torch.tensor([-down * pool, -right * pool]).view(1, 2, 1, 1).float()
    assert torch.allclose(where[inner], expected.expand_as(where)[inner], atol=0.05)
    assert torch.allclose(back[inner], shifted(state, down * pool, right * pool)[inner], atol=1e-6)


def test_no_motion_is_the_identity() -> None:
    motion, state = sharp(6, 2), maps(1, 2, 3, 7, 9)
    for same in (maps(0, 2, 6, 7, 9), torch.ones(2, 6, 7, 9)):  # distinct, and all alike
        seen = motion.seen(same)
        where = motion.where(seen, motion.kept(seen), (1.0, 1.0), (7, 9)).detach()
        # Beyond the border everything is as at it, so there motion may lead out, where nothing else is.
        assert float(where[..., 1:-1, 1:-1].abs().max()) < 0.01
        assert torch.equal(fetched(table_of(state), rows_at(where)), state)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_table_and_sampled_maps_are_the_same(height: int, width: int, seed: int) -> None:
    state, where = maps(seed, 2, 3, height, width), 3 * maps(seed + 1, 2, 2, height, width)
    assert torch.allclose(carried(state, where), fetched(table_of(state), rows_at(where)), atol=1e-4)


def test_motion_learns_from_what_it_carries() -> None:
    motion, size = Motion(6, 1, 2, 4), (6, 8)
    before = maps(0, 2, 6, *size)
    where = motion.where(
        motion.seen(maps(1, 2, 6, *size)), motion.kept(motion.seen(before)), (1.0, 1.0), size
    )
    F.mse_loss(carried(maps(2, 2, 3, *size), where), maps(3, 2, 3, *size)).backward()
    for name, parameter in motion.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name


class _Halves(nn.Module):
    """Class logits at half size, which are three of the pixels' twelve numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.PixelUnshuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.look(x)[:, :3]


def test_the_keyframes_correction_follows_what_moves() -> None:
    """A student that is wrong by what the picture shows: with motion, the pair is right again after a shift."""
    teacher = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 3, 1))
    plain, moving = (
        CrossPair(
            teacher, SmallInput(_Halves(), 1.0, 1), "correct", None, motion, "look" if motion else ""
        ).eval()
        for motion in (None, sharp(12, 2))
    )
    first = maps(0, 1, 3, 24, 28)
    later = shifted(first, 2, -2)
    inner = (..., slice(3, -3), slice(3, -3))
    off = {}
    with torch.no_grad():
        for pair in (plain, moving):
            target, state = pair.keyframe(first)
            assert torch.equal(target, teacher(first))
            answer, told = pair.delta(later, state)
            assert told == {}  # no confidence, no trust
            off[pair] = float((answer - teacher(later))[inner].abs().max())
    assert off[moving] < 1e-4 < 0.1 < off[plain]


def test_motion_adds_up_where_it_is_followed() -> None:
    """Five frames later the keyframe is further away than one step of motion reaches."""
    teacher = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 3, 1))
    first, inner = maps(0, 1, 3, 48, 48), (..., slice(9, -9), slice(9, -9))
    off = {}
    for follow in (False, True):
        pair = CrossPair(
            teacher, SmallInput(_Halves(), 1.0, 1), "correct", None, sharp(12, 1), "look", follow
        ).eval()
        with torch.no_grad():
            _, state = pair.keyframe(first)
            now = first
            for _ in range(5):
                now = shifted(now, 2, -2)
                answer, rewritten = pair.delta(now, state)
                assert set(rewritten) == ({"seen", "moved"} if follow else set())
                state = state | rewritten
        off[follow] = float((answer - teacher(now))[inner].abs().max())
    assert off[True] < 1e-4 < 0.1 < off[False]


@pytest.mark.parametrize("join", ["correct", "blend"])
def test_training_follows_as_the_steps_do(join: str, tmp_path: Path) -> None:
    given = recipe(
        tmp_path, scale=1.0, student=module(tmp_path, "other", 1), loss={"features": 0.0}, join=join,
        motion={"stride": 8, "feature_at": "2", "follow": True}, data={"between": 2},
    )  # fmt: skip
    pair = make_cross(given, SIZE_HW)
    objective = CrossObjective(
        pair, FrameToInput(given.preprocess), given.loss, SegmentationLoss(given.loss.task, 255)
    )
    sampler = PairSampler(given.data, given.augment, given.task, 2, labelled=True)
    batch = sampler(np.random.default_rng(0))
    assert batch["between"].shape == (2, 2, *batch["frame"].shape[1:])
    frames = [batch["first"], *batch["between"].unbind(1), batch["frame"]]
    inputs = [objective.to_input(frame) for frame in frames]
    with torch.no_grad():
        target, state = pair.keyframe(inputs[0])
        for x in inputs[1:]:
            answer, rewritten = pair.delta(x, state)
            state = state | rewritten
        seen = pair.answer(torch.cat(inputs))
        corrected, motion = objective._corrected(seen.logits.split(2), seen, target, pair.teacher(inputs[-1]))
    assert torch.allclose(corrected, answer, atol=1e-4)
    assert float(motion) > 0


def test_frames_between_are_on_the_way() -> None:
    video = CLIP.replace("frames=6", "frames=12")
    data = PairData(video=(video,), max_gap=6, between=2)
    frames = FrameSet.read((video,), labelled=True)
    sampler = PairSampler(data, Augment(flip=0.0, colour=0.0, scale=(1.0, 1.0)), TASK, 8, labelled=True)
    batch = sampler(np.random.default_rng(0))
    known = {image.tobytes(): index for index, image in enumerate(frames.images)}
    for first, between, later, gap in zip(
        batch["first"], batch["between"], batch["frame"], batch["gap"], strict=True
    ):
        places = [known[frame.numpy().tobytes()] for frame in (first, *between, later)]
        assert places == sorted(set(places))
        assert places[-1] - places[0] == gap >= 3


# What the delta step rewrites stays exact: motion added up, what it is found by, an answer that is carried on.
EXACT: dict[str, set[str]] = {
    "cross_motion": set(),
    "cross_whole": set(),
    "cross_follow": {"moved", "seen"},
    "cross_blend": {"answer", "seen"},
}


@pytest.fixture(scope="module", params=list(EXACT))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return step_pairs.bundle(tmp_path_factory.mktemp(request.param), request.param)


def test_onnx_runtime_agrees_with_torch(bundle: Bundle) -> None:
    agreement = cast("dict[str, float]", bundle.manifest.provenance["torch_and_onnxruntime_differ"])
    assert max(agreement.values()) <= 1e-3
    kept = {spec.name for spec in bundle.manifest.state}
    assert "seen" in kept
    assert len(kept & {"residual", "answer"}) == 1


def test_int8_graphs_for_the_cpu_run_and_stay_close(bundle: Bundle, request: pytest.FixtureRequest) -> None:
    quantizer = Quantizer(bundle, cast("CalibrationSet", step_pairs.Passes(bundle)))
    written = quantizer.int8(Int8Settings(passes=None), "onnxruntime")
    exact = EXACT[request.node.callspec.params["bundle"]]
    assert {spec.name for spec in written.variant.state if spec.dtype == "float32"} == exact
    assert {spec.dtype for spec in written.variant.state if spec.name not in exact} <= {"uint8"}
    # They lie as the delta step reads them.
    assert not any(form.permutation for form in written.variant.forms.values())
    graphs: dict[StepName, Path | bytes] = {
        step: written.files[spec.graph] for step, spec in written.variant.steps.items()
    }
    images, schedule = clip_nets.frames(6, seed=1), bundle.manifest.schedule
    right = step_pairs.record(step_pairs.graphs_of(bundle), images, schedule)["answers"]
    answers = step_pairs.record(graphs, images, schedule)["answers"]
    same = np.mean([(a["mask"] == b["mask"]).mean() for a, b in zip(answers, right, strict=True)])
    assert same >= 0.88


def test_trust_is_told_where_there_is_a_confidence() -> None:
    torch.manual_seed(0)
    teacher = nn.Conv2d(3, 4, 3, 2, 1)
    pair = CrossPair(
        teacher, SmallInput(nn.Conv2d(3, 4, 3, 2, 1), 1.0, 1), "correct", Confidence(4, 0)
    ).eval()
    still, other = maps(0, 1, 3, 8, 8), 3 * maps(1, 1, 3, 8, 8)
    with torch.no_grad():
        _, state = pair.keyframe(still)
        same, moved = (float(pair.delta(x, state)[1][TRUST]) for x in (still, other))
    assert same == pytest.approx(0.982, abs=1e-3)
    assert pair.delta(still, state)[1][TRUST].shape == ()
    assert 0 < moved < same


@pytest.mark.parametrize("confidence", ["none", 0])
def test_a_narrower_student_at_full_size_learns_motion(confidence: Any, tmp_path: Path) -> None:
    narrow = module(tmp_path, "narrow", 2, width=6)
    motion = {"stride": 8, "feature_at": "2"}
    given = recipe(
        tmp_path, student=narrow, scale=1.0, confidence=confidence, motion=motion, loss={"features": 0.0}
    )
    began = make_cross(given, SIZE_HW)
    report = distill_cross(given)
    assert report.figures["motion"] >= 0
    pair, known, _ = load_cross(report.checkpoint)
    assert known == given
    assert (pair.confidence is None) == (confidence == "none")
    assert pair.motion is not None
    assert began.motion is not None
    assert pair.motion.pool == 4
    assert not torch.equal(pair.motion.prior, began.motion.prior)
    with torch.no_grad():
        _, state = pair.keyframe(maps(0, 1, 3, *SIZE_HW))
        answer, told = pair.delta(maps(1, 1, 3, *SIZE_HW), state)
    assert answer.shape == (1, CLASSES, 16, 24)
    assert set(state) == {"residual", "seen", *({"student"} if told else ())}


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        ({"feature_at": "nowhere"}, "'motion.feature_at': Sequential has no module 'nowhere'"),
        ({"feature_at": "", "stride": 64}, "at least 1/64 of the input's 32 x 48"),
        ({"feature_at": "2", "stride": 1}, "raise motion.stride"),
    ],
)
def test_maps_that_show_no_motion(motion: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as found:
        make_cross(recipe(tmp_path, motion=motion), SIZE_HW)
    assert message in f"{found.value} {found.value.hint}"
