"""Tiny pairs of step graphs whose answers numpy computes exactly, and bundles made of them.

Each pair is a :class:`TinyPair`: the two ONNX graphs and, as ``expected``, its own checker. They hold no learnt weights
and no convolutions, so every backend must give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.bundle import Bundle, Manifest, StepSpec, StepsSpec, write_bundle
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule, ScheduleSettings
from edge_sdk.tasks import TaskSpec
from edge_sdk.tensors import TensorSpec

CLASSES = ("low", "middle", "high", "top")
_OPSET, _IR_VERSION = 17, 8

# state, frame -> mask, next state; a step that does not write the state returns it as it was
Formula = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class TinyPair:
    """Two step graphs over one state tensor ``memory``, (H, W) float32, and the same steps in numpy."""

    name: str
    keyframe: onnx.ModelProto
    delta: onnx.ModelProto | None
    keyframe_formula: Formula
    delta_formula: Formula | None
    size_hw: tuple[int, int]

    def expected(self, images: Sequence[np.ndarray], kinds: Sequence[StepKind]) -> list[np.ndarray]:
        """The masks, (H, W) uint8, of a stream whose frames are answered by steps of these kinds."""
        masks: list[np.ndarray] = []
        state: np.ndarray | None = None
        for image, kind in zip(images, kinds, strict=True):
            if kind is StepKind.SKIP:
                masks.append(masks[-1])
                continue
            formula = self.keyframe_formula if kind is StepKind.KEYFRAME else self.delta_formula
            assert formula is not None
            mask, state = formula(image, state)
            masks.append(mask)
        return masks

    def manifest(self, schedule: ScheduleSettings | None = None) -> Manifest:
        """A manifest without files, as an exporter would make it."""
        height, width = self.size_hw
        frame = TensorSpec(name="frame", shape=(height, width, 3), dtype="uint8")
        delta = self.delta and _step("delta.onnx", self.delta)
        default = EverySchedule(interval=3) if delta else AlwaysSchedule()
        return Manifest(
            name=self.name,
            method="delta" if delta else "per_frame",
            task=TaskSpec(classes=CLASSES),
            frame=frame,
            steps=StepsSpec(keyframe=_step("keyframe.onnx", self.keyframe), delta=delta),
            state=(TensorSpec(name="memory", shape=self.size_hw, dtype="float32"),) if delta else (),
            schedule=schedule or default,
            provenance={"made_by": "tests"},
        )

    def files(self) -> dict[str, Path | bytes]:
        """The graphs as bytes, by name."""
        files: dict[str, Path | bytes] = {"keyframe.onnx": self.keyframe.SerializeToString()}
        if self.delta is not None:
            files["delta.onnx"] = self.delta.SerializeToString()
        return files

    def write(self, folder: Path, schedule: ScheduleSettings | None = None) -> Bundle:
        """A bundle of this pair in ``folder``."""
        return write_bundle(folder, self.manifest(schedule), self.files())


def per_frame(size_hw: tuple[int, int] = (4, 6)) -> TinyPair:
    """Classes are the quarters of the blue channel: ``mask = blue // 64``. No delta step, no state."""
    keyframe = _graph(_frame_nodes() + _quarter_nodes("blue"), size_hw, reads=False, writes=False)
    return TinyPair(
        "tiny-per-frame", keyframe, None, lambda image, _: (_quarters(_blue(image)), None), None, size_hw
    )


def residual(size_hw: tuple[int, int] = (4, 6)) -> TinyPair:
    """State is read only, as in Delta Distillation.

    keyframe: mask = quarters(blue), memory = blue - green;  delta: mask = quarters(clip(green + memory)).
    """
    keyframe = [
        *_frame_nodes(),
        *_quarter_nodes("blue"),
        helper.make_node("Sub", ["blue", "green"], ["memory"]),
    ]
    delta = [
        *_frame_nodes(),
        helper.make_node("Add", ["green", "state.memory"], ["sum"]),
        helper.make_node("Clip", ["sum", "zero", "most"], ["answer"]),
        *_quarter_nodes("answer"),
    ]

    def keyframe_formula(image: np.ndarray, _: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return _quarters(_blue(image)), _blue(image) - _green(image)

    def delta_formula(image: np.ndarray, state: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        assert state is not None
        return _quarters(np.clip(_green(image) + state, 0, 255)), state

    return TinyPair(
        "tiny-residual",
        _graph(keyframe, size_hw, reads=False, writes=True),
        _graph(delta, size_hw, reads=True, writes=False),
        keyframe_formula,
        delta_formula,
        size_hw,
    )


def chaining(size_hw: tuple[int, int] = (4, 6)) -> TinyPair:
    """The delta step rewrites its state; an answer depends on every frame since the keyframe, in order.

    keyframe: memory = blue;  delta: memory = (memory + green) / 2;  both: mask = quarters(memory).
    """
    keyframe = [*_frame_nodes(), *_quarter_nodes("blue"), helper.make_node("Identity", ["blue"], ["memory"])]
    delta = [
        *_frame_nodes(),
        helper.make_node("Add", ["state.memory", "green"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["memory"]),
        *_quarter_nodes("memory"),
    ]

    def keyframe_formula(image: np.ndarray, _: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return _quarters(_blue(image)), _blue(image)

    def delta_formula(image: np.ndarray, state: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        assert state is not None
        memory = (state + _green(image)) * np.float32(0.5)
        return _quarters(memory), memory

    return TinyPair(
        "tiny-chaining",
        _graph(keyframe, size_hw, reads=False, writes=True),
        _graph(delta, size_hw, reads=True, writes=True),
        keyframe_formula,
        delta_formula,
        size_hw,
    )


def telling(size_hw: tuple[int, int] = (4, 6)) -> TinyPair:
    """As :func:`residual`; the delta step also tells how much of its keyframe holds, which the frame says itself.

    delta: trust = red of the first pixel / 256.
    """
    pair = residual(size_hw)
    keyframe, delta = pair.keyframe, onnx.ModelProto()
    assert pair.delta is not None
    delta.CopyFrom(pair.delta)
    graph = delta.graph
    graph.node.extend(
        [
            helper.make_node("Gather", ["floats", "row"], ["top"], axis=0),
            helper.make_node("Gather", ["top", "row"], ["corner"], axis=0),
            helper.make_node("Gather", ["corner", "channel2"], ["red"], axis=0),
            helper.make_node("Div", ["red", "levels"], ["trust"]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("trust", TensorProto.FLOAT, ()))
    for name, value in (("row", np.int64(0)), ("channel2", np.int64(2)), ("levels", np.float32(256))):
        graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    onnx.checker.check_model(delta, full_check=True)
    return TinyPair("tiny-telling", keyframe, delta, pair.keyframe_formula, pair.delta_formula, size_hw)


PAIRS = {"residual": residual, "chaining": chaining, "telling": telling}


def trusted(image: np.ndarray, levels: int) -> np.ndarray:
    """``image`` as one of whose keyframe :func:`telling` says that ``levels`` / 256 of it hold."""
    shown = image.copy()
    shown[0, 0, 2] = levels
    return shown


def random_images(count: int, size_hw: tuple[int, int] = (4, 6), seed: int = 0) -> list[np.ndarray]:
    """``count`` (H, W, 3) uint8 images, each pixel drawn alone."""
    generator = np.random.default_rng(seed)
    return list(generator.integers(0, 256, (count, *size_hw, 3), np.uint8))


def _blue(image: np.ndarray) -> np.ndarray:
    return image[..., 0].astype(np.float32)


def _green(image: np.ndarray) -> np.ndarray:
    return image[..., 1].astype(np.float32)


def _quarters(values: np.ndarray) -> np.ndarray:
    # A division by a power of two is exact in float32, so truncation agrees everywhere.
    return np.floor(values / np.float32(64)).astype(np.uint8)


def _frame_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", ["frame"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["floats", "channel0"], ["blue"], axis=2),
        helper.make_node("Gather", ["floats", "channel1"], ["green"], axis=2),
    ]


def _quarter_nodes(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Div", [name, "quarter"], ["divided"]),
        helper.make_node("Floor", ["divided"], ["floored"]),
        helper.make_node("Cast", ["floored"], ["mask"], to=TensorProto.UINT8),
    ]


def _graph(
    nodes: list[onnx.NodeProto], size_hw: tuple[int, int], *, reads: bool, writes: bool
) -> onnx.ModelProto:
    height, width = size_hw
    constants: dict[str, np.ndarray] = {
        "channel0": np.array(0, np.int64),
        "channel1": np.array(1, np.int64),
        "quarter": np.array(64, np.float32),
        "half": np.array(0.5, np.float32),
        "zero": np.array(0, np.float32),
        "most": np.array(255, np.float32),
    }
    used = {name for node in nodes for name in node.input}
    if writes:
        nodes = [*nodes, helper.make_node("Identity", ["memory"], ["state.memory.next"])]
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, (height, width, 3))]
    outputs = [helper.make_tensor_value_info("mask", TensorProto.UINT8, size_hw)]
    if reads:
        inputs.append(helper.make_tensor_value_info("state.memory", TensorProto.FLOAT, size_hw))
    if writes:
        outputs.append(helper.make_tensor_value_info("state.memory.next", TensorProto.FLOAT, size_hw))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _step(graph: str, model: onnx.ModelProto) -> StepSpec:
    return StepSpec(graph=graph, inputs=_specs(model.graph.input), outputs=_specs(model.graph.output), macs=0)


def _specs(values: Sequence[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        specs.append(
            TensorSpec(name=value.name, shape=tuple(d.dim_value for d in tensor.shape.dim), dtype=dtype)
        )
    return tuple(specs)
