"""The command ``edge-sdk``: one verb a stage.

A mistake a user can repair is one line on stderr and a non-zero exit; a defect of ours keeps its traceback. Results go
to stdout, as tables or with ``--json`` as JSON and nothing else; progress goes to stderr.
"""

from __future__ import annotations

import sys

import typer

from edge_sdk.cli import (
    adapt,
    bench,
    build,
    calibrate,
    compare,
    demo,
    distill,
    doctor,
    evaluate,
    export,
    front,
    install,
    keygen,
    lint,
    profile,
    run,
    sign,
    slots,
    train,
    tune,
)
from edge_sdk.cli.report import Verbs, call

app = typer.Typer(
    name="edge-sdk",
    cls=Verbs,
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
    profile.profile,
    distill.distill,
    export.export,
    calibrate.calibrate,
    lint.lint,
    build.build,
    run.run,
    adapt.adapt,
    evaluate.evaluate,
    front.front,
    compare.compare,
    bench.bench,
    tune.tune,
    keygen.keygen,
    sign.sign,
    install.install,
    slots.slots,
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

    Codes: 0 done, 1 ``doctor`` or ``lint`` found a problem, ``compare`` a broken budget, ``bench --compare`` something
    worse or ``tune`` nothing that meets the limits, 2 wrong input, 70 a defect of edge_sdk, 130 interrupted.
    """
    call(app, "edge-sdk")
