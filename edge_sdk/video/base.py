"""What all sources share: which frames are wanted, and one life from opening to ``close()``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, TypeVar

from edge_sdk.errors import ClosedError, RecipeError, VideoError
from edge_sdk.video.frame import Frame

MAX_FPS = 1000.0


def is_rate(fps: float) -> bool:
    """Whether ``fps`` can be a frame rate; containers that know none report 0, NaN or their time base."""
    return math.isfinite(fps) and 0.01 <= fps < MAX_FPS


class VideoSource(Protocol):
    """A stream of frames of one size. Files, folders and scenes start anew at each ``iter()``; a camera goes
    on.

    ``fps`` is the rate of the frames delivered (the stream's own rate divided by ``stride``);
    ``frame_count`` is how many will be delivered, ``None`` where that is unknown or endless.
    """

    uri: str
    size_hw: tuple[int, int]
    fps: float
    live: bool
    frame_count: int | None

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:
        """Release the device or file; idempotent. Iterating further raises :class:`ClosedError`."""

    def __enter__(self) -> VideoSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames of a stream are wanted: from ``start``, every ``stride``-th, at most ``limit`` of them.

    Raises:
        RecipeError: a value is not an integer or out of range.
    """

    start: int = 0
    limit: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        for name, value, least in (
            ("start", self.start, 0),
            ("limit", self.limit, 1),
            ("stride", self.stride, 1),
        ):
            if name == "limit" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise RecipeError(f"`{name}`: expected an integer of at least {least}, got {value!r}.")

    def indices(self, available: int | None) -> Iterable[int]:
        """Indices into the stream, ascending; ``available`` is the stream's length where it is known."""
        if available is not None:
            return range(self.start, available, self.stride)[: self.limit]
        return itertools.islice(itertools.count(self.start, self.stride), self.limit)

    def count(self, available: int | None) -> int | None:
        """How many frames :meth:`indices` names; ``None`` where the stream's length is unknown."""
        return None if available is None else len(range(self.start, available, self.stride)[: self.limit])

    def within(self, start: int, limit: int | None) -> Selection:
        """The same frames of the part of a stream that begins at ``start`` and has at most ``limit`` frames.

        Raises:
            RecipeError: the part ends before the first of them.
        """
        if limit is None:
            return replace(self, start=start + self.start)
        left = -(-(limit - self.start) // self.stride)
        if left < 1:
            raise RecipeError(f"`start`: expected less than the part's {limit} frames, got {self.start}.")
        wanted = left if self.limit is None else min(left, self.limit)
        return Selection(start + self.start, wanted, self.stride)

    def require_any(self, available: int, uri: str) -> None:
        """Raise :class:`VideoError` where a stream of ``available`` frames has none of those wanted."""
        if available <= self.start:
            raise VideoError(
                f"{uri}: no frames to deliver, it has {available} and `start` is {self.start}.",
                hint="Lower `start` or name another source.",
            )


S = TypeVar("S", bound="SourceBase")


class SourceBase:
    """Context management and the closed check; a source adds ``_frames`` and, where it holds a handle,
    ``_release``."""

    live = False

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.size_hw: tuple[int, int] = (0, 0)
        self.fps: float = 0.0
        self.frame_count: int | None = None
        self._closed = False

    def __iter__(self) -> Iterator[Frame]:
        self._require_open()
        return self._frames()

    def __enter__(self: S) -> S:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release what the source holds; idempotent."""
        if not self._closed:
            self._closed = True
            self._release()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.uri}: the source is closed.", hint="Open it again with open_source().")

    def _frames(self) -> Iterator[Frame]:
        raise NotImplementedError

    def _release(self) -> None:
        """Nothing is held unless a source says so."""
