"""The harness itself: real TensorRT answers, and says which node it dislikes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are made with onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tests.tensorrt import harness  # noqa: E402


def convolution(path: Path, *, cast_first: bool = True) -> Path:
    """One convolution over a frame of bytes (1, 3, 16, 16)."""
    weights = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    cast = helper.make_node("Cast", ["frame"], ["x"], name="to_float", to=TensorProto.FLOAT)
    flip = helper.make_node("Transpose", ["frame"], ["flipped"], name="flip", perm=[0, 1, 3, 2])
    late = helper.make_node("Cast", ["flipped"], ["x"], name="to_float", to=TensorProto.FLOAT)
    nodes = [
        *([cast] if cast_first else [flip, late]),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, 3, 16, 16))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8, 16, 16))],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_the_bindings_are_the_real_ones(module: str) -> None:
    code = f"import json, {module} as trt; print(json.dumps([trt.__version__, trt.__name__]))"
    assert harness.run_json(code, module=module) == [harness.BINDINGS[1], "tensorrt_bindings"]


def test_builds_and_refuses(tmp_path: Path) -> None:
    """Bytes that are moved before they are cast are what TensorRT refuses, by the node's name."""
    good = convolution(tmp_path / "good.onnx")
    bad = convolution(tmp_path / "bad.onnx", cast_first=False)
    (tmp_path / "none.onnx").write_bytes(b"not a graph")
    built, refused, unreadable = harness.parse_and_build_all([good, bad, tmp_path / "none.onnx"])
    assert built.ok, built.error
    assert built.plan_bytes > 8 * 27 * 4
    assert built.error == ""
    assert not refused.ok
    assert refused.nodes == ("flip",)
    assert "UInt8" in refused.error
    assert refused.plan_bytes == 0
    assert not unreadable.ok


def test_parsing_alone(tmp_path: Path) -> None:
    parsed = harness.parse_and_build(convolution(tmp_path / "good.onnx"), build=False)
    assert parsed.ok
    assert parsed.plan_bytes == 0
