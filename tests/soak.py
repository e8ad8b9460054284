"""Soak: very many frames of a tiny pair through the runner's thread, with faults, and an account of every one of them.

    python -m tests.soak [--frames 1000000] [--out benchmarks/soak]

Faults: the source stalls (frames are lost, a gap in ``seq``), a frame is corrupt, the application's callback raises,
the consumer is slow (waiting frames are replaced), a step of the engine fails. At the end: no frame unaccounted for,
no result twice, every fault in the log once, a keyframe after every gap and failure, and memory that does not grow.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.conditions import Conditions
from edge_sdk.errors import EngineError
from edge_sdk.files import write_text
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import BoundStep, Buffer, DeviceTimes, EngineOptions, Lane
from edge_sdk.runtime.onnxruntime import OrtBackend, OrtEngine
from edge_sdk.runtime.result import Result, StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.video.frame import Frame
from tests.graphs import random_images, residual

# One in so many frames, each a prime, so that faults also fall together.
STALL, CORRUPT, CALLBACK, SLOW, ENGINE = 997, 1201, 1409, 1613, 1811
LOST_BY_STALL = 7
WAITING_WHILE_SLOW = 3
INTERVAL = 8
SAMPLES = 200
# Over a run as long as this a slope says something; below it, an allocator settling looks like growth.
LONG_FRAMES, MOST_GROWTH_BYTES = 500_000, 1.0


class FailingBackend(OrtBackend):
    """Fails a step where it is told to."""

    def __init__(self) -> None:
        self.fail_next = False

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> OrtEngine:
        engine = super().load(path, options, built)
        bind = engine.bind

        def failing(buffers: Mapping[str, Buffer], lane: Lane | None = None) -> BoundStep:
            step = bind(buffers, lane)
            return step if lane is not None else FailingStep(step, self)

        engine.bind = failing  # type: ignore[method-assign,assignment]
        return engine


@dataclass(slots=True)
class FailingStep:
    inner: BoundStep
    backend: FailingBackend

    @property
    def device_times(self) -> DeviceTimes | None:
        return self.inner.device_times

    def run(self) -> None:
        self.start()
        self.wait()

    def start(self) -> None:
        if self.backend.fail_next:
            self.backend.fail_next = False
            raise EngineError("injected: the device is gone.")
        self.inner.start()

    def finished(self) -> bool:
        return self.inner.finished()

    def wait(self) -> None:
        self.inner.wait()


@dataclass
class Account:
    """What happened to every frame."""

    frames: int = 0
    answered: int = 0
    replaced: int = 0
    refused: int = 0
    failed: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    wrong_answers: int = 0
    gaps: int = 0
    gaps_without_keyframe: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    rss_bytes: list[tuple[int, int]] = field(default_factory=list)

    def growth_bytes_a_frame(self) -> float:
        """Slope of resident memory over frames, by least squares, the first fifth left out."""
        samples = np.array(self.rss_bytes[len(self.rss_bytes) // 5 :], np.float64)
        return float(np.polyfit(samples[:, 0], samples[:, 1], 1)[0])

    def problems(self) -> list[str]:
        """Everything that must not be."""
        lost = self.frames - self.answered - self.replaced - self.refused - self.failed
        found = {
            "frames unaccounted for": lost,
            "results given twice": self.duplicates,
            "results out of order": self.out_of_order,
            "wrong answers": self.wrong_answers,
            "gaps without a keyframe": self.gaps_without_keyframe,
        }
        found |= {
            f"{kind} faults logged {self.logged[kind]} times": self.injected[kind] - self.logged[kind]
            for kind in self.injected
        }
        return [f"{count} {what}" for what, count in found.items() if count]


class LogCounter(logging.Handler):
    """Counts log records by the fault that they report."""

    WORDS: Mapping[str, str] = {
        "engine": "the device is gone",
        "corrupt": "frame: expected",
        "callback": "on_result failed",
    }

    def __init__(self, account: Account) -> None:
        super().__init__(logging.WARNING)
        self._account = account

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for kind, words in self.WORDS.items():
            self._account.logged[kind] += words in text


class Soak:
    """One run.

    Args:
        bundle: of the residual pair.
        frames: how many.
        background: keyframes beside the frames.
    """

    def __init__(self, bundle: Bundle, frames: int, background: bool) -> None:
        self._bundle, self._frames, self._background = bundle, frames, background
        self._images = random_images(31)
        self.account = Account(frames=0)
        self._seen = -1
        self._expect_keyframe = False
        self._callback_fails = False

    def run(self, tell: Callable[[int], None] = lambda done: None) -> Account:
        """Push all frames through, and count."""
        backend = FailingBackend()
        log = logging.getLogger("edge_sdk")
        counter, propagates = LogCounter(self.account), log.propagate
        log.addHandler(counter)
        log.propagate = False
        # Collections look for garbage of this run alone: before each sample, through everything that a test process has
        # loaded, they would take most of the time.
        gc.collect()
        gc.freeze()
        began = time.monotonic()
        try:
            with EdgeRunner(
                self._bundle, backend=backend, schedule=EverySchedule(interval=INTERVAL), threads=1,
                background=BackgroundKeyframes() if self._background else None,
                threaded=True, on_result=self._on_result,
            ) as runner:  # fmt: skip
                self._push(runner, backend, tell)
                runner.reset()  # runs on the thread, after the last callback
                counts = runner.counts
        finally:
            gc.unfreeze()
            log.removeHandler(counter)
            log.propagate = propagates
        account = self.account
        account.seconds = time.monotonic() - began
        account.frames, account.answered, account.replaced = (
            counts.submitted,
            counts.answered,
            counts.replaced,
        )
        account.failed = counts.failed - account.refused
        return account

    def _push(self, runner: EdgeRunner, backend: FailingBackend, tell: Callable[[int], None]) -> None:
        account, seq, every = self.account, 0, max(self._frames // SAMPLES, 1)
        for index in range(self._frames):
            if index % every == 0:
                gc.collect()
                account.rss_bytes.append((index, resident_bytes()))
                tell(index)
            seq += 1
            if index % STALL == STALL - 1:
                account.injected["stall"] += 1
                account.logged["stall"] += 1  # a gap in seq is how a source reports it
                seq += LOST_BY_STALL
                self._gap()
            if index % CORRUPT == CORRUPT - 1:
                account.injected["corrupt"] += 1
                self._refused(runner, seq)
                continue
            if index % SLOW == SLOW - 1:
                seq = self._slow(runner, seq)
                continue
            failing = index % ENGINE == ENGINE - 1
            if failing:
                account.injected["engine"] += 1
                backend.fail_next = True
            self._callback_fails = index % CALLBACK == CALLBACK - 1 and not failing
            account.injected["callback"] += self._callback_fails
            self._one(runner, seq, failing)

    def _one(self, runner: EdgeRunner, seq: int, failing: bool) -> None:
        runner.submit(self._frame(seq))
        try:
            result = runner.latest(after=self._seen, timeout_s=60)
            if failing or result is None or result.seq != seq:
                raise RuntimeError(
                    f"frame {seq}: expected {'an error' if failing else 'its answer'}, got {result}"
                )
            self._seen = seq
        except EngineError:
            if not failing:
                raise
            self._gap()

    def _slow(self, runner: EdgeRunner, seq: int) -> int:
        """Several frames at once, while the thread is busy with the first of them or has not begun."""
        last = seq + WAITING_WHILE_SLOW
        for number in range(seq, last + 1):
            runner.submit(self._frame(number))
        while self._seen != last:
            result = runner.latest(after=self._seen, timeout_s=60)
            if result is None:
                raise RuntimeError(f"frame {last}: no answer")
            self._seen = result.seq
        return last

    def _refused(self, runner: EdgeRunner, seq: int) -> None:
        runner.submit(Frame(np.zeros((2, 2, 3), np.uint8), seq, 0.0))
        try:
            runner.latest(after=self._seen, timeout_s=60)
            raise RuntimeError(f"frame {seq}: a corrupt frame was answered")
        except ValueError:  # ShapeError
            self.account.refused += 1
            self._gap()  # the next frame's seq does not follow the last answered one's

    def _gap(self) -> None:
        self.account.gaps += 1
        self._expect_keyframe = True

    def _frame(self, seq: int) -> Frame:
        return Frame(self._images[seq % len(self._images)], seq, time.monotonic())

    def _on_result(self, result: Result) -> None:
        """On the runner's thread."""
        account, last = self.account, getattr(self, "_last_result", -1)
        account.duplicates += result.seq == last
        account.out_of_order += result.seq < last
        if result.seq != last + 1 or self._expect_keyframe:
            account.gaps_without_keyframe += result.kind is not StepKind.KEYFRAME
        self._expect_keyframe = False
        self._last_result = result.seq
        account.wrong_answers += not self._right(result)
        if self._callback_fails:
            self._callback_fails = False
            raise KeyError("injected: the application's own")

    def _right(self, result: Result) -> bool:
        image = self._images[result.seq % len(self._images)].astype(np.float32)
        if result.kind is StepKind.KEYFRAME:
            values = image[..., 0]
        else:
            key = self._images[(result.seq - result.state_age) % len(self._images)].astype(np.float32)
            values = np.clip(image[..., 1] + key[..., 0] - key[..., 1], 0, 255)
        return bool((np.floor(values / 64).astype(np.uint8) == result.mask).all())


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(frames: int, background: bool, tell: Callable[[int], None] = lambda done: None) -> Account:
    """Run over a fresh bundle."""
    with tempfile.TemporaryDirectory() as folder:
        return Soak(residual().write(Path(folder) / "b"), frames, background).run(tell)


def show(name: str, total: int, done: int) -> None:
    """Progress, ten lines a run."""
    if done % (total // 10 or 1) == 0:
        sys.stderr.write(f"{name}: {done:,} of {total:,} frames\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/soak"))
    arguments = parser.parse_args()
    conditions = Conditions.now(1)
    headings = (
        "keyframes", "frames", "answered", "replaced while slow", "corrupt", "engine failures", "callback errors",
        "stalls", "gaps", "memory growth, bytes a frame", "frames a second", "problems",
    )  # fmt: skip
    lines = [
        "# Soak",
        "",
        f"Written by `python -m tests.soak --frames {arguments.frames}`. Machine: {conditions.cpu},",
        f"{conditions.cores} cores; commit {conditions.commit}; {conditions.date}.",
        "",
        f"| {' | '.join(headings)} |",
        "| --- " * len(headings) + "|",
    ]
    figures, failed = {}, False
    for name, background in (("in turn", False), ("beside", True)):
        account = soak(arguments.frames, background, partial(show, name, arguments.frames))
        problems, inject = account.problems(), account.injected
        if arguments.frames >= LONG_FRAMES and account.growth_bytes_a_frame() > MOST_GROWTH_BYTES:
            problems.append("memory grows")
        failed |= bool(problems)
        lines.append(
            f"| {name} | {account.frames:,} | {account.answered:,} | {account.replaced:,} | {inject['corrupt']:,} | "
            f"{inject['engine']:,} | {inject['callback']:,} | {inject['stall']:,} | {account.gaps:,} | "
            f"{account.growth_bytes_a_frame():.4f} | {account.frames / account.seconds:,.0f} | "
            f"{'; '.join(problems) or 'none'} |"
        )
        figures[name] = {key: dict(v) if isinstance(v, Counter) else v for key, v in vars(account).items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "RESULTS.md", "\n".join(lines) + "\n")
    write_text(arguments.out / "results.json", json.dumps(figures, indent=1) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
