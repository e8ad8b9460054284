"""The thread that gives lessons: beside the one that runs the frames, which never waits for it unless it wants to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from edge_sdk.adapt.given import Given
from edge_sdk.adapt.ledger import Ledger
from edge_sdk.adapt.prepare import Prepared
from edge_sdk.adapt.teaching import Outcome, Teaching, TrainerLostError
from edge_sdk.errors import ClosedError, EdgeSdkError
from edge_sdk.runtime.engine import Engine
from edge_sdk.runtime.learning import NewEngines

_log = logging.getLogger(__name__)
# How often a trainer that has nothing to do is looked after, in seconds.
_LOOK_S = 1.0

Bind = Callable[[Prepared], NewEngines]


class Worker:
    """Starts the trainer, and again where it dies; takes one lesson after the other.

    Args:
        ledger: is told what happens to the trainer.

    Attributes:
        closing: the stream is at its end.
        ready: the trainer waits for lessons.
        stopped: why no more is learned; empty while it is.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._changed = threading.Condition()
        self._given: Given | None = None
        self._outcome: Outcome | None = None
        self._old: list[Engine] = []
        self._thread: threading.Thread | None = None
        self.closing = self.ready = False
        self.stopped = ""

    def run(self, teaching: Teaching, bind: Bind) -> None:
        """Begin, on a thread of its own; returns at once."""
        self._thread = threading.Thread(
            target=self._run, args=(teaching, bind), name="edge-sdk-adapt", daemon=True
        )
        self._thread.start()

    def give(self, given: Given) -> None:
        """A lesson; there may be no other before its outcome was taken."""
        with self._changed:
            self._given = given
            self._changed.notify_all()

    def outcome(self) -> Outcome | None:
        """What came of the lesson, once; None where it is still under way."""
        with self._changed:
            found, self._outcome = self._outcome, None
            return found

    def offer(self, outcome: Outcome) -> None:
        """Leave an outcome to be taken."""
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def retire(self, engines: Iterable[Engine]) -> None:
        """Have engines closed that nobody uses any more."""
        with self._changed:
            self._old += engines
            self._changed.notify_all()

    def wait_ready(self) -> None:
        """Until the trainer is ready, or learning is at its end."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready or self._is_over())

    def wait_outcome(self) -> None:
        """Until there is an outcome, or learning is at its end."""
        with self._changed:
            self._changed.wait_for(lambda: self._outcome is not None or self._is_over())

    def wait_idle(self, learning: Callable[[], bool], timeout_s: float | None) -> bool:
        """Until the trainer is ready and no lesson is under way, an outcome is there, or learning is at its end."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._outcome is not None or self._is_over() or (self.ready and not learning()),
                timeout_s,
            )

    def woken(self) -> None:
        """What others wait for may have come."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; a lesson that is under way is given up."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._close_old()

    def _is_over(self) -> bool:
        return self.closing or bool(self.stopped)

    def _run(self, teaching: Teaching, bind: Bind) -> None:
        try:
            teaching.join_thread()
            self._start(teaching, "")
            while (given := self._next(teaching)) is not None:
                try:
                    self.offer(teaching.teach(given.seq, given.image, given.label, bind))
                except TrainerLostError as error:
                    with self._changed:
                        # In one go: who has seen the outcome must not find the dead trainer ready.
                        self.ready = False
                        self.offer(Outcome(given.seq, "lost", reason=str(error)))
                    self._start(teaching, str(error))
        except ClosedError:
            return
        except EdgeSdkError as error:
            self._stop(str(error))
        except Exception as error:  # noqa: BLE001  # a defect of ours must not end a stream
            _log.exception("adapt: a defect")
            self._stop(f"{type(error).__name__}: {error}")

    def _start(self, teaching: Teaching, reason: str) -> None:
        """Start the trainer, again and again where it ends, and wait until it is ready."""
        while True:
            before, lost = teaching.process.restarted, ""
            try:
                teaching.start()
            except TrainerLostError as error:
                lost = str(error)
            if teaching.process.restarted > before:
                self._ledger.restarted(reason, teaching.version)
            if not lost:
                break
            self._ledger.noted(lost)
            reason = lost
        with self._changed:
            self.ready = True
            self._changed.notify_all()

    def _next(self, teaching: Teaching) -> Given | None:
        """The next lesson; None at the end. A trainer that died meanwhile is started again."""
        while True:
            with self._changed:
                if self._given is None and not self.closing and not self._old:
                    self._changed.wait(_LOOK_S)
                given, self._given = self._given, None
                if self.closing:
                    return None
            self._close_old()
            if given is not None:
                return given
            if not teaching.process.alive:
                words = teaching.process.last_words.splitlines()[-1:]
                self._start(teaching, f"it ended while it had nothing to do {words or ''}".rstrip())

    def _stop(self, reason: str) -> None:
        """No more is learned; the stream goes on."""
        self._ledger.stopped(reason)
        with self._changed:
            self.ready, self.stopped = False, reason
            self._changed.notify_all()

    def _close_old(self) -> None:
        with self._changed:
            old, self._old = self._old, []
        for engine in old:
            engine.close()
