"""Both ends of what the runner and its trainer process say to each other: messages over a socket, arrays in memory.

The runner's end, :class:`RunnerChannel`, believes nothing: order, size and SHA-256 of all that comes are checked. The
trainer's end, :class:`TrainerChannel`, ends with the runner.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edge_sdk.adapt.memory import Layout, SharedMemory, anonymous_memory, pack_weights, unpack_weights
from edge_sdk.adapt.messages import Failed, Keep, Kept, Learned, Lesson, Ready, Start, Stop, Undo
from edge_sdk.adapt.pipe import MessagePipe
from edge_sdk.errors import TrainerError

__all__ = ["Layout", "RunnerChannel", "TrainerChannel"]

_PR_SET_PDEATHSIG = 1
HINT = "The trainer has to be started again."

Request = Start | Lesson | Undo | Keep | Stop
Reply = Ready | Learned | Kept | Failed
_REPLY_TO: dict[type, type] = {Start: Ready, Lesson: Learned, Keep: Kept}


class TrainerGoneError(TrainerError):
    """The trainer's end is closed: it has ended, or is about to."""


class RunnerChannel:
    """The runner's end, and the trainer's until it is handed over. One thread may send while another receives.

    After a :class:`TrainerError` of any method the trainer has broken the agreement or is gone: kill it.

    Args:
        layout: of the shared memory.
        clock: monotonic seconds.

    Raises:
        OutputError: no room for the shared memory.
    """

    def __init__(self, layout: Layout, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Requests that are to be answered, oldest first, and since when the oldest is waited for.
        self._open: deque[Request] = deque()
        self._since = clock()
        self._lock = threading.Lock()
        self._memory_fd = anonymous_memory(layout.size)
        try:
            self._memory = SharedMemory(layout, self._memory_fd)
            ours, self._theirs = socket.socketpair()
        except BaseException:
            os.close(self._memory_fd)
            raise
        self._handed_over = False
        self._pipe = MessagePipe(ours)

    @property
    def fds(self) -> tuple[int, int]:
        """The trainer's file descriptors: socket and memory."""
        return self._theirs.fileno(), self._memory_fd

    @property
    def arguments(self) -> list[str]:
        """The trainer's command line, see :meth:`TrainerChannel.from_arguments`."""
        channel, memory = self.fds
        layout = self._memory.layout.model_dump_json()
        return [
            f"--channel-fd={channel}", f"--memory-fd={memory}", f"--layout={layout}", f"--parent={os.getpid()}"
        ]  # fmt: skip

    def handed_over(self) -> None:
        """The trainer has its file descriptors; this process's are closed, so that its end is noticed."""
        if not self._handed_over:
            self._handed_over = True
            self._theirs.close()
            os.close(self._memory_fd)

    @property
    def waiting_s(self) -> float:
        """How long the oldest unanswered request has been waited for, in seconds; 0 where all are answered."""
        with self._lock:
            return self._clock() - self._since if self._open else 0.0

    @property
    def learning(self) -> bool:
        """Whether a lesson is under way."""
        with self._lock:
            return any(isinstance(request, Lesson) for request in self._open)

    def send(self, message: Start | Undo | Keep | Stop) -> None:
        """Send anything but a lesson.

        Raises:
            TrainerError: the trainer is gone, or does not read.
        """
        self._send(message)

    def lesson(self, seq: int, image: np.ndarray, label: np.ndarray) -> None:
        """Copy a frame and its label to the shared memory and send the lesson.

        Args:
            seq: the frame's number.
            image: (H, W, 3) uint8 BGR.
            label: (H, W) uint8.

        Raises:
            TrainerError: the trainer is gone, or a lesson is still under way.
            ShapeError: an array is not of the layout's size.
        """
        if self.learning:
            raise TrainerError(f"lesson on frame {seq}: the one before is still under way.")
        self._memory.put("frame", image)
        self._memory.put("label", label)
        self._send(Lesson(seq=seq))

    def receive(self, timeout_s: float | None = None) -> Reply | None:
        """The next message from the trainer; None where none came in time.

        Raises:
            TrainerError: it is gone, sends what is no message, or an answer to what was not asked.
        """
        try:
            message = self._pipe.receive(timeout_s)
        except EOFError:
            raise TrainerGoneError("the trainer has ended.", hint=HINT) from None
        except ValueError as error:
            raise TrainerError(
                f"the trainer sent what is no message: {_one_line(error)}.", hint=HINT
            ) from None
        if message is None:
            return None
        if not isinstance(message, Reply):
            raise TrainerError(f"the trainer sent '{message.kind}', which is the runner's.", hint=HINT)
        self._settle(message)
        return message

    def mask(self) -> np.ndarray:
        """The trainer's own answer to the last lesson's frame with what it learned, (H, W) uint8, copied."""
        return self._memory.copy("mask")

    def graph(self, learned: Learned, step: str) -> bytes:
        """A step's new graph, copied and checked.

        Args:
            learned: the last lesson's report.
            step: one of ``learned.graphs``.

        Raises:
            TrainerError: it does not fit, or its SHA-256 is not the one reported.
        """
        if step not in learned.graphs:
            raise TrainerError(f"the trainer sent no {step} graph of frame {learned.seq}.", hint=HINT)
        data = self._memory.read(f"graph.{step}", learned.graphs[step])
        if hashlib.sha256(data).hexdigest() != learned.sha256.get(step):
            raise TrainerError(
                f"the trainer's {step} graph of frame {learned.seq}: its SHA-256 is not the one reported.",
                hint=HINT,
            )
        return data

    def weights(self, learned: Learned) -> dict[str, np.ndarray]:
        """The open layers' new weights, copied and checked; by name, float32 or float16, read-only.

        Raises:
            TrainerError: they do not fit, or are damaged.
        """
        return unpack_weights(self._memory.read("weights", learned.weights_bytes))

    def close(self) -> None:
        """Close the socket and give the memory back; nothing is waited for any more. Closing twice does nothing."""
        self.handed_over()
        self._pipe.close()
        self._memory.close()
        with self._lock:
            self._open.clear()

    def _send(self, message: Request) -> None:
        with self._lock:
            if type(message) in _REPLY_TO:
                if not self._open:
                    self._since = self._clock()
                self._open.append(message)
        try:
            self._pipe.send(message)
        except EOFError:
            raise TrainerGoneError("the trainer has ended.", hint=HINT) from None
        except TimeoutError:
            raise TrainerError("the trainer does not read its messages.", hint=HINT) from None

    def _settle(self, message: Reply) -> None:
        """Cross out the request that ``message`` answers."""
        if isinstance(message, Failed):
            return
        with self._lock:
            request = self._open.popleft() if self._open else None
            self._since = self._clock()
        if request is None or _REPLY_TO[type(request)] is not type(message):
            asked = f"to '{request.kind}'" if request else "unasked"
            raise TrainerError(f"the trainer answered '{message.kind}' {asked}.", hint=HINT)
        if isinstance(request, Lesson) and isinstance(message, Learned) and message.seq != request.seq:
            raise TrainerError(
                f"the trainer answered frame {message.seq} to the lesson on frame {request.seq}.", hint=HINT
            )


class TrainerChannel:
    """The trainer's end.

    Args:
        pipe: to the runner.
        memory: shared with it.
    """

    def __init__(self, pipe: MessagePipe, memory: SharedMemory) -> None:
        self._pipe, self._memory = pipe, memory
        self._lesson: Lesson | None = None

    @classmethod
    def from_arguments(cls, arguments: Sequence[str] | None = None) -> TrainerChannel:
        """The end that a :class:`RunnerChannel` describes by its ``arguments``; from now on this process ends with it.

        Args:
            arguments: None takes those of this process.

        Raises:
            SystemExit: they are not as expected, or the runner is gone already.
            TrainerError: the memory is not of the layout's size.
        """
        parser = argparse.ArgumentParser(prog="python -m edge_sdk.adapt.trainer")
        parser.add_argument("--channel-fd", type=int, required=True)
        parser.add_argument("--memory-fd", type=int, required=True)
        parser.add_argument("--layout", type=Layout.model_validate_json, required=True)
        parser.add_argument("--parent", type=int, required=True)
        given = parser.parse_args(arguments)
        _end_with(given.parent)
        # Where memory runs out, this process goes before the runner.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")
        memory = SharedMemory(given.layout, given.memory_fd)
        os.close(given.memory_fd)
        # A process that the trainer starts must not hold the runner's line open.
        os.set_inheritable(given.channel_fd, False)
        return cls(MessagePipe(socket.socket(fileno=given.channel_fd)), memory)

    def messages(self) -> Iterator[Start | Lesson | Undo | Keep]:
        """What the runner asks, in order; ends when it says stop or is gone.

        Raises:
            ValueError: what came is no message.
        """
        while True:
            try:
                message = self._pipe.receive()
            except EOFError:
                return
            if message is None or isinstance(message, Stop):
                return
            if isinstance(message, Reply):
                raise ValueError(f"the runner sent '{message.kind}', which is the trainer's")
            self._lesson = message if isinstance(message, Lesson) else self._lesson
            yield message

    @property
    def image(self) -> np.ndarray:
        """The lesson's frame, (H, W, 3) uint8 BGR, read-only; copy what is to outlive :meth:`learned`."""
        return self._memory.image("frame")

    @property
    def label(self) -> np.ndarray:
        """The teacher's mask of it, (H, W) uint8, read-only; copy what is to outlive :meth:`learned`."""
        return self._memory.image("label")

    def learned(
        self,
        report: Learned,
        mask: np.ndarray,
        graphs: Mapping[str, bytes] | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write what came of the lesson to the shared memory and report it.

        Args:
            report: sizes and SHA-256 of the graphs and of the weights are filled in here.
            mask: (H, W) uint8, this student's answer to the frame with what it learned.
            graphs: new graphs by step; none where nothing was updated.
            weights: the open layers' weights by name, with ``swap="refit"``.

        Raises:
            TrainerError: no lesson on ``report.seq`` is under way, or something does not fit into its area.
            ShapeError: the mask is not of the frame's size.
            EOFError: the runner is gone.
        """
        if self._lesson is None or self._lesson.seq != report.seq:
            raise TrainerError(f"a report on frame {report.seq}: no lesson on it is under way.")
        graphs = graphs or {}
        packed = pack_weights(weights) if weights else b""
        self._memory.put("mask", mask)
        for step, data in graphs.items():
            self._memory.write(f"graph.{step}", data)
        self._memory.write("weights", packed)
        self._lesson = None
        filled = {
            "graphs": {step: len(data) for step, data in graphs.items()},
            "sha256": {step: hashlib.sha256(data).hexdigest() for step, data in graphs.items()},
            "weights_bytes": len(packed),
        }
        self.send(report.model_copy(update=filled))

    def send(self, message: Reply) -> None:
        """Send any other answer, and wait until there is room.

        Raises:
            EOFError: the runner is gone.
        """
        self._pipe.send(message, timeout_s=None)

    def close(self) -> None:
        """Close the socket and give the memory back; closing twice does nothing."""
        self._pipe.close()
        self._memory.close()


def _end_with(parent: int) -> None:
    """Let Linux kill this process when the one that started it is gone, whatever it is doing then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the runner is gone already")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
