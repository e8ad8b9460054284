"""Lists of labelled clips: class folders, a CSV file, or generated motions."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode

from pydantic import Field

from edge_sdk.errors import FileFormatError, MissingFileError, RecipeError, VideoError
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.video.base import MAX_FPS, SourceBase, VideoSource
from edge_sdk.video.folder import IMAGE_SUFFIXES, natural_key
from edge_sdk.video.frame import Frame, Truth
from edge_sdk.video.motions import MOTION_CLASSES, MotionSettings
from edge_sdk.video.source import open_source
from edge_sdk.video.uri import SourceUri, parse_source_uri

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")
FEATURE_SUFFIXES = (".tfrecord", ".tfrecords")
_HEADER = ["path", "labels"]
_LAYOUTS = "ROOT/CLASS/clip.mp4 or ROOT/CLASS/clip/000.png"


class _PathQuery(Settings):
    fps: float | None = Field(default=None, gt=0, le=MAX_FPS, allow_inf_nan=False)


class _MotionsQuery(Settings):
    clips: int = Field(ge=1, le=1_000_000)


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """One clip of a list; nothing is open until :meth:`open`.

    Attributes:
        name: unlike that of every other clip of its list.
        labels: names of its classes; none where a clip of several classes at once shows none of them.
        uri: the clip as a source.
    """

    name: str
    labels: tuple[str, ...]
    uri: str

    def open(self, *, start: int = 0, limit: int | None = None, stride: int = 1) -> VideoSource:
        """The clip as a source whose frames say its labels (``frame.truth.labels``).

        Args:
            start, limit, stride: as of :func:`edge_sdk.video.open_source`.

        Raises:
            MissingFileError: it is no longer there.
            VideoError: it cannot be opened or decoded, or has no frames to deliver.
        """
        return LabelledSource(open_source(self.uri, start=start, limit=limit, stride=stride), self.labels)


class LabelledSource(SourceBase):
    """A recorded source whose frames get the labels of their clip; :meth:`close` closes it.

    Args:
        source: where frames come from.
        labels: names of the clip's classes.
    """

    def __init__(self, source: VideoSource, labels: tuple[str, ...]) -> None:
        super().__init__(source.uri)
        self.source, self.labels = source, labels
        self.size_hw, self.fps, self.frame_count = source.size_hw, source.fps, source.frame_count

    def _frames(self) -> Iterator[Frame]:
        for frame in self.source:
            yield replace(frame, truth=replace(frame.truth or Truth(), labels=self.labels))
            self._require_open()

    def _release(self) -> None:
        self.source.close()


@dataclass(frozen=True)
class ClipList:
    """Labelled clips, in a fixed order.

    Attributes:
        uri: what they were named by.
        clips: at least one.
    """

    uri: str
    clips: tuple[LabelledClip, ...]

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[LabelledClip]:
        return iter(self.clips)

    def __getitem__(self, index: int) -> LabelledClip:
        return self.clips[index]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that occur, each once, in order of name."""
        return tuple(sorted({label for clip in self.clips for label in clip.labels}))


def open_clips(uri: str | Path) -> ClipList:
    """The labelled clips that ``uri`` names. Files are looked up, none is opened yet.

    - ``clips/``: a folder of class folders. A clip is a video file, or a folder of images as
      :func:`edge_sdk.video.open_source` takes it: ``clips/CLASS/clip.mp4`` or ``clips/CLASS/clip/000.png``. Its one
      label is the name of its class folder. Order is natural (``clip_2`` before ``clip_10``); hidden and other files
      are passed over.
    - ``clips.csv``: with the header ``path,labels``. Labels are separated by ``;``, and a clip of no class has none. A
      path is relative to the CSV file and may not lead out of its folder, so that a data set is whole where its folder
      is; what lies elsewhere is named by its absolute path.
    - ``synthetic:motions?clips=N&seed=S``: N generated clips of the seeds S, S + 1, ..., so that classes go round.
      Other options are those of :class:`~edge_sdk.video.motions.MotionSettings`.

    ``?fps=15`` sets the rate of all clips of a folder or CSV file.

    Raises:
        MissingFileError: no such folder or file, or the CSV file names one that is not there.
        FileFormatError: the CSV file is not readable, or a row of it is wrong; the row is named.
        RecipeError: not a list of clips, or a query key or value that it does not have.
        VideoError: a folder without clips.

    Example:
        >>> clips = open_clips("synthetic:motions?clips=3&height=32&width=32")
        >>> [(clip.name, clip.labels) for clip in clips]
        [('left/0', ('left',)), ('right/1', ('right',)), ('up/2', ('up',))]
    """
    parsed = parse_source_uri(str(uri))
    if parsed.scheme == "synthetic":
        return _motions(parsed)
    if parsed.scheme != "path":
        raise RecipeError(
            f"clips {parsed.text}: expected a folder of class folders, a CSV file or synthetic:motions?clips=N, "
            f"got a source of kind {parsed.scheme}."
        )
    path = Path(parsed.target)
    suffix = path.suffix.lower()
    if suffix in FEATURE_SUFFIXES:
        raise RecipeError(
            f"clips {parsed.text}: TFRecord files hold features and no frames.",
            hint="Train on them with a network whose encoder is 'features'.",
        )
    query = parse_settings(parsed.query, _PathQuery, f"clips {parsed.text}")
    if path.is_dir():
        return ClipList(parsed.text, tuple(_of_folder(path, query.fps)))
    if not path.exists():
        raise MissingFileError(
            f"clips: expected a folder of class folders or a CSV file at {path}, found none.",
            hint="Check the path.",
        )
    if suffix != ".csv":
        raise RecipeError(
            f"clips {parsed.text}: expected a folder of class folders or a .csv file, got a file '{path.name}'.",
            hint=f"Lay clips out as {_LAYOUTS}, or list them in a CSV file with the header path,labels.",
        )
    return ClipList(parsed.text, tuple(_of_table(path, query.fps)))


def _motions(parsed: SourceUri) -> ClipList:
    where = f"clips {parsed.text}"
    if parsed.target != "motions":
        raise RecipeError(
            f"{where}: scene '{parsed.target}' has no labelled clips, expected synthetic:motions."
        )
    given: dict[str, str] = dict(parsed.query)
    count = parse_settings(
        {key: given.pop(key) for key in ("clips",) if key in given}, _MotionsQuery, where
    ).clips
    first = parse_settings(given, MotionSettings, where)
    # Checks the last seed, too.
    parse_settings({**given, "seed": first.seed + count - 1}, MotionSettings, where)
    if first.motion is not None and first.motion not in MOTION_CLASSES:
        raise RecipeError(
            f"{where}: expected motion to be one of {', '.join(MOTION_CLASSES)}, got '{first.motion}'."
        )
    clips = []
    for seed in range(first.seed, first.seed + count):
        motion = first.motion or MOTION_CLASSES[seed % len(MOTION_CLASSES)]
        query = urlencode({**given, "seed": seed})
        clips.append(LabelledClip(f"{motion}/{seed}", (motion,), f"synthetic:motions?{query}"))
    return ClipList(parsed.text, tuple(clips))


def _of_folder(root: Path, fps: float | None) -> Iterator[LabelledClip]:
    classes = sorted((path for path in root.iterdir() if _is_shown(path) and path.is_dir()), key=natural_key)
    if not classes:
        raise VideoError(f"{root}: expected class folders, found none.", hint=f"Lay clips out as {_LAYOUTS}.")
    for folder in classes:
        inside = sorted(filter(_is_shown, folder.iterdir()), key=natural_key)
        if any(path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in inside):
            raise VideoError(
                f"{folder}: expected clips in it, found single images.",
                hint=f"Lay clips out as {_LAYOUTS}; name the folder above the class folders.",
            )
        clips = [path for path in inside if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES]
        if not clips:
            raise VideoError(
                f"{folder}: expected clips (folders of images, or {' '.join(VIDEO_SUFFIXES)}), found none.",
                hint="Remove the class folder, or put clips into it.",
            )
        for path in clips:
            yield LabelledClip(f"{folder.name}/{path.name}", (folder.name,), _source_uri(path, fps))


def _is_shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _of_table(table: Path, fps: float | None) -> Iterator[LabelledClip]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [
                (reader.line_num, row) for reader in (csv.reader(file, strict=True),) for row in reader if row
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"clips {table}: not readable as CSV: {error}.") from error
    if not rows or [cell.strip() for cell in rows[0][1]] != _HEADER:
        got = ",".join(rows[0][1]) if rows else "nothing"
        raise FileFormatError(f"clips {table}: expected the header 'path,labels', got '{got}'.")
    if len(rows) == 1:
        raise FileFormatError(f"clips {table}: expected at least one clip, found none.")
    seen: dict[Path, int] = {}
    for line, row in rows[1:]:
        where = f"clips {table}, line {line}"
        if len(row) != len(_HEADER):
            raise FileFormatError(
                f"{where}: expected 2 cells, path and labels, got {len(row)}.",
                hint="Separate labels with ';', and put a path with a comma in double quotes.",
            )
        path = _inside(table.parent, row[0].strip(), where)
        if path in seen:
            raise FileFormatError(
                f"{where}: '{row[0].strip()}' is also in line {seen[path]}.",
                hint="Give a clip one line, with its labels separated by ';'.",
            )
        seen[path] = line
        yield LabelledClip(row[0].strip(), _labels(row[1], where), _source_uri(path, fps))


def _inside(folder: Path, text: str, where: str) -> Path:
    if not text:
        raise FileFormatError(f"{where}: expected a path, got none.")
    path = folder / text
    if ".." in Path(text).parts:
        raise FileFormatError(
            f"{where}: '{text}' leads out of the folder of the CSV file.",
            hint="Put the clip under that folder, or name it by its absolute path.",
        )
    if not path.exists():
        raise MissingFileError(
            f"{where}: expected a video file or a folder of images at {path}, found none.",
            hint="Paths are relative to the CSV file.",
        )
    return path


def _labels(cell: str, where: str) -> tuple[str, ...]:
    if not cell.strip():
        return ()
    labels = tuple(label.strip() for label in cell.split(";"))
    if not all(labels) or len(set(labels)) != len(labels):
        raise FileFormatError(
            f"{where}: expected labels that differ, separated by ';', got '{cell}'.",
            hint="Remove the empty or the repeated one.",
        )
    return labels


def _source_uri(path: Path, fps: float | None) -> str:
    # As a URI, because a name may hold what a URI gives a meaning to.
    uri = path.absolute().as_uri()
    return uri if fps is None else f"{uri}?fps={fps:g}"
