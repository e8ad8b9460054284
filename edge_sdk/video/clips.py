"""Calibration clips: short runs of consecutive frames drawn from a user's own videos, as PNGs with their SHA-256.

    OUT/clips.json           what was drawn from where, with the hash of every frame and of the whole set
    OUT/clip_000/000000.png  the first frame of the first clip, and so on

A clip is as long as a keyframe period, so that running the pair over it meets every distance from the keyframe. Of
labelled clips, for a network that classifies them, each gives one: its frames spread evenly, as in training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

import edge_sdk
from edge_sdk.errors import (
    ChecksumError,
    FileFormatError,
    MissingFileError,
    OutputError,
    RecipeError,
    ShapeError,
    VideoError,
)
from edge_sdk.files import atomic_folder, require_file, sha256_of
from edge_sdk.progress import Progress
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.video.base import VideoSource
from edge_sdk.video.labelled import open_clips
from edge_sdk.video.native import opencv, require_image
from edge_sdk.video.source import open_source

CLIPS_JSON = "clips.json"

Positive = Annotated[int, Field(gt=0)]


class CalibrationClipsRecipe(Settings):
    """Which clips are drawn from which videos.

    Args:
        out: folder to make; it must not exist or be empty.
        sources: URIs of recorded sources, see :func:`edge_sdk.video.open_source`; each gives the same number of clips,
            or one more. Give them or ``labelled``.
        labelled: URIs of lists of labelled clips, see :func:`edge_sdk.video.labelled.open_clips`; ``clips`` of them are
            taken, evenly chosen in the order of the lists, so that all classes occur.
        clips: how many in all, at least 2 and at least one a source.
        frames: frames a clip; of ``sources`` consecutive ones, the keyframe interval K, so that every distance from the
            keyframe occurs; of ``labelled`` clips spread evenly over each.
        size_hw: height and width that frames are brought to, by a central cut to that shape and then resizing; None
            keeps them, and all sources must then have one size.
        seed: of the places that clips begin at.
    """

    out: Path
    sources: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    labelled: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    clips: int = Field(default=32, ge=2)
    frames: int = Field(default=10, ge=2)
    size_hw: tuple[Positive, Positive] | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _every_source_gives_some(self) -> CalibrationClipsRecipe:
        if bool(self.sources) == bool(self.labelled):
            raise ValueError("expected either 'sources' or 'labelled', not both and not neither")
        if len(set(self.sources)) != len(self.sources):
            raise ValueError("expected each source once in 'sources'")
        if self.clips < len(self.sources):
            raise ValueError(f"'clips' {self.clips} is below the number of sources {len(self.sources)}")
        return self


class ClipFrame(Settings):
    """One frame: its index in the source, and the hex SHA-256 of its PNG."""

    index: int
    sha256: str


class ClipRecord(Settings):
    """One clip: its folder, and the frames of a source that it holds."""

    folder: str
    source: str
    frames: tuple[ClipFrame, ...]

    def files(self) -> Iterator[tuple[str, str]]:
        """Path relative to the set, and SHA-256, of each frame."""
        for number, frame in enumerate(self.frames):
            yield f"{self.folder}/{number:06d}.png", frame.sha256


class CalibrationClips(Settings):
    """What ``clips.json`` holds.

    Args:
        created: ISO 8601 time, UTC.
        size_hw: height and width of every frame.
        frame_count: frames in all.
        sha256: of the lines ``PATH SHA256`` of all frames, in order: the identity of the set.
        recipe: what it was drawn by.
    """

    format: Literal[1] = 1
    created: str
    sdk_version: str
    size_hw: tuple[int, int]
    frame_count: int
    sha256: str
    recipe: CalibrationClipsRecipe
    clips: tuple[ClipRecord, ...]

    @classmethod
    def load(cls, folder: str | Path) -> CalibrationClips:
        """Read a set and check every frame's SHA-256.

        Raises:
            MissingFileError: ``clips.json`` or a frame is not there.
            FileFormatError: ``clips.json`` cannot be read.
            ChecksumError: a frame, or the list of frames, is not what was drawn.
        """
        root = Path(folder)
        again = "Draw the clips again with: python calibration/draw_clips.py RECIPE"
        file = require_file(root / CLIPS_JSON, "calibration clips", hint=again)
        try:
            found = parse_settings(json.loads(file.read_text(encoding="utf-8")), cls, str(file))
        except ValueError as error:  # bad JSON, bad UTF-8 and bad values alike
            raise FileFormatError(
                f"{file}: not readable as calibration clips: {error}.", hint=again
            ) from error
        if set_hash(found.clips) != found.sha256:
            raise ChecksumError(f"{file}: its frames are not those that its SHA-256 was made of.", hint=again)
        for name, digest in (pair for clip in found.clips for pair in clip.files()):
            if not (root / name).is_file():
                raise MissingFileError(
                    f"calibration clips {root}: the frame '{name}' is missing.", hint=again
                )
            if sha256_of(root / name) != digest:
                raise ChecksumError(f"calibration clips {root}: the frame '{name}' was changed.", hint=again)
        return found


@dataclass(frozen=True)
class _Plan:
    """The frames of each clip of one source: ascending, and none in two clips."""

    source: str
    clips: tuple[tuple[int, ...], ...]


def set_hash(clips: Sequence[ClipRecord]) -> str:
    """Hex SHA-256 that names a set by its frames."""
    lines = "".join(f"{name} {digest}\n" for clip in clips for name, digest in clip.files())
    return hashlib.sha256(lines.encode()).hexdigest()


def draw_clips(recipe: CalibrationClipsRecipe, *, progress: Progress | None = None) -> CalibrationClips:
    """Draw the clips of a recipe; the folder appears when it is whole.

    Within a source the clips are spread evenly: it is cut into as many equal parts as it gives clips, and one clip
    lies at a random place in each, so that no frame is drawn twice. Labelled clips are taken as they are.

    Raises:
        OutputError: the folder holds something, or cannot be written.
        RecipeError: a source is live, endless or shorter than its clips, or the lists hold fewer clips.
        ShapeError: frames of different sizes and no ``size_hw``.
        VideoError: a source cannot be decoded or ends early.
    """
    if recipe.out.exists() and (not recipe.out.is_dir() or any(recipe.out.iterdir())):
        raise OutputError(
            f"'out': expected a new or empty folder, {recipe.out} holds something.",
            hint="Name another folder, or remove this one.",
        )
    plans = _plan_labelled(recipe) if recipe.labelled else _plan(recipe)
    size_hw = recipe.size_hw or _common_size([plan.source for plan in plans])
    records: list[ClipRecord] = []
    with atomic_folder(recipe.out) as folder:
        for plan in plans:
            with closing(_clips_of(plan)) as clips:
                for indices, images in clips:
                    name = f"clip_{len(records):03d}"
                    frames = _write(folder / name, indices, [_fitted(image, size_hw) for image in images])
                    records.append(ClipRecord(folder=name, source=plan.source, frames=frames))
                    if progress is not None:
                        progress.update("draw clips", len(records), recipe.clips)
        found = CalibrationClips(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            sdk_version=edge_sdk.__version__,
            size_hw=size_hw,
            frame_count=sum(len(record.frames) for record in records),
            sha256=set_hash(records),
            recipe=recipe,
            clips=tuple(records),
        )
        (folder / CLIPS_JSON).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return found


def read_clip(folder: Path, clip: ClipRecord) -> Iterator[np.ndarray]:
    """The images of a clip of the set in ``folder``, each (H, W, 3) uint8 BGR, one in memory at a time.

    Raises:
        MissingFileError: a frame is not there.
        VideoError: a frame cannot be decoded.
    """
    cv2: Any = opencv("reading images")
    for name, _ in clip.files():
        file = require_file(folder / name, "calibration clips")
        image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        require_image(image, str(file))
        yield image


def _plan(recipe: CalibrationClipsRecipe) -> list[_Plan]:
    """Where each source's clips begin; all sources are checked before the first frame is drawn."""
    generator = np.random.default_rng(recipe.seed)
    least, more = divmod(recipe.clips, len(recipe.sources))
    plans = []
    for position, uri in enumerate(recipe.sources):
        count = least + (position < more)
        with open_source(uri) as source:
            length = _length(source)
        if length < count * recipe.frames:
            raise RecipeError(
                f"'sources': {uri} has {length} frames to draw from, {count} clips of {recipe.frames} need "
                f"{count * recipe.frames}.",
                hint="Lower 'clips' or 'frames', or name longer sources.",
            )
        edges = [length * part // count for part in range(count + 1)]
        latest = [stop - recipe.frames for stop in edges[1:]]
        starts = [int(generator.integers(a, b + 1)) for a, b in zip(edges[:-1], latest, strict=True)]
        plans.append(_Plan(uri, tuple(tuple(range(s, s + recipe.frames)) for s in starts)))
    return plans


def _plan_labelled(recipe: CalibrationClipsRecipe) -> list[_Plan]:
    """One clip of each of the labelled clips that are taken."""
    there = [clip for uri in recipe.labelled for clip in open_clips(uri)]
    if len(there) < recipe.clips:
        raise RecipeError(
            f"'labelled': the lists hold {len(there)} clips, 'clips' asks for {recipe.clips}.",
            hint=f"Lower 'clips' to at most {len(there)}.",
        )
    plans = []
    for index in range(recipe.clips):
        clip = there[index * len(there) // recipe.clips]
        with clip.open() as source:
            length = _length(source)
        if length < recipe.frames:
            raise RecipeError(
                f"'labelled': clip {clip.name} has {length} frames, 'frames' asks for {recipe.frames}.",
                hint="Lower 'frames', or leave the clip out.",
            )
        places = tuple(place * length // recipe.frames for place in range(recipe.frames))
        plans.append(_Plan(clip.uri, (places,)))
    return plans


def _length(source: VideoSource) -> int:
    """Frames that are surely there."""
    if source.live:
        raise RecipeError(
            f"'sources': expected recorded frames, {source.uri} is live.",
            hint="Record it first, such as with: edge-sdk run BUNDLE camera:0 --out frames/",
        )
    if source.frame_count is not None:
        # A container may announce a few frames that it does not hold.
        return max(source.frame_count - getattr(source, "missing", 0), 0)
    raise RecipeError(
        f"'sources': {source.uri} does not tell how many frames it has.",
        hint="Give a synthetic scene ?frames=N; re-encode a video to .mp4.",
    )


def _common_size(sources: Iterable[str]) -> tuple[int, int]:
    sizes: dict[tuple[int, int], str] = {}
    for uri in sources:
        with open_source(uri) as source:
            sizes.setdefault((int(source.size_hw[0]), int(source.size_hw[1])), uri)
    if len(sizes) > 1:
        listed = ", ".join(f"{height} x {width} in {uri}" for (height, width), uri in sizes.items())
        raise ShapeError(
            f"'sources': expected frames of one size (height x width), got {listed}.",
            hint="Set 'size_hw' to the size that the bundle takes.",
        )
    return next(iter(sizes))


def _clips_of(plan: _Plan) -> Generator[tuple[tuple[int, ...], list[np.ndarray]], None, None]:
    """Each clip's indices in the source and its frames, in one pass over the source."""
    clips = list(plan.clips)
    images: list[np.ndarray] = []
    with open_source(plan.source, limit=clips[-1][-1] + 1) as source:
        for index, frame in enumerate(source):
            if index == clips[0][len(images)]:
                images.append(frame.image)
            if len(images) == len(clips[0]):
                yield clips.pop(0), images
                images = []
                if not clips:
                    return
    raise VideoError(
        f"{plan.source}: it ended before frame {clips[0][-1]}, which was to be drawn.",
        hint="Re-encode the video, or say how many announced frames it lacks with ?missing=N.",
    )


def _fitted(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """``image`` (H, W, 3) uint8 cut centrally to the shape of ``size_hw`` and resized to it."""
    height, width = image.shape[:2]
    if (height, width) == size_hw:
        return image
    cv2: Any = opencv("resizing frames")
    scale = min(height / size_hw[0], width / size_hw[1])
    cut_h, cut_w = min(round(size_hw[0] * scale), height), min(round(size_hw[1] * scale), width)
    top, left = (height - cut_h) // 2, (width - cut_w) // 2
    cut = image[top : top + cut_h, left : left + cut_w]
    how = cv2.INTER_AREA if scale >= 1 else cv2.INTER_LINEAR
    return cv2.resize(cut, (size_hw[1], size_hw[0]), interpolation=how)


def _write(folder: Path, indices: Sequence[int], images: Sequence[np.ndarray]) -> tuple[ClipFrame, ...]:
    cv2: Any = opencv("writing images")
    folder.mkdir()
    frames = []
    for number, (index, image) in enumerate(zip(indices, images, strict=True)):
        good, data = cv2.imencode(".png", image)
        if not good:
            raise VideoError(f"{folder.name}: frame {number} cannot be encoded as PNG.")
        content = data.tobytes()
        (folder / f"{number:06d}.png").write_bytes(content)
        frames.append(ClipFrame(index=index, sha256=hashlib.sha256(content).hexdigest()))
    return tuple(frames)
