"""However a program ends, the camera is released; each case is a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_sdk.errors import EdgeSdkError
from edge_sdk.video.signals import Stopped, exit_on_signals

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, threading, time
from edge_sdk.video import LiveSource
from edge_sdk.video.signals import exit_on_signals
from tests.cameras import FakeConnection, FakeDevice
from tests.videos import picture

def release(self):
    with open(sys.argv[1], "a") as file:
        file.write("released\\n")

FakeConnection.release = release
device = FakeDevice([picture(0), lambda: time.sleep(0.005)] * 100_000)

def ready():
    sys.stdout.write("ready\\n")
    sys.stdout.flush()

"""

FOREVER = """
    for frame in source:
        if frame.seq >= 0 and not globals().get("told"):
            told = True
            ready()
"""

ENDS = {
    "with block": ("with LiveSource(device) as source:\n    source.take()\n", None, 0),
    "exception": ("with LiveSource(device) as source:\n    source.take()\n    1 / 0\n", None, 1),
    "never closed": ("source = LiveSource(device)\nsource.take()\n", None, 0),
    "exit in the middle": ("source = LiveSource(device)\nsource.take()\nsys.exit(7)\n", None, 7),
    "an uncaught exception, never closed": ("source = LiveSource(device)\nsource.take()\n1 / 0\n", None, 1),
    "SIGTERM": (f"with exit_on_signals(), LiveSource(device) as source:{FOREVER}", "SIGTERM", 143),
    "SIGHUP": (f"with exit_on_signals(), LiveSource(device) as source:{FOREVER}", "SIGHUP", 129),
    "SIGTERM, never closed": (
        f"source = LiveSource(device)\nwith exit_on_signals():{FOREVER}",
        "SIGTERM",
        143,
    ),
    "SIGINT": (f"with LiveSource(device) as source:{FOREVER}", "SIGINT", -2),
    "SIGTERM while the source stalls": (
        "device = FakeDevice([picture(0), ready, lambda: time.sleep(30)])\n"
        "with exit_on_signals(), LiveSource(device) as source:\n    source.take()\n",
        "SIGTERM",
        143,
    ),
}


def hear_all_signals() -> None:
    """What a shell starts in the background, and so its children, ignores SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("end", ENDS)
def test_the_camera_is_released(end: str, tmp_path: Path) -> None:
    body, name, code = ENDS[end]
    marks = tmp_path / "released"
    command = [sys.executable, "-c", PROGRAM + body, str(marks)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_all_signals,
    ) as process:
        if name is not None:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(getattr(signal, name))
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code, errors
    if "stalls" in end:
        # The thread is in the driver; the process does not wait for it, and its end frees the device.
        assert "the device is not released before the process ends" in errors
        assert not marks.exists()
    else:
        assert marks.read_text() == "released\n"


def test_handlers_are_restored_and_only_the_first_signal_raises() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.getsignal(signal.SIGINT)
    cleaned = False
    with pytest.raises(Stopped) as caught, exit_on_signals():  # noqa: PT012
        assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGINT) is interrupt
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned = True
    assert cleaned
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with exit_on_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_belong_to_the_main_thread() -> None:
    errors = []

    def work() -> None:
        with pytest.raises(EdgeSdkError, match="on the main thread only") as caught, exit_on_signals():
            pass
        errors.append(caught.value)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 1
