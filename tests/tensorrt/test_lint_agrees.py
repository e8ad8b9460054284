"""The linter against real TensorRT: what it calls an error is refused there, and the repaired graph is built.

Where TensorRT takes a graph that the linter refuses, the case says why the rule stands (``Case.because``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from edge_sdk.compile.lint import errors_of, lint  # noqa: E402
from tests.lint_cases import ERRORS, Case  # noqa: E402
from tests.lint_graphs import quantised_conv  # noqa: E402
from tests.lint_warnings import WARNINGS, reads_state, writes_state  # noqa: E402
from tests.tensorrt import harness  # noqa: E402

CASES = [case for case in (*ERRORS, *WARNINGS) if case.backend == "tensorrt"]
# TensorRT's process dies of these, so each is parsed in a process of its own.
CRASHING = [case for case in CASES if case.tensorrt == "crashes"]
SAFE = [case for case in CASES if case.tensorrt != "crashes"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What TensorRT makes of every graph of the table, by case and graph; in one process for all."""
    folder = tmp_path_factory.mktemp("graphs")
    files = {}
    for case in CASES:
        for kind, make in (("bad", case.bad), ("good", case.good)):
            if kind == "good" or case.tensorrt != "crashes":
                files[case.name, kind] = folder / f"{len(files)}.onnx"
                onnx.save(make(), files[case.name, kind])
    return dict(zip(files, harness.parse_and_build_all(list(files.values())), strict=True))


@pytest.mark.parametrize("case", SAFE, ids=lambda case: case.name)
def test_an_error_of_the_linter_is_refused_by_tensorrt(case: Case, answers):
    built = answers[case.name, "bad"]
    assert built.ok == (case.tensorrt == "accepts"), built.error or case.because
    if case.severity == "warning":
        assert built.ok, built.error
    # Where the parser names a node, it is one that the linter names too.
    if built.nodes and case.at:
        found = lint(case.bad(), backend="tensorrt", precision=case.precision)
        assert set(built.nodes) & ({f.node for f in found} | {"", "conv"}), (built.nodes, built.error)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_repaired_graph_is_built(case: Case, answers):
    built = answers[case.name, "good"]
    assert built.ok, built.error
    assert built.plan_bytes > 0


@pytest.mark.parametrize("case", CRASHING, ids=lambda case: case.name)
def test_tensorrt_does_not_survive_what_the_linter_refuses(case: Case, tmp_path: Path):
    """The reason for a linter that reads the graph itself rather than asking the parser."""
    onnx.save(case.bad(), tmp_path / "graph.onnx")
    done = harness.run(["-c", _PARSE_AND_BUILD, str(tmp_path / "graph.onnx")])
    assert done.returncode < 0, "a signal ended it in the pinned version; now it ends by itself"
    assert errors_of(lint(case.bad(), backend="tensorrt", precision=case.precision))


@pytest.mark.parametrize("zero", [np.uint8(0), None], ids=["uint8", "none"])
def test_tensorrt_reads_uint8_as_int8(zero, tmp_path: Path):
    """ONNX says uint8 and TensorRT computes int8, without a word: every value above half the range is lost."""
    onnx.save(quantised_conv(zero=zero), tmp_path / "graph.onnx")
    types = harness.run_json(_OUTPUT_TYPES, str(tmp_path / "graph.onnx"))
    assert types["q_x"] == "DataType.INT8"
    assert "uint8" in {
        finding.rule for finding in lint(quantised_conv(zero=zero), backend="tensorrt", precision="int8")
    }


@pytest.mark.parametrize("make", [writes_state, reads_state, lambda: reads_state(rewrites=0.25)],
                         ids=["writes", "reads", "rewrites"])  # fmt: skip
def test_state_as_bytes_in_nhwc_is_built(make, tmp_path: Path):
    onnx.save(make(), tmp_path / "graph.onnx")
    built = harness.parse_and_build(tmp_path / "graph.onnx")
    assert built.ok, built.error


_PARSE_AND_BUILD = """
import sys
import tensorrt as trt

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
parsed = parser.parse_from_file(sys.argv[1])
plan = builder.build_serialized_network(network, builder.create_builder_config()) if parsed else None
sys.exit(0 if plan is not None else 9)
"""

_OUTPUT_TYPES = """
import json, sys
import tensorrt as trt

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
parser.parse_from_file(sys.argv[1])
layers = [network.get_layer(i) for i in range(network.num_layers)]
print("\\n" + json.dumps({layer.name: str(layer.get_output(0).dtype) for layer in layers}))
"""
