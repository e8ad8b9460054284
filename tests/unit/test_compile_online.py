"""Online pairs as bundles: every weight that learns can be exchanged in the graphs, by its name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting needs torch")
onnx = pytest.importorskip("onnx", reason="exporting needs onnx")
ort = pytest.importorskip("onnxruntime", reason="an export is checked with ONNX Runtime")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import ModelProto, TensorProto, helper, numpy_helper  # noqa: E402
from torch import Tensor  # noqa: E402

from edge_sdk.build.recipe import Float16Settings, Int8Settings  # noqa: E402
from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.compile.calibrate import record  # noqa: E402
from edge_sdk.compile.graphs import Decoder, StepGraph  # noqa: E402
from edge_sdk.compile.learnable import check_open, learned_values, set_pair, shaken, show_logits, undecided  # noqa: E402
from edge_sdk.compile.quantize.variants import Quantizer  # noqa: E402
from edge_sdk.compile.specs import step_spec  # noqa: E402
from edge_sdk.compile.weights import leave_open, rounded, set_weights, shut  # noqa: E402
from edge_sdk.distill.frames import FrameToInput  # noqa: E402
from edge_sdk.distill.online import OnlinePair, OnlineRecipe, make_pair  # noqa: E402
from edge_sdk.distill.recipes import Preprocess  # noqa: E402
from edge_sdk.errors import BundleError, EngineError, RecipeError, ShapeError  # noqa: E402
from edge_sdk.runtime.runner import EdgeRunner  # noqa: E402
from edge_sdk.runtime.schedule import EverySchedule  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from tests import online_pairs  # noqa: E402

HW = (24, 40)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Join ``correct``, so that both steps hold the student, with weights left open."""
    return online_pairs.bundle(
        tmp_path_factory.mktemp("online"), HW, join="correct", open=("8.*", "4.weight", "slope")
    )


def pair_of(bundle: Bundle) -> OnlinePair:
    online = bundle.manifest.online
    assert online is not None
    recipe = parse_settings(online.recipe, OnlineRecipe, "manifest")
    return make_pair(
        recipe, bundle.path / online.weights, allowed=("tests.nets:", "edge_sdk.distill.models:")
    )


def images(count: int, size_hw: tuple[int, int] = HW) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *size_hw, 3), np.uint8))


def step_graphs(pair: OnlinePair, size_hw: tuple[int, int] = HW) -> dict[str, StepGraph]:
    to_input, decoder = FrameToInput(Preprocess()), Decoder(size_hw, 1)
    key = StepGraph(pair, "keyframe", to_input, decoder, (), matmul_resize=False)
    with torch.no_grad():
        key(torch.zeros(*size_hw, 3, dtype=torch.uint8))
    delta = StepGraph(pair, "delta", to_input, decoder, key.writes, matmul_resize=False)
    return {"keyframe": key, "delta": delta}


# What a bundle holds


def test_the_manifest_names_every_weight_that_learns(exported: Bundle) -> None:
    online, pair = exported.manifest.online, pair_of(exported)
    assert online is not None
    assert exported.manifest.method == "online"
    assert set(exported.manifest.files) == {"keyframe.onnx", "delta.onnx", "online.pt"}
    student = {name for name in pair.learned() if name.startswith("student.")}
    assert set(online.tensors["keyframe"]) == student
    assert set(online.tensors["delta"]) == student | {"offset", "slope"}
    for step, tensors in online.tensors.items():
        model = onnx.load(str(exported.graph_path(step)))
        held = {tensor.name: tensor for tensor in model.graph.initializer}
        assert len(set(tensors.values())) == len(tensors), "each has one of its own"
        for name, initialiser in tensors.items():
            found = numpy_helper.to_array(held[initialiser])
            assert np.array_equal(found, pair.learned()[name].detach().numpy())
            users = [node.op_type for node in model.graph.node if initialiser in node.input]
            assert users
            assert "Identity" not in users
        assert not any(name.startswith("teacher.") for name in held)
    assert online.open == ("slope", "student.4.weight", "student.8.weight", "student.8.bias")


def test_nothing_of_the_workstation_is_needed(exported: Bundle) -> None:
    online = exported.manifest.online
    assert online is not None
    recipe = parse_settings(online.recipe, OnlineRecipe, "manifest")
    assert recipe.teacher is not None
    assert recipe.student.checkpoint is None
    assert recipe.teacher.checkpoint is None
    assert str(exported.path.parent) not in str(online.recipe)


def test_open_weights_are_no_inputs_of_a_step(exported: Bundle) -> None:
    online = exported.manifest.online
    assert online is not None
    for step, spec in exported.manifest.steps.items():
        session = ort.InferenceSession(
            str(exported.graph_path(step)), _quiet(), providers=["CPUExecutionProvider"]
        )
        assert [value.name for value in session.get_inputs()] == [tensor.name for tensor in spec.inputs]
        opened = {value.name for value in session.get_overridable_initializers()}
        assert opened == set(online.open) & set(online.tensors[step])
    assert [tensor.name for tensor in spec.inputs] == ["frame", "state.residual", "state.student"]
    model = onnx.load(str(exported.graph_path("delta")))
    shut(model)
    assert [value.name for value in model.graph.input] == ["frame", "state.residual", "state.student"]
    assert step_spec(model, spec.graph).macs == spec.macs


def _quiet() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options


def test_an_open_weight_that_is_given_counts(exported: Bundle) -> None:
    path = str(exported.graph_path("keyframe"))
    session = ort.InferenceSession(path, _quiet(), providers=["CPUExecutionProvider"])
    image, bias = images(1)[0], np.array([0, 0, 1e6], np.float32)
    plain, given = ({"frame": image}, {"frame": image, "student.8.bias": bias})
    assert not np.array_equal(session.run(None, plain)[1], session.run(None, given)[1])


def test_a_bundle_runs_as_torch_does(exported: Bundle) -> None:
    pair = pair_of(exported)
    graphs = step_graphs(pair)
    with EdgeRunner(exported, schedule=EverySchedule(interval=2)) as runner, torch.no_grad():
        state: tuple[Tensor, ...] = ()
        for index, image in enumerate(images(4)):
            frame = torch.from_numpy(image)
            expected, *written = graphs["delta" if index % 2 else "keyframe"](frame, *state)
            state = tuple(written)
            assert (np.array(runner(image).mask) != expected.numpy()).mean() <= TOLERANCE


# Other weights


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", ["keyframe", "delta"])
def test_other_weights_answer_as_torch_does(exported: Bundle, step: Any, seed: int) -> None:
    """To the logits, because masks may agree by chance."""
    online, pair = exported.manifest.online, pair_of(exported)
    assert online is not None
    graphs = step_graphs(pair)
    frame = torch.from_numpy(images(1)[0])
    with torch.no_grad():
        before = undecided(graphs[step])(frame, *(graphs["keyframe"](frame)[1:] if step == "delta" else ()))
        values = shaken(learned_values(pair), seed)
        set_pair(pair, values)
        state = graphs["keyframe"](frame)[1:]
        expected = undecided(graphs[step])(frame, *(state if step == "delta" else ()))
    model = onnx.load(str(exported.graph_path(step)))
    tensors = online.tensors[step]
    set_weights(model, tensors, {name: values[name] for name in tensors})
    show_logits(model, "mask")
    session = ort.InferenceSession(model.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    given = dict(zip(names, (t.numpy() for t in (frame, *state))))
    found = dict(zip([value.name for value in session.get_outputs()], session.run(None, given), strict=True))
    scale = float(expected[0].abs().max())
    assert np.abs(found["logits"] - expected[0].numpy()).max() < 1e-4 * scale
    changed = [(a - b).abs().max() / b.abs().max() for a, b in zip(before, expected, strict=True)]
    # A keyframe step answers with the teacher, and writes what the student makes of it.
    # A hundred times what rounding does.
    assert (changed[0] > 0.01) == (step == "delta")
    assert all(share > 0.01 for share in changed[1:])
    for name, mine in zip(graphs["keyframe"].writes if step == "keyframe" else (), expected[1:], strict=True):
        assert np.allclose(found[f"state.{name}.next"], mine.numpy(), rtol=1e-3, atol=1e-5)


def test_every_single_weight_counts(exported: Bundle) -> None:
    """None was folded into another constant, where a new value would do nothing."""
    online, image = exported.manifest.online, images(1)[0]
    assert online is not None
    model = onnx.load(str(exported.graph_path("delta")))
    show_logits(model, "mask")
    shapes = {t.name: t.shape for t in exported.manifest.state}
    feed = {"frame": image} | {f"state.{n}": np.full(shape, 0.3, np.float32) for n, shape in shapes.items()}
    tensors = online.tensors["delta"]
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values = {name: kept[initialiser] for name, initialiser in tensors.items()}

    def run(given: dict[str, np.ndarray]) -> np.ndarray:
        set_weights(model, tensors, given)
        session = ort.InferenceSession(
            model.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"]
        )
        return session.run(["logits"], feed)[0]

    first = run(values)
    for name, value in values.items():
        assert not np.allclose(run({**values, name: value * 1.5 + 0.01}), first, atol=1e-6), name
    assert np.array_equal(run(values), first)


def test_jitnet_with_frame_statistics_keeps_one_node_a_norm(tmp_path: Path) -> None:
    size = (47, 66)
    student = {
        "factory": "edge_sdk.distill.models:jitnet",
        "arguments": {"classes": 3, "width": 0.125, "norm": "frame"},
    }
    bundle = online_pairs.bundle(tmp_path, size, student=student, fresh=("*",))
    online = bundle.manifest.online
    assert online is not None
    assert set(online.tensors) == {"delta"}, "with join 'replace' the keyframe step has nothing that learns"
    pair = pair_of(bundle)
    assert set(online.tensors["delta"]) == set(pair.learnable())
    kinds = [node.op_type for node in onnx.load(str(bundle.graph_path("delta"))).graph.node]
    assert kinds.count("InstanceNormalization") == 16
    assert bundle.manifest.state == ()


def test_a_graph_that_ignores_new_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("edge_sdk.compile.export")
    monkeypatch.setattr(module, "set_weights", lambda model, tensors, values: None)
    with pytest.raises(EngineError, match=r"with other weights, .* differ in the delta step's logits"):
        online_pairs.bundle(tmp_path, HW)
    assert not (tmp_path / "bundle").exists()


def test_what_no_step_uses_cannot_be_open() -> None:
    check_open({"keyframe": {"a": "a"}, "delta": {"b": "b"}}, ("a", "b"))
    with pytest.raises(RecipeError, match="'open': neither step uses 'c'"):
        check_open({"keyframe": {"a": "a"}, "delta": {"b": "b"}}, ("a", "c"))


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_networks_of_other_classes_are_refused_by_name(which: str, tmp_path: Path) -> None:
    wrong = online_pairs.module(tmp_path, "wrong", 7, 1)
    with pytest.raises(ShapeError, match=rf"{which}: expected class logits"):
        online_pairs.bundle(tmp_path, HW, **{which: wrong})


# Setting weights


def small() -> ModelProto:
    """Two initialisers: ``w`` (2, 3) float32 and ``h`` (2,) float16."""
    arrays: dict[str, np.ndarray] = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "h": np.ones(2, np.float16),
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1,))],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph)


NAMES = {"weight": "w", "half": "h"}
GOOD: dict[str, np.ndarray] = {"weight": np.zeros((2, 3), np.float32), "half": np.zeros(2, np.float16)}
BAD: list[tuple[dict[str, str], dict[str, np.ndarray], type[Exception], str]] = [
    (NAMES, {"weight": GOOD["weight"]}, BundleError, "weights 'half': missing"),
    (NAMES, {**GOOD, "more": GOOD["half"]}, BundleError, "weights 'more': nowhere in this graph"),
    ({**NAMES, "gone": "v"}, {**GOOD, "gone": GOOD["half"]}, BundleError, "no weights 'v' for 'gone'"),
    (
        NAMES,
        {**GOOD, "weight": np.zeros((3, 2), np.float32)},
        ShapeError,
        r"expected \(2, 3\) .*got \(3, 2\)",
    ),
    (NAMES, {**GOOD, "weight": np.zeros((2, 3))}, ShapeError, "float32, got .* float64"),
    (NAMES, {**GOOD, "half": np.zeros(2, np.float32)}, ShapeError, "float16, got .* float32"),
    (NAMES, {**GOOD, "half": np.zeros((), np.float16)}, ShapeError, r"got \(\) float16"),
]


@pytest.mark.parametrize(("names", "values", "error", "message"), BAD)
def test_weights_that_do_not_fit_change_nothing(
    names: dict[str, str], values: dict[str, np.ndarray], error: type[Exception], message: str
) -> None:
    model = small()
    before = model.SerializeToString()
    with pytest.raises(error, match=message):
        set_weights(model, names, values)
    assert model.SerializeToString() == before


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), shape=st.lists(st.integers(0, 3), max_size=4), flip=st.booleans())
def test_weights_of_any_shape_and_order_arrive_bit_for_bit(seed: int, shape: list[int], flip: bool) -> None:
    model = small()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), "w"))
    value = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    value = np.asfortranarray(value) if flip and shape else value
    set_weights(model, {"weight": "w"}, {"weight": value})
    found = numpy_helper.to_array(model.graph.initializer[0])
    assert found.shape == value.shape
    assert np.array_equal(found, value)
    assert [tensor.name for tensor in model.graph.initializer] == ["w", "h"]


def test_weights_for_graphs_of_halves() -> None:
    values = {"weight": np.full((2, 3), 0.1, np.float32), "half": np.full(2, 0.1, np.float32)}
    found = rounded(small(), NAMES, values)
    assert {name: value.dtype for name, value in found.items()} == {"weight": np.float32, "half": np.float16}
    set_weights(small(), NAMES, found)
    with pytest.raises(BundleError, match="weights 'half': beyond what float16 holds"):
        rounded(small(), NAMES, {**values, "half": np.full(2, 1e5, np.float32)})
    with pytest.raises(BundleError, match="no float weights for 'other'"):
        rounded(small(), NAMES, {"other": values["half"]})


def test_open_and_shut() -> None:
    model = small()
    before = model.SerializeToString()
    leave_open(model, ("h", "nobody"))
    assert [value.name for value in model.graph.input] == ["x", "h"]
    onnx.checker.check_model(model)
    shut(model)
    assert model.SerializeToString() == before


# Other precisions


class Kept:
    """Takes what a calibration records, and gives it to a quantiser."""

    sha256 = "0" * 64

    def __init__(self, bundle: Bundle) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        clips = [images(4), images(3)[::-1]]
        self.records = record(bundle, clips, self, 0)  # type: ignore[arg-type]

    def write(self, name: str, array: np.ndarray) -> None:
        self.arrays[name] = array.copy()

    def check_for(self, bundle: Bundle) -> None: ...

    def count(self, step: str) -> int:
        return sum(found.step == step for found in self.records)

    def passes(self, step: str) -> Any:
        for found in self.records:
            if found.step == step:
                inputs = {name: self.arrays[member] for name, member in found.inputs.items()}
                yield SimpleNamespace(inputs=inputs)


def test_it_can_be_calibrated_halves_keep_the_names_and_int8_is_refused(exported: Bundle) -> None:
    kept = Kept(exported)
    assert (kept.count("keyframe"), kept.count("delta")) == (2, 5)
    assert set(next(kept.passes("delta")).inputs) == {"frame", "state.residual", "state.student"}
    quantizer = Quantizer(exported, kept)  # type: ignore[arg-type]
    online, values = exported.manifest.online, shaken(learned_values(pair_of(exported)))
    assert online is not None
    for path, content in quantizer.float16(Float16Settings(), Int8Settings(passes=None)).files.items():
        model = onnx.load_from_string(content)
        tensors = online.tensors[Path(path).stem]  # type: ignore[index]
        held = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        assert {held[name] for name in tensors.values()} == {TensorProto.FLOAT16}
        assert not set(online.open) & {value.name for value in model.graph.input}
        given = {name: values[name] for name in tensors}
        set_weights(model, tensors, rounded(model, tensors, given))
        onnx.checker.check_model(model)
    with pytest.raises(RecipeError, match=r"INT8: the student of bundle .* learns on the stream"):
        quantizer.int8(Int8Settings(passes=None), "tensorrt")
