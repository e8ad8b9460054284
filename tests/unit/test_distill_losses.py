"""Losses against plain references, and the objective of a distillation."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.convert import to_delta  # noqa: E402
from edge_sdk.distill.delta import Pass  # noqa: E402
from edge_sdk.distill.delta_recipe import DeltaLoss, DeltaSettings  # noqa: E402
from edge_sdk.distill.distil import PairObjective  # noqa: E402
from edge_sdk.distill.frames import FrameToInput  # noqa: E402
from edge_sdk.distill.losses import SegmentationLoss  # noqa: E402
from edge_sdk.distill.recipes import Optimiser, Preprocess, TaskLoss  # noqa: E402
from tests import nets  # noqa: E402

IGNORE = 255
LABELS_ONLY = TaskLoss(source="labels")


def logits_and_labels(seed: int, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 4, 5, 6, generator=generator)
    labels = torch.randint(0, 4, (2, 10, 12), generator=generator)
    return logits, labels.where(torch.rand(labels.shape, generator=generator) >= ignored, IGNORE)


def test_cross_entropy_is_at_label_size_and_leaves_ignored_pixels_out() -> None:
    logits, labels = logits_and_labels(0)
    full = F.interpolate(logits, size=(10, 12), mode="bilinear")
    expected = F.cross_entropy(full, labels, ignore_index=IGNORE)
    torch.testing.assert_close(SegmentationLoss(LABELS_ONLY, IGNORE)(logits, labels, None), expected)


def test_log_class_weights() -> None:
    logits, labels = logits_and_labels(1)
    share = np.array([0.7, 0.2, 0.1, 0.0])
    loss = SegmentationLoss(TaskLoss(class_weights="log"), IGNORE, share)
    weights = torch.tensor([1 / np.log(1.02 + s) for s in share], dtype=torch.float32)
    assert float(weights[3]) == pytest.approx(50.5, abs=0.1)
    full = F.interpolate(logits, size=(10, 12), mode="bilinear")
    expected = F.cross_entropy(full, labels, weights, ignore_index=IGNORE)
    torch.testing.assert_close(loss(logits, labels, None), expected)
    assert "weights" not in loss.state_dict()


@settings(max_examples=40)
@given(
    st.integers(0, 999), st.sampled_from([0.3, 0.7, 0.9]), st.sampled_from([1, 20, 100, 1000]), st.booleans()
)
def test_hard_pixel_mining(seed: int, prob: float, keep: int, weighted: bool) -> None:
    logits, labels = logits_and_labels(seed)
    share = np.array([0.4, 0.3, 0.2, 0.1]) if weighted else None
    chosen = TaskLoss(ohem_prob=prob, ohem_keep=keep, class_weights="log" if weighted else "none")
    found = SegmentationLoss(chosen, IGNORE, share)(logits, labels, None)
    # Pixel by pixel, in numpy.
    full = F.interpolate(logits, size=(10, 12), mode="bilinear").double().softmax(1).permute(0, 2, 3, 1)
    rows, ids = full.reshape(-1, 4).numpy(), labels.reshape(-1).numpy()
    truth = rows[ids != IGNORE, ids[ids != IGNORE]]
    weights = 1 / np.log(1.02 + share) if share is not None else np.ones(4)
    losses = -np.log(truth) * weights[ids[ids != IGNORE]]
    order = np.argsort(truth)
    hard = max(min(keep, len(order)), int((truth < prob).sum()))
    assert float(found) == pytest.approx(losses[order[:hard]].mean(), rel=1e-4)


@pytest.mark.parametrize("prob", [None, 0.9])
def test_a_batch_without_a_label_has_no_loss_but_a_gradient(prob: float | None) -> None:
    logits, labels = logits_and_labels(0)
    logits.requires_grad_()
    loss = SegmentationLoss(TaskLoss(ohem_prob=prob), IGNORE)(logits, torch.full_like(labels, IGNORE), None)
    assert float(loss.detach()) == 0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_divergence_from_the_teacher() -> None:
    student, _ = logits_and_labels(2)
    teacher, _ = logits_and_labels(3)
    for heat, weight in ((1.0, 1.0), (3.0, 0.5)):
        chosen = TaskLoss(source="teacher", temperature=heat, teacher_weight=weight)
        loss = SegmentationLoss(chosen, IGNORE)
        p, q = (teacher / heat).softmax(1), (student / heat).softmax(1)
        expected = weight * heat**2 * (p * (p.log() - q.log())).sum(1).mean()
        torch.testing.assert_close(loss(student, None, teacher), expected)
        assert float(loss(teacher, None, teacher)) == pytest.approx(0, abs=1e-6)
        # A softmax does not see a common offset.
        assert float(loss(teacher + 5, None, teacher)) == pytest.approx(0, abs=1e-5)


def test_both_sources_add_up_and_labels_alone_ignore_the_teacher() -> None:
    student, labels = logits_and_labels(4)
    teacher, _ = logits_and_labels(5)
    parts = {
        source: SegmentationLoss(TaskLoss(source=source), IGNORE)(student, labels, teacher)
        for source in ("labels", "teacher", "both")
    }
    torch.testing.assert_close(parts["both"], parts["labels"] + parts["teacher"])
    torch.testing.assert_close(parts["labels"], SegmentationLoss(LABELS_ONLY, IGNORE)(student, labels, None))


def test_teacher_logits_of_another_stride_are_resized() -> None:
    student, labels = logits_and_labels(4)
    teacher, _ = logits_and_labels(5)
    loss = SegmentationLoss(TaskLoss(source="teacher"), IGNORE)
    small = F.interpolate(teacher, size=(5, 6), mode="bilinear", align_corners=False)
    big = F.interpolate(teacher, size=(10, 12), mode="nearest")
    assert float(loss(student, labels, big)) == pytest.approx(
        float(loss(student, labels, F.interpolate(big, size=(5, 6), mode="bilinear", align_corners=False)))
    )
    torch.testing.assert_close(loss(student, labels, small), loss(student, labels, teacher))


# The objective


def objective(
    loss: DeltaLoss | None = None,
    *,
    teacher: nn.Module | None = None,
    feature_steps: int = 10,
    teacher_lr: float = 0.0,
    **delta: object,
) -> PairObjective:
    torch.manual_seed(0)
    network = teacher if teacher is not None else nets.randomise(nets.tiny())
    found = to_delta(network, torch.zeros(1, 3, *nets.SIZE_HW), DeltaSettings(**delta))  # type: ignore[arg-type]
    loss = loss or DeltaLoss()
    task = SegmentationLoss(loss.task, IGNORE)
    made = PairObjective(
        found.net, FrameToInput(Preprocess()), loss, task, found.units,
        feature_steps=feature_steps, teacher_lr=teacher_lr,
    )  # fmt: skip
    return made.train()


def batch(seed: int = 0, *, still: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, later = torch.randint(0, 256, (2, 2, *nets.SIZE_HW, 3), generator=generator, dtype=torch.uint8)
    mask = torch.randint(0, 4, (2, *nets.SIZE_HW), generator=generator, dtype=torch.uint8)
    return {
        "first": first,
        "frame": first if still else later,
        "mask": mask,
        "gap": torch.ones(2, dtype=torch.long),
    }


@pytest.mark.parametrize("scale", ["mean", "layer"])
def test_the_first_feature_loss_is_one(scale: str) -> None:
    made = objective(DeltaLoss(feature_scale=scale), candidates="low_rank")  # type: ignore[arg-type]
    _, shown = made(batch())
    assert float(shown["feature"]) == pytest.approx(1.0, abs=1e-6)
    _, shown = made(batch(1))
    assert float(shown["feature"]) != pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("scale", ["mean", "layer"])
def test_pairs_without_motion_do_not_set_the_feature_scale(scale: str) -> None:
    made = objective(DeltaLoss(feature_scale=scale), candidates="low_rank")  # type: ignore[arg-type]
    _, shown = made(batch(still=True))
    assert float(shown["feature"]) == pytest.approx(0.0, abs=1e-6)
    _, shown = made(batch())
    assert float(shown["feature"]) == pytest.approx(1.0, abs=1e-6)


def test_candidates_that_are_still_exact_do_not_set_the_feature_scale() -> None:
    made = objective(DeltaLoss(feature_scale="layer"), candidates="full")
    for step in range(2):
        assert float(made(batch(step))[1]["feature"]) == 0
    assert not made.scale.any()


def test_a_convolution_called_twice_has_a_feature_scale_for_each_call() -> None:
    made = objective(DeltaLoss(feature_scale="layer"), teacher=nets.foreign("shared"), candidates="low_rank")
    _, shown = made(batch())
    assert made.scale.shape == (2,)
    assert float(shown["feature"]) == pytest.approx(1.0, abs=1e-6)


def test_unscaled_feature_loss_is_the_mean_error() -> None:
    made = objective(DeltaLoss(feature_scale="none"), candidates="low_rank")
    data = batch()
    _, shown = made(data)
    net = made.net
    with torch.no_grad():
        first, later = made.to_input(data["first"]), made.to_input(data["frame"])
        state: dict[str, Tensor] = {}
        net.run(Pass.KEYFRAME, first, state, "published")
        _, truth = net.run(Pass.REFERENCE, later, state, "published")
        _, guess = net.run(Pass.DELTA, later, state, "published")
    errors = [(guess[key] - truth[key]).square().mean() for key in truth]
    assert len(errors) == 2
    assert float(shown["feature"]) == pytest.approx(float(sum(errors) / 2), rel=1e-5)


def test_the_feature_loss_ends() -> None:
    made = objective(feature_steps=2)
    shown = [float(made(batch(i))[1]["feature"]) for i in range(3)]
    assert shown[0] > 0
    assert shown[1] > 0
    assert shown[2] == 0
    made.eval()
    seen = int(made.seen)
    made(batch())
    assert int(made.seen) == seen


def test_the_total_is_the_weighted_sum() -> None:
    made = objective(DeltaLoss(feature=0.3, cost=0.7))
    total, shown = made(batch())
    expected = shown["task"] + 0.3 * shown["feature"] + 0.7 * shown["cost"]
    torch.testing.assert_close(total.detach(), expected)


def test_cost_is_charged_by_macs_or_evenly() -> None:
    # One layer on 1/4 of the pixels of the other: 8 * 8 * 9 on 16 x 24, and on 8 x 12.
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)
    ).eval()
    by_macs = objective(teacher=teacher).cost_share
    assert by_macs == {"1": pytest.approx(0.8), "2": pytest.approx(0.2)}
    even = objective(DeltaLoss(cost_by="uniform"), teacher=teacher)
    assert even.cost_share == {"1": 0.5, "2": 0.5}
    _, shown = even(batch())
    assert float(shown["cost"]) == pytest.approx(1 / (1 + np.e), abs=1e-6)


def test_the_cost_pushes_every_gate_down() -> None:
    made = objective(DeltaLoss(task=LABELS_ONLY, feature=0.0, cost=1.0))
    made._cost(torch.zeros(())).backward()
    for layer in made.net.layers:
        assert layer.g_gate is not None
        assert float(layer.g_gate.logit.grad) > 0  # type: ignore[arg-type]  # descent lowers the logit


def test_without_gates_there_is_no_cost() -> None:
    made = objective(candidates="low_rank")
    _, shown = made(batch())
    assert float(shown["cost"]) == 0


def test_only_the_students_train_unless_the_teacher_has_a_rate() -> None:
    frozen = objective()
    frozen(batch())[0].backward()
    students = {id(p) for p in frozen.net.student_parameters()}
    assert len(students) == 2 * 4  # two layers: full, column, row, gate
    for parameter in frozen.net.parameters():
        assert (parameter.grad is not None) == (id(parameter) in students)
    groups = frozen.groups(Optimiser(lr=0.1, weight_decay=0.01))
    assert {id(p) for g in groups for p in g["params"]} == students
    gates = {id(layer.g_gate.logit) for layer in frozen.net.layers if layer.g_gate is not None}
    decayed = {id(p) for g in groups if g.get("weight_decay", 0.01) for p in g["params"]}
    assert not decayed & gates

    free = objective(teacher_lr=0.1)
    free(batch())[0].backward()
    assert all(p.grad is not None for p in free.net.parameters())
    rates = {id(p): g["lr"] for g in free.groups(Optimiser(lr=0.1)) for p in g["params"]}
    assert len(rates) == len(list(free.net.parameters()))
    own = {id(p) for p in free.net.student_parameters()}
    assert {rates[key] for key in own} == {0.1}
    assert all(rate == pytest.approx(0.01) for key, rate in rates.items() if key not in own)


def test_a_teachers_own_names_do_not_make_it_a_student() -> None:
    teacher = nn.Sequential()
    teacher.add_module("g_stem", nn.Conv2d(3, 8, 3, 2, 1))
    teacher.add_module("g_mid", nn.Conv2d(8, 8, 3, 1, 1))
    teacher.add_module("g_out", nn.Conv2d(8, 4, 1))
    made = objective(teacher=teacher)
    trained = {name for name, p in made.net.named_parameters() if p.requires_grad}
    assert trained
    assert all(".g_full." in name or ".g_low." in name or ".g_gate." in name for name in trained)


def test_the_teacher_runs_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Dropout(0.5), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1),
        nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1),
    ).eval()  # fmt: skip
    made = objective(teacher=teacher, candidates="full")
    norm = next(m for m in made.net.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    _, shown = made(batch())
    # Full candidates start as the teacher: without dropout their change is the true one.
    assert made.training
    assert float(shown["feature"]) < 1e-6
    assert torch.equal(norm.running_mean, before)
    gated = objective(teacher=teacher)
    assert all(layer.training and layer.g_gate.training for layer in gated.net.layers)  # type: ignore[union-attr]


def test_a_still_pair_of_an_in_place_network_has_no_loss() -> None:
    """Published state must survive what works in place behind it."""
    made = objective(
        DeltaLoss(task=TaskLoss(source="teacher"), feature=0.0, cost=0.0), teacher=nets.foreign("in_place")
    )
    with torch.no_grad():
        loss, _ = made.eval()(batch(still=True))
    assert float(loss) == pytest.approx(0, abs=1e-6)
