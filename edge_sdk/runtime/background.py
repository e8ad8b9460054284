"""Keyframes beside the frames: the teacher runs on a lane of its own while deltas go on with the older state.

A residual taken at one frame serves any later frame, so nothing has to wait for the teacher: latency has no spike at a
keyframe, and answers rest on a state that is some frames older.
"""

from __future__ import annotations

import logging

import numpy as np
from pydantic import Field

from edge_sdk.errors import EdgeSdkError
from edge_sdk.runtime.engine import BoundStep, Buffer
from edge_sdk.settings import Settings

_log = logging.getLogger(__name__)


class BackgroundKeyframes(Settings):
    """Asynchronous keyframes.

    Args:
        threads: CPU threads of the keyframe step, its share of the cores; the other steps get the rest. A GPU has no
            use for it.
    """

    threads: int = Field(default=1, ge=1, strict=True)


class BackgroundKeyframe:
    """The keyframe step of one stream on its own lane, writing the bank of state that no delta step reads.

    Args:
        steps: one binding a bank.
        frame: the frame buffer that they read, nobody else's.

    Attributes:
        failures: how many have failed.
        failed: whether the last one has.
    """

    def __init__(self, steps: tuple[BoundStep, ...], frame: Buffer) -> None:
        self._steps, self._frame = steps, frame.host
        self._bank: int | None = None
        self._seq = 0
        self._wanted = False
        self.failures = 0
        self.failed = False

    @property
    def running(self) -> bool:
        """Whether a keyframe has been started and not been collected."""
        return self._bank is not None

    def start(self, image: np.ndarray, seq: int, bank: int) -> None:
        """Begin with a copy of ``image``, the frame ``seq``, writing to ``bank``."""
        np.copyto(self._frame, image)
        self._seq = seq
        try:
            self._steps[bank].start()
        except EdgeSdkError as error:
            self._fail(error)
        else:
            self._bank, self._wanted = bank, True

    def wait(self) -> None:
        """Wait for what is running; it is there for :meth:`collect` then."""
        if self._bank is None:
            return
        try:
            self._steps[self._bank].wait()
        except EdgeSdkError as error:
            self._bank = None
            self._fail(error)

    def collect(self) -> tuple[int, int] | None:
        """Bank and frame of a keyframe that has finished since the last call and is still wanted.

        A failed one is logged and counted; the state in use stays as it is.
        """
        if self._bank is None or not self._steps[self._bank].finished():
            return None
        bank, self._bank = self._bank, None
        try:
            self._steps[bank].wait()
        except EdgeSdkError as error:
            self._fail(error)
            return None
        self.failed = False
        return (bank, self._seq) if self._wanted else None

    def forget(self) -> None:
        """What is running is of no use any more, as after a gap."""
        self._wanted = False

    def _fail(self, error: EdgeSdkError) -> None:
        self.failed = True
        self.failures += 1
        _log.error("keyframe of frame %d failed beside the stream: %s", self._seq, error)

    def close(self) -> None:
        """Wait for what is running."""
        self.forget()
        if self._bank is not None:
            bank, self._bank = self._bank, None
            try:
                self._steps[bank].wait()
            except EdgeSdkError as error:
                _log.error("keyframe of frame %d failed while closing: %s", self._seq, error)
