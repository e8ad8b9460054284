"""Several sources read in turn, so that none starves and none stops the others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from edge_sdk.errors import ClosedError, EdgeSdkError, RecipeError, VideoError
from edge_sdk.video.base import VideoSource
from edge_sdk.video.frame import Frame
from edge_sdk.video.live import LiveSource
from edge_sdk.video.source import open_source
from edge_sdk.video.uri import is_live
from edge_sdk.video.watchdog import LiveSettings, OnEvent

_log = logging.getLogger(__name__)

# Pauses between the tries to open a camera that was not there at the start.
_RETRIES = LiveSettings(pause_s=1.0)

K = TypeVar("K", bound=Hashable)


class SeveralSources(Generic[K]):
    """Frames of several sources as pairs of stream and frame, in turn over those that have a new one::

        with open_sources({"door": "csi://0", "yard": "rtsp://10.0.0.7/live"}) as cameras:
            for name, frame in cameras:
                ...

    Live sources never wait for one another: one that stalls has no frame, and the others go on. A file or a scene has
    a frame whenever it is its turn. A stream that ends or fails is left out from then on; what it raised is kept in
    ``errors`` and logged. ``seq`` is each stream's own.

    Args:
        sources: opened sources by the name of the stream; :meth:`close` closes them.

    Raises:
        RecipeError: no sources.
    """

    def __init__(self, sources: Mapping[K, VideoSource]) -> None:
        if not sources:
            raise RecipeError("sources: expected at least one, got none.")
        self.sources: dict[K, VideoSource] = dict(sources)
        self.errors: dict[K, EdgeSdkError] = {}
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._coming: set[K] = set()
        self._arrived: dict[K, VideoSource] = {}
        self._closing = threading.Event()

    def __iter__(self) -> Iterator[tuple[K, Frame]]:
        """Read on until every stream has ended.

        Raises:
            VideoError: every stream has failed.
            ClosedError: it was closed.
        """
        self._require_open()
        with ExitStack() as stack:
            takers: dict[K, Callable[[], Frame | None]] = {}
            for name, source in self.sources.items():
                if name not in self.errors:
                    takers[name] = self._taker(source, stack)
            yield from self._turns(takers, stack)

    def _taker(self, source: VideoSource, stack: ExitStack) -> Callable[[], Frame | None]:
        if isinstance(source, LiveSource):
            stack.callback(source.listen(self._news.set))
            return _live_taker(source)
        frames = iter(source)
        return lambda: next(frames)

    def _turns(
        self, takers: dict[K, Callable[[], Frame | None]], stack: ExitStack
    ) -> Iterator[tuple[K, Frame]]:
        order = list(takers)
        while order or self._coming:
            # Cleared before looking: what comes while we look sets it again.
            self._news.clear()
            for name, source in self._join():
                takers[name] = self._taker(source, stack)
                order.append(name)
            idle = 0
            while order and idle < len(order):
                name = order.pop(0)
                try:
                    frame = takers[name]()
                except StopIteration:
                    continue
                except EdgeSdkError as error:
                    self._require_open()
                    self._fail(name, error)
                    continue
                order.append(name)
                if frame is None:
                    idle += 1
                    continue
                idle = 0
                yield name, frame
                self._require_open()
            if order or self._coming:
                self._news.wait()
                self._require_open()
        if len(self.errors) >= len(self.sources.keys() | self.errors.keys()):
            told = "; ".join(f"{name}: {error}" for name, error in self.errors.items())
            raise VideoError(f"sources: every stream has failed: {told}")

    def _fail(self, name: K, error: EdgeSdkError) -> None:
        self.errors[name] = error
        _log.error("stream %s is left out: %s", name, error)
        # Not closed here: that may wait for a driver that hangs, and the others would wait with it.

    def keep_trying(self, name: K, open_it: Callable[[], VideoSource]) -> None:
        """Try again and again to open a stream that is in ``errors``; it joins the others when it is there.

        Args:
            name: of the stream.
            open_it: opens it, or raises.
        """
        self._coming.add(name)
        thread = threading.Thread(
            target=self._try, args=(name, open_it), name=f"edge-sdk-open {name}", daemon=True
        )
        thread.start()

    def _try(self, name: K, open_it: Callable[[], VideoSource]) -> None:
        pause_s = _RETRIES.pause_s
        while not self._closing.wait(pause_s):
            pause_s = min(pause_s * _RETRIES.pause_growth, _RETRIES.max_pause_s)
            try:
                source = open_it()
            except EdgeSdkError as error:
                _log.debug("stream %s: still not there: %s", name, error)
                continue
            with self._lock:
                if not self._closing.is_set():
                    self._arrived[name] = source
                    self._news.set()
                    _log.info("stream %s is there now", name)
                    return
            source.close()

    def _join(self) -> list[tuple[K, VideoSource]]:
        """Streams that were missing and have been opened since."""
        with self._lock:
            arrived, self._arrived = self._arrived, {}
            self.sources.update(arrived)
            for name in arrived:
                self._coming.discard(name)
                self.errors.pop(name, None)
        return list(arrived.items())

    def close(self) -> None:
        """Close all sources; closing twice does nothing, and one that fails does not keep the others open."""
        with self._lock:
            self._closing.set()
        self._news.set()
        self._join()
        # At the same time, since each may have to wait for its driver.
        threads = [
            threading.Thread(target=source.close, name=f"edge-sdk-close {name}", daemon=True)
            for name, source in self.sources.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _require_open(self) -> None:
        if self._closing.is_set():
            raise ClosedError("sources: they are closed.", hint="Open them again with open_sources().")

    def __enter__(self) -> SeveralSources[K]:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@overload
def open_sources(
    uris: Mapping[K, str | Path],
    *,
    required: bool = True,
    limit: int | None = None,
    on_event: OnEvent | None = None,
) -> SeveralSources[K]: ...


@overload
def open_sources(
    uris: Sequence[str | Path],
    *,
    required: bool = True,
    limit: int | None = None,
    on_event: OnEvent | None = None,
) -> SeveralSources[int]: ...


def open_sources(
    uris: Mapping[Any, str | Path] | Sequence[str | Path],
    *,
    required: bool = True,
    limit: int | None = None,
    on_event: OnEvent | None = None,
) -> SeveralSources[Any]:
    """Open several sources, all at the same time.

    With a list the streams are 0, 1 and so on, as a :class:`~edge_sdk.runtime.several.MultiRunner` numbers them::

        with MultiRunner("my_pair", streams=2) as runner, open_sources(["csi://0", "csi://1"]) as cameras:
            for stream, frame in cameras:
                result = runner(stream, frame)

    Args:
        uris: what to open, see :func:`~edge_sdk.video.source.open_source`, by the name of the stream or in a list.
        required: whether each must open. Else one is enough: those that cannot are in ``errors``, and cameras and
            network streams among them are tried again, with growing pauses, until they can or all are closed.
        limit: most frames of each stream.
        on_event: told of every live source's changes; ``SourceEvent.uri`` says which one.

    Raises:
        RecipeError: no URIs, or one that is malformed, required or not.
        EdgeSdkError: what the first one that cannot be opened raised; those already open are closed.
    """
    if isinstance(uris, str | Path):
        raise RecipeError(f"sources: expected several, got {str(uris)!r}.", hint="Use open_source() for one.")
    named = dict(uris) if isinstance(uris, Mapping) else dict(enumerate(uris))
    options: dict[str, Any] = {"limit": limit, "on_event": on_event}
    opened: dict[Any, VideoSource] = {}
    errors: dict[Any, EdgeSdkError] = {}
    try:
        _open_at_once(
            {name: partial(open_source, uri, **options) for name, uri in named.items()}, opened, errors
        )
        wrong = [name for name in named if isinstance(errors.get(name), RecipeError)]
        if errors and (required or wrong or not opened):
            first = next(name for name in (wrong or named) if name in errors)
            raise errors[first]
        sources = SeveralSources({name: opened[name] for name in named if name in opened})
    except BaseException:
        for source in opened.values():
            source.close()
        raise
    sources.errors.update(errors)
    for name in errors:
        if is_live(named[name]) and isinstance(errors[name], VideoError):
            sources.keep_trying(name, partial(open_source, named[name], **options))
    return sources


def _open_at_once(
    openers: Mapping[Any, Callable[[], VideoSource]],
    opened: dict[Any, VideoSource],
    errors: dict[Any, EdgeSdkError],
) -> None:
    """Open each on a thread of its own; what became of each is in ``opened`` or ``errors``, however this ends."""

    def work(name: Any, open_it: Callable[[], VideoSource]) -> None:
        try:
            opened[name] = open_it()
        except EdgeSdkError as error:
            errors[name] = error

    threads = [
        threading.Thread(target=work, args=item, name=f"edge-sdk-open {item[0]}", daemon=True)
        for item in openers.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _live_taker(source: LiveSource) -> Callable[[], Frame | None]:
    left = source.frame_count

    def take() -> Frame | None:
        nonlocal left
        if left == 0:
            raise StopIteration
        frame = source.take(0)
        if frame is not None and left is not None:
            left -= 1
        return frame

    return take
