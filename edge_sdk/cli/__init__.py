"""The command ``edge-sdk``: one verb a stage.

A mistake a user can repair is one line on stderr and a non-zero exit; a defect of ours keeps its traceback. Results go
to stdout, as tables or with ``--json`` as JSON and nothing else; progress goes to stderr.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from edge_sdk.cli import demo, distill, doctor, evaluate, export, run, train
from edge_sdk.errors import EdgeSdkError

INTERRUPTED = 130
DEFECT = 70


class _Verbs(TyperGroup):
    """Turns errors of a verb into one line and an exit code, for the command and for tests alike."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeSdkError as error:
            _say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _say("interrupted; files are either whole or not there.")
            raise typer.Exit(INTERRUPTED) from error

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order of the work, as they were added."""
        return list(self.commands)


def _say(text: str) -> None:
    sys.stderr.write(f"edge-sdk: {' '.join(text.split())}\n")


app = typer.Typer(
    name="edge-sdk",
    cls=_Verbs,
    help="Distil a per-frame vision model into keyframe and delta steps, and run them on an edge device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (
    demo.demo,
    train.train,
    distill.distill,
    export.export,
    run.run,
    evaluate.evaluate,
    doctor.doctor,
):
    app.command()(_verb)


@app.callback(invoke_without_command=True)
def _top(
    ctx: typer.Context, version: bool = typer.Option(False, "--version", help="Show the version.")
) -> None:
    if version:
        from edge_sdk import __version__

        sys.stdout.write(f"edge-sdk {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Entry point of the command; exits the process with the verb's exit code.

    Codes: 0 done, 1 ``doctor`` found a problem, 2 wrong input, 70 a defect of edge_sdk, 130 interrupted.
    """
    try:
        app(prog_name="edge-sdk")
    except Exception:  # noqa: BLE001  (whatever escapes a verb is a defect of ours; it keeps its traceback)
        traceback.print_exc()
        _say("this is a defect of edge_sdk, not of your input; please report the lines above.")
        sys.exit(DEFECT)
