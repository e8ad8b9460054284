"""Step graphs of every kind of student: they answer what torch does, and what is kept leaves nothing in the delta."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="pairs are exported with torch")
onnx = pytest.importorskip("onnx", reason="graphs are made with onnx")

from edge_sdk.bundle import Bundle  # noqa: E402
from tests import candidate_pairs  # noqa: E402
from tests.candidate_pairs import BLOCK, CONV  # noqa: E402

# kind, convolutions of the delta graph in the convolution's and in the block's student
CONVOLUTIONS = [
    ("full", 1, 2), ("rank/4", 2, 4), ("channels/2", 2, 4), ("half", 1, 2), ("half+rank/4", 2, 4),
    ("half+channels/2", 2, 4), ("kept", 0, 0),
]  # fmt: skip


def operators(bundle: Bundle, step: Any) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(bundle.graph_path(step))).graph.node)


@pytest.mark.parametrize(("kind", "of_conv", "of_block"), CONVOLUTIONS)
def test_every_kind_is_exported(tmp_path: Path, kind: str, of_conv: int, of_block: int) -> None:
    # Export itself holds the graphs in ONNX Runtime against torch.
    bundle = candidate_pairs.of_kind(tmp_path, kind, matmul_resize=kind != "half")
    found = operators(bundle, "delta")
    # Where the block is kept, the convolution still feeds the answer, and the first and the last always run.
    assert found["Conv"] == 2 + of_conv + of_block
    assert found["AveragePool"] == (2 if "half" in kind else 0)
    assert {spec.name for spec in bundle.manifest.state} == {CONV, BLOCK}
    assert operators(bundle, "keyframe")["Conv"] == 5 + of_conv + of_block


def test_what_only_feeds_kept_units_vanishes(tmp_path: Path) -> None:
    delta = {"units": {CONV: ["full", "kept"], "block.0": ["full", "rank/4"], "block.3": ["half", "kept"]}}
    alive, kept = tmp_path / "alive", tmp_path / "kept"
    for folder in (alive, kept):
        folder.mkdir()
    choice = {CONV: "full", "block.0": "rank/4", "block.3": "half"}
    bundle = candidate_pairs.bundle(alive, {**delta, "choice": choice})
    assert operators(bundle, "delta")["Conv"] == 2 + 1 + 2 + 1
    bundle = candidate_pairs.bundle(kept, {**delta, "choice": {**choice, "block.3": "kept"}})
    found = operators(bundle, "delta")
    assert found["Conv"] == 2 + 1
    assert found["AveragePool"] == 0
    assert {spec.name for spec in bundle.manifest.state} == {CONV, "block.3"}
    graph = onnx.load(str(bundle.graph_path("delta"))).graph
    assert not any("block.0" in tensor.name or "block_0" in tensor.name for tensor in graph.initializer)
