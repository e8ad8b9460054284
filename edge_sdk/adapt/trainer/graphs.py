"""The bundle's step graphs with other weights in them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from edge_sdk.bundle import Bundle
from edge_sdk.compile.weights import set_weights
from edge_sdk.errors import BundleError
from edge_sdk.manifest import EXPORT_AGAIN, OnlineSpec


class StepGraphs:
    """The float32 graphs of the steps that hold weights which learn, read once.

    Args:
        bundle: with ``manifest.online``.

    Attributes:
        files: each one's name in the bundle, by step.

    Raises:
        BundleError: the bundle cannot learn, or a graph cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._spec = online_of(bundle)
        self.files: dict[str, str] = {step: bundle.step(step).graph for step in self._spec.tensors}
        self._models = {step: _read(bundle, bundle.step(step).graph) for step in self._spec.tensors}

    def patched(self, values: Mapping[str, np.ndarray]) -> dict[str, bytes]:
        """Every graph with these weights.

        Args:
            values: by name in the pair, of the initialisers' shapes and dtypes; what a step has not is passed over.

        Raises:
            BundleError: a weight is missing.
            ShapeError: a weight has another shape or dtype.
        """
        graphs: dict[str, bytes] = {}
        for step, model in self._models.items():
            tensors = self._spec.tensors[step]
            set_weights(model, tensors, {name: values[name] for name in tensors if name in values})
            graphs[step] = model.SerializeToString()
        return graphs

    def open_weights(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The weights that the graphs leave open, by name in the graph.

        Args:
            values: by name in the pair.
        """
        return {
            tensors[name]: values[name]
            for tensors in self._spec.tensors.values()
            for name in self._spec.open
            if name in tensors
        }


def online_of(bundle: Bundle) -> OnlineSpec:
    """What the bundle says of learning.

    Raises:
        BundleError: it cannot learn.
    """
    spec = bundle.manifest.online
    if spec is None or not spec.tensors:
        raise BundleError(
            f"bundle {bundle.path}: its student cannot learn on a stream.",
            hint="Export one with an 'online' recipe: see docs/online.md.",
        )
    return spec


def _read(bundle: Bundle, name: str) -> onnx.ModelProto:
    try:
        return onnx.load(str(bundle.path / name))
    except Exception as error:  # protobuf's errors share no base of their own
        raise BundleError(f"graph {name}: cannot be read ({error}).", hint=EXPORT_AGAIN) from error
