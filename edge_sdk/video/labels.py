"""Pictures and label masks read from image files, and the values of masks mapped to class ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from edge_sdk.errors import RecipeError, VideoError
from edge_sdk.video.native import opencv

# A JPEG marker: in coded data a plain 0xFF is followed by 0x00, and restart markers are part of it.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_PAIR = re.compile(r"(\d{1,3}):(\d{1,3})")
_SWITCH = TypeAdapter(bool)


def parse_labels(value: object) -> object:
    """``labels`` of a URI's query: a switch, or values mapped to class ids as ``255:1,128:2``.

    Raises:
        ValueError: it is neither, or maps a value twice.
    """
    if not isinstance(value, str):
        return value
    try:
        return _SWITCH.validate_python(value)
    except ValidationError:
        pairs = [_PAIR.fullmatch(part) for part in value.split(",")]
    found = {int(pair[1]): int(pair[2]) for pair in pairs if pair}
    if len(found) != len(pairs):
        raise ValueError("expected 0, 1 or VALUE:CLASS,VALUE:CLASS such as 255:1, each value once")
    return found


def label_table(values: Mapping[int, int]) -> np.ndarray:
    """(256,) uint8 that maps a mask by ``table[mask]``; values that are not named stay as they are.

    Args:
        values: class id by value of the mask.

    Raises:
        RecipeError: a number is not one of a byte.
    """
    for value in (*values.keys(), *values.values()):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
            raise RecipeError(f"labels: expected values and class ids of 0-255, got {value!r}.")
    table = np.arange(256, dtype=np.uint8)
    for value, class_id in values.items():
        table[value] = class_id
    return table


def read_label(
    path: Path,
    size_hw: Sequence[int],
    table: np.ndarray | None = None,
    *,
    whose: str = "its frame",
    hint: str = "",
) -> np.ndarray:
    """The mask in an image file, (H, W) uint8.

    Args:
        path: a single-channel 8-bit image.
        size_hw: the size that it must have.
        table: maps its values, see :func:`label_table`; None leaves them.
        whose: what ``size_hw`` is the size of, for the message.
        hint: added to a refusal: how to do without this file.

    Raises:
        VideoError: it cannot be read, or is of another kind or size.
    """
    label = decode_image(path, opencv("reading labels").IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise VideoError(
            f"{path}: expected a label of one byte a pixel, got {label.shape} {label.dtype}.",
            hint=f"Save class ids as an 8-bit greyscale PNG, not as colours or a palette{hint}.",
        )
    if label.shape != tuple(size_hw):
        raise VideoError(
            f"{path}: the label is {size_text(label.shape)}, {whose} {size_text(size_hw)}.",
            hint=f"Resize labels with nearest-neighbour interpolation{hint}.",
        )
    return label if table is None else np.take(table, label)


def decode_image(path: Path, flags: int) -> np.ndarray:
    """An image file as OpenCV decodes it.

    Raises:
        VideoError: it cannot be read, is truncated or no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror}).", hint="Check the file.") from error
    # Older OpenCV decodes what is there of a truncated file and leaves the rest grey, without an error.
    cv2 = opencv("reading images")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data and _is_whole(data) else None
    if image is None:
        raise VideoError(
            f"{path}: cannot be decoded, truncated or not an image ({len(data)} bytes).",
            hint="Copy the file again or remove it.",
        )
    return image


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


def size_text(shape: Sequence[int]) -> str:
    """Height and width as messages write them."""
    return f"{shape[0]} x {shape[1]}"
