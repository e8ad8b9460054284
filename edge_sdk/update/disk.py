"""Every change that an update makes to the file system, a method each.

Nothing lasts through a power cut before it is synced: a file's content by syncing the file, its name by syncing the
folder that it is in. :mod:`edge_sdk.files` is for results that can be made again and leaves the folder out. The tests
put their own disk in place, which is killed, or loses its power, before any one of these changes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edge_sdk.files import refusals_named


class Disk:
    """The file system.

    Every method raises :class:`edge_sdk.errors.OutputError` where the file system refuses.
    """

    def mkdir(self, folder: Path) -> None:
        """Make a folder; its parent is there, it is not."""
        with refusals_named(folder):
            folder.mkdir()

    def copy(self, source: Path, target: Path) -> None:
        """Copy a file's content to a new file."""
        with refusals_named(target):
            shutil.copyfile(source, target)

    def write(self, file: Path, content: bytes) -> None:
        """Write a file that nobody reads yet."""
        with refusals_named(file):
            file.write_bytes(content)

    def sync(self, path: Path) -> None:
        """Make a file's content, or the names in a folder, last."""
        with refusals_named(path):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name in the same folder; what had that name is replaced in the same moment."""
        with refusals_named(new):
            old.replace(new)

    def remove(self, folder: Path) -> None:
        """Remove a folder with everything in it; nothing where there is none."""
        with refusals_named(folder):
            if folder.exists():
                shutil.rmtree(folder)
