"""What is written down and told while frames go on: by a thread of its own, so that no frame waits for a disk."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from edge_sdk.adapt.journal import Event, Journal

_log = logging.getLogger(__name__)


class Teller:
    """Does things in the order in which they were asked for; what goes wrong is logged and told, never raised.

    Args:
        journal: where events are written; None for nowhere.
        on_event: called with each event, on the teller's thread.
        on_error: called with what went wrong, in words.
    """

    def __init__(
        self,
        journal: Journal | None,
        on_event: Callable[[Event], None] | None,
        on_error: Callable[[str], None],
    ) -> None:
        self._journal, self._on_event, self._on_error = journal, on_event, on_error
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="edge-sdk-adapt-log", daemon=True)
        self._thread.start()

    def tell(self, event: Event) -> None:
        """Write an event down, and tell it; returns at once."""
        self.do(lambda: self._tell(event))

    def do(self, work: Callable[[], None]) -> None:
        """Have ``work`` done after all that was asked for before; returns at once."""
        self._asked.put(work)

    def close(self) -> None:
        """Do what was asked for, and end; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._asked.put(None)
            self._thread.join()

    def _tell(self, event: Event) -> None:
        if self._journal is not None:
            self._journal.write(event)
        if self._on_event is not None:
            self._on_event(event)

    def _run(self) -> None:
        while (work := self._asked.get()) is not None:
            try:
                work()
            # A user's function may raise anything, a disk may be full; the next event may still be told.
            except Exception as error:  # noqa: BLE001
                _log.exception("adapt: an event could not be written or told")
                self._on_error(str(error))
