"""Past teacher frames that are learned again, against forgetting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sdk.adapt.settings import MemorySettings
from edge_sdk.errors import CheckpointError

_BROKEN = "The file was written by another version of edge_sdk: begin again with resume=False."


@dataclass(frozen=True, slots=True, eq=False)
class TeacherFrame:
    """A frame that the teacher has answered.

    Args:
        image: (H, W, 3) uint8 BGR.
        label: (H, W) uint8, the teacher's answer.
        before: the teacher frame before it, (H, W, 3) uint8 BGR, where the student is corrected by that; else None.
        target: what the teacher's logits there were, at the size of the state; None without ``before``.
    """

    image: np.ndarray
    label: np.ndarray
    before: np.ndarray | None = None
    target: Tensor | None = None


class Memory:
    """A sample of all teacher frames so far, each with the same chance of being in it (reservoir sampling).

    Args:
        settings: how many are kept; None keeps none.
        seed: of the draws.
    """

    def __init__(self, settings: MemorySettings | None, seed: int) -> None:
        self._settings = settings
        self._rng = np.random.default_rng(seed)
        self._kept: list[TeacherFrame] = []
        self._seen = 0

    def __len__(self) -> int:
        return len(self._kept)

    def draw(self) -> Iterator[TeacherFrame]:
        """Frames for one update, none of them twice."""
        if self._settings is None or not self._kept:
            return
        count = min(self._settings.per_update, len(self._kept))
        for index in self._rng.choice(len(self._kept), count, replace=False):
            yield self._kept[index]

    def add(self, frame: TeacherFrame) -> None:
        """Take a frame in, in the place of a random one where the memory is full, or leave it out."""
        if self._settings is None:
            return
        self._seen += 1
        if len(self._kept) < self._settings.frames:
            self._kept.append(frame)
            return
        place = int(self._rng.integers(self._seen))
        if place < len(self._kept):
            self._kept[place] = frame

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values."""
        return {
            "seen": self._seen,
            "random": self._rng.bit_generator.state,
            "frames": [frame_state(frame) for frame in self._kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What :meth:`state_dict` gave; frames beyond this memory's size are left out.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            frames = [frame_from(entry) for entry in state["frames"]]
            self._rng.bit_generator.state = state["random"]
            self._seen = int(state["seen"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"memory: cannot be read ({error!r}).", hint=_BROKEN) from error
        self._kept = frames[: self._settings.frames] if self._settings is not None else []


def frame_state(frame: TeacherFrame) -> dict[str, Tensor | None]:
    """A frame as tensors."""
    return {
        "image": torch.from_numpy(frame.image),
        "label": torch.from_numpy(frame.label),
        "before": None if frame.before is None else torch.from_numpy(frame.before),
        "target": frame.target,
    }


def frame_from(state: dict[str, Tensor | None]) -> TeacherFrame:
    """What :func:`frame_state` gave."""
    image, label, before = (_array(state[name]) for name in ("image", "label", "before"))
    if image is None or label is None:
        raise ValueError("a frame without image or label")
    return TeacherFrame(image, label, before, state["target"])


def _array(value: Tensor | None) -> np.ndarray | None:
    return None if value is None else value.numpy()
