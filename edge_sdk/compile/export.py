"""``edge-sdk export``: a method's two steps as ONNX graphs, checked against torch, in a bundle."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from edge_sdk.bundle import (
    Bundle,
    Manifest,
    StepSpec,
    StepsSpec,
    require_place,
    state_input,
    state_output,
    write_bundle,
)
from edge_sdk.compile.graphs import StepGraph, decoder_for
from edge_sdk.compile.learnable import (
    LOGITS,
    Lifted,
    check_open,
    learned_values,
    set_pair,
    settle,
    shaken,
    show_logits,
    tensors_in,
    undecided,
)
from edge_sdk.compile.origins import Origin, check_networks, load_origin, schedule_of
from edge_sdk.compile.recipes import ExportRecipe
from edge_sdk.compile.rewrite import copy_constants_out, negate_into_convolutions
from edge_sdk.compile.specs import step_spec
from edge_sdk.compile.weights import leave_open, set_weights
from edge_sdk.distill.frames import FrameToInput
from edge_sdk.distill.online import WEIGHTS_FILE, WEIGHTS_KEY, OnlinePair, OnlineRecipe, open_names
from edge_sdk.errors import ConversionError, EngineError, RecipeError
from edge_sdk.manifest import FRAME, TRUST, OnlineSpec, StepName, state_name
from edge_sdk.optional import require
from edge_sdk.progress import Progress, Silent
from edge_sdk.revision import commit_of_sources
from edge_sdk.runtime.drift import DriftSchedule
from edge_sdk.tasks import TaskSpec, task_from_spec
from edge_sdk.tensors import TensorSpec


def export(recipe: ExportRecipe, *, progress: Progress | None = None) -> Bundle:
    """Export a bundle.

    Raises:
        ConversionError: torch cannot write the network as ONNX.
        EngineError: ONNX Runtime refuses a graph or disagrees with torch by more than the tolerance.
        RecipeError: a drift schedule is asked for, and the delta step does not tell how much of its keyframe holds.
    """
    require_place(recipe.out)
    return export_origin(recipe, load_origin(recipe), progress=progress)


def export_origin(recipe: ExportRecipe, origin: Origin, *, progress: Progress | None = None) -> Bundle:
    """Export a pair that was made here instead of the one that ``recipe`` names; everything else is the recipe's.

    Raises:
        ConversionError, EngineError, RecipeError: as :func:`export`.
    """
    progress = progress or Silent()
    pair = origin.pair.eval()
    size = origin.preprocess.size_hw or recipe.frame_hw
    check_networks(origin, size)
    answer = answer_name(origin.task)
    steps: list[StepName] = ["keyframe", *(["delta"] if pair.has_delta else [])]  # type: ignore[list-item]
    opened = open_names(origin.online, pair) if origin.online and isinstance(pair, OnlinePair) else ()
    frame = torch.from_numpy(_test_frames(recipe.frame_hw, 1)[0])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        graphs = _step_graphs(origin, recipe, frame)
        _check_drift(recipe, origin, graphs)
        files: dict[str, Path | bytes] = {}
        specs: dict[str, StepSpec] = {}
        tensors: dict[StepName, dict[str, str]] = {}
        for index, name in enumerate(steps):
            progress.update("export", index, len(steps) + 1)
            graph, inputs = graphs[name]
            file = Path(folder) / f"{name}.onnx"
            _write_onnx(graph, inputs, file, recipe.opset, answer)
            model = onnx.load(str(file))
            if found := tensors_in(model, learned_values(pair)):
                tensors[name] = found
                leave_open(model, opened)
                onnx.save(model, str(file))
            specs[name] = step_spec(model, file.name)
            files[file.name] = file
        check_open(tensors, opened)
        progress.update("export", len(steps), len(steps) + 1)
        agreement = _compare(graphs, files, recipe, answer)
        if isinstance(pair, OnlinePair):
            files[WEIGHTS_FILE] = _pair_bytes(pair)
            _compare_patched(pair, graphs, files, tensors, recipe.tolerance, answer)
        progress.update("export", len(steps) + 1, len(steps) + 1)
        manifest = _manifest(recipe, origin, specs, agreement)
        if origin.online is not None:
            manifest = manifest.model_copy(update={"online": _online_spec(origin.online, tensors, opened)})
        return write_bundle(recipe.out, manifest, files)


def _online_spec(
    recipe: OnlineRecipe, tensors: dict[StepName, dict[str, str]], opened: tuple[str, ...]
) -> OnlineSpec:
    """What the trainer needs; the networks' weights are all in the bundle, so no checkpoint is named."""
    bare = {"student": recipe.student.model_copy(update={"checkpoint": None}), "fresh": ()}
    if recipe.teacher is not None:
        bare["teacher"] = recipe.teacher.model_copy(update={"checkpoint": None})
    return OnlineSpec(
        recipe=recipe.model_copy(update=bare).model_dump(mode="json"),
        weights=WEIGHTS_FILE,
        tensors=tensors,
        open=opened,
    )


def _pair_bytes(pair: OnlinePair) -> bytes:
    out = io.BytesIO()
    torch.save({WEIGHTS_KEY: {name: value.contiguous() for name, value in pair.state_dict().items()}}, out)
    return out.getvalue()


def answer_name(task: TaskSpec) -> str:
    """Name of the one graph output that a task reads."""
    (name,) = task_from_spec(task).output_names
    return name


def _step_graphs(
    origin: Origin, recipe: ExportRecipe, frame: Tensor
) -> dict[str, tuple[StepGraph, tuple[Tensor, ...]]]:
    """Each step with example inputs; the delta's state is the one that the keyframe step writes."""
    pair, to_input = origin.pair, FrameToInput(origin.preprocess)
    decoder = decoder_for(origin.task, recipe.frame_hw, recipe.decode_stride)
    keyframe = StepGraph(pair, "keyframe", to_input, decoder, (), matmul_resize=recipe.matmul_resize).eval()
    _, *state = keyframe(frame)
    graphs: dict[str, tuple[StepGraph, tuple[Tensor, ...]]] = {"keyframe": (keyframe, (frame,))}
    if pair.has_delta:
        delta = StepGraph(
            pair, "delta", to_input, decoder, keyframe.writes, matmul_resize=recipe.matmul_resize
        ).eval()
        delta(frame, *state)
        graphs["delta"] = (delta, (frame, *state))
    return graphs


def _check_drift(
    recipe: ExportRecipe, origin: Origin, graphs: dict[str, tuple[StepGraph, tuple[Tensor, ...]]]
) -> None:
    """Refuse a drift schedule for a pair that does not tell how much of its keyframe holds."""
    tells = "delta" in graphs and graphs["delta"][0].tells
    if isinstance(schedule_of(recipe, origin), DriftSchedule) and not tells:
        raise RecipeError(
            f"schedule 'drift': it needs a delta step that returns '{TRUST}', that of this {origin.pair.method} pair "
            "does not.",
            hint="Use schedule 'every' or 'change', or distil a pair with a confidence (kind: cross).",
        )


def _write_onnx(graph: StepGraph, inputs: tuple[Tensor, ...], file: Path, opset: int, answer: str) -> None:
    """Write, fold constants, check."""
    learned = learned_values(graph.pair)
    names_in = [FRAME, *(state_input(n) for n in graph.reads), *learned]
    names_out = [answer, *(state_output(n) for n in graph.writes), *([TRUST] if graph.tells else [])]
    module: torch.nn.Module = graph
    if learned:
        values = tuple(torch.from_numpy(value) for value in learned.values())
        module, inputs = Lifted(graph, tuple(learned)), (inputs[0], inputs[1:], values)  # type: ignore[assignment]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            torch.onnx.export(
                module, inputs, str(file), dynamo=True, external_data=False, verbose=False, opset_version=opset,
                input_names=names_in, output_names=names_out,
            )  # fmt: skip
    except Exception as error:  # torch.onnx raises whatever the network's operators make it raise
        reason = str(error).strip().split("\n")[0]
        raise ConversionError(
            f"{graph.step} step: torch cannot write it as ONNX: {reason}.",
            hint="Try another 'opset', or replace the operator named above in the network.",
        ) from error
    finally:
        logger.setLevel(level)
    model = onnx.load(str(file))
    slim = require("onnxslim", "exporting").slim(model)
    copy_constants_out(slim)
    negate_into_convolutions(slim)
    settle(slim, learned)
    onnx.checker.check_model(slim, full_check=True)
    onnx.save(slim, str(file))


def _test_frames(frame_hw: tuple[int, int], count: int) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 with structure at several scales, the same every time."""
    rng = np.random.default_rng(0)
    height, width = frame_hw
    frames = []
    for _ in range(count):
        out = np.zeros((height, width, 3), np.float32)
        for cell in (64, 16, 4, 1):
            noise = rng.uniform(0, 64, (-(-height // cell), -(-width // cell), 3))
            out += np.kron(noise, np.ones((cell, cell, 1)))[:height, :width]
        frames.append(out.astype(np.uint8))
    return frames


def _compare(
    graphs: dict[str, tuple[StepGraph, tuple[Tensor, ...]]],
    files: dict[str, Path | bytes],
    recipe: ExportRecipe,
    answer: str,
) -> dict[str, float]:
    """Run a keyframe and some deltas in torch and ONNX Runtime on the same frames and the same state.

    Returns:
        worst relative difference of a state tensor, of the answer the worst share of pixels that differ or the worst
        difference of a score, and the worst difference in trust where the delta step tells it.

    Raises:
        EngineError: a difference exceeds the tolerance.
    """
    worst = {"state": 0.0, answer: 0.0}
    frames = _test_frames(recipe.frame_hw, 3)
    state: dict[str, Tensor] = {}
    for name, (graph, _) in graphs.items():
        session = _session(files[f"{name}.onnx"], name)
        for image in frames[:1] if name == "keyframe" else frames:
            inputs = (torch.from_numpy(image), *(state[key] for key in graph.reads))
            expected = graph(*inputs)
            names = [node.name for node in session.get_inputs()]
            found = session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))
            worst[answer] = max(worst[answer], _difference(found[0], expected[0].numpy()))
            if graph.tells:
                worst[TRUST] = max(worst.get(TRUST, 0.0), _difference(found.pop(), expected[-1].numpy()))
            for mine, theirs in zip(found[1:], expected[1 : 1 + len(graph.writes)], strict=True):
                limit = max(float(theirs.abs().max()), 1e-6)
                worst["state"] = max(worst["state"], float(np.abs(mine - theirs.numpy()).max()) / limit)
            state |= dict(zip(graph.writes, expected[1:], strict=False))  # trust, the last, is no state
    for what, value in worst.items():
        if not value <= recipe.tolerance:
            raise EngineError(
                f"export: ONNX Runtime and torch differ in the {what} by {value:.2e}, "
                f"allowed are {recipe.tolerance:.0e}.",
                hint="Look for an operator that behaves differently in ONNX, or raise 'tolerance' knowingly.",
            )
    return worst


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of class ids that differ, or the largest difference of a score."""
    if found.dtype == np.uint8:
        return float((found != expected).mean())
    return float(np.abs(found - expected).max())


def _compare_patched(
    pair: OnlinePair,
    graphs: dict[str, tuple[StepGraph, tuple[Tensor, ...]]],
    files: dict[str, Path | bytes],
    tensors: dict[StepName, dict[str, str]],
    tolerance: float,
    answer: str,
) -> None:
    """With other weights, graphs and torch give the same logits too; the pair is left as it was.

    Raises:
        EngineError: they do not.
    """
    before = {name: value.copy() for name, value in learned_values(pair).items()}
    after = shaken(before)
    set_pair(pair, after)
    try:
        frame = graphs["keyframe"][1][0]
        state = graphs["keyframe"][0](frame)[1:]
        for step, names in tensors.items():
            graph, model = graphs[step][0], onnx.load(str(files[f"{step}.onnx"]))
            set_weights(model, names, {name: after[name] for name in names})
            show_logits(model, answer)
            inputs = (frame, *(state if graph.reads else ()))
            expected = undecided(graph)(*inputs)[0].numpy()
            session = _session(model.SerializeToString(), step)
            given = [node.name for node in session.get_inputs()]
            found = session.run([LOGITS], dict(zip(given, (t.numpy() for t in inputs), strict=True)))[0]
            off = np.abs(found.reshape(expected.shape) - expected).max() / max(np.abs(expected).max(), 1e-6)
            if not off <= tolerance:
                raise EngineError(
                    f"export: with other weights, ONNX Runtime and torch differ in the {step} step's logits by "
                    f"{off:.2e}, allowed are {tolerance:.0e}.",
                    hint="Look for an operator that behaves differently in ONNX, or raise 'tolerance' knowingly.",
                )
    finally:
        set_pair(pair, before)


def _session(file: Path | bytes, step: str) -> Any:
    ort = require("onnxruntime", "checking an export")
    try:
        given = file if isinstance(file, bytes) else str(file)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns of every weight that is open
        return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base of their own
        reason = str(error).strip().split("\n")[0]
        raise EngineError(
            f"export: ONNX Runtime refuses the {step} step: {reason}.",
            hint="Try another 'opset', or replace the operator named above in the network.",
        ) from error


def _manifest(
    recipe: ExportRecipe, origin: Origin, specs: dict[str, StepSpec], agreement: dict[str, float]
) -> Manifest:
    delta = specs.get("delta")
    state = tuple(
        TensorSpec(name=state_name(spec.name), shape=spec.shape, dtype=spec.dtype)
        for spec in (delta.inputs if delta is not None else ())
        if spec.name != FRAME
    )
    return Manifest(
        name=recipe.name or recipe.out.name,
        method=origin.pair.method,
        task=origin.task,
        frame=TensorSpec(name=FRAME, shape=(*recipe.frame_hw, 3), dtype="uint8"),
        steps=StepsSpec(keyframe=specs["keyframe"], delta=delta),
        state=state,
        schedule=schedule_of(recipe, origin),
        provenance={
            "export": recipe.model_dump(mode="json"), "commit": commit_of_sources(), "training": origin.provenance,
            "torch_and_onnxruntime_differ": {**agreement},
            "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
        },
    )  # fmt: skip
