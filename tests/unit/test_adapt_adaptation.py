"""Learning on a stream: swaps under load, poisoned updates, a trainer that dies; see tests/adapt_world.py."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

from edge_sdk.adapt.journal import read_log
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.errors import ChecksumError, ClosedError, MissingFileError, RecipeError, TrainerError
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.video.frame import Frame, Truth
from tests.adapt_world import ALWAYS, ANYTHING_GOES, LIMIT_S, TEACHER, World, lesson, ramp, threshold_of
from tests.fake_trainer import FIRST
from tests.serve_world import until
from tests.soak import resident_bytes

BEGIN = int(np.ceil(FIRST))  # what masks of the first student show


@pytest.fixture
def world(tmp_path, monkeypatch):
    # A thread that another file's test gave up may still be on its way out.
    before = set(threading.enumerate())
    yield World(tmp_path, monkeypatch)
    left = set(threading.enumerate()) - before
    assert [thread.name for thread in left if thread.name.startswith("edge-sdk")] == []


def delta(runner: EdgeRunner, first: int = 0) -> int:
    """The threshold of the student in use: frames until one is answered by it."""
    for _ in range(1000):
        image = ramp(first)
        result = runner(image)
        if result.kind is StepKind.DELTA:
            return threshold_of(image, result)
        time.sleep(0.001)
    raise AssertionError("the student answers nothing")


@pytest.mark.parametrize("swap", ["engine", "refit"])
def test_the_student_learns_what_the_teacher_knows(world, swap) -> None:
    with world.runner(swap=swap) as runner:
        assert delta(runner) == BEGIN  # while the trainer starts
        status = lesson(runner, ramp())
        assert (status.version, status.updates, status.lessons) == (1, 1, 1)
        assert status.agreement_before == pytest.approx(127 / 206)
        assert status.agreement == 1.0
        assert delta(runner) == TEACHER
        assert lesson(runner, ramp()).version == 1  # nothing more to learn
    assert runner_is_closed(runner)
    kinds = world.kinds()
    assert kinds[0] == "started"
    assert kinds.count("taken") == 1
    assert [event.lesson for event in world.events if event.kind == "taken"] == [
        next(event.seq for event in world.events if event.kind == "learned")
    ]


def runner_is_closed(runner: EdgeRunner) -> bool:
    with pytest.raises(ClosedError):
        _ = runner.adaptation
    return True


@pytest.mark.alone
@pytest.mark.parametrize(
    ("swaps", "swap"),
    [(100, "engine"), (100, "refit"), pytest.param(1000, "engine", marks=pytest.mark.slow)],
)
def test_every_answer_under_load_is_that_of_one_version(world, swaps, swap) -> None:
    """Version n answers by threshold n; frames never pause, and memory does not grow."""
    world.plan(rule="count")
    used, sizes, frames = set(), [], 0
    with world.runner(probe=ANYTHING_GOES, swap=swap) as runner:
        learner, end = runner.adaptation, time.monotonic() + 120
        version = 0
        while version < swaps and time.monotonic() < end:
            image = ramp(frames % 256)
            result = runner(image)
            frames += 1
            status = learner.status()
            assert status.version >= version
            if status.version > version and status.version % (swaps // 10) == 0:
                gc.collect()
                sizes.append(resident_bytes())
            version = status.version
            if result.kind is StepKind.KEYFRAME:
                assert threshold_of(image, result) == TEACHER
            else:
                assert threshold_of(image, result) == (version % 256 if version else BEGIN)
                used.add(version)
        assert version == swaps
        assert (status.refused, status.restarts, status.last_error) == (0, 0, "")
        versions = learner._ledger.folder_of(1).parent
        # Those two, and what is being written; a thread of its own removes the others, when it comes to it.
        until(lambda: len(list(versions.iterdir())) <= 4)
        gc.collect()
        engines = sum(type(each).__name__ == "InferenceSession" for each in gc.get_objects())
        assert engines <= 6
    # A version that the next one follows at once may answer nothing; on a busy machine more of them do.
    assert len(used) > 0.5 * swaps
    # Of few swaps, noise of a process that has run other tests is the larger part.
    assert sizes[-1] - sizes[len(sizes) // 3] < max(swaps, 2000) * 4096


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nan", "no finite number"),
        ("worse", "agreement fell from"),
        ("lie", "differs from the trainer in 100.0%"),
        ("garbage", "refuses it"),
    ],
)
def test_a_poisoned_update_never_stays(world, fault, said) -> None:
    world.plan(faults={"2": fault})
    with world.runner() as runner:
        assert lesson(runner, ramp()).version == 1
        status = lesson(runner, ramp())
        assert (status.version, status.refused, status.restarts) == (1, 1, 0)
        assert said in status.last_error
        assert delta(runner) == TEACHER
        status = lesson(runner, ramp())  # the trainer went back too: there is nothing to learn
        assert (status.version, status.agreement_before, status.refused) == (1, 1.0, 1)
    refused = [event for event in world.events if event.kind == "refused"]
    assert [(event.kept, said in event.reason) for event in refused] == [(1, True)]


@pytest.mark.parametrize("fault", ["sha", "kill", "exit", "frame", "bytes"])
def test_a_trainer_that_dies_is_started_again_with_the_weights_in_use(world, tmp_path, fault) -> None:
    world.plan(faults={"2": fault}, once=tmp_path)
    with world.runner() as runner:
        assert lesson(runner, ramp()).version == 1
        status = lesson(runner, ramp())
        assert runner.adaptation.wait_idle(LIMIT_S)
        status = runner.adaptation.status()
        assert (status.version, status.restarts, status.refused) == (1, 1, 0)
        assert status.last_error
        assert delta(runner) == TEACHER
        status = lesson(runner, ramp())
        assert (status.version, status.agreement_before) == (1, 1.0)  # it knows what it had learned
    assert world.kinds().count("restarted") == 1


@pytest.mark.parametrize("when", ["keep", "undo"])
def test_a_trainer_may_also_die_while_it_keeps_or_goes_back(world, tmp_path, when) -> None:
    world.plan(faults={when: "kill", "1": "worse"} if when == "undo" else {when: "kill"}, once=tmp_path)
    with world.runner() as runner:
        while runner.adaptation.status().version == 0:
            lesson(runner, ramp())
        assert runner.adaptation.status().restarts == 1
        assert delta(runner) == TEACHER


def test_a_trainer_that_is_killed_while_it_waits_is_started_again(world, monkeypatch) -> None:
    monkeypatch.setattr("edge_sdk.adapt.worker._LOOK_S", 0.02)
    with world.runner() as runner:
        lesson(runner, ramp())
        process = runner.adaptation._teaching.process
        runner(ramp())
        runner.adaptation.wait_idle(LIMIT_S)
        runner(ramp())
        os.kill(process.pid, signal.SIGKILL)
        while runner.adaptation.status().restarts == 0:
            assert threshold_of(ramp(), runner(ramp())) == TEACHER
        lesson(runner, ramp())
        assert runner.adaptation.status().version == 1


@pytest.mark.parametrize("pace", ["beside", "in_turn"])
def test_after_too_many_restarts_learning_stops_loudly(world, caplog, pace) -> None:
    world.plan(faults={"every": "kill"})
    with world.runner(restarts=1, pace=pace) as runner:
        learner = runner.adaptation
        if pace == "in_turn":
            frames = (runner(ramp()) for _ in range(100))
            # With the frame whose lesson ends the last trainer, or with the next teacher frame.
            with pytest.raises(TrainerError, match=r"in turn has stopped: .*again 1 times"):
                list(frames)
        else:
            while learner.status().trainer != "stopped":
                lesson(runner, ramp())
            for _ in range(20):
                runner(ramp())  # the stream goes on
            assert learner.wait_idle(0)
        status = learner.status()
        assert (status.trainer, status.restarts, status.version) == ("stopped", 1, 0)
        assert "learning has stopped, the stream goes on" in caplog.text
    assert world.kinds()[-1] == "stopped" or pace == "beside"
    assert world.kinds().count("stopped") == 1


def test_a_trainer_that_says_that_it_cannot_is_not_asked_again(world) -> None:
    world.plan(faults={"start": "fail"})
    with world.runner() as runner:
        runner.adaptation.wait_idle(LIMIT_S)
        status = runner.adaptation.status()
        assert (status.trainer, status.restarts) == ("stopped", 0)
        assert "the trainer failed (CheckpointError): as the plan says" in status.last_error
        assert threshold_of(ramp(), runner(ramp())) == TEACHER


def test_a_keyframe_that_is_forced_while_a_lesson_is_under_way_is_answered_only(world) -> None:
    world.plan(lesson_s=0.2)
    with world.runner() as runner:
        runner.adaptation.wait_idle(LIMIT_S)
        while runner.adaptation.status().trainer != "learning":
            runner(ramp())
        runner.request_keyframe()
        assert runner(ramp()).kind is StepKind.KEYFRAME
        assert runner(ramp()).kind is StepKind.DELTA
        status = runner.adaptation.status()
        assert (status.trainer, status.lessons) == ("learning", 0)
    told = [event.lesson for event in world.events if event.kind == "teacher_frame"]
    assert told[-2:] == [True, False]


def test_in_turn_every_frame_has_what_was_learned_before(world) -> None:
    """The listing: the stride doubles at once, and the same happens every time."""
    runs = []
    for _ in range(2):
        with world.runner(pace="in_turn", stride={"minimum": 2, "maximum": 8}) as runner:
            results = [
                (result.kind.value, threshold_of(ramp(), result)) for result in map(runner, [ramp()] * 17)
            ]
            runs.append((results, runner.adaptation.status()))
    assert runs[0] == runs[1]
    results, status = runs[0]
    keyframes = [index for index, (kind, _) in enumerate(results) if kind == "keyframe"]
    assert keyframes == [0, 4, 8, 16]  # t mod stride, after strides of 4, 8 and 8
    assert {threshold for _, threshold in results} == {TEACHER}
    assert (status.version, status.lessons, status.frames, status.teacher_frames) == (1, 4, 17, 4)


def test_in_turn_the_student_may_answer_the_teachers_frames(world) -> None:
    world.plan(rule="fit", step=10.0)
    with world.runner(pace="in_turn", answer="student", max_updates=1) as runner:
        found = [threshold_of(ramp(), runner(ramp())) for _ in range(6)]
    assert found == [119, 109, 99, 89, 89, 89]  # 10 a frame, until the agreement is good enough


def test_recorded_teachers(world, tmp_path) -> None:
    image, mask = ramp(), (ramp()[..., 0] >= 90).astype(np.uint8)
    with world.runner(truth=True) as runner:
        lesson_on = Frame(image, 0, 0.0, Truth(mask=mask))
        assert threshold_of(image, runner(lesson_on)) == 90
        with pytest.raises(RecipeError, match="frame 9 has none"):
            runner(Frame(image, 9, 0.0, None))
    with pytest.raises(MissingFileError, match="recorded masks"):
        world.runner(teacher=tmp_path / "none").open()
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path / "masks"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), mask)
    with world.runner(teacher=folder, pace="in_turn") as runner:
        assert [threshold_of(image, runner(image)) for _ in range(3)] == [90, 90, 90]
        with pytest.raises(MissingFileError, match="expected a mask of frame 3"):
            runner(image)
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), mask * 255)
    with world.runner(teacher=folder, teacher_labels={255: 1}, pace="in_turn") as runner:
        assert threshold_of(image, runner(image)) == 90
    with pytest.raises(ValueError, match="'teacher_labels' is about the masks of 'teacher'"):
        AdaptSettings(teacher_labels={255: 1})


def test_a_label_that_holds_no_class_is_refused_and_the_trainer_lives(world) -> None:
    wrong = np.full((16, 16), 7, np.uint8)
    with world.runner(truth=True, pace="in_turn") as runner:
        runner(Frame(ramp(), 0, 0.0, Truth(mask=wrong)))
        runner(Frame(ramp(), 1, 0.0, Truth(mask=(ramp()[..., 0] >= 90).astype(np.uint8))))
        status = runner.adaptation.status()
    assert (status.refused, status.restarts) == (1, 0)
    assert "holds 7, which is no class" in status.last_error
    assert world.kinds().count("learned") == 1 or status.lessons == 0


def test_a_restart_goes_on_with_weights_stride_and_log(world, tmp_path) -> None:
    state = tmp_path / "state"
    stride = {"minimum": 2, "maximum": 8}
    with world.runner(pace="in_turn", state=state, stride=stride) as runner:
        for _ in range(6):
            runner(ramp())
        before = runner.adaptation.status()
    assert (before.version, before.stride) == (1, 8)
    with world.runner(pace="in_turn", state=state, stride=stride) as runner:
        assert runner.adaptation.wait_idle(LIMIT_S)
        results = [result for _, result in runner.stream([Frame(ramp(), seq, 0.0) for seq in range(2)])]
        after = runner.adaptation.status()
        assert threshold_of(ramp(), results[1]) == TEACHER
        assert [result.kind for result in results] == [StepKind.KEYFRAME, StepKind.DELTA]
    assert (after.version, after.frames, after.teacher_frames) == (1, 8, before.teacher_frames + 1)
    assert after.lessons == before.lessons + 1
    # The trainer went on from the same weights, although it was ready before the stream had taken them.
    assert (after.restarts, after.agreement_before) == (0, 1.0)
    assert world.kinds()[0] == "resumed"
    log = [event.kind for event in read_log(state / "log.jsonl")]
    assert (log.count("started"), log.count("resumed")) == (1, 1)
    assert log[-len(world.kinds()) :] == world.kinds()

    with world.runner(state=state, resume=False) as runner:
        assert runner.adaptation.status().lessons == 0
        assert delta(runner) == BEGIN


def test_a_damaged_state_is_refused_before_it_answers(world, tmp_path) -> None:
    state = tmp_path / "state"
    with world.runner(pace="in_turn", state=state) as runner:
        runner(ramp())
        runner(ramp())
    graph = state / "versions" / "000001" / "delta.onnx"
    graph.write_bytes(graph.read_bytes().replace(np.float32(TEACHER).tobytes(), np.float32(3).tobytes()))
    with pytest.raises(ChecksumError, match="resume=False"):
        world.runner(state=state).open()
    with world.runner(state=state, resume=False):
        pass


def test_closing_in_the_middle_of_a_lesson_is_quick(world) -> None:
    world.plan(lesson_s=60.0)
    with world.runner() as runner:
        runner.adaptation.wait_idle(LIMIT_S)
        while runner.adaptation.status().trainer != "learning":
            runner(ramp())
        learner, began = runner.adaptation, time.monotonic()
    assert time.monotonic() - began < 3.0
    learner.close()
    assert learner.status().trainer == "closed"
    with pytest.raises(ClosedError):
        learner.keep("nowhere")


def test_what_an_application_raises_changes_nothing(world) -> None:
    def bad(event: object) -> None:
        raise ZeroDivisionError("as bad as it gets")

    with EdgeRunner(world.bundle, adapt=AdaptSettings(stride=ALWAYS), on_adapt=bad, threads=1) as runner:
        status = lesson(runner, ramp())
        assert status.version == 1


def test_a_new_stream_begins_with_the_smallest_stride_and_keeps_the_weights(world) -> None:
    with world.runner(pace="in_turn", stride={"minimum": 2, "maximum": 8}) as runner:
        for _ in range(6):
            runner(ramp())
        assert runner.adaptation.status().stride == 8
        runner.reset()
        status = runner.adaptation.status()
        assert (status.stride, status.frames, status.version) == (2, 0, 1)
        runner(ramp())
        assert threshold_of(ramp(), runner(ramp())) == TEACHER
