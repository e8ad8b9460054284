"""Writes edge_sdk/bench/yardstick.onnx: python -m tests.yardstick

Its weights are a constant of the graph, so the file is a few hundred bytes and holds nothing learnt.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

_CHANNELS, _HEIGHT, _WIDTH, _LAYERS = 32, 60, 80, 3
PATH = Path(str(resources.files("edge_sdk.bench") / "yardstick.onnx"))


def graph() -> onnx.ModelProto:
    """Three 3 x 3 convolutions over 32 maps of 60 x 80: some milliseconds of a small processor."""
    import numpy as np

    shape = numpy_helper.from_array(np.array([_CHANNELS, _CHANNELS, 3, 3], np.int64), "shape")
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0 / (9 * _CHANNELS)])
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["weights"], value=value)]
    last = "x"
    for layer in range(_LAYERS):
        out = "y" if layer == _LAYERS - 1 else f"relu{layer}"
        nodes.append(helper.make_node("Conv", [last, "weights"], [f"conv{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [out]))
        last = out
    maps = (1, _CHANNELS, _HEIGHT, _WIDTH)
    return helper.make_model(
        helper.make_graph(
            nodes,
            "yardstick",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, maps)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, maps)],
            [shape],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="edge_sdk",
    )


if __name__ == "__main__":
    PATH.write_bytes(graph().SerializeToString())
