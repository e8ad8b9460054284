from __future__ import annotations

import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edge_sdk.bundle import write_bundle
from edge_sdk.errors import (
    BundleError,
    ClosedError,
    DependencyError,
    EngineError,
    MissingFileError,
    RecipeError,
    ShapeError,
)
from edge_sdk.runtime.engine import Buffer, Engine, EngineOptions, aligned_array, backend_named
from edge_sdk.runtime.onnxruntime import OrtBackend
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.state import StreamState
from edge_sdk.tensors import TensorSpec
from tests.graphs import PAIRS, random_images, residual

OPTIONS = EngineOptions(threads=1)


def load(model: onnx.ModelProto, folder: Path) -> Engine:
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return OrtBackend().load(path, OPTIONS)


def buffers_for(engine: Engine) -> dict[str, Buffer]:
    return {spec.name: engine.allocate(spec) for spec in (*engine.inputs, *engine.outputs)}


@given(
    shape=st.lists(st.integers(1, 7), max_size=4),
    dtype=st.sampled_from(["uint8", "float16", "float32", "int64", "bool"]),
)
def test_aligned_array(shape: list[int], dtype: str) -> None:
    array = aligned_array(TensorSpec(name="x", shape=tuple(shape), dtype=dtype))
    assert array.ctypes.data % 256 == 0
    assert (array.shape, array.dtype) == (tuple(shape), np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert not array.any()


def test_engine_names_its_tensors(tmp_path: Path) -> None:
    delta = residual().delta
    assert delta is not None
    engine = load(delta, tmp_path)
    assert engine.inputs == (
        TensorSpec(name="frame", shape=(4, 6, 3), dtype="uint8"),
        TensorSpec(name="state.memory", shape=(4, 6), dtype="float32"),
    )
    assert engine.outputs == (TensorSpec(name="mask", shape=(4, 6), dtype="uint8"),)


def test_a_step_reads_and_writes_the_bound_memory(tmp_path: Path) -> None:
    pair = residual()
    engine = load(pair.keyframe, tmp_path)
    buffers = buffers_for(engine)
    before = {name: buffer.host.ctypes.data for name, buffer in buffers.items()}
    step = engine.bind(buffers)
    for image in random_images(3):
        np.copyto(buffers["frame"].host, image)
        step.run()
        mask, memory = pair.keyframe_formula(image, None)
        assert memory is not None
        np.testing.assert_array_equal(buffers["mask"].host, mask)
        np.testing.assert_array_equal(buffers["state.memory.next"].host, memory)
    assert {name: buffer.host.ctypes.data for name, buffer in buffers.items()} == before


def test_several_streams_share_an_engine(tmp_path: Path) -> None:
    pair = residual()
    engine = load(pair.keyframe, tmp_path)
    streams = [buffers_for(engine) for _ in range(2)]
    steps = [engine.bind(buffers) for buffers in streams]
    for buffers, image in zip(streams, images := random_images(2), strict=True):
        np.copyto(buffers["frame"].host, image)
    for step in steps:
        step.run()
    for buffers, image in zip(streams, images, strict=True):
        np.testing.assert_array_equal(buffers["mask"].host, pair.keyframe_formula(image, None)[0])


def test_a_step_outlives_its_engine_and_its_callers_buffers(tmp_path: Path) -> None:
    pair = residual()
    engine = load(pair.keyframe, tmp_path)
    buffers = buffers_for(engine)
    frame, mask = buffers["frame"].host, buffers["mask"].host
    step = engine.bind(buffers)
    state = weakref.ref(buffers["state.memory.next"].host)
    buffers.clear()
    engine.close()
    engine.close()
    assert state() is not None  # the step holds what it writes to
    image = random_images(1)[0]
    np.copyto(frame, image)
    step.run()
    np.testing.assert_array_equal(mask, pair.keyframe_formula(image, None)[0])
    with pytest.raises(ClosedError, match=r"engine .*graph\.onnx: it is closed"):
        engine.bind({})


def test_bind_refuses_what_does_not_fit(tmp_path: Path) -> None:
    engine = load(residual().keyframe, tmp_path)
    buffers = buffers_for(engine)
    short = {name: buffer for name, buffer in buffers.items() if name != "mask"}
    with pytest.raises(EngineError, match="no buffer was given for 'mask'"):
        engine.bind(short)
    with pytest.raises(EngineError, match=r"the graph has no 'masks', only frame, mask, state\.memory\.next"):
        engine.bind(buffers | {"masks": buffers["mask"]})
    wide = engine.allocate(TensorSpec(name="mask", shape=(4, 7), dtype="uint8"))
    with pytest.raises(ShapeError, match=r"'mask' expects \(4, 6\) uint8, its buffer is \(4, 7\) uint8"):
        engine.bind(buffers | {"mask": wide})
    floats = engine.allocate(TensorSpec(name="mask", shape=(4, 6), dtype="float32"))
    with pytest.raises(ShapeError, match=r"'mask' expects \(4, 6\) uint8, its buffer is \(4, 6\) float32"):
        engine.bind(buffers | {"mask": floats})


def test_a_graph_that_cannot_be_loaded_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.onnx"
    with pytest.raises(MissingFileError, match=r"graph: expected a file at .*graph\.onnx"):
        OrtBackend().load(path, OPTIONS)
    path.write_bytes(b"not a graph")
    with pytest.raises(
        EngineError, match=r"graph .*graph\.onnx: ONNX Runtime [\d.]+ refuses it: .*Export"
    ) as caught:
        OrtBackend().load(path, OPTIONS)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def identity(shape: list[int | str], dtype: int) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, dtype, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (
            ["batch", 3],
            TensorProto.FLOAT,
            r"'x' has an axis of no fixed length: \['batch', 3\].*static shapes",
        ),
        (
            [2],
            TensorProto.STRING,
            r"'x' is tensor\(string\); expected one of tensor\(float\), .*another type",
        ),
        ([2], TensorProto.BFLOAT16, r"'x' is tensor\(bfloat16\); expected one of"),
    ],
)
def test_graphs_without_a_fixed_layout_are_refused(
    shape: list[int | str], dtype: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=message):
        load(identity(shape, dtype), tmp_path)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(TensorProto.FLOAT16, "float16"), (TensorProto.DOUBLE, "float64"), (TensorProto.BOOL, "bool")],
)
def test_other_dtypes(dtype: int, name: str, tmp_path: Path) -> None:
    engine = load(identity([3], dtype), tmp_path)
    buffers = buffers_for(engine)
    buffers["x"].host[:] = (0, 1, 1)
    engine.bind(buffers).run()
    assert buffers["y"].host.dtype == name
    assert buffers["y"].host.tolist() == [0, 1, 1]


def test_a_failing_run_is_an_engine_error(tmp_path: Path) -> None:
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("i", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
    ]
    graph = helper.make_graph([helper.make_node("Gather", ["x", "i"], ["y"])], "g", values[:2], values[2:])
    engine = load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path
    )
    buffers = buffers_for(engine)
    step = engine.bind(buffers)
    buffers["i"].host[:] = 99
    with pytest.raises(EngineError, match=r"ONNX Runtime failed: .*Gather") as caught:
        step.run()
    assert "\n" not in str(caught.value)


def test_backends_by_name() -> None:
    assert backend_named("onnxruntime").name == "onnxruntime"
    with pytest.raises(RecipeError, match="backend: expected one of onnxruntime, tensorrt, got 'tensort'"):
        backend_named("tensort")


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = residual().write(tmp_path / "b")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"running a bundle needs the package onnxruntime.*pip install"):
        EdgeRunner(bundle).open()


def test_a_graph_that_is_not_the_manifests(tmp_path: Path) -> None:
    pair, other = residual((4, 6)), residual((4, 8))
    mixed = write_bundle(
        tmp_path / "b", pair.manifest(), pair.files() | {"delta.onnx": other.files()["delta.onnx"]}
    )
    with pytest.raises(
        BundleError,
        match=r"graph delta\.onnx: 'frame' is \(4, 8, 3\) uint8 in the graph and \(4, 6, 3\) uint8 in the manifest",
    ):
        EdgeRunner(mixed).open()
    swapped = write_bundle(
        tmp_path / "b", pair.manifest(), pair.files() | {"delta.onnx": pair.files()["keyframe.onnx"]}
    )
    with pytest.raises(
        BundleError, match=r"'state\.memory' is not there in the graph and \(4, 6\) float32 in the"
    ):
        EdgeRunner(swapped).open()


@pytest.mark.parametrize("name", PAIRS)
def test_state_is_passed_without_a_copy(name: str, tmp_path: Path) -> None:
    """What the keyframe writes is the memory that the delta reads; what a delta writes, the next delta reads."""
    engine = load(PAIRS[name]().keyframe, tmp_path)
    rewritten = {"memory"} if name == "chaining" else set()
    specs = [
        TensorSpec(name="memory", shape=(4, 6), dtype="float32"),
        TensorSpec(name="r", shape=(2,), dtype="uint8"),
    ]
    state = StreamState(specs, rewritten, engine.allocate)
    written = state.keyframe_buffers()
    assert sorted(written) == ["state.memory.next", "state.r.next"]
    state.keyframe_done()
    slots = []
    for _ in range(5):
        buffers = state.delta_buffers(state.slot)
        slots.append(state.slot)
        assert buffers["state.r"] is written["state.r.next"]
        assert "state.r.next" not in buffers
        if state.age == 0 or not rewritten:
            assert buffers["state.memory"] is written["state.memory.next"]
        if rewritten:
            assert buffers["state.memory"] is not buffers["state.memory.next"]
            following = state.delta_buffers((state.slot + 1) % len(state.slots))
            assert following["state.memory"] is buffers["state.memory.next"]
        else:
            assert sorted(buffers) == ["state.memory", "state.r"]
        state.delta_done()
    assert slots == ([0, 1, 0, 1, 0] if rewritten else [0] * 5)
    assert state.age == 5
    assert state.size_bytes == (2 if rewritten else 1) * 4 * 6 * 4 + 2
