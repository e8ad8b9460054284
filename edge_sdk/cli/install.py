"""``edge-sdk install``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sdk.cli.options import BundlePath, JsonFlag, Threads, TrustedKeys

if TYPE_CHECKING:
    from edge_sdk.update import Installed, InstallSettings
    from edge_sdk.update.probe import ProbeReport


_Device = Annotated[
    Path, typer.Argument(metavar="DEVICE", help="Folder with the two slots; made if missing.")
]
_Reference = Annotated[
    Path | None,
    typer.Option("--reference", help="What to probe with, instead of the bundle's own reference."),
]
_Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine", help="Engine set to probe; may be repeated. float32 and the chosen ones by default."
    ),
]
_MaxChanged = Annotated[
    float | None,
    typer.Option(
        "--max-changed", min=0, max=1, help="Share of the answers that may differ in the probe; 0.1."
    ),
]
_MaxDrop = Annotated[
    float | None,
    typer.Option("--max-drop", min=0, help="Points that may be lost in the probe, where it has labels; 2."),
]
_MaxError = Annotated[
    float | None, typer.Option("--max-error", min=0, help="Relative error allowed to float32; 0.01.")
]
_HealthyTime = Annotated[
    float | None,
    typer.Option("--healthy-s", min=0, help="Seconds without an error until it is confirmed; 60."),
]
_HealthyFrames = Annotated[
    int | None, typer.Option("--healthy-frames", min=1, help="Answers without an error until then; 100.")
]
_MaxStarts = Annotated[
    int | None, typer.Option("--max-starts", min=1, help="Starts without confirmation that are allowed; 3.")
]


def install(
    bundle: BundlePath,
    device: _Device,
    trust: TrustedKeys = None,
    reference: _Reference = None,
    engine: _Engines = None,
    max_changed: _MaxChanged = None,
    max_drop: _MaxDrop = None,
    max_error: _MaxError = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Run the bundle here before it is used.")
    ] = True,
    healthy_s: _HealthyTime = None,
    healthy_frames: _HealthyFrames = None,
    max_starts: _MaxStarts = None,
    threads: Threads = None,
    as_json: JsonFlag = False,
) -> None:
    """Install a bundle on this device beside the one that runs, which comes back if the new one fails.

    It is checked, copied, probed against its stored reference, and on trial until a program has run it healthy. Restart
    your program to begin the trial.
    """
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.update import install as stage

    settings = read_settings(
        {"bundle": bundle, "device": device, "reference": reference},
        list(trust or ()),
        {
            "engines": engine or None,
            "max_changed": max_changed,
            "max_drop": max_drop,
            "max_error": max_error,
            "threads": threads,
        },
        {"healthy_s": healthy_s, "healthy_frames": healthy_frames, "max_starts": max_starts},
        probe=probe,
    )
    found = stage(settings)
    if as_json:
        emit_json(found)
    else:
        show(*_lines(found))


def read_settings(
    places: dict[str, Any],
    keys: list[Path],
    probe_values: dict[str, Any],
    trial: dict[str, Any],
    *,
    probe: bool,
) -> InstallSettings:
    """The options as settings.

    Raises:
        RecipeError: a value is wrong.
    """
    from edge_sdk.settings import parse_settings
    from edge_sdk.update import InstallSettings

    data = {key: value for key, value in places.items() if value is not None}
    data["trial"] = {key: value for key, value in trial.items() if value is not None}
    data["probe"] = (
        {key: value for key, value in probe_values.items() if value is not None} if probe else None
    )
    if keys:
        data["trust"] = {"keys": keys}
    return parse_settings(data, InstallSettings, "edge-sdk install")


def _lines(found: Installed) -> list[str]:
    release = "" if found.release is None else f", release {found.release}"
    lines = [f"{found.bundle}{release}: installed in slot {found.slot} of {found.device}"]
    lines += ["probe: none was made"] if found.probe is None else list(_probe_lines(found.probe))
    if found.state == "confirmed":
        return [*lines, "confirmed: there is no older bundle that could come back"]
    trial = found.trial
    return [
        *lines,
        f"on trial: restart your program; it is confirmed after {trial.healthy_s:g} s and {trial.healthy_frames} "
        f"answers without an error. The old one comes back after {trial.max_errors} errors, or {trial.max_starts} "
        "starts without confirmation.",
    ]


def _probe_lines(report: ProbeReport) -> list[str]:
    lines = []
    for one in report.engines:
        drop = "" if one.drop_points is None else f", {one.drop_points:+.2f} points lost by the labels"
        error = "not finite" if one.worst_error is None else f"{one.worst_error:.2e}"
        lines.append(
            f"probe: {one.engine}: {one.changed:.2%} of the answers changed over {report.frames} frames{drop}, "
            f"largest relative error {error} ({one.worst_output})"
        )
    return lines
