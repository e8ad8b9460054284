"""A runner whose student learns from tests/fake_trainer.py, and frames in which a threshold can be read off a mask."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.adapt.adaptation import Adaptation, AdaptStatus
from edge_sdk.adapt.journal import Event
from edge_sdk.adapt.settings import AdaptSettings, ProbeSettings, StrideSettings
from edge_sdk.runtime.result import Result
from edge_sdk.runtime.runner import EdgeRunner
from tests.fake_student import bright_bundle
from tests.fake_trainer import MODULE, Plan

SIZE_HW = (16, 16)
# The teacher's threshold; by the student's first one they agree to 0.62.
TEACHER = 50
# Where every frame is a teacher frame, unless a lesson is under way.
ALWAYS = StrideSettings(minimum=1, maximum=1)
ANYTHING_GOES = ProbeSettings(drop=1.0)
LIMIT_S = 30.0


def ramp(first: int = 0) -> np.ndarray:
    """(16, 16, 3) uint8: every blue value once, so that each threshold gives a mask of its own."""
    image = np.zeros((*SIZE_HW, 3), np.uint8)
    image[..., 0] = np.roll(np.arange(256, dtype=np.uint8), first).reshape(SIZE_HW)
    return image


def threshold_of(image: np.ndarray, result: Result) -> int:
    """The threshold that answered a :func:`ramp`; fails where no single one did."""
    found = 256 - int(result.mask.sum())
    assert np.array_equal(result.mask, image[..., 0] >= found), "no single threshold gives this mask"
    return found


class World:
    """One bundle, and runners over it.

    Args:
        folder: for the bundle.
        monkeypatch: sets the trainer's plan and module.
        plan: see :class:`tests.fake_trainer.Plan`.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **plan: Any) -> None:
        self.bundle = bright_bundle(folder / "bundle", TEACHER, SIZE_HW)
        self.events: list[Event] = []
        self._monkeypatch = monkeypatch
        self.plan(**plan)
        defaults: Any = Adaptation.__init__.__kwdefaults__
        monkeypatch.setitem(defaults, "trainer", MODULE)

    def plan(self, **plan: Any) -> None:
        """What trainers that are started from now on do."""
        self._monkeypatch.setenv(*Plan(**plan).variable)

    def runner(self, **settings: Any) -> EdgeRunner:
        self.events.clear()
        found = AdaptSettings(**({"stride": ALWAYS} | settings))
        return EdgeRunner(self.bundle, adapt=found, on_adapt=self.events.append, threads=1)

    def kinds(self) -> list[str]:
        """Kinds of the events so far."""
        return [event.kind for event in self.events]


def lesson(runner: EdgeRunner, image: np.ndarray) -> AdaptStatus:
    """Give frames until one more lesson is over and what came of it is taken; the status then."""
    learner = runner.adaptation
    before, end = learner.status(), time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        assert learner.wait_idle(LIMIT_S)
        runner(image)
        status = learner.status()
        done = status.lessons + status.refused + status.restarts
        if status.trainer == "stopped" or done > before.lessons + before.refused + before.restarts:
            return status
    raise AssertionError("no lesson came to its end")
