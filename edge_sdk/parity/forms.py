"""State between the float32 pair's terms and an engine's own."""

from __future__ import annotations

import numpy as np

from edge_sdk.errors import ShapeError
from edge_sdk.manifest import PairSpec, StateForm, state_input, state_output
from edge_sdk.tensors import TensorSpec


class StateForms:
    """How a pair's graph inputs and outputs stand to those of the float32 pair.

    Args:
        pair: steps and state in some precision.
    """

    def __init__(self, pair: PairSpec) -> None:
        self._forms: dict[str, tuple[TensorSpec, StateForm]] = {}
        for spec in pair.state:
            form = pair.forms.get(spec.name, StateForm())
            self._forms[state_input(spec.name)] = self._forms[state_output(spec.name)] = (spec, form)

    def kept(self, name: str, array: np.ndarray) -> np.ndarray:
        """What graph input ``name`` of this pair is given for ``array``, the float32 pair's."""
        if name not in self._forms:
            return array
        spec, form = self._forms[name]
        return kept(array, spec, form)

    def restored(self, name: str, array: np.ndarray) -> np.ndarray:
        """What graph output ``name`` of this pair says in the float32 pair's terms."""
        return restored(array, self._forms[name][1]) if name in self._forms else array


def kept(array: np.ndarray, spec: TensorSpec, form: StateForm) -> np.ndarray:
    """A float32 state tensor as an engine keeps it; what its type cannot hold becomes the nearest that it can.

    Args:
        array: of the float32 pair.
        spec: shape and dtype that the engine keeps.
        form: how they stand to each other.

    Raises:
        ShapeError: the two shapes do not fit.
    """
    moved = array.transpose(form.permutation) if form.permutation else array
    if moved.shape != spec.shape:
        raise ShapeError(f"state '{spec.name}': {array.shape} in float32 does not become {spec.shape}.")
    dtype = np.dtype(spec.dtype)
    if dtype.kind not in "iu":
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite there too
            return np.ascontiguousarray(moved, dtype)
    limits = np.iinfo(dtype)
    # To nearest even, as QuantizeLinear does.
    levels = np.rint(moved / np.float32(form.scale)) + form.zero_point
    return np.ascontiguousarray(np.clip(levels, limits.min, limits.max), dtype)


def restored(array: np.ndarray, form: StateForm) -> np.ndarray:
    """An engine's state tensor as float32, in the float32 pair's order of axes."""
    values = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.integer):
        values = (values - np.float32(form.zero_point)) * np.float32(form.scale)
    return values.transpose(np.argsort(form.permutation)) if form.permutation else values
