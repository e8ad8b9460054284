"""One process of a trainer: started, heard out, killed with all that it started, and buried."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import edge_sdk
from edge_sdk.adapt.channel import HINT
from edge_sdk.errors import TrainerError

# Not as a module: that would look into the working directory first. The parent's path is passed on instead.
_START = (
    "import runpy, sys; sys.path[:] = filter(None, sys.path); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_LAST_LINES, _LONGEST_LINE = 40, 2000
_BURIAL_S = 5.0


class Child:
    """One process in a session of its own, with a thread that starts it, hears it out and buries it.

    Linux sends a parent's death signal when the *thread* that started the process ends, so that must be one that lives
    as long as the process; the caller's may be gone long before.

    Args:
        command: module and arguments.
        fds: file descriptors that it gets.

    Raises:
        TrainerError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], fds: Sequence[int]) -> None:
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        # Held while a signal is sent, so that the process is still there, at least unburied: its number is its own.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._refusal: OSError | None = None
        self._buried = self._killed = False
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(command, fds, started), name="edge-sdk-trainer", daemon=True
        )
        self._thread.start()
        started.wait()
        if self._process is None:
            raise TrainerError(f"the trainer cannot be started: {self._refusal}.") from self._refusal
        self.pid: int = self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        with self._lock:
            if self._buried:
                return False
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    @property
    def last_words(self) -> str:
        """Its last lines of output."""
        return "\n".join(tuple(self._lines))

    def obituary(self) -> TrainerError:
        """How it ended, as an error."""
        return TrainerError(f"the trainer {self._fate()}{last_line(self.last_words)}.", hint=HINT)

    def _fate(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is None:
            return "has closed its end"
        if code == -signal.SIGKILL:
            return "was ended" if self._killed else "was killed (SIGKILL), as Linux does when memory runs out"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"

    def wait(self, timeout_s: float) -> None:
        """Until it has ended, but not longer."""
        deadline = time.monotonic() + timeout_s
        # Not for the thread alone: something that the process left behind may hold its output open.
        while self.alive and time.monotonic() < deadline:
            self._thread.join(0.01)

    def kill(self) -> None:
        """Kill it with all that it started."""
        alive = self.alive
        with self._lock:
            if not self._buried:
                self._killed |= alive
                os.killpg(self.pid, signal.SIGKILL)

    def bury(self) -> None:
        """Wait until nothing is left of it; what even the system cannot end is left behind after 5 s."""
        self._thread.join(_BURIAL_S)

    def _run(self, command: Sequence[str], fds: Sequence[int], started: threading.Event) -> None:
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", _START, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, pass_fds=fds, env=_environment(), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._refusal = error
            return
        finally:
            started.set()
        with cast("IO[bytes]", process.stdout) as output:
            while line := output.readline(_LONGEST_LINE):
                self._lines.append(line.decode(errors="replace").rstrip())
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            os.killpg(process.pid, signal.SIGKILL)  # what it started and left behind
            process.wait()
            self._buried = True


def _environment() -> dict[str, str]:
    """This process's, with modules to be found where this one finds them: a bundle may name a factory of the user's."""
    package = str(Path(edge_sdk.__file__).resolve().parents[1])
    path = [entry or os.getcwd() for entry in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([*path, package]))}


def last_line(words: str) -> str:
    """To follow what happened; nothing where nothing was said."""
    last = words.strip().rpartition("\n")[2].strip()[-300:].rstrip(".")
    return f": {last}" if last else ""
