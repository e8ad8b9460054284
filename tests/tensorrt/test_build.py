"""Real TensorRT builds what users' pairs become, through the builder that a device uses, in every precision."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pairs are exported with torch")
onnx = pytest.importorskip("onnx", reason="graphs are made with onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edge_sdk.build.tensorrt import TensorRTSettings, build_plan  # noqa: E402
from edge_sdk.build.tensorrt.timing_cache import DATA  # noqa: E402
from edge_sdk.errors import ChecksumError, DependencyError, EngineError, EngineMismatchError  # noqa: E402
from edge_sdk.files import sha256_of  # noqa: E402
from edge_sdk.identity import EngineIdentity, open_engine  # noqa: E402
from edge_sdk.machine import NO_GPU, machine_facts  # noqa: E402
from tests.tensorrt import harness, pairs  # noqa: E402
from tests.tensorrt.small import convolution  # noqa: E402

MIB = 1 << 20
SERIALISED = b"vtrt"  # how plans begin


@pytest.fixture(scope="module")
def tensorrt() -> Iterator[None]:
    """What a child process needs to load TensorRT."""
    found = harness.environment()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LD_LIBRARY_PATH", "PYTHONPATH"):
            patch.setenv(name, found[name])
        yield


@pytest.fixture(scope="module", params=pairs.MODELS)
def graphs(
    request: pytest.FixtureRequest, tensorrt: None, tmp_path_factory: pytest.TempPathFactory
) -> pairs.Graphs:
    return pairs.make(request.param, tmp_path_factory.mktemp(request.param))


class Watcher:
    def __init__(self, act: Callable[[int], None] = lambda done: None) -> None:
        self.done: list[int] = []
        self.act = act

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        assert total == 100
        self.done.append(done)
        self.act(done)


@pytest.mark.parametrize("precision", pairs.PRECISIONS)
@pytest.mark.parametrize("step", pairs.STEPS)
def test_both_steps_in_every_precision(
    graphs: pairs.Graphs, precision: str, step: str, tmp_path: Path
) -> None:
    graph, kind = graphs.paths[precision][step], pairs.PRECISIONS[precision]
    plan, watcher = tmp_path / f"{step}.plan", Watcher()
    found = build_plan(
        graph, plan, step=step, precision=kind, settings=TensorRTSettings(timing_cache=tmp_path / "timing"),  # type: ignore[arg-type]
        calibration_sha256="0" * 64 if kind == "int8" else None, progress=watcher,
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{step}.json", f"{step}.plan", "timing"]
    assert plan.read_bytes()[:4] == SERIALISED, "a plan that any TensorRT program reads"
    assert found.graph_sha256 == sha256_of(graph)
    assert found.engine_bytes == plan.stat().st_size
    assert found.runtime == f"tensorrt {harness.BINDINGS[1]}"
    assert found.asked == pytest.approx(shares_in(graph))
    assert found.asked[kind] >= (1.0 if kind == "float32" else 0.5), (
        "most of the work is of the precision asked"
    )
    if found.machine.device == NO_GPU:
        assert found.shares is None
        assert "no GPU" in found.shares_unknown
    assert watcher.done == sorted(watcher.done)
    assert (watcher.done[0], watcher.done[-1]) == (0, 100)
    assert len(set(watcher.done)) > 10
    assert found.build_s > 0


def shares_in(path: Path) -> dict[str, float]:
    """What a graph's convolutions ask for, counted on the ONNX file."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True)
    makers = {name: node for node in model.graph.node for name in node.output}
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    names = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
    kinds = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            both = [makers[name].op_type if name in makers else "" for name in node.input[:2]]
            quantised = both == ["DequantizeLinear"] * 2
            kinds.append("int8" if quantised else names[types[node.input[0]]])
    return {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}


# What does not depend on the network


def build(
    graph: Path, folder: Path, precision: Any = "float32", progress: Any = None, **settings: Any
) -> EngineIdentity:
    known = {"timing_cache": folder / "timing", **settings}
    return build_plan(
        graph, folder / "out" / "keyframe.plan", step="keyframe", precision=precision,
        settings=TensorRTSettings(**known), progress=progress,
    )  # fmt: skip


def test_the_small_graph_builds(tensorrt: None, tmp_path: Path) -> None:
    """Without this the refusals below would say little."""
    assert build(convolution(tmp_path / "q.onnx", quantised=True), tmp_path, "int8").asked == {"int8": 1.0}
    assert build(convolution(tmp_path / "f.onnx"), tmp_path).asked == {"float32": 1.0}


def test_a_network_of_matrix_products(tensorrt: None, tmp_path: Path) -> None:
    """They count where there are no convolutions."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(32, 16)).astype(np.float32),
        "v": rng.normal(size=(16, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 32))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 8))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert build(tmp_path / "m.onnx", tmp_path).asked == {"float32": 1.0}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "asymmetric uint8": ({"kind": TensorProto.UINT8, "zero_point": 128}, "node 'quantise_x'"),
    "asymmetric int8": ({"zero_point": 3}, "node 'quantise_x'"),
    "int32 bias": ({"bias": TensorProto.INT32}, "node 'dequantise_b'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_graphs_that_tensorrt_refuses_are_refused_by_the_nodes_name(
    name: str, tensorrt: None, tmp_path: Path
) -> None:
    changes, words = REFUSED[name]
    graph = convolution(tmp_path / "graph.onnx", quantised=True, **changes)
    assert not harness.parse_and_build(graph).ok
    with pytest.raises(EngineError, match=rf"TensorRT refuses {words} \(\w+Linear\): ") as caught:
        build(graph, tmp_path, "int8")
    assert "symmetric INT8 alone" in caught.value.hint
    assert "edge-sdk lint" in caught.value.hint
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_precision_that_is_not_in_the_graph_is_refused(tensorrt: None, tmp_path: Path) -> None:
    """Asking for float16 and getting float32 with exit code 0 is what must not happen."""
    plain, quantised = convolution(tmp_path / "f.onnx"), convolution(tmp_path / "q.onnx", quantised=True)
    for graph, precision in (
        (plain, "int8"),
        (plain, "float16"),
        (quantised, "float32"),
        (quantised, "float16"),
    ):
        with pytest.raises(EngineError, match=f"an engine in {precision} was asked for, but"):
            build(graph, tmp_path, precision)
    assert list((tmp_path / "out").iterdir()) == []


def test_dynamic_shapes_and_files_that_are_no_graphs(tensorrt: None, tmp_path: Path) -> None:
    model = onnx.load(str(convolution(tmp_path / "f.onnx")))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, str(tmp_path / "dynamic.onnx"))
    with pytest.raises(EngineError, match=r"input 'x' has a dynamic shape \(-1, 16, 8, 8\)"):
        build(tmp_path / "dynamic.onnx", tmp_path)
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"none\.onnx: TensorRT cannot read it"):
        build(tmp_path / "none.onnx", tmp_path)


def test_an_operator_that_tensorrt_does_not_know(tensorrt: None, tmp_path: Path) -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], name="normalise")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, (1,))],
        [helper.make_tensor_value_info("y", TensorProto.STRING, (1,))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(tmp_path / "s.onnx"))
    with pytest.raises(EngineError, match=r"s\.onnx: TensorRT "):
        build(tmp_path / "s.onnx", tmp_path)


# What a machine without a GPU, a lean runtime or a DLA cannot do is an error that says so


SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no DLA": ({"dla_core": 0}, EngineError, "0 was asked for, TensorRT .* sees 0 DLA cores here"),
    "no RTX": ({"runtime": "tensorrt_rtx"}, DependencyError, "pip install tensorrt_rtx"),
    "no lean runtime": ({"version_compatible": True}, EngineError, "lean runtime: install it, or leave"),
    "no time": ({"timeout_s": 0.01}, EngineError, r"ended after 0\.01 s"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_this_machine_cannot_meet(name: str, tensorrt: None, tmp_path: Path) -> None:
    settings, error, words = SETTINGS[name]
    with pytest.raises(error, match=words):
        build(convolution(tmp_path / "f.onnx"), tmp_path, **settings)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "recorded"),
    [
        ({"optimisation_level": 0, "aux_streams": 0}, {"optimisation_level": 0, "aux_streams": 0}),
        ({"tf32": True, "workspace_bytes": 64 * MIB}, {"tf32": True, "workspace_bytes": 64 * MIB}),
    ],
)
def test_settings_are_used_and_recorded(
    settings: dict[str, Any], recorded: dict[str, Any], tensorrt: None, tmp_path: Path
) -> None:
    found = build(convolution(tmp_path / "f.onnx"), tmp_path, **settings)
    assert recorded.items() <= found.settings.items()
    assert found.notes == ()


def test_a_workspace_larger_than_what_is_free_is_cut(tensorrt: None, tmp_path: Path) -> None:
    found = build(convolution(tmp_path / "f.onnx"), tmp_path, workspace_bytes=1 << 50)
    limit = found.settings["workspace_bytes"]
    assert isinstance(limit, int)
    assert 0 < limit < 1 << 50
    assert found.notes[0].startswith(
        f"workspace: {(1 << 50) // MIB} MiB were asked for, {limit / MIB:.0f} MiB are free"
    )


def test_tensorrt_rtx_is_a_drop_in(tensorrt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has only ``tensorrt_rtx``; that product has no use for timing caches."""
    monkeypatch.setenv(
        "PYTHONPATH", harness.environment("tensorrt_rtx")["PYTHONPATH"].replace("/tensorrt:", "/none:")
    )
    found = build(convolution(tmp_path / "f.onnx"), tmp_path)
    assert found.runtime == f"tensorrt_rtx {harness.BINDINGS[1]}"
    assert not (tmp_path / "timing").exists()


# Timing cache


def test_a_timing_cache_is_kept_and_checked(tensorrt: None, tmp_path: Path) -> None:
    graph = convolution(tmp_path / "f.onnx")
    build(graph, tmp_path)
    (folder,) = (tmp_path / "timing").iterdir()
    first = (folder / DATA).read_bytes()
    assert first
    build(graph, tmp_path, optimisation_level=1)
    assert len(list((tmp_path / "timing").iterdir())) == 2
    build(graph, tmp_path, use_timing_cache=False)
    assert len(list((tmp_path / "timing").iterdir())) == 2
    (folder / DATA).write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    with pytest.raises(ChecksumError, match=r"timing cache .* damaged or replaced.*rm -r"):
        build(graph, tmp_path)


# The child process


def test_a_build_that_is_killed_half_way(
    tensorrt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux kills a build when memory runs out: TensorRT is at work, and then gone."""
    started: list[int] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            started.append(self.pid)

    def kill(done: int) -> None:
        if done >= 10 and len(started) == 1:
            os.kill(started.pop(), signal.SIGKILL)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    graph = convolution(tmp_path / "f.onnx")
    with pytest.raises(EngineError, match=r"the system killed it.*Close the desktop.*swap does not help"):
        build(graph, tmp_path, progress=Watcher(kill))
    assert list((tmp_path / "out").iterdir()) == []


def test_ctrl_c_half_way(tensorrt: None, tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(convolution(tmp_path / "f.onnx"), tmp_path, progress=Watcher(interrupt))
    assert list((tmp_path / "out").iterdir()) == []


# From the built plan to the runtime


def test_a_plan_is_opened_only_by_what_built_it(tensorrt: None, tmp_path: Path) -> None:
    """Checked before anything is deserialised; TensorRT then refuses for want of a driver, and only for that."""
    identity = build(convolution(tmp_path / "f.onnx"), tmp_path)
    plan = tmp_path / "out" / "keyframe.plan"
    with pytest.raises(
        EngineMismatchError, match=f"built with tensorrt {harness.BINDINGS[1]}, this machine has no"
    ):
        open_engine(plan, backend="tensorrt", rebuild="edge-sdk build x.yaml")
    if machine_facts("tensorrt").device != NO_GPU:
        pytest.skip("what a driver does with a plan for RTX is not tested here")
    code = """
import json, sys
from pathlib import Path
import tensorrt as trt
from edge_sdk.identity import open_engine
data, identity = open_engine(Path(sys.argv[1]), backend="tensorrt", rebuild="edge-sdk build x.yaml")
class Log(trt.ILogger):
    def __init__(self): trt.ILogger.__init__(self); self.said = []
    def log(self, severity, message): self.said.append(message)
log = Log()
runtime = trt.Runtime(log)
engine = runtime.deserialize_cuda_engine(data)
print(json.dumps([len(data), identity.runtime, engine is None, " ".join(log.said)]))
"""
    size, runtime, refused, said = harness.run_json(code, str(plan))
    assert (size, runtime, refused) == (identity.engine_bytes, identity.runtime, True)
    assert "driver" in said
