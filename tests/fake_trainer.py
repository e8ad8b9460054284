"""A trainer without torch, run as a process: ``Adaptation(..., trainer="tests.fake_trainer")``.

Its student has one weight, a threshold: ``mask = blue >= threshold``; tests/fake_student.py makes bundles of it. How it
learns, and what goes wrong when, is a :class:`Plan` in the environment: ``monkeypatch.setenv(*Plan(...).variable)``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from edge_sdk.adapt.agreement import agreement
from edge_sdk.adapt.channel import TrainerChannel
from edge_sdk.adapt.messages import Failed, Keep, Kept, Learned, Lesson, Ready, Start, Undo
from edge_sdk.errors import EdgeSdkError
from edge_sdk.files import atomic_folder
from edge_sdk.settings import Settings

VARIABLE = "FAKE_TRAINER"
MODULE = "tests.fake_trainer"
WEIGHT = "threshold"
# The threshold of a new bundle: bytes that come once in its delta graph, so that they can be replaced there.
FIRST = 128.0625

Fault = Literal[
    "nan",  # weights that are no numbers: reported as not finite, no graphs
    "garbage",  # graphs that are none, reported as they are
    "sha",  # another SHA-256 than that of the graphs
    "lie",  # a mask that is not what the graphs answer
    "worse",  # weights that find nothing
    "large",  # a graph that would not fit into its area
    "damaged",  # weights, with swap="refit", with one byte turned
    "frame",  # a report on another frame
    "twice",  # the same report again
    "request",  # a message that is the runner's
    "bytes",  # bytes that are no message
    "long",  # the length of a message that may not be so long
    "fail",  # says that it failed, and ends
    "hang",  # never answers
    "deaf",  # never answers, nor reads, and cannot be asked to end
    "raise",  # ends by an exception
    "exit",  # ends with exit code 3
    "kill",  # is killed
    "orphan",  # is killed, and leaves behind a process with its output and its socket; prints the number of that
]
# They need a result to spoil, so that such a lesson makes an update whatever the rule says.
_OF_RESULTS = ("nan", "garbage", "sha", "lie", "worse", "large", "damaged")


class Plan(Settings):
    """What a fake trainer does.

    Args:
        rule: ``fit``: the threshold that agrees best with the label, as far as ``step`` allows for each update;
            ``count``: the number of the version, modulo 256; ``none``: it learns nothing.
        step: how far the threshold moves with one update at most.
        faults: what goes wrong, by when: number of the lesson in this process from 1, ``start``, ``keep``, ``undo``, or
            ``every`` lesson.
        once: folder in which a fault leaves a file, so that it does not happen again after a restart.
        lesson_s: a lesson takes so long at least.
        words: written to stderr at the start.
    """

    rule: Literal["fit", "count", "none"] = "fit"
    step: float = 256.0
    faults: dict[str, Fault] = Field(default_factory=dict)
    once: Path | None = None
    lesson_s: float = 0.0
    words: str = ""

    @property
    def variable(self) -> tuple[str, str]:
        """Name and value of the environment variable."""
        return VARIABLE, self.model_dump_json()

    def fault(self, when: str) -> Fault | None:
        """What goes wrong now."""
        fault = self.faults.get(when)
        if fault is None or self.once is None:
            return fault
        mark = self.once / when
        if mark.exists():
            return None
        mark.touch()
        return fault


def answer(image: np.ndarray, threshold: float) -> np.ndarray:
    """The student: (H, W) uint8 of an image (H, W, 3) uint8 BGR."""
    return (image[..., 0].astype(np.float32) >= np.float32(threshold)).astype(np.uint8)


def best_threshold(image: np.ndarray, label: np.ndarray) -> float:
    """The lowest threshold of fewest wrong pixels."""
    blue = image[..., 0].ravel()
    found = np.bincount(blue[label.ravel() == 1], minlength=256)
    background = np.bincount(blue[label.ravel() == 0], minlength=256)
    missed = np.concatenate([[0], np.cumsum(found)])
    invented = background.sum() - np.concatenate([[0], np.cumsum(background)])
    return float(np.argmin(missed + invented))


def with_threshold(graph: bytes, threshold: float) -> bytes:
    """A graph of a new bundle with another threshold."""
    first = np.float32(FIRST).tobytes()
    if graph.count(first) != 1:
        raise ValueError(f"the graph holds {FIRST} {graph.count(first)} times, it should be once")
    return graph.replace(first, np.float32(threshold).tobytes())


class FakeTrainer:
    def __init__(self, channel: TrainerChannel, plan: Plan) -> None:
        self.channel, self.plan = channel, plan
        self.lessons = self.version = 0
        self.threshold = self.before = FIRST

    def run(self) -> None:
        for message in self.channel.messages():
            if isinstance(message, Start):
                self.begin(message)
            elif isinstance(message, Lesson):
                self.learn(message)
            elif isinstance(message, Undo):
                go_wrong(self.plan.fault("undo"), self.channel)
                self.threshold, self.version = self.before, message.version
            else:
                self.keep(message)

    def begin(self, start: Start) -> None:
        self.start, self.version = start, start.version
        bundle = Path(start.bundle)
        manifest = json.loads((bundle / "manifest.json").read_text()) if bundle.is_dir() else {"steps": {}}
        self.names = {name: step["graph"] for name, step in manifest["steps"].items() if step}
        self.graphs = {name: (bundle / graph).read_bytes() for name, graph in self.names.items()}
        if start.resume is not None:
            self.threshold = json.loads((Path(start.resume) / "trainer.pt").read_text())[WEIGHT]
        print(self.plan.words, file=sys.stderr, flush=True)
        go_wrong(self.plan.fault("start"), self.channel)
        self.channel.send(Ready(version=self.version))

    def learn(self, lesson: Lesson) -> None:
        self.lessons += 1
        fault = self.plan.fault("every") or self.plan.fault(str(self.lessons))
        time.sleep(self.plan.lesson_s)
        go_wrong(fault, self.channel)
        image, label = self.channel.image, self.channel.label
        before, updates = self.update(image, label, least=fault in _OF_RESULTS)
        if fault == "worse":
            self.threshold = 256.0
        mask = answer(image, self.threshold)
        report = Learned(
            seq=lesson.seq + (fault == "frame"), version=self.version, before=before,
            after=self.agree(mask, label), updates=updates, losses=(0.5,) * updates, took_ms=1.0,
        )  # fmt: skip
        graphs, weights = self.changes() if updates else ({}, {})
        if fault == "nan":
            report = report.model_copy(
                update={"finite": False, "losses": (float("nan"),), "after": float("nan")}
            )
            graphs, weights = {}, {}
        elif fault == "garbage":
            graphs = {step: np.random.default_rng(0).bytes(len(data)) for step, data in graphs.items()}
            weights = {name: np.full(value.shape, np.nan, np.float32) for name, value in weights.items()}
        elif fault == "lie":
            mask = 1 - mask
        self.report(report, mask, graphs, weights, fault)

    def update(self, image: np.ndarray, label: np.ndarray, least: int) -> tuple[float, int]:
        """Learn with ``least`` updates; the agreement of before and the number of updates."""
        before = self.agree(answer(image, self.threshold), label)
        self.before = self.threshold
        updates = 0
        if self.plan.rule == "count":
            updates, self.threshold = 1, float((self.version + 1) % 256)
        elif self.plan.rule == "fit":
            target, settings = best_threshold(image, label), self.start.settings
            while (
                updates < settings.max_updates
                and self.agree(answer(image, self.threshold), label) < settings.threshold
            ):
                self.threshold += float(np.clip(target - self.threshold, -self.plan.step, self.plan.step))
                updates += 1
        updates = max(updates, least)
        self.version += updates > 0
        return before, updates

    def agree(self, mask: np.ndarray, label: np.ndarray) -> float:
        return agreement(mask, label, 2, settings=self.start.settings.agreement)

    def changes(self) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
        """New graphs, or with ``swap="refit"`` new weights."""
        if self.start.settings.swap == "refit":
            return {}, {WEIGHT: np.array([self.threshold], np.float32)}
        if "delta" not in self.graphs:  # no bundle: a test of the channel alone
            return {"delta": np.float32(self.threshold).tobytes()}, {}
        return {"delta": with_threshold(self.graphs["delta"], self.threshold)}, {}

    def report(
        self,
        report: Learned,
        mask: np.ndarray,
        graphs: dict[str, bytes],
        weights: dict[str, np.ndarray],
        fault: Fault | None,
    ) -> None:
        """Report, past the channel's own checks where the plan says so."""
        send = self.channel.send

        def send_wrong(message: Learned) -> None:
            if fault == "sha":
                message = message.model_copy(update={"sha256": dict.fromkeys(message.graphs, "0" * 64)})
            elif fault == "large":
                message = message.model_copy(
                    update={"graphs": dict.fromkeys(message.graphs, 1 << 40), "weights_bytes": 1 << 40}
                )
            elif fault == "damaged":
                memory = self.channel._memory
                data = bytearray(memory.read("weights", message.weights_bytes))
                data[-64] ^= 1
                memory.write("weights", bytes(data))
            send(message)
            if fault == "twice":
                send(message)

        self.channel.send = send_wrong  # type: ignore[assignment, method-assign]
        if fault == "frame":
            self.channel._lesson = Lesson(seq=report.seq)
        try:
            self.channel.learned(report, mask, graphs, weights)
        finally:
            self.channel.send = send  # type: ignore[method-assign]

    def keep(self, keep: Keep) -> None:
        go_wrong(self.plan.fault("keep"), self.channel)
        with atomic_folder(keep.folder) as folder:
            (folder / "trainer.pt").write_text(json.dumps({WEIGHT: self.threshold}))
            files = {}
            if "delta" in self.graphs:
                file, data = (
                    folder / self.names["delta"],
                    with_threshold(self.graphs["delta"], self.threshold),
                )
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
                files[self.names["delta"]] = {"sha256": hashlib.sha256(data).hexdigest()}
            (folder / "version.json").write_text(json.dumps({"version": self.version, "files": files}))
        self.channel.send(Kept(folder=keep.folder, version=self.version))


def go_wrong(fault: Fault | None, channel: TrainerChannel) -> None:
    """The faults that are not of a lesson's result."""
    if fault == "hang":
        time.sleep(3600)
    elif fault == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "raise":
        raise RuntimeError("as the plan says")
    elif fault == "exit":
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(3)
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "orphan":
        line = channel._pipe._end.fileno()
        print(subprocess.Popen(["sleep", "600"], pass_fds=[line]).pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "fail":
        channel.send(Failed(error="CheckpointError", message="as the plan says"))
        sys.exit(1)
    elif fault == "request":
        channel.send(Lesson(seq=1))  # type: ignore[arg-type]
    elif fault == "bytes":
        channel._pipe._end.send(b"\5\0\0\0nonsense")
    elif fault == "long":
        channel._pipe._end.send(b"\xff\xff\xff\x7f")


def main() -> None:
    plan = Plan.model_validate_json(os.environ.get(VARIABLE, "{}"))
    channel = TrainerChannel.from_arguments()
    try:
        FakeTrainer(channel, plan).run()
    except EdgeSdkError as error:
        channel.send(Failed(error=type(error).__name__, message=str(error)))
        sys.exit(1)
    finally:
        channel.close()


if __name__ == "__main__":
    main()
