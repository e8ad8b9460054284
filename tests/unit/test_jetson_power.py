"""jetson/power_mode.py on a board that is a dictionary: what it shows, asks, runs and brings back."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from edge_sdk.errors import EdgeSdkError, MissingFileError, RecipeError
from tests.jetson_files import script

CONF = """
# a comment with < POWER_MODEL ID=9 NAME=NONE >, which is none
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


@pytest.fixture(scope="module")
def power_mode():
    return script("power_mode")


class Board:
    """Answers as a Jetson's tools do, and keeps what was run on it."""

    def __init__(self) -> None:
        self.modes = {"0": "15W", "1": "25W", "2": "MAXN_SUPER"}
        self.mode, self.locked, self.root, self.needs_restart = "1", False, True, ()
        self.ran: list[str] = []

    def __call__(self, command, stdin):
        text = " ".join(command)
        if text == "nvpmodel -q":
            return 0, f"NV Fan Mode:quiet\nNV Power Mode: {self.modes[self.mode]}\n{self.mode}\n"
        if text == "sudo -n jetson_clocks --show":
            least = 1020 if self.locked else 306
            shown = f"SOC family:tegra234\nGPU MinFreq={least} MaxFreq=1020 CurrentFreq={least}\n"
            return (0, shown) if self.root else (1, "sudo: a password is required")
        self.ran.append(text)
        if found := re.fullmatch(r"sudo nvpmodel -m (\d)", text):
            assert stdin == "no\n"
            if found[1] in self.needs_restart:
                return 0, "NVPM WARN: Reboot required for changing to this power mode: 2"
            self.mode = found[1]
        elif text == "sudo jetson_clocks":
            self.locked = True
        elif found := re.fullmatch(r"sudo jetson_clocks --store (\S+)", text):
            with open(found[1], "w") as file:
                file.write("stored")
        elif re.fullmatch(r"sudo jetson_clocks --restore \S+/clocks\.conf", text):
            self.locked = False
        else:
            return 127, f"{text}: not found"
        return 0, ""


@pytest.fixture
def board():
    return Board()


@pytest.fixture
def desk(tmp_path, monkeypatch, power_mode, board):
    """Runs the script with a board, a person's answer and a folder for its state."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text(CONF)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(power_mode, "run_command", board)
    original = power_mode.Power
    monkeypatch.setattr(power_mode, "Power", lambda state, run: original(state, run, tmp_path))
    import typer

    from edge_sdk.cli.report import SingleVerb

    command = typer.Typer()
    command.command(cls=SingleVerb)(power_mode.power_mode)

    def run(*words, answer=None):
        monkeypatch.setattr("sys.stdin.isatty", lambda: answer is not None, raising=False)
        asked = []

        def ask(question):
            asked.append(question)
            return answer == "y"

        if answer is not None:
            monkeypatch.setattr(power_mode, "confirm", ask)
        result = CliRunner().invoke(command, list(words))
        return result, asked

    run.state = tmp_path / "state" / "edge_sdk"
    return run


def test_without_options_it_shows_and_changes_nothing(desk, board):
    result, asked = desk()
    assert result.exit_code == 0
    assert result.stdout == (
        "power mode: 25W (1), of 15W (0), 25W (1), MAXN_SUPER (2)\nclocks: as the load asks\n"
    )
    assert (asked, board.ran, desk.state.exists()) == ([], [], False)
    board.root = False
    assert "clocks: not known without root" in desk()[0].stdout
    board.root, board.locked = True, True
    assert "clocks: locked at the maximum" in desk()[0].stdout


@pytest.mark.parametrize("wanted", ["maxn_super", "MAXN_SUPER", "2"])
def test_it_shows_the_commands_and_asks_first(desk, board, wanted):
    result, asked = desk("--mode", wanted, "--clocks", answer="n")
    store = f"sudo jetson_clocks --store {desk.state}/clocks.conf"
    assert result.stdout.splitlines()[2:] == [
        "this will run:", f"  {store}", "  sudo nvpmodel -m 2", "  sudo jetson_clocks", "nothing was changed"
    ]  # fmt: skip
    assert (asked, board.ran, board.mode, desk.state.exists()) == (["Go on?"], [], "1", False)
    result, _ = desk("--mode", wanted, "--clocks", answer="y")
    assert board.ran == [store, "sudo nvpmodel -m 2", "sudo jetson_clocks"]
    assert result.stdout.endswith("power mode: MAXN_SUPER (2)\n")


def test_with_nobody_to_ask_it_changes_nothing_but_by_yes(desk, board):
    result, _ = desk("--mode", "0")
    assert result.exit_code == 2
    assert "no terminal to ask at. Give --yes" in result.stderr
    assert (board.ran, desk.state.exists()) == ([], False)
    result, _ = desk("--mode", "0", "--yes")
    assert (result.exit_code, board.ran, board.mode) == (0, ["sudo nvpmodel -m 0"], "0")


def test_restore_goes_back_to_before_the_first_change(desk, board):
    desk("--mode", "2", "--clocks", "--yes")
    desk("--mode", "0", "--clocks", "--yes")
    board.ran.clear()
    result, asked = desk("--restore", answer="y")
    assert asked == ["Go on?"]
    assert board.ran == ["sudo nvpmodel -m 1", f"sudo jetson_clocks --restore {desk.state}/clocks.conf"]
    assert (result.exit_code, board.mode, board.locked) == (0, "1", False)
    again, _ = desk("--restore", answer="y")
    assert again.exit_code == 2
    assert "nothing has been changed from here" in again.stderr


def test_what_is_so_already_is_not_asked_for(desk, board):
    result, asked = desk("--mode", "25W", answer="y")
    assert result.stdout.splitlines()[2:] == ["nothing to do", "power mode: 25W (1)"]
    assert (asked, board.ran) == ([], [])


def test_clocks_that_others_have_locked_are_not_unlocked_by_restore(desk, board):
    board.locked = True
    desk("--mode", "2", "--clocks", "--yes")
    desk("--restore", "--yes")
    assert board.ran == ["sudo nvpmodel -m 2", "sudo jetson_clocks", "sudo nvpmodel -m 1"]


def test_a_mode_that_needs_a_restart_is_left_to_the_person(desk, board):
    board.needs_restart = ("2",)
    result, _ = desk("--mode", "2", "--yes")
    assert (result.exit_code, board.mode) == (2, "1")
    assert "the mode is still 25W (1): NVPM WARN: Reboot required" in result.stderr
    assert "sudo nvpmodel -m 2, and answer YES." in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "MAXN"], r"--mode: expected one of: 15W \(0\), 25W \(1\), MAXN_SUPER \(2\); got 'MAXN'"),
        (["--restore", "--clocks"], "give one or the other"),
        (["--restore"], "nothing has been changed from here"),
    ],
)
def test_wrong_input_is_one_line(desk, words, message):
    result, _ = desk(*words)
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert result.stderr.count("\n") == 1


def test_elsewhere_it_says_where_to_run_it(power_mode, tmp_path):
    power = power_mode.Power(tmp_path, lambda *_: (0, "NVPM ERROR: not a Tegra"), tmp_path)
    with pytest.raises(MissingFileError, match=r"nvpmodel\.conf: No such file.*Run this on a Jetson"):
        power.modes()
    with pytest.raises(EdgeSdkError, match="expected a power mode, got 'NVPM ERROR: not a Tegra'"):
        power.mode()
    with pytest.raises(EdgeSdkError, match=r"no-such-tool-here: not found\. Run this on a Jetson"):
        power_mode.run_command(("no-such-tool-here",), "")
    assert power_mode.run_command(("cat",), "no\n") == (0, "no\n")


def test_it_never_asks_a_pipe(power_mode, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(RecipeError, match="Give --yes"):
        power_mode.confirm("Go on?")
