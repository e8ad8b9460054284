"""Other weights in a step graph, each found by the name that the bundle's manifest gives it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from edge_sdk.errors import BundleError, ShapeError
from edge_sdk.manifest import EXPORT_AGAIN


def set_weights(model: onnx.ModelProto, tensors: Mapping[str, str], values: Mapping[str, np.ndarray]) -> None:
    """Put new values into a graph's initialisers, in place; all of them or, where one does not fit, none.

    Args:
        model: the step graph.
        tensors: name of each parameter's initialiser, by the parameter's name, see
            :attr:`edge_sdk.manifest.OnlineSpec.tensors`.
        values: a value for each of these parameters, of its initialiser's shape and dtype; no others.

    Raises:
        BundleError: a value is missing or is nobody's, or the graph has no such initialiser.
        ShapeError: a value has another shape or dtype.
    """
    check_names(tensors, values)
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, initialiser in tensors.items():
        tensor = found.get(initialiser)
        if tensor is None:
            raise BundleError(f"graph: it has no weights '{initialiser}' for '{name}'.", hint=EXPORT_AGAIN)
        expected = (tuple(tensor.dims), np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)))
        given = (values[name].shape, values[name].dtype)
        if given != expected:
            raise ShapeError(
                f"weights '{name}': expected {expected[0]} {expected[1]}, got {given[0]} {given[1]}."
            )
    for name, initialiser in tensors.items():
        found[initialiser].CopyFrom(onnx.numpy_helper.from_array(values[name], initialiser))


def rounded(
    model: onnx.ModelProto, tensors: Mapping[str, str], values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Values for :func:`set_weights` in the float type that a graph keeps each in, as for a float16 variant.

    Args:
        model: the step graph.
        tensors, values: as for :func:`set_weights`, but values are float32.

    Raises:
        BundleError: a value becomes infinite in that type, or the graph has no such initialiser.
    """
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    out: dict[str, np.ndarray] = {}
    for name, value in values.items():
        kind = kinds.get(tensors.get(name, ""))
        if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            raise BundleError(f"graph: it has no float weights for '{name}'.", hint=EXPORT_AGAIN)
        with np.errstate(over="ignore"):
            out[name] = np.asarray(value).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        if not np.array_equal(np.isfinite(out[name]), np.isfinite(value)):
            raise BundleError(
                f"weights '{name}': beyond what float16 holds.", hint="Let the stream run in float32."
            )
    return out


def check_names(tensors: Iterable[str], values: Iterable[str]) -> None:
    """Check that there is a value for each name, and none too many.

    Raises:
        BundleError: naming the first that is too few or too many.
    """
    wanted, given = set(tensors), set(values)
    for odd, what in ((wanted - given, "missing"), (given - wanted, "nowhere in this graph")):
        if odd:
            raise BundleError(
                f"weights '{min(odd)}': {what}.", hint="Give a value for each of the graph's own."
            )


def leave_open(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """List initialisers as inputs too, in place: they are then the values of inputs that nobody gives.

    Names that the graph does not hold are passed over.
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in names:
        if name in held:
            shape = list(held[name].dims)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, held[name].data_type, shape))


def shut(model: onnx.ModelProto) -> None:
    """Undo :func:`leave_open`, in place."""
    held = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in held]
    del model.graph.input[:]
    model.graph.input.extend(kept)
