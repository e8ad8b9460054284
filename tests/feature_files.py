"""TFRecord files of features for tests."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.distill.clips.features import sequence_example, write_records

# Written by the PyPI package tfrecord 1.14.6: id aB3d, labels 3 and 1, two frames of four and of two bytes.
FOREIGN = base64.b64decode(
    "XgAAAAAAAADYsG68CiIKDgoCaWQSCAoGCgRhQjNkChAKBmxhYmVscxIGGgQKAgMBEjgKGwoDcmdiEhQKCAoGCgQAAQL/CggKBgoEBwgJCgoZCgVh"
    "dWRpbxIQCgYKBAoCgAUKBgoECgIGBwTXWn8="
)


def record(
    name: str = "clip",
    labels: Sequence[int] = (0,),
    key: str = "id",
    **lists: Sequence[Sequence[bytes]] | np.ndarray,
) -> bytes:
    """One clip; a list is (frames, D) uint8, or for each frame its byte strings."""
    example: Any = sequence_example()()
    if key:
        example.context.feature[key].bytes_list.value.append(name.encode())
    example.context.feature["labels"].int64_list.value.extend(labels)
    for list_name, frames in lists.items():
        there = example.feature_lists.feature_list[list_name].feature
        for frame in frames:
            strings = [frame.tobytes()] if isinstance(frame, np.ndarray) else frame
            there.add().bytes_list.value.extend(strings)
    return bytes(example.SerializeToString())


def write_features(path: Path, *records: bytes) -> Path:
    """A file of ``records``."""
    write_records(path, records)
    return path
