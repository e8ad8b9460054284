"""What the tests of updates share: two bundles that answer differently, and disks that fail."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

from edge_sdk.bundle import Bundle, write_bundle
from edge_sdk.update import Device, InstallSettings, TrialSettings, install
from edge_sdk.update.disk import Disk
from edge_sdk.update.probe import ProbeReport, ProbeSettings
from tests.graphs import residual

TRIAL = TrialSettings(healthy_s=10, healthy_frames=5, max_errors=2, max_starts=2)

OLD, NEW, NEWER = "old", "new", "newer"


def write_version(folder: Path, version: str) -> Bundle:
    """A bundle that knows its version, with a file in a folder."""
    pair = residual()
    manifest = pair.manifest().model_copy(update={"name": version})
    return write_bundle(folder, manifest, {**pair.files(), "notes/version.txt": version.encode()})


def write_versions(folder: Path) -> Path:
    """A folder with a bundle of each version."""
    for name in (OLD, NEW, NEWER):
        write_version(folder / name, name)
    return folder


def installed(bundles: Path, device: Path, *versions: str) -> Path:
    """A device on which these versions were installed one after the other."""
    for name in versions:
        install(settings(bundles / name, device))
    return device


def settings(bundle: Path, device: Path, **values: object) -> InstallSettings:
    """Settings of an installation without a probe and with a short trial."""
    return InstallSettings(**{"bundle": bundle, "device": device, "probe": None, "trial": TRIAL, **values})  # type: ignore[arg-type]


def running(device: Path) -> str:
    """Name of the bundle that runs, read and verified whole."""
    journal = Device(device).journal()
    assert journal.current is not None
    return Bundle.open(device / journal.current).manifest.name


def state(device: Path) -> str:
    """How far the last update is."""
    update = Device(device).journal().update
    assert update is not None
    return update.state


def passing(bundle: Bundle, reference: Path, asked: ProbeSettings) -> ProbeReport:
    """A probe that finds nothing wrong."""
    return ProbeReport(frames=1)


class WatchedDisk(Disk):
    """Calls ``before`` with the number and name of every change before it happens."""

    def __init__(self, before: Callable[[int, str], None]) -> None:
        self.before, self.count = before, 0

    def _next(self, name: str, path: Path) -> None:
        self.before(self.count, f"{name} {path.name}")
        self.count += 1

    def mkdir(self, folder: Path) -> None:
        self._next("mkdir", folder)
        super().mkdir(folder)

    def copy(self, source: Path, target: Path) -> None:
        self._next("copy", target)
        super().copy(source, target)

    def write(self, file: Path, content: bytes) -> None:
        self._next("write", file)
        super().write(file, content)

    def sync(self, path: Path) -> None:
        self._next("sync", path)
        super().sync(path)

    def rename(self, old: Path, new: Path) -> None:
        self._next("rename", new)
        super().rename(old, new)

    def remove(self, folder: Path) -> None:
        self._next("remove", folder)
        super().remove(folder)


class KilledHalfWay(WatchedDisk):
    """Kills its process at one change: before it, or half way through it where it writes or removes."""

    def __init__(self, at: int, half_way: bool) -> None:
        self.at, self.half_way = at, half_way
        super().__init__(self._kill_before)

    def _kill_before(self, number: int, name: str) -> None:
        if number == self.at and not self.half_way:
            kill()

    def _here(self) -> bool:
        return self.half_way and self.count == self.at

    def copy(self, source: Path, target: Path) -> None:
        if self._here():
            data = source.read_bytes()
            target.write_bytes(data[: len(data) // 2])
            kill()
        super().copy(source, target)

    def write(self, file: Path, content: bytes) -> None:
        if self._here():
            file.write_bytes(content[: len(content) // 2])
            kill()
        super().write(file, content)

    def remove(self, folder: Path) -> None:
        if self._here():
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            for path in files[: (len(files) + 1) // 2]:
                path.unlink()
            kill()
        super().remove(folder)


def kill() -> None:
    """Kill -9 of this very process."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], object]) -> int | None:
    """Do ``work`` in a forked process; the signal that ended it, or None where it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  # whatever it is, pytest must not go on in the child
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, "the child failed in another way than it should"
    return None


class PowerCutDisk(Disk):
    """Does everything really, and remembers what of it would last if the power failed at any moment.

    A file's content lasts once the file is synced; a name in a folder (made, renamed, removed) lasts once the folder is
    synced. What was not synced may last or not, each change of a name on its own: :meth:`outcomes` gives every such
    state of the folder. Content that was not synced is lost, but its name may be there, of an empty file.

    Args:
        root: the folder that is watched; it is there, and lasts as it is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.moments: list[tuple[str, Names, list[Change], dict[int, bytes]]] = []
        self._lasting: Names = {}
        self._pending: list[Change] = []
        self._content: dict[int, bytes] = {}
        self._nodes: Names = {}
        self._count = 0
        for path in sorted(root.rglob("*")):
            name, node = self._name(path), self._node()
            self._nodes[name] = self._lasting[name] = None if path.is_dir() else node
            if path.is_file():
                self._content[node] = path.read_bytes()

    def mkdir(self, folder: Path) -> None:
        super().mkdir(folder)
        self._change(folder, [("set", self._name(folder), None)])

    def copy(self, source: Path, target: Path) -> None:
        super().copy(source, target)
        self._written(target)

    def write(self, file: Path, content: bytes) -> None:
        super().write(file, content)
        self._written(file)

    def sync(self, path: Path) -> None:
        super().sync(path)
        if path.is_dir():
            parent = self._name(path)
            for place, steps in [change for change in self._pending if change[0] == parent]:
                _apply(self._lasting, steps)
                self._pending.remove((place, steps))
        else:
            node = self._nodes[self._name(path)]
            assert node is not None
            self._content[node] = path.read_bytes()
        self._moment(f"sync {path.name}")

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        before, after = self._name(old), self._name(new)
        node = self._nodes[before]
        self._change(new, [("drop", before, None), ("set", after, node)])

    def remove(self, folder: Path) -> None:
        gone = [self._name(path) for path in (folder, *folder.rglob("*"))] if folder.exists() else []
        super().remove(folder)
        for name in sorted(gone, reverse=True):
            self._change(self.root / name, [("drop", name, None)])

    def outcomes(self, most: int = 64) -> Iterator[tuple[str, bool, Callable[[Path], None]]]:
        """Every state in which a cut may leave the folder.

        Yields:
            When, whether that is after the last change, and a function that makes the state elsewhere.
        """
        for moment, (when, lasting, pending, content) in enumerate(self.moments, start=1):
            for kept in _subsets(len(pending), most):
                names = dict(lasting)
                for index in kept:
                    _apply(names, pending[index][1])
                yield when, moment == len(self.moments), partial(_make, names=names, content=content)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _node(self) -> int:
        self._count += 1
        return self._count

    def _written(self, file: Path) -> None:
        name = self._name(file)
        node = self._node()
        if name in self._nodes:  # written in place: its old content may be lost too
            node = self._nodes[name] or node
            self._content.pop(node, None)
        self._change(file, [("set", name, node)])

    def _change(self, path: Path, steps: Steps) -> None:
        _apply(self._nodes, steps)
        self._pending.append((self._name(path.parent), steps))
        self._moment(f"{steps[-1][0]} {path.name}")

    def _moment(self, when: str) -> None:
        self.moments.append((when, dict(self._lasting), list(self._pending), dict(self._content)))


# Path below the root, and the number of the file's content; None for a folder.
Names = dict[str, int | None]
Steps = list[tuple[str, str, int | None]]
# The folder whose names change, and how.
Change = tuple[str, Steps]


def _apply(names: Names, steps: Steps) -> None:
    for what, name, node in steps:
        if what == "drop":
            names.pop(name, None)
        else:
            names[name] = node


def _subsets(count: int, most: int) -> Iterator[tuple[int, ...]]:
    """Which changes happened to last: all sets of a few, else none, all, each alone, each missing, and each prefix."""
    if 2**count <= most:
        for size in range(count + 1):
            yield from combinations(range(count), size)
        return
    everything = tuple(range(count))
    found = {(), everything}
    found |= {(one,) for one in everything}
    found |= {tuple(index for index in everything if index != one) for one in everything}
    found |= {everything[:size] for size in everything}
    yield from sorted(found)


def _make(target: Path, names: Names, content: dict[int, bytes]) -> None:
    """Make the folder; a name whose folder is gone is gone with it."""
    folders = {name for name, node in names.items() if node is None}
    target.mkdir()
    for name in sorted(folders):
        if _reachable(name, folders):
            (target / name).mkdir()
    for name, node in names.items():
        if node is not None and _reachable(name, folders):
            (target / name).write_bytes(content.get(node, b""))


def _reachable(name: str, folders: set[str]) -> bool:
    return all(parent.as_posix() in folders for parent in list(Path(name).parents)[:-1])
