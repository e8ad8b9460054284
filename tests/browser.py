"""A real browser for tests that look at a page: Debian's Chromium, driven over its debugging pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "no Chromium here: pages were not looked at (Debian: apt install chromium)"

# No sandbox, because tests run as root in containers; nothing that talks to the network by itself.
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--no-proxy-server", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads commands from file 3 and writes answers to file 4.
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(text), fcntl.F_DUPFD, 10) for text in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
    os.dup2(end, number)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One headless Chromium with one tab; for use in a ``with`` block.

    Args:
        size: width and height of the window in pixels.
        timeout_s: of everything that is waited for.

    Attributes:
        complaints: errors of the page's scripts and what its own policy forbade, so far.
    """

    def __init__(self, size: tuple[int, int] = (1200, 860), timeout_s: float = 60.0) -> None:
        self._size, self._timeout_s = size, timeout_s
        self._commands = 0
        self._unread = b""
        self.complaints: list[str] = []

    def __enter__(self) -> Browser:
        program = find_chromium()
        assert program is not None, MISSING
        self._profile = tempfile.mkdtemp(prefix="edge-sdk-chromium-")
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        arguments = [*_FLAGS, f"--user-data-dir={self._profile}"]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _LAUNCH,
                str(theirs_in),
                str(theirs_out),
                program,
                *arguments,
                "about:blank",
            ],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            self.resize(*self._size)
            self._tab("Runtime.enable")
            self._tab("Log.enable")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._call("Browser.close")
                self._process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            pass
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._to)
            os.close(self._from)
            shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str) -> None:
        """Go to an address; does not wait for what is on it."""
        self._tab("Page.navigate", url=url)

    def leave(self) -> None:
        """Leave the page, and forget what was complained about."""
        self.open("about:blank")
        self.until("location.href === 'about:blank'")
        self.complaints.clear()

    def value(self, expression: str) -> Any:
        """What a JavaScript expression on the page comes to; promises are waited for."""
        answer = self._tab("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """The first true value of an expression."""
        end_s = time.monotonic() + self._timeout_s
        while time.monotonic() < end_s:
            found = self.value(expression)
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true: {expression}; page: {self.value('document.body.innerText')!r}")

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self._tab("Page.captureScreenshot", format="png")["data"])

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, in pixels."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._tab("Emulation.setDeviceMetricsOverride", **screen)

    def dark(self, on: bool) -> None:
        """Ask the page for dark colours."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self._tab("Emulation.setEmulatedMedia", features=[scheme])

    def printed(self, on: bool) -> None:
        """Lay the page out as on paper, though in one piece."""
        self._tab("Emulation.setEmulatedMedia", media="print" if on else "")

    def _tab(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._commands += 1
        command: dict[str, Any] = {"id": self._commands, "method": method, "params": parameters}
        if session is not None:
            command["sessionId"] = session
        os.write(self._to, json.dumps(command).encode() + b"\0")
        end_s = time.monotonic() + self._timeout_s
        while True:
            answer = self._read(end_s)
            if answer.get("id") == self._commands:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self, end_s: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end_s - time.monotonic()))
            assert ready, "Chromium does not answer"
            more = os.read(self._from, 1 << 16)
            assert more, "Chromium has ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        details = found.get("params", {})
        if found.get("method") == "Runtime.exceptionThrown":
            thrown = details["exceptionDetails"]
            self.complaints.append(thrown.get("exception", {}).get("description") or thrown["text"])
        elif found.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
            entry = details["entry"]
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
        return found
