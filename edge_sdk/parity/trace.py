"""Where inside a graph the error arises: every tensor that a variant shares with the float32 graph, side by side.

A tool for the workstation: it needs onnx, and it runs the variants' portable graphs on ONNX Runtime without
optimisation, so it shows what the numbers in the graph do, not what another runtime's kernels make of them. ONNX
Runtime computes float16 in float32; of a float16 graph only the rounding of what is stored is seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.manifest import PairSpec, StepName, Variant
from edge_sdk.optional import require
from edge_sdk.parity.comparison import LayerError, Trace
from edge_sdk.parity.deviation import Deviation
from edge_sdk.parity.forms import StateForms
from edge_sdk.parity.reference import Reference, WholePass
from edge_sdk.progress import Progress, Silent

_PURPOSE = "edge-sdk compare --trace"
# What the quantiser of ONNX Runtime calls the image of a tensor that the next layers read.
_IMAGE = "_DequantizeLinear_Output"


@dataclass(frozen=True)
class _Shared:
    """One tensor of the float32 graph and its image in the variant."""

    node: str
    operator: str
    tensor: str
    image: str


def trace_variants(
    bundle: Bundle, reference: Reference, *, grown: float, progress: Progress | None = None
) -> tuple[Trace, ...]:
    """Compare the tensors inside every variant's graphs, over the first keyframe period that the reference keeps whole.

    Args:
        bundle: the pair and its variants.
        reference: the passes.
        grown: relative error above which a tensor counts as grown.
        progress: told of each pass.

    Raises:
        DependencyError: onnx or onnxruntime is not installed.
    """
    watcher = progress or Silent()
    found = []
    for name, variant in bundle.manifest.variants.items():
        layers: list[LayerError] = []
        for step, _ in variant.steps.items():
            passes = _first_period(reference, step)
            traced = _Traced(bundle, variant, step)
            for done, one in enumerate(passes, start=1):
                traced.add(one)
                watcher.update(f"trace {name} {step}", done, len(passes))
            layers += traced.results()
        grows_at = next((layer for layer in layers if layer.relative is None or layer.relative > grown), None)
        found.append(Trace(variant=name, layers=tuple(layers), grows_at=grows_at))
    return tuple(found)


def _first_period(reference: Reference, step: StepName) -> list[WholePass]:
    """Passes of one step from the first whole keyframe to the next."""
    found: list[WholePass] = []
    keyframes = 0
    for one in reference.passes():
        keyframes += one.step == "keyframe"
        if keyframes > 1:
            break
        if one.step == step:
            found.append(one)
    return found


class _Traced:
    """The float32 graph of a step and a variant's, both with their inner tensors as outputs."""

    def __init__(self, bundle: Bundle, variant: Variant, step: StepName) -> None:
        onnx = require("onnx", _PURPOSE)
        plain, other = (onnx.load(str(_path(bundle, pair, step))) for pair in (bundle.pair(), variant))
        self._step, self._shared = step, _shared_tensors(plain.graph, other.graph)
        self._forms = StateForms(variant)
        self._plain = _session(onnx, plain, [one.tensor for one in self._shared])
        self._other = _session(onnx, other, [one.image for one in self._shared])
        self._deviations = {one.tensor: Deviation(step, 0, one.tensor) for one in self._shared}

    def add(self, one: WholePass) -> None:
        """Run both on one pass."""
        expected = _run(self._plain, one.inputs, [shared.tensor for shared in self._shared])
        inputs = {name: self._forms.kept(name, array) for name, array in one.inputs.items()}
        found = _run(self._other, inputs, [shared.image for shared in self._shared])
        for shared, wanted, got in zip(self._shared, expected, found, strict=True):
            # Other layouts and bytes cannot be compared value by value.
            if wanted.shape == got.shape and wanted.dtype.kind == got.dtype.kind == "f":
                self._deviations[shared.tensor].add(got.astype(np.float32), wanted.astype(np.float32))

    def results(self) -> list[LayerError]:
        """Errors in the order of the run."""
        layers = []
        for shared in self._shared:
            result = self._deviations[shared.tensor].result()
            if result.passes:
                layers.append(
                    LayerError(
                        step=self._step,
                        node=shared.node,
                        operator=shared.operator,
                        tensor=shared.tensor,
                        relative=result.relative if math.isfinite(result.relative) else None,
                    )
                )
        return layers


def _shared_tensors(plain: Any, other: Any) -> list[_Shared]:
    """Tensors that both graphs make, in the order of the float32 graph."""
    made = {name for node in other.node for name in node.output}
    shared = []
    for node in plain.node:
        for tensor in filter(None, node.output):
            image = next((name for name in (f"{tensor}{_IMAGE}", tensor) if name in made), None)
            if image is not None:
                shared.append(_Shared(node.name or tensor, node.op_type, tensor, image))
    return shared


def _session(onnx: Any, model: Any, names: Sequence[str]) -> Any:
    """A session of ``model`` that also gives the tensors ``names``; nothing is fused."""
    ort = require("onnxruntime", _PURPOSE)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in there
    )
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    found: list[np.ndarray] = session.run(list(names), dict(inputs)) if names else []
    return found


def _path(bundle: Bundle, pair: PairSpec, step: StepName) -> Path:
    return bundle.path / dict(pair.steps.items())[step].graph
