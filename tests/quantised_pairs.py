"""Pairs for the tests of INT8, float16 and engines: bundles with convolutions, and calibration sets of them.

``recurrent`` is made of ONNX nodes by hand, needs no torch and has what no exported student has: a delta step that
rewrites its state, and a state tensor of two axes. The others are students of small networks as users export them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_sdk.bundle import Bundle, Manifest, StateForm, StepsSpec, write_bundle
from edge_sdk.compile.calibrate import CalibrateRecipe, calibrate
from edge_sdk.compile.calibration_set import CalibrationSet
from edge_sdk.compile.quantize.variants import Quantizer
from edge_sdk.compile.specs import step_spec
from edge_sdk.runtime.onnxruntime import session_settings
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.settings import parse_settings
from edge_sdk.tasks import TaskSpec
from edge_sdk.tensors import TensorSpec
from edge_sdk.video import open_source

SIZE = (32, 48)
CLASSES = ("a", "b", "c", "d")
INTERVAL = 4
SCENE = "synthetic:shapes?height=32&width=48&frames=40&seed=1"
# Other frames than those that were calibrated with.
UNSEEN = "synthetic:shapes?height=32&width=48&frames=24&seed=7"
STATE = {"memory": (1, 8, 16, 24), "context": (1, 8)}
# Students by name: the network of ``tests.nets`` and how it is converted.
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "joined": ("nested", {}),
    "block": ("residual", {"blocks": ["middle"]}),
    "kept": ("nested", {"kept": ["middle.stages.0.b"]}),
    "transposed": ("transposed", {}),
}
PAIRS = ("recurrent", *STUDENTS)


@cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edge-sdk-pairs-")


@cache
def origin(name: str) -> Path:
    """Folder with ``bundle`` and ``set.npz`` of a pair, made once; for reading alone."""
    folder = Path(_root().name) / name
    folder.mkdir()
    bundle = recurrent(folder / "bundle") if name == "recurrent" else _student(folder, name)
    record(bundle, folder / "set.npz")
    return folder


def quantizer(name: str) -> Quantizer:
    """A quantiser of a pair with its calibration set."""
    folder = origin(name)
    return Quantizer(Bundle.open(folder / "bundle"), CalibrationSet.open(folder / "set.npz"))


def record(bundle: Bundle, out: Path, clips: int = 4, frames: int = INTERVAL) -> CalibrationSet:
    """A calibration set over the synthetic scene."""
    data = {
        "bundle": bundle.path, "out": out, "draw": {"sources": [SCENE], "clips": clips, "frames": frames},
    }  # fmt: skip
    return calibrate(parse_settings(data, CalibrateRecipe, "test"))


def images(count: int, uri: str = UNSEEN) -> list[np.ndarray]:
    """Frames of a scene."""
    with open_source(uri, limit=count) as source:
        return [frame.image.copy() for frame in source]


@cache
def unlabelled() -> str:
    """Unseen frames as a folder without labels, so that the float32 pair's answers are what is right."""
    import cv2

    folder = Path(_root().name) / "unlabelled"
    folder.mkdir()
    for index, image in enumerate(images(12)):
        cv2.imwrite(str(folder / f"{index:06d}.png"), image)
    return f"{folder}?fps=10"


def stream(
    models: Mapping[str, onnx.ModelProto], frames: Sequence[np.ndarray], *, optimised: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """Every output of every frame, a keyframe every ``INTERVAL``, in bare ONNX Runtime sessions.

    Args:
        optimised: False runs the graphs node by node, as they are written.
    """
    import onnxruntime as ort

    settings = session_settings(ort, optimise=optimised)
    sessions = {
        step: ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        for step, model in models.items()
    }
    state: dict[str, np.ndarray] = {}
    for index, frame in enumerate(frames):
        step = "delta" if "delta" in sessions and index % INTERVAL else "keyframe"
        names = [output.name for output in sessions[step].get_outputs()]
        feeds = {"frame": frame, **(state if step == "delta" else {})}
        found = dict(zip(names, sessions[step].run(None, feeds), strict=True))
        written = {k.removesuffix(".next"): v for k, v in found.items() if k.endswith(".next")}
        state = {**state, **written}
        yield found


def floats(kept: np.ndarray, form: StateForm) -> np.ndarray:
    """A state tensor as the float32 pair would hold it."""
    values = (kept.astype(np.float64) - form.zero_point) * form.scale
    return np.transpose(values, np.argsort(form.permutation)) if form.permutation else values


def _student(folder: Path, name: str) -> Bundle:
    from edge_sdk.compile import ExportRecipe, export
    from tests.unit.test_compile_export import student

    network, delta = STUDENTS[name]
    return export(
        ExportRecipe(out=folder / "bundle", checkpoint=student(folder, network, **delta), frame_hw=SIZE)
    )


def recurrent(folder: Path, seed: int = 0, **changes: np.ndarray) -> Bundle:
    """The pair of ONNX nodes.

    memory = relu(mix(stem) [+ recall(memory)]); context = mean of the stem at the keyframe, added to what is decoded.
    ``changes`` as for :func:`recurrent_graph`.
    """
    models = {step: recurrent_graph(step, seed, **changes) for step in ("keyframe", "delta")}
    specs = {step: step_spec(model, f"{step}.onnx") for step, model in models.items()}
    manifest = Manifest(
        name="recurrent",
        method="test",
        task=TaskSpec(classes=CLASSES),
        frame=TensorSpec(name="frame", shape=(*SIZE, 3), dtype="uint8"),
        steps=StepsSpec(keyframe=specs["keyframe"], delta=specs["delta"]),
        state=tuple(TensorSpec(name=name, shape=shape, dtype="float32") for name, shape in STATE.items()),
        schedule=EverySchedule(interval=INTERVAL),
    )
    return write_bundle(
        folder, manifest, {f"{step}.onnx": model.SerializeToString() for step, model in models.items()}
    )


def recurrent_graph(step: str, seed: int = 0, **changes: np.ndarray) -> onnx.ModelProto:
    """One of its steps; ``changes`` replaces weights by name, ``__`` standing for a dot."""
    delta = step == "delta"
    constants = {**_weights(seed), **{key.replace("__", "."): value for key, value in changes.items()}}
    nodes = [*_to_input(), *_features(delta), *_decode("decoded")]
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, (*SIZE, 3))]
    outputs = [helper.make_tensor_value_info("mask", TensorProto.UINT8, SIZE)]
    if delta:
        inputs += [_float(f"state.{name}", shape) for name, shape in STATE.items()]
    outputs += [
        _float(f"state.{n}.next", shape) for n, shape in STATE.items() if not (delta and n == "context")
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, step, inputs, outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def weight(*shape: int, gain: float = 1.0) -> np.ndarray:
        return (rng.normal(size=shape) * gain / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return {
        "first.weight": weight(8, 3, 3, 3, gain=2.0), "first.bias": weight(8, 1).ravel() * np.float32(0.1),
        "mix.weight": weight(8, 8, 3, 3, gain=1.5), "mix.bias": weight(8, 1).ravel() * np.float32(0.1),
        "recall.weight": weight(8, 8, 1, 1, gain=0.6), "recall.bias": weight(8, 1).ravel() * np.float32(0.1),
        "up.weight": weight(8, 4, 2, 2, gain=2.0), "up.bias": np.zeros(4, np.float32),
        "scale": np.full((1, 3, 1, 1), 1 / 60, np.float32), "shift": np.full((1, 3, 1, 1), -1.9, np.float32),
        "batch": np.array([0], np.int64), "places": np.array([2, 3], np.int64),
    }  # fmt: skip


def _float(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"node_{output}", **attributes)


def _to_input() -> list[NodeProto]:
    return [
        _node("Cast", "frame", "floats", to=TensorProto.FLOAT),
        _node("Unsqueeze", "floats batch", "batched"),
        _node("Transpose", "batched", "planes", perm=[0, 3, 1, 2]),
        _node("Mul", "planes scale", "scaled"),
        _node("Add", "scaled shift", "normalised"),
        _node("Conv", "normalised first.weight first.bias", "stem", pads=[1, 1, 1, 1], strides=[2, 2]),
        _node("Relu", "stem", "features"),
        _node("Conv", "features mix.weight mix.bias", "mixed", pads=[1, 1, 1, 1]),
    ]


def _features(delta: bool) -> list[NodeProto]:
    if delta:
        return [
            _node("Conv", "state.memory recall.weight recall.bias", "recalled"),
            _node("Add", "mixed recalled", "summed"),
            _node("Relu", "summed", "state.memory.next"),
            _node("Unsqueeze", "state.context places", "context"),
            _node("Add", "state.memory.next context", "decoded"),
        ]
    return [
        _node("Relu", "mixed", "state.memory.next"),
        _node("GlobalAveragePool", "features", "pooled"),
        _node("Squeeze", "pooled places", "state.context.next"),
        _node("Add", "state.memory.next pooled", "decoded"),
    ]


def _decode(name: str) -> list[NodeProto]:
    return [
        _node("ConvTranspose", f"{name} up.weight up.bias", "logits", strides=[2, 2]),
        _node("ArgMax", "logits", "classes", axis=1, keepdims=0),
        _node("Squeeze", "classes batch", "chosen"),
        _node("Cast", "chosen", "small", to=TensorProto.INT32),
        _node("Cast", "small", "mask", to=TensorProto.UINT8),
    ]
