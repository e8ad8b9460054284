"""Progress lines, with a clock that the test turns."""

from __future__ import annotations

import io

import pytest

from edge_sdk.cli.progress import PLAIN_EVERY_S, RichProgress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_the_first_line_then_one_now_and_then_and_the_last():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock) as progress:
        for done in range(101):
            clock.now = done * PLAIN_EVERY_S / 40
            progress.update("train", done, 100, loss=1 / (done + 1))
    assert stream.getvalue().splitlines() == [
        "train: 0/100  loss 1",
        "train: 40/100  15 s left  loss 0.02439",
        "train: 80/100  5 s left  loss 0.01235",
        "train: 100/100  done in 25 s  loss 0.009901",
    ]


def test_each_stage_starts_with_a_line_and_its_own_time():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock) as progress:
        progress.update("train", 1, 10)
        clock.now = 3.0
        progress.update("distil", 1, 10)
        clock.now = 3.0 + 10 * PLAIN_EVERY_S
        progress.update("distil", 5, 10, miou=0.64123)
    assert stream.getvalue().splitlines() == [
        "train: 1/10",
        "distil: 1/10",
        "distil: 5/10  1 min 40 s left  miou 0.6412",
    ]


def test_time_left_of_a_resumed_stage_counts_only_the_steps_made_now():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock) as progress:
        progress.update("train", 900, 1000)
        clock.now = 10.0
        progress.update("train", 950, 1000)
    assert stream.getvalue().splitlines()[-1] == "train: 950/1000  10 s left"


def test_a_stage_of_unknown_length_shows_no_time_left():
    stream, clock = io.StringIO(), Clock()
    with RichProgress(stream, clock) as progress:
        progress.update("run", 1, 0)
        clock.now = 60.0
        progress.update("run", 30, 0, ms=4.0)
    assert stream.getvalue().splitlines() == ["run: 1", "run: 30  ms 4"]


@pytest.mark.parametrize(("rank", "expected"), [("0", "train: 1/1  done in 0 s\n"), ("1", "")])
def test_only_the_first_rank_writes(rank, expected, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    stream = io.StringIO()
    with RichProgress(stream, Clock()) as progress:
        progress.update("train", 1, 1)
    assert stream.getvalue() == expected


def test_a_terminal_gets_a_bar_with_the_newest_figures(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with RichProgress(stream) as progress:
        progress.update("train", 3, 10, loss=0.75)
        progress.update("train", 10, 10, loss=0.25)
        progress.update("export", 1, 2)
    shown = stream.getvalue()
    assert "train" in shown
    assert "10/10" in shown
    assert "loss 0.25" in shown
    assert shown.index("loss 0.25") < shown.index("export")


def test_closing_twice_is_harmless():
    progress = RichProgress(Terminal())
    progress.update("train", 1, 2)
    progress.close()
    progress.close()
    progress.update("train", 2, 2)
    progress.close()
