"""A student of one 1x1 convolution, a stream that it can learn, and a bundle of it whose graphs are written by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.bundle import Bundle, Manifest, StepSpec, StepsSpec, write_bundle
from edge_sdk.compile.specs import step_spec
from edge_sdk.distill.online import WEIGHTS_FILE, WEIGHTS_KEY, OnlinePair, OnlineRecipe, make_pair
from edge_sdk.distill.recipes import ModuleSettings, Preprocess
from edge_sdk.manifest import OnlineSpec
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.tasks import TaskSpec
from edge_sdk.tensors import TensorSpec

SIZE_HW = (16, 24)
TASK = TaskSpec(classes=("background", "thing"))
PLAIN = Preprocess(mean=(0, 0, 0), std=(255, 255, 255), order="BGR")
NAMES = ("student.weight", "student.bias")


def student(seed: int = 0) -> nn.Module:
    """The network that a recipe names; near zero, so that it begins with hardly an opinion."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        conv.weight.mul_(0.1)
        conv.bias.zero_()  # type: ignore[union-attr]  # it has one
    return conv


class Teacher(nn.Module):
    """Knows the answer: what is brighter than half. Counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([10.0]))
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        thing = self.gain * (x.mean(1, keepdim=True) - 0.5)
        return torch.cat((-thing, thing), 1)


def pair(join: str = "replace", seed: int = 0) -> OnlinePair:
    """Teacher and student."""
    return OnlinePair(student(seed), Teacher(), join=join)  # type: ignore[arg-type]


def lesson(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A frame (H, W, 3) uint8 with a bright box, and its label (H, W) uint8."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (*SIZE_HW, 3), dtype=np.uint8)
    top, left = rng.integers(1, 6, 2)
    label = np.zeros(SIZE_HW, np.uint8)
    label[top : top + 8, left : left + 10] = 1
    image[label == 1] += 190
    return image, label


def bundle(folder: Path, factory: str = "tests.trainer_world:student", seed: int = 0) -> Bundle:
    """A bundle of the student, its keyframe step the same network as it was first."""
    recipe = OnlineRecipe(
        student=ModuleSettings(factory=factory, arguments={"seed": seed}), fresh=("*",), task=TASK,
        preprocess=PLAIN, open=("bias",),
    )  # fmt: skip
    whole = make_pair(recipe)
    weights = io.BytesIO()
    torch.save({WEIGHTS_KEY: whole.state_dict()}, weights)
    values = {name: value.detach().numpy() for name, value in whole.learned().items()}
    steps = {"keyframe": _graph(values, "teacher."), "delta": _graph(values, "student.")}
    specs = {name: StepSpec(**step_spec(model, f"{name}.onnx").model_dump()) for name, model in steps.items()}
    manifest = Manifest(
        name="tiny", method="online", task=TASK,
        frame=TensorSpec(name="frame", shape=(*SIZE_HW, 3), dtype="uint8"),
        steps=StepsSpec(keyframe=specs["keyframe"], delta=specs["delta"]),
        schedule=EverySchedule(interval=8),
        online=OnlineSpec(
            recipe=recipe.model_copy(update={"fresh": ()}).model_dump(mode="json"), weights=WEIGHTS_FILE,
            tensors={"delta": {name: name for name in NAMES}}, open=("student.bias",),
        ),
        provenance={"export": {"decode_stride": 1}},
    )  # fmt: skip
    files = {f"{name}.onnx": model.SerializeToString() for name, model in steps.items()}
    return write_bundle(folder, manifest, {**files, WEIGHTS_FILE: weights.getvalue()})


# Three updates a lesson, whatever it brings.
ALLOWED = AdaptSettings(factories=("tests.trainer_world:",), order="step_first", threshold=1.0, max_updates=3)


def _graph(values: dict[str, np.ndarray], prefix: str) -> onnx.ModelProto:
    held = {f"{prefix}{name.split('.')[1]}": value for name, value in values.items()}
    constants = {"scale": np.float32(1 / 255), "batch": np.array([0]), "axis": np.array([0])}
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["planes", "batch"], ["x"]),
        helper.make_node("Conv", ["x", *held], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
        helper.make_node("Squeeze", ["best", "axis"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["mask"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes, "step",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, (*SIZE_HW, 3))],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, SIZE_HW)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in {**held, **constants}.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
