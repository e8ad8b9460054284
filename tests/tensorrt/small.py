"""One small graph for what does not depend on the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def convolution(
    path: Path,
    *,
    quantised: bool = False,
    zero_point: int = 0,
    kind: int = TensorProto.INT8,
    bias: int | None = None,
) -> Path:
    """A convolution of 16 channels over 8 x 8, plain or with Q/DQ on data and weights.

    Args:
        zero_point, kind: of the data's Q/DQ.
        bias: type of a quantised bias.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(16, 16, 3, 3)).astype(np.float32)
    constants: dict[str, Any] = {"w": weights}
    nodes, data, kernel = [], "x", "w"
    if quantised:
        small = helper.tensor_dtype_to_np_dtype(kind)
        constants |= {
            "scale": np.float32(0.05),
            "zero": np.array(zero_point, small),
            "w_scale": np.full(16, 0.02, np.float32),
            "w_zero": np.zeros(16, np.int8),
            "w": np.clip(weights / 0.02, -127, 127).astype(np.int8),
        }
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantise_x"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dequantise_x"),
            helper.make_node(
                "DequantizeLinear", ["w", "w_scale", "w_zero"], ["dw"], name="dequantise_w", axis=0
            ),
        ]
        data, kernel = "dq", "dw"
    inputs = [data, kernel]
    if bias is not None:
        whole = helper.tensor_dtype_to_np_dtype(bias)
        constants |= {"b": np.arange(16).astype(whole), "b_scale": np.full(16, 0.001, np.float32)}
        nodes.append(
            helper.make_node("DequantizeLinear", ["b", "b_scale"], ["db"], name="dequantise_b", axis=0)
        )
        inputs.append("db")
    nodes.append(helper.make_node("Conv", inputs, ["y"], name="conv", pads=[1, 1, 1, 1]))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 16, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 16, 8, 8))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path
