"""State that is added to: which it is, that it stays in float32, and that what it adds does not drift."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are made with onnx")
ort = pytest.importorskip("onnxruntime", reason="graphs are run with ONNX Runtime")

from onnx import ModelProto, TensorProto, helper, numpy_helper  # noqa: E402

from edge_sdk.compile.accumulators import Accumulators, accumulators_of  # noqa: E402
from edge_sdk.compile.quantize.float16 import to_float16  # noqa: E402
from edge_sdk.compile.rewrite import copy_constants_out  # noqa: E402
from tests import quantised_pairs  # noqa: E402

SHAPE = (1, 4, 6, 6)
WEIGHT = np.random.default_rng(0).normal(size=(4, 4, 1, 1)).astype(np.float32)


def delta(*nodes: Any, state: tuple[str, ...], written: tuple[str, ...], answer: str = "y") -> ModelProto:
    """A delta step over maps; ``w`` are weights of a convolution and ``half`` is the number."""

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)

    graph = helper.make_graph(
        [helper.make_node(kind, names.split(), [out], name=f"make_{out}") for kind, names, out in nodes],
        "delta",
        [info("x"), *(info(f"state.{name}") for name in state)],
        [info(answer), *(info(f"state.{name}.next") for name in written)],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.array(0.5, np.float32), "half")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


# Nodes, state, what is rewritten; then which of it is held exactly, and the tensors between.
CASES: dict[str, tuple[list[tuple[str, str, str]], tuple[str, ...], tuple[str, ...], set[str], set[str]]] = {
    "only read": ([("Add", "x state.a", "y")], ("a",), (), set(), set()),
    "a sum": (
        [("Conv", "x w", "f"), ("Add", "f state.a", "s"), ("Relu", "s", "y"), ("Identity", "s", "state.a.next")],
        ("a",), ("a",), {"a"}, {"s", "state.a.next"},
    ),
    "written anew": ([("Relu", "x", "state.a.next"), ("Add", "state.a x", "y")], ("a",), ("a",), set(), set()),
    "back through a convolution": (
        [("Conv", "state.a w", "r"), ("Add", "r x", "state.a.next"), ("Relu", "state.a.next", "y")],
        ("a",), ("a",), set(), set(),
    ),
    "one by way of the other": (
        [("Mul", "state.a half", "b1"), ("Add", "b1 x", "state.b.next"), ("Relu", "state.b", "state.a.next"),
         ("Add", "state.a.next state.b.next", "y")],
        ("a", "b"), ("a", "b"), {"a", "b"}, {"b1", "state.b.next", "state.a.next"},
    ),
    "differences that are summed": (
        [("Sub", "x state.before", "c"), ("Conv", "c w", "f"), ("Add", "f state.a", "state.a.next"),
         ("Identity", "x", "state.before.next"), ("Relu", "state.a.next", "y")],
        ("before", "a"), ("before", "a"), {"before", "a"}, {"state.a.next"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_added_to_is_found_by_the_graph_alone(name: str) -> None:
    nodes, state, written, wide, tensors = CASES[name]
    found = accumulators_of(delta(*nodes, state=state, written=written))
    assert (set(found.state), set(found.tensors)) == (wide, tensors)


def test_a_memory_behind_a_convolution_is_none_and_a_keyframe_has_none() -> None:
    for step in ("keyframe", "delta"):
        assert accumulators_of(quantised_pairs.recurrent_graph(step)) == Accumulators()


def test_a_float16_step_adds_to_its_state_in_float32() -> None:
    """200 additions of 1e-3 to 100: float16, whose steps there are 1/16, would stand still."""
    nodes, state, written, wide, _ = CASES["a sum"]
    model = delta(*nodes, state=state, written=written)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.eye(4, dtype=np.float32)[..., None, None], "w")
    )
    half = to_float16(model, [], wide)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)}
    assert kinds == {
        "x": TensorProto.FLOAT16, "y": TensorProto.FLOAT, "state.a": TensorProto.FLOAT,
        "state.a.next": TensorProto.FLOAT,
    }  # fmt: skip
    # No cast between the state and its addition, at either end.
    (adding,) = (node for node in half.graph.node if node.op_type == "Add")
    assert "state.a" in adding.input
    alone = ort.SessionOptions()
    alone.intra_op_num_threads = 1
    session = ort.InferenceSession(half.SerializeToString(), alone, providers=["CPUExecutionProvider"])
    total = np.full(SHAPE, 100, np.float32)
    for _ in range(200):
        (total,) = session.run(["state.a.next"], {"x": np.full(SHAPE, 1e-3, np.float16), "state.a": total})
    assert total == pytest.approx(100.2, abs=1e-3)


def test_a_state_that_begins_as_a_constant_is_written_by_a_node() -> None:
    info = helper.make_tensor_value_info("state.count.next", TensorProto.FLOAT, (1,))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,))
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1,))
    node = helper.make_node("Add", ["x", "state.count.next"], ["y"], name="add")
    one = numpy_helper.from_array(np.ones(1, np.float32), "state.count.next")
    model = helper.make_model(
        helper.make_graph([node], "keyframe", [given], [answer, info], [one]),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=9,
    )  # fmt: skip
    copy_constants_out(model)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [float(value[0]) for value in session.run(None, {"x": np.ones(1, np.float32)})] == [2.0, 1.0]
