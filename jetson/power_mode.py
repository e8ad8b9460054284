"""Shows a Jetson's power mode and clocks, and changes them after asking: both decide every measured time.

    python jetson/power_mode.py                        show
    python jetson/power_mode.py --mode MAXN --clocks   that mode, and clocks locked at its maximum
    python jetson/power_mode.py --restore              back to what was before the first change

Nothing is changed without a yes, typed or given as --yes. What was before is kept in ~/.local/state/edge_sdk.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edge_sdk.cli.report import run_verb
from edge_sdk.errors import DependencyError, EdgeSdkError, MissingFileError, RecipeError
from edge_sdk.files import write_text
from edge_sdk.sensors.power_mode import listed_modes

Command = tuple[str, ...]
# Runs a command with a text on its stdin; its exit code and what it said.
Run = Callable[[Sequence[str], str], tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Mode:
    """A power mode: a limit in watts, and the cores and clocks that keep to it."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.number})"


class Power:
    """The power mode and clocks of this Jetson.

    Args:
        state: folder where the state from before a change is kept.
        run: runs commands.
        root: where ``etc`` is found; another folder only in tests.
    """

    def __init__(self, state: Path, run: Run, root: Path = Path("/")) -> None:
        self._saved, self._clocks = state / "power_mode.json", state / "clocks.conf"
        self._run, self._root = run, root

    def modes(self) -> list[Mode]:
        """The modes that this board has.

        Raises:
            MissingFileError: there is no list of them.
        """
        path = self._root / "etc" / "nvpmodel.conf"
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise MissingFileError(
                f"{path}: {error.strerror}; it lists a Jetson's power modes.", hint="Run this on a Jetson."
            ) from error
        return [Mode(number, name) for number, name in listed_modes(text).items()]

    def mode(self) -> Mode:
        """The mode that is on.

        Raises:
            EdgeSdkError: nvpmodel does not say.
        """
        said = self._ask(("nvpmodel", "-q"))
        found = re.search(r"NV Power Mode: *(\S+)\s+(\d+)", said)
        if found is None:
            raise EdgeSdkError(f"nvpmodel -q: expected a power mode, got '{' '.join(said.split())}'.")
        return Mode(int(found[2]), found[1])

    def locked(self) -> bool | None:
        """Whether the GPU's clock is locked; None where that is only said to root."""
        code, said = self._run(("sudo", "-n", "jetson_clocks", "--show"), "")
        found = re.search(r"GPU MinFreq=(\d+) MaxFreq=(\d+)", said)
        return None if code != 0 or found is None else found[1] == found[2]

    def named(self, wanted: str) -> Mode:
        """The mode of that number or name.

        Raises:
            RecipeError: this board has no such mode.
        """
        modes = self.modes()
        for mode in modes:
            if wanted.lower() in (mode.name.lower(), str(mode.number)):
                return mode
        raise RecipeError(f"--mode: expected one of: {', '.join(map(str, modes))}; got '{wanted}'.")

    def change_to(self, wanted: Mode | None, lock: bool) -> list[Command]:
        """The commands of a change; none where all is so already."""
        commands: list[Command] = []
        # Clocks that are locked already were not locked from here, and are not for us to unlock.
        if lock and not self._clocks.exists() and not self.locked():
            commands.append(("sudo", "jetson_clocks", "--store", str(self._clocks)))
        if wanted is not None and wanted.number != self.mode().number:
            commands.append(("sudo", "nvpmodel", "-m", str(wanted.number)))
        if lock:
            commands.append(("sudo", "jetson_clocks"))
        return commands

    def restore(self) -> list[Command]:
        """The commands that bring back what was before the first change.

        Raises:
            MissingFileError: nothing has been changed.
        """
        if not self._saved.exists():
            raise MissingFileError(
                f"--restore: no earlier state at {self._saved}: nothing has been changed from here."
            )
        before = json.loads(self._saved.read_text(encoding="utf-8"))["mode"]
        commands: list[Command] = []
        if before != self.mode().number:
            commands.append(("sudo", "nvpmodel", "-m", str(before)))
        if self._clocks.exists():
            commands.append(("sudo", "jetson_clocks", "--restore", str(self._clocks)))
        return commands

    def keep(self) -> None:
        """Note what is on now, unless an earlier state is kept already."""
        if not self._saved.exists():
            write_text(self._saved, json.dumps({"mode": self.mode().number}) + "\n")

    def forget(self) -> None:
        """What was before is back."""
        for path in (self._saved, self._clocks):
            path.unlink(missing_ok=True)

    def apply(self, commands: Sequence[Command]) -> None:
        """Run ``commands`` in turn.

        Raises:
            EdgeSdkError: one fails, or a mode needs a restart of the device, which this never does.
        """
        for command in commands:
            # nvpmodel asks whether to restart where a mode needs it.
            code, said = self._run(command, "no\n")
            line = " ".join(said.split())
            if code != 0:
                raise EdgeSdkError(f"{' '.join(command)}: exit code {code}: {line}")
            if "nvpmodel" in command and str(self.mode().number) != command[-1]:
                raise EdgeSdkError(
                    f"{' '.join(command)}: the mode is still {self.mode()}: {line}",
                    hint=f"It may need a restart: {' '.join(command)}, and answer YES.",
                )

    def _ask(self, command: Command) -> str:
        code, said = self._run(command, "")
        if code != 0:
            raise EdgeSdkError(f"{' '.join(command)}: exit code {code}: {' '.join(said.split())}")
        return said


def run_command(command: Sequence[str], stdin: str) -> tuple[int, str]:
    """Run a command; its exit code and what it said.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DependencyError(f"{command[0]}: not found.", hint="Run this on a Jetson.") from error
    return done.returncode, done.stdout + done.stderr


def confirm(question: str) -> bool:
    """Ask at the terminal; no is the default.

    Raises:
        RecipeError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise RecipeError(
            "power_mode: there is no terminal to ask at.", hint="Give --yes to agree beforehand."
        )
    return typer.confirm(question, default=False)


def state_folder() -> Path:
    """Where this user's programs keep what must outlast them."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edge_sdk"


def power_mode(
    mode: Annotated[
        str | None, typer.Option("--mode", help="Power mode to change to, by name or number.")
    ] = None,
    clocks: Annotated[bool, typer.Option("--clocks", help="Lock the clocks at the mode's maximum.")] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Go back to what was before the first change.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Show a Jetson's power mode and clocks; change them after asking."""
    if restore and (mode is not None or clocks):
        raise RecipeError("--restore: it goes back, --mode and --clocks change; give one or the other.")
    power = Power(state_folder(), run_command)
    wanted = None if mode is None else power.named(mode)
    on, locked = power.mode(), power.locked()
    clock_state = {True: "locked at the maximum", False: "as the load asks", None: "not known without root"}[
        locked
    ]
    typer.echo(f"power mode: {on}, of {', '.join(map(str, power.modes()))}\nclocks: {clock_state}")
    if mode is None and not clocks and not restore:
        return
    commands = power.restore() if restore else power.change_to(wanted, clocks)
    typer.echo(
        "\n".join(["this will run:", *(f"  {' '.join(command)}" for command in commands)])
        if commands
        else "nothing to do"
    )
    if commands and not (yes or confirm("Go on?")):
        typer.echo("nothing was changed")
        return
    if commands and not restore:
        power.keep()
    power.apply(commands)
    if restore:
        power.forget()
    typer.echo(f"power mode: {power.mode()}")


if __name__ == "__main__":
    run_verb(power_mode)
