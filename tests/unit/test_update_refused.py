"""Updates that are refused: by the policy, by the probe, or because another is going on."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.bundle import Bundle, sign_bundle
from edge_sdk.errors import (
    ChecksumError,
    EdgeSdkError,
    FileFormatError,
    MissingFileError,
    OutputError,
    SignatureError,
    UpdateError,
)
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.several import MultiRunner
from edge_sdk.signing import Trust, make_key
from edge_sdk.update import (
    Device,
    ProbeSettings,
    install,
    resolve_bundle,
)
from edge_sdk.update.journal import TrialSettings
from edge_sdk.update.lock import locked
from edge_sdk.update.probe import ProbeReport
from tests.update_world import (
    NEW,
    NEWER,
    OLD,
    installed,
    passing,
    running,
    settings,
    state,
    write_version,
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


# What is refused


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("cryptography")
    folder = tmp_path_factory.mktemp("keys")
    ours, theirs = make_key(folder / "ours.pem"), make_key(folder / "theirs.pem")
    return {"ours": ours[0], "ours.pub": ours[1], "theirs": theirs[0], "theirs.pub": theirs[1]}


def _signed(folder: Path, version: str, key: Path, release: int) -> Path:
    sign_bundle(write_version(folder, version), key, release)
    return folder


def _alter(name: str) -> Callable[[Path], object]:
    def alter(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return alter


REFUSED: dict[str, tuple[str, int, Callable[[Path], object], type[EdgeSdkError], str]] = {
    "unsigned": ("ours", 9, lambda f: (f / "signature.json").unlink(), SignatureError, "it is not signed"),
    "altered manifest": ("ours", 9, _alter("manifest.json"), SignatureError, "manifest is not the one that was"),
    "altered file": ("ours", 9, _alter("delta.onnx"), ChecksumError, "'delta.onnx' is damaged or replaced"),
    "altered signature": ("ours", 9, _alter("signature.json"), SignatureError, "signature"),
    "wrong key": ("theirs", 9, lambda f: None, SignatureError, "signed by key .* trusted: "),
    "older release": ("ours", 4, lambda f: None, SignatureError, "is release 4, and release 5 was confirmed"),
    "same release, other content": ("ours", 5, lambda f: None, SignatureError, "is release 5, and release 5 was"),
    "truncated": (
        "ours", 9, lambda f: (f / "delta.onnx").write_bytes(b"x"), FileFormatError, "'delta.onnx' is truncated",
    ),
    "file missing": ("ours", 9, lambda f: (f / "delta.onnx").unlink(), MissingFileError, "'delta.onnx' is missing"),
    "file added": ("ours", 9, lambda f: (f / "w.bin").touch(), SignatureError, "'w.bin' is not in its manifest"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_policy_refuses_is_not_installed(case: str, keys: dict[str, Path], tmp_path: Path) -> None:
    trust = Trust(keys=(keys["ours.pub"],))
    device = tmp_path / "device"
    install(settings(_signed(tmp_path / "one", "one", keys["ours"], 4), device, trust=trust))
    install(settings(_signed(tmp_path / "five", "five", keys["ours"], 5), device, trust=trust))
    Device(device).confirm()
    before = {path: path.read_bytes() for path in device.rglob("*") if path.is_file()}
    key, release, spoil, error, message = REFUSED[case]
    spoil(_signed(tmp_path / "next", "next", keys[key], release))
    with pytest.raises(error, match=message):
        install(settings(tmp_path / "next", device, trust=trust))
    # Nothing was touched: the older bundle is still there to go back to.
    assert {
        path: path.read_bytes() for path in device.rglob("*") if path.is_file() and path in before
    } == before
    assert (running(device), EdgeRunner(device, trust=trust).bundle.manifest.name) == ("five", "five")


def test_a_newer_release_and_the_very_same_one_are_accepted(keys: dict[str, Path], tmp_path: Path) -> None:
    trust = Trust(keys=(keys["ours.pub"],))
    device = tmp_path / "device"
    five = _signed(tmp_path / "five", "five", keys["ours"], 5)
    installed = install(settings(five, device, trust=trust))
    assert installed.release == 5
    journal = Device(device).journal()
    assert journal.signed_only
    assert journal.floor is not None
    assert journal.floor.release == 5
    assert install(settings(five, device, trust=trust)).state == "trial"
    Device(device).confirm()
    six = _signed(tmp_path / "six", "six", keys["ours"], 6)
    install(settings(six, device, trust=trust))
    # Not confirmed yet, so an older one than it may still come.
    assert Device(device).journal().floor == journal.floor
    Device(device).rollback()
    install(settings(six, device, trust=trust))
    Device(device).confirm()
    Device(device).rollback()
    with pytest.raises(SignatureError, match="is release 5, and release 6 was confirmed on this device"):
        install(settings(five, device, trust=trust))
    assert running(device) == "five"


def test_a_device_of_signed_bundles_takes_no_others(
    keys: dict[str, Path], tmp_path: Path, bundles: Path
) -> None:
    trust = Trust(keys=(keys["ours.pub"],))
    device = tmp_path / "device"
    install(settings(_signed(tmp_path / "one", "one", keys["ours"], 1), device, trust=trust))
    with pytest.raises(SignatureError, match=r"takes only signed bundles.*--trust KEY\.pub"):
        install(settings(bundles / NEW, device))
    with pytest.raises(SignatureError, match="signed by key"):
        EdgeRunner(device, trust=Trust(keys=(keys["theirs.pub"],)))
    with pytest.raises(SignatureError, match="signed by key"):
        MultiRunner(device, streams=1, trust=Trust(keys=(keys["theirs.pub"],)))
    assert EdgeRunner(device).bundle.manifest.name == "one"


def test_a_runner_asks_its_own_policy_of_an_opened_bundle(keys: dict[str, Path], tmp_path: Path) -> None:
    bundle = write_version(tmp_path / "plain", "plain")
    with pytest.raises(SignatureError, match="it is not signed"):
        EdgeRunner(bundle, trust=Trust(keys=(keys["ours.pub"],)))
    sign_bundle(bundle, keys["ours"], 3)
    runner = EdgeRunner(bundle, trust=Trust(keys=(keys["ours.pub"],)))
    assert runner.bundle.signature is not None
    # What was changed after the bundle was opened shows too.
    _alter("delta.onnx")(bundle.path)
    with pytest.raises(ChecksumError, match=r"'delta\.onnx' is damaged"):
        EdgeRunner(bundle, trust=Trust(keys=(keys["ours.pub"],)))


def test_an_update_on_trial_is_not_overwritten(bundles: Path, trial: Path) -> None:
    with pytest.raises(
        UpdateError, match=r"'new' is still on trial.*edge-sdk slots .* --confirm, or --rollback"
    ):
        install(settings(bundles / NEWER, trial))
    assert (running(trial), state(trial)) == (NEW, "trial")


def test_other_folders_are_left_alone(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name, message in (("home", "something else is in its place"), ("file", "Not a directory")):
        with pytest.raises(OutputError, match=message):
            install(settings(bundles / OLD, tmp_path / name))
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]


# The probe


def test_a_failed_probe_leaves_the_old_bundle_and_an_empty_slot(bundles: Path, device: Path) -> None:
    def failing(bundle: Bundle, reference: Path, asked: ProbeSettings) -> ProbeReport:
        assert (bundle.path, state(device), running(device)) == (device / "b", "probing", OLD)
        return ProbeReport(error="it said nonsense.")

    wanted = settings(bundles / NEW, device, probe=ProbeSettings(), reference=Path("any"))
    with pytest.raises(
        UpdateError, match=r"new: it failed its probe on this device: it said nonsense\. The bundle"
    ):
        install(wanted, probe=failing)
    journal = Device(device).journal()
    assert (running(device), state(device), list(journal.slots)) == (OLD, "failed", ["a"])
    assert not (device / "b").exists()
    assert install(wanted, probe=passing).probe == ProbeReport(frames=1)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space"), ZeroDivisionError()])
def test_whatever_stops_an_installation_the_old_bundle_runs(
    error: BaseException, bundles: Path, device: Path
) -> None:
    def stopped(*_: object) -> ProbeReport:
        raise error

    with pytest.raises(type(error)):
        install(settings(bundles / NEW, device, probe=ProbeSettings(), reference=Path("any")), probe=stopped)
    assert (running(device), state(device), (device / "b").exists()) == (OLD, "failed", False)
    assert install(settings(bundles / NEW, device)).state == "trial"


def test_a_probe_needs_a_reference(bundles: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MissingFileError, match=r"carries no reference\.npz to probe it with.*edge-sdk compare"
    ):
        install(settings(bundles / NEW, tmp_path / "device", probe=ProbeSettings()))
    assert not (tmp_path / "device").exists()


# Locks


def test_two_installations_do_not_meet(bundles: Path, device: Path) -> None:
    def meanwhile(*_: object) -> ProbeReport:
        with pytest.raises(UpdateError, match=rf"another installation is going on \(process {os.getpid()}\)"):
            install(settings(bundles / NEWER, device))
        with pytest.raises(UpdateError, match="another installation is going on"):
            Device(device).rollback()
        assert EdgeRunner(device).bundle.manifest.name == OLD  # what runs is not held up
        return ProbeReport()

    install(settings(bundles / NEW, device, probe=ProbeSettings(), reference=Path("any")), probe=meanwhile)
    assert running(device) == NEW


def _hold(file: Path, held: Any) -> None:
    with locked(file, wait_s=0, busy="busy", hint=""):
        held.set()
        time.sleep(60)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", held))
    holder.start()
    assert held.wait(30)
    with (
        pytest.raises(UpdateError, match=rf"busy \(process {holder.pid}\)"),
        locked(tmp_path / "lock", wait_s=0.05, busy="busy", hint=""),
    ):
        pass
    holder.kill()
    holder.join()
    with locked(tmp_path / "lock", wait_s=0, busy="busy", hint=""):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def _start_often(device: Path, times: int) -> None:
    for _ in range(times):
        resolve_bundle(device)


def test_starts_that_meet_are_all_counted(bundles: Path, device: Path) -> None:
    install(settings(bundles / NEW, device, trial=TrialSettings(max_starts=1000)))
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=_start_often, args=(device, 10)) for _ in range(4)]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    update = Device(device).journal().update
    assert update is not None
    assert update.starts == 40
