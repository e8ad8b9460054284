"""How a student that learned on its stream is judged: against the teacher, on every frame (JITNet's protocol)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import Field

from edge_sdk.errors import FileFormatError, RecipeError, ShapeError
from edge_sdk.files import atomic_file, require_file
from edge_sdk.settings import Settings
from edge_sdk.tasks import Segmentation, TaskSpec
from edge_sdk.tasks.segmentation import ConfusionScore

# Of masks that are kept: they shrink to a hundredth in a millisecond, and the lowest level is nearly as good as any.
_LEVEL = 1


class ScoreFigures(Settings):
    """Intersection over union with the teacher's masks, added up over a stream, 0 to 1.

    Args:
        frames: how many were counted.
        mean: over the classes that occur in either, without class 0 unless it was asked for; None where there is none.
        classes: by name, of every class that occurs, class 0 included.
    """

    frames: int = Field(ge=0)
    mean: float | None
    classes: dict[str, float]


class OnlineScore:
    """Adds up true and false positives and false negatives a class over all frames of a stream, as published.

    A class that neither the student nor the teacher has anywhere does not count. Pixels that the teacher's mask marks
    as ignored count nowhere.

    Args:
        task: names the classes.
        background: whether class 0 counts in the mean.
    """

    def __init__(self, task: TaskSpec, *, background: bool = False) -> None:
        self._score = ConfusionScore(task)
        self._first = 0 if background else 1
        self._frames = 0

    def add(self, mask: np.ndarray, teacher: np.ndarray) -> None:
        """Count one frame.

        Args:
            mask: (H, W) uint8, the answer.
            teacher: (H, W) uint8, class ids or the ignored label.

        Raises:
            ShapeError: the two differ in shape or are not uint8.
            FileFormatError: the teacher's mask holds an id that is neither a class nor the ignored label.
        """
        self._score.update(Segmentation(mask), Segmentation(teacher))
        self._frames += 1

    def figures(self) -> ScoreFigures:
        """What was counted."""
        found = self._score.compute()
        names = self._score.spec.classes
        classes = {name: found[f"iou/{name}"] for name in names if f"iou/{name}" in found}
        counted = [classes[name] for name in names[self._first :] if name in classes]
        mean = float(np.mean(counted)) if counted else None
        return ScoreFigures(frames=self._frames, mean=mean, classes=classes)


class Parts:
    """The parts that a stream is joined of, such as clips.

    Args:
        frames: of the stream.
        starts: frames at which they begin, by name, rising from 0; empty for a stream of one piece.

    Raises:
        RecipeError: they do not.
    """

    def __init__(self, frames: int, starts: Mapping[str, int] | None = None) -> None:
        self.starts = dict(starts or {})
        at = list(self.starts.values())
        if at and (at[0] != 0 or any(a >= b for a, b in pairwise([*at, frames]))):
            raise RecipeError(f"parts: expected rising beginnings from 0 below {frames}, got {at}.")
        self._of = [
            name
            for name, (a, b) in zip(self.starts, pairwise([*at, frames]), strict=True)
            for _ in range(a, b)
        ]

    def of(self, index: int) -> str | None:
        """Name of the part that frame ``index`` is in; None where there are none."""
        return self._of[index] if self._of else None


class PartScores:
    """Scores of a stream as a whole and of each of its parts.

    Args:
        task: names the classes.
        background: whether class 0 counts in the mean.
        parts: of the stream.
    """

    def __init__(self, task: TaskSpec, parts: Parts, *, background: bool = False) -> None:
        self._whole = OnlineScore(task, background=background)
        self._parts = {name: OnlineScore(task, background=background) for name in parts.starts}
        self._of = parts.of

    def add(self, index: int, mask: np.ndarray, teacher: np.ndarray) -> None:
        """Count frame ``index``; arguments and errors are those of :meth:`OnlineScore.add`."""
        self._whole.add(mask, teacher)
        if (part := self._of(index)) is not None:
            self._parts[part].add(mask, teacher)

    def figures(self) -> ScoreFigures:
        """Of the whole."""
        return self._whole.figures()

    def parts(self) -> dict[str, ScoreFigures]:
        """Of each part, by name."""
        return {name: score.figures() for name, score in self._parts.items()}


class PackedMasks(Sequence[np.ndarray]):
    """Masks of one size, kept compressed: those of a long stream fit into memory."""

    def __init__(self, masks: Iterable[np.ndarray] = ()) -> None:
        self._shape = (0, 0)  # until there is one
        self._packed: list[bytes] = []
        for mask in masks:
            self.append(mask)

    def append(self, mask: np.ndarray) -> None:
        """Keep a copy of ``mask``, (H, W) uint8.

        Raises:
            ShapeError: it is not of the size of those before, or not uint8.
        """
        expected = self._shape if self._packed else mask.shape
        if mask.ndim != 2 or mask.dtype != np.uint8 or mask.shape != expected:
            wanted = self._shape if self._packed else "(H, W)"
            raise ShapeError(f"mask: expected {wanted} uint8, got {mask.shape} {mask.dtype}.")
        self._shape = (mask.shape[0], mask.shape[1])
        self._packed.append(zlib.compress(mask.tobytes(), _LEVEL))

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # one mask, or a list for a slice
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        packed = self._packed[index]
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(self._shape)

    def save(self, path: str | Path) -> None:
        """Write them as one ``.npz``, whole or not at all."""
        sizes = np.array([len(packed) for packed in self._packed], np.int64)
        data = np.frombuffer(b"".join(self._packed), np.uint8)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, shape=np.array(self._shape, np.int64), sizes=sizes, data=data)

    @classmethod
    def load(cls, path: str | Path) -> PackedMasks:
        """Read what :meth:`save` wrote.

        Raises:
            MissingFileError: no file there.
            FileFormatError: it holds no masks.
        """
        file = require_file(path, "masks")
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
                height, width = (int(value) for value in found["shape"])
                sizes, data = found["sizes"].tolist(), found["data"].tobytes()
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, BadZipFile) as error:
            raise FileFormatError(f"{file}: not a file of masks ({error}).") from error
        masks = cls()
        ends = np.cumsum([0, *sizes]).tolist()
        if ends[-1] != len(data):
            raise FileFormatError(f"{file}: not a file of masks (its sizes do not add up).")
        masks._packed = [data[begin:end] for begin, end in pairwise(ends)]
        masks._shape = (height, width)
        return masks


@dataclass(frozen=True, slots=True)
class Keyframes:
    """Which frames of a stream the teacher answers.

    Args:
        frames: in the stream.
        at: their indices, rising, the first of them 0.

    Raises:
        RecipeError: they are not.
    """

    frames: int
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.at))
        if not self.at or self.at[0] != 0 or not rising or self.at[-1] >= self.frames:
            raise RecipeError(
                f"teacher frames: expected rising indices from 0 below {self.frames}, got {self.at}."
            )

    @classmethod
    def spread(cls, frames: int, count: int) -> Keyframes:
        """``count`` teacher frames as evenly over ``frames`` as whole numbers allow: the same share, no whole interval.

        Raises:
            RecipeError: count is not 1 to ``frames``.
        """
        if not 1 <= count <= frames:
            raise RecipeError(f"teacher frames: expected 1 to {frames}, got {count}.")
        return cls(frames, tuple(place * frames // count for place in range(count)))

    @property
    def share(self) -> float:
        """Part of the frames that the teacher answers, 0 to 1."""
        return len(self.at) / self.frames

    def rests_on(self) -> Iterator[int]:
        """Per frame, the teacher frame at or before it."""
        for begin, end in zip(self.at, (*self.at[1:], self.frames), strict=True):
            for _ in range(begin, end):
                yield begin
