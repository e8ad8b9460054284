"""The one thread that owns a runner's engines: a GPU context belongs to a thread, a camera loop must not wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from edge_sdk.errors import ClosedError, EdgeSdkError
from edge_sdk.runtime.result import Result
from edge_sdk.video.frame import Frame

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    """What became of submitted frames.

    Attributes:
        submitted: frames given to ``submit``.
        answered: of those, frames with a result.
        replaced: of those, frames that a newer one replaced before the thread came to them.
        failed: of those, frames whose step failed; the next one is a keyframe.
        callback_errors: results whose callback raised.
    """

    submitted: int = 0
    answered: int = 0
    replaced: int = 0
    failed: int = 0
    callback_errors: int = 0


@dataclass
class _Slot:
    """One stream's newest waiting frame, its newest answer, and what became of the rest."""

    frame: Frame | np.ndarray | None = None
    latest: Result | None = None
    error: EdgeSdkError | None = None
    counts: WorkerCounts = WorkerCounts()

    def count(self, **more: int) -> None:
        self.counts = replace(
            self.counts, **{name: getattr(self.counts, name) + by for name, by in more.items()}
        )

    def has_news(self, after: int) -> bool:
        return self.error is not None or (self.latest is not None and self.latest.seq != after)


class Worker:
    """Runs everything of one runner on one thread.

    ``ask`` runs a function there and waits; ``submit`` leaves a frame in its stream's slot, which holds the newest one
    only. Streams take turns: one that always has a frame waiting does not keep the others from theirs.

    Args:
        answer: answers a frame of a stream; called on the thread.
        streams: how many there are.
        on_result: called on the thread with the stream and each answer to a submitted frame, a copy; what it raises is
            logged and counted.
    """

    def __init__(
        self,
        answer: Callable[[int, Frame | np.ndarray], Result],
        streams: int = 1,
        on_result: Callable[[int, Result], None] | None = None,
    ) -> None:
        self._answer, self._on_result = answer, on_result
        self._changed = threading.Condition()
        self._asked: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._slots = [_Slot() for _ in range(streams)]
        self._turn = 0
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="edge-sdk-runner", daemon=True)
        self._thread.start()

    def ask(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the thread and wait for what it returns or raises.

        Raises:
            ClosedError: the worker is closed.
        """
        if threading.current_thread() is self._thread:
            return work()
        future: Future[T] = Future()
        with self._changed:
            self._check_open()
            self._asked.append((work, future))
            self._changed.notify_all()
        return future.result()

    def submit(self, frame: Frame | np.ndarray, stream: int = 0) -> None:
        """Leave a frame to be answered; one of its stream that still waits is replaced. Returns at once.

        Raises:
            ClosedError: the worker is closed.
        """
        with self._changed:
            self._check_open()
            slot = self._slots[stream]
            slot.count(submitted=1, replaced=int(slot.frame is not None))
            slot.frame = frame
            self._changed.notify_all()

    def latest(
        self, after: int | None = None, timeout_s: float | None = None, stream: int = 0
    ) -> Result | None:
        """The newest answer to a submitted frame of a stream.

        Args:
            after: wait for an answer to another frame than this ``seq``; None takes what is there.
            timeout_s: how long to wait at most; None waits until there is one.
            stream: whose.

        Returns:
            The result, the caller's own; None where there is none (yet).

        Raises:
            EngineError: the step of the newest frame failed; raised once.
            ClosedError: the worker was closed while waiting.
        """
        slot = self._slots[stream]
        with self._changed:
            if after is not None:
                self._changed.wait_for(lambda: self._closing or slot.has_news(after), timeout_s)
                if self._closing and not slot.has_news(after):
                    raise ClosedError("runner: it was closed while a result was waited for.")
            error, slot.error = slot.error, None
            if error is not None:
                raise error
            if after is not None and (slot.latest is None or slot.latest.seq == after):
                return None
            return slot.latest

    def counts(self, stream: int = 0) -> WorkerCounts:
        """What became of a stream's frames so far."""
        with self._changed:
            return self._slots[stream].counts

    def close(self) -> None:
        """End the thread after what it is doing; frames that wait are not answered. Closing twice does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError(
                "runner: it is closed.", hint="Use it inside `with EdgeRunner(...) as runner:`."
            )

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._asked or self._waiting() is not None)
                asked, self._asked = self._asked, []
                turn = self._waiting()
                frame = None
                if turn is not None and not self._closing:
                    frame, self._slots[turn].frame = self._slots[turn].frame, None
                    self._turn = (turn + 1) % len(self._slots)
                closing = self._closing
            for work, future in asked:
                _settle(work, future)
            if closing:
                return
            if turn is not None and frame is not None:
                self._answer_submitted(turn, frame)

    def _waiting(self) -> int | None:
        """The stream whose turn it is among those with a frame waiting."""
        count = len(self._slots)
        order = ((self._turn + step) % count for step in range(count))
        return next((stream for stream in order if self._slots[stream].frame is not None), None)

    def _answer_submitted(self, stream: int, frame: Frame | np.ndarray) -> None:
        slot = self._slots[stream]
        try:
            result = self._answer(stream, frame).copy()
        except EdgeSdkError as error:
            _log.error("stream %d: a submitted frame was not answered: %s", stream, error)
            with self._changed:
                slot.count(failed=1)
                slot.error = error
                self._changed.notify_all()
            return
        with self._changed:
            slot.count(answered=1)
            slot.latest = result
            self._changed.notify_all()
        if self._on_result is not None:
            try:
                self._on_result(stream, result)
            except Exception:  # noqa: BLE001  (the application's own; it must not end the stream)
                with self._changed:
                    slot.count(callback_errors=1)
                _log.exception("stream %d: on_result failed for frame %d", stream, result.seq)


def _settle(work: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001  (handed to whoever asked)
        future.set_exception(error)
