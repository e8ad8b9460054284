"""The plans of a TensorRT engine set with other weights in them, built for this machine beside the stream."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from edge_sdk.adapt.trainer.graphs import online_of
from edge_sdk.build.tensorrt import build_plan
from edge_sdk.build.tensorrt.again import plan_recipes
from edge_sdk.bundle import Bundle
from edge_sdk.compile.weights import rounded, set_weights
from edge_sdk.errors import BundleError
from edge_sdk.manifest import EXPORT_AGAIN, StepName


class StepPlans:
    """Builds the plans that hold weights which learn, with the settings that the engine set was built with.

    TensorRT runs in a child process, which inherits this one's CPU cores and priority and ends with it. Of a plan the
    last build is kept: the same weights asked for again, as when they are to be kept, cost nothing.

    Args:
        bundle: with ``manifest.online``.
        engine: name of the engine set in use.

    Attributes:
        files: each plan's name in the bundle, by step.

    Raises:
        BundleError: no plans of this set can be built with other weights, or a graph cannot be read.
        DependencyError: a package that builds plans is not installed.
    """

    def __init__(self, bundle: Bundle, engine: str) -> None:
        self._tensors = online_of(bundle).tensors
        self._recipes = plan_recipes(bundle, engine)
        self.files: dict[str, str] = {step: recipe.plan for step, recipe in self._recipes.items()}
        self._models = {step: _read(bundle.path / recipe.graph) for step, recipe in self._recipes.items()}
        self._last: dict[StepName, tuple[str, bytes]] = {}

    def patched(self, values: Mapping[str, np.ndarray]) -> dict[str, bytes]:
        """Every plan with these weights.

        Args:
            values: by name in the pair, float32; rounded to the float type that the set keeps each in. What a step has
                not is passed over.

        Raises:
            BundleError: a weight is missing, or beyond what float16 holds.
            ShapeError: a weight has another shape.
            EngineError: TensorRT cannot build one, ran out of memory or time, or crashed.
        """
        graphs: dict[StepName, bytes] = {}
        for step, model in self._models.items():
            tensors = self._tensors[step]
            mine = {name: values[name] for name in tensors if name in values}
            set_weights(model, tensors, rounded(model, tensors, mine))
            graphs[step] = model.SerializeToString()
        return {step: self.build(step, graph) for step, graph in graphs.items()}

    def build(self, step: StepName, graph: bytes) -> bytes:
        """The plan of a step's graph, in the precision of the set; the one of last time where it is the same graph.

        Raises:
            EngineError: TensorRT cannot build it, ran out of memory or time, or crashed.
        """
        digest = hashlib.sha256(graph).hexdigest()
        known = self._last.get(step)
        if known is not None and known[0] == digest:
            return known[1]
        recipe = self._recipes[step]
        with tempfile.TemporaryDirectory(prefix="edge-sdk-plan-") as folder:
            file, plan = Path(folder) / f"{step}.onnx", Path(folder) / f"{step}.plan"
            file.write_bytes(graph)
            build_plan(
                file, plan, step=step, precision=recipe.precision, settings=recipe.settings,
                calibration_sha256=recipe.calibration_sha256, open_weights=recipe.open_weights,
            )  # fmt: skip
            content = plan.read_bytes()
        self._last[step] = digest, content
        return content


def _read(file: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(file))
    except Exception as error:  # protobuf's errors share no base of their own
        raise BundleError(f"graph {file}: cannot be read ({error}).", hint=EXPORT_AGAIN) from error
