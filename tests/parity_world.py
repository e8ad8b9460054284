"""What the tests of compare run: labelled frames, and an INT8 engine set of a tiny pair with its state as bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.build.onnxruntime import build_session
from edge_sdk.bundle import Bundle, EngineSet, StateForm, StepSpec, StepsSpec, Variant, extend_bundle
from edge_sdk.manifest import StepName
from edge_sdk.parity import ReferenceSettings
from edge_sdk.settings import parse_settings
from edge_sdk.tensors import TensorSpec
from edge_sdk.video import open_source
from tests.graphs import TinyPair
from tests.videos import write_image

SIZE = (32, 48)
FRAMES, INTERVAL = 10, 3
SCENE = f"synthetic:shapes?height=32&width=48&frames={FRAMES}&seed=1"
# Coarse on purpose: 255 levels over more than the state's -255..255.
FORM = StateForm(scale=4.0, zero_point=128, permutation=(1, 0))
INT8 = "onnxruntime-int8"
STEPS: tuple[StepName, ...] = ("keyframe", "delta")


def images() -> list[np.ndarray]:
    """The frames of every source here."""
    return [frame.image for frame in open_source(SCENE)]


def labels() -> list[np.ndarray]:
    """Their labels: near the answers of a tiny pair, but not the same."""
    return [np.roll(image[..., 0] // 64, 3, axis=1) for image in images()]


def write_source(folder: Path, *, labelled: bool = True) -> str:
    """Frames, with or without labels, in ``folder``; its URI."""
    for index, (image, label) in enumerate(zip(images(), labels(), strict=True)):
        write_image(folder / "images" / f"{index}.png", image)
        if labelled:
            write_image(folder / "labels" / f"{index}.png", label)
    return str(folder)


def settings(source: str, **values: Any) -> ReferenceSettings:
    """Settings of a reference, as a recipe would give them."""
    return parse_settings({"source": source, "interval": INTERVAL, **values}, ReferenceSettings, "settings")


def with_int8(bundle: Bundle, pair: TinyPair, form: StateForm = FORM, *, engines: bool = True) -> Bundle:
    """The bundle with a variant that keeps its state as bytes, columns first, and with its engines."""
    assert pair.delta is not None
    height, width = pair.size_hw
    folder = bundle.path.parent / f"{bundle.path.name}-int8"
    state = TensorSpec(name="memory", shape=(width, height), dtype="uint8")
    graphs: dict[str, StepSpec] = {}
    built: dict[str, StepSpec] = {}
    files: dict[str, Path | bytes] = {}
    identities: dict[StepName, str] = {}
    for step, model in zip(STEPS, (pair.keyframe, pair.delta), strict=True):
        quantised = bytes_for_state(model, form)
        graph, engine = folder / f"graphs/{INT8}/{step}.onnx", folder / f"engines/{INT8}/{step}.onnx"
        for file in (graph, engine):
            file.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(quantised, graph)
        build_session(graph, engine, step=step, precision="int8", asked={})
        plain = bundle.step(step)
        inputs, outputs = (
            tuple(
                state.model_copy(update={"name": s.name}) if s.name.startswith("state.") else s for s in specs
            )
            for specs in (plain.inputs, plain.outputs)
        )
        graphs[step] = StepSpec(graph=str(graph.relative_to(folder)), inputs=inputs, outputs=outputs)
        built[step] = graphs[step].model_copy(update={"graph": str(engine.relative_to(folder))})
        identities[step] = str(engine.relative_to(folder).with_suffix(".json"))
        files |= {str(f.relative_to(folder)): f for f in (graph, engine, engine.with_suffix(".json"))}
    common: dict[str, Any] = {
        "backend": "onnxruntime", "precision": "int8", "state": (state,), "forms": {"memory": form},
    }  # fmt: skip
    if not engines:
        files = {name: file for name, file in files.items() if name.startswith("graphs/")}
    return extend_bundle(
        bundle,
        files,
        variants={INT8: Variant(steps=StepsSpec(**graphs), **common)},
        engines={INT8: EngineSet(steps=StepsSpec(**built), identities=identities, **common)}
        if engines
        else None,
    )


def bytes_for_state(model: onnx.ModelProto, form: StateForm) -> onnx.ModelProto:
    """``model`` with its state as uint8 in the order of ``form``."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    height, width = (axis.dim_value for axis in graph.output[0].type.tensor_type.shape.dim)
    graph.initializer.extend([
        numpy_helper.from_array(np.array(form.scale, np.float32), "state.scale"),
        numpy_helper.from_array(np.array(form.zero_point, np.uint8), "state.zero"),
    ])  # fmt: skip
    for value in (*graph.input, *graph.output):
        if value.name.startswith("state."):
            shape = [width, height]
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.UINT8, shape))
    nodes = []
    if any(value.name == "state.memory" for value in graph.input):
        nodes += [
            helper.make_node(
                "DequantizeLinear", ["state.memory", "state.scale", "state.zero"], ["state.floats"]
            ),
            helper.make_node("Transpose", ["state.floats"], ["state.rows"], perm=[1, 0]),
        ]
    for node in graph.node:
        node.input[:] = ["state.rows" if name == "state.memory" else name for name in node.input]
        if list(node.output) == ["state.memory.next"]:
            node.output[:] = ["written.rows"]
        nodes.append(node)
    if any(value.name == "state.memory.next" for value in graph.output):
        nodes += [
            helper.make_node("Transpose", ["written.rows"], ["written"], perm=[1, 0]),
            helper.make_node(
                "QuantizeLinear", ["written", "state.scale", "state.zero"], ["state.memory.next"]
            ),
        ]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # theirs go with the list
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(found, full_check=True)
    return found


def rounded(state: np.ndarray, form: StateForm = FORM) -> np.ndarray:
    """What is left of a state that is kept as bytes."""
    levels = np.clip(np.rint(state / np.float32(form.scale)) + form.zero_point, 0, 255)
    return ((levels - form.zero_point) * form.scale).astype(np.float32)
