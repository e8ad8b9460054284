"""How a command fails: one line on stderr and a code, except for defects of ours, which keep their traceback."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from edge_sdk.errors import EdgeSdkError

WRONG_INPUT = 2
DEFECT = 70
INTERRUPTED = 130

# What a file system refuses for reasons that lie with the user's machine, not with this code.
_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_PATHS = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_REFUSALS = frozenset((*_RIGHTS, *_SPACE, *_PATHS))


def say(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"edge-sdk: {' '.join(text.split())}\n")


@contextmanager
def reported() -> Iterator[None]:
    """Turn what a user can repair into one line and an exit code; let everything else through.

    Raises:
        typer.Exit: in place of the error that was reported.
    """
    try:
        yield
    except EdgeSdkError as error:
        say(f"error: {error}")
        raise typer.Exit(error.exit_code) from error
    except typer.TyperException as error:  # an option or argument that the command does not take
        say(f"error: {_usage(error)}")
        raise typer.Exit(WRONG_INPUT) from error
    except OSError as error:
        if error.errno not in _REFUSALS or error.filename is None:
            raise
        say(
            f"error: {error.filename}: {error.strerror}. Check the path, your rights to it and the space left."
        )
        raise typer.Exit(WRONG_INPUT) from error
    except KeyboardInterrupt as error:
        say("interrupted; files are either whole or not there.")
        raise typer.Exit(INTERRUPTED) from error


def _usage(error: Any) -> str:
    """What is wrong with the arguments, and where they are explained."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "edge-sdk"
    what = error.format_message().rstrip(".")
    return f"{what}{'' if what.endswith('?') else '.'} See: {where} --help"


class Verbs(TyperGroup):
    """A command with verbs whose mistakes are reported in one line, for the command and for tests alike."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments."""
        if not args:  # help is asked for
            return super().make_context(info_name, args, parent, **extra)
        with reported():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with reported():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order of the work, as they were added."""
        return list(self.commands)


class SingleVerb(TyperCommand):
    """A script's one command, reported in the same way."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments."""
        with reported():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with reported():
            return super().invoke(ctx)


def call(app: typer.Typer, prog_name: str | None = None) -> None:
    """Run a command on this process's arguments; exits with the verb's exit code."""
    try:
        app(prog_name=prog_name)
    except Exception:  # noqa: BLE001  (whatever escapes a verb is a defect of ours; it keeps its traceback)
        traceback.print_exc()
        say("this is a defect of edge_sdk, not of your input; please report the lines above.")
        sys.exit(DEFECT)


def run_verb(verb: Callable[..., None]) -> None:
    """Run one verb as a script of its own: same arguments, same output, same exit codes."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(cls=SingleVerb, context_settings={"help_option_names": ["-h", "--help"]})(verb)
    call(app)
