"""Rewrites keep what a graph computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edge_sdk.compile.rewrite import negate_into_convolutions


def _graph(*, shared: bool, swapped: bool) -> onnx.ModelProto:
    """``z - conv(x)``, or ``conv(x) - z``; with ``shared`` the convolution is an output as well."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    bias = rng.standard_normal(4).astype(np.float32)
    sides = ["s", "z"] if swapped else ["z", "s"]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["s"], pads=[1] * 4),
        helper.make_node("Sub", sides, ["r"]),
    ]
    shape = [1, 4, 5, 6]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in (["r", "s"] if shared else ["r"])
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 5, 6]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, shape),
    ]
    constants = [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model: onnx.ModelProto) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    feed = {
        "x": rng.standard_normal((1, 3, 5, 6)).astype(np.float32),
        "z": rng.standard_normal((1, 4, 5, 6)).astype(np.float32),
    }
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize(
    ("shared", "swapped", "count"), [(False, False, 1), (True, False, 0), (False, True, 0)]
)
def test_a_subtracted_convolution_becomes_an_added_one(shared: bool, swapped: bool, count: int) -> None:
    model = _graph(shared=shared, swapped=swapped)
    before = _run(model)
    assert negate_into_convolutions(model) == count
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Add" if count else "Sub"]
    assert len(model.graph.initializer) == 2
    for old, new in zip(before, _run(model), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-6)
