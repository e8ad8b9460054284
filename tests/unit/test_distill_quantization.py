"""Quantisation-aware fine-tuning: what is rounded, when, and which settings are refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="distillation needs torch")
onnx = pytest.importorskip("onnx", reason="the quantised graphs are ONNX")
ort = pytest.importorskip("onnxruntime", reason="the quantised graphs run on ONNX Runtime")
pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

from edge_sdk.distill.delta_recipe import DeltaSettings  # noqa: E402
from edge_sdk.distill.distil import distill  # noqa: E402
from edge_sdk.distill.quantization import round_weight  # noqa: E402
from edge_sdk.distill.tape import Pass  # noqa: E402
from edge_sdk.errors import RecipeError  # noqa: E402
from tests import nets  # noqa: E402
from tests.quantization_world import (  # noqa: E402
    make,
    observed,
    pair_of_frames,
    recipe,
    simulated,
)

# The numbers


def quantized_by_onnxruntime(weight: np.ndarray) -> np.ndarray:
    """A weight as ONNX Runtime's quantiser stores it, dequantised."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = 1

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            return {"x": np.ones((1, weight.shape[1], 8, 8), np.float32)} if self.left >= 0 else None

    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[1], 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/a.onnx", f"{folder}/b.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), source)
        quantize_static(
            source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": True},
        )  # fmt: skip
        found = {t.name: numpy_helper.to_array(t) for t in onnx.load(target).graph.initializer}
    assert not found["w_zero_point"].any()
    assert found["w_quantized"].dtype == np.int8
    return found["w_quantized"] * found["w_scale"][:, None, None, None]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w: w, id="normal"),
        pytest.param(
            lambda w: w * np.array([1e-3, 1, 40, 1e3], np.float32)[:, None, None, None], id="scales"
        ),
        pytest.param(lambda w: w * (np.arange(4) != 2)[:, None, None, None].astype(np.float32), id="zeros"),
        pytest.param(lambda w: np.abs(w), id="positive"),
    ],
)
def test_weights_are_rounded_as_onnxruntime_does(change: Any) -> None:
    weight = change(np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32))
    mine = round_weight(torch.from_numpy(weight)).numpy()
    # Equal but for the last bit: one multiplies by the scale's inverse, the other divides.
    np.testing.assert_allclose(mine, quantized_by_onnxruntime(weight), rtol=1e-6, atol=0)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    size=st.floats(1e-6, 1e6),
    seed=st.integers(0, 99),
)
def test_a_rounded_weight_is_near_on_few_levels_and_stays(
    shape: tuple[int, ...], size: float, seed: int
) -> None:
    weight = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    rounded = round_weight(weight)
    step = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    assert bool(((rounded - weight).abs() <= 0.5001 * step).all())
    levels = rounded / step
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    torch.testing.assert_close(round_weight(rounded), rounded)


def test_gradients_pass_straight_through() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pull = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    (round_weight(weight) * pull).sum().backward()
    torch.testing.assert_close(weight.grad, pull)

    _, simulation = simulated(make())
    simulation.largest.fill_(1.0)
    simulation.start(Pass.DELTA)
    place = next(place for place in simulation._index if place[0] == "delta")
    x = torch.tensor([-3.0, -1.0, 0.2, 1.0, 1.5], requires_grad=True)
    with simulation.rounding():
        y = simulation._through(place, x)
    y.sum().backward()
    # Beyond the range there is nothing to gain.
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    torch.testing.assert_close(y, torch.tensor([-1.0, -1.0, round(0.2 * 127) / 127, 1.0, 1.0]))


@pytest.mark.parametrize("name", ["nested", "in_place", "shared_head", "grouped", "tied_weights"])
@pytest.mark.parametrize("step", [0, 5], ids=["observing", "rounding"])
def test_every_candidate_learns(name: str, step: int) -> None:
    net, simulation = simulated(nets.foreign(name), start=0.5)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    for parameter in net.student_parameters():
        parameter.requires_grad_(True)
    first, later = pair_of_frames()
    net.train()
    # Several draws, because the gate's hard choice gives the other candidate no gradient.
    for seed in range(12):
        torch.manual_seed(seed)
        state: dict[str, Tensor] = {}
        with simulation.training_step(step):
            with torch.no_grad():
                net.run(Pass.KEYFRAME, first, state, "published")
            out, _ = net.run(Pass.DELTA, later, state, "published")
            out.square().sum().backward()
    for parameter in net.student_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
        assert bool(parameter.grad.any())


# Where, and in which form

FORMS = [
    *((name, DeltaSettings()) for name in ("nested", "shared", "shared_head", "in_place", "residual", "tapped")),
    ("nested", DeltaSettings(candidates="low_rank")),
    ("keywords", DeltaSettings()),
    ("residual", DeltaSettings(blocks=("middle.body",))),
    ("nested", DeltaSettings(kept=("middle.stages.0.a",))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "delta"), FORMS)
def test_training_computes_what_is_deployed(name: str, delta: DeltaSettings) -> None:
    """Training's form over two kept tensors gives exactly the two deployed steps, rounded or not."""
    net, simulation = simulated(nets.foreign(name), delta)
    first, later = pair_of_frames()
    observed(net, simulation, first, later)
    assert bool((simulation.largest > 0).all())
    with torch.no_grad():
        answers = []
        for rounds in (True, False):
            simulation.rounds = rounds
            state: dict[str, Tensor] = {}
            net.run(Pass.KEYFRAME, first, state, "published")
            trained, _ = net.run(Pass.DELTA, later, state, "published")
            out, kept = net.keyframe(first)
            deployed, _ = net.delta(later, kept)
            torch.testing.assert_close(trained, deployed, rtol=0, atol=1e-5)
            answers.append(deployed)
            if rounds:
                grids = [value.unique().numel() for value in kept.values()]
                assert max(grids) <= 255
        simulation.remove()
        torch.testing.assert_close(net.keyframe(first)[0], out)
        torch.testing.assert_close(net.delta(later, net.keyframe(first)[1])[0], answers[1], rtol=0, atol=1e-5)
    assert not torch.allclose(answers[0], answers[1], atol=1e-5)


def test_the_two_steps_have_ranges_of_their_own_as_has_each_call() -> None:
    net, simulation = simulated(nets.foreign("shared_head"), DeltaSettings(candidates="full"))
    name = "middle.head"
    found = {place for place in simulation._index if name in place[1]}
    assert found == {
        *(("keyframe", name, "in", call) for call in "12"),  # the teacher's
        *((step, f"{name}.g_full", "in", call) for step in ("keyframe", "delta") for call in "12"),
        *(("keyframe", key, "out", "") for key in (name, f"{name}.call2")),
        *(("both", key, "kept", f"{name}.g_full") for key in (name, f"{name}.call2")),
    }
    first, _ = pair_of_frames()
    observed(net, simulation, first, 3 * first)
    reach = {place: float(simulation.largest[index]) for place, index in simulation._index.items()}
    at_key = reach["keyframe", f"{name}.g_full", "in", "1"]
    assert reach["delta", f"{name}.g_full", "in", "1"] > 1.5 * at_key
    assert reach["keyframe", f"{name}.g_full", "in", "2"] != at_key
    # Teacher and student read the same tensor, so that they round it alike.
    assert reach["keyframe", name, "in", "1"] == at_key


def test_what_is_learnt_from_stays_exact() -> None:
    network = nets.foreign("nested")
    net, simulation = simulated(network)
    first, later = pair_of_frames()
    observed(net, simulation, first, later)
    state: dict[str, Tensor] = {}
    with torch.no_grad(), simulation.rounding():
        rounded, _ = net.run(Pass.KEYFRAME, first, state, "published")
        assert not torch.allclose(rounded, network(first), rtol=0, atol=1e-3)
        for mode in (Pass.REFERENCE, Pass.PLAIN):
            out, _ = net.run(mode, later, state, "published")
            torch.testing.assert_close(out, network(later), rtol=0, atol=1e-4)


LAST = DeltaSettings(skip_last=0, candidates="low_rank", gamma=2)


@pytest.mark.parametrize(
    ("delta", "changes", "exact"),
    [
        (LAST, {}, {"last", "last.g_low.1"}),
        (LAST, {"keep_last": False}, set()),
        (LAST, {"keep": ("*.g_low.0",), "keep_last": False}, {"middle.0.g_low.0", "last.g_low.0"}),
        (LAST, {"keep": ("first", "middle.*")}, {"first", "middle.0", "middle.0.g_low.0", "middle.0.g_low.1",
                                                 "last", "last.g_low.1"}),
        (DeltaSettings(), {}, {"last"}),
        (DeltaSettings(blocks=("last",)), {}, {"last.block", "last.g_block.1"}),
        (DeltaSettings(kept=("middle",), skip_last=0), {}, {"last", "last.g_full", "last.g_low.1"}),
    ],
)  # fmt: skip
def test_what_is_kept(delta: DeltaSettings, changes: dict[str, Any], exact: set[str]) -> None:
    net, simulation = simulated(nets.randomise(Wide()), delta, **changes)
    convs = {name: m for name, m in net.network.named_modules() if isinstance(m, nn.Conv2d)}
    assert {name for name, conv in convs.items() if not parametrize.is_parametrized(conv)} == exact
    assert {name for _, name, what, _ in simulation._index if what == "in"} <= set(convs) - exact


class Wide(nn.Module):
    """Ends with a convolution that is worth a student."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.middle(self.first(image)))


def test_ranges_move_then_freeze() -> None:
    net, simulation = simulated(
        make(), DeltaSettings(candidates="full"), start=0.3, freeze=0.6, momentum=0.25
    )
    first, later = pair_of_frames()
    seen: list[Tensor] = []
    plain: list[bool] = []
    for step, size in enumerate([1, 2, 2, 2, 2, 2, 9, 9, 9, 9]):
        state: dict[str, Tensor] = {}
        with simulation.training_step(step), torch.no_grad():
            plain.append(not simulation.rounds)
            net.run(Pass.KEYFRAME, size * first, state, "published")
            net.run(Pass.DELTA, size * later, state, "published")
        seen.append(simulation.largest.clone())
        net.delta(9 * later, net.keyframe(9 * first)[1])  # such as a validation: it is not looked at
    assert plain == [True] * 3 + [False] * 7
    where = simulation._index["keyframe", "0", "in", "1"]
    start = float(seen[0][where])
    assert start > 0
    far = float(seen[1][where])
    assert start < far
    # Every observed step goes a quarter of the way to what it sees.
    for before, after in pairwise(seen[1:6]):
        aim = start + 4 * (far - start)
        assert float(after[where]) == pytest.approx(
            float(before[where]) + 0.25 * (aim - float(before[where]))
        )
    assert all(torch.equal(value, seen[5]) for value in seen[6:])


@pytest.mark.parametrize(
    ("start", "freeze", "steps", "expected"),
    [(0.1, 0.9, 100, (10, 90)), (0.0, 0.01, 10, (0, 1)), (0.99, 1.0, 6, (5, 6)), (0.5, 0.51, 3, (1, 2))],
)
def test_even_a_short_training_observes_and_rounds(
    start: float, freeze: float, steps: int, expected: tuple[int, int]
) -> None:
    _, simulation = simulated(make(), steps=steps, start=start, freeze=freeze)
    assert (simulation.start_step, simulation.freeze_step) == expected


# Settings

BAD = [
    ({"start": 1.0}, r"'quantization.start'.*less than 1"),
    ({"start": -0.1}, r"'quantization.start'.*greater than or equal to 0"),
    ({"start": 0.5, "freeze": 0.5}, r"'quantization'.*expected 'start' < 'freeze'.*got 0.5 and 0.5"),
    ({"freeze": 1.5}, r"'quantization.freeze'.*less than or equal to 1"),
    ({"momentum": 0}, r"'quantization.momentum'.*greater than 0"),
    ({"momentum": 1.1}, r"'quantization.momentum'.*less than or equal to 1"),
    ({"keep": 3}, r"'quantization.keep'"),
    ({"keep_last": "perhaps"}, r"'quantization.keep_last'"),
    ({"observe": 1}, r"quantization.observe"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_settings(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path / "out", quantization=bad)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            ("layer*",),
            r"'quantization.keep': the pattern 'layer\*' matches no convolution.*3, 3.g_full, 3.g_low.0",
        ),
        (("g_low",), r"'quantization.keep': the pattern 'g_low' matches no convolution"),
        (("*",), r"'quantization': no student convolution is left to round.*Shorten quantization.keep"),
        (("*.g_*",), r"no student convolution is left to round"),
    ],
)
def test_patterns_that_fit_nothing_or_all(tmp_path: Path, keep: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        distill(recipe(tmp_path / "out", quantization={"keep": keep}))
    assert not (tmp_path / "out" / "student.pt").exists()
