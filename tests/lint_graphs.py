"""Makers of small typed graphs for the linter's tests: each argument of them spoils one thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

F32, F16, I8, U8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8
NUMPY: dict[int, Any] = {F32: np.float32, F16: np.float16, I8: np.int8, U8: np.uint8}
SIDE = 8
ZERO = np.int8(0)
Make = Callable[[], onnx.ModelProto]
node = helper.make_node


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str | None] | None]],
    outputs: Mapping[str, tuple[int, Sequence[int | str | None] | None]],
    constants: Mapping[str, Any],
    *,
    opset: int = 19,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model of these nodes; inputs and outputs are given as type and shape."""
    graph = helper.make_graph(
        list(nodes),
        "case",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def image(
    channels: int = 16, kind: int = F32, side: int | str | None = SIDE
) -> tuple[int, list[int | str | None]]:
    """Type and shape of a feature map."""
    return kind, [1, channels, side, side]


def quantised_conv(
    *,
    scale: Any = 0.1,
    zero: Any = ZERO,
    zeros_of_weights: Any = None,
    scales_of_weights: Any = None,
    axis: int = 0,
    bias: Literal["float", "int32"] = "float",
    opset: int = 19,
    channels: tuple[int, int] = (16, 16),
    groups: int = 1,
    kind: int = F32,
    scale_kind: int | None = None,
    activation_axis: int | None = None,
    relu: bool = True,
) -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv(weights -> DQ, bias) -> Relu -> y, as TensorRT wants it; each argument spoils one thing."""
    inputs, outputs = channels
    real = NUMPY[scale_kind or kind]
    scales = np.full(outputs, 0.02, NUMPY[kind]) if scales_of_weights is None else scales_of_weights
    zeros = np.zeros(scales.shape, np.int8) if zeros_of_weights is None else zeros_of_weights
    weights = np.random.default_rng(0).integers(0, 100, (outputs, inputs // groups, 3, 3)).astype(zeros.dtype)
    constants: dict[str, np.ndarray] = {
        "x_scale": np.asarray(scale, real), "w": weights, "w_scale": scales, "w_zero": zeros,
    }  # fmt: skip
    pair = ["x_scale"]
    if zero is not None:
        constants["x_zero"] = np.asarray(zero)
        pair.append("x_zero")
    per_channel: dict[str, Any] = {} if activation_axis is None else {"axis": activation_axis}
    nodes = [
        node("QuantizeLinear", ["x", *pair], ["x_q"], name="q_x", **per_channel),
        node("DequantizeLinear", ["x_q", *pair], ["x_dq"], name="dq_x", **per_channel),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_dq"], name="dq_w", axis=axis),
    ]
    if bias == "int32":
        constants |= {"b": np.ones(outputs, np.int32), "b_scale": np.full(outputs, 0.002, np.float32)}
        nodes.append(node("DequantizeLinear", ["b", "b_scale"], ["bias"], name="dq_b", axis=0))
    else:
        constants["bias"] = np.zeros(outputs, NUMPY[kind])
    last = "c" if relu else "y"
    nodes.append(node("Conv", ["x_dq", "w_dq", "bias"], [last], name="conv", pads=[1] * 4, group=groups))
    if relu:
        nodes.append(node("Relu", ["c"], ["y"], name="relu"))
    return model(nodes, {"x": image(inputs, kind)}, {"y": image(outputs, kind)}, constants, opset=opset)


def spliced(
    before: Sequence[NodeProto] = (),
    after: Sequence[NodeProto] = (),
    *,
    reads: str = "x",
    writes: str = "y",
    x: tuple[int, Sequence[int | str | None]] | None = None,
    y: tuple[int, Sequence[int | str | None]] | None = None,
    quantise: bool = True,
    constants: Mapping[str, Any] = {},
    inputs: Mapping[str, Any] = {},
    outputs: Mapping[str, Any] = {},
    domains: Sequence[str] = (),
    opset: int = 19,
) -> onnx.ModelProto:
    """A convolution over ``reads`` that writes ``writes``, between nodes of the case's own.

    Args:
        quantise: put Q and DQ before it; without, the nodes before it do.
    """
    held: dict[str, Any] = {
        "s": np.float32(0.1), "z": ZERO,
        "w_scale": np.full(16, 0.02, np.float32), "w_zero": np.zeros(16, np.int8),
        "w": np.random.default_rng(0).integers(-100, 100, (16, 16, 3, 3)).astype(np.int8), **constants,
    }  # fmt: skip
    nodes = list(before)
    given = reads
    if quantise:
        given = "x_dq"
        nodes.append(node("QuantizeLinear", [reads, "s", "z"], ["x_q"], name="q_x"))
        nodes.append(node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"], name="dq_x"))
    nodes.append(node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_dq"], name="dq_w", axis=0))
    nodes.append(node("Conv", [given, "w_dq"], [writes], name="conv", pads=[1] * 4))
    nodes += after
    named = {name for n in nodes for name in n.input} - set(inputs)
    ends = {"y": image()} if y is None else {"y": y}
    return model(
        nodes, {"x": x or image(), **inputs}, {**ends, **outputs},
        {name: value for name, value in held.items() if name in named}, opset=opset, domains=domains,
    )  # fmt: skip


def float_conv(kind: int = F32, **options: Any) -> onnx.ModelProto:
    """x -> Conv -> y without any quantisation."""
    constants = {"w": np.full((16, 16, 3, 3), 0.01, NUMPY[kind])}
    return model(
        [node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)],
        {"x": image(kind=kind)}, {"y": image(kind=kind)}, constants, **options,
    )  # fmt: skip


def half(
    *nodes: NodeProto, constants: Mapping[str, Any] = {}, y: Any = None, **options: Any
) -> onnx.ModelProto:
    """A float16 graph: uint8 x, cast to float16 'h', the case's nodes to 'r', cast to float32 y."""
    nodes = (
        node("Cast", ["x"], ["h"], to=F16, name="cast_x"), *nodes, node("Cast", ["r"], ["y"], to=F32, name="cast_y"),
    )  # fmt: skip
    return model(nodes, {"x": image(kind=U8)}, {"y": y or image()}, constants, **options)


def masks(*nodes: NodeProto, constants: Mapping[str, Any] = {}, y: Any = None) -> onnx.ModelProto:
    """A float32 graph over class scores x."""
    return model(nodes, {"x": image()}, {"y": y or (U8, [SIDE, SIDE])}, constants)
