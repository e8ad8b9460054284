"""What tests of the live page share: answers without engines, a runner and a camera to look at, viewers."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from edge_sdk.errors import ClosedError, RecipeError
from edge_sdk.runtime.result import Result, StageTimes, StepKind
from edge_sdk.runtime.schedule import AlwaysSchedule
from edge_sdk.serve import LiveServer, ServeSettings
from edge_sdk.serve.watch import Watch
from edge_sdk.settings import parse_settings
from edge_sdk.tasks import TaskSpec, task_from_spec
from edge_sdk.tasks.base import Segmentation
from edge_sdk.video.frame import Frame

TOKEN = "0123456789abcdef"
TASK = task_from_spec(TaskSpec(classes=("dull", "blue")))


def answer(seq=0, ms=10.0, kind=StepKind.DELTA, age=1, at_s=100.0, captured_s=99.95):
    times = StageTimes(copy_in_ms=0.1, step_ms=ms - 0.2, copy_out_ms=0.0, decode_ms=0.1, total_ms=ms)
    mask = np.zeros((48, 64), np.uint8)
    return Result(Segmentation(mask), kind, seq, captured_s, at_s, age, times, TASK)


class FakeRunner:
    """As much of a runner as the page looks at."""

    def __init__(self, counts=None, failures=0, schedule=None):
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(name='a "pair"'))
        self.engine = "onnxruntime-int8"
        self.schedule = schedule or AlwaysSchedule()
        self.keyframe_failures = failures
        self._counts = counts

    @property
    def counts(self):
        if self._counts is None:
            raise RecipeError("runner: it has no thread of its own to submit frames to.")
        return self._counts


def watch(source=None, runner=None, root=Path("/nowhere")):
    return Watch(runner or FakeRunner(), source, history=240, root=root)


def camera(stats=None, uri="rtsp://user:secret@10.0.0.9:554/live?key=secret#latency=200"):
    return SimpleNamespace(uri=uri, live=True, stats=stats)


IMAGE = np.full((48, 64, 3), 128, np.uint8)


def server(source=None, **settings):
    parsed = parse_settings({"port": 0, "max_fps": 120, **settings}, ServeSettings, "test")
    return LiveServer(FakeRunner(), source, parsed)


def get(page, path, method="GET", body=None, **headers):
    with closing(http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)) as connection:
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        response = connection.getresponse()
        return response, response.read()


def until(condition, seconds=10.0):
    """Wait for what another thread is about to do."""
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "did not happen"
        time.sleep(0.005)


class Drawn:
    """A task that notes who draws, and draws when it may."""

    def __init__(self, task):
        self.spec = task.spec
        self.threads, self.copies = [], 0
        self.may = threading.Event()
        self.may.set()
        self.error = None

    def draw(self, image_bgr, prediction, alpha=0.5):
        self.threads.append(threading.current_thread().name)
        assert self.may.wait(20)
        if self.error is not None:
            raise self.error
        return image_bgr.copy()


class Counted:
    """A prediction that tells its task when it is copied."""

    def __init__(self, task):
        self.task = task

    def copy(self):
        self.task.copies += 1
        return self


@contextmanager
def running(page, task, image=IMAGE, interval=5):
    """Answers come every few milliseconds until the page is closed; yields a list with an entry for each one shown."""
    shown, stop = [], threading.Event()

    def loop():
        while not stop.wait(0.004):
            seq = len(shown)
            kind = StepKind.DELTA if seq % interval else StepKind.KEYFRAME
            result = replace(answer(seq, kind=kind, age=seq % interval), task=task, prediction=Counted(task))
            try:
                page.show(Frame(image, seq, 0.0), result)
            except ClosedError:
                return
            shown.append(seq)

    thread = threading.Thread(target=loop, name="inference")
    thread.start()
    try:
        yield shown
    finally:
        stop.set()
        thread.join()


@contextmanager
def viewer(page):
    """A connection that gets pictures."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
    connection.request("GET", "/stream.mjpg")
    response = connection.getresponse()
    try:
        yield response
    finally:
        response.close()
        connection.close()


def picture(response):
    """The next picture of a viewer, decoded; None at the end."""
    length = None
    while (line := response.readline()) not in (b"", b"\r\n") or length is None:
        if line == b"":
            return None
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    import cv2

    return cv2.imdecode(np.frombuffer(response.read(length), np.uint8), cv2.IMREAD_COLOR)


def left_running():
    """Names of the live page's threads that still run; other tests' readers may take their time to end."""
    ours = ("edge-sdk-viewer", "edge-sdk-pictures", "edge-sdk-live-page")
    return [thread.name for thread in threading.enumerate() if thread.name in ours]
