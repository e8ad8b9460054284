"""Tells systemd how a service is doing, as ``sd_notify(3)`` does: datagrams to the socket that it names."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

# systemd advises to report at half of its limit; a quarter leaves room for one that is late.
_REPORTS_A_LIMIT = 4


class Notifier:
    """Reports to the service manager that started this process; without one every method does nothing.

    Args:
        environment: where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are looked up; the process's by
            default.
        clock: seconds.

    Attributes:
        watchdog_s: the service is killed where nothing is heard from it for this long; None where nobody watches.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        found = os.environ if environment is None else environment
        address = found.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the null byte of an address that is no file.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(found) if address else None
        self._clock = clock
        self._reported_s = float("-inf")
        self._status = ""
        self._failed = False

    def ready(self) -> None:
        """The service has started: units that come after it may start too."""
        self._send("READY=1")

    def alive(self) -> None:
        """The service has made progress. Cheap enough for every frame: most calls send nothing."""
        now_s = self._clock()
        if self.watchdog_s is not None and now_s - self._reported_s >= self.watchdog_s / _REPORTS_A_LIMIT:
            self._reported_s = now_s
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; sent where it has changed."""
        line = " ".join(text.split())
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def stopping(self) -> None:
        """The service has begun to end."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                # A manager that does not read must not stop the service: the watchdog is then its affair.
                channel.setblocking(False)
                channel.sendto(message.encode(), self._address)
        except OSError as error:
            level = logging.DEBUG if self._failed else logging.WARNING
            self._failed = True
            _log.log(level, "systemd was not told %s: %s", message.split("=")[0], error)


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    limit = environment.get("WATCHDOG_USEC", "")
    process = environment.get("WATCHDOG_PID", "")
    if not limit.isdecimal() or int(limit) == 0 or (process and process != str(os.getpid())):
        return None
    return int(limit) / 1e6
