"""Rules about QuantizeLinear and DequantizeLinear: what a backend refuses or computes differently from ONNX."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from edge_sdk.compile.lint.finding import Finding, Target
from edge_sdk.compile.lint.graph import (
    DEQUANTIZE,
    MOVES,
    NO_PARSER,
    QUANTIZE,
    WEIGHTED,
    GraphView,
    attribute,
    label,
    type_name,
    whole_number,
)

_FLOAT16_SINCE, _OWN_SCALE_TYPE_SINCE = 19, 23
_SYMMETRIC = "Quantise with symmetric int8: zero points 0, scale = largest magnitude / 127."


def _pairs(view: GraphView) -> list[NodeProto]:
    return view.of_type(QUANTIZE, DEQUANTIZE)


def _zero_point(node: NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


def quantised_type(view: GraphView, node: NodeProto) -> int:
    """ONNX's number of the integer type on the quantised side of a Q/DQ node; uint8 where a Q names none."""
    if node.op_type == DEQUANTIZE:
        return view.elem_type(node.input[0])
    if _zero_point(node):
        return view.elem_type(_zero_point(node))
    return whole_number(node, "output_dtype", 0) or TensorProto.UINT8


def zero_points(view: GraphView, target: Target) -> Iterator[Finding]:
    """TensorRT: zero points are constants of zero. ONNX Runtime: those of weights are."""
    for node in _pairs(view):
        name = _zero_point(node)
        if not name:
            continue
        value = view.constant(name)
        if value is None and target.for_tensorrt:
            what = f"its zero point '{name}' is computed, TensorRT takes only a constant of 0"
            yield target.at("zero-point", "error", node, what, "Store the zero point in the file.", name)
        elif value is not None and np.any(value.astype(np.int64)):
            shown = _few(value[value.astype(np.int64) != 0])
            if target.for_tensorrt:
                what = f"its zero point '{name}' is {shown}, TensorRT takes only 0"
                yield target.at("zero-point", "error", node, what, _SYMMETRIC, name)
            elif view.is_constant(node.input[0]) and view.elem_type(node.input[0]) != TensorProto.UINT8:
                what = f"the zero point '{name}' of these weights is {shown}; the fast kernels take weights with 0"
                repair = "Quantise weights with symmetric int8."
                yield target.at("zero-point", "warning", node, what, repair, name)


def integer_types(view: GraphView, target: Target) -> Iterator[Finding]:
    """TensorRT: int8 on both sides of every Q/DQ. It reads uint8 as int8, so that 128 to 255 saturate at 127."""
    for node in _pairs(view):
        kind = quantised_type(view, node)
        if kind == TensorProto.INT32 and node.op_type == DEQUANTIZE:
            if target.for_tensorrt:
                what = (
                    f"it dequantises int32 '{node.input[0]}'{_for_bias(view, node)}, TensorRT takes only int8"
                )
                repair = (
                    "Keep biases in float (onnxruntime.quantization: extra_options={'QuantizeBias': False})."
                )
                yield target.at("int32-bias", "error", node, what, repair, node.input[0])
        elif kind == TensorProto.UINT8:
            if not target.for_tensorrt:
                continue
            if node.op_type == QUANTIZE and not _zero_point(node):
                what = (
                    "it has no zero point, so it quantises to uint8 by ONNX's rule and to int8 by TensorRT's"
                )
                repair = "Give it a zero point of int8 0."
            else:
                what = "it is uint8, which TensorRT refuses or reads as int8, so that 128 to 255 are lost"
                repair = _SYMMETRIC
            yield target.at("uint8", "error", node, what, repair, _zero_point(node) or node.input[0])
        elif kind not in (TensorProto.INT8, TensorProto.UNDEFINED):
            what = f"it is {type_name(kind)}; {target.backend} has INT8 kernels for 8 bits only"
            yield target.at(
                "quantised-type", target.if_tensorrt, node, what, "Quantise to 8 bits.", node.input[0]
            )


def scales(view: GraphView, target: Target) -> Iterator[Finding]:
    """Scales are constants, finite and positive."""
    for node in _pairs(view):
        name = node.input[1]
        value = view.constant(name)
        if value is None:
            if not view.is_constant(name):
                # Real TensorRT does not refuse it but crashes.
                what = f"its scale '{name}' is computed or given from outside"
                repair = "Store the scale in the file: calibrate, then quantise statically."
                yield target.at("scale-constant", target.if_tensorrt, node, what, repair, name)
            continue
        numbers = value.astype(np.float64)
        wrong = ~(np.isfinite(numbers) & (numbers > 0))
        if wrong.any():
            where = f" at {_few(np.flatnonzero(wrong))}" if numbers.size > 1 else ""
            what = f"its scale '{name}' is {_few(numbers[wrong])}{where}, expected finite and above 0"
            repair = (
                "A range that calibration saw as empty: give the scale a floor, or leave the layer in float."
            )
            yield target.at("scale-value", "error", node, what, repair, name)


def scale_types(view: GraphView, target: Target) -> Iterator[Finding]:
    """A Q's scale has its input's type; float16 needs the operators of opset 19."""
    for node in _pairs(view):
        scale = view.elem_type(node.input[1])
        given = view.elem_type(node.input[0])
        known = TensorProto.UNDEFINED not in (scale, given)
        if node.op_type == QUANTIZE and view.opset < _OWN_SCALE_TYPE_SINCE and known and scale != given:
            what = f"its scale is {type_name(scale)}, its input '{node.input[0]}' {type_name(given)}"
            repair = f"Store the scale as {type_name(given)}."
            yield target.at("scale-type", "error", node, what, repair, node.input[1])
            continue
        if scale == TensorProto.FLOAT16 and view.opset < _FLOAT16_SINCE:
            what = f"its scale is float16, which needs opset {_FLOAT16_SINCE}, the graph's is {view.opset}"
            repair = f"Convert the graph to opset {_FLOAT16_SINCE} (onnx.version_converter) before it is made float16."
            yield target.at("float16-opset", "error", node, what, repair, node.input[1])


def channels(view: GraphView, target: Target) -> Iterator[Finding]:
    """A scale is one number, or for weights one for each output channel."""
    for node in _pairs(view):
        size = _size(view, node.input[1])
        if whole_number(node, "block_size", 0):
            what = f"it is quantised in blocks of {attribute(node, 'block_size')}, which is not for int8"
            repair = "Quantise weights per channel and activations per tensor."
            yield target.at("blockwise", target.if_tensorrt, node, what, repair, node.input[1])
            continue
        points = _size(view, _zero_point(node)) if _zero_point(node) else None
        if size is not None and points is not None and size != points:
            what = f"it has {size} scales and {points} zero points"
            yield target.at("channels", "error", node, what, "Give it as many of each.", node.input[1])
            continue
        if size is None or size == 1:
            continue
        if not view.is_constant(node.input[0]):
            what = f"it quantises the activation '{node.input[0]}' with {size} scales, one a channel"
            repair = "Activations take one scale; only weights are quantised per channel."
            yield target.at("activation-scale", target.if_tensorrt, node, what, repair, node.input[1])
            continue
        yield from _weight_channels(view, target, node, size)


def _weight_channels(view: GraphView, target: Target, node: NodeProto, size: int) -> Iterator[Finding]:
    shape = view.shape(node.input[0])
    if shape is None:
        return
    axis = whole_number(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    if not 0 <= axis < len(shape):
        what = f"its axis {axis} is not one of the {len(shape)} of '{node.input[0]}'"
        yield target.at("channels", "error", node, what, "Set 'axis' to the output channels'.", node.input[0])
        return
    if shape[axis] != size:
        what = f"it has {size} scales for the {shape[axis]} channels of axis {axis} of '{node.input[0]}'"
        repair = "Give one scale a channel, or set 'axis' to the output channels'."
        yield target.at("channels", "error", node, what, repair, node.input[1])
        return
    for layer in view.users(node.output[0]):
        wanted = output_axis(layer)
        if layer.input[1:2] == [node.output[0]] and wanted is not None and wanted != axis:
            what = (
                f"its scales run along axis {axis}, the output channels of {layer.op_type} '{label(layer)}' "
                f"along axis {wanted}, so that no INT8 kernel takes it"
            )
            yield target.at("channel-axis", "warning", node, what, f"Set 'axis' to {wanted}.", node.input[1])


def output_axis(layer: NodeProto) -> int | None:
    """Axis of the output channels in a layer's weights; None for a layer without."""
    if layer.op_type == "Gemm":
        return 0 if whole_number(layer, "transB", 0) else 1
    return WEIGHTED.get(layer.op_type)


def chains(view: GraphView, target: Target) -> Iterator[Finding]:
    """No Q follows a DQ at once; for TensorRT nothing but a DQ computes with integers."""
    for node in view.of_type(QUANTIZE):
        before = view.maker(node.input[0])
        # A state that passes through a step unchanged is the one good reason.
        if before is not None and before.op_type == DEQUANTIZE and not _leaves(view, node.output[0]):
            what = f"it quantises again what DequantizeLinear '{label(before)}' has just dequantised"
            repair = "Remove the pair: one Q and one DQ stand between two layers."
            yield target.at("double-qdq", "warning", node, what, repair, node.input[0])
        if target.for_tensorrt:
            yield from _read_as_integers(view, target, node)
    for node in view.of_type(DEQUANTIZE):
        before = view.maker(view.origin(node.input[0]))
        if not target.for_tensorrt or before is None or before.op_type == QUANTIZE:
            continue
        if not view.is_constant(node.input[0]) and before.op_type not in NO_PARSER:
            what = f"it dequantises what {before.op_type} '{label(before)}' computes in integers"
            repair = "Put the operator between a DequantizeLinear and a QuantizeLinear."
            yield target.at("dequantise-alone", "error", node, what, repair, node.input[0])


def _read_as_integers(view: GraphView, target: Target, node: NodeProto) -> Iterator[Finding]:
    for user in view.readers(node.output[0]):
        if user.op_type != DEQUANTIZE and user.op_type not in NO_PARSER:
            what = f"{user.op_type} '{label(user)}' reads its integers, no DequantizeLinear between"
            repair = "Put a DequantizeLinear with the same scale after it."
            yield target.at("quantise-alone", "error", node, what, repair, node.output[0])


def _leaves(view: GraphView, name: str) -> bool:
    """Whether a tensor, or a rearrangement of it, is an output of the graph."""
    if view.is_output(name):
        return True
    return any(
        _leaves(view, output) for user in view.users(name) if user.op_type in MOVES for output in user.output
    )


def activation_types(view: GraphView, target: Target) -> Iterator[Finding]:
    """ONNX Runtime: a ReLU melts into the convolution before it where the type begins at zero."""
    if target.for_tensorrt:
        return
    for node in view.of_type(QUANTIZE):
        before = view.maker(node.input[0])
        value = view.constant(_zero_point(node)) if _zero_point(node) else None
        if before is None or before.op_type != "Relu" or value is None or value.dtype == np.uint8:
            continue
        if value.size and int(value.reshape(-1)[0]) > np.iinfo(np.int8).min:
            what = f"it quantises the output of Relu '{label(before)}' as {value.dtype} with zero point {_few(value)}"
            repair = "Use uint8 with zero point 0 there: the ReLU then costs nothing and no level is wasted."
            yield target.at("relu-range", "warning", node, what, repair, node.input[0])


def _for_bias(view: GraphView, node: NodeProto) -> str:
    layer = next((user for user in view.users(node.output[0]) if user.op_type in WEIGHTED), None)
    return "" if layer is None else f", the bias of {layer.op_type} '{label(layer)}'"


def _size(view: GraphView, name: str) -> int | None:
    """How many numbers a tensor holds; None where its shape is unknown."""
    sizes = view.shape(name)
    if sizes is None or any(not isinstance(size, int) for size in sizes):
        return None
    return math.prod(int(size) for size in sizes)


def _few(values: np.ndarray) -> str:
    """The first numbers of an array, for a message."""
    flat = values.reshape(-1)
    shown = ", ".join(f"{number:g}" for number in flat[:3].astype(np.float64))
    return shown if flat.size <= 3 else f"{shown} and {flat.size - 3} more"


RULES = (zero_points, integer_types, scales, scale_types, channels, chains, activation_types)
