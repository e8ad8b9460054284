"""A tiny clip classifier as step graphs, its twin in numpy, and labelled clips that it answers now right and now wrong.

keyframe: sum = (mean blue, mean green, mean red, 1);  delta: sum = sum + (..., 1)
both:     scores = softmax(sum[:3] / sum[3] / 16)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.bundle import Bundle, Manifest, StepSpec, StepsSpec, write_bundle
from edge_sdk.runtime.schedule import AlwaysSchedule, SampleSchedule, ScheduleSettings
from edge_sdk.tasks import TaskSpec
from edge_sdk.tensors import TensorSpec

CLASSES = ("blue", "green", "red")
SIZE, LENGTH, KEYFRAME_MACS, DELTA_MACS = (6, 8), 12, 100, 70


def write_clip_bundle(
    folder: Path,
    samples: int,
    *,
    length: int = LENGTH,
    restart: bool = True,
    classes: tuple[str, ...] = CLASSES,
    multi_label: bool = False,
    size_hw: tuple[int, int] = SIZE,
    schedule: ScheduleSettings | None = None,
) -> Bundle:
    """The classifier in ``folder``; one that sees a single frame has no delta step."""
    state = TensorSpec(name="sum", shape=(4,), dtype="float32")
    frame = TensorSpec(name="frame", shape=(*size_hw, 3), dtype="uint8")
    scores = TensorSpec(name="scores", shape=(len(CLASSES),), dtype="float32")
    written = state.model_copy(update={"name": "state.sum.next"})
    read = state.model_copy(update={"name": "state.sum"})
    with_delta = samples > 1 or not restart
    keyframe_outputs = (scores, written) if with_delta else (scores,)
    keyframe = StepSpec(graph="keyframe.onnx", inputs=(frame,), outputs=keyframe_outputs, macs=KEYFRAME_MACS)
    delta = StepSpec(graph="delta.onnx", inputs=(frame, read), outputs=(scores, written), macs=DELTA_MACS)
    manifest = Manifest(
        name="tiny-clips",
        method="clip",
        task=TaskSpec(kind="classification", classes=classes, multi_label=multi_label),
        frame=frame,
        steps=StepsSpec(keyframe=keyframe, delta=delta if with_delta else None),
        state=(state,) if with_delta else (),
        schedule=schedule or SampleSchedule(length=length, samples=samples, restart=restart),
        provenance={"made_by": "tests"},
    )
    files: dict[str, Path | bytes] = {"keyframe.onnx": _graph(size_hw, reads=False, writes=with_delta)}
    if with_delta:
        files["delta.onnx"] = _graph(size_hw, reads=True, writes=True)
    return write_bundle(folder, manifest, files)


def always(folder: Path) -> Bundle:
    """One that sees every frame by itself."""
    return write_clip_bundle(folder, 1, schedule=AlwaysSchedule())


def answers(images: Sequence[np.ndarray], seen: Sequence[int], starts: Sequence[int] = (0,)) -> list[int]:
    """Best class after each frame, where frames ``seen`` are seen and clips begin at ``starts``."""
    found: list[int] = []
    total = np.zeros(4, np.float32)
    for place, image in enumerate(images):
        if place in seen:
            means = np.append(image.reshape(-1, 3).astype(np.float32).mean(axis=0), 1)
            total = means if place in starts else total + means
        found.append(int(np.argmax(total[:3])))
    return found


def write_clips(root: Path, clips: dict[str, np.ndarray]) -> Path:
    """Clips, each (T, H, W, 3) uint8 BGR, as folders of images by ``class/name``."""
    for name, images in clips.items():
        folder = root / name
        folder.mkdir(parents=True)
        for place, image in enumerate(images):
            cv2.imwrite(str(folder / f"{place:03d}.png"), image)
    return root


def random_clips(each: int, length: int = LENGTH, seed: int = 3) -> dict[str, np.ndarray]:
    """``each`` noisy clips of each class: whole clips tell the class mostly, single frames often do not."""
    rng = np.random.default_rng(seed)
    found = {}
    for index, label in enumerate(CLASSES):
        for number in range(each):
            tint = rng.normal(0, 30, (length, 1, 1, 3))
            tint[..., index] += 12
            found[f"{label}/{number}"] = np.clip(
                128 + tint + rng.normal(0, 5, (length, *SIZE, 3)), 0, 255
            ).astype(np.uint8)
    return found


def _graph(size_hw: tuple[int, int], *, reads: bool, writes: bool) -> bytes:
    nodes = [
        helper.make_node("Cast", ["frame"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[0, 1], keepdims=0),
        helper.make_node("Concat", ["means", "one"], ["added"], axis=0),
        helper.make_node("Add", ["state.sum", "added"], ["sum"])
        if reads
        else helper.make_node("Identity", ["added"], ["sum"]),
        helper.make_node("Split", ["sum", "parts"], ["total", "count"], axis=0),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Div", ["mean", "sixteen"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=0),
    ]
    if writes:
        nodes.append(helper.make_node("Identity", ["sum"], ["state.sum.next"]))
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, (*size_hw, 3))]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (len(CLASSES),))]
    if reads:
        inputs.append(helper.make_tensor_value_info("state.sum", TensorProto.FLOAT, (4,)))
    if writes:
        outputs.append(helper.make_tensor_value_info("state.sum.next", TensorProto.FLOAT, (4,)))
    constants: dict[str, np.ndarray] = {
        "one": np.ones(1, np.float32),
        "parts": np.array([3, 1], np.int64),
        "sixteen": np.array(16, np.float32),
    }
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
