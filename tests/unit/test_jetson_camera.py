"""The README's ten lines and jetson/camera_app.py, on files, on a fake CSI camera, and told to stop."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest

from edge_sdk import EdgeRunner, EverySchedule, RunRecipe, open_source
from edge_sdk.errors import DeviceLostError, EngineError, UpdateError, VideoError
from edge_sdk.runtime.result import StepKind
from edge_sdk.systemd import Notifier
from edge_sdk.video import LiveSettings, LiveSource, SourceState
from tests.cameras import FakeDevice, pictures
from tests.graphs import residual
from tests.jetson_files import JETSON, ROOT, Manager, script, start
from tests.videos import FRAMES, write_video

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM = README.split("## In your own program\n\n```python\n")[1].split("```")[0]
ENDLESS = "synthetic:shapes?height=48&width=64&frames=10000000"


@pytest.fixture
def bundle(tmp_path):
    return residual((48, 64)).write(tmp_path / "my_pair").path


@pytest.fixture(scope="module")
def app():
    return script("camera_app")


@pytest.fixture
def manager(tmp_path):
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


def test_the_readmes_program_has_ten_lines_and_is_the_camera_apps(app):
    assert len([line for line in PROGRAM.splitlines() if line.strip()]) <= 10
    assert textwrap.indent(PROGRAM, "    ") in app.__doc__
    assert '"csi://0?' in README[README.index(PROGRAM) :].split("## ")[0]


def test_the_readmes_program_runs_on_a_file(tmp_path, bundle):
    (tmp_path / "my_camera.py").write_text(PROGRAM)
    clip, out = write_video(tmp_path / "clip.avi"), tmp_path / "annotated.mp4"
    done = start(tmp_path / "my_camera.py", bundle, clip, out)
    printed, complaints = done.communicate(timeout=120)
    assert (done.returncode, complaints) == (0, "")
    kinds = [line.split()[1] for line in printed.splitlines()]
    assert kinds == ["keyframe" if seq % 3 == 0 else "delta" for seq in range(FRAMES)]
    with open_source(out) as video:
        assert (video.frame_count, video.size_hw) == (FRAMES, (48, 64))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_readmes_program_runs_unchanged_on_csi_0_until_a_signal(tmp_path, bundle, monkeypatch, number):
    """The camera behind csi://0 is a fake; from the URI on everything else is what a Jetson runs."""
    from edge_sdk.video import devices

    asked, printed, sent = [], [], []
    ended = threading.Event()

    def pause():
        time.sleep(0.005)
        if len(printed) >= 3 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
            ended.wait(60)

    camera = FakeDevice([step for each in pictures(4000) for step in (pause, each)])

    def csi(name, sensor, query):
        asked.append((name, sensor, query.width, query.height, query.fps))
        return camera

    monkeypatch.setattr(devices, "csi", csi)
    uri, out = "csi://0?width=64&height=48&fps=30", tmp_path / "annotated.mp4"
    monkeypatch.setattr(sys, "argv", ["my_camera.py", str(bundle), uri, str(out)])
    # What runs in a shell's background, as CI may, is started with SIGINT ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    try:
        own = {"__name__": "__main__", "print": lambda *words: printed.append(words)}
        exec(compile(PROGRAM, "README.md", "exec"), own)
    finally:
        ended.set()
    assert asked == [("csi://0", 0, 64, 48, 30.0)]
    assert (sent, printed[0][:2]) == ([number], (0, "keyframe"))
    with open_source(out) as video:  # the signal may have come between a picture and its line
        assert len(printed) <= video.frame_count <= len(printed) + 1
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    signal.signal(signal.SIGINT, inherited)
    _eventually(lambda: camera.released == [True])


@pytest.mark.parametrize("options", [[], ["--threaded", "--background", "1"], ["--serve", "0"]], ids=" ".join)
def test_sigterm_ends_the_app_in_order(tmp_path, bundle, manager, options):
    out = tmp_path / "annotated.avi"
    process = start(
        JETSON / "camera_app.py", bundle, ENDLESS, "--out", out, *options,
        NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000",
    )  # fmt: skip
    manager.wait_for("WATCHDOG=1", process, times=3)
    process.send_signal(signal.SIGTERM)
    printed, logged = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, ""), logged
    messages = manager.heard()
    assert (messages[0], messages[-1]) == ("READY=1", "STOPPING=1")
    assert set(messages[1:-1]) == {"WATCHDOG=1"}
    answered = int(re.search(r"(\d+) frames, 0 failed steps", logged)[1])
    assert "Traceback" not in logged
    assert logged.rstrip().endswith("INFO camera_app: stopped")
    with open_source(out) as video:  # whole, although the run was ended from outside
        # The signal may come between a frame's answer and its picture, or its picture and its count.
        assert answered > 1
        assert abs(video.frame_count - answered) <= 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["BUNDLE", "camera:97"], 69, "camera:97: cannot be opened"),
        (["BUNDLE", "csi://x"], 2, "expected csi://INDEX"),
        (["nowhere", ENDLESS], 2, "nowhere"),
        (["BUNDLE", "synthetic:shapes?height=32&width=32"], 2, "its frames are 32 x 32"),
        (["BUNDLE", ENDLESS, "--background", "0"], 2, "--background"),
    ],
)
def test_exit_codes_say_whether_another_start_is_worth_it(bundle, manager, arguments, code, message):
    words = [str(bundle) if word == "BUNDLE" else word for word in arguments]
    process = start(JETSON / "camera_app.py", *words, NOTIFY_SOCKET=manager.address)
    _, logged = process.communicate(timeout=120)
    assert process.returncode == code, logged
    assert message in logged.splitlines()[-1]
    assert "READY=1" not in manager.heard()


class Reports(Notifier):
    """Counts what is reported."""

    def __init__(self) -> None:
        super().__init__({})
        self.told: list[str] = []

    def ready(self) -> None:
        self.told.append("ready")

    def alive(self) -> None:
        self.told.append("alive")


def live(*plans, **settings):
    """A live source over a fake camera whose every grab waits for a permit."""
    camera = FakeDevice(*plans, gated=True)
    camera.give(1)  # the first picture only shows that the camera delivers
    return camera, LiveSource(camera, settings=LiveSettings(**settings))


@pytest.mark.parametrize("threaded", [False, True])
def test_every_frame_of_a_patient_camera_is_answered_once_and_in_order(app, bundle, monkeypatch, threaded):
    answers = []
    camera, source = live(pictures(21))
    woken = threading.Event() if threaded else None

    def use(frame, result):
        assert frame.seq == result.seq
        answers.append((result.seq, result.kind, result.mask.copy()))
        camera.give()
        if result.seq == 4:
            raise ValueError("mine")

    monkeypatch.setattr(app, "use", use)
    told = None if woken is None else lambda _: woken.set()
    schedule = EverySchedule(interval=5)
    with source, EdgeRunner(bundle, schedule=schedule, threaded=threaded, on_result=told) as runner:
        program = app.CameraApp(runner, source, Reports(), woken=woken, limit=20)
        assert source.take(0) is None  # a stream begins when its first frame is asked for
        camera.give()
        program.run()
    assert [seq for seq, _, _ in answers] == list(range(20))
    assert [seq for seq, kind, _ in answers if kind is StepKind.KEYFRAME] == [0, 5, 10, 15]
    assert (program.frames, program.failures, program.use_errors) == (20, 0, 1)
    _eventually(lambda: camera.released == [True])


class Faulty:
    """A runner, as far as the app uses one, whose steps end as they are told to."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends, self.bundle = list(ends), SimpleNamespace(path=ROOT / "none" / "none")

    def __call__(self, frame):
        end = self.ends.pop(0)
        if end is not None:
            raise end
        return SimpleNamespace(seq=frame.seq, state_age=0)


def run_faulty(app, *ends):
    program = app.CameraApp(Faulty(*ends), open_source(f"{ENDLESS[:-8]}{len(ends)}"), Reports())
    program.run()
    return program


def test_failed_steps_cost_their_frames_and_no_more(app):
    wrong = EngineError("step: failed.")
    program = run_faulty(app, *[wrong] * 9, None, *[wrong] * 9, None, None)
    assert (program.frames, program.failures) == (3, 18)


@pytest.mark.parametrize(
    ("ends", "error", "code"),
    [
        ([None, *[EngineError("step: failed.")] * 10, None], EngineError, 2),
        ([None, DeviceLostError("GPU: launch failed."), None], DeviceLostError, 75),
    ],
)
def test_what_no_waiting_repairs_ends_the_app(app, ends, error, code):
    with pytest.raises(error) as caught:
        run_faulty(app, *ends)
    assert caught.value.exit_code == code


def test_a_new_bundle_that_fails_its_trial_is_left_for_the_old_one(app, monkeypatch):
    counted = []

    class Health:
        def __init__(self, bundle):
            pass

        def ok(self):
            counted.append("ok")

        def error(self, error):
            counted.append(str(error))
            return len(counted) == 3

    monkeypatch.setattr(app, "Health", Health)
    with pytest.raises(UpdateError, match="failed its trial") as caught:
        run_faulty(app, None, EngineError("first."), EngineError("second."), None)
    assert (counted, caught.value.exit_code) == (["ok", "first.", "second."], app.NEW_PROCESS)


def test_a_lost_camera_has_its_own_exit_code_and_until_then_there_is_progress(app, bundle, monkeypatch):
    monkeypatch.setattr(app, "TICK_S", 0.02)
    _, source = live(pictures(1), VideoError("gone"), stall_s=0.05, pause_s=0.01, lost_s=0.5)
    reports = Reports()
    with source, EdgeRunner(bundle) as runner, pytest.raises(VideoError, match="lost") as caught:
        app.CameraApp(runner, source, reports).run()
    assert caught.value.exit_code == app.CAMERA_LOST
    assert source.state is SourceState.lost
    assert reports.told[0] == "ready"
    assert reports.told.count("alive") >= 5


def test_it_follows_a_run_recipe_and_options_replace_it(app, bundle, tmp_path, monkeypatch):
    """The bundle is the command line's: on a device it lies elsewhere than where it was tuned."""
    asked = []
    monkeypatch.setattr(app, "open_and_run", lambda *args, **_: asked.append(args[:3]))
    recipe = RunRecipe(bundle="elsewhere", engine="float32", schedule=EverySchedule(interval=7), threads=1)
    recipe.write(tmp_path / "run.yaml")
    app.camera_app(bundle, "camera:0", recipe=tmp_path / "run.yaml")
    app.camera_app(bundle, "camera:0", recipe=tmp_path / "run.yaml", interval=2)
    app.camera_app(bundle, "camera:0")
    for (found, options, uri), schedule, engine in zip(
        asked,
        (EverySchedule(interval=7), EverySchedule(interval=2), None),
        ("float32", "float32", None),
        strict=True,
    ):
        assert (found, uri, options["schedule"], options["engine"]) == (bundle, "camera:0", schedule, engine)
        assert (options["backend"], options["background"], options["threaded"]) == ("onnxruntime", None, None)
        EdgeRunner(found, **options)


def test_an_answer_that_never_comes_is_no_progress(app, monkeypatch):
    """What systemd's watchdog is for: frames come, and the runner hangs."""
    monkeypatch.setattr(app, "TICK_S", 0.01)
    camera, source = live(pictures(3))
    pending = SimpleNamespace(submitted=0, answered=0, replaced=0, failed=0)
    looked = []

    def latest(after, timeout_s):
        looked.append(pending.submitted)
        if len(looked) == 5:
            camera.give()
        if len(looked) > 60:
            raise DeviceLostError("end of the test.")

    def submit(frame):
        pending.submitted += 1

    runner = SimpleNamespace(bundle=Faulty().bundle, submit=submit, latest=latest, counts=pending)
    reports = Reports()
    with source, pytest.raises(DeviceLostError):
        app.CameraApp(runner, source, reports, woken=threading.Event()).run()
    before = looked.index(1)
    assert 5 <= before < 60
    assert reports.told.count("alive") == before


def _eventually(true, limit_s=10.0):
    end_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.01)
