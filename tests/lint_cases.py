"""Graphs with one mistake each, and the same graphs repaired: what the linter says of them, and real TensorRT.

Used by ``tests/unit/test_compile_lint.py`` (the linter alone) and ``tests/tensorrt/test_lint_agrees.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from tests.lint_graphs import (
    F16,
    F32,
    I8,
    SIDE,
    U8,
    Make,
    float_conv,
    half,
    image,
    masks,
    model,
    node,
    quantised_conv,
    spliced,
)


@dataclass(frozen=True)
class Case:
    """A graph with one mistake, and its repaired twin, of which the linter has nothing to say.

    Args:
        rule: the rule that must name it.
        bad, good: make the two graphs.
        at: the node, or for rules about tensors the tensor, that the finding names.
        says: part of its message.
        severity, backend, precision, step: as the linter takes and gives them.
        tensorrt: what real TensorRT does with the bad graph: it refuses it, its process crashes, or it takes it.
        because: why an error rule stands although TensorRT takes the graph.
    """

    name: str
    rule: str
    bad: Make
    good: Make
    at: str
    says: str
    severity: str = "error"
    backend: str = "tensorrt"
    precision: str = "int8"
    tensorrt: Literal["refuses", "crashes", "accepts"] = "refuses"
    because: str = ""


READ_AS_INT8 = "NvInfer.h: int8 symmetric alone; its parser reads uint8 as int8, so that 128 to 255 saturate"


def conv(**options: object) -> Make:
    """A maker of :func:`quantised_conv` with these options."""
    return partial(quantised_conv, **options)  # type: ignore[arg-type]


def case(
    name: str, rule: str, bad: Make, at: str, says: str, good: Make = quantised_conv, **rest: object
) -> Case:
    """A case whose twin is the plain quantised convolution, unless another is given."""
    return Case(name, rule, bad, good, at, says, **rest)  # type: ignore[arg-type]


def scales(**changed: float) -> np.ndarray:
    """Scales of 16 channels, some replaced: ``c5=0.0``."""
    values = np.full(16, 0.02, np.float32)
    for key, value in changed.items():
        values[int(key[1:])] = value
    return values


TO_INPUT = [
    node("Cast", ["frame"], ["f"], to=F32, name="cast"),
    node("Unsqueeze", ["f", "axis"], ["x1"], name="up"),
]
AXIS0 = {"axis": np.array([0])}

# fmt: off
ERRORS = [
    # numbers
    case("zero point of an activation", "zero-point", conv(zero=np.int8(3)), "q_x", "'x_zero' is 3, TensorRT takes"),
    case("zero point of one channel", "zero-point", conv(zeros_of_weights=np.eye(1, 16, 3, dtype=np.int8)[0]),
         "dq_w", "'w_zero' is 1, TensorRT"),
    case("zero point given from outside", "zero-point",
         partial(spliced, [node("QuantizeLinear", ["x", "s", "zin"], ["x_q"], name="q_x"),
                           node("DequantizeLinear", ["x_q", "s", "zin"], ["x_dq"], name="dq_x")],
                 quantise=False, reads="x_dq", inputs={"zin": (I8, [])}), "q_x", "'zin' is computed"),
    case("uint8 with zero point 128", "uint8", conv(zero=np.uint8(128)), "q_x", "it is uint8, which TensorRT refuses"),
    case("uint8 with zero point 0", "uint8", conv(zero=np.uint8(0)), "q_x", "128 to 255 are lost",
         tensorrt="accepts", because=READ_AS_INT8),
    case("uint8 by default", "uint8", conv(zero=None), "q_x", "no zero point, so it quantises to uint8 by ONNX's rule",
         tensorrt="accepts", because="ONNX: without a zero point y is uint8; TensorRT's parser takes int8"),
    case("uint8 weights", "uint8", conv(zeros_of_weights=np.zeros(16, np.uint8)), "dq_w", "it is uint8"),
    case("uint8 input", "uint8", partial(spliced, [node("DequantizeLinear", ["x", "s", "zu"], ["x_dq"], name="dq_x")],
         quantise=False, reads="x_dq", x=image(kind=U8), constants={"zu": np.uint8(0)}), "dq_x", "it is uint8",
         good=partial(spliced, [node("DequantizeLinear", ["x", "s", "z"], ["x_dq"], name="dq_x")],
                      quantise=False, reads="x_dq", x=image(kind=I8))),
    case("16 bits", "quantised-type", conv(zero=np.int16(0), opset=21), "q_x", "it is int16", good=conv(opset=20)),
    case("int32 bias", "int32-bias", conv(bias="int32"), "dq_b", "int32 'b', the bias of Conv 'conv'"),
    *(case(f"scale {value}", "scale-value", conv(scale=value), "q_x", "expected finite and above 0")
      for value in (0.0, -0.1, np.nan)),
    case("scale inf", "scale-value", conv(scale=np.inf), "q_x", "is inf, expected finite", tensorrt="accepts",
         because="every value becomes 0 and 0 x inf is NaN; TensorRT only looks at the sign"),
    *(case(f"scale {value} of one channel", "scale-value", conv(scales_of_weights=scales(c5=value)), "dq_w", " at 5,")
      for value in (0.0, -1.0, np.nan)),
    case("scale computed", "scale-constant",
         partial(spliced, [node("ReduceMax", ["x"], ["m"], name="max", keepdims=0),
                           node("QuantizeLinear", ["x", "m", "z"], ["x_q"], name="q_x"),
                           node("DequantizeLinear", ["x_q", "m", "z"], ["x_dq"], name="dq_x")],
                 quantise=False, reads="x_dq"), "q_x", "'m' is computed", tensorrt="crashes"),
    case("scale given from outside", "scale-constant",
         partial(spliced, inputs={"s": (F32, [])}), "q_x", "'s' is computed or given", tensorrt="crashes"),
    # types and shapes
    case("scale of float32 for float16", "scale-type", conv(kind=F16, scale_kind=F32), "q_x",
         "its scale is float, its input 'x' float16", good=conv()),
    case("scale of float16 for float32", "scale-type", conv(scale_kind=F16), "q_x",
         "its scale is float16, its input 'x' float", good=conv()),
    case("float16 below opset 19", "float16-opset", conv(kind=F16, opset=17), "q_x", "needs opset 19, the graph's",
         tensorrt="accepts", because="ONNX: QuantizeLinear takes float16 from opset 19 on; ONNX's checker refuses it"),
    case("activation per channel", "activation-scale",
         conv(scale=np.full(16, 0.1), zero=np.zeros(16, np.int8), activation_axis=1), "q_x", "with 16 scales",
         tensorrt="accepts", because="NvInfer.h: activations take one scale, per-channel is for constants"),
    case("too few scales", "channels", conv(scales_of_weights=np.full(8, 0.02, np.float32)), "dq_w",
         "8 scales for the 16 channels of axis 0"),
    case("scales and zero points", "channels", conv(zeros_of_weights=np.zeros(1, np.int8)), "dq_w",
         "16 scales and 1 zero points"),
    case("blocks", "blockwise", partial(spliced, constants={
             "wb": np.zeros((16, 16, 3, 3), np.int8), "sb": np.full((16, 2, 3, 3), 0.02, np.float32),
             "zb": np.zeros((16, 2, 3, 3), np.int8)}, after=[
                 node("DequantizeLinear", ["wb", "sb", "zb"], ["wb_dq"], name="dq_b", axis=1, block_size=8),
                 node("Conv", ["x_dq", "wb_dq"], ["y2"], name="conv2", pads=[1] * 4)],
                 outputs={"y2": image()}, opset=21), "dq_b", "in blocks of 8", good=partial(spliced, opset=20)),
    # operators
    case("integers into a convolution", "quantise-alone",
         partial(spliced, [node("QuantizeLinear", ["x", "s", "z"], ["i"], name="q_i"),
                           node("Conv", ["i", "w2"], ["y2"], name="conv_i")],
                 constants={"w2": np.zeros((16, 16, 1, 1), np.float32)}, outputs={"y2": image()}),
         "q_i", "Conv 'conv_i' reads its integers"),
    case("pooling of integers", "quantise-alone",
         partial(spliced, [node("QuantizeLinear", ["x", "s", "z"], ["i"], name="q_i"),
                           node("MaxPool", ["i"], ["p"], name="pool", kernel_shape=[1, 1]),
                           node("DequantizeLinear", ["p", "s", "z"], ["x_dq"], name="dq_i")],
                 quantise=False, reads="x_dq"), "q_i", "MaxPool 'pool' reads its integers", tensorrt="accepts",
         because="operators.md: MaxPool takes floats; quantised types only between Q and DQ"),
    case("quantised operator", "operator",
         partial(spliced, [node("QuantizeLinear", ["x", "s", "z"], ["i"], name="q_i"),
                           node("QLinearConv", ["i", "s", "z", "w", "w_scale", "w_zero", "s", "z"], ["c"],
                                name="qlinear", pads=[1] * 4),
                           node("DequantizeLinear", ["c", "s", "z"], ["x_dq"], name="dq_i")],
                 quantise=False, reads="x_dq"), "qlinear", "TensorRT's parser has no such operator"),
    case("dynamic quantisation", "operator",
         partial(spliced, [node("DynamicQuantizeLinear", ["x"], ["i", "si", "zi"], name="dynamic"),
                           node("DequantizeLinear", ["i", "si", "zi"], ["x2"], name="dq_i")], reads="x2"),
         "dynamic", "no such operator"),
    case("operator of ONNX Runtime", "operator",
         partial(spliced, [node("QuickGelu", ["x"], ["x2"], name="gelu", domain="com.microsoft")], reads="x2",
                 domains=["com.microsoft"]), "gelu", "domain com.microsoft, not of ONNX"),
    case("softmax without a batch", "softmax-axes",
         partial(model, [node("Softmax", ["x"], ["y"], name="shares", axis=0)], {"x": (F32, [5])}, {"y": (F32, [5])},
                 {}), "shares", "has 1 axis", precision="float32",
         good=partial(model, [node("Softmax", ["x"], ["y"], name="shares", axis=1)], {"x": (F32, [1, 5])},
                      {"y": (F32, [1, 5])}, {})),
    # the graph's ends
    case("bytes rearranged before the cast", "uint8-inside",
         partial(spliced, [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2], name="turn"),
                           node("Cast", ["t"], ["x2"], to=F32, name="cast")], reads="x2", x=(U8, [1, SIDE, SIDE, 16])),
         "turn", "it computes with uint8 'x'",
         good=partial(spliced, [node("Cast", ["x"], ["c"], to=F32, name="cast"),
                                node("Transpose", ["c"], ["x2"], perm=[0, 3, 1, 2], name="turn")],
                      reads="x2", x=(U8, [1, SIDE, SIDE, 16]))),
    case("bytes cast to int8", "uint8-inside",
         partial(spliced, [node("Cast", ["x"], ["c"], to=I8, name="cast"),
                           node("DequantizeLinear", ["c", "s", "z"], ["x_dq"], name="dq_x")],
                 quantise=False, reads="x_dq", x=image(kind=U8)), "cast", "casts uint8 'x' to int8", tensorrt="accepts",
         because="NvInfer.h, DataType.kUINT8: only conversions to and from float are promised"),
    case("bytes rearranged after the cast", "uint8-inside",
         partial(masks, node("ArgMax", ["x"], ["a"], axis=1, keepdims=0, name="argmax"),
                 node("Cast", ["a"], ["b"], to=U8, name="cast"),
                 node("Squeeze", ["b", "axis"], ["y"], name="drop"), constants=AXIS0),
         "cast", "it writes uint8 'b'", precision="float32",
         good=partial(masks, node("ArgMax", ["x"], ["a"], axis=1, keepdims=0, name="argmax"),
                      node("Squeeze", ["a", "axis"], ["b"], name="drop"),
                      node("Cast", ["b"], ["y"], to=U8, name="cast"), constants=AXIS0)),
    case("batch by name", "static-shape", partial(spliced, x=(F32, ["batch", 16, SIDE, SIDE])), "x", "(batch, 16,"),
    case("axis without a size", "static-shape", partial(spliced, x=(F32, [1, 16, None, SIDE])), "x", "(1, 16, ?, 8)"),
    case("opset of tomorrow", "opset", conv(opset=26), "", "opset is 26, TensorRT's parser knows 9 to 25",
         tensorrt="accepts", because="NVIDIA's ONNX opset guide; newer operators are read by their old definition"),
    # what was asked for
    case("int8 of a float graph", "precision", float_conv, "", "none of its 1 convolutions", tensorrt="accepts",
         because="it builds a float engine: what was asked for is not what is built"),
    case("float16 of a float graph", "precision", float_conv, "", "no tensor in the graph is float16",
         precision="float16", tensorrt="accepts", because="it builds a float32 engine (USERS.md row 10)",
         good=partial(half, node("Conv", ["h", "w"], ["r"], name="conv", pads=[1] * 4),
                      constants={"w": np.full((16, 16, 3, 3), 0.01, np.float16)})),
    case("float32 of a quantised graph", "precision", conv(), "", "the graph holds Q/DQ nodes",
         precision="float32", good=float_conv, tensorrt="accepts", because="the graph is fine, for int8"),
    case("float16 constant out of range", "float16-range",
         partial(half, node("Mul", ["h", "big"], ["r"], name="mul"), constants={"big": np.float16(np.inf)}),
         "big", "it holds inf (read by Mul 'mul')", precision="float16", tensorrt="accepts",
         because="TensorRT does not look at the numbers",
         good=partial(half, node("Mul", ["h", "big"], ["r"], name="mul"), constants={"big": np.float16(60000)})),
    case("float32 constant cast out of range", "float16-range",
         partial(half, node("Cast", ["big"], ["b16"], to=F16, name="cast_big"),
                 node("Mul", ["h", "b16"], ["r"], name="mul"), constants={"big": np.float32(1e5)}),
         "big", "it holds 100000", precision="float16", tensorrt="accepts",
         because="TensorRT does not look at the numbers",
         good=partial(half, node("Cast", ["big"], ["b16"], to=F16, name="cast_big"),
                      node("Mul", ["h", "b16"], ["r"], name="mul"), constants={"big": np.float32(1e4)})),
]
# fmt: on
