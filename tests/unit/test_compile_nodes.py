"""The views of a graph that the quantisers' rewrites share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="quantising needs onnx")
ort = pytest.importorskip("onnxruntime", reason="quantising needs ONNX Runtime")

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edge_sdk.compile.quantize.nodes import Wiring, drop_unused, layer_of, name_nodes, sort_nodes  # noqa: E402


def answer(model: onnx.ModelProto) -> Any:
    """What ONNX Runtime makes of the number 3."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array([3], np.float32)})


@st.composite
def graphs(draw: Any) -> onnx.ModelProto:
    """A random acyclic graph of additions, its nodes in random order, some of which no output needs."""
    count = draw(st.integers(1, 12))
    tensors, nodes = ["x"], []
    for index in range(count):
        inputs = draw(st.lists(st.sampled_from([*tensors, "c"]), min_size=2, max_size=2))
        nodes.append(helper.make_node("Add", inputs, [f"t{index}"], name=f"n{index}"))
        tensors.append(f"t{index}")
    outputs = draw(st.lists(st.sampled_from(tensors[1:]), min_size=1, max_size=3, unique=True))
    graph = helper.make_graph(
        draw(st.permutations(nodes)), "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in outputs],
        [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("c", "unused")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def needed(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that an output needs, by following names backwards."""
    found: set[str] = set()
    wanted = [value.name for value in model.graph.output]
    while wanted:
        name = wanted.pop()
        for node in model.graph.node:
            if name in node.output and node.name not in found:
                found.add(node.name)
                wanted += node.input
    return found


@given(graphs())
def test_sorting_and_dropping_keep_what_is_needed_and_its_answers(model: onnx.ModelProto) -> None:
    expected = needed(model)
    names = sorted(node.name for node in model.graph.node)
    sort_nodes(model)
    assert sorted(node.name for node in model.graph.node) == names
    onnx.checker.check_model(model, full_check=True)
    before = answer(model)
    drop_unused(model)
    onnx.checker.check_model(model, full_check=True)
    assert {node.name for node in model.graph.node} == expected
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} == used & {"c"}
    after = answer(model)
    assert [a.tolist() for a in before] == [b.tolist() for b in after]
    again = model.SerializeToString()
    drop_unused(model)
    sort_nodes(model)
    assert model.SerializeToString() == again, "doing it twice changes nothing"


@given(graphs())
def test_a_wiring_agrees_with_itself(model: onnx.ModelProto) -> None:
    wiring = Wiring(model.graph)
    nodes = {node.name: node for node in model.graph.node}
    for name, node in nodes.items():
        for tensor in node.input:
            assert node in wiring.readers[tensor]
        assert all(wiring.makers[tensor] == node for tensor in node.output)
        # A node is reached from another exactly where the other reaches back to it.
        ahead = wiring.reached_from([node])
        assert name in ahead
        for other in nodes.values():
            assert (other.name in ahead) == (name in wiring.reaches([other]))
    targets = [wiring.makers[name] for name in wiring.outputs]
    assert wiring.reaches(targets) == needed(model)


@given(st.lists(st.sampled_from(["", "a", "b", "Add_1"]), min_size=1, max_size=6))
def test_every_node_gets_a_name_of_its_own(names: list[str]) -> None:
    nodes = [helper.make_node("Add", ["x", "x"], [f"t{i}"], name=name) for i, name in enumerate(names)]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    name_nodes(model)
    found = [node.name for node in model.graph.node]
    assert len(set(found)) == len(found)
    assert all(found)
    once = list(found)
    name_nodes(model)
    assert [node.name for node in model.graph.node] == once
    first = {name: names.index(name) for name in names if name}
    assert all(found[index] == name for name, index in first.items() if name != "Add_1")


def test_a_graph_that_reads_what_nobody_makes_is_an_error() -> None:
    nodes = [helper.make_node("Add", ["x", "missing"], ["y"], name="sum")]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,))
    model = helper.make_model(helper.make_graph(nodes, "broken", [value], []))
    with pytest.raises(RuntimeError, match="graph broken: node sum reads what nobody makes"):
        sort_nodes(model)


@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("pair.network.stem.0.weight", "stem.0"),
        ("stem.weight.negated", "stem"),
        ("pair.network.first.on_bytes.weight", "first"),
        ("pair.network.first.on_bytes.weight_quantized", "first"),
        ("a.weight.negated.on_bytes.weight", "a"),
        ("w1", "w1"),
        ("", "node"),
    ],
)
def test_a_layers_name_survives_what_rewrites_add_to_it(weight: str, layer: str) -> None:
    assert layer_of(helper.make_node("Conv", ["x", weight], ["y"], name="node")) == layer
