"""Checkpoints of untrained pairs of every kind that is exported, by name, and what their steps receive on a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from edge_sdk.bundle import Bundle
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.distill.cross import make_cross
from edge_sdk.distill.cross_recipe import CrossRecipe
from edge_sdk.distill.models.views import Views
from edge_sdk.distill.modules import save_checkpoint
from edge_sdk.distill.skip.net import to_skip
from edge_sdk.distill.skip.recipes import SkipRecipe
from edge_sdk.manifest import StepName
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import ScheduleSettings
from edge_sdk.settings import parse_settings
from tests import clip_nets, nets

FRAME_HW = clip_nets.FRAME_HW
_TEACHER = {"factory": "tests.step_pairs:teacher"}
_MASKS = {"task": {"classes": [str(index) for index in range(nets.CLASSES)]}, "teacher": _TEACHER}
# Gated pairs by name: the gates' settings.
SKIPS: dict[str, dict[str, Any]] = {
    "skip": {"eps": 0.5, "scale": "layer", "reference": "last_open", "block": 2},
    "skip_residual": {"eps": 0.2, "update": "residual", "gate": "output_norm"},
    "skip_gumbel": {"gate": "gumbel"},
}
CLIPS = (*clip_nets.FAMILIES, "sliding")
# Whole-network pairs by name: what is not as in the plainest recipe, and the module whose maps show motion.
CROSSES: dict[str, dict[str, Any]] = {
    "cross": {},
    "cross_motion": {"motion": {"stride": 8, "radius": 1, "feature_at": "middle"}},
    "cross_follow": {
        "scale": 1.0,
        "motion": {"stride": 8, "radius": 1, "feature_at": "middle", "follow": True},
    },
    "cross_blend": {
        "join": "blend",
        "motion": {"stride": 8, "radius": 1, "feature_at": "middle", "follow": True},
    },
    "cross_whole": {"scale": 1.0, "confidence": "none", "motion": {"stride": 8}},
    "cross_views": {"multiple": 4, "teacher": {"scales": [1.0, 1.5], "mirror": True}},
}
PAIRS = (*CLIPS, *SKIPS, *CROSSES)
# Those that hold every operator that any of them has.
BUILT = tuple(name for name in PAIRS if name not in ("tally", "skip_residual"))


def teacher() -> torch.nn.Module:
    """The factory of recipes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nets.foreign("nested")


def bundle(folder: Path, name: str, **settings: Any) -> Bundle:
    """The named pair, exported."""
    if name in SKIPS:
        path = _skip(folder, SKIPS[name])
    elif name in CROSSES:
        path = _cross(folder, CROSSES[name])
    else:
        path = clip_nets.checkpoint(folder, "hrnn" if name == "sliding" else name)
    recipe = ExportRecipe(
        out=folder / "bundle", checkpoint=path, frame_hw=FRAME_HW, sliding=name == "sliding", **settings
    )
    return export(recipe)


def _skip(folder: Path, skip: dict[str, Any]) -> Path:
    trained = skip.get("gate") == "gumbel"
    data: dict[str, Any] = {**_MASKS, "kind": "skip", "out": folder, "skip": skip}
    if trained:
        data |= {"data": {"video": ["none"]}, "loop": {"steps": 1}}
    recipe = parse_settings(data, SkipRecipe, "test")
    net = to_skip(teacher(), torch.zeros(1, 3, *FRAME_HW), recipe.skip).net
    meta = {"kind": "skip", "recipe": recipe.model_dump(mode="json"), "example_hw": list(FRAME_HW)}
    save_checkpoint(folder / "student.pt", {"state_dict": net.network.state_dict(), "meta": meta})
    return folder / "student.pt"


def _cross(folder: Path, changes: dict[str, Any]) -> Path:
    weights = folder / "teacher.pt"
    save_checkpoint(weights, teacher().state_dict())
    keyframes: dict[str, Any] = {**_TEACHER, "checkpoint": weights}
    if views := changes.get("teacher"):
        keyframes = {"factory": "edge_sdk.distill.models:several_views", "checkpoint": folder / "views.pt"}
        keyframes["arguments"] = {"network": _TEACHER, **views}
        save_checkpoint(folder / "views.pt", Views(teacher(), **views).state_dict())
    data = {
        **_MASKS, "kind": "cross", "out": folder, "data": {"video": ["none"]}, "loop": {"steps": 1},
        "student": {**_TEACHER, "checkpoint": weights}, **changes, "teacher": keyframes,
    }  # fmt: skip
    recipe = parse_settings(data, CrossRecipe, "test")
    pair = make_cross(recipe, FRAME_HW)
    meta = {"kind": "cross", "recipe": recipe.model_dump(mode="json"), "example_hw": list(FRAME_HW)}
    save_checkpoint(folder / "student.pt", {"state_dict": pair.state_dict(), "meta": meta})
    return folder / "student.pt"


class Passes:
    """What a quantiser asks of a calibration set, without the file: two clips over the bundle's own schedule."""

    sha256 = "0" * 64

    def __init__(self, bundle: Bundle, frames: int = 2 * clip_nets.LENGTH) -> None:
        self.given = record(graphs_of(bundle), clip_nets.frames(frames), bundle.manifest.schedule)

    def check_for(self, bundle: Bundle) -> None:
        """It was recorded with this very bundle."""

    def count(self, step: str) -> int:
        """Passes of a step."""
        return len(self.given[step])

    def passes(self, step: str) -> Iterator[SimpleNamespace]:
        """What it received, pass after pass."""
        return (SimpleNamespace(inputs=inputs) for inputs in self.given[step])


def graphs_of(bundle: Bundle) -> dict[StepName, Path | bytes]:
    """The float32 step graphs."""
    return {step: bundle.graph_path(step) for step, _ in bundle.manifest.steps.items()}


def record(
    graphs: Mapping[StepName, Path | bytes], images: Sequence[np.ndarray], schedule: ScheduleSettings
) -> dict[str, list[dict[str, np.ndarray]]]:
    """What each step receives, in bare sessions; graphs are files, or bytes that are run node by node.

    The answers are under ``answers``, one for each image.
    """
    import onnxruntime as ort

    alone, plain = ort.SessionOptions(), ort.SessionOptions()
    alone.intra_op_num_threads = plain.intra_op_num_threads = 1
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain.log_severity_level = 3
    sessions = {
        step: ort.InferenceSession(graph, plain, providers=["CPUExecutionProvider"])
        if isinstance(graph, bytes)
        else ort.InferenceSession(str(graph), alone, providers=["CPUExecutionProvider"])
        for step, graph in graphs.items()
    }
    given: dict[str, list[dict[str, np.ndarray]]] = {"answers": [], **{step: [] for step in graphs}}
    state: dict[str, np.ndarray] = {}
    answer: dict[str, np.ndarray] = {}
    running = schedule.start()
    for index, image in enumerate(images):
        kind = running.decide(image, index or None)
        if kind is not StepKind.SKIP:
            inputs = {"frame": image, **(state if kind is StepKind.DELTA else {})}
            given[kind.value].append(inputs)
            names = [output.name for output in sessions[kind.value].get_outputs()]
            found = dict(zip(names, sessions[kind.value].run(None, inputs), strict=True))
            written = {k.removesuffix(".next"): v for k, v in found.items() if k.startswith("state.")}
            state = {**state, **written}
            answer = {k: v for k, v in found.items() if not k.startswith("state.")}
        given["answers"].append(answer)
    return given
