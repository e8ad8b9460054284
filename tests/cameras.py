"""A camera that does as it is told, and a clock that goes when it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.videos import picture


class SimulatedClock:
    """Seconds that pass only by :meth:`pass_s`."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


# What a connection does, grab by grab: a picture; None, which cannot be decoded; an exception; or a function, called
# before the grab it belongs to goes on with the next step.
Step = np.ndarray | None | Exception | Callable[[], Any]


class FakeConnection:
    """One opened device. Without steps left, ``grab`` says that no frame will come."""

    def __init__(self, device: FakeDevice, steps: Sequence[Step]) -> None:
        self.device, self.steps, self.released = device, list(steps), False
        self.image: np.ndarray | None = None

    def grab(self) -> bool:
        if self.device.permits is not None:
            self.device.permits.acquire()
        while self.steps:
            step = self.steps.pop(0)
            if isinstance(step, Exception):
                raise step
            if step is None or isinstance(step, np.ndarray):
                self.image = step
                return True
            step()
        return False

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        return self.image is not None, self.image

    def release(self) -> None:
        assert not self.released, "released twice"
        self.released = True


class FakeDevice:
    """Each ``connect`` takes the next plan: steps, or an exception to raise; the last one is used again and again.

    Args:
        plans: what the connections do.
        gated: every grab waits for a permit, see :meth:`give`.
    """

    name, hint = "fake:0", "Check the fake."

    def __init__(self, *plans: Sequence[Step] | Exception, gated: bool = False) -> None:
        self.plans = list(plans)
        self.connections: list[FakeConnection] = []
        self.permits = threading.Semaphore(0) if gated else None

    def give(self, frames: int = 1) -> None:
        assert self.permits is not None
        self.permits.release(frames)

    def connect(self) -> FakeConnection:
        plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
        if isinstance(plan, Exception):
            raise plan
        self.connections.append(FakeConnection(self, plan))
        return self.connections[-1]

    def inspect(self, capture: Any, image: np.ndarray) -> float:
        return 30.0

    def finish(self, image: np.ndarray) -> np.ndarray:
        return image

    @property
    def released(self) -> list[bool]:
        return [connection.released for connection in self.connections]


def pictures(count: int, first: int = 0) -> list[Step]:
    return [picture((first + index) % 24) for index in range(count)]
