"""The two streams and their bundles: made from data/ and the recipes beside this file, and kept under runs/online."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2

from edge_sdk.bundle import Bundle
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.distill import TrainRecipe
from edge_sdk.distill.online import OnlineRecipe
from edge_sdk.files import atomic_folder, sha256_of, write_text
from edge_sdk.progress import Progress
from edge_sdk.settings import load_recipe

HERE = Path(__file__).parent
RUNS = Path("runs/online")
DAVIS, CAMERA = Path("data/davis"), Path("data/videos/car-detection.mp4")
CAMERA_LOOPS = 3
# Frames of each stream, to try the benchmark out; None for all.
LIMIT = int(os.environ["ONLINE_LIMIT"]) if os.environ.get("ONLINE_LIMIT") else None
# What a student that exchanges open layers alone may learn: all after the encoder.
OPEN = ("dec*", "head.*", "logits.*")


@dataclass(frozen=True)
class Stream:
    """One stream: its source, the frame at which each of its parts begins, and frames in all."""

    uri: str
    folder: Path
    parts: dict[str, int]


def recipe_of(name: str) -> ExportRecipe:
    """The export recipe of a bundle: ``davis``, ``camera``, and the camera's with another join, open layers, or the
    student normalised as published."""
    base = load_recipe(HERE / f"{name.split('_')[0]}.yaml", ExportRecipe)
    changes = {"camera_correct": {"join": "correct"}, "camera_open": {"open": OPEN}}.get(name, {})
    online = online_of(base).model_copy(update=changes)
    if name == "camera_published":
        student = online.student
        weights = load_recipe(HERE / "pretrain_frame.yaml", TrainRecipe).out / "model.pt"
        found = {"arguments": student.arguments | {"norm": "frame"}, "checkpoint": weights}
        online = online.model_copy(update={"student": student.model_copy(update=found)})
    return base.model_copy(update={"online": online, "out": RUNS / f"{name}_bundle"})


def online_of(recipe: ExportRecipe) -> OnlineRecipe:
    """Its teacher and student."""
    if recipe.online is None:
        raise SystemExit(f"{recipe.out}: the recipe has no 'online'")
    return recipe.online


def bundle(name: str, progress: Progress) -> Bundle:
    """The bundle, exported anew where its recipe or a checkpoint has changed."""
    recipe = recipe_of(name)
    key_file, key = recipe.out.with_suffix(".key"), _key(recipe)
    if recipe.out.is_dir() and key_file.is_file() and key_file.read_text() == key:
        return Bundle.open(recipe.out)
    shutil.rmtree(recipe.out, ignore_errors=True)
    made = export(recipe, progress=progress)
    write_text(key_file, key)
    return made


def _key(recipe: ExportRecipe) -> str:
    online = online_of(recipe)
    modules = [online.student, *([online.teacher] if online.teacher is not None else [])]
    weights = [sha256_of(module.checkpoint) for module in modules if module.checkpoint is not None]
    return hashlib.sha256("\n".join([recipe.model_dump_json(), *weights]).encode()).hexdigest()


def davis(size_hw: tuple[int, int]) -> Stream:
    """The ten clips one after another at ``size_hw``, class ids 0 and 1."""
    clips = sorted(path for path in DAVIS.iterdir() if path.is_dir())
    parts, count = {}, 0
    for clip in clips:
        parts[clip.name] = count
        count += len(list((clip / "images").glob("*.jpg")))
    folder = RUNS / f"davis_{size_hw[0]}x{size_hw[1]}"
    if not folder.is_dir():
        with atomic_folder(folder) as made:
            images, labels = made / "images", made / "labels"
            images.mkdir()
            labels.mkdir()
            number = 0
            for clip in clips:
                for path in sorted((clip / "images").glob("*.jpg")):
                    mask = cv2.imread(str(clip / "labels" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
                    _write(images, number, cv2.imread(str(path)), size_hw, cv2.INTER_AREA)
                    _write(labels, number, (mask > 0).astype("uint8"), size_hw, cv2.INTER_NEAREST)
                    number += 1
    return Stream(f"{folder}?fps=24", folder, _within(parts))


def camera(size_hw: tuple[int, int]) -> Stream:
    """The camera's video at ``size_hw``, three times."""
    folder = RUNS / f"camera_{size_hw[0]}x{size_hw[1]}"
    if not folder.is_dir():
        video = cv2.VideoCapture(str(CAMERA))
        with atomic_folder(folder) as made:
            (made / "images").mkdir()
            number = 0
            while (found := video.read())[0]:
                _write(made / "images", number, found[1], size_hw, cv2.INTER_AREA)
                number += 1
    frames = len(list((folder / "images").iterdir()))
    parts = {f"round {index + 1}": index * frames for index in range(CAMERA_LOOPS)}
    return Stream(f"{folder}?fps=12.5&loop={CAMERA_LOOPS}", folder, _within(parts))


def _within(parts: dict[str, int]) -> dict[str, int]:
    return {name: begin for name, begin in parts.items() if LIMIT is None or begin < LIMIT}


def stream(name: str) -> Stream:
    """The stream of a bundle."""
    size_hw = recipe_of(name).frame_hw
    return davis(size_hw) if name == "davis" else camera(size_hw)


def _write(folder: Path, number: int, image: cv2.typing.MatLike, size_hw: tuple[int, int], how: int) -> None:
    if image.shape[:2] != size_hw:
        image = cv2.resize(image, size_hw[::-1], interpolation=how)
    if not cv2.imwrite(str(folder / f"{number:05d}.png"), image):
        raise SystemExit(f"{folder}: cannot be written")
