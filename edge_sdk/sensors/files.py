"""Small files of sysfs and procfs, read cheaply again and again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# These do not change by asking again: no such file, or not ours to read.
_FOR_GOOD = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.EISDIR)
# A sensor that is asleep, such as that of a Jetson's GPU without work, answers so; it may wake.
_LATER = (errno.EAGAIN, errno.EBUSY, errno.EINTR)
# Any other failure: so often in a row.
_PATIENCE = 3
_LONGEST_BYTES = 64 * 1024


class SysFiles:
    """Reads small files beneath a root; what cannot be read is not asked for again.

    Every read opens and closes its file, so none stays open. Safe from several threads.

    Args:
        root: where ``etc``, ``proc``, ``sys`` and ``var`` are found; another folder only in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self._failures: dict[Path, int] = {}

    def find(self, pattern: str) -> list[Path]:
        """Files or folders that match, the second before the tenth."""
        try:
            return sorted(self.root.glob(pattern), key=_by_number)
        except OSError:
            return []

    def text(self, path: Path) -> str:
        """Content without the white space and zero bytes around it; empty where it cannot be read."""
        failures = self._failures.get(path, 0)
        if failures >= _PATIENCE:
            return ""
        try:
            content = _read(path)
        except OSError as error:
            if error.errno not in _LATER:
                self._failures[path] = _PATIENCE if error.errno in _FOR_GOOD else failures + 1
            return ""
        if failures:
            self._failures[path] = 0
        return content.decode(errors="replace").strip("\0\n ")

    def number(self, path: Path) -> int | None:
        """Content as an integer; None where there is none."""
        try:
            return int(self.text(path))
        except ValueError:
            return None

    def forbidden(self, path: Path) -> bool:
        """Whether the file is there but not ours to read."""
        return path.exists() and not os.access(path, os.R_OK)


def named(readings: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Readings by name; a name that comes again gets a number."""
    by_name: dict[str, T] = {}
    for name, value in readings:
        count, free = 1, name
        while free in by_name:
            count += 1
            free = f"{name} {count}"
        by_name[free] = value
    return by_name


def _read(path: Path) -> bytes:
    # Path.read_text takes five times as long.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, _LONGEST_BYTES)
    finally:
        os.close(handle)


def _by_number(path: Path) -> tuple[int, str]:
    return int("".join(filter(str.isdigit, path.name)) or 0), str(path)
