"""Locks between processes that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sdk.errors import UpdateError
from edge_sdk.files import refusals_named

_PAUSE_S = 0.02


@contextmanager
def locked(file: Path, *, wait_s: float, busy: str, hint: str) -> Iterator[None]:
    """Hold the lock ``file`` within the block.

    It is the kernel's lock on an open file, not the file's presence: a process that is killed holds it no longer.

    Args:
        file: made where it is not there; it stays.
        wait_s: how long to wait for another holder, in seconds.
        busy, hint: what is said where it still holds on; the holder's process id is added.

    Raises:
        UpdateError: another process or thread holds it.
        OutputError: the file cannot be made.
    """
    with refusals_named(file):
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(handle, wait_s, busy, hint)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)  # which gives it back


def _acquire(handle: int, wait_s: float, busy: str, hint: str) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                raise UpdateError(f"{busy} (process {holder}).", hint=hint) from error
        time.sleep(_PAUSE_S)
