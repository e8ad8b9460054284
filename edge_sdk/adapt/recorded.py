"""A recorded teacher: one mask a frame, from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_sdk.errors import MissingFileError
from edge_sdk.video.folder import images_in
from edge_sdk.video.labels import label_table, read_label


class RecordedMasks:
    """Masks of a stream's frames, in natural order of their names: the first is that of frame 0.

    Each is read when it is asked for. A folder with a ``labels/`` in it, such as a source of frames, means that.

    Args:
        folder: of single-channel 8-bit images, at least as many as the stream has frames.
        frame_hw: height and width of the frames.
        values: class ids by value of the masks, such as ``{255: 1}``; values that are not named stay as they are.

    Raises:
        MissingFileError: no such folder.
        VideoError: no images in it, or the first is no mask of that size.
        RecipeError: ``values`` holds what is no byte.
    """

    def __init__(
        self, folder: str | Path, frame_hw: tuple[int, int], values: Mapping[int, int] | None = None
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise MissingFileError(
                f"teacher: expected a folder of recorded masks at {root}, found none.",
                hint="Name a folder with one mask a frame.",
            )
        self.folder = root / "labels" if (root / "labels").is_dir() else root
        self._frame_hw = frame_hw
        self._table = label_table(values) if values else None
        self._files = images_in(self.folder)
        self.mask(0)

    def __len__(self) -> int:
        return len(self._files)

    def mask(self, index: int) -> np.ndarray:
        """The mask of frame ``index``, (H, W) uint8 of the frame's size.

        Raises:
            IndexError: a negative index.
            MissingFileError: there are fewer masks.
            VideoError: it cannot be decoded, or is no mask of the frames' size.
        """
        if index < 0:
            raise IndexError(f"expected a frame of at least 0, got {index}")
        if index >= len(self._files):
            raise MissingFileError(
                f"{self.folder}: expected a mask of frame {index}, found {len(self._files)} masks.",
                hint="Record one for every frame, or end the stream there with a limit.",
            )
        return read_label(self._files[index], self._frame_hw, self._table, whose="the frames")
