"""The one thread that owns a runner's engines: a GPU context belongs to a thread, a camera loop must not wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
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


class Worker:
    """Runs everything of one runner on one thread.

    ``ask`` runs a function there and waits; ``submit`` leaves a frame in a slot that holds the newest one only.

    Args:
        answer: answers a frame; called on the thread.
        on_result: called on the thread with each answer to a submitted frame, a copy; what it raises is logged once.
    """

    def __init__(
        self,
        answer: Callable[[Frame | np.ndarray], Result],
        on_result: Callable[[Result], None] | None = None,
    ) -> None:
        self._answer, self._on_result = answer, on_result
        self._changed = threading.Condition()
        self._asked: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._frame: Frame | np.ndarray | None = None
        self._latest: Result | None = None
        self._error: EdgeSdkError | None = None
        self._closing = False
        self._submitted = self._answered = self._replaced = self._failed = self._callback_errors = 0
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

    def submit(self, frame: Frame | np.ndarray) -> None:
        """Leave a frame to be answered; one that still waits is replaced. Returns at once.

        Raises:
            ClosedError: the worker is closed.
        """
        with self._changed:
            self._check_open()
            self._submitted += 1
            self._replaced += self._frame is not None
            self._frame = frame
            self._changed.notify_all()

    def latest(self, after: int | None = None, timeout_s: float | None = None) -> Result | None:
        """The newest answer to a submitted frame.

        Args:
            after: wait for an answer to another frame than this ``seq``; None takes what is there.
            timeout_s: how long to wait at most; None waits until there is one.

        Returns:
            The result, the caller's own; None where there is none (yet).

        Raises:
            EngineError: the step of the newest frame failed; raised once.
            ClosedError: the worker was closed while waiting.
        """
        with self._changed:
            if after is not None:
                self._changed.wait_for(lambda: self._closing or self._has_news(after), timeout_s)
                if self._closing and not self._has_news(after):
                    raise ClosedError("runner: it was closed while a result was waited for.")
            error, self._error = self._error, None
            if error is not None:
                raise error
            if after is not None and (self._latest is None or self._latest.seq == after):
                return None
            return self._latest

    @property
    def counts(self) -> WorkerCounts:
        """What became of the frames so far."""
        with self._changed:
            return WorkerCounts(
                self._submitted, self._answered, self._replaced, self._failed, self._callback_errors
            )

    def close(self) -> None:
        """End the thread after what it is doing; frames that wait are not answered. Closing twice does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _has_news(self, after: int) -> bool:
        return self._error is not None or (self._latest is not None and self._latest.seq != after)

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError(
                "runner: it is closed.", hint="Use it inside `with EdgeRunner(...) as runner:`."
            )

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._asked or self._frame is not None)
                asked, self._asked = self._asked, []
                frame, self._frame = self._frame, None
                closing = self._closing
            for work, future in asked:
                _settle(work, future)
            if closing:
                return
            if frame is not None:
                self._answer_submitted(frame)

    def _answer_submitted(self, frame: Frame | np.ndarray) -> None:
        try:
            result = self._answer(frame).copy()
        except EdgeSdkError as error:
            _log.error("a submitted frame was not answered: %s", error)
            with self._changed:
                self._failed += 1
                self._error = error
                self._changed.notify_all()
            return
        with self._changed:
            self._answered += 1
            self._latest = result
            self._changed.notify_all()
        if self._on_result is not None:
            try:
                self._on_result(result)
            except Exception:  # noqa: BLE001  (the application's own; it must not end the stream)
                with self._changed:
                    self._callback_errors += 1
                _log.exception("on_result failed for frame %d", result.seq)


def _settle(work: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001  (handed to whoever asked)
        future.set_exception(error)
