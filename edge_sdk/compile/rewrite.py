"""Exact rewrites of a step graph that let engines fuse what they otherwise cannot."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx


def negate_into_convolutions(model: onnx.ModelProto) -> int:
    """Turn ``z - conv(x)`` into ``z + conv'(x)`` with negated weights, in place.

    Every residual of a keyframe step, r = z - s(x), ends in such a subtraction; engines fuse a convolution with an
    addition after it, not with a subtraction.

    Returns:
        how many subtractions were rewritten.
    """
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    rewritten = 0
    for node in graph.node:
        conv = maker.get(node.input[1]) if node.op_type == "Sub" else None
        if conv is None or conv.op_type != "Conv" or uses[conv.output[0]] != 1:
            continue
        if any(name and name not in constants for name in conv.input[1:]):
            continue
        for index, name in enumerate(conv.input[1:], start=1):
            if name:
                fresh = f"{name}.negated"
                if fresh not in constants:
                    values = -onnx.numpy_helper.to_array(constants[name])
                    constants[fresh] = onnx.numpy_helper.from_array(np.ascontiguousarray(values), fresh)
                    graph.initializer.append(constants[fresh])
                conv.input[index] = fresh
        node.op_type = "Add"
        rewritten += 1
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return rewritten


def copy_constants_out(model: onnx.ModelProto) -> None:
    """Let a node write each graph output that is a constant, such as a count that begins at one, in place.

    The checker wants a node behind every output, and the exporter gives the constant itself the output's name.
    """
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    held = {tensor.name: tensor for tensor in graph.initializer}
    for value in graph.output:
        if value.name in made or value.name not in held:
            continue
        source = f"{value.name}.constant"
        held[value.name].name = source
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name == value.name:
                    node.input[index] = source
        graph.node.append(onnx.helper.make_node("Identity", [source], [value.name], name=source))
