"""Pairs of step graphs as users' models give them, untrained, in every precision that TensorRT is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import torch

from edge_sdk.build.recipe import Float16Settings, Int8Settings
from edge_sdk.bundle import Bundle
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.compile.calibration_set import CalibrationSet
from edge_sdk.compile.quantize.variants import Quantizer
from edge_sdk.distill.convert import to_delta
from edge_sdk.distill.delta_recipe import DistillRecipe
from edge_sdk.distill.modules import make_module, save_checkpoint
from edge_sdk.manifest import Precision, StepName
from edge_sdk.settings import parse_settings
from tests import nets

FRAME_HW = (64, 96)
STEPS: tuple[StepName, ...] = ("keyframe", "delta")
# Of the builds that are tested; int8_float32 is INT8 whose remainder is float32 instead of float16.
PRECISIONS: dict[str, Precision] = {
    "float32": "float32", "float16": "float16", "int8": "int8", "int8_float32": "int8",
}  # fmt: skip
# Networks by name: how they are made and what a delta student of them is.
MODELS: dict[str, dict[str, Any]] = {
    "small": {
        "factory": "edge_sdk.distill.models:small_segmenter",
        "arguments": {"classes": 4, "width": 16},
        "delta": {},
    },
    "ddrnet": {
        "factory": "edge_sdk.distill.models:ddrnet",
        "arguments": {"classes": 3, "width": 16, "blocks": [1, 1, 1, 1], "detail_blocks": 1},
        "delta": {"gamma": 8, "blocks": ["*.body"], "kept": ["pool"]},
    },
    "residual": {"factory": "tests.nets:foreign", "arguments": {"name": "residual"}, "delta": {}},
    "transposed": {"factory": "tests.nets:foreign", "arguments": {"name": "transposed"}, "delta": {}},
}


@dataclass(frozen=True)
class Graphs:
    """Step graphs of one network by precision and step."""

    bundle: Bundle
    paths: Mapping[str, Mapping[str, Path]]


def make(name: str, folder: Path) -> Graphs:
    """Export the pair of the named network and write it in every precision, as ``edge-sdk build`` does."""
    bundle = _bundle(name, folder)
    float32: dict[str, Path] = {step: bundle.graph_path(step) for step in STEPS}
    passes = cast("CalibrationSet", Passes(_record(float32)))
    quantizer = Quantizer(bundle, passes)
    settings = Int8Settings(passes=None)
    written = {
        "float16": quantizer.float16(Float16Settings(), settings),
        "int8": quantizer.int8(settings, "tensorrt"),
        "int8_float32": quantizer.int8(settings.model_copy(update={"remainder": "float32"}), "tensorrt"),
    }
    paths: dict[str, dict[str, Path]] = {"float32": float32}
    for precision, found in written.items():
        paths[precision] = {step: folder / precision / f"{step}.onnx" for step in STEPS}
        for path, content in found.files.items():
            target = folder / precision / Path(path).name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
    return Graphs(bundle, paths)


class Passes:
    """What a quantiser asks of a calibration set, without the file."""

    sha256 = "0" * 64

    def __init__(self, given: dict[str, list[dict[str, np.ndarray]]]) -> None:
        self.given = given

    def check_for(self, bundle: Bundle) -> None:
        """It was recorded with this very bundle."""

    def count(self, step: str) -> int:
        return len(self.given[step])

    def passes(self, step: str) -> Iterator[SimpleNamespace]:
        return (SimpleNamespace(inputs=inputs) for inputs in self.given[step])


def _bundle(name: str, folder: Path) -> Bundle:
    model = MODELS[name]
    torch.manual_seed(0)
    weights = folder / "teacher.pt"
    data: dict[str, Any] = {
        "out": folder,
        "teacher": {"factory": model["factory"], "arguments": model["arguments"], "checkpoint": weights},
        "task": {"classes": [str(index) for index in range(model["arguments"].get("classes", nets.CLASSES))]},
        "delta": model["delta"],
        "data": {"video": ["none"]},
        "loop": {"steps": 1},
    }
    recipe = parse_settings(data, DistillRecipe, "test")
    network = nets.randomise(make_module(recipe.teacher))
    save_checkpoint(weights, network.state_dict())
    student = to_delta(network, torch.zeros(1, 3, *FRAME_HW), recipe.delta).net
    meta = {
        "kind": "delta", "recipe": recipe.model_dump(mode="json"), "figures": {}, "commit": None,
        "example_hw": list(FRAME_HW),
    }  # fmt: skip
    checkpoint = folder / "student.pt"
    save_checkpoint(checkpoint, {"state_dict": student.network.state_dict(), "meta": meta})
    return export(ExportRecipe(out=folder / "bundle", checkpoint=checkpoint, frame_hw=FRAME_HW))


def _record(graphs: Mapping[str, Path]) -> dict[str, list[dict[str, np.ndarray]]]:
    """What each step receives over two clips of four frames."""
    sessions = {
        step: ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for step, path in graphs.items()
    }
    given: dict[str, list[dict[str, np.ndarray]]] = {step: [] for step in graphs}
    state: dict[str, np.ndarray] = {}
    for index, frame in enumerate(_frames(8)):
        step = "delta" if index % 4 else "keyframe"
        inputs = {"frame": frame, **(state if step == "delta" else {})}
        given[step].append(inputs)
        names = [output.name for output in sessions[step].get_outputs()]
        answers = dict(zip(names, sessions[step].run(None, inputs), strict=True))
        written = {name: value for name, value in answers.items() if name.startswith("state.")}
        state = {**state, **{name.removesuffix(".next"): value for name, value in written.items()}}
    return given


def _frames(count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (FRAME_HW[0] // 8, FRAME_HW[1] // 8, 3))
    scene = np.kron(coarse, np.ones((8, 8, 1), np.int64))
    for index in range(count):
        noise = rng.integers(0, 40, scene.shape)
        yield (np.roll(scene, index, axis=1) + noise).astype(np.uint8)
