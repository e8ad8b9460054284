"""Graphs that run slower or less exactly than asked, and pairs whose steps disagree; each with its repaired twin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from tests.lint_cases import case, conv
from tests.lint_graphs import (
    F16,
    F32,
    I8,
    SIDE,
    U8,
    ZERO,
    Make,
    half,
    image,
    model,
    node,
    quantised_conv,
    spliced,
)

QDQ = [
    node("QuantizeLinear", ["x", "s", "z"], ["i"], name="q_i"),
    node("DequantizeLinear", ["i", "s", "z"], ["x2"], name="dq_i"),
]
SKIP = [
    node("QuantizeLinear", ["skip", "s", "z"], ["skip_q"], name="q_skip"),
    node("DequantizeLinear", ["skip_q", "s", "z"], ["skip_dq"], name="dq_skip"),
]  # fmt: skip
AFTER = [
    node("QuantizeLinear", ["c", "s", "z"], ["c_q"], name="q_c"),
    node("DequantizeLinear", ["c_q", "s", "z"], ["c_dq"], name="dq_c"),
]  # fmt: skip
ENDS = [
    node("QuantizeLinear", ["sum", "s", "z"], ["sum_q"], name="q_sum"),
    node("DequantizeLinear", ["sum_q", "s", "z"], ["y"], name="dq_sum"),
]  # fmt: skip


def residual(*nodes: NodeProto, add: tuple[str, str], out: str = "y") -> Make:
    """conv + skip, between nodes of the case's own."""
    summed = node("Add", list(add), [out], name="add")
    return partial(
        spliced, after=[*nodes, summed, *(ENDS if out == "sum" else ())], writes="c", inputs={"skip": image()}
    )


def two_convs(*, second: bool) -> onnx.ModelProto:
    """The quantised convolution, then another that is quantised too or is not."""
    first = quantised_conv()
    graph = first.graph
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y2", *image()))
    given, weights = "y", "w2"
    graph.initializer.append(onnx.numpy_helper.from_array(np.full((16, 16, 1, 1), 0.01, np.float32), "w2"))
    if second:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.001, np.float32), "w2_scale"))
        graph.node.extend([
            node("QuantizeLinear", ["y", "x_scale", "x_zero"], ["y_q"], name="q_y"),
            node("DequantizeLinear", ["y_q", "x_scale", "x_zero"], ["y_dq"], name="dq_y"),
            node("QuantizeLinear", ["w2", "w2_scale", "x_zero"], ["w2_q"], name="q_w2"),
            node("DequantizeLinear", ["w2_q", "w2_scale", "x_zero"], ["w2_dq"], name="dq_w2"),
        ])  # fmt: skip
        given, weights = "y_dq", "w2_dq"
    graph.node.append(node("Conv", [given, weights], ["y2"], name="second"))
    return first


def after_relu(zero: Any) -> onnx.ModelProto:
    """A ReLU, then the quantised convolution."""
    return spliced([node("Relu", ["x"], ["r"], name="relu")], reads="r", constants={"z": zero})


def in_half(op: str, *rest: str, good: bool = False, **attributes: Any) -> onnx.ModelProto:
    """One operator in float16, or in float32 between casts."""
    constants = {
        "two": np.asarray(2, np.float32 if good else np.float16),
        "ones": np.ones(16, np.float32 if good else np.float16),
    }
    if not good:
        return half(
            node(op, ["h", *rest], ["r"], name="op", **attributes), constants={k: constants[k] for k in rest}
        )
    nodes = [
        node("Cast", ["h"], ["f"], to=F32, name="cast_up"),
        node(op, ["f", *rest], ["g"], name="op", **attributes),
        node("Cast", ["g"], ["r"], to=F16, name="cast_down"),
    ]  # fmt: skip
    return half(*nodes, constants={k: constants[k] for k in rest})


SMALL = np.float16(1e-3)


def scaled(op: str = "Mul", value: Any = SMALL) -> onnx.ModelProto:
    """A float16 graph with one constant."""
    return half(
        node(op, ["h", "c"], ["k"], name="op"),
        node("Sqrt", ["k"], ["r"], name="root"),
        constants={"c": value},
    )


def state_io(kind: int, *, quantise: bool) -> onnx.ModelProto:
    """A delta step: the convolution over its state."""
    before = [] if quantise else [node("DequantizeLinear", ["state.m", "s", "z"], ["x_dq"], name="dq_x")]
    frame = node("Cast", ["x"], ["seen"], to=F32, name="cast")
    return spliced(
        [*before, frame], reads="state.m" if quantise else "x_dq", quantise=quantise, x=image(kind=U8),
        inputs={"state.m": image(kind=kind)}, outputs={"seen": image()},
    )  # fmt: skip


def sum_of_halves(kind: int, *, added: int) -> onnx.ModelProto:
    """A float16 delta step that adds what it sees, as ``added``, to its state of type ``kind``."""
    nodes = [node("Sigmoid", ["h"], ["r"], name="seen"), node("Cast", ["r"], ["c"], to=added, name="cast_r")]
    before, after = "state.m", "state.m.next"
    if kind != added:
        nodes.append(node("Cast", [before], ["before"], to=added, name="cast_state"))
        before, after = "before", "after"
    nodes.append(node("Add", ["c", before], [after], name="add"))
    if kind != added:
        nodes.append(node("Cast", [after], ["state.m.next"], to=kind, name="cast_sum"))
    graph = half(*nodes)
    graph.graph.input.append(onnx.helper.make_tensor_value_info("state.m", *image(kind=kind)))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("state.m.next", *image(kind=kind)))
    return graph


def handing_on(*, writes: bool) -> onnx.ModelProto:
    """A float32 delta step that reads its state, and may write it as it came."""
    nodes = [node("Add", ["x", "state.m"], ["y"], name="add")]
    outputs = {"y": image()}
    if writes:
        nodes.append(node("Transpose", ["state.m"], ["t"], perm=[0, 2, 3, 1], name="turn"))
        nodes.append(node("Transpose", ["t"], ["state.m.next"], perm=[0, 3, 1, 2], name="back"))
        outputs["state.m.next"] = image()
    return model(nodes, {"x": image(), "state.m": image()}, outputs, {})


F16_ONLY: dict[str, Any] = {"severity": "warning", "precision": "float16", "tensorrt": "accepts"}
SLOW: dict[str, Any] = {"severity": "warning", "tensorrt": "accepts"}
ORT: dict[str, Any] = {"severity": "warning", "backend": "onnxruntime"}

OVERFLOWING: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("Exp", (), {}),
    ("Pow", ("two",), {}),
    ("Softmax", (), {"axis": 1}),
    ("InstanceNormalization", ("ones", "ones"), {}),
    ("ReduceSumSquare", (), {}),
]

# fmt: off
WARNINGS = [
    case("newer than JetPack 6", "opset", conv(opset=21), "", "TensorRT 10.3 of JetPack 6", **SLOW),
    case("Q and DQ of onnxruntime", "operator", partial(spliced, [
        node("QuantizeLinear", ["x", "s", "z"], ["i"], name="q_i", domain="com.microsoft"),
        node("DequantizeLinear", ["i", "s", "z"], ["x_dq"], name="dq_i", domain="com.microsoft")],
        quantise=False, reads="x_dq", domains=["com.microsoft"]), "q_i", "domain com.microsoft", **SLOW),
    case("axis of the inputs", "channel-axis", conv(axis=1), "dq_w", "channels of Conv 'conv' along axis 0", **SLOW),
    case("twice quantised", "double-qdq", partial(spliced, QDQ, reads="x2"), "q_x",
         "what DequantizeLinear 'dq_i' has just", **SLOW),
    case("a layer left out", "not-quantised", partial(two_convs, second=False), "second", "computes in float",
         good=partial(two_convs, second=True), **SLOW),
    case("weights alone", "not-quantised", partial(spliced, [node("Identity", ["x"], ["same"], name="same")],
         quantise=False, reads="same"), "conv", "weights are quantised and its input 'same' is not", **SLOW),
    case("few inputs", "thin-layer", conv(channels=(3, 32)), "conv", "from 3 to 32 channels: below 16", **SLOW),
    case("few outputs", "thin-layer", conv(channels=(32, 11)), "conv", "from 32 to 11 channels", **SLOW),
    case("thin groups", "thin-layer", conv(channels=(32, 32), groups=4), "conv", "to 8 channels a group", **SLOW),
    case("depthwise", "depthwise", conv(groups=16), "conv", "it is depthwise (16 groups)", **SLOW),
    case("skip in float", "residual-add", residual(add=("c", "skip")), "add", "input 'skip' is not quantised",
         good=residual(*SKIP, add=("c", "skip_dq")), **SLOW),
    case("skip in float, other order", "residual-add", residual(add=("skip", "c")), "add", "Conv 'conv'",
         good=residual(*SKIP, add=("skip_dq", "c")), **SLOW),
    case("both sides quantised", "residual-add", residual(*SKIP, *AFTER, add=("c_dq", "skip_dq")), "add",
         "stand between it and Conv 'conv'", good=residual(*SKIP, add=("c", "skip_dq")), **SLOW),
    case("addition in float", "residual-add", residual(*SKIP, add=("c", "skip_dq"), out="sum"), "add",
         "'c' is not quantised", good=residual(*SKIP, *AFTER, add=("c_dq", "skip_dq"), out="sum"), **ORT),
    case("sum in float", "residual-add", residual(*SKIP, *AFTER, add=("c_dq", "skip_dq")), "add",
         "'y' is not quantised", good=residual(*SKIP, *AFTER, add=("c_dq", "skip_dq"), out="sum"), **ORT),
    case("half a range after a ReLU", "relu-range", partial(after_relu, np.int8(0)), "q_x", "Relu 'relu' as int8",
         good=partial(after_relu, np.uint8(0)), **ORT),
    case("weights with a zero point", "zero-point", conv(zeros_of_weights=np.full(16, 2, np.int8)), "dq_w",
         "fast kernels take weights with 0", **ORT),
    case("quantised state stored in float", "float-state", partial(state_io, F32, quantise=True), "q_x",
         "'state.m' is float, though it is quantised right here", good=partial(state_io, I8, quantise=False), **SLOW),
    case("the same for ONNX Runtime", "float-state", partial(state_io, F32, quantise=True), "q_x",
         "quantised right here", good=partial(state_io, I8, quantise=False), **ORT),
    case("float32 state of a float16 step", "float-state", partial(
        model, [node("Cast", ["state.m"], ["h"], to=F16, name="c1"), node("Sigmoid", ["h"], ["r"], name="op"),
                node("Cast", ["r"], ["y"], to=F32, name="c2")], {"state.m": image()}, {"y": image()}, {}),
         "state.m", "is float in a graph of float16", good=partial(
        model, [node("Sigmoid", ["state.m"], ["r"], name="op"), node("Cast", ["r"], ["y"], to=F32, name="c2")],
        {"state.m": image(kind=F16)}, {"y": image()}, {}), **F16_ONLY),
    case("float16 answers", "float16-io", partial(
        model, [node("Sigmoid", ["state.m"], ["y"], name="op")], {"state.m": image(kind=F16)}, {"y": image(kind=F16)},
        {}), "y", "it is float16", good=partial(scaled), **F16_ONLY),
    case("subnormal constant", "float16-subnormal", partial(scaled, value=np.float16(1e-5)), "c", "few of its digits",
         good=scaled, **F16_ONLY),
    case("constant that vanishes in a cast", "float16-subnormal", partial(
        half, node("Cast", ["e"], ["e16"], to=F16, name="cast_e"), node("Mul", ["h", "e16"], ["r"], name="op"),
        constants={"e": np.float32(1e-9)}), "e", "all of it becomes 0", good=scaled, **F16_ONLY),
    case("epsilon that vanished", "float16-subnormal", partial(scaled, "Add", np.float16(0)), "op",
         "before Sqrt 'root' is 0 in float16", good=partial(scaled, "Add", np.float16(1e-3)), **F16_ONLY),
    *(case(f"{op} in float16", "float16-overflow", partial(in_half, op, *rest, **kw), "op", "it computes in float16",
           good=partial(scaled), **F16_ONLY)
      for op, rest, kw in OVERFLOWING),
    case("variance in float16", "float16-overflow", partial(
        half, node("Mul", ["h", "h"], ["k"], name="square"), node("ReduceMean", ["k"], ["r"], name="mean", keepdims=1)),
         "mean", "a mean of squares", good=partial(
        half, node("ReduceMean", ["h"], ["r"], name="mean", keepdims=1)), **F16_ONLY),
    case("an operator kept in float32", "float32-island", partial(in_half, "Exp", good=True), "op",
         "with 2 casts around: op", good=scaled, **F16_ONLY),
    case("a sum in float16", "state-sum", partial(sum_of_halves, F16, added=F16), "state.m", "it is float16",
         good=partial(sum_of_halves, F32, added=F32), **F16_ONLY),
    case("a float32 sum that is added to in float16", "state-sum", partial(sum_of_halves, F32, added=F16), "cast_state",
         "in less than float32", good=partial(sum_of_halves, F32, added=F32), **F16_ONLY),
    case("state that is handed on", "state-copied", partial(handing_on, writes=True), "state.m", "as it received it",
         good=partial(handing_on, writes=False), severity="warning", precision="float32", tensorrt="accepts"),
    case("there and back", "cast-pair", partial(
        half, node("Cast", ["h"], ["f"], to=F32, name="up"), node("Cast", ["f"], ["r"], to=F16, name="down")),
         "down", "it undoes Cast 'up'", good=partial(half, node("Sigmoid", ["h"], ["r"], name="op")), **F16_ONLY),
]
# fmt: on


@dataclass(frozen=True)
class PairCase:
    """Two steps that disagree.

    Args:
        rule, severity, at, says: as for :class:`tests.lint_cases.Case`.
        keyframe, delta: options of :func:`writes_state` and :func:`reads_state` that spoil the pair.
    """

    name: str
    rule: str
    at: str
    says: str
    keyframe: dict[str, Any]
    delta: dict[str, Any]
    severity: str = "error"


def writes_state(
    *,
    name: str = "m",
    scale: float = 0.25,
    zero: Any = ZERO,
    kind: int = I8,
    side: int = SIDE,
    loose: bool = False,
) -> onnx.ModelProto:
    """A keyframe step: its frame, quantised and turned to NHWC, is its state."""
    nodes = [node("Cast", ["frame"], ["f"], to=F32, name="cast")]
    quantised = np.asarray(zero).dtype != np.float32
    made = "f"
    if loose:
        nodes.append(node("Cast", ["f"], ["q"], to=kind, name="to_int"))
        made = "q"
    elif quantised:
        nodes.append(node("QuantizeLinear", ["f", "scale", "zero"], ["q"], name="q_state"))
        made = "q"
    nodes.append(node("Transpose", [made], [f"state.{name}.next"], perm=[0, 2, 3, 1], name="turn"))
    constants = {"scale": np.float32(scale), "zero": np.asarray(zero)} if quantised and not loose else {}
    ends = {f"state.{name}.next": (kind, [1, side, side, 16])}
    return model(nodes, {"frame": image(kind=U8, side=side)}, ends, constants)


def reads_state(
    *, name: str = "m", scale: float = 0.25, zero: Any = ZERO, kind: int = I8, side: int = SIDE,
    rewrites: float | None = None, through: str = "DequantizeLinear", computed: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """A delta step: turns its state back, dequantises it, and may write it again with the scale ``rewrites``."""
    nodes = [node("Transpose", [f"state.{name}"], ["t"], perm=[0, 3, 1, 2], name="turn")]
    constants: dict[str, Any] = {"scale": np.float32(scale), "zero": np.asarray(zero)}
    if kind == F32 or through == "Cast":
        nodes.append(node("Cast", ["t"], ["y"], to=F32, name="read"))
        constants = {}
    else:
        nodes.append(node("DequantizeLinear", ["t", "scale", "zero"], ["y"], name="read"))
    ends: dict[str, Any] = {"y": image(side=side)}
    inputs: dict[str, Any] = {f"state.{name}": (kind, [1, side, side, 16])}
    if computed:
        constants.pop("scale")
        inputs["scale"] = (F32, [])
    if rewrites is not None:
        constants["scale2"] = np.float32(rewrites)
        nodes.append(node("QuantizeLinear", ["y", "scale2", "zero"], ["q2"], name="q_again"))
        nodes.append(node("Transpose", ["q2"], [f"state.{name}.next"], perm=[0, 2, 3, 1], name="turn_again"))
        ends[f"state.{name}.next"] = (kind, [1, side, side, 16])
    return model(nodes, inputs, ends, constants)


ONE_ULP = float(np.nextafter(np.float32(0.25), np.float32(1)))
# fmt: off
PAIRS = [
    PairCase("another scale", "state-scale", "read", "with scale 0.5 and zero point 0 in 'read'", {}, {"scale": 0.5}),
    PairCase("a scale one bit off", "state-scale", "read", "the keyframe step writes it with scale 0.25", {},
             {"scale": ONE_ULP}),
    PairCase("another zero point", "state-scale", "read", "zero point 1", {}, {"zero": np.int8(1)}),
    PairCase("a computed scale", "state-scale", "read", "scale (computed)", {}, {"computed": True}),
    PairCase("another type", "state-dtype", "state.m", "writes it as int8, the delta step reads uint8",
             {}, {"kind": U8, "zero": np.uint8(0)}),
    PairCase("float to int8", "state-dtype", "state.m", "writes it as float", {"kind": F32, "zero": np.float32(0)},
             {}),
    PairCase("another size", "state-shape", "state.m", "(1, 8, 8, 16), the delta step reads (1, 4, 4, 16)",
             {}, {"side": 4}),
    PairCase("another name", "state-missing", "state.n", "the keyframe step does not write it", {}, {"name": "n"}),
    PairCase("never read", "state-unused", "state.m", "the delta step does not read it", {}, {"name": "n"}, "warning"),
    PairCase("integers without a scale", "state-scale", "state.m", "no QuantizeLinear says of which scale",
             {"loose": True}, {}),
    PairCase("integers read as numbers", "state-scale", "read", "no DequantizeLinear between", {}, {"through": "Cast"}),
    PairCase("rewritten with another scale", "state-scale", "read", "the delta step writes it with scale 0.5", {},
             {"rewrites": 0.5}),
]
# fmt: on
