"""Being told to stop ends a program through its ``with`` blocks, so that cameras are released."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edge_sdk.errors import EdgeSdkError

# What a service manager, a shell that logs out and a scheduler send; Ctrl-C raises KeyboardInterrupt by itself.
_STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(SystemExit):
    """A signal asked the program to end; unless caught, it does, with 128 + the signal's number."""


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Within this block SIGTERM and SIGHUP raise :class:`Stopped` on the main thread, and SIGINT raises as always::

        with exit_on_signals(), open_source("csi://0") as camera:
            ...

    Without it they end the process at once: the camera is not released, and a CSI camera's daemon may refuse the next
    program. Signals that are ignored, as under ``nohup``, stay so. Only the first one raises, so that nothing cuts the
    clean-up short. The handlers from before are restored at the end.

    Raises:
        EdgeSdkError: not on the main thread, where alone handlers can be set.
    """
    if threading.current_thread() is not threading.main_thread():
        raise EdgeSdkError(
            "exit_on_signals: signal handlers can be set on the main thread only.",
            hint="Enter it there, before other threads are started.",
        )
    raised = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise Stopped(128 + number)

    before = {}
    for number in (*_STOPPING, signal.SIGINT):
        handler = signal.getsignal(number)
        if handler is signal.SIG_IGN or handler is None:  # None: set by other code than Python's
            continue
        if number == signal.SIGINT and handler is not signal.SIG_DFL:
            continue
        before[number] = handler
    try:
        for number in before:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
