"""Real TensorRT builds both steps of pairs that learn on the stream, and knows their weights by name."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="pairs are exported with torch")
pytest.importorskip("onnx", reason="graphs are made with onnx")

from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.compile.lint import errors_of, lint  # noqa: E402
from tests import online_pairs  # noqa: E402
from tests.tensorrt import harness  # noqa: E402

FRAME_HW = (67, 96)
# By norm and join; both joins of both norms are in two pairs, because a step that replaces is the other's first part.
PAIRS = {"frame": "correct", "running": "replace"}


@pytest.fixture(scope="module", params=PAIRS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    harness.require()
    norm = request.param
    student = {
        "factory": "edge_sdk.distill.models:jitnet",
        "arguments": {"classes": 3, "width": 0.25, "norm": norm},
    }
    return online_pairs.bundle(
        tmp_path_factory.mktemp(norm), FRAME_HW, student=student, fresh=("*",), join=PAIRS[norm],
        open=("logits.*", "head.*.weight"),
    )  # fmt: skip


# The inputs of each network, as the parser makes it of a graph.
CODE = """
import json, sys
import tensorrt as trt

log = trt.Logger(trt.Logger.ERROR)
answers = []
for path in sys.argv[1:]:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parser.parse_from_file(path)
    answers.append([network.get_input(i).name for i in range(network.num_inputs)])
print("\\n" + json.dumps(answers))
"""


def test_both_steps_build_and_open_weights_are_no_inputs(bundle: Bundle) -> None:
    steps = dict(bundle.manifest.steps.items())
    paths = [bundle.graph_path(step) for step in steps]
    built = harness.parse_and_build_all(paths)
    assert [(step.ok, step.error) for step in built] == [(True, "")] * 2
    online = bundle.manifest.online
    assert online is not None
    assert len(online.open) == 6
    inputs = harness.run_json(CODE, *map(str, paths))
    assert inputs == [[tensor.name for tensor in spec.inputs] for spec in steps.values()]


def test_the_linter_knows_nothing_against_them(bundle: Bundle) -> None:
    for step, _ in bundle.manifest.steps.items():
        assert (
            errors_of(lint(bundle.graph_path(step), backend="tensorrt", precision="float32", step=step)) == []
        )
