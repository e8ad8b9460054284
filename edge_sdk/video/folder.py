"""Frames from a folder of images, with segmentation labels where the folder has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edge_sdk.errors import MissingFileError, VideoError
from edge_sdk.video.base import Selection, SourceBase
from edge_sdk.video.frame import Frame, Truth
from edge_sdk.video.native import opencv, require_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

# A JPEG marker: in coded data a plain 0xFF is followed by 0x00, and restart markers are part of it.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


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
        labels: read ``labels/`` where there is one.
        selection: which frames to deliver.
        uri: how messages name the source; the path by default.

    Raises:
        MissingFileError: no such folder, or a frame without a label.
        VideoError: no images, two with one stem, or the first cannot be decoded. While iterating: a file
            that cannot be decoded, is truncated or of another size, or a label that is not (H, W) uint8.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float = 30.0,
        labels: bool = True,
        selection: Selection | None = None,
        uri: str | None = None,
    ) -> None:
        super().__init__(uri or str(path))
        root = Path(path)
        if not root.is_dir():
            raise MissingFileError(f"source: expected a folder of images at {root}, found none.")
        self._cv2 = opencv("reading images")
        self._selection = selection or Selection()
        folder = root / "images" if (root / "images").is_dir() else root
        self._images = _images_in(folder)
        self._labels: list[Path] | None = None
        if labels and folder != root and (root / "labels").is_dir():
            self._labels = _labels_for(self._images, root / "labels")
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
                    f"{path}: {_size(image.shape)}, but the first frame {self._images[0].name} is "
                    f"{_size(self.size_hw)}.",
                    hint="All frames of a folder must have one size: resize them or sort them into folders.",
                )
            truth = Truth(mask=self._read_label(self._labels[index])) if self._labels is not None else None
            yield Frame(image, seq, index / self._image_fps, truth)
            self._require_open()

    def _read_image(self, path: Path) -> np.ndarray:
        image = self._decode(path, self._cv2.IMREAD_COLOR)
        require_image(image, str(path))
        return np.ascontiguousarray(image)

    def _read_label(self, path: Path) -> np.ndarray:
        label = self._decode(path, self._cv2.IMREAD_UNCHANGED)
        if label.ndim != 2 or label.dtype != np.uint8:
            raise VideoError(
                f"{path}: expected a label of one byte a pixel, got {label.shape} {label.dtype}.",
                hint="Save class ids as an 8-bit greyscale PNG, not as colours or a palette, "
                "or read without labels: ?labels=0.",
            )
        if label.shape != self.size_hw:
            raise VideoError(
                f"{path}: the label is {_size(label.shape)}, its frame {_size(self.size_hw)}.",
                hint="Resize labels with nearest-neighbour interpolation, or read without them: ?labels=0.",
            )
        return label

    def _decode(self, path: Path, flags: int) -> np.ndarray:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise VideoError(f"{path}: cannot be read ({error.strerror}).", hint="Check the file.") from error
        # Older OpenCV decodes what is there of a truncated file and leaves the rest grey, without an error.
        image = self._cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data and _is_whole(data) else None
        if image is None:
            raise VideoError(
                f"{path}: cannot be decoded, truncated or not an image ({len(data)} bytes).",
                hint="Copy the file again or remove it.",
            )
        return image


def _images_in(folder: Path) -> list[Path]:
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


def _is_whole(data: bytes) -> bool:
    """Whether a JPEG or PNG runs to its end mark; other formats are left to their decoders."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-4096:]
    if not data.startswith(b"\xff\xd8"):
        return True
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        code = data[marker.start() + 1]
        position = marker.end()
        if code == 0xD9:
            return True
        length = int.from_bytes(data[position : position + 2], "big")
        position += max(length, 2)
    return False


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"
