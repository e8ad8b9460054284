"""The trainer as a whole: sessions on a bundle, kept versions, and the process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from edge_sdk.adapt.channel import RunnerChannel, TrainerChannel
from edge_sdk.adapt.memory import Layout, SharedMemory
from edge_sdk.adapt.messages import Failed, Keep, Kept, Learned, Ready, Start, Stop, Undo
from edge_sdk.adapt.pipe import MessagePipe
from edge_sdk.adapt.process import TrainerProcess
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.adapt.trainer import __main__ as program
from edge_sdk.adapt.trainer.kept import pair_weights, read_version
from edge_sdk.adapt.trainer.session import Session, decode_stride
from edge_sdk.bundle import Bundle
from edge_sdk.distill.online import WEIGHTS_FILE, WEIGHTS_KEY
from edge_sdk.errors import BundleError, CheckpointError, FileFormatError, MissingFileError, RecipeError
from edge_sdk.tensors import TensorSpec
from tests.graphs import residual
from tests.trainer_world import ALLOWED, NAMES, SIZE_HW, bundle, lesson


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def start(given: Bundle, settings: AdaptSettings = ALLOWED, **changes: Any) -> Start:
    return Start(bundle=str(given.path), settings=settings, **changes)


def answer(graph: bytes, image: np.ndarray) -> np.ndarray:
    mask: np.ndarray = onnxruntime.InferenceSession(graph).run(None, {"frame": image})[0]
    return mask


def test_graphs_with_what_was_learned_answer_as_the_trainer_does(learnable: Bundle) -> None:
    session = Session(start(learnable))
    image, label = lesson()
    for version in (1, 2):
        report = session.lesson(version * 8, image, label)
        assert report.learned.version == session.version == version
        assert report.learned.seq == version * 8
        assert report.learned.updates == 3
        assert report.learned.took_ms > 0
        assert [*report.graphs] == ["delta"]
        assert not report.weights
        assert np.array_equal(answer(report.graphs["delta"], image), report.mask)
    before = (learnable.path / "delta.onnx").read_bytes()
    assert before != report.graphs["delta"]


def test_nothing_learned_is_no_new_version(learnable: Bundle) -> None:
    image, _ = lesson()
    test_first = ALLOWED.model_copy(update={"order": "test_first"})
    report = Session(start(learnable, test_first)).lesson(0, image, np.full(SIZE_HW, 255, np.uint8))
    assert (report.learned.updates, report.learned.version) == (0, 0)
    assert not report.graphs


def test_refit_learns_and_gives_the_open_weights_alone(learnable: Bundle) -> None:
    session = Session(start(learnable, ALLOWED.model_copy(update={"swap": "refit"})))
    image, label = lesson()
    report = session.lesson(0, image, label)
    assert not report.graphs
    assert [*report.weights] == ["student.bias"]
    assert report.weights["student.bias"].any()
    kept = torch.load(learnable.path / WEIGHTS_FILE, weights_only=True)[WEIGHTS_KEY]
    assert np.array_equal(session._learner.weights()["student.weight"], kept["student.weight"].numpy())


def test_undo_goes_back_and_the_number_with_it(learnable: Bundle) -> None:
    session, other = Session(start(learnable)), Session(start(learnable))
    for each in (session, other):
        each.lesson(0, *lesson(0))
    session.lesson(8, *lesson(1))
    session.undo(1)
    assert session.version == 1
    left, right = (each.lesson(16, *lesson(2)) for each in (session, other))
    assert left.graphs == right.graphs
    assert left.learned.version == right.learned.version == 2


def test_weights_that_are_no_numbers_do_not_stay(learnable: Bundle) -> None:
    poison = AdaptSettings.model_validate({**ALLOWED.model_dump(), "optimiser": {"lr": 1e38}})
    session = Session(start(learnable, poison, version=4))
    before = session._learner.weights()
    report = session.lesson(0, *lesson())
    assert not report.learned.finite
    assert report.learned.version == 4
    assert not report.graphs
    after = session._learner.weights()
    assert all(np.array_equal(before[name], after[name]) for name in NAMES)


@pytest.mark.parametrize("memory", [None, {"frames": 4, "per_update": 2}])
def test_a_kept_version_goes_on_as_if_nothing_had_been(
    learnable: Bundle, tmp_path: Path, memory: dict[str, int] | None
) -> None:
    given = AdaptSettings.model_validate({**ALLOWED.model_dump(), "memory": memory, "state": tmp_path})
    session = Session(start(learnable, given))
    for seq in range(3):
        session.lesson(seq, *lesson(seq))
    session.keep(tmp_path / "000003")
    assert sorted(os.listdir(tmp_path)) == ["000003"]
    assert sorted(os.listdir(tmp_path / "000003")) == ["delta.onnx", "trainer.pt", "version.json"]
    image, label = lesson(7)
    resumed = Session(start(learnable, given, resume=str(tmp_path / "000003"), version=3))
    left, right = (each.lesson(9, image, label) for each in (session, resumed))
    assert left.graphs == right.graphs
    assert right.learned.version == 4


def test_kept_graphs_hold_the_kept_weights(learnable: Bundle, tmp_path: Path) -> None:
    session = Session(start(learnable))
    image, label = lesson()
    report = session.lesson(0, image, label)
    session.keep(tmp_path / "1")
    assert np.array_equal(answer((tmp_path / "1" / "delta.onnx").read_bytes(), image), report.mask)
    whole = tmp_path / "online.pt"
    whole.write_bytes(pair_weights(learnable.path / WEIGHTS_FILE, tmp_path / "1"))
    made = torch.load(whole, weights_only=True)[WEIGHTS_KEY]
    base = torch.load(learnable.path / WEIGHTS_FILE, weights_only=True)[WEIGHTS_KEY]
    assert made.keys() == base.keys()
    for name, value in session._learner.weights().items():
        assert np.array_equal(made[name].numpy(), value)
    assert torch.equal(made["teacher.weight"], base["teacher.weight"])


def kept(given: Bundle, folder: Path) -> Path:
    session = Session(start(given))
    session.lesson(0, *lesson())
    session.keep(folder)
    return folder


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda p: (p / "version.json").unlink(), MissingFileError, "version"),
        (lambda p: (p / "version.json").write_text("{"), FileFormatError, "kept version"),
        (lambda p: (p / "trainer.pt").unlink(), MissingFileError, "trainer.pt"),
        (lambda p: (p / "trainer.pt").write_bytes(b"x" * 99), CheckpointError, "SHA-256"),
    ],
)
def test_a_damaged_version_is_refused(
    learnable: Bundle, tmp_path: Path, damage: Any, error: type[Exception], said: str
) -> None:
    folder = kept(learnable, tmp_path / "1")
    damage(folder)
    with pytest.raises(error, match=said):
        read_version(folder, 1, learnable.manifest_sha256)


def test_a_version_of_another_number_or_bundle_is_refused(learnable: Bundle, tmp_path: Path) -> None:
    folder = kept(learnable, tmp_path / "1")
    with pytest.raises(CheckpointError, match="expected version 2, found 1"):
        read_version(folder, 2, learnable.manifest_sha256)
    with pytest.raises(CheckpointError, match="another bundle"):
        read_version(folder, 1, "0" * 64)


def test_a_bundle_runs_no_code_of_its_own_choice(learnable: Bundle) -> None:
    with pytest.raises(RecipeError, match="factories"):
        Session(start(learnable, AdaptSettings()))


def test_a_bundle_without_a_student_is_refused(tmp_path: Path) -> None:
    plain = residual().write(tmp_path / "plain")
    with pytest.raises(BundleError, match="cannot learn"):
        Session(start(plain))


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        ({}, 1),
        ({"export": None}, 1),
        ({"export": {"decode_stride": 2}}, 2),
        ({"export": {"decode_stride": "x"}}, 1),
    ],
)
def test_the_graphs_decoding_is_known(learnable: Bundle, provenance: Any, expected: int) -> None:
    assert decode_stride(learnable.manifest.model_copy(update={"provenance": provenance})) == expected


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RunnerChannel, list[int]]]:
    """The program on a thread of this process, and what it ended with."""
    monkeypatch.setattr(program, "settle", lambda _: None)  # it is for a process of its own
    layout = Layout.of(SIZE_HW, {"delta": 2000})
    runner = RunnerChannel(layout)
    end, memory = runner.fds
    trainer = TrainerChannel(MessagePipe(socket.socket(fileno=os.dup(end))), SharedMemory(layout, memory))
    runner.handed_over()
    monkeypatch.setattr(TrainerChannel, "from_arguments", lambda _=None: trainer)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(program.main()))
    thread.start()
    try:
        yield runner, codes
    finally:
        runner.close()
        thread.join(20)
        assert not thread.is_alive()
        torch.set_flush_denormal(False)


def wait(runner: RunnerChannel) -> Any:
    return runner.receive(20)


def test_messages_are_answered_in_turn(
    learnable: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, label = lesson()
    with served(monkeypatch) as (runner, codes):
        runner.send(start(learnable))
        assert wait(runner) == Ready(version=0)
        runner.lesson(5, image, label)
        learned = wait(runner)
        assert (learned.seq, learned.version, learned.weights_bytes) == (5, 1, 0)
        assert np.array_equal(answer(runner.graph(learned, "delta"), image), runner.mask())
        runner.send(Undo(version=0))
        runner.send(Keep(folder=str(tmp_path / "0")))
        assert wait(runner) == Kept(folder=str(tmp_path / "0"), version=0)
        runner.send(Stop())
    assert codes == [0]
    assert (tmp_path / "0" / "trainer.pt").is_file()


def test_a_runner_that_is_gone_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch) as (_, codes):
        pass
    assert codes == [0]


@pytest.mark.parametrize(
    ("message", "error", "said"),
    [
        (Start(bundle="/nowhere", settings=AdaptSettings()), "MissingFileError", "/nowhere"),
        (Undo(version=0), "TrainerError", "expected 'start'"),
    ],
)
def test_what_goes_wrong_is_told(
    message: Start | Undo,
    error: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with served(monkeypatch) as (runner, codes):
        runner.send(message)
        failed = wait(runner)
        assert isinstance(failed, Failed)
        assert failed.error == error
        assert said in failed.message
    assert codes == [1]
    assert "Traceback" not in capfd.readouterr().err


def test_a_defect_of_ours_leaves_a_traceback(
    learnable: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Session, "lesson", lambda *_: 1 / 0)
    with served(monkeypatch) as (runner, codes):
        runner.send(start(learnable))
        assert isinstance(wait(runner), Ready)
        runner.lesson(0, *lesson())
        assert wait(runner).error == "ZeroDivisionError"
    assert codes == [1]
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="scheduling policies of Linux")
def test_the_process_learns_out_of_the_way(learnable: Bundle) -> None:
    core = max(os.sched_getaffinity(0))
    swap = ALLOWED.model_copy(update={"swap": "refit"})
    bias = TensorSpec(name="student.bias", shape=(2,), dtype="float32")
    process = TrainerProcess(Layout.of(SIZE_HW, {}, [bias]))
    try:
        process.start(start(learnable, swap, cores=(core,), version=3, resume=None))
        assert process.receive(60) == Ready(version=3)
        assert process.pid is not None
        assert os.sched_getaffinity(process.pid) == {core}
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        process.lesson(1, *lesson())
        learned = process.receive(60)
        assert isinstance(learned, Learned)
        assert learned.version == 4
        assert [*process.weights(learned)] == ["student.bias"]
    finally:
        process.close()
