"""Updates: what is installed, what is refused, and how a trial ends."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.errors import (
    ChecksumError,
    EdgeSdkError,
    FileFormatError,
    MissingFileError,
    UpdateError,
    VideoError,
)
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.several import MultiRunner
from edge_sdk.update import (
    Device,
    Health,
    Installed,
    install,
    is_device,
    open_to_run,
    resolve_bundle,
)
from edge_sdk.update.journal import JOURNAL
from tests.graphs import random_images
from tests.update_world import (
    NEW,
    NEWER,
    OLD,
    TRIAL,
    in_child,
    installed,
    kill,
    running,
    settings,
    state,
    write_versions,
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_versions(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def device(bundles: Path, tmp_path: Path) -> Path:
    """A device that runs the old bundle."""
    return installed(bundles, tmp_path / "device", OLD)


@pytest.fixture
def trial(bundles: Path, device: Path) -> Path:
    """A device with the new bundle on trial."""
    return installed(bundles, device, NEW)


# The way of an update


def test_a_bundle_is_on_trial_until_it_ran_healthy(bundles: Path, tmp_path: Path) -> None:
    device = tmp_path / "far" / "device"
    first = install(settings(bundles / OLD, device))
    assert (first.slot, first.bundle, first.release, first.state) == ("a", OLD, None, "confirmed")
    second = install(settings(bundles / NEW, device))
    assert second == Installed(
        device=device, slot="b", bundle=NEW, release=None, state="trial", trial=TRIAL, probe=None
    )
    assert running(device) == NEW
    now = [100.0]
    with EdgeRunner(device) as runner:
        assert runner.bundle.manifest.name == NEW
        health = Health(runner.bundle, clock=lambda: now[0])
        for image in random_images(6):
            runner(image)
            assert (health.on_trial, state(device)) == (True, "trial")
            health.ok()
            now[0] += 2
    assert (health.on_trial, health.rolled_back, state(device)) == (False, False, "confirmed")
    third = install(settings(bundles / NEWER, device))
    assert (third.slot, third.state, running(device)) == ("a", "trial", NEWER)
    assert sorted(path.name for path in device.iterdir()) == [
        ".install.lock", ".journal.lock", "a", "b", JOURNAL,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("frames", "each_s", "confirmed"),
    [(4, 99.0, False), (5, 2.0, False), (5, 2.6, True), (99, 0.1, False), (102, 0.1, True)],
)
def test_both_time_and_answers_are_needed(frames: int, each_s: float, confirmed: bool, trial: Path) -> None:
    now = [0.0]
    health = Health(Bundle.open(trial / "b"), clock=lambda: now[0])
    for _ in range(frames):
        health.ok()
        now[0] += each_s
    assert state(trial) == ("confirmed" if confirmed else "trial")


def test_an_error_counts_time_and_answers_anew(trial: Path) -> None:
    now = [0.0]
    health = Health(Bundle.open(trial / "b"), clock=lambda: now[0])
    for _ in range(4):
        health.ok()
    now[0] = 50.0
    assert health.error("once") is False
    for _ in range(4):
        health.ok()
    now[0] = 59.9
    health.ok()
    assert state(trial) == "trial"
    now[0] = 60.1
    health.ok()
    assert state(trial) == "confirmed"


def test_too_many_errors_bring_the_old_bundle_back(trial: Path) -> None:
    health = Health(Bundle.open(trial / "b"))
    assert health.error(ValueError("first")) is False
    assert running(trial) == NEW
    assert health.error(ValueError("second\nline")) is True
    assert (health.rolled_back, health.on_trial, running(trial), state(trial)) == (
        True,
        False,
        OLD,
        "rolled_back",
    )
    update = Device(trial).journal().update
    assert update is not None
    assert update.reason == "2 answers failed, the last: second line"
    health.ok()
    assert health.error("more") is True
    with EdgeRunner(trial) as runner:
        assert runner.bundle.manifest.name == OLD
        assert not Health(runner.bundle).on_trial


def test_too_many_starts_bring_the_old_bundle_back(trial: Path) -> None:
    names = [EdgeRunner(trial).bundle.manifest.name for _ in range(4)]
    assert names == [NEW, NEW, OLD, OLD]
    update = Device(trial).journal().update
    assert update is not None
    assert (update.state, update.reason) == (
        "rolled_back", "started 2 times and never ran healthy for long enough",
    )  # fmt: skip


def test_a_program_that_is_killed_again_and_again_ends_up_with_the_old_bundle(trial: Path) -> None:
    def program() -> None:
        if open_to_run(trial).manifest.name == NEW:
            kill()  # as a driver that crashes would

    ends = [in_child(program) for _ in range(4)]
    assert ends == [signal.SIGKILL, signal.SIGKILL, None, None]
    assert running(trial) == OLD


def test_watch_counts_answers_and_errors_but_not_the_cameras(trial: Path) -> None:
    def stream(count: int, error: Exception | None = None):
        yield from range(count)
        if error is not None:
            raise error

    now = [0.0]

    def clock() -> float:
        now[0] += 3
        return now[0]

    bundle = Bundle.open(trial / "b")
    health = Health(bundle, clock=clock)
    with pytest.raises(VideoError, match="cable"):
        list(health.watch(stream(2, VideoError("cable"))))
    with pytest.raises(ZeroDivisionError):
        list(health.watch(stream(0, ZeroDivisionError())))
    assert state(trial) == "trial"
    with pytest.raises(ZeroDivisionError):
        list(health.watch(stream(0, ZeroDivisionError())))
    assert (state(trial), running(trial)) == ("rolled_back", OLD)


def test_watch_confirms(trial: Path) -> None:
    now = iter(range(0, 1000, 3))
    health = Health(Bundle.open(trial / "b"), clock=lambda: float(next(now)))
    seen = []
    for answer in health.watch(iter(range(9))):
        seen.append((answer, state(trial)))
    assert seen == [(index, "trial" if index < 5 else "confirmed") for index in range(9)]


def test_a_loop_that_breaks_off_is_no_error(trial: Path) -> None:
    health = Health(Bundle.open(trial / "b"))
    for _ in range(5):
        for _ in health.watch(iter(range(3))):
            break
    assert (state(trial), health.on_trial) == ("trial", True)


def test_health_speaks_only_for_what_the_program_runs(bundles: Path, trial: Path) -> None:
    """A program that still runs the old bundle must not confirm the new one, nor an earlier one in the same slot."""
    for bundle in (Bundle.open(trial / "a"), Bundle.open(bundles / NEW)):
        health = Health(bundle, clock=lambda: 0.0)
        assert not health.on_trial
        for _ in range(50):
            health.ok()
        assert health.error("x") is False
    late = Health(Bundle.open(trial / "b"))
    earlier = Bundle.open(trial / "b")
    Device(trial).end_trial("meanwhile")
    install(settings(bundles / NEWER, trial))
    assert not Health(earlier).on_trial
    for _ in range(2):
        late.error("of the earlier one")
    assert (running(trial), state(trial), late.rolled_back) == (NEWER, "trial", False)


def test_going_back_when_asked_for(bundles: Path, trial: Path) -> None:
    device = Device(trial)
    assert device.rollback().current == "a"
    assert (running(trial), state(trial)) == (OLD, "rolled_back")
    with pytest.raises(UpdateError, match="slot b holds no bundle that ever ran healthy here"):
        device.rollback()
    install(settings(bundles / NEW, trial))
    assert device.confirm()
    assert not device.confirm()
    device.rollback("it looks odd")
    update = device.journal().update
    assert update is not None
    assert (running(trial), update.reason, update.slot) == (OLD, "it looks odd", "b")


def test_there_is_no_way_back_from_the_first_bundle(device: Path) -> None:
    with pytest.raises(
        UpdateError, match=r"slot b holds no bundle that ever ran healthy here.*edge-sdk install"
    ):
        Device(device).rollback()
    assert running(device) == OLD


# What a runner is given


def test_a_runner_takes_a_device_folder_and_a_bundle_alike(bundles: Path, device: Path) -> None:
    assert resolve_bundle(device) == device / "a"
    assert resolve_bundle(str(bundles / OLD)) == bundles / OLD
    assert resolve_bundle(bundles / "nowhere") == bundles / "nowhere"
    assert (is_device(device), is_device(device / "a"), is_device(bundles)) == (True, False, False)
    with (
        EdgeRunner(device) as one,
        EdgeRunner(bundles / OLD) as other,
        MultiRunner(device, streams=2) as several,
    ):
        assert several.bundle.path == device / "a"
        for image in random_images(4):
            first, second = one(image), other(image)
            assert first.kind == second.kind
            assert (first.mask == second.mask).all()


def test_starts_of_a_confirmed_bundle_write_nothing(device: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in device.rglob("*")}
    for _ in range(5):
        resolve_bundle(device)
    assert {path: path.stat().st_mtime_ns for path in device.rglob("*")} == before


def _spoil(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        data = json.loads(file.read_text())
        change(data)
        file.write_text(json.dumps(data))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: f.write_text(f.read_text()[:40]), FileFormatError, "journal.json: not readable as JSON"),
        (lambda f: f.write_text("[]"), FileFormatError, "expected the journal of a device folder"),
        (lambda f: f.write_bytes(b"\xff"), FileFormatError, "not readable as JSON"),
        (_spoil(lambda d: d.update(current="b")), ChecksumError, "it is damaged or was changed by hand"),
        (_spoil(lambda d: d.pop("checksum")), ChecksumError, "it is damaged or was changed by hand"),
    ],
)
def test_a_damaged_journal_is_said_to_be_one(
    spoil: Callable[[Path], None], error: type[EdgeSdkError], message: str, device: Path
) -> None:
    spoil(device / JOURNAL)
    with pytest.raises(error, match=f"{message}.*The slots a and b beside it are bundles"):
        resolve_bundle(device)
    assert EdgeRunner(device / "a").bundle.manifest.name == OLD


def test_nothing_installed_is_said(tmp_path: Path, bundles: Path) -> None:
    with pytest.raises(
        MissingFileError, match=r"device folder: expected journal\.json in .*edge-sdk install"
    ):
        Device(tmp_path)
    from edge_sdk.update.disk import Disk
    from edge_sdk.update.journal import Journal, write_journal

    write_journal(Disk(), tmp_path, Journal())
    with pytest.raises(UpdateError, match=r"no installation is finished yet.*edge-sdk install BUNDLE DEVICE"):
        resolve_bundle(tmp_path)
    install(settings(bundles / OLD, tmp_path))
    assert running(tmp_path) == OLD


# The real thing


def test_an_installation_that_is_killed_at_any_time_leaves_a_device_that_runs(
    bundles: Path, device: Path
) -> None:
    """The command itself, in a process of its own, killed from outside."""
    command = [sys.executable, "-m", "edge_sdk", "install", str(bundles / NEW), str(device), "--no-probe"]
    seen = set()
    for pause_s in (0.0, 0.6, 0.8, 1.0, 30.0):
        program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            program.wait(pause_s)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
        seen.add(running(device))
        if state(device) == "trial":
            Device(device).end_trial("again")
    assert seen <= {OLD, NEW}
    assert NEW in seen


def test_a_copied_device_folder_is_one_too(trial: Path, tmp_path: Path) -> None:
    shutil.copytree(trial, tmp_path / "copy")
    assert running(tmp_path / "copy") == NEW
