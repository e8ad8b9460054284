"""The scripts of jetson/ as modules, and their processes."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
JETSON = ROOT / "jetson"


def script(name: str) -> ModuleType:
    """``jetson/NAME.py`` as a module of its own."""
    own_name = f"jetson_script_{name}"
    spec = importlib.util.spec_from_file_location(own_name, JETSON / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Manager:
    """What systemd is to a service: the other end of NOTIFY_SOCKET.

    Args:
        path: of the socket.
        address: as the service is told it; the path by default.
    """

    def __init__(self, path: str, address: str | None = None) -> None:
        self.address = address or path
        self.messages: list[str] = []
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(path)
        self._channel.setblocking(False)

    def heard(self) -> list[str]:
        """All messages so far."""
        while True:
            try:
                self.messages.append(self._channel.recv(4096).decode())
            except BlockingIOError:
                return self.messages

    def wait_for(
        self, message: str, process: subprocess.Popen[str], times: int = 1, limit_s: float = 60.0
    ) -> None:
        """Wait until ``message`` has come so many times."""
        end_s = time.monotonic() + limit_s
        while self.heard().count(message) < times:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end_s, f"no {message} in {self.messages}"
            time.sleep(0.01)

    def close(self) -> None:
        self._channel.close()


def start(file: Path, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A Python file as a process that sees the repository."""
    return subprocess.Popen(
        [sys.executable, str(file), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
