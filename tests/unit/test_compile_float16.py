"""Float16 graphs, and the frame folded into the first convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="quantising needs onnx")
ort = pytest.importorskip("onnxruntime", reason="quantising needs ONNX Runtime")

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edge_sdk.build.recipe import Float16Settings, Int8Settings  # noqa: E402
from edge_sdk.compile.quantize.float16 import halve_pair  # noqa: E402
from edge_sdk.compile.quantize.frame import CENTRED, fold_frame, range_of_bytes  # noqa: E402
from edge_sdk.compile.quantize.nodes import Wiring, sort_nodes  # noqa: E402
from edge_sdk.compile.quantize.ranges import Ranges, measure_ranges  # noqa: E402
from edge_sdk.compile.quantize.variants import Quantizer  # noqa: E402
from edge_sdk.errors import EngineError  # noqa: E402
from tests import quantised_pairs as pairs  # noqa: E402

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    return pairs.quantizer("recurrent")


def session(model: onnx.ModelProto, *, optimised: bool = True) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if not optimised:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def models(files: dict[str, bytes]) -> dict[str, onnx.ModelProto]:
    return {Path(path).stem: onnx.load_from_string(content) for path, content in files.items()}


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Type of every tensor, constants included."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return {**found, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


# Float16


def test_every_float_tensor_is_half(quantizer: Quantizer) -> None:
    done = quantizer.float16(Float16Settings(), Int8Settings())
    for model in models(done.files).values():
        assert {kind for kind in types_of(model).values() if kind in FLOATS} == {TensorProto.FLOAT16}
    assert done.variant.provenance["kept"] == {"keyframe": {}, "delta": {}}
    assert {(spec.name, spec.dtype) for spec in done.variant.state} == {(n, "float16") for n in pairs.STATE}
    shapes = {spec.name: spec.shape for spec in done.variant.state}
    assert shapes == {"memory": (1, 16, 24, 8), "context": (1, 8)}
    assert {name: form.permutation for name, form in done.variant.forms.items()} == {"memory": (0, 2, 3, 1)}
    assert {(form.scale, form.zero_point) for form in done.variant.forms.values()} == {(1.0, 0)}


@pytest.mark.parametrize("name", ["recurrent", "transposed"])
def test_float16_answers_as_float32_does(name: str) -> None:
    """Half has 11 bits; a dozen roundings of 2^-12 each stay below one in a hundred."""
    if name != "recurrent":
        pytest.importorskip("torch", reason="the pair is exported with torch")
    quantizer = pairs.quantizer(name)
    done = quantizer.float16(Float16Settings(), Int8Settings())
    frames = pairs.images(8)
    both = zip(
        pairs.stream(quantizer.graphs, frames),
        pairs.stream(models(done.files), frames, optimised=False),
        strict=True,
    )
    for expected, found in both:
        assert (expected["mask"] == found["mask"]).mean() > 0.99
        for key in set(expected) - {"mask"}:
            form = done.variant.forms.get(key.removeprefix("state.").removesuffix(".next"))
            values = pairs.floats(found[key], form) if form else found[key]
            assert np.abs(values - expected[key]).max() <= 0.01 * np.abs(expected[key]).max()


def loud(step: str, gain: float) -> onnx.ModelProto:
    """The pair with its input ``gain`` times larger, and made up for by the first layer."""
    constants = {t.name: numpy_helper.to_array(t) for t in pairs.recurrent_graph(step).graph.initializer}
    return pairs.recurrent_graph(
        step,
        scale=constants["scale"] * np.float32(gain),
        shift=constants["shift"] * np.float32(gain),
        first__weight=constants["first.weight"] / np.float32(gain),
    )


def ranges_of(graphs: dict[str, onnx.ModelProto], folder: Path) -> dict[str, Ranges]:
    found = {}
    state: dict[str, np.ndarray] = {}
    for step, model in graphs.items():
        onnx.save(model, str(folder / f"{step}.onnx"))
        feeds = [{"frame": image, **state} for image in pairs.images(2, pairs.SCENE)]
        found[step] = measure_ranges(folder / f"{step}.onnx", feeds, Int8Settings())
        if step == "keyframe":
            keys = [f"state.{name}.next" for name in pairs.STATE]
            answers = session(model).run(keys, feeds[0])
            state = {key.removesuffix(".next"): value for key, value in zip(keys, answers, strict=True)}
    return found


def halved(graphs: dict[str, onnx.ModelProto], folder: Path, **settings: Any) -> Any:
    return halve_pair(graphs, ranges_of(graphs, folder), pairs.STATE, Float16Settings(**settings))


def test_what_would_overflow_stays_in_float32_and_the_reason_is_told(tmp_path: Path) -> None:
    graphs = {step: loud(step, 1e5) for step in ("keyframe", "delta")}
    done = halved(graphs, tmp_path)
    for step, model in done.graphs.items():
        kept = done.kept[step]
        assert set(kept) == {"node_scaled", "node_normalised", "node_stem"}
        assert all("its values reach" in reason for reason in kept.values())
        kinds = types_of(model)
        makers = Wiring(model.graph).makers
        for tensor, node in makers.items():
            if node.op_type not in ("Cast", "Constant") and kinds[tensor] in FLOATS:
                assert (kinds[tensor] == TensorProto.FLOAT) == (node.name in kept), node.name
        state = [v for v in (*model.graph.input, *model.graph.output) if v.name.startswith("state.")]
        assert {v.type.tensor_type.elem_type for v in state} == {TensorProto.FLOAT16}, "no state in float32"
    # The answer is that of float32; of values that went through float16 nothing would be left.
    frame = pairs.images(1)[0]
    right = session(graphs["keyframe"]).run(["mask"], {"frame": frame})[0]
    found = session(done.graphs["keyframe"], optimised=False).run(["mask"], {"frame": frame})[0]
    assert (found == right).mean() > 0.99
    for step, model in done.graphs.items():
        wiring = Wiring(model.graph)
        for name in ("node_normalised", "node_stem"):
            reader = next(node for node in model.graph.node if node.name == name)
            assert wiring.makers[reader.input[0]].name in done.kept[step], "not by way of a cast"


def test_state_that_float16_cannot_hold_is_an_error(tmp_path: Path) -> None:
    graphs = {step: pairs.recurrent_graph(step) for step in ("keyframe", "delta")}
    ranges = ranges_of(graphs, tmp_path)
    ranges["delta"]["state.memory.next"] = (-9e4, 1.0)
    with pytest.raises(
        EngineError, match=r"the state 'memory' reaches 9e\+04, float16 ends at 65504.*'precisions'"
    ):
        halve_pair(graphs, ranges, pairs.STATE, Float16Settings())


@pytest.mark.parametrize(("largest", "kept"), [(1e4, False), (1.0, True)])
def test_the_limit_is_the_recipes(tmp_path: Path, largest: float, kept: bool) -> None:
    graphs = {step: pairs.recurrent_graph(step) for step in ("keyframe", "delta")}
    done = halved(graphs, tmp_path, largest=largest)
    assert ("node_stem" in done.kept["keyframe"]) == kept


def test_a_constant_beyond_float16_keeps_its_value(tmp_path: Path) -> None:
    """Brightness in other units: a scale of 1e5 times pixels of 1e-7."""
    scale, shift = np.full((1, 3, 1, 1), 1e5, np.float32), np.full((1, 3, 1, 1), -1e5, np.float32)
    constants = {tensor.name: tensor for tensor in pairs.recurrent_graph("delta").graph.initializer}
    first = numpy_helper.to_array(constants["first.weight"])
    small = (first / 1e7).astype(np.float32)
    graphs = {
        step: pairs.recurrent_graph(step, scale=scale, shift=shift, first__weight=small)
        for step in ("keyframe", "delta")
    }
    done = halved(graphs, tmp_path)
    for step, model in done.graphs.items():
        assert {"node_scaled", "node_normalised"} <= set(done.kept[step])
        found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}["scale"]
        assert found.dtype == np.float32
        assert (found == 1e5).all(), "not cut to 65504"


@pytest.mark.parametrize("pattern", ["mix", "node_mixed", "m*x"])
def test_layers_named_in_the_recipe_stay_in_float32(quantizer: Quantizer, pattern: str) -> None:
    done = quantizer.float16(Float16Settings(keep=(pattern,)), Int8Settings())
    assert done.variant.provenance["kept"] == {step: {"node_mixed": "kept"} for step in ("keyframe", "delta")}
    for model in models(done.files).values():
        kinds = types_of(model)
        assert kinds["mix.weight"] == TensorProto.FLOAT
        assert kinds["first.weight"] == TensorProto.FLOAT16


# INT8 with a float16 remainder


def test_int8_with_a_float16_remainder_is_typed_throughout(quantizer: Quantizer) -> None:
    done = quantizer.int8(Int8Settings(), "tensorrt")
    assert done.variant.provenance["remainder"] == "float16"
    for step, model in models(done.files).items():
        version = next(entry.version for entry in model.opset_import if entry.domain == "")
        assert version >= 19, "the first whose Q/DQ take float16"
        assert {kind for kind in types_of(model).values() if kind in FLOATS} == {TensorProto.FLOAT16}
        original = [node.name for node in quantizer.graphs[step].graph.node]
        assert set(original) <= {node.name for node in model.graph.node}
    plain = quantizer.int8(Int8Settings(remainder="float32"), "tensorrt")
    for model in models(plain.files).values():
        assert TensorProto.FLOAT16 not in types_of(model).values()
    asked: Any = (done.variant.provenance["asked"], plain.variant.provenance["asked"])
    assert [set(one["delta"]) for one in asked] == [{"int8", "float16"}, {"int8", "float32"}]


def test_a_remainder_that_would_overflow_stays_in_float32_and_says_so(
    quantizer: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = {step: dict(found) for step, found in quantizer.ranges(Int8Settings()).items()}
    ranges["delta"]["logits"] = (-1.0, 7e4)
    monkeypatch.setattr(quantizer, "ranges", lambda settings: ranges)
    done = quantizer.int8(Int8Settings(), "tensorrt")
    said = done.variant.provenance["remainder"]
    assert said == "float32, because of node_logits in the delta step: its values reach 7e+04"
    for model in models(done.files).values():
        assert TensorProto.FLOAT16 not in types_of(model).values()


# The frame in the first convolution


PREPROCESSING: dict[str, tuple[list[float], list[float]]] = {
    "one scale": ([1 / 60] * 3, [-1.9] * 3),
    "a scale a channel": ([1 / 58, 1 / 57, 1 / 64], [-2.1, -2.0, -1.8]),
    "zero to one": ([1 / 255] * 3, [0.0] * 3),
    "dark": ([1 / 255] * 3, [-1.0] * 3),
}


@pytest.mark.parametrize(("scale", "shift"), PREPROCESSING.values(), ids=list(PREPROCESSING))
@pytest.mark.parametrize("step", ["keyframe", "delta"])
def test_folding_the_frame_changes_the_outermost_pixels_alone(
    step: str, scale: list[float], shift: list[float]
) -> None:
    def column(values: list[float]) -> np.ndarray:
        return np.array(values, np.float32).reshape(1, 3, 1, 1)

    model = pairs.recurrent_graph(step, scale=column(scale), shift=column(shift))
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    found = fold_frame(folded)
    assert found is not None
    onnx.checker.check_model(folded, full_check=True)
    assert found.matrix == pytest.approx(np.diag(scale), rel=1e-4)
    assert found.shift == pytest.approx(shift, abs=1e-5)
    low, high = range_of_bytes(found)
    assert high - low == 255
    assert low <= 0 <= high
    assert not {"Mul", "Cast"} & {node.op_type for node in folded.graph.node[:4]}
    frame = pairs.images(1)[0]
    before, after = (stem_of(graph, frame) for graph in (model, folded))
    error = np.abs(after - before) / np.abs(before).max()
    assert error[..., 1:, 1:].max() < 1e-5
    # A border of zeros is a colour; where no byte is that colour for every channel, the border differs, a little.
    assert error.max() < 0.15


def stem_of(model: onnx.ModelProto, frame: np.ndarray) -> np.ndarray:
    """The first convolution's answer."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(onnx.ValueInfoProto(name="stem"))
    state = {f"state.{name}": np.zeros(shape, np.float32) for name, shape in pairs.STATE.items()}
    running = session(shown, optimised=False)
    feeds = {"frame": frame, **state}
    answer: np.ndarray = running.run(["stem"], {i.name: feeds[i.name] for i in running.get_inputs()})[0]
    return answer


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_order_of_channels_is_folded_in_too(order: str) -> None:
    model = pairs.recurrent_graph("keyframe")
    if order == "RGB":
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "reversed"))
        swap = helper.make_node("Gather", ["planes", "reversed"], ["swapped"], name="swap", axis=1)
        scaled = next(node for node in model.graph.node if node.name == "node_scaled")
        scaled.input[0] = "swapped"
        model.graph.node.append(swap)
        sort_nodes(model)
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    found = fold_frame(folded)
    assert found is not None
    assert (np.argmax(found.matrix, 0) == ([2, 1, 0] if order == "RGB" else [0, 1, 2])).all()
    frame = pairs.images(1)[0]
    before, after = (stem_of(graph, frame)[..., 1:, 1:] for graph in (model, folded))
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()


@pytest.mark.parametrize("shared", [False, True])
def test_several_first_convolutions_are_folded(shared: bool) -> None:
    """The keyframe step of a pair of whole networks has two, untrained ones of the same weights."""
    model = pairs.recurrent_graph("keyframe")
    stem = next(node for node in model.graph.node if node.name == "node_stem")
    second = onnx.NodeProto()
    second.CopyFrom(stem)
    second.name, second.output[0] = "node_second", "second"
    if not shared:
        weight = numpy_helper.to_array(Wiring(model.graph).constants[stem.input[1]])
        model.graph.initializer.append(numpy_helper.from_array(-2 * weight, "second.weight"))
        second.input[1] = "second.weight"
    model.graph.node.append(second)
    model.graph.output.append(onnx.ValueInfoProto(name="second"))
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    assert fold_frame(folded) is not None
    assert [node.input[0] for node in folded.graph.node if node.op_type == "Conv"].count(CENTRED) == 2
    feeds = {"frame": pairs.images(1)[0]}
    before, after = (session(graph, optimised=False).run(["second"], feeds)[0] for graph in (model, folded))
    assert np.abs(after - before)[..., 1:, 1:].max() < 1e-5 * np.abs(before).max()


@pytest.mark.parametrize("kernel", [(2, 2), (1, 2), (4, 2)])
def test_means_of_neighbours_are_folded_in_too(kernel: tuple[int, int]) -> None:
    """A student that sees half of the frame reads means of it."""
    model = _with_means(kernel_shape=kernel, strides=kernel)
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    assert fold_frame(folded) is not None
    assert "AveragePool" not in {node.op_type for node in folded.graph.node}
    assert [node.input[0] for node in folded.graph.node if node.op_type == "Conv"].count(CENTRED) == 2
    feeds = {"frame": pairs.images(1)[0]}
    before, after = (session(graph, optimised=False).run(["second"], feeds)[0] for graph in (model, folded))
    assert after.shape == before.shape
    assert np.abs(after - before)[..., 1:-1, 1:-1].max() < 1e-5 * np.abs(before).max()


@pytest.mark.parametrize(
    "given",
    [
        {"kernel_shape": (2, 2), "strides": (1, 1)},  # they overlap
        {"kernel_shape": (2, 2), "strides": (2, 2), "pads": (1, 1, 1, 1)},
        {"kernel_shape": (7, 2), "strides": (7, 2)},  # rows are left over
    ],
)
def test_other_means_are_left_as_they_are(given: dict[str, Any]) -> None:
    model = _with_means(**given)
    before = model.SerializeToString()
    assert fold_frame(model) is None
    assert model.SerializeToString() == before


def _with_means(**given: Any) -> onnx.ModelProto:
    """A keyframe step with a second first convolution, which reads means."""
    model = pairs.recurrent_graph("keyframe")
    stem = next(node for node in model.graph.node if node.name == "node_stem")
    second = onnx.NodeProto()
    second.CopyFrom(stem)
    second.name, second.output[0], second.input[0] = "node_second", "second", "means"
    means = helper.make_node("AveragePool", [stem.input[0]], ["means"], name="node_means", **given)
    model.graph.node.extend([means, second])
    sort_nodes(model)
    model.graph.output.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, None))
    return model


def test_a_blank_byte_for_zeros(quantizer: Quantizer) -> None:
    """The border stands for what normalises to zero: byte 114 of a scale of 1/60 and a shift of -1.9."""
    folded = onnx.ModelProto()
    folded.CopyFrom(quantizer.graphs["keyframe"])
    found = fold_frame(folded)
    assert found is not None
    assert found.blank == 114
    dequantize = Wiring(folded.graph).makers[CENTRED]
    constants = {t.name: numpy_helper.to_array(t) for t in folded.graph.initializer}
    assert [constants[name].tolist() for name in dequantize.input[1:]] == [1.0, 114]


def resized(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "scales"))
    _insert(
        model,
        helper.make_node("Resize", ["normalised", "", "scales"], ["other"], name="other", mode="linear"),
    )


def clipped(model: onnx.ModelProto) -> None:
    _insert(model, helper.make_node("Relu", ["normalised"], ["other"], name="other"))


def gamma(model: onnx.ModelProto) -> None:
    """Elementwise, made of operators that are looked through, and no affine map: the square."""
    _insert(model, helper.make_node("Mul", ["normalised", "normalised"], ["other"], name="other"))


def mixed_places(model: onnx.ModelProto) -> None:
    """Affine, but not of each pixel alone."""
    model.graph.initializer.append(numpy_helper.from_array(np.linspace(0, 1, 48).astype(np.float32), "ramp"))
    _insert(model, helper.make_node("Add", ["normalised", "ramp"], ["other"], name="other"))


def read_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Sigmoid", ["normalised"], ["also"], name="also"))
    model.graph.output.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, (1, 3, *pairs.SIZE)))


def _insert(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    next(n for n in model.graph.node if n.name == "node_stem").input[0] = "other"
    model.graph.node.append(node)
    sort_nodes(model)


@pytest.mark.parametrize(
    "spoil", [resized, clipped, gamma, mixed_places, read_twice], ids=lambda f: f.__name__
)
def test_a_frame_that_cannot_be_folded_is_left_as_it_is(spoil: Any, tmp_path: Path) -> None:
    model = pairs.recurrent_graph("keyframe")
    spoil(model)
    onnx.checker.check_model(model)
    before = model.SerializeToString()
    assert fold_frame(model) is None
    assert model.SerializeToString() == before
