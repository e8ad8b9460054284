"""Quantisation-aware fine-tuning: what is rounded, when, that nothing of it stays, and that it helps."""

from __future__ import annotations

from collections.abc import Iterator
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

from edge_sdk.build.recipe import Int8Settings  # noqa: E402
from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.compile import ExportRecipe, export  # noqa: E402
from edge_sdk.compile.quantize.int8 import quantize_pair  # noqa: E402
from edge_sdk.compile.quantize.ranges import Ranges, measure_ranges, share_state  # noqa: E402
from edge_sdk.distill.convert import to_delta  # noqa: E402
from edge_sdk.distill.delta import DeltaNet  # noqa: E402
from edge_sdk.distill.distil import distill, load_student  # noqa: E402
from edge_sdk.distill.frames import FrameToInput  # noqa: E402
from edge_sdk.distill.modules import read_checkpoint, save_checkpoint  # noqa: E402
from edge_sdk.distill.quantization import SimulatedInt8, round_weight  # noqa: E402
from edge_sdk.distill.recipes import DeltaSettings, DistillRecipe, QuantizationSettings  # noqa: E402
from edge_sdk.distill.tape import Pass  # noqa: E402
from edge_sdk.errors import RecipeError  # noqa: E402
from edge_sdk.manifest import state_input, state_output  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from edge_sdk.video import open_source  # noqa: E402
from tests import nets  # noqa: E402

HW = nets.SIZE_HW
CLIP = f"synthetic:shapes?height={HW[0]}&width={HW[1]}&frames=8"
CLASSES = list("abcdef")
INTERVAL = 4


def make(width: int = 8) -> nn.Module:
    """The factory of recipes."""
    torch.manual_seed(0)
    return nets.randomise(nets.tiny(len(CLASSES), width))


def recipe(out: Path, **changes: Any) -> DistillRecipe:
    """A short training on the CPU; mappings among ``changes`` are merged."""
    width = changes.pop("width", 8)
    teacher = out.parent / f"teacher{width}.pt"
    if not teacher.exists():
        save_checkpoint(teacher, make(width).state_dict())
    data: dict[str, Any] = {
        "out": out,
        "teacher": {"factory": f"{__name__}:make", "arguments": {"width": width}, "checkpoint": teacher},
        "task": {"classes": CLASSES},
        "data": {"video": [CLIP], "max_gap": INTERVAL - 1},
        "augment": {"scale": [1.0, 1.2]},
        "loss": {"task": {"source": "teacher"}},
        "optimiser": {"kind": "adamw", "lr": 0.003, "curve": "cosine"},
        "loop": {"steps": 6, "batch": 2, "workers": 0, "accelerator": "cpu", "checkpoint_every": 1},
    }
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_settings(data, DistillRecipe, "test")


def simulated(
    network: nn.Module, delta: DeltaSettings | None = None, steps: int = 10, **changes: Any
) -> tuple[DeltaNet, SimulatedInt8]:
    net = to_delta(network, torch.zeros(1, 3, *HW), delta or DeltaSettings()).net
    chosen = QuantizationSettings(**{"start": 0.0, "momentum": 1.0, **changes})
    return net, SimulatedInt8(net, chosen, steps=steps, example=torch.zeros(1, 3, *HW))


def pair_of_frames() -> tuple[Tensor, Tensor]:
    first, other = nets.frames(2)
    return first, first + 0.3 * other


def observed(net: DeltaNet, simulation: SimulatedInt8, first: Tensor, later: Tensor) -> None:
    """One training step's look at the ranges of a pair."""
    state: dict[str, Tensor] = {}
    with simulation.training_step(0), torch.no_grad():
        net.train()
        net.run(Pass.KEYFRAME, first, state, "published")
        net.run(Pass.DELTA, later, state, "published")
        net.eval()


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


# The whole training


class Stop(Exception):
    """What a user's Ctrl-C is to the loop."""


class Watcher:
    """Stops the run after one step."""

    def __init__(self, stop_at: int) -> None:
        self.stop_at = stop_at

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        if done == self.stop_at:
            raise Stop


def weights(path: Path) -> dict[str, Tensor]:
    return dict(read_checkpoint(path)["state_dict"])


SETTINGS: dict[str, Any] = {"quantization": {"start": 0.34, "freeze": 0.67, "momentum": 0.3}}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "out"
    distill(recipe(out, **SETTINGS))
    return out


# While ranges are observed, while it rounds, and when they are frozen.
@pytest.mark.parametrize("stop_at", [2, 4, 5])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path, straight: Path, stop_at: int) -> None:
    chosen = recipe(tmp_path / "out", **SETTINGS)
    again = chosen.model_copy(update={"teacher": load_student(straight / "student.pt")[1].teacher})
    with pytest.raises(Stop):
        distill(again, progress=Watcher(stop_at))
    distill(again)
    expected, found = (read_checkpoint(path / "last.pt")["weights"] for path in (straight, tmp_path / "out"))
    assert set(found) == set(expected)
    assert "quantization.largest" in found
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(
        torch.equal(value, weights(straight / "student.pt")[key])
        for key, value in weights(tmp_path / "out" / "student.pt").items()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"delta": {"blocks": ["3"]}, "teacher_lr": 0.1},
        {"delta": {"kept": ["3"], "candidates": "low_rank", "gamma": 2}},
        {"loop": {"precision": "bf16-mixed"}, "loss": {"feature_until": 1.0}},
    ],
    ids=["block and teacher", "kept", "bf16"],
)
def test_it_resumes_in_every_kind_of_training(tmp_path: Path, changes: dict[str, Any]) -> None:
    paths = []
    for name in ("straight", "stopped"):
        chosen = recipe(tmp_path / name, **SETTINGS, **changes)
        if name == "stopped":
            with pytest.raises(Stop):
                distill(chosen, progress=Watcher(4))
        distill(chosen)
        paths.append(tmp_path / name)
    expected, found = (read_checkpoint(path / "last.pt")["weights"] for path in paths)
    assert bool((expected["quantization.largest"] > 0).all())
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    expected, found = (weights(path / "student.pt") for path in paths)
    assert not any("parametrizations" in key or "quantization" in key for key in found)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_nothing_of_it_stays(tmp_path: Path, straight: Path) -> None:
    distill(recipe(tmp_path / "float"))
    plain, rounded = weights(tmp_path / "float" / "student.pt"), weights(straight / "student.pt")
    assert {k: (v.shape, v.dtype) for k, v in rounded.items()} == {
        k: (v.shape, v.dtype) for k, v in plain.items()
    }
    assert any(not torch.equal(rounded[key], plain[key]) for key in plain)
    # The float weights under the rounding, not the rounded ones.
    name = next(key for key in rounded if key.endswith("g_low.0.weight"))
    assert not torch.allclose(round_weight(rounded[name]), rounded[name], rtol=0, atol=1e-7)

    net, found, _ = load_student(straight / "student.pt")
    assert found.quantization is not None
    for module in net.modules():
        assert not parametrize.is_parametrized(module)
        assert not module._forward_pre_hooks
    exported, other = (
        export(ExportRecipe(checkpoint=path / "student.pt", frame_hw=HW, out=tmp_path / path.name / "pair"))
        for path in (straight, tmp_path / "float")
    )
    for step in ("keyframe", "delta"):
        ops, others = (
            [node.op_type for node in onnx.load(str(bundle.graph_path(step))).graph.node]
            for bundle in (exported, other)
        )
        # The gates may have chosen differently, which changes how many convolutions there are.
        assert set(ops) == set(others)
        assert not any("Quant" in op or op == "Round" for op in ops)


def test_what_a_validation_shows(tmp_path: Path) -> None:
    chosen = recipe(
        tmp_path / "out", validation=[CLIP], intervals=[3], loop={"validate_every": 2}, quantization={"start": 0.5}
    )  # fmt: skip
    shown: list[dict[str, float]] = []

    class Notes:
        def update(self, stage: str, done: int, total: int, **figures: float) -> None:
            shown.append(figures)

    report = distill(chosen, progress=Notes())
    assert "miou_k3" in shown[1]
    assert "miou_k3_int8" not in shown[2]
    assert "miou_k3_int8" in shown[3]
    assert "miou_k1_int8" in report.figures
    assert 0 < report.figures["miou_k3_int8"] <= 1


def test_a_training_from_before_there_was_this_setting_goes_on(tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "out")
    with pytest.raises(Stop):
        distill(chosen, progress=Watcher(3))
    last = read_checkpoint(tmp_path / "out" / "last.pt")
    del last["identity"]["quantization"]
    save_checkpoint(tmp_path / "out" / "last.pt", last)
    with pytest.raises(Stop):
        distill(chosen, progress=Watcher(4))


# What it is for


def with_logits(model: Any) -> Any:
    """A session whose last output is what the mask is decoded from."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    source = next(node.input[0] for node in copied.graph.node if node.op_type == "ArgMax")
    copied.graph.output.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, None))
    return ort.InferenceSession(copied.SerializeToString(), providers=["CPUExecutionProvider"])


def played(
    pair: dict[str, Any], names: list[str], frames: list[np.ndarray]
) -> Iterator[tuple[str, dict[str, np.ndarray], np.ndarray]]:
    """Every pass of a pair over a clip: step, what the graph received, logits."""
    state: dict[str, np.ndarray] = {}
    for index, frame in enumerate(frames):
        step = "delta" if index % INTERVAL else "keyframe"
        feed = {"frame": frame, **(state if step == "delta" else {})}
        outputs = [value.name for value in pair[step].get_outputs()]
        found = dict(zip(outputs, pair[step].run(None, feed), strict=True))
        if step == "keyframe":
            state = {state_input(name): found[state_output(name)] for name in names}
        yield step, feed, found[outputs[-1]]


def quantized(bundle: Bundle, backend: str, passes: list[Any], **changes: Any) -> dict[str, Any]:
    """Sessions of the bundle's pair in INT8."""
    graphs = {step: onnx.load(str(bundle.graph_path(step))) for step in ("keyframe", "delta")}
    shapes = {spec.name: spec.shape for spec in bundle.manifest.state}
    chosen = Int8Settings(**changes)
    ranges: dict[str, Ranges] = {
        step: measure_ranges(bundle.graph_path(step), (feed for s, feed, _ in passes if s == step), chosen)
        for step, _ in bundle.manifest.steps.items()
    }
    share_state(ranges["keyframe"], ranges["delta"], shapes)
    made = quantize_pair(graphs, ranges, shapes, chosen, backend).graphs
    return {step: with_logits(model) for step, model in made.items()}


def relative_error(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    off, size = np.array(found) - np.array(expected), np.array(expected)
    return float(np.sqrt(np.square(off).mean() / size.var()))


def deployed(student: Path, out: Path, frames: int) -> tuple[Bundle, dict[str, Any], list[np.ndarray]]:
    """The exported pair, its sessions, and a clip that it was not trained on."""
    bundle = export(ExportRecipe(checkpoint=student, frame_hw=HW, out=out, matmul_resize=False))
    pair = {step: with_logits(onnx.load(str(bundle.graph_path(step)))) for step in ("keyframe", "delta")}
    with open_source(CLIP.replace("frames=8", f"frames={frames}&seed=5")) as source:
        return bundle, pair, [frame.image.copy() for frame in source]


def int8_errors(student: Path, out: Path) -> dict[str, float]:
    """By backend, how far the deployed INT8 delta step is from the float teacher's logits."""
    bundle, pair, frames = deployed(student, out, frames=16)
    names = [spec.name for spec in bundle.manifest.state]
    passes = list(played(pair, names, frames))
    teacher = [
        pair["keyframe"].run(None, {"frame": feed["frame"]})[-1]
        for step, feed, _ in passes
        if step == "delta"
    ]
    errors = {}
    for backend in ("tensorrt", "onnxruntime"):
        lower = quantized(bundle, backend, passes)
        answers = [logits for step, _, logits in played(lower, names, frames) if step == "delta"]
        errors[backend] = relative_error(answers, teacher)
    return errors


def add_outlier(path: Path, out: Path) -> Path:
    """The same float student, but one channel inside each low-rank pair is 30 times as large as the others."""
    content = read_checkpoint(path)
    tensors = content["state_dict"]
    for name in [name for name in tensors if name.endswith("g_low.0.weight")]:
        tensors[name][:1] *= 30
        tensors[name.replace("g_low.0", "g_low.1")][:, :1] /= 30
    save_checkpoint(out, content)
    return out


@pytest.mark.slow
def test_a_fine_tuned_student_loses_less_in_int8(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "width": 16,
        "delta": {"candidates": "low_rank", "gamma": 2},
        "loss": {"feature": 0.1, "feature_until": 1.0},
        "loop": {"steps": 120, "batch": 4, "checkpoint_every": 1000},
    }
    distill(recipe(tmp_path / "first", **common))
    start = add_outlier(tmp_path / "first" / "student.pt", tmp_path / "outlier.pt")
    # The same further training from the same student, but for the rounding.
    distill(recipe(tmp_path / "plain", start=start, **common))
    distill(recipe(tmp_path / "aware", start=start, quantization={"start": 0.05}, **common))
    plain, aware = (
        int8_errors(tmp_path / name / "student.pt", tmp_path / name / "pair") for name in ("plain", "aware")
    )
    for backend, error in aware.items():
        # Measured: 0.066 and 0.037; both hold the float students' own error of 0.03.
        assert error < 0.75 * plain[backend], backend


@pytest.mark.parametrize("outlier", [False, True])
def test_the_simulation_is_what_tensorrts_graphs_do(tmp_path: Path, outlier: bool) -> None:
    chosen = recipe(tmp_path / "out", width=16, delta={"candidates": "low_rank", "gamma": 2})
    distill(chosen)
    student = tmp_path / "out" / "student.pt"
    student = add_outlier(student, tmp_path / "outlier.pt") if outlier else student
    bundle, pair, frames = deployed(student, tmp_path / "pair", frames=2)
    names = [spec.name for spec in bundle.manifest.state]
    passes = list(played(pair, names, frames))
    lower = [logits for _, _, logits in played(quantized(bundle, "tensorrt", passes), names, frames)]

    net, _, _ = load_student(student)
    first, later = (FrameToInput(chosen.preprocess)(torch.from_numpy(frame)[None]) for frame in frames)
    # The ranges are those of the float pair, as a calibration's are.
    ranges = QuantizationSettings(start=0.5, momentum=1.0)
    simulation = SimulatedInt8(net, ranges, steps=10, example=first)
    observed(net, simulation, first, later)

    def logits() -> np.ndarray:
        with torch.no_grad():
            out, _ = net.delta(later, net.keyframe(first)[1])
        return nn.functional.interpolate(out, HW, mode="bilinear").numpy()

    exact = logits()
    assert relative_error([exact], [passes[1][2]]) < 1e-3
    lost = relative_error([exact], [lower[1]])
    with simulation.rounding():
        unforeseen = relative_error([logits()], [lower[1]])
    # Measured: 0.20 and 0.08. Where a value lies on the edge between two levels, float sums in another order fall to
    # either side, and what follows differs by a level.
    assert unforeseen < 0.4 * lost
