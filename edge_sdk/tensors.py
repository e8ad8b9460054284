"""What a tensor is, in words every layer shares."""

from __future__ import annotations

import math

import numpy as np

from edge_sdk.settings import Settings


class TensorSpec(Settings):
    """Name, shape and dtype of one graph input or output.

    Args:
        name: the tensor's name in the graph.
        shape: static shape; no symbolic axes.
        dtype: numpy dtype name, such as ``"uint8"`` or ``"float32"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the dense tensor."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize
