"""Latency tests of the SDK itself, with the fixture that a user's tests have: what a pair gains over its teacher.

Budgets are relative to the teacher in the same run, so that they hold on machines that are shared or slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="the pair is written with onnx")

import onnx

from edge_sdk.bench import times
from edge_sdk.bench.plugin import EdgeBench
from edge_sdk.bundle import Bundle
from edge_sdk.runtime.schedule import EverySchedule
from tests.graphs import residual

SIZE = (192, 256)
# Passes over the state, each a node: they make a step of 1 ms one of 4 ms.
WORK = 600
LENGTH: dict[str, Any] = {"seconds": 4, "rounds": 2, "fps": 60, "threads": 1}


def write_pair(folder: Path, *, keyframe: int, delta: int) -> Bundle:
    """The pair ``residual`` with passes more in each step; its answers stay what they are."""
    pair = residual(SIZE)
    assert pair.delta is not None
    _work(pair.keyframe.graph, "memory", keyframe)
    _work(pair.delta.graph, "sum", delta)
    return pair.write(folder, EverySchedule(interval=5))


def _work(graph: Any, tensor: str, passes: int) -> None:
    """Double and halve a tensor, which is exact, before whoever reads it does."""
    at = next(i for i, node in enumerate(graph.node) if tensor in node.output) + 1
    for node in graph.node[at:]:
        node.input[:] = [f"{tensor}.{passes}" if passes and name == tensor else name for name in node.input]
    factors = (
        onnx.helper.make_tensor("double", 1, (), [2.0]),
        onnx.helper.make_tensor("halve", 1, (), [0.5]),
    )
    graph.initializer.extend(factors)
    for number in range(passes):
        read = f"{tensor}.{number}" if number else tensor
        factor = factors[number % 2].name
        graph.node.insert(
            at + number, onnx.helper.make_node("Mul", [read, factor], [f"{tensor}.{number + 1}"])
        )


def test_a_pair_takes_less_time_than_its_teacher(edge_bench: EdgeBench, tmp_path: Path) -> None:
    """A delta is a quarter of a keyframe or less, so five frames take 0.4 of five keyframes."""
    bundle = write_pair(tmp_path / "pair", keyframe=WORK, delta=0)
    edge_bench(bundle.path, **LENGTH, mean_ms=times(0.8, "teacher"), p50_ms=times(0.6, "teacher"))


def test_a_delta_step_that_has_become_slow_is_found(edge_bench: EdgeBench, tmp_path: Path) -> None:
    """Twice a keyframe: far enough from the budget for a machine that does other things beside."""
    bundle = write_pair(tmp_path / "pair", keyframe=WORK, delta=2 * WORK)
    with pytest.raises(pytest.fail.Exception) as failure:
        edge_bench(bundle.path, **LENGTH, camera_share=0, mean_ms=times(0.8, "teacher"))
    (line,) = str(failure.value).splitlines()
    assert line.startswith("mean_ms: ")
    assert "over the budget of" in line
    assert "; slowest frame" in line


@pytest.mark.gpu
def test_on_tensorrt(edge_bench: EdgeBench, tmp_path: Path) -> None:
    edge_bench.require(backend="tensorrt")
    from edge_sdk.build.tensorrt import TensorRTSettings, build_plan
    from tests.device.test_tensorrt import Beside

    bundle = write_pair(tmp_path / "pair", keyframe=WORK, delta=0)
    for step in ("keyframe", "delta"):
        graph = bundle.path / f"{step}.onnx"
        build_plan(
            graph, graph.with_suffix(".plan"), step=step, precision="float32", settings=TensorRTSettings()
        )
    # Fused, the keyframe's passes cost next to nothing on a GPU, so this holds the pair to no gain.
    edge_bench(
        bundle.path,
        **LENGTH,
        backend=Beside(),
        engine="float32",
        baselines=True,
        mean_ms=times(1.5, "teacher"),
    )
