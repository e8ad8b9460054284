"""edge-sdk-camera.service, held against the application that it starts; and the container files."""

from __future__ import annotations

import configparser
import shutil
import subprocess

import pytest
import typer
import typer.main

from tests.jetson_files import JETSON, ROOT, script


@pytest.fixture(scope="module")
def unit():
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read_string((JETSON / "edge-sdk-camera.service").read_text())
    return parser


@pytest.fixture(scope="module")
def app():
    return script("camera_app")


def test_the_service_is_watched_and_started_again(unit, app):
    service = unit["Service"]
    assert (service["Type"], service["NotifyAccess"], service["Restart"]) == ("notify", "main", "on-failure")
    assert int(service["WatchdogSec"]) >= 4 * app.TICK_S
    assert service["RestartForceExitStatus"].split() == [str(app.CAMERA_LOST), str(app.NEW_PROCESS)]
    assert service["RestartPreventExitStatus"] == "2"
    assert int(service["RestartSec"]) < int(service["RestartMaxDelaySec"])
    assert int(service["RestartSteps"]) > 1
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert app.DeviceLostError.exit_code == app.NEW_PROCESS


def test_its_command_is_one_that_the_application_takes(unit, app):
    lines = [line for line in (JETSON / "camera.env").read_text().splitlines() if not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines)
    python, file, *names = unit["Service"]["ExecStart"].split()
    assert python == f"{unit['Service']['WorkingDirectory']}/.venv/bin/python"
    assert (ROOT / file).is_file()
    assert [name.removeprefix("$") for name in names] == list(settings) == ["BUNDLE", "SOURCE", "OPTIONS"]
    words = [word for value in settings.values() for word in value.split()]
    command = typer.Typer()
    command.command()(app.camera_app)
    given = typer.main.get_command(command).make_context("camera_app", words).params
    assert (str(given["bundle"]), given["source"]) == (settings["BUNDLE"], settings["SOURCE"])
    assert given["threaded"] is True


def test_systemd_takes_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    file = tmp_path / "edge-sdk-camera.service"
    text = (JETSON / "edge-sdk-camera.service").read_text()
    file.write_text(text.replace("/srv/edge_sdk/.venv/bin/python", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False, timeout=60
    )
    if "Failed to" in done.stderr and "edge-sdk-camera" not in done.stderr:
        pytest.skip(f"systemd-analyze does not work here: {done.stderr.strip()}")
    told = [line for line in done.stderr.splitlines() if "edge-sdk-camera" in line]
    # Keys that systemd knows from 254 on; the unit's comment says so.
    known = [line for line in told if "RestartSteps" not in line and "RestartMaxDelaySec" not in line]
    assert known == []
