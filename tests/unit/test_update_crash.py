"""Kill -9, and a power cut, at every change of every operation: the device always has a whole bundle to run."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.update import Device, Health, install, resolve_bundle
from edge_sdk.update.disk import Disk
from edge_sdk.update.journal import JOURNAL, Journal, read_journal
from edge_sdk.update.probe import ProbeSettings
from tests.graphs import random_images
from tests.update_world import (
    NEW,
    NEWER,
    OLD,
    KilledHalfWay,
    PowerCutDisk,
    WatchedDisk,
    in_child,
    passing,
    settings,
    write_versions,
)

Operation = Callable[[Path, Disk], object]


# Thousands of small files are made, synced and removed. What lasts is simulated here, and nothing of it asks the real
# disk; in memory it does not wait for one.
MEMORY = Path("/dev/shm")
NEEDED_BYTES = 32 << 20  # a test removes what it made


def _place() -> Path | None:
    """A folder in memory, None for the usual one where there is none with room."""
    room = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= NEEDED_BYTES
    return MEMORY if room else None


@pytest.fixture(scope="module")
def bundles() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_place()) as folder:
        yield write_versions(Path(folder))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_place()) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def devices(bundles: Path) -> Path:
    """Device folders in every state from which an operation begins."""
    folder = bundles / "devices"
    folder.mkdir()
    install(settings(bundles / OLD, folder / "first"))
    shutil.copytree(folder / "first", folder / "trial")
    install(settings(bundles / NEW, folder / "trial"))
    shutil.copytree(folder / "trial", folder / "started")
    for _ in range(2):
        assert resolve_bundle(folder / "started").name == "b"
    shutil.copytree(folder / "trial", folder / "confirmed")
    Device(folder / "confirmed").confirm()
    return folder


def _install(bundles: Path, name: str) -> Operation:
    return lambda device, disk: install(
        settings(bundles / name, device, probe=ProbeSettings(), reference=bundles / "any"),
        disk=disk,
        probe=passing,
    )


def _refused_probe(bundles: Path) -> Operation:
    from edge_sdk.errors import UpdateError
    from edge_sdk.update.probe import ProbeReport

    def work(device: Path, disk: Disk) -> None:
        with pytest.raises(UpdateError, match="failed its probe"):
            install(
                settings(bundles / NEW, device, probe=ProbeSettings(), reference=bundles / "any"),
                disk=disk,
                probe=lambda *_: ProbeReport(error="no"),
            )

    return work


def _healthy(device: Path, disk: Disk) -> None:
    now = [0.0]
    health = Health(Bundle.open(device / "b"), clock=lambda: now[0], disk=disk)
    for _ in range(9):
        health.ok()
        now[0] += 5


def _unhealthy(device: Path, disk: Disk) -> None:
    health = Health(Bundle.open(device / "b"), disk=disk)
    health.error("one")
    health.error("two")


# Name: device folder before it, the operation, which bundles may run after a cut, and which runs without one.
CASES: dict[str, tuple[str, Callable[[Path], Operation], set[str], str]] = {
    "first installation": ("", lambda b: _install(b, OLD), {OLD, ""}, OLD),
    "installation": ("first", lambda b: _install(b, NEW), {OLD, NEW}, NEW),
    "installation over an older one": ("confirmed", lambda b: _install(b, NEWER), {NEW, NEWER}, NEWER),
    "probe that fails": ("first", _refused_probe, {OLD}, OLD),
    "start on trial": ("trial", lambda b: lambda d, disk: Device(d, disk=disk).start(), {NEW}, NEW),
    "start too many": ("started", lambda b: lambda d, disk: Device(d, disk=disk).start(), {OLD, NEW}, OLD),
    "confirmation": ("trial", lambda b: _healthy, {NEW}, NEW),
    "rollback of a trial": ("trial", lambda b: _unhealthy, {OLD, NEW}, OLD),
    "rollback when asked for": (
        "confirmed", lambda b: lambda d, disk: Device(d, disk=disk).rollback(), {OLD, NEW}, OLD,
    ),
}  # fmt: skip


def _begin(devices: Path, name: str, place: Path) -> Path:
    if name:
        shutil.copytree(devices / name, place)
    return place


def running(device: Path) -> str:
    """Version of the bundle that the device folder gives, read and verified whole; "" where none was ever installed."""
    current = read_journal(device).current if (device / JOURNAL).is_file() else None
    if current is None:
        return ""
    bundle = Bundle.open(device / current)  # as resolve_bundle does, but not counted as a start
    assert bundle.path.parent == device
    assert (bundle.path / "notes/version.txt").read_text() == bundle.manifest.name
    return bundle.manifest.name


def _check_usable(device: Path, bundles: Path, allowed: set[str], what: str) -> None:
    """It gives one of the allowed bundles, can be opened again and again, and takes another update to its end."""
    found = running(device)
    assert found in allowed, what
    if found:
        assert Bundle.open(resolve_bundle(device)).manifest.name in {found, OLD}, what
        found = running(device)
    if device.exists() and (device / JOURNAL).is_file() and Device(device).journal().on_trial is not None:
        Device(device).end_trial("test")
        assert running(device) != found
    install(settings(bundles / NEWER, device))
    assert running(device) == NEWER, what
    journal = Device(device).journal()
    if journal.on_trial is not None:
        Device(device).confirm()
    assert running(device) == NEWER
    # Two slots, the journal and the locks: nothing half made was left behind.
    left = {path.name for path in device.iterdir()}
    assert left <= {"a", "b", JOURNAL, ".install.lock", ".journal.lock"}, what


def _changes(case: str, devices: Path, bundles: Path, place: Path) -> list[str]:
    """Names of the changes that the operation makes when nothing stops it."""
    before, make, _, after = CASES[case]
    found: list[str] = []
    device = _begin(devices, before, place)
    make(bundles)(device, WatchedDisk(lambda _, name: found.append(name)))
    assert running(device) == after
    return found


@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_change_the_device_still_runs(
    case: str, devices: Path, bundles: Path, tmp_path: Path
) -> None:
    before, make, allowed, after = CASES[case]
    changes = _changes(case, devices, bundles, tmp_path / "whole")
    assert len(changes) >= 4
    seen = set()
    for half_way in (False, True):
        for number, name in enumerate(changes):
            if half_way and name.split()[0] not in ("copy", "write", "remove"):
                continue
            what = f"{case}: killed {'half way through' if half_way else 'before'} change {number}, {name}"
            device = _begin(devices, before, tmp_path / f"{number}{half_way}")
            killed_by = in_child(partial(make(bundles), device, KilledHalfWay(number, half_way)))
            assert killed_by == signal.SIGKILL, what
            seen.add(running(device))
            _check_usable(device, bundles, allowed, what)
            shutil.rmtree(device)
    assert seen <= allowed
    assert after in seen or len(allowed) > 1


@pytest.mark.parametrize("case", CASES)
def test_whatever_a_power_cut_forgets_the_device_still_runs(
    case: str, devices: Path, bundles: Path, tmp_path: Path
) -> None:
    before, make, allowed, after = CASES[case]
    root = tmp_path / "root"
    root.mkdir()
    device = _begin(devices, before, root / "device")
    disk = PowerCutDisk(root)
    make(bundles)(device, disk)
    outcomes = list(disk.outcomes())
    assert len(outcomes) > 6
    seen = set()
    for number, (when, done, restore) in enumerate(outcomes):
        place = tmp_path / str(number)
        restore(place)
        found = running(place / "device")
        # When the operation has returned, its outcome lasts whatever happens.
        assert found in ({after} if done else allowed), f"{case}: cut after {when}"
        seen.add(found)
        if number % 7 == 0:
            _check_usable(place / "device", bundles, allowed, f"{case}: cut after {when}")
        shutil.rmtree(place)
    assert seen == allowed


class Forgetful(PowerCutDisk):
    """A disk whose syncs of one kind do nothing: the simulation must then find states that cannot run."""

    def __init__(self, root: Path, files: bool) -> None:
        super().__init__(root)
        self._files = files

    def sync(self, path: Path) -> None:
        if path.is_dir() == self._files:
            super().sync(path)


@pytest.mark.parametrize("files", [True, False], ids=["files-not-synced", "folders-not-synced"])
def test_the_simulation_finds_a_missing_sync(
    files: bool, devices: Path, bundles: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    device = _begin(devices, "first", root / "device")
    disk = Forgetful(root, files)
    _install(bundles, NEW)(device, disk)
    broken = 0
    for number, (_, _, restore) in enumerate(disk.outcomes()):
        restore(tmp_path / str(number))
        try:
            broken += running(tmp_path / str(number) / "device") not in (OLD, NEW)
        except Exception:  # noqa: BLE001  # whatever it is, the device does not run
            broken += 1
    assert broken > 0


def test_what_runs_after_a_kill_also_answers(devices: Path, bundles: Path, tmp_path: Path) -> None:
    """The engines load and answer, not only the checksums fit."""
    device = _begin(devices, "first", tmp_path / "device")
    disk = KilledHalfWay(12, half_way=False)
    assert in_child(lambda: _install(bundles, NEW)(device, disk)) == signal.SIGKILL
    with EdgeRunner(device) as runner:
        results = [runner(image).kind.value for image in random_images(3)]
    assert results == ["keyframe", "delta", "delta"]
    assert runner.bundle.manifest.name == OLD


def test_a_journal_is_what_was_written(tmp_path: Path) -> None:
    from edge_sdk.update.journal import write_journal

    write_journal(Disk(), tmp_path, Journal(signed_only=True))
    assert read_journal(tmp_path) == Journal(signed_only=True)
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]
