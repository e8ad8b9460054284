"""A bundle's float32 pair in other precisions, ready to be built."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from pydantic import JsonValue

from edge_sdk.build.recipe import Float16Settings, Int8Settings
from edge_sdk.bundle import Bundle, set_name
from edge_sdk.compile.accumulators import Accumulators, accumulators_of
from edge_sdk.compile.calibration_set import CalibrationSet
from edge_sdk.compile.lint import lint, lint_pair, require_clean
from edge_sdk.compile.quantize.float16 import halve_pair, overflowing, to_float16
from edge_sdk.compile.quantize.int8 import convolutions, quantize_pair
from edge_sdk.compile.quantize.nodes import layer_of, name_nodes
from edge_sdk.compile.quantize.ranges import Ranges, measure_ranges, share_state
from edge_sdk.compile.quantize.state import with_own_scales
from edge_sdk.compile.specs import step_spec
from edge_sdk.compile.weights import shut
from edge_sdk.errors import RecipeError
from edge_sdk.manifest import BackendName, Precision, StateForm, StepsSpec, Variant, state_output
from edge_sdk.revision import commit_of_sources
from edge_sdk.tensors import TensorSpec

# The first operator set whose QuantizeLinear takes float16.
_HALF_QDQ_OPSET = 19


@dataclass(frozen=True)
class Written:
    """A variant and its graphs' bytes, by path relative to the bundle."""

    variant: Variant
    files: dict[str, bytes]

    @property
    def name(self) -> str:
        """The variant's name in the manifest."""
        return set_name(self.variant.backend, self.variant.precision)


class Quantizer:
    """Makes variants of one bundle from one calibration set; what was measured is kept between calls.

    Args:
        bundle: its float32 pair is the origin.
        calibration: recorded with that pair.

    Raises:
        BundleError: the set was recorded with another pair.
    """

    def __init__(self, bundle: Bundle, calibration: CalibrationSet) -> None:
        calibration.check_for(bundle)
        self.bundle, self.calibration = bundle, calibration
        self.graphs: dict[str, onnx.ModelProto] = {
            step: onnx.load(str(bundle.graph_path(step))) for step, _ in bundle.manifest.steps.items()
        }
        for model in self.graphs.values():
            shut(model)
            name_nodes(model)
        self.state = {spec.name: spec.shape for spec in bundle.manifest.state}
        delta = self.graphs.get("delta")
        self.accumulators = Accumulators() if delta is None else accumulators_of(delta)
        self._ranges: dict[tuple[Any, ...], dict[str, Ranges]] = {}

    def ranges(self, settings: Int8Settings) -> dict[str, Ranges]:
        """Range of every float tensor, by step; both ends of a state tensor have one."""
        key = (settings.method, settings.percentile, settings.passes)
        if key not in self._ranges:
            whole: dict[str, Ranges] = {}
            if settings.method != "minmax":
                whole = self.ranges(settings.model_copy(update={"method": "minmax"}))
            found: dict[str, Ranges] = {
                step: measure_ranges(
                    self.bundle.graph_path(step),
                    (dict(given.inputs) for given in self.chosen(step, settings.passes)),
                    settings,
                    whole.get(step),
                )
                for step, _ in self.bundle.manifest.steps.items()
            }
            if "delta" in found:
                share_state(found["keyframe"], found["delta"], self.state)
            self._ranges[key] = found
        return self._ranges[key]

    def int8(
        self, settings: Int8Settings, backend: BackendName, facts: Mapping[str, Any] | None = None
    ) -> Written:
        """The pair in INT8, linted.

        Args:
            settings: how.
            backend: whose kernels it is for.
            facts: more for the provenance.

        Raises:
            LintError: the backend would refuse a graph.
            EngineError: nothing is left to quantise.
            RecipeError: the pair goes on learning on the stream.
        """
        if self.bundle.manifest.online is not None:
            raise RecipeError(
                f"INT8: the student of bundle {self.bundle.path} learns on the stream, and INT8 scales hold only for "
                "the weights that were calibrated.",
                hint="Build it in float16 or float32, or export the student alone, without 'online', for INT8.",
            )
        done = quantize_pair(self.graphs, self.ranges(settings), self.state, settings, backend)
        graphs, forms = done.graphs, done.forms
        remainder, why = self._remainder(settings, backend)
        if remainder == "float16":
            graphs = {
                step: _remainder_in_half(model, self.accumulators.state) for step, model in graphs.items()
            }
            forms = with_own_scales(graphs["delta"], forms) if "delta" in graphs else forms
        asked = {step: asked_shares(self.graphs[step], kept, remainder) for step, kept in done.kept.items()}
        known = {
            "settings": settings.model_dump(mode="json"), "kept": done.kept, "asked": asked,
            "remainder": f"{remainder}{why}",
        }  # fmt: skip
        return self._written(graphs, forms, backend, "int8", {**known, **(facts or {})})

    def float16(
        self, settings: Float16Settings, int8: Int8Settings, facts: Mapping[str, Any] | None = None
    ) -> Written:
        """The pair in float16, for TensorRT, linted.

        Args:
            settings: what stays in float32.
            int8: how many passes the range scan looks at.
            facts: more for the provenance.

        Raises:
            LintError: TensorRT would refuse a graph.
        """
        scanned = self.ranges(int8.model_copy(update={"method": "minmax"}))
        done = halve_pair(self.graphs, scanned, self.state, settings)
        known = {"settings": settings.model_dump(mode="json"), "kept": done.kept}
        return self._written(done.graphs, done.forms, "tensorrt", "float16", {**known, **(facts or {})})

    def chosen(self, step: Any, most: int | None) -> Iterator[Any]:
        """Passes of a step, evenly chosen where there are more than ``most``."""
        total = self.calibration.count(step)
        wanted = (
            range(total) if most is None or most >= total else np.linspace(0, total - 1, most).astype(int)
        )
        keep = {int(index) for index in wanted}
        return (given for index, given in zip(count(), self.calibration.passes(step)) if index in keep)

    def _remainder(self, settings: Int8Settings, backend: BackendName) -> tuple[Precision, str]:
        """Precision of what is not INT8, and why it is not the one that was asked for."""
        if backend != "tensorrt" or settings.remainder == "float32":
            return "float32", ""
        scanned = self.ranges(settings.model_copy(update={"method": "minmax"}))
        for step, model in self.graphs.items():
            for node, reason in overflowing(model, scanned[step], Float16Settings()).items():
                # Of one such node the others would get infinities, so all of them stay.
                return "float32", f", because of {node} in the {step} step: {reason}"
        return "float16", ""

    def _written(
        self,
        graphs: Mapping[str, onnx.ModelProto],
        forms: dict[str, StateForm],
        backend: BackendName,
        precision: Precision,
        facts: dict[str, Any],
    ) -> Written:
        name = set_name(backend, precision)
        where = f"bundle {self.bundle.path}, {name}"
        for step, model in graphs.items():
            require_clean(lint(model, backend=backend, precision=precision, step=step), where)
        if "delta" in graphs:
            pair = lint_pair(
                graphs["keyframe"], graphs["delta"], backend=backend, precision=precision, forms=forms
            )
            require_clean(pair, where)
        files = {f"graphs/{name}/{step}.onnx": model.SerializeToString() for step, model in graphs.items()}
        specs = {
            step: step_spec(graphs[step], f"graphs/{name}/{step}.onnx", spec.macs)
            for step, spec in self.bundle.manifest.steps.items()
        }
        written = {v.name: v for v in specs["keyframe"].outputs}
        state = tuple(
            TensorSpec(name=key, shape=found.shape, dtype=found.dtype)
            for key in self.state
            for found in [written[state_output(key)]]
        )
        variant = Variant(
            backend=backend,
            precision=precision,
            steps=StepsSpec(keyframe=specs["keyframe"], delta=specs.get("delta")),
            state=state,
            forms=forms,
            provenance={
                "calibration_sha256": self.calibration.sha256,
                "float32": graph_digests(self.bundle),
                "commit": commit_of_sources(),
                **facts,
            },
        )
        return Written(variant, files)


def asked_shares(
    model: onnx.ModelProto, kept: Mapping[str, str], remainder: Precision = "float32"
) -> dict[str, float]:
    """Share of the convolutions that a quantised graph asks for in each precision, 0-1."""
    layers = [layer_of(node) for node in convolutions(model)]
    share = sum(layer not in kept for layer in layers) / len(layers)
    return {"int8": share, remainder: 1 - share}


def graph_digests(bundle: Bundle) -> dict[str, JsonValue]:
    """SHA-256 of the float32 graphs that a variant is made from, by step."""
    return {step: bundle.manifest.files[spec.graph].sha256 for step, spec in bundle.manifest.steps.items()}


def require_calibration(path: Path | None, bundle: Bundle) -> CalibrationSet:
    """The calibration set of a recipe.

    Raises:
        RecipeError: the recipe names none.
        MissingFileError, FileFormatError, BundleError: it is not there, not whole, or another pair's.
    """
    if path is None:
        raise RecipeError(
            "'calibration': INT8 and float16 need ranges from real passes, the recipe names no calibration set.",
            hint="Record one with: edge-sdk calibrate RECIPE",
        )
    found = CalibrationSet.open(path)
    found.check_for(bundle)
    return found


def _remainder_in_half(model: onnx.ModelProto, wide_state: Collection[str]) -> onnx.ModelProto:
    """What is not INT8 in float16 too: Q/DQ then give and take float16; ``wide_state`` stays as it is."""
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if version < _HALF_QDQ_OPSET:
        model = onnx.version_converter.convert_version(model, _HALF_QDQ_OPSET)
    return to_float16(model, [], wide_state)
