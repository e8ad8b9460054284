"""What a service tells systemd, heard on a socket like systemd's."""

from __future__ import annotations

import logging
import os

import pytest

from edge_sdk.systemd import Notifier
from tests.cameras import SimulatedClock
from tests.jetson_files import Manager


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    name = f"edge-sdk-test-{os.getpid()}-{tmp_path.name}"
    file = str(tmp_path / "notify")
    manager = Manager(file) if request.param == "file" else Manager(f"\0{name}", f"@{name}")
    yield manager
    manager.close()


def test_messages_are_those_of_sd_notify(manager):
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    notifier.ready()
    notifier.status("30 frames,\n  29.8/s")
    notifier.status("30 frames, 29.8/s")
    notifier.alive()  # nobody watches
    notifier.stopping()
    assert manager.heard() == ["READY=1", "STATUS=30 frames, 29.8/s", "STOPPING=1"]


def test_progress_is_reported_four_times_a_limit_however_often_it_is_told(manager):
    clock = SimulatedClock()
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "8000000"}, clock)
    assert notifier.watchdog_s == 8.0
    for _ in range(10 * 30):
        notifier.alive()
        clock.pass_s(1 / 30)
    assert manager.heard() == ["WATCHDOG=1"] * 5  # at 0, 2, 4, 6 and 8 s


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_is_found_where_it_watches_this_process(environment, watchdog_s):
    assert Notifier({"NOTIFY_SOCKET": "/run/x", **environment}).watchdog_s == watchdog_s
    assert Notifier(environment).watchdog_s is None


def test_without_a_manager_nothing_happens():
    notifier = Notifier({})
    for tell in (notifier.ready, notifier.alive, notifier.stopping):
        tell()
    notifier.status("unheard")


def test_a_manager_that_does_not_listen_is_logged_once(tmp_path, caplog):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.stopping()
    assert [record.message.split(":")[0] for record in caplog.records] == ["systemd was not told READY"]


def test_a_manager_that_does_not_read_stops_nothing(manager, caplog):
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    for number in range(5000):
        notifier.status(f"{number}")
    assert manager.heard()[0] == "STATUS=0"
    assert "systemd was not told STATUS" in caplog.text
