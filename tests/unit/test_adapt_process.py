"""The trainer's process: killed in every state, hanging, started anew, never left behind; see tests/fake_trainer.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.adapt.channel import Layout
from edge_sdk.adapt.messages import Failed, Keep, Kept, Learned, Ready, Start, Undo
from edge_sdk.adapt.process import RestartBudget, TrainerProcess
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.errors import ClosedError, ShapeError, TrainerError
from tests.cameras import SimulatedClock
from tests.fake_trainer import FIRST, MODULE, WEIGHT, Plan, answer

LAYOUT = Layout(frame_hw=(16, 24), graphs={"delta": 1000}, weights=1000)
# No bundle: the fake trainer's graph is then its threshold, float32.
START = Start(bundle="/no/bundle", settings=AdaptSettings())
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
LABEL = answer(IMAGE, 60)
PATIENCE_S = 60.0


@pytest.fixture
def clock():
    return SimulatedClock()


@pytest.fixture
def trainer(clock, monkeypatch):
    monkeypatch.delenv("FAKE_TRAINER", raising=False)
    with_files = len(os.listdir("/proc/self/fd"))
    process = TrainerProcess(LAYOUT, module=MODULE, restarts=2, patience_s=PATIENCE_S, clock=clock)
    yield process
    process.close()
    assert not process.alive
    assert len(os.listdir("/proc/self/fd")) == with_files
    assert not [thread for thread in threading.enumerate() if thread.name == "edge-sdk-trainer"]


def begin(trainer: TrainerProcess, monkeypatch, start: Start = START, **plan) -> None:
    monkeypatch.setenv(*Plan(**plan).variable)
    trainer.start(start)


def ready(trainer: TrainerProcess) -> Ready:
    message = trainer.receive(30)
    assert isinstance(message, Ready)
    return message


def learn(trainer: TrainerProcess, seq: int = 1, label: np.ndarray = LABEL) -> Learned:
    trainer.lesson(seq, IMAGE, label)
    message = trainer.receive(30)
    assert isinstance(message, Learned)
    return message


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process that is not ours has ended."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_it_learns_undoes_keeps_and_resumes(trainer, monkeypatch, tmp_path) -> None:
    assert (trainer.alive, trainer.pid, trainer.last_words) == (False, None, "")
    begin(trainer, monkeypatch, words="hello\nthere")
    assert ready(trainer) == Ready(version=0)
    learned = learn(trainer, 5)
    assert (learned.seq, learned.version, learned.updates) == (5, 1, 1)
    assert learned.before < 0.8 < learned.after == 1.0
    assert np.frombuffer(trainer.graph(learned, "delta"), np.float32) == 60
    assert np.array_equal(trainer.mask(), LABEL)
    assert trainer.last_words.startswith("hello\nthere")

    again = learn(trainer, 6)
    assert (again.version, again.updates, again.graphs) == (1, 0, {})
    trainer.send(Undo(version=1))  # of nothing
    assert learn(trainer, 7, answer(IMAGE, 200)).version == 2
    trainer.send(Undo(version=1))
    assert learn(trainer, 8).updates == 0  # what was learned from frame 5 is still there

    folder = str(tmp_path / "kept")
    trainer.send(Keep(folder=folder))
    assert trainer.receive(30) == Kept(folder=folder, version=1)
    trainer.restart(START.model_copy(update={"resume": folder, "version": 1}))
    assert ready(trainer) == Ready(version=1)
    assert learn(trainer, 9).updates == 0
    assert trainer.restarted == 1


def test_weights_alone_are_exchanged_with_refit(trainer, monkeypatch) -> None:
    settings = AdaptSettings(swap="refit")
    begin(trainer, monkeypatch, START.model_copy(update={"settings": settings}), faults={"2": "damaged"})
    ready(trainer)
    learned = learn(trainer)
    assert learned.graphs == {}
    assert trainer.weights(learned) == {WEIGHT: np.array([60], np.float32)}
    learned = learn(trainer, 2)
    with pytest.raises(TrainerError, match="SHA-256"):
        trainer.weights(learned)
    assert not trainer.alive


def test_it_is_killed_in_every_state_and_starts_again(clock, trainer, monkeypatch, tmp_path) -> None:
    """Starting, idle, in a lesson, keeping, undoing: each time the same error, and a new one learns."""
    clock_s = 600.0
    steps = {
        "starting": lambda: None,
        "idle": lambda: ready(trainer),
        "learning": lambda: (ready(trainer), trainer.lesson(1, IMAGE, LABEL)),
        "keeping": lambda: (ready(trainer), trainer.send(Keep(folder=str(tmp_path / "kept")))),
        "undoing": lambda: (ready(trainer), trainer.send(Undo(version=0))),
    }
    begin(trainer, monkeypatch, faults={"1": "hang", "keep": "hang", "undo": "hang"})
    for step in steps.values():
        step()
        assert trainer.alive
        os.kill(trainer.pid, signal.SIGKILL)
        with pytest.raises(TrainerError, match=r"was killed \(SIGKILL\), as Linux does when memory runs out"):
            all(trainer.receive(30) for _ in range(3))  # it may have been ready before
        assert (trainer.alive, trainer.learning) == (False, False)
        with pytest.raises(TrainerError, match="the trainer was killed"):
            trainer.lesson(2, IMAGE, LABEL)
        clock.pass_s(clock_s)
        trainer.restart(START)
    monkeypatch.setenv(*Plan().variable)
    trainer.restart(START)
    ready(trainer)
    assert learn(trainer).version == 1
    assert trainer.restarted == 6


FAULTS = [
    ("raise", "ended with exit code 1: RuntimeError: as the plan says"),
    ("exit", "ended with exit code 3: out of luck"),
    ("bytes", "what is no message"),
]


@pytest.mark.parametrize(("fault", "complaint"), FAULTS)
def test_whoever_breaks_the_agreement_is_killed(trainer, monkeypatch, fault, complaint) -> None:
    begin(trainer, monkeypatch, faults={"1": fault})
    ready(trainer)
    trainer.lesson(1, IMAGE, LABEL)
    with pytest.raises(TrainerError, match=complaint):
        trainer.receive(30)
    assert not trainer.alive


def test_so_is_one_whose_graphs_are_not_as_reported(trainer, monkeypatch) -> None:
    begin(trainer, monkeypatch, faults={"1": "sha"})
    ready(trainer)
    learned = learn(trainer)
    with pytest.raises(TrainerError, match="SHA-256"):
        trainer.graph(learned, "delta")
    assert not trainer.alive


def test_bad_weights_are_reported_and_it_goes_on(trainer, monkeypatch) -> None:
    """What is wrong with a result is for the probe to find."""
    begin(trainer, monkeypatch, faults={"1": "nan", "2": "garbage", "3": "lie", "4": "worse", "5": "fail"})
    ready(trainer)
    nan = learn(trainer)
    assert (nan.finite, nan.graphs) == (False, {})
    assert np.isnan(nan.after)
    trainer.send(Undo(version=0))
    garbage = learn(trainer)
    assert trainer.graph(garbage, "delta") != np.float32(60).tobytes()
    trainer.send(Undo(version=0))
    learn(trainer)
    assert np.array_equal(trainer.mask(), 1 - LABEL)
    trainer.send(Undo(version=0))
    assert learn(trainer).after < 0.1
    with pytest.raises(ShapeError):
        trainer.lesson(5, IMAGE[:4], LABEL)
    trainer.lesson(5, IMAGE, LABEL)
    with pytest.raises(TrainerError, match="frame 6: the one before is still under way"):
        trainer.lesson(6, IMAGE, LABEL)
    assert trainer.receive(30) == Failed(error="CheckpointError", message="as the plan says")
    with pytest.raises(TrainerError, match="ended with exit code 1"):
        trainer.receive(30)


def test_one_that_never_answers_is_killed_when_the_patience_ends(clock, trainer, monkeypatch) -> None:
    begin(trainer, monkeypatch, faults={"1": "hang"})
    ready(trainer)
    clock.pass_s(1000)
    assert trainer.receive(0) is None  # nothing was asked
    trainer.lesson(1, IMAGE, LABEL)
    clock.pass_s(PATIENCE_S)
    assert trainer.receive(0.02) is None
    assert trainer.learning
    clock.pass_s(0.1)
    with pytest.raises(TrainerError, match="has not answered for 60 s"):
        trainer.receive()
    assert not trainer.alive


def test_closing_does_not_wait_for_one_that_hangs(trainer, monkeypatch) -> None:
    begin(trainer, monkeypatch, faults={"1": "deaf"})
    ready(trainer)
    trainer.lesson(1, IMAGE, LABEL)
    trainer.close(grace_s=0.05)
    assert not trainer.alive
    trainer.close()
    trainer.kill()
    with pytest.raises(TrainerError, match=r"the trainer was ended\."):
        trainer.receive()
    for again in (trainer.start, trainer.restart):
        with pytest.raises(ClosedError, match="closed"):
            again(START)


def test_killing_wakes_the_thread_that_receives(trainer, monkeypatch) -> None:
    begin(trainer, monkeypatch)
    ready(trainer)
    seen: list[Exception] = []

    def wait() -> None:
        try:
            trainer.receive()
        except TrainerError as error:
            seen.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    trainer.kill()
    waiting.join(10)
    assert [str(error) for error in seen] == ["the trainer was ended. The trainer has to be started again."]


def test_what_the_trainer_started_ends_with_it(trainer, monkeypatch) -> None:
    """Although it holds the trainer's output and its end of the channel open."""
    begin(trainer, monkeypatch, faults={"1": "orphan"})
    ready(trainer)
    trainer.lesson(1, IMAGE, LABEL)
    with pytest.raises(TrainerError, match="was killed"):
        trainer.receive(30)
    assert gone(int(trainer.last_words.split()[-1]))


def test_it_outlives_the_thread_that_started_it(trainer, monkeypatch) -> None:
    starting = threading.Thread(target=begin, args=(trainer, monkeypatch))
    starting.start()
    starting.join()
    ready(trainer)
    assert learn(trainer).version == 1


def test_it_dies_with_the_process_that_started_it() -> None:
    """Even stopped in a lesson, where it cannot notice anything."""
    code = (
        "import os, sys, tests.unit.test_adapt_process as t\n"
        "trainer = t.TrainerProcess(t.LAYOUT, module=t.MODULE)\n"
        "trainer.start(t.START)\n"
        "t.ready(trainer)\n"
        "trainer.lesson(1, t.IMAGE, t.LABEL)\n"
        "print(trainer.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    name, value = Plan(faults={"1": "deaf"}).variable
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gone(int(done.stdout))


def test_one_that_dies_again_and_again_is_given_up(clock, trainer, monkeypatch) -> None:
    begin(trainer, monkeypatch, faults={"start": "exit"})
    pids = {trainer.pid}
    for _ in range(2):
        with pytest.raises(TrainerError, match="exit code 3"):
            trainer.receive(30)
        trainer.restart(START)
        pids.add(trainer.pid)
    with pytest.raises(TrainerError, match="exit code 3"):
        trainer.receive(30)
    for _ in range(20):
        with pytest.raises(
            TrainerError, match=r"again 2 times within 600 s already: out of luck\..*'restarts'"
        ):
            trainer.restart(START)
    assert len(pids) == 3
    assert trainer.restarted == 2
    assert not trainer.alive
    clock.pass_s(600)
    monkeypatch.setenv(*Plan().variable)
    trainer.restart(START)
    ready(trainer)


def test_the_runners_side_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, edge_sdk.adapt.process; print(*{'torch', 'onnx', 'cv2', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).stdout == b"\n"


def test_the_budget_is_counted_over_its_window(clock) -> None:
    budget = RestartBudget(2, 10.0, clock)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    clock.pass_s(9.9)
    assert not budget.take()
    clock.pass_s(0.1)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    assert not RestartBudget(0, 10.0, clock).take()


def test_only_one_runs_at_a_time_and_none_before_the_start(trainer, monkeypatch) -> None:
    for use in (trainer.receive, trainer.mask, lambda: trainer.lesson(1, IMAGE, LABEL)):
        with pytest.raises(TrainerError, match=r"no trainer runs. Start one first."):
            use()
    begin(trainer, monkeypatch)
    with pytest.raises(TrainerError, match="running already"):
        trainer.start(START)


def test_a_module_that_is_not_there_is_named(monkeypatch) -> None:
    process = TrainerProcess(LAYOUT, module="tests.no_such_trainer")
    process.start(START)
    with pytest.raises(TrainerError, match=r"exit code 1: .*No module named tests\.no_such_trainer"):
        process.receive(30)
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(TrainerError, match=r"cannot be started: .*'/no/python'"):
        process.start(START)
    process.close()


def test_neither_side_grows_over_a_thousand_lessons(trainer, monkeypatch) -> None:
    begin(trainer, monkeypatch, rule="count")
    ready(trainer)

    def pages() -> np.ndarray:
        return np.array([_pages(os.getpid()), _pages(trainer.pid)])

    for seq in range(1, 1001):
        learned = learn(trainer, seq)
        assert np.frombuffer(trainer.graph(learned, "delta"), np.float32) == learned.version % 256
        if seq == 200:
            before = pages()
    assert learned.version == 1000
    assert FIRST not in (0.0, learned.version)
    assert (pages() - before < 256).all()  # 1 MiB; a frame, mask and graph a lesson would be ten


def _pages(pid: int) -> int:
    """Resident anonymous and file pages, without those that are shared."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) - int(fields[2])
