"""Bundles whose student tests/fake_trainer.py can teach: one weight, ``mask = blue >= threshold``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.bundle import Bundle, Manifest, StepSpec, StepsSpec, write_bundle
from edge_sdk.manifest import OnlineSpec
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.tasks import TaskSpec
from edge_sdk.tensors import TensorSpec
from tests.fake_trainer import FIRST, WEIGHT

CLASSES = ("background", "bright")
_OPSET, _IR_VERSION = 17, 8


def bright_bundle(
    folder: Path, teacher: float = 100.0, size_hw: tuple[int, int] = (4, 6), *, first: float = FIRST
) -> Bundle:
    """A stateless pair that can learn: the teacher finds ``blue >= teacher``, the student ``blue >= first``.

    Args:
        folder: to be made.
        teacher: the teacher's threshold.
        size_hw: of its frames.
        first: the student's threshold; any but the fake trainer's own cannot be taught.
    """
    keyframe, delta = threshold_graph(teacher, size_hw), threshold_graph(first, size_hw, opened=True)
    frame = TensorSpec(name="frame", shape=(*size_hw, 3), dtype="uint8")
    mask = TensorSpec(name="mask", shape=size_hw, dtype="uint8")
    manifest = Manifest(
        name="bright",
        method="online",
        task=TaskSpec(classes=CLASSES),
        frame=frame,
        steps=StepsSpec(
            keyframe=StepSpec(graph="keyframe.onnx", inputs=(frame,), outputs=(mask,), macs=0),
            delta=StepSpec(graph="delta.onnx", inputs=(frame,), outputs=(mask,), macs=0),
        ),
        schedule=EverySchedule(interval=8),
        online=OnlineSpec(
            recipe={}, weights="online.pt", tensors={"delta": {WEIGHT: WEIGHT}}, open=(WEIGHT,)
        ),
        provenance={"made_by": "tests"},
    )
    files: dict[str, Path | bytes] = {
        "keyframe.onnx": keyframe.SerializeToString(),
        "delta.onnx": delta.SerializeToString(),
        "online.pt": b"no tensors",
    }
    return write_bundle(folder, manifest, files)


def threshold_graph(
    threshold: float, size_hw: tuple[int, int] = (4, 6), *, opened: bool = False
) -> onnx.ModelProto:
    """``mask = blue >= threshold``.

    Args:
        threshold: the one initialiser, ``threshold``, float32 of shape (1,).
        size_hw: of the frames.
        opened: it is an input as well, so that a runtime can exchange it.
    """
    nodes = [
        helper.make_node("Gather", ["frame", "channel0"], ["blue"], axis=2),
        helper.make_node("Cast", ["blue"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("GreaterOrEqual", ["floats", WEIGHT], ["found"]),
        helper.make_node("Cast", ["found"], ["mask"], to=TensorProto.UINT8),
    ]
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, (*size_hw, 3))]
    if opened:
        inputs.append(helper.make_tensor_value_info(WEIGHT, TensorProto.FLOAT, (1,)))
    outputs = [helper.make_tensor_value_info("mask", TensorProto.UINT8, size_hw)]
    constants = [
        numpy_helper.from_array(np.array(0, np.int64), "channel0"),
        numpy_helper.from_array(np.array([threshold], np.float32), WEIGHT),
    ]
    graph = helper.make_graph(nodes, "bright", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model
