"""What the tests of calibration record: clips whose every frame is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_sdk.compile import CalibrateRecipe
from edge_sdk.settings import parse_settings
from edge_sdk.video.clips import CalibrationClips, CalibrationClipsRecipe, draw_clips, set_hash

SIZE = (32, 48)
CLIPS, FRAMES = 3, 5


def scene(seed: int = 1) -> str:
    return f"synthetic:shapes?height=32&width=48&frames=60&seed={seed}"


def smooth(index: int, size_hw: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture without noise that moves with ``index``; all channels differ."""
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    waves = [np.sin((rows + columns * channel + 3 * index) / 7) for channel in (1, 2, 3)]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


def make_clips(folder: Path, clips: list[list[np.ndarray]]) -> Path:
    """A folder of clips with these very frames, hashed as drawn ones are."""
    drawn = draw_clips(
        parse_settings(
            {"out": folder, "sources": [scene()], "clips": 2, "frames": 2}, CalibrationClipsRecipe, ""
        )
    )
    records: list[dict[str, Any]] = []
    for number, images in enumerate(clips):
        frames = []
        for index, image in enumerate(images):
            file = folder / f"clip_{number:03d}" / f"{index:06d}.png"
            file.parent.mkdir(exist_ok=True)
            assert cv2.imwrite(str(file), image)
            frames.append({"index": index, "sha256": sha256(file)})
        records.append({"folder": f"clip_{number:03d}", "source": "made", "frames": frames})
    data = {**drawn.model_dump(mode="json"), "clips": records, "frame_count": sum(map(len, clips))}
    if clips and clips[0]:
        data["size_hw"] = clips[0][0].shape[:2]
    data["sha256"] = set_hash(parse_settings(data, CalibrationClips, "").clips)
    (folder / "clips.json").write_text(json.dumps(data))
    return folder


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def moving(clips: int = CLIPS, frames: int = FRAMES) -> list[list[np.ndarray]]:
    return [[smooth(10 * clip + frame) for frame in range(frames)] for clip in range(clips)]


def recipe(tmp_path: Path, **values: object) -> CalibrateRecipe:
    data = {"bundle": tmp_path / "bundle", "clips": tmp_path / "clips", "out": tmp_path / "set.npz", **values}
    return parse_settings({k: v for k, v in data.items() if v is not None}, CalibrateRecipe, "recipe")
