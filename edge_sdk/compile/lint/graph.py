"""An ONNX graph as the rules read it: makers and users of each tensor, its type, shape and constant value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from edge_sdk.compile.accumulators import accumulators_of
from edge_sdk.manifest import is_state

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# They move numbers or rename them and compute none, so a tensor's scale is the same before and after.
MOVES = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
# Layers with weights of their own, whose precision decides the speed; the axis of their output channels in the weights.
WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1}
# Operators of ONNX that TensorRT's parser has none for (its operators.md, 10.15).
# fmt: off
NO_PARSER = frozenset(
    {
        "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
        "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det",
        "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool",
        "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement",
        "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt",
        "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
        "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer",
        "StringSplit", "TfIdfVectorizer", "Unique",
    }
)
# fmt: on


@dataclass(frozen=True)
class Value:
    """A graph input or output.

    Args:
        name: the tensor.
        elem_type: ONNX's number of its type.
        dims: its axes: a size, or the name of one that is not fixed (``"?"`` where it has none); None: rank unknown.
    """

    name: str
    elem_type: int
    dims: tuple[int | str, ...] | None

    @property
    def is_state(self) -> bool:
        """Whether the tensor passes from one step to the next."""
        return is_state(self.name)


class GraphView:
    """Read access to a model's main graph.

    Args:
        model: the model; it is not changed. Types and shapes between the nodes are inferred as far as they can be.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.sums = accumulators_of(model)
        graph = _inferred(model).graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        # Old exporters list weights among the inputs too; those are not given by the caller.
        held = {tensor.name for tensor in graph.initializer}
        self.inputs = [_value(v) for v in graph.input if v.name not in held]
        self.outputs = [_value(v) for v in graph.output]
        self.initializers: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self._values = {v.name: _value(v) for v in (*graph.value_info, *graph.input, *graph.output)}
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        self._users: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._users.setdefault(name, []).append(node)
        self._arrays: dict[str, np.ndarray | None] = {}
        self._fixed = set(self.initializers)
        for node in self.nodes:  # in the order of computation, as ONNX demands
            if all(name in self._fixed for name in node.input if name):
                self._fixed.update(node.output)

    def maker(self, name: str) -> NodeProto | None:
        """The node that writes a tensor; None for inputs and weights."""
        return self._makers.get(name)

    def users(self, name: str) -> list[NodeProto]:
        """The nodes that read a tensor."""
        return self._users.get(name, [])

    def elem_type(self, name: str) -> int:
        """ONNX's number of a tensor's type; ``TensorProto.UNDEFINED`` where it cannot be known."""
        if name in self.initializers:
            return self.initializers[name].data_type
        value = self._values.get(name)
        return value.elem_type if value is not None else TensorProto.UNDEFINED

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        """A tensor's axes; None where not even their number is known."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        value = self._values.get(name)
        return value.dims if value is not None else None

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a tensor that the file fixes; None for one that is computed or given."""
        if name not in self._arrays:
            self._arrays[name] = self._read(name)
        return self._arrays[name]

    def is_constant(self, name: str) -> bool:
        """Whether the file fixes a tensor, directly or through nodes that read only constants."""
        return name in self._fixed

    def origin(self, name: str) -> str:
        """The tensor that ``name`` is a rearrangement of: back over every node of :data:`MOVES`."""
        node = self.maker(name)
        while node is not None and node.op_type in MOVES:
            name = node.input[0]
            node = self.maker(name)
        return name

    def readers(self, name: str) -> Iterator[NodeProto]:
        """The nodes that compute with a tensor, seen over every node of :data:`MOVES`."""
        for node in self.users(name):
            if node.op_type in MOVES and node.input[0] == name:
                for output in node.output:
                    yield from self.readers(output)
            else:
                yield node

    def is_output(self, name: str) -> bool:
        """Whether a tensor leaves the graph."""
        return any(value.name == name for value in self.outputs)

    def of_type(self, *op_types: str) -> list[NodeProto]:
        """Every node of these operators, in the order of the file."""
        return [node for node in self.nodes if node.op_type in op_types]

    def dequantised(self, name: str) -> bool:
        """Whether a tensor comes straight from a DequantizeLinear."""
        node = self.maker(name)
        return node is not None and node.op_type == DEQUANTIZE

    def is_quantised(self, node: NodeProto) -> bool:
        """Whether a layer with weights reads both its activation and its weights through DequantizeLinear."""
        return node.op_type in WEIGHTED and all(self.dequantised(name) for name in node.input[:2])

    def weight_shape(self, node: NodeProto) -> tuple[int | str, ...] | None:
        """Shape of a layer's weights, read through their Q/DQ."""
        return self.shape(node.input[1])

    def _read(self, name: str) -> np.ndarray | None:
        if name in self.initializers:
            tensor = self.initializers[name]
            return (
                None if tensor.data_location == TensorProto.EXTERNAL else onnx.numpy_helper.to_array(tensor)
            )
        node = self.maker(name)
        if node is None:
            return None
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        if node.op_type == "Constant":
            value = attribute(node, "value")
            if isinstance(value, TensorProto):
                return onnx.numpy_helper.to_array(value)
            plain = next((attribute(node, key) for key in ("value_float", "value_int", "value_floats", "value_ints")
                          if attribute(node, key) is not None), None)  # fmt: skip
            return None if plain is None else np.asarray(plain)
        return None


def label(node: NodeProto) -> str:
    """A node's name, or where it has none, what it writes."""
    return node.name or f"{node.op_type} of {node.output[0] if node.output else 'nothing'}"


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """Value of a node's attribute, or ``default``."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def whole_number(node: NodeProto, name: str, default: int) -> int:
    """Value of an attribute that is a whole number."""
    value = attribute(node, name, default)
    return value if isinstance(value, int) else default


def type_name(elem_type: int) -> str:
    """A type as numpy calls it, such as ``float16``."""
    return onnx.TensorProto.DataType.Name(elem_type).lower() if elem_type else "unknown"


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    # A graph with mistakes in it is just what the rules are for; what cannot be inferred is read as unknown.
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return model


def _value(info: onnx.ValueInfoProto) -> Value:
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return Value(info.name, kind.elem_type, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim)
    return Value(info.name, kind.elem_type, dims)
