"""Frames from a folder of images, with segmentation labels where the folder has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edge_sdk.errors import MissingFileError, VideoError
from edge_sdk.video.base import Selection, SourceBase
from edge_sdk.video.frame import Frame, Truth
from edge_sdk.video.labels import decode_image, label_table, read_label, size_text
from edge_sdk.video.native import opencv, require_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key of a file name in which digits count as numbers: ``frame_2`` comes before ``frame_10``."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts)


class FrameFolder(SourceBase):
    """A folder of images of one size, in natural order of their names; other and hidden files are passed
    over.

    A folder with an ``images/`` subfolder takes its frames from there. If it also has ``labels/``, every
    frame needs a label there: a single-channel 8-bit PNG of class ids (255 ignored), of the frame's size and
    stem.

    Args:
        path: the folder.
        fps: frames a second; images carry no rate.
        labels: read ``labels/`` where there is one; a mapping, such as ``{255: 1}``, also says which class ids the
            values in it stand for, and then there has to be one. Values that are not named stay as they are.
        selection: which frames to deliver.
        uri: how messages name the source; the path by default.

    Raises:
        MissingFileError: no such folder, or a frame without a label.
        RecipeError: ``labels`` maps what is no byte.
        VideoError: no images, two with one stem, or the first cannot be decoded. While iterating: a file
            that cannot be decoded, is truncated or of another size, or a label that is not (H, W) uint8.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float = 30.0,
        labels: bool | Mapping[int, int] = True,
        selection: Selection | None = None,
        uri: str | None = None,
    ) -> None:
        super().__init__(uri or str(path))
        root = Path(path)
        if not root.is_dir():
            raise MissingFileError(f"source: expected a folder of images at {root}, found none.")
        self._colour = opencv("reading images").IMREAD_COLOR
        self._selection = selection or Selection()
        folder = root / "images" if (root / "images").is_dir() else root
        self._images = images_in(folder)
        self._labels: list[Path] | None = None
        mapped = isinstance(labels, Mapping)
        self._table = label_table(labels) if isinstance(labels, Mapping) else None
        if mapped or (labels and folder != root and (root / "labels").is_dir()):
            self._labels = _labels_for(self._images, _label_folder(root))
        self._selection.require_any(len(self._images), self.uri)
        self._image_fps = fps
        self.fps = fps / self._selection.stride
        self.frame_count = self._selection.count(len(self._images))
        self.size_hw = self._read_image(self._images[0]).shape[:2]

    def _frames(self) -> Iterator[Frame]:
        for seq, index in enumerate(self._selection.indices(len(self._images))):
            path = self._images[index]
            image = self._read_image(path)
            if image.shape[:2] != self.size_hw:
                raise VideoError(
                    f"{path}: {size_text(image.shape)}, but the first frame {self._images[0].name} is "
                    f"{size_text(self.size_hw)}.",
                    hint="All frames of a folder must have one size: resize them or sort them into folders.",
                )
            truth = Truth(mask=self._read_label(self._labels[index])) if self._labels is not None else None
            yield Frame(image, seq, index / self._image_fps, truth)
            self._require_open()

    def _read_image(self, path: Path) -> np.ndarray:
        image = decode_image(path, self._colour)
        require_image(image, str(path))
        return np.ascontiguousarray(image)

    def _read_label(self, path: Path) -> np.ndarray:
        return read_label(
            path, self.size_hw, self._table, hint=", or read the frames without labels: ?labels=0"
        )


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order of their names.

    Raises:
        VideoError: there are none.
    """
    images = sorted(
        (p for p in folder.iterdir() if _is_image(p)),
        key=natural_key,
    )
    if not images:
        raise VideoError(
            f"{folder}: expected images ({' '.join(IMAGE_SUFFIXES)}), found none.",
            hint="Name a folder of images, or one with images/ and labels/ in it.",
        )
    return images


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _label_folder(root: Path) -> Path:
    if not ((root / "images").is_dir() and (root / "labels").is_dir()):
        raise MissingFileError(
            f"{root}: expected images/ and labels/ in it, since values of labels are mapped.",
            hint="Leave out the mapping, or name a folder with labels.",
        )
    return root / "labels"


def _labels_for(images: Sequence[Path], folder: Path) -> list[Path]:
    labels = {
        path.stem: path for path in folder.iterdir() if path.suffix.lower() == ".png" and _is_image(path)
    }
    stems = [path.stem for path in images]
    missing = [stem for stem in stems if stem not in labels]
    if missing:
        raise MissingFileError(
            f"{folder}: expected a label {missing[0]}.png, found none "
            f"({len(missing)} of {len(stems)} are missing).",
            hint="Add them, or read the frames without labels: ?labels=0.",
        )
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise VideoError(
            f"{images[0].parent}: two images named '{twice}' share one label.",
            hint="Rename or remove one of them.",
        )
    return [labels[stem] for stem in stems]
