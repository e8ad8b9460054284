"""The trainer's process: started, watched, ended, and started again as often as the settings allow."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar, cast

import numpy as np

import edge_sdk
from edge_sdk.adapt.channel import HINT, Layout, Reply, RunnerChannel, TrainerGoneError
from edge_sdk.adapt.messages import Keep, Learned, Start, Stop, Undo
from edge_sdk.errors import ClosedError, TrainerError

TRAINER = "edge_sdk.adapt.trainer"
# Not as a module: that would look into the working directory first. The parent's path is passed on instead.
_START = (
    "import runpy, sys; sys.path[:] = filter(None, sys.path); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_LAST_LINES, _LONGEST_LINE = 40, 2000
_GRACE_S = 5.0
# A wait without end looks this often whether the patience is over.
_SLICE_S = 1.0

T = TypeVar("T")


class RestartBudget:
    """How often something may be started again within a time.

    Args:
        limit: so many times.
        window_s: within so many seconds.
        clock: monotonic seconds.
    """

    def __init__(self, limit: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._window_s, self._clock = limit, window_s, clock
        self._times: deque[float] = deque()

    def take(self) -> bool:
        """Whether it may be done once more now; if so, that is counted."""
        now = self._clock()
        while self._times and now - self._times[0] >= self._window_s:
            self._times.popleft()
        if len(self._times) >= self._limit:
            return False
        self._times.append(now)
        return True


class TrainerProcess:
    """A trainer in a process of its own, one after the other where they die; none runs until :meth:`start`.

    One thread may call :meth:`lesson` and :meth:`send` while another is in :meth:`receive`. After any
    :class:`TrainerError` but the budget's the process has been killed: :meth:`restart` is what can follow. The process
    dies with this one, and :meth:`close` leaves nothing behind.

    Args:
        layout: of the shared memory; each process has one of its own.
        module: what is run; it takes its end by ``TrainerChannel.from_arguments()``.
        arguments: further ones for it, before those of the channel.
        restarts, restart_window_s: see ``AdaptSettings``.
        patience_s: an answer that takes longer is not waited for: the trainer hangs.
        clock: monotonic seconds, of the budget and the patience.

    Attributes:
        restarted: how often it was started again.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        module: str = TRAINER,
        arguments: Sequence[str] = (),
        restarts: int = 5,
        restart_window_s: float = 600.0,
        patience_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout, self._command = layout, [module, *arguments]
        self._restarts, self._window_s, self._patience_s, self._clock = (
            restarts, restart_window_s, patience_s, clock
        )  # fmt: skip
        self._budget = RestartBudget(restarts, restart_window_s, clock)
        self._channel: RunnerChannel | None = None
        self._child: _Child | None = None
        self.restarted = 0

    @property
    def alive(self) -> bool:
        """Whether a trainer runs."""
        return self._child is not None and self._child.alive

    @property
    def learning(self) -> bool:
        """Whether a lesson is under way with a trainer that runs."""
        return self.alive and self._channel is not None and self._channel.learning

    @property
    def pid(self) -> int | None:
        """Of the process that runs, or ran last; None where there was none."""
        return self._child.pid if self._child else None

    @property
    def last_words(self) -> str:
        """The last lines that the trainer wrote to stdout or stderr."""
        return self._child.last_words if self._child else ""

    def start(self, start: Start) -> None:
        """Start the first process and send ``start``; its ``Ready`` comes by :meth:`receive`.

        Raises:
            TrainerError: it cannot be started, or one runs already.
            OutputError: no room for the shared memory.
        """
        if self.alive:
            raise TrainerError("a trainer is running already.")
        self.kill()
        self._channel = channel = RunnerChannel(self._layout, self._clock)
        try:
            self._child = _Child([*self._command, *channel.arguments], channel.fds)
        except BaseException:
            self.kill()
            raise
        channel.handed_over()
        self.send(start)

    def restart(self, start: Start) -> None:
        """Kill what is left of the last process and start another with ``start``.

        Raises:
            TrainerError: it was started again too often, or cannot be started.
            OutputError: no room for the shared memory.
        """
        self.kill()
        if not self._budget.take():
            raise TrainerError(
                f"the trainer ended again after {self._restarts} restarts within {self._window_s:g} s"
                f"{_said(self.last_words)}.",
                hint="Learning stops here; repair what the trainer says, or raise 'restarts'.",
            )
        self.restarted += 1
        self.start(start)

    def send(self, message: Start | Undo | Keep | Stop) -> None:
        """Send anything but a lesson.

        Raises:
            TrainerError: the trainer is gone, or does not read.
        """
        self._guarded(lambda channel: channel.send(message))

    def lesson(self, seq: int, image: np.ndarray, label: np.ndarray) -> None:
        """Give a lesson; its report comes by :meth:`receive`.

        Args:
            seq: the frame's number.
            image: (H, W, 3) uint8 BGR; copied.
            label: (H, W) uint8; copied.

        Raises:
            TrainerError: the trainer is gone; or a lesson is still under way, which it goes on with.
            ShapeError: an array is not of the layout's size; the trainer goes on.
        """
        if self.learning:
            raise TrainerError(
                f"lesson on frame {seq}: the one before is still under way.", hint="Wait for it."
            )
        self._guarded(lambda channel: channel.lesson(seq, image, label))

    def receive(self, timeout_s: float | None = None) -> Reply | None:
        """The next message from the trainer; None where none came in time.

        Args:
            timeout_s: in seconds; None waits until one comes or the patience ends.

        Raises:
            TrainerError: the trainer ended, with its last words; it does not answer; or it broke the agreement.
        """
        return self._guarded(lambda channel: self._patient(channel, timeout_s))

    def mask(self) -> np.ndarray:
        """The trainer's own answer to the last lesson's frame, with what it learned: (H, W) uint8, copied."""
        return self._guarded(RunnerChannel.mask)

    def graph(self, learned: Learned, step: str) -> bytes:
        """A step's new graph, copied and checked against ``learned``.

        Raises:
            TrainerError: it does not fit, or its SHA-256 is not the one reported.
        """
        return self._guarded(lambda channel: channel.graph(learned, step))

    def weights(self, learned: Learned) -> dict[str, np.ndarray]:
        """The open layers' new weights by name, copied and checked; float32 or float16, read-only.

        Raises:
            TrainerError: they do not fit, or are damaged.
        """
        return self._guarded(lambda channel: channel.weights(learned))

    def kill(self) -> None:
        """End the process at once, whatever it does; it can be started again. Killing twice does nothing."""
        self._end(self._channel, self._child)

    def close(self, grace_s: float = 2.0) -> None:
        """Ask the trainer to stop, and kill it where it has not ended after ``grace_s`` seconds."""
        channel, child = self._channel, self._child
        if channel is not None and child is not None and child.alive:
            # Where it cannot be asked it is killed all the same.
            with contextlib.suppress(TrainerError):
                channel.send(Stop())
                child.wait(grace_s)
        self.kill()

    def _guarded(self, call: Callable[[RunnerChannel], T]) -> T:
        """``call``, and the process killed where it has broken the agreement or ended."""
        channel, child = self._channel, self._child
        if channel is None or child is None:
            raise TrainerError("no trainer runs.", hint="Start one first.")
        try:
            return call(channel)
        except (TrainerGoneError, ClosedError):
            child.wait(_GRACE_S)  # it is ending; its exit code says more than a kill would
            self._end(channel, child)
            raise TrainerError(f"the trainer {child.fate}{_said(child.last_words)}.", hint=HINT) from None
        except TrainerError:
            self._end(channel, child)
            raise

    def _patient(self, channel: RunnerChannel, timeout_s: float | None) -> Reply | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = _SLICE_S if deadline is None else max(0.0, deadline - time.monotonic())
            message = channel.receive(min(left, _SLICE_S))
            if message is not None:
                return message
            if channel.waiting_s > self._patience_s:
                raise TrainerError(f"the trainer has not answered for {self._patience_s:g} s.", hint=HINT)
            if left <= _SLICE_S and deadline is not None:
                return None

    @staticmethod
    def _end(channel: RunnerChannel | None, child: _Child | None) -> None:
        if child is not None:
            child.end()
        if channel is not None:
            channel.close()


class _Child:
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
        self._buried = False
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

    @property
    def fate(self) -> str:
        """How it ended, to follow "the trainer"."""
        code = self._process.returncode if self._process is not None else None
        if code is None:
            return "closed its end and does not go"
        if code == -signal.SIGKILL:
            return "was killed (SIGKILL), as Linux does when memory runs out"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"

    def wait(self, timeout_s: float) -> None:
        """Until it has ended, but not longer."""
        deadline = time.monotonic() + timeout_s
        # Not for the thread alone: something that the process left behind may hold its output open.
        while self.alive and time.monotonic() < deadline:
            self._thread.join(0.01)

    def end(self) -> None:
        """Kill it with all that it started. What even the system cannot end is left behind after 5 s."""
        with self._lock:
            if not self._buried:
                os.killpg(self.pid, signal.SIGKILL)
        self._thread.join(_GRACE_S)

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


def _said(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return f": {lines[-1][-300:].rstrip('.')}" if lines else ""
