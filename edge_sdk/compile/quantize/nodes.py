"""Small views of an ONNX graph that several rewrites share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from edge_sdk.compile.specs import only_resizes

# What rewrites add to a weight's name.
_ENDINGS = (".negated", ".on_bytes", ".quantized", "_quantized", ".weight")


class Wiring:
    """Who makes and who reads each tensor of a graph; made anew after nodes changed.

    Args:
        graph: the graph.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}

    def reaches(self, targets: Iterable[NodeProto]) -> set[str]:
        """Names of the nodes that some target's result depends on, the targets included."""
        return _walk(targets, lambda node: [self.makers[name] for name in node.input if name in self.makers])

    def reached_from(self, starts: Iterable[NodeProto]) -> set[str]:
        """Names of the nodes whose result depends on some start, the starts included."""
        return _walk(starts, lambda node: [one for name in node.output for one in self.readers.get(name, ())])


def _walk(starts: Iterable[NodeProto], onward: Callable[[NodeProto], list[NodeProto]]) -> set[str]:
    """Names of the nodes that are reached, the first ones included."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            waiting += onward(node)
    return found


def named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` whose every node has a name of its own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name_nodes(copy)
    return copy


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
        seen.add(node.name)


def layer_of(node: NodeProto) -> str:
    """The layer that a convolution was exported from, by its weight's name; else the node's own name."""
    weight = (
        node.input[1] if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 1 else ""
    )
    stem = weight.removeprefix("pair.network.").removeprefix("pair.")
    while True:
        short = stem
        for ending in _ENDINGS:
            short = short.removesuffix(ending)
        if short == stem:
            return stem or node.name
        stem = short


def is_matrix_layer(node: NodeProto, wiring: Wiring) -> bool:
    """Whether a node multiplies by weights of its own, such as a classifier; a resize written as a product is none."""
    if node.op_type not in ("Gemm", "MatMul"):
        return False
    held = [wiring.constants[name] for name in node.input[:2] if name in wiring.constants]
    return any(not only_resizes(numpy_helper.to_array(tensor)) for tensor in held)


def matches(node: NodeProto, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the node's layer or its own name."""
    names = (layer_of(node), node.name)
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def replace_input(nodes: Iterable[NodeProto], old: str, new: str) -> None:
    """Make every reader of ``old`` among ``nodes`` read ``new``."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def add_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> str:
    """Add an initializer."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
    return name


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that no output depends on."""
    graph = model.graph
    wiring = Wiring(graph)
    needed = wiring.reaches(wiring.makers[name] for name in wiring.outputs if name in wiring.makers)
    kept = [node for node in graph.node if node.name in needed]
    used = {name for node in kept for name in node.input} | wiring.outputs
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)


def sort_nodes(model: onnx.ModelProto) -> None:
    """Bring the nodes into an order in which each comes after those it reads from."""
    graph = model.graph
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if all(name in made for name in node.input)]
        if not ready:
            raise RuntimeError(f"graph {graph.name}: node {waiting[0].name} reads what nobody makes")
        made.update(name for node in ready for name in node.output)
        taken = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in taken]
        ordered += ready
    copies = []
    for node in ordered:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Static shape of a graph input or output."""
    return tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)


def set_type(value: onnx.ValueInfoProto, elem_type: int, shape: Iterable[int]) -> None:
    """Give a graph input or output another type and shape."""
    value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, elem_type, list(shape)))
