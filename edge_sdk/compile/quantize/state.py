"""State in the engine's own terms: its type, its layout, one scale at both ends.

A float32 state would cost an INT8 pair what it gains: four times the bytes, a conversion at each join, and transposes
around them. So state inputs and outputs become bytes that lie as the engine's kernels read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_sdk.compile.quantize.nodes import (
    Wiring,
    add_constant,
    drop_unused,
    replace_input,
    set_type,
    shape_of,
    sort_nodes,
)
from edge_sdk.compile.quantize.ranges import Ranges
from edge_sdk.manifest import StateForm, state_input, state_output

_TO_NHWC = (0, 2, 3, 1)
_TO_NCHW = [0, 3, 1, 2]
_KEYS = ("scale", "zero_point")


@dataclass(frozen=True)
class TypedPair:
    """Step graphs of a pair in a lower precision.

    Attributes:
        graphs: by step.
        forms: of the state tensors whose type or layout differs from the float32 pair's.
        kept: layers (INT8) or nodes (float16) that stay in higher precision, by step, with the reason.
    """

    graphs: dict[str, onnx.ModelProto]
    forms: dict[str, StateForm]
    kept: dict[str, dict[str, str]]


def permutation_for(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of a float32 state tensor in the order in which they are kept; empty where they stay as they are."""
    return _TO_NHWC if layout == "nhwc" and len(shape) == 4 else ()


def keep_channels_last(model: onnx.ModelProto, names: list[str], layout: str) -> None:
    """Let four-dimensional state enter and leave in ``layout``, through transposes that optimisers cancel, in place."""
    graph = model.graph
    for name in names:
        for value in graph.input:
            if value.name == state_input(name) and permutation_for(layout, shape_of(value)):
                inner = f"{value.name}.nchw"
                replace_input(graph.node, value.name, inner)
                graph.node.append(
                    helper.make_node("Transpose", [value.name], [inner], name=inner, perm=_TO_NCHW)
                )
                _permute(value)
        for value in graph.output:
            if value.name == state_output(name) and permutation_for(layout, shape_of(value)):
                inner = f"{value.name}.nchw"
                _rename(graph, value.name, inner)
                graph.node.append(
                    helper.make_node("Transpose", [inner], [value.name], name=inner, perm=list(_TO_NHWC))
                )
                _permute(value)
    sort_nodes(model)


def _permute(value: onnx.ValueInfoProto) -> None:
    shape = shape_of(value)
    set_type(value, value.type.tensor_type.elem_type, [shape[axis] for axis in _TO_NHWC])


Forms = dict[str, tuple[np.ndarray, np.ndarray]]


def quantize_inputs(model: onnx.ModelProto, ranges: Ranges, names: list[str], dtype: str) -> Forms:
    """Make every state input a tensor of bytes, in place.

    Where it is quantised before it is read, that quantisation gives scale and zero point; a tensor that is read in
    float alone is dequantised first.

    Args:
        ranges: of the state tensors, for those that nobody quantises.
        names: the state tensors.
        dtype: ``int8`` or ``uint8``.

    Returns:
        scale and zero point of each, by state name.
    """
    forms: Forms = {}
    for name in names:
        value = next((v for v in model.graph.input if v.name == state_input(name)), None)
        if value is None:
            continue
        found = _quantized_reader(Wiring(model.graph), value.name)
        if found is None:
            forms[name] = _dequantize(model, value, ranges[value.name], dtype)
            continue
        tensor, quantize = found
        wiring = Wiring(model.graph)
        scale, zero = (numpy_helper.to_array(wiring.constants[key]) for key in quantize.input[1:3])
        dequantize = wiring.readers[quantize.output[0]][0]
        # Readers in float read what the others dequantise: the bytes are all there is now.
        readers = [node for node in wiring.readers[tensor] if node is not quantize]
        replace_input(readers, tensor, dequantize.output[0])
        replace_input(wiring.readers[quantize.output[0]], quantize.output[0], tensor)
        model.graph.node.remove(quantize)
        set_type(value, helper.np_dtype_to_tensor_dtype(zero.dtype), shape_of(value))
        forms[name] = (scale, zero)
    _tidy(model)
    return forms


def _dequantize(
    model: onnx.ModelProto, value: onnx.ValueInfoProto, limits: tuple[float, float], dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Put a DequantizeLinear between a state input and its readers."""
    wiring = Wiring(model.graph)
    readers = wiring.readers.get(value.name, [])
    tensor = next((node.output[0] for node in readers if _is_layout(node, value.name)), value.name)
    scale, zero = _form(limits, dtype)
    inner = f"{value.name}.dequantised"
    replace_input(wiring.readers.get(tensor, []), tensor, inner)
    constants = [
        add_constant(model, f"{inner}.{key}", value) for key, value in zip(_KEYS, (scale, zero), strict=True)
    ]
    model.graph.node.append(helper.make_node("DequantizeLinear", [tensor, *constants], [inner], name=inner))
    set_type(value, helper.np_dtype_to_tensor_dtype(zero.dtype), shape_of(value))
    return scale, zero


def _form(limits: tuple[float, float], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point as the quantiser would have chosen them."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    if dtype == "int8":
        scale, zero = max(-low, high) / 127, 0
    elif low == 0:
        scale, zero = high / 255, 0
    else:
        scale, zero = max(-low / 128, high / 127), 128
    return np.array(max(scale, np.finfo(np.float32).tiny), np.float32), np.array(zero, dtype)


def quantize_outputs(model: onnx.ModelProto, forms: Forms) -> None:
    """Write each state output of ``forms`` quantised with its scale and zero point, in place.

    What is quantised so already is written as it is: engines fuse a convolution with one quantisation, not with two.
    """
    graph = model.graph
    for name, form in forms.items():
        value = next((v for v in graph.output if v.name == state_output(name)), None)
        if value is None:
            continue
        wiring = Wiring(graph)
        last = wiring.makers[value.name]
        transposed = _is_layout(last, value.name)
        source = last.input[0] if transposed else value.name
        quantize = _quantized_by(wiring, source, form)
        if not transposed:
            # Whoever reads it goes on reading floats.
            source = _rename(graph, value.name, f"{value.name}.float")
        if quantize is None:
            quantize = _quantize(model, source, form, f"{value.name}.quantised")
        if transposed:
            last.input[0] = quantize.output[0]
        else:
            _rename(graph, quantize.output[0], value.name)
        set_type(value, helper.np_dtype_to_tensor_dtype(form[1].dtype), shape_of(value))
    _tidy(model)


def _quantize(
    model: onnx.ModelProto, source: str, form: tuple[np.ndarray, np.ndarray], name: str
) -> onnx.NodeProto:
    """Add a QuantizeLinear."""
    constants = [add_constant(model, f"{name}.{key}", value) for key, value in zip(_KEYS, form, strict=True)]
    model.graph.node.append(helper.make_node("QuantizeLinear", [source, *constants], [name], name=name))
    return model.graph.node[-1]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> str:
    """Give a tensor another name where it is made and read."""
    for node in graph.node:
        for index, output in enumerate(node.output):
            if output == old:
                node.output[index] = new
    replace_input(graph.node, old, new)
    return new


def form_of(scale: np.ndarray, zero: np.ndarray, permutation: tuple[int, ...]) -> StateForm:
    """The manifest's word for a quantised state tensor."""
    return StateForm(scale=float(scale), zero_point=int(zero), permutation=permutation)


def with_own_scales(delta: onnx.ModelProto, forms: Mapping[str, StateForm]) -> dict[str, StateForm]:
    """``forms`` with each scale as the delta step's graph holds it, which may have been rounded to float16."""
    wiring = Wiring(delta.graph)
    found: dict[str, StateForm] = {}
    for name, form in forms.items():
        tensor = state_input(name)
        readers = wiring.readers.get(tensor, [])
        tensor = next((node.output[0] for node in readers if _is_layout(node, tensor)), tensor)
        dequantize = next(
            (node for node in wiring.readers.get(tensor, []) if node.op_type == "DequantizeLinear"), None
        )
        if dequantize is not None:
            scale = float(numpy_helper.to_array(wiring.constants[dequantize.input[1]]))
            form = form.model_copy(update={"scale": scale})
        found[name] = form
    return found


def _is_layout(node: onnx.NodeProto, name: str) -> bool:
    """Whether ``node`` is the transpose that :func:`keep_channels_last` put at the state tensor ``name``."""
    return node.op_type == "Transpose" and node.name == f"{name}.nchw"


def _quantized_reader(wiring: Wiring, name: str) -> tuple[str, onnx.NodeProto] | None:
    """The tensor (the input itself, or its transpose) that a QuantizeLinear reads, and that node."""
    name = next((node.output[0] for node in wiring.readers.get(name, []) if _is_layout(node, name)), name)
    found = [node for node in wiring.readers.get(name, []) if node.op_type == "QuantizeLinear"]
    return (name, found[0]) if found else None


def _quantized_by(wiring: Wiring, tensor: str, form: tuple[np.ndarray, np.ndarray]) -> onnx.NodeProto | None:
    """The QuantizeLinear of this form that ``tensor`` is dequantised from, if it is.

    One of another form does not count, and stays before the one that is added: its zero point may be a ReLU.
    """
    dequantize = wiring.makers.get(tensor)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = wiring.makers.get(dequantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    scale, zero = (numpy_helper.to_array(wiring.constants[name]) for name in quantize.input[1:3])
    same = scale == form[0] and zero == form[1] and zero.dtype == form[1].dtype
    return quantize if same else None


def _tidy(model: onnx.ModelProto) -> None:
    sort_nodes(model)
    drop_unused(model)
    # Shapes inferred before the change name tensors that have other types now.
    del model.graph.value_info[:]
