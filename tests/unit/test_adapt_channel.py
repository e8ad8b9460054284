"""Both ends of the channel, in one process: what passes, and what the runner does not believe."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.adapt.channel import Layout, RunnerChannel, TrainerChannel, TrainerGoneError
from edge_sdk.adapt.memory import SharedMemory
from edge_sdk.adapt.messages import Failed, Keep, Kept, Learned, Lesson, Ready, Start, Stop, Undo, encode
from edge_sdk.adapt.pipe import MessagePipe
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.errors import ShapeError, TrainerError
from tests.cameras import SimulatedClock

LAYOUT = Layout(frame_hw=(4, 6), graphs={"delta": 1000}, weights=1000)
START = Start(bundle="/bundle", settings=AdaptSettings())
IMAGE = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
LABEL = IMAGE[..., 0] % 2
MASK = 1 - LABEL
REPORT = Learned(seq=7, version=1, before=0.5, after=0.75, updates=2, losses=(2.0, 1.0), took_ms=3.5)


@contextmanager
def both_ends(layout: Layout = LAYOUT, **options):
    runner = RunnerChannel(layout, **options)
    end, memory = runner.fds
    trainer = TrainerChannel(MessagePipe(socket.socket(fileno=os.dup(end))), SharedMemory(layout, memory))
    runner.handed_over()
    try:
        yield runner, trainer
    finally:
        runner.close()
        trainer.close()


@contextmanager
def raw_end():
    """A runner's end that has given a lesson on frame 7, and the bare socket of the other."""
    runner = RunnerChannel(LAYOUT)
    end = socket.socket(fileno=os.dup(runner.fds[0]))
    runner.handed_over()
    try:
        runner.lesson(7, IMAGE, LABEL)
        yield runner, end
    finally:
        end.close()
        runner.close()


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def test_a_session_from_start_to_stop() -> None:
    with both_ends() as (runner, trainer):
        asked = trainer.messages()
        runner.send(START)
        assert next(asked) == START
        trainer.send(Ready(version=0))
        assert runner.receive() == Ready(version=0)

        runner.lesson(7, IMAGE, LABEL)
        assert runner.learning
        assert next(asked) == Lesson(seq=7)
        assert np.array_equal(trainer.image, IMAGE)
        assert np.array_equal(trainer.label, LABEL)
        weights = {"logits.bias": np.arange(3, dtype=np.float32)}
        trainer.learned(REPORT, MASK, {"delta": b"new graph"}, weights)
        learned = runner.receive()
        assert isinstance(learned, Learned)
        assert not runner.learning
        assert learned.graphs == {"delta": 9}
        assert learned.model_copy(update={"graphs": {}, "sha256": {}, "weights_bytes": 0}) == REPORT
        assert runner.graph(learned, "delta") == b"new graph"
        assert np.array_equal(runner.mask(), MASK)
        assert np.array_equal(runner.weights(learned)["logits.bias"], weights["logits.bias"])

        runner.send(Undo(version=0))
        runner.send(Keep(folder="/kept"))
        assert [next(asked), next(asked)] == [Undo(version=0), Keep(folder="/kept")]
        trainer.send(Kept(folder="/kept", version=0))
        assert runner.receive() == Kept(folder="/kept", version=0)
        assert runner.receive(0) is None
        runner.send(Stop())
        assert list(asked) == []


def test_a_loss_that_is_no_number_arrives() -> None:
    with both_ends() as (runner, trainer):
        runner.lesson(7, IMAGE, LABEL)
        next(trainer.messages())
        losses = (float("nan"), float("inf"), -float("inf"))
        trainer.learned(REPORT.model_copy(update={"losses": losses, "finite": False}), MASK)
        learned = runner.receive()
        assert isinstance(learned, Learned)
        assert np.array_equal(learned.losses, losses, equal_nan=True)
        assert (learned.graphs, learned.weights_bytes) == ({}, 0)


def test_the_trainer_ends_with_the_runner() -> None:
    with both_ends() as (runner, trainer):
        runner.send(START)
        runner.close()
        assert [*trainer.messages()] == [START]
        with pytest.raises(EOFError):
            trainer.send(Ready(version=0))


def test_the_runner_notices_that_the_trainer_is_gone() -> None:
    with both_ends() as (runner, trainer):
        trainer.send(Failed(error="ValueError", message="last"))
        trainer.close()
        assert runner.receive() == Failed(error="ValueError", message="last")
        with pytest.raises(TrainerGoneError, match="has ended"):
            runner.receive()
        with pytest.raises(TrainerGoneError, match="has ended"):
            runner.lesson(1, IMAGE, LABEL)


@pytest.mark.parametrize("close", ["runner", "trainer"])
def test_closing_wakes_who_waits(close) -> None:
    with both_ends() as (runner, trainer):
        seen: list[str] = []

        def wait() -> None:
            try:
                runner.receive()
            except TrainerGoneError as error:
                seen.append(str(error))

        waiting = threading.Thread(target=wait)
        waiting.start()
        (runner if close == "runner" else trainer).close()
        waiting.join(10)
        assert seen == ["the trainer has ended. The trainer has to be started again."]


def test_closing_twice_does_nothing_and_leaves_no_file_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with both_ends() as (runner, _):
        runner.close()
    RunnerChannel(LAYOUT).close()  # never handed over
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lesson_waits_for_the_one_before_and_fits_the_layout() -> None:
    with both_ends() as (runner, trainer):
        with pytest.raises(ShapeError, match="frame: expected"):
            runner.lesson(1, IMAGE[:2], LABEL)
        with pytest.raises(ShapeError, match="label: expected"):
            runner.lesson(1, IMAGE, IMAGE)
        assert not runner.learning
        runner.lesson(1, IMAGE, LABEL)
        with pytest.raises(TrainerError, match="frame 2: the one before is still under way"):
            runner.lesson(2, 255 - IMAGE, LABEL)
        assert np.array_equal(trainer.image, IMAGE)  # nothing was written over


UNASKED = [
    (Lesson(seq=1), "'lesson', which is the runner's"),
    (Stop(), "'stop', which is the runner's"),
    (Ready(version=0), "answered 'ready' to 'lesson'"),
    (Kept(folder="x", version=0), "answered 'kept' to 'lesson'"),
    (REPORT.model_copy(update={"seq": 8}), "frame 8 to the lesson on frame 7"),
]


@pytest.mark.parametrize(("message", "complaint"), UNASKED)
def test_an_answer_to_what_was_not_asked_is_refused(message, complaint) -> None:
    with both_ends() as (runner, trainer):
        runner.lesson(7, IMAGE, LABEL)
        trainer.send(message)
        with pytest.raises(TrainerError, match=complaint):
            runner.receive()


def test_an_answer_that_comes_twice_is_refused() -> None:
    with both_ends() as (runner, trainer):
        runner.lesson(7, IMAGE, LABEL)
        trainer.send(REPORT)
        trainer.send(REPORT)
        assert runner.receive() == REPORT
        with pytest.raises(TrainerError, match="answered 'learned' unasked"):
            runner.receive()


WRONG = [
    ({"graphs": {}}, "sent no delta graph"),
    ({"graphs": {"delta": 1001}}, "room for 1000 bytes, got 1001"),
    ({"graphs": {"delta": 1 << 62}}, "room for 1000 bytes"),
    ({"graphs": {"delta": -1}}, "room for 1000 bytes"),
    ({"graphs": {"delta": 8}}, "SHA-256"),
    ({"sha256": {"delta": "0" * 64}}, "SHA-256"),
    ({"sha256": {}}, "SHA-256"),
]


@pytest.mark.parametrize(("change", "complaint"), WRONG)
def test_graphs_are_checked(change, complaint) -> None:
    with both_ends() as (runner, trainer):
        runner.lesson(7, IMAGE, LABEL)
        next(trainer.messages())
        trainer.learned(REPORT, MASK, {"delta": b"new graph"})
        learned = runner.receive()
        assert isinstance(learned, Learned)
        with pytest.raises(TrainerError, match=complaint):
            runner.graph(learned.model_copy(update=change), "delta")


def test_what_the_trainer_writes_after_its_report_is_noticed() -> None:
    with both_ends() as (runner, trainer):
        runner.lesson(7, IMAGE, LABEL)
        next(trainer.messages())
        trainer.learned(REPORT, MASK, {"delta": b"new graph"}, {"w": np.ones(3, np.float32)})
        learned = runner.receive()
        assert isinstance(learned, Learned)
        trainer._memory.write("graph.delta", b"NEW")
        trainer._memory.write("weights", b"NEW")
        with pytest.raises(TrainerError, match="SHA-256"):
            runner.graph(learned, "delta")
        with pytest.raises(TrainerError, match="weights from the trainer"):
            runner.weights(learned)


def test_the_trainers_own_mistakes_are_found_at_its_end() -> None:
    with both_ends() as (runner, trainer):
        with pytest.raises(TrainerError, match="no lesson on it is under way"):
            trainer.learned(REPORT, MASK)
        runner.lesson(7, IMAGE, LABEL)
        next(trainer.messages())
        for report, mask, graphs, weights, complaint in (
            (REPORT.model_copy(update={"seq": 6}), MASK, {}, {}, "no lesson on it"),
            (REPORT, MASK[:2], {}, {}, "mask: expected"),
            (REPORT, MASK, {"delta": b"x" * 1001}, {}, "room for 1000 bytes"),
            (REPORT, MASK, {"keyframe": b"x"}, {}, "no area 'graph.keyframe'"),
            (REPORT, MASK, {}, {"w": np.ones(1000, np.float32)}, "room for 1000 bytes"),
            (REPORT, MASK, {}, {"w": np.ones(3)}, "got float64"),
        ):
            with pytest.raises((TrainerError, ShapeError), match=complaint):
                trainer.learned(report, mask, graphs, weights)
        trainer.learned(REPORT, MASK)  # after all that, the lesson can still be reported
        assert runner.receive() == REPORT


@pytest.mark.parametrize(
    "data",
    [
        framed(b""),
        framed(b"{}"),
        framed(b"nonsense"),
        framed(b"\xff\xfe\x00"),
        framed(b'{"kind":"ready"}'),
        framed(b'{"kind":"ready","version":0,"more":1}'),
        framed(b"[" * 5000),
        framed(json.dumps({**json.loads(REPORT.model_dump_json()), "sha256": {"delta": "../x"}}).encode()),
        b"\xff\xff\xff\xff",
        (1 << 21).to_bytes(4, "little"),
    ],
)
def test_what_is_no_message_is_refused(data) -> None:
    with raw_end() as (runner, end):
        end.send(data)
        with pytest.raises(TrainerError, match="what is no message"):
            runner.receive(10)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=10))
def test_any_bytes_are_an_answer_or_a_trainer_error(blocks) -> None:
    with raw_end() as (runner, end):
        for block in blocks:
            end.send(block)
        end.close()
        with pytest.raises(TrainerError):
            all(iter(lambda: runner.receive(10), None))


@given(st.lists(st.integers(1, 200), max_size=20), st.integers(1, 5))
def test_messages_arrive_whole_however_they_are_cut(cuts, count) -> None:
    messages = [REPORT.model_copy(update={"seq": seq}) for seq in range(count)]
    stream = b"".join(framed(encode(message)) for message in messages)
    ours, theirs = socket.socketpair()
    pipe = MessagePipe(ours)
    found = []
    for cut in [*cuts, len(stream)]:
        if stream[:cut]:
            theirs.send(stream[:cut])
        stream = stream[cut:]
        while (message := pipe.receive(0)) is not None:
            found.append(message)
    theirs.close()
    pipe.close()
    assert found == messages


def test_half_a_message_is_waited_for_no_longer_than_asked() -> None:
    with raw_end() as (runner, end):
        end.send(framed(encode(REPORT))[:-1])
        began = time.monotonic()
        assert runner.receive(0.05) is None
        assert 0.04 <= time.monotonic() - began < 5
        end.send(framed(encode(REPORT))[-1:])
        assert runner.receive(0) == REPORT


def test_a_trainer_that_does_not_read_never_blocks_the_runner(monkeypatch) -> None:
    monkeypatch.setattr(MessagePipe.send, "__defaults__", (0.05,))
    with raw_end() as (runner, _), pytest.raises(TrainerError, match="does not read"):
        all(runner.send(Keep(folder="x" * 1000)) is None for _ in range(10_000))


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with both_ends() as (runner, trainer):
        with pytest.raises(ValueError, match="at most 1048576 bytes"):
            trainer.send(Failed(error="E", message="x" * (1 << 20)))
        trainer.send(Failed(error="E", message="x"))
        assert isinstance(runner.receive(), Failed)


def test_the_time_that_an_answer_is_waited_for() -> None:
    clock = SimulatedClock()
    with both_ends(clock=clock) as (runner, trainer):
        clock.pass_s(5)
        assert runner.waiting_s == 0
        runner.send(START)
        clock.pass_s(2)
        runner.send(Keep(folder="x"))
        clock.pass_s(3)
        assert runner.waiting_s == 5
        trainer.send(Ready(version=0))
        runner.receive()
        assert runner.waiting_s == 0  # the next is waited for since now: one thing is done at a time
        clock.pass_s(4)
        assert runner.waiting_s == 4
        runner.send(Undo(version=0))  # is not answered
        trainer.send(Kept(folder="x", version=0))
        runner.receive()
        clock.pass_s(9)
        assert runner.waiting_s == 0


@pytest.mark.parametrize(
    "arguments",
    [[], ["--channel-fd=x"], ["--channel-fd=1", "--memory-fd=1", "--layout={}", "--parent=1"]],
)
def test_a_trainer_with_wrong_arguments_ends(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        TrainerChannel.from_arguments(arguments)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
