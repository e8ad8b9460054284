"""The trainer's process: started, watched, ended, and started again as often as the settings allow."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from edge_sdk.adapt.channel import HINT, Layout, Reply, RunnerChannel, TrainerGoneError
from edge_sdk.adapt.child import Child, last_line
from edge_sdk.adapt.messages import Keep, Learned, Start, Stop, Undo
from edge_sdk.errors import ClosedError, TrainerError

TRAINER = "edge_sdk.adapt.trainer"
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

    One thread may call :meth:`lesson` and :meth:`send`, which never wait long, while another is in :meth:`receive`.
    After any :class:`TrainerError` but the budget's the process is gone or going: :meth:`restart` is what can follow.
    The process dies with this one, and :meth:`close` leaves nothing behind.

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
        # Channel and process change together, whichever thread looks.
        self._running: tuple[RunnerChannel, Child] | None = None
        self._starting = threading.Lock()
        self._closed = False
        self.restarted = 0

    @property
    def alive(self) -> bool:
        """Whether a trainer runs."""
        running = self._running
        return running is not None and running[1].alive

    @property
    def learning(self) -> bool:
        """Whether a lesson is under way with a trainer that runs."""
        running = self._running
        return running is not None and running[0].learning and running[1].alive

    @property
    def pid(self) -> int | None:
        """Of the process that runs, or ran last; None where there was none."""
        running = self._running
        return running[1].pid if running else None

    @property
    def last_words(self) -> str:
        """The last lines that the trainer wrote to stdout or stderr."""
        running = self._running
        return running[1].last_words if running else ""

    def start(self, start: Start) -> None:
        """Start the first process and send ``start``; its ``Ready`` comes by :meth:`receive`.

        Raises:
            TrainerError: it cannot be started, or one runs already.
            ClosedError: after :meth:`close`.
            OutputError: no room for the shared memory.
        """
        with self._starting:
            if self._closed:
                raise ClosedError("the trainer's process was closed.")
            if self.alive:
                raise TrainerError("a trainer is running already.", hint="Restart it instead.")
            self.kill()
            channel = RunnerChannel(self._layout, self._clock)
            try:
                child = Child([*self._command, *channel.arguments], channel.fds)
            except BaseException:
                channel.close()
                raise
            channel.handed_over()
            self._running = channel, child
        self.send(start)

    def restart(self, start: Start) -> None:
        """Kill what is left of the last process and start another with ``start``.

        Raises:
            TrainerError: it was started again too often, or cannot be started.
            ClosedError: after :meth:`close`.
            OutputError: no room for the shared memory.
        """
        self.kill()
        if not self._budget.take():
            raise TrainerError(
                f"the trainer ended, and was started again {self._restarts} times within {self._window_s:g} s already"
                f"{last_line(self.last_words)}.",
                hint="Learning stops here; repair what the trainer says, or raise 'restarts'.",
            )
        self.restarted += 1
        self.start(start)

    def send(self, message: Start | Undo | Keep | Stop) -> None:
        """Send anything but a lesson.

        Raises:
            TrainerError: the trainer is gone, or does not read.
        """
        self._quickly(lambda channel: channel.send(message))

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
        self._quickly(lambda channel: channel.lesson(seq, image, label))

    def receive(self, timeout_s: float | None = None) -> Reply | None:
        """The next message from the trainer; None where none came in time.

        Args:
            timeout_s: in seconds; None waits until one comes or the patience ends.

        Raises:
            TrainerError: the trainer ended, with its last words; it does not answer; or it broke the agreement.
        """
        return self._guarded(lambda channel, child: self._patient(channel, child, timeout_s))

    def mask(self) -> np.ndarray:
        """The trainer's own answer to the last lesson's frame, with what it learned: (H, W) uint8, copied."""
        return self._guarded(lambda channel, _: channel.mask())

    def graph(self, learned: Learned, step: str) -> bytes:
        """A step's new graph, copied and checked against ``learned``.

        Raises:
            TrainerError: it does not fit, or its SHA-256 is not the one reported.
        """
        return self._guarded(lambda channel, _: channel.graph(learned, step))

    def weights(self, learned: Learned) -> dict[str, np.ndarray]:
        """The open layers' new weights by name, copied and checked; float32 or float16, read-only.

        Raises:
            TrainerError: they do not fit, or are damaged.
        """
        return self._guarded(lambda channel, _: channel.weights(learned))

    def kill(self) -> None:
        """End the process at once, whatever it does; it can be started again. Killing twice does nothing."""
        running = self._running
        if running is not None:
            _end(*running)

    def close(self, grace_s: float = 2.0) -> None:
        """Ask the trainer to stop, and kill it where it has not ended after ``grace_s`` seconds; none can follow it."""
        with self._starting:
            self._closed = True
        running = self._running
        if running is not None and running[1].alive:
            # Where it cannot be asked it is killed all the same.
            with contextlib.suppress(TrainerError):
                running[0].send(Stop())
                running[1].wait(grace_s)
        self.kill()

    def _present(self) -> tuple[RunnerChannel, Child]:
        if self._running is None:
            raise TrainerError("no trainer runs.", hint="Start one first.")
        return self._running

    def _guarded(self, call: Callable[[RunnerChannel, Child], T]) -> T:
        """``call``, and the process killed and buried where it has broken the agreement or ended."""
        channel, child = self._present()
        try:
            return call(channel, child)
        except (TrainerGoneError, ClosedError):
            child.wait(_GRACE_S)  # it is ending; its exit code says more than a kill would
            _end(channel, child)
            raise child.obituary() from None
        except TrainerError:
            _end(channel, child)
            raise

    def _quickly(self, call: Callable[[RunnerChannel], None]) -> None:
        """``call`` for a thread that has frames to run: what has to be waited for is left to who receives."""
        channel, child = self._present()
        try:
            call(channel)
        except (TrainerGoneError, ClosedError):
            raise child.obituary() from None
        except TrainerError:
            child.kill()
            raise

    def _patient(self, channel: RunnerChannel, child: Child, timeout_s: float | None) -> Reply | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = _SLICE_S if deadline is None else max(0.0, deadline - time.monotonic())
            # Looked at before, so that its last message is not missed.
            dead = not child.alive
            message = channel.receive(0 if dead else min(left, _SLICE_S))
            if message is not None:
                return message
            if dead:  # and something that it has left behind holds its end open
                raise TrainerGoneError("the trainer has ended.", hint=HINT)
            if channel.waiting_s > self._patience_s:
                raise TrainerError(f"the trainer has not answered for {self._patience_s:g} s.", hint=HINT)
            if left <= _SLICE_S and deadline is not None:
                return None


def _end(channel: RunnerChannel, child: Child) -> None:
    child.kill()
    child.bury()
    channel.close()
