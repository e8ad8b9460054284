"""Writes edge_sdk/bench/yardstick.onnx: python -m tests.yardstick

Its weights are constants of the graph, so the file is a few thousand bytes and holds nothing learnt. Four chains of
work, because what slows a machine slows each kind by another factor; see edge_sdk/bench/yardstick.py.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

PATH = Path(str(resources.files("edge_sdk.bench") / "yardstick.onnx"))
Chain = tuple[list[NodeProto], list[ValueInfoProto], list[ValueInfoProto]]


def graph() -> onnx.ModelProto:
    """Convolutions in INT8 and float32, over maps that fit into a core's cache and over maps that do not."""
    chains = [
        _chain("bytes", TensorProto.UINT8, (1, 32, 90, 120), layers=3, kernel=3),
        _chain("small", TensorProto.UINT8, (1, 64, 12, 15), layers=20, kernel=3),
        _chain("floats", TensorProto.FLOAT, (1, 64, 90, 120), layers=1, kernel=1),
        _chain("large", TensorProto.FLOAT, (1, 8, 180, 240), layers=1, kernel=1),
    ]
    constants = {"scale": np.float32(0.02), "of_weights": np.float32(0.01)}
    zeros = {"zero": np.uint8(0), "no_zero": np.int8(0)}
    return helper.make_model(
        helper.make_graph(
            [node for nodes, _, _ in chains for node in nodes],
            "yardstick",
            [value for _, inputs, _ in chains for value in inputs],
            [value for _, _, outputs in chains for value in outputs],
            [numpy_helper.from_array(np.array(value), name) for name, value in (constants | zeros).items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="edge_sdk",
    )


def _chain(name: str, kind: int, shape: tuple[int, ...], *, layers: int, kernel: int) -> Chain:
    in_bytes = kind == TensorProto.UINT8
    channels, weights = shape[1], f"{name}.weights"
    sizes = numpy_helper.from_array(np.array([channels, channels, kernel, kernel], np.int64))
    nodes = [helper.make_node("Constant", [], [f"{name}.sizes"], value=sizes)]
    one = np.array([1 if in_bytes else 1.0 / channels], np.int8 if in_bytes else np.float32)
    nodes.append(
        helper.make_node("ConstantOfShape", [f"{name}.sizes"], [weights], value=numpy_helper.from_array(one))
    )
    last = f"{name}.in"
    for layer in range(layers):
        out = f"{name}.out" if layer + 1 == layers else f"{name}.{layer}"
        given = [last, weights]
        if in_bytes:
            given = [last, "scale", "zero", weights, "of_weights", "no_zero", "scale", "zero"]
        nodes.append(
            helper.make_node("QLinearConv" if in_bytes else "Conv", given, [out], pads=[kernel // 2] * 4)
        )
        last = out
    ends = [helper.make_tensor_value_info(end, kind, shape) for end in (f"{name}.in", f"{name}.out")]
    return nodes, ends[:1], ends[1:]


if __name__ == "__main__":
    PATH.write_bytes(graph().SerializeToString())
