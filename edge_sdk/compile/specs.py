"""What a step graph takes, gives and costs, for the manifest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from edge_sdk.manifest import StepSpec
from edge_sdk.tensors import TensorSpec


def step_spec(model: onnx.ModelProto, graph: str, macs: int | None = None) -> StepSpec:
    """Spec of a step graph.

    Args:
        model: the graph.
        graph: its file, relative to the bundle.
        macs: multiply-accumulates of one run where they are known; None counts them.
    """

    def spec(value: Any) -> TensorSpec:
        kind = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        return TensorSpec(name=value.name, shape=tuple(d.dim_value for d in kind.shape.dim), dtype=dtype)

    # Open weights are initialisers that are listed as inputs too; no frame brings them.
    held = {tensor.name for tensor in model.graph.initializer}
    return StepSpec(
        graph=graph,
        inputs=tuple(spec(value) for value in model.graph.input if value.name not in held),
        outputs=tuple(map(spec, model.graph.output)),
        macs=graph_macs(model) if macs is None else macs,
    )


def graph_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of one run: convolutions and matrix products, less those that only resize."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = inferred.graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    constants = {t.name: t for t in graph.initializer}
    shapes.update({name: list(t.dims) for name, t in constants.items()})
    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            # A transposed convolution uses its kernel once for every input pixel.
            places = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]][2:]
            total += math.prod(shapes[node.input[1]]) * math.prod(places)
        elif node.op_type in ("MatMul", "Gemm"):
            given = [constants[name] for name in node.input[:2] if name in constants]
            if not any(only_resizes(onnx.numpy_helper.to_array(t)) for t in given):
                inner = shapes[node.input[0]][-1]
                total += math.prod(shapes[node.output[0]]) * inner
    return total


def only_resizes(matrix: np.ndarray) -> bool:
    """Whether a constant is a linear interpolation: at most two weights a place, adding up to one."""
    if matrix.ndim != 2 or (matrix < 0).any():
        return False
    return any(
        bool(((m != 0).sum(0) <= 2).all()) and np.allclose(m.sum(0), 1, atol=1e-4) for m in (matrix, matrix.T)
    )
