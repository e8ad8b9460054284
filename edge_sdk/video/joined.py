"""Several recorded sources one after another, once or several times, as one stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from edge_sdk.errors import RecipeError, VideoError
from edge_sdk.video.base import Selection, SourceBase, VideoSource
from edge_sdk.video.frame import Frame
from edge_sdk.video.labels import size_text

# Rates of files are ratios of small numbers, rounded differently by different containers.
_SAME_RATE = 1e-3


class JoinedSource(SourceBase):
    """Sources one after another as one stream: numbers and times of its frames run on over every seam.

    Nobody is told of the seams; that a stream changes there is what one joins clips for.

    Args:
        parts: opened sources of one size and rate, none of them live; :meth:`close` closes them.
        times: how often all of them are played.
        selection: which frames of the joined stream to deliver.
        uri: how messages name it.

    Raises:
        RecipeError: no parts, a live one, or ``times`` below 1.
        VideoError: parts of different sizes or rates, or no frames to deliver. While iterating: what a part raises.
    """

    def __init__(
        self, parts: Sequence[VideoSource], *, times: int = 1, selection: Selection | None = None, uri: str
    ) -> None:
        super().__init__(uri)
        if not parts or times < 1:
            raise RecipeError(
                f"{uri}: expected at least one source, once or more, got {len(parts)}, {times} times."
            )
        first = parts[0]
        for part in parts:
            if part.live:
                raise RecipeError(
                    f"{uri}: {part.uri} is live and never ends: only recorded sources can be joined or played again."
                )
            _require_alike(first, part)
        self._parts = tuple(parts)
        self._times = times
        self._selection = selection or Selection()
        self._media_fps = first.fps
        self.size_hw = first.size_hw
        self.fps = first.fps / self._selection.stride
        counts = [part.frame_count for part in parts]
        known = [count for count in counts if count is not None]
        self._available = times * sum(known) if len(known) == len(counts) else None
        if self._available is not None:
            self._selection.require_any(self._available, uri)
        self.frame_count = self._selection.count(self._available)

    def _frames(self) -> Iterator[Frame]:
        wanted = iter(self._selection.indices(None))
        want = next(wanted, None)
        seq = 0
        for index, frame in enumerate(self._all()):
            if index != want:
                continue
            yield replace(frame, seq=seq, captured_s=index / self._media_fps)
            self._require_open()
            seq += 1
            want = next(wanted, None)
            if want is None:
                return
        if seq == 0:
            raise VideoError(
                f"{self.uri}: no frames to deliver, it ended before frame {self._selection.start}.",
                hint="Lower `start` or name another source.",
            )

    def _all(self) -> Iterator[Frame]:
        for _ in range(self._times):
            for part in self._parts:
                yield from part

    def _release(self) -> None:
        for part in self._parts:
            part.close()


def _require_alike(first: VideoSource, part: VideoSource) -> None:
    if part.size_hw != first.size_hw:
        raise VideoError(
            f"{part.uri}: its frames are {size_text(part.size_hw)}, those of {first.uri} {size_text(first.size_hw)}.",
            hint="Frames of one stream have one size: resize them, or leave the source out.",
        )
    if abs(part.fps - first.fps) > _SAME_RATE * first.fps:
        raise VideoError(
            f"{part.uri}: has {part.fps:g} frames a second, {first.uri} {first.fps:g}.",
            hint="Give every source one rate with ?fps=.",
        )
