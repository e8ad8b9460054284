"""INT8 graphs: each backend's form, state as bytes with one scale at both ends, and answers close to float32's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="quantising needs onnx")
ort = pytest.importorskip("onnxruntime", reason="quantising needs ONNX Runtime")
pytest.importorskip("torch", reason="some of the pairs are exported with torch")

import onnx  # noqa: E402
from onnx import NodeProto, numpy_helper  # noqa: E402

from edge_sdk.build.recipe import Int8Settings  # noqa: E402
from edge_sdk.bundle import StateForm  # noqa: E402
from edge_sdk.compile.quantize.nodes import Wiring, layer_of  # noqa: E402
from edge_sdk.compile.quantize.variants import Quantizer, Written  # noqa: E402
from tests import quantised_pairs as pairs  # noqa: E402

CONVOLUTIONS = ("Conv", "ConvTranspose")
# A variant by backend and what is not INT8 in it.
FORMS: dict[str, tuple[Any, Any]] = {
    "onnxruntime": ("onnxruntime", "float32"),
    "tensorrt": ("tensorrt", "float16"),
    "tensorrt-float32": ("tensorrt", "float32"),
}
# A tensor takes steps of scale = largest / 127, so rounding adds noise of scale / sqrt(12), 0.23 % of the largest value
# and some 1 % of the usual one. A dozen of those in a row add up to 3 or 4 %, a few values beyond what was calibrated
# are cut off; a wrong scale, zero point or axis makes an error near 100 %.
CLOSE = 0.12
AGREE = 0.97


@pytest.fixture(scope="module", params=pairs.PAIRS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def quantizer(name: str) -> Quantizer:
    return pairs.quantizer(name)


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def written(quantizer: Quantizer, form: str) -> Written:
    backend, remainder = FORMS[form]
    return quantizer.int8(Int8Settings(remainder=remainder), backend)


def models(written: Written) -> dict[str, onnx.ModelProto]:
    return {Path(path).stem: onnx.load_from_string(content) for path, content in written.files.items()}


def constant(wiring: Wiring, name: str) -> np.ndarray:
    return numpy_helper.to_array(wiring.constants[name])


def of_type(model: onnx.ModelProto, *kinds: str) -> Iterator[NodeProto]:
    return (node for node in model.graph.node if node.op_type in kinds)


# The form of each backend


def test_activations_are_what_the_backends_kernels_take(written: Written, form: str) -> None:
    kinds, zeros = set(), set()
    for model in models(written).values():
        wiring = Wiring(model.graph)
        for node in of_type(model, "QuantizeLinear", "DequantizeLinear"):
            weight = node.input[0] in wiring.constants
            zero = constant(wiring, node.input[2])
            if not weight:
                assert zero.ndim == 0, f"{node.name}: activations have one scale for all channels"
                assert constant(wiring, node.input[1]).ndim == 0
                kinds.add(zero.dtype.name)
                if wiring.makers.get(node.input[0], node).name != "frame_planes":
                    zeros.add(int(zero))
            assert (constant(wiring, node.input[1]).astype(np.float64) > 0).all()
    if form == "onnxruntime":
        assert kinds == {"uint8"}
        assert zeros <= {0, 128}
        for model in models(written).values():
            wiring = Wiring(model.graph)
            for node in of_type(model, "QuantizeLinear"):
                positive = wiring.makers[node.input[0]].op_type == "Relu"
                assert not positive or constant(wiring, node.input[2]) == 0, (
                    "all 256 values for what is positive"
                )
    else:
        assert (kinds, zeros) == ({"int8"}, {0})


def test_weights_are_int8_with_a_scale_for_every_output_channel(written: Written, form: str) -> None:
    found = 0
    kept = written.variant.provenance["kept"]
    for step, model in models(written).items():
        wiring = Wiring(model.graph)
        for node in of_type(model, *CONVOLUTIONS):
            if layer_of_quantised(wiring, node) in kept[step]:  # type: ignore[index,call-overload,operator]
                assert node.input[1] in wiring.constants
                continue
            dequantize = wiring.makers[node.input[1]]
            assert dequantize.op_type == wiring.makers[node.input[0]].op_type == "DequantizeLinear"
            values, scale, zero = (constant(wiring, key) for key in dequantize.input)
            axis = next(a.i for a in dequantize.attribute if a.name == "axis")
            assert axis == (1 if node.op_type == "ConvTranspose" else 0)
            assert scale.shape == (values.shape[axis],)
            assert values.dtype == zero.dtype == np.int8
            assert not zero.any()
            # The largest weight of each channel is at the end of the range, or precision is given away.
            assert (np.abs(values.astype(int)).max(tuple(a for a in range(4) if a != axis)) >= 126).all()
            bias = node.input[2] if len(node.input) > 2 else ""
            if bias and form != "onnxruntime":
                expected = np.float16 if form == "tensorrt" else np.float32
                assert constant(wiring, bias).dtype == expected
            elif bias:
                assert constant(wiring, wiring.makers[bias].input[0]).dtype == np.int32
            found += 1
    assert found > len(written.files)


def layer_of_quantised(wiring: Wiring, node: NodeProto) -> str:
    """The layer of a convolution whose weights may come out of a DequantizeLinear."""
    copy = NodeProto()
    copy.CopyFrom(node)
    maker = wiring.makers.get(node.input[1])
    if maker is not None:
        copy.input[1] = maker.input[0]
    return layer_of(copy)


@pytest.mark.parametrize("name", ["joined", "block", "recurrent"], indirect=True)
@pytest.mark.parametrize("form", ["tensorrt", "tensorrt-float32"], indirect=True)
def test_a_residual_addition_reads_its_convolution_directly_and_its_skip_quantised(written: Written) -> None:
    """Q/DQ between a convolution and the addition after it would keep TensorRT from fusing the two."""
    found = 0
    for model in models(written).values():
        wiring = Wiring(model.graph)
        for node in of_type(model, "Add"):
            kinds = sorted(wiring.makers[key].op_type for key in node.input if key in wiring.makers)
            fusing = [key for key in node.input if fuses(wiring, key)]
            assert bool(fusing) == ("Conv" in kinds or "ConvTranspose" in kinds)
            if fusing:
                assert kinds[0] in CONVOLUTIONS
                assert kinds[1] == "DequantizeLinear"
                found += 1
    assert found > 0


def fuses(wiring: Wiring, name: str) -> bool:
    """Whether a convolution makes a tensor for one reader alone, perhaps through Q/DQ."""
    maker = wiring.makers.get(name)
    while maker is not None and len(wiring.readers[maker.output[0]]) == 1:
        if maker.op_type in CONVOLUTIONS:
            return True
        if maker.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return False
        maker = wiring.makers.get(maker.input[0])
    return False


@pytest.mark.parametrize("name", ["joined", "block"], indirect=True)
@pytest.mark.parametrize("form", ["onnxruntime"], indirect=True)
def test_on_the_cpu_everything_between_convolutions_is_computed_in_bytes(
    written: Written, tmp_path: Path
) -> None:
    for step, model in models(written).items():
        settings = ort.SessionOptions()
        settings.optimized_model_filepath = str(tmp_path / f"{step}.onnx")
        settings.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(settings.optimized_model_filepath).graph.node]
        asked = sum(layer_of_quantised(Wiring(model.graph), n) != "last" for n in of_type(model, "Conv"))
        assert kinds.count("QLinearConv") == asked
        assert kinds.count("QLinearAdd") >= 1
        graph = onnx.load(settings.optimized_model_filepath).graph
        read = {
            node.op_type for node in graph.node for key in node.input if key in {v.name for v in graph.input}
        }
        assert read <= {"Reshape", "QLinearConv", "QLinearAdd"}, (
            "frame and state are read as the bytes they are"
        )
        if step == "delta":  # the keyframe's residuals are subtractions, for which there is no such kernel
            assert not {"Relu", "QuantizeLinear"} & set(kinds), "the zero point 0 does the ReLU's work"
            assert kinds.count("DequantizeLinear") == 1, "before the last layer alone"


# State


def test_state_is_bytes_with_one_form_at_both_ends(written: Written, quantizer: Quantizer, form: str) -> None:
    found = models(written)
    forms, kind = written.variant.forms, "uint8" if form == "onnxruntime" else "int8"
    assert set(forms) == set(quantizer.state)
    for name, shape in quantizer.state.items():
        expected = forms[name]
        permutation = (0, 2, 3, 1) if len(shape) == 4 else ()
        assert expected.permutation == permutation
        kept = tuple(shape[axis] for axis in permutation) or shape
        ends = list(state_ends(found, name))
        rewrites = f"state.{name}.next" in {v.name for v in found["delta"].graph.output}
        assert len(ends) == 2 + rewrites
        for value, scale, zero in ends:
            assert onnx_kind(value) == kind
            assert tuple(d.dim_value for d in value.type.tensor_type.shape.dim) == kept
            assert float(scale) == expected.scale, "the manifest and the graphs agree to the last bit"
            assert int(zero) == expected.zero_point
            assert zero.dtype.name == kind
    assert {(spec.name, spec.dtype) for spec in written.variant.state} == {(n, kind) for n in quantizer.state}


def state_ends(
    found: dict[str, onnx.ModelProto], name: str
) -> Iterator[tuple[onnx.ValueInfoProto, np.ndarray, np.ndarray]]:
    """Value, scale and zero point where a state tensor is written and read; at most a transpose is between."""
    for model in found.values():
        wiring = Wiring(model.graph)
        for value in model.graph.output:
            if value.name == f"state.{name}.next":
                node = wiring.makers[value.name]
                node = wiring.makers[node.input[0]] if node.op_type == "Transpose" else node
                assert node.op_type == "QuantizeLinear"
                yield value, constant(wiring, node.input[1]), constant(wiring, node.input[2])
        for value in model.graph.input:
            if value.name == f"state.{name}":
                (node,) = wiring.readers[value.name]
                nodes = wiring.readers[node.output[0]] if node.op_type == "Transpose" else [node]
                assert {node.op_type for node in nodes} == {"DequantizeLinear"}
                for node in nodes:
                    yield value, constant(wiring, node.input[1]), constant(wiring, node.input[2])


def onnx_kind(value: onnx.ValueInfoProto) -> str:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name


def test_bytes_of_state_are_within_half_a_step_of_what_was_computed(
    written: Written, quantizer: Quantizer
) -> None:
    model = models(written)["keyframe"]
    wiring, sources = Wiring(model.graph), {}
    for name in quantizer.state:
        node = wiring.makers[f"state.{name}.next"]
        node = wiring.makers[node.input[0]] if node.op_type == "Transpose" else node
        sources[name] = node.input[0]
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=s) for s in set(sources.values()) - there)
    session = plain_session(model)
    outputs = [output.name for output in session.get_outputs()]
    for frame in pairs.images(2, pairs.SCENE):
        answers = dict(zip(outputs, session.run(None, {"frame": frame}), strict=True))
        for name, source in sources.items():
            form = written.variant.forms[name]
            kind = np.iinfo(answers[f"state.{name}.next"].dtype)
            low, high = (form.scale * (end - form.zero_point) for end in (kind.min, kind.max))
            exact = np.clip(answers[source].astype(np.float64), low, high)
            error = np.abs(pairs.floats(answers[f"state.{name}.next"], form) - exact)
            # A value in float16 lies up to 2^-11 of itself beside the number that was rounded.
            assert error.max() <= form.scale * 0.5001 + np.abs(exact).max() / 2048
            assert np.unique(answers[f"state.{name}.next"]).size > 4


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("name", ["kept", "recurrent"], indirect=True)
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_state_that_is_read_in_float_alone_becomes_bytes_too(
    quantizer: Quantizer, backend: Any, layout: Any
) -> None:
    """Also where the same step reads on what it writes, in either layout."""
    done = quantizer.int8(Int8Settings(state_layout=layout, remainder="float32"), backend)
    kinds = {spec.dtype for spec in done.variant.state}
    assert kinds == {"uint8" if backend == "onnxruntime" else "int8"}
    assert {len(form.permutation) for form in done.variant.forms.values()} <= (
        {0, 4} if layout == "nhwc" else {0}
    )
    agreement, errors = compared(quantizer, done)
    assert agreement >= AGREE
    assert max(errors.values()) < CLOSE


@given(
    scale=st.floats(1e-6, 100),
    zero=st.sampled_from([0, 128]),
    permutation=st.sampled_from([(), (0, 2, 3, 1), (0, 3, 1, 2)]),
    data=st.data(),
)
def test_a_form_says_how_to_read_state(
    scale: float, zero: int, permutation: tuple[int, ...], data: Any
) -> None:
    form = StateForm(scale=scale, zero_point=zero, permutation=permutation)
    shape = data.draw(st.tuples(*[st.integers(1, 4)] * 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    kind = np.iinfo(np.uint8 if zero else np.int8)
    exact = rng.uniform((kind.min - zero) * scale, (kind.max - zero) * scale, shape)
    kept = np.clip(np.round(exact / scale) + zero, kind.min, kind.max).astype(kind.dtype)
    kept = np.transpose(kept, permutation) if permutation else kept
    assert StateForm.model_validate_json(form.model_dump_json()) == form
    assert np.abs(pairs.floats(kept, form) - exact).max() <= scale * 0.5001


# Answers


def plain_session(model: onnx.ModelProto) -> Any:
    """The graph as it is written: what ONNX Runtime's optimisers make of float16 Q/DQ on a CPU is not the graph's."""
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def compared(quantizer: Quantizer, done: Written) -> tuple[float, dict[str, float]]:
    """Share of mask pixels as float32 has them over unseen frames, and relative error of each state tensor."""
    frames = pairs.images(8, pairs.SCENE)
    optimised = done.variant.backend == "onnxruntime"
    same: list[float] = []
    errors: dict[str, float] = {}
    given = pairs.stream(models(done), frames, optimised=optimised)
    for expected, found in zip(pairs.stream(quantizer.graphs, frames), given, strict=True):
        assert list(found) == list(expected)
        same.append(float((found["mask"] == expected["mask"]).mean()))
        for key in expected:
            if key.startswith("state."):
                name = key.removeprefix("state.").removesuffix(".next")
                exact = expected[key].astype(np.float64)
                wrong = pairs.floats(found[key], done.variant.forms.get(name, StateForm())) - exact
                error = float(np.sqrt((wrong**2).mean() / (exact**2).mean()))
                errors[name] = max(errors.get(name, 0.0), error)
    return float(np.mean(same)), errors


def test_answers_and_state_are_close_to_float32s(quantizer: Quantizer, written: Written) -> None:
    agreement, errors = compared(quantizer, written)
    assert agreement >= AGREE
    assert set(errors) == set(quantizer.state)
    assert max(errors.values()) < CLOSE, errors
    assert max(errors.values()) > 1e-4, "or nothing was quantised"
