"""The parity probe in its own process, and the verbs from a key to a confirmed update."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from edge_sdk.bundle import Bundle, extend_bundle
from edge_sdk.cli import app
from edge_sdk.errors import BundleError, EngineError, FileFormatError, MissingFileError, UpdateError
from edge_sdk.parity import record_reference
from edge_sdk.runtime.stream import Stream
from edge_sdk.update import Device, InstallSettings, ProbeSettings, install
from edge_sdk.update.probe import REFERENCE, ProbeReport, reference_of, run_probe, with_reference
from edge_sdk.update.probe_child import judged
from tests.graphs import chaining, residual
from tests.parity_world import FRAMES, INT8, SCENE, SIZE, settings, with_int8, write_source

# The INT8 engines of these tests are coarse.
ANYTHING = 1.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with INT8 engines as its choice, and its reference."""
    folder = tmp_path_factory.mktemp("probe")
    pair = residual(SIZE)
    bundle = with_int8(pair.write(folder / "bundle"), pair)
    bundle = extend_bundle(bundle, {}, chosen={"onnxruntime": INT8})
    record_reference(
        bundle, settings(write_source(folder / "frames", labelled=False), periods=2), folder / "reference.npz"
    )
    return folder


def test_a_sound_bundle_passes_with_its_chosen_engines(made: Path) -> None:
    bundle = Bundle.open(made / "bundle")
    report = run_probe(bundle, made / "reference.npz", ProbeSettings(max_changed=ANYTHING))
    assert report.problem == ""
    assert report.frames == FRAMES
    assert [one.engine for one in report.engines] == ["float32", INT8]
    exact, coarse = report.engines
    assert (exact.changed, exact.drop_points, exact.worst_error) == (0.0, None, 0.0)
    assert 0 < coarse.changed < 1
    assert coarse.worst_error is not None


def test_an_engine_that_loses_too_much_fails_by_name(made: Path) -> None:
    report = run_probe(Bundle.open(made / "bundle"), made / "reference.npz", ProbeSettings(max_changed=0.001))
    assert report.engines[0].problem == ""
    assert (
        report.problem
        == f"{INT8}: {report.engines[1].changed:.2%} of its answers are not the reference's, 0.10% is allowed"
    )
    only = ProbeSettings(max_changed=0.001, engines=("float32",))
    assert run_probe(Bundle.open(made / "bundle"), made / "reference.npz", only).problem == ""


def test_float32_that_computes_otherwise_on_this_device_fails() -> None:
    assert _judged_with_error(0.4) == "float32: its delta mask is off by 40.00%, 1.00% is allowed"
    assert "is off by" in _judged_with_error(float("inf"))
    assert "is off by" in _judged_with_error(float("nan"))
    assert _judged_with_error(0.009) == ""


def _judged_with_error(error: float) -> str:
    step: Any = SimpleNamespace(step="delta", output="mask", relative=error, not_finite=0)
    engine: Any = SimpleNamespace(
        engine="float32", labels=None, same=1.0, drop_points=99.0, steps=(step,), stream=()
    )
    return judged(engine, ProbeSettings()).problem


def test_answers_that_are_not_finite_fail() -> None:
    step: Any = SimpleNamespace(step="delta", output="state.x.next", relative=0.0, not_finite=3)
    engine: Any = SimpleNamespace(
        engine=INT8, labels=0.5, same=float("nan"), drop_points=2.5, steps=(), stream=(step,)
    )
    problem = judged(engine, ProbeSettings()).problem
    assert problem == (
        f"{INT8}: nan% of its answers are not the reference's, 10.00% is allowed, it loses 2.50 points by the labels, "
        "2 are allowed, its delta state.x.next holds 3 values that are not finite"
    )


def test_another_pairs_reference_is_refused(made: Path, tmp_path: Path) -> None:
    other = chaining(SIZE).write(tmp_path / "other")
    report = run_probe(other, made / "reference.npz", ProbeSettings())
    assert "reference" in report.problem
    with pytest.raises(BundleError, match=r"reference"):
        with_reference(other, made / "reference.npz")
    assert REFERENCE not in Bundle.open(other.path).manifest.files
    with pytest.raises(BundleError, match="has no engines 'tensorrt-int8'"):
        run_probe(other, made / "reference.npz", ProbeSettings(engines=("tensorrt-int8",)))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(FileFormatError, match=r"text\.npz"):
        with_reference(other, tmp_path / "text.npz")


def test_the_bundles_own_reference_is_found(made: Path, tmp_path: Path) -> None:
    bundle = extend_bundle(Bundle.open(made / "bundle"), {}, out=tmp_path / "copy")
    with pytest.raises(MissingFileError, match=r"carries no reference\.npz"):
        reference_of(bundle, None)
    carrying = with_reference(bundle, made / "reference.npz")
    assert reference_of(carrying, None) == carrying.path / REFERENCE
    assert reference_of(carrying, Path("given")) == Path("given")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "its process died by signal 11"),
        (
            "import sys; sys.exit('libnvinfer.so: no such file')",
            "died with exit code 1: libnvinfer.so: no such file",
        ),
        ("open(__import__('sys').argv[-1], 'w').write('half a rep')", "died with exit code 0"),
        ("import time; time.sleep(60)", "it did not end within 2 s"),
    ],
)
def test_a_probe_that_crashes_or_hangs_is_a_failed_one(
    program: str, message: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    report = run_probe(Bundle.open(made / "bundle"), made / "reference.npz", ProbeSettings(limit_s=2))
    assert message in report.problem


def test_a_bundle_is_probed_where_it_will_run(made: Path, tmp_path: Path) -> None:
    bundle = extend_bundle(Bundle.open(made / "bundle"), {}, out=tmp_path / "new")
    bundle = with_reference(bundle, made / "reference.npz")
    seen: list[tuple[Path, Path]] = []

    def probe(found: Bundle, reference: Path, _: ProbeSettings) -> ProbeReport:
        seen.append((found.path, reference))
        return ProbeReport()

    install(InstallSettings(bundle=bundle.path, device=tmp_path / "device"), probe=probe)
    assert seen == [(tmp_path / "device/a", tmp_path / "device/a" / REFERENCE)]


# The verbs


def edge_sdk(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_from_a_key_to_a_confirmed_update(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "three"):
        extend_bundle(Bundle.open(made / "bundle"), {"version.txt": name.encode()}, out=tmp_path / name)
    made_key = json.loads(edge_sdk("keygen", "key.pem", "--json").stdout)
    assert made_key["public"] == "key.pub"
    carried = ["--reference", made / "reference.npz"]
    signed = json.loads(
        edge_sdk("sign", "one", "--key", "key.pem", "--release", "1", *carried, "--json").stdout
    )
    assert (signed["release"], signed["key_id"]) == (1, made_key["key_id"])
    assert (
        "release 2, signed by key"
        in edge_sdk("sign", "two", "--key", "key.pem", "--release", "2", *carried).stdout
    )
    trusted = ["--trust", "key.pub", "--max-changed", "1"]

    assert "confirmed: there is no older" in edge_sdk("install", "one", "device", *trusted).stdout
    shown = edge_sdk("install", "two", "device", *trusted, "--healthy-s", "0", "--healthy-frames", "6").stdout
    assert (
        "probe: float32: 0.00% of the answers changed over 10 frames, largest relative error 0.00e+00"
        in shown
    )
    assert "on trial: restart your program; it is confirmed after 0 s and 6 answers" in shown
    assert "slot b" in edge_sdk("slots", "device").stdout
    assert json.loads(edge_sdk("slots", "device", "--json").stdout)["update"]["state"] == "trial"

    ran = edge_sdk("run", "device", SCENE, "--trust", "key.pub", "--json")
    assert json.loads(ran.stdout)["frames"] == FRAMES
    journal = Device("device").journal()
    assert (journal.on_trial, journal.current) == (None, "b")
    assert journal.floor is not None
    assert journal.floor.release == 2
    refused = edge_sdk("install", "one", "device", *trusted, code=2).stderr
    assert "release 1, and release 2 was confirmed on this device" in refused
    refused = edge_sdk("install", "three", "device", *trusted, *carried, code=2).stderr
    assert "it is not signed" in refused
    refused = edge_sdk("run", "three", SCENE, "--trust", "key.pub", code=2).stderr
    assert "it is not signed" in refused
    assert "last update: slot b, rolled back" in edge_sdk("slots", "device", "--rollback").stdout
    assert Device("device").journal().current == "a"
    assert "no bundle is on trial" in edge_sdk("slots", "device", "--confirm", code=2).stderr
    assert "expected one of them" in edge_sdk("slots", "device", "--confirm", "--rollback", code=2).stderr


def test_the_readmes_way_of_updating_devices(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands, typed as they stand there, for a first and a second release; and its program."""
    pytest.importorskip("cryptography")
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Updating devices") : readme.index("## Further")]
    once, release = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "first", tmp_path / "my_pair"):
        extend_bundle(Bundle.open(made / "bundle"), {}, out=folder, chosen={"onnxruntime": "float32"})
    device = tmp_path / "camera"
    install(InstallSettings(bundle=tmp_path / "first", device=device, probe=None))
    seen = []
    for line in (once + release).splitlines():
        words = line.replace("clip.mp4", str(made / "frames")).replace("/opt/camera", str(device)).split()
        if words[0] == "edge-sdk":
            seen.append(words[1])
            shown = edge_sdk(*words[1:]).stdout
        if words[1] == "install":
            assert "on trial: restart your program" in shown
            lines = [
                "from edge_sdk import EdgeRunner, open_source",
                f"camera = open_source({str(made / 'frames')!r})",
            ]
            code = "\n".join([*lines, program.replace("/opt/camera", str(device)), "assert health.on_trial"])
            exec(code, {})
    assert seen == ["keygen", "compare", "sign", "install", "slots", "slots"]
    update = Device(device).journal().update
    assert update is not None
    assert (update.state, update.starts, Device(device).journal().current) == ("rolled_back", 1, "a")


def test_a_bundle_that_fails_its_probe_is_not_installed(made: Path, tmp_path: Path) -> None:
    edge_sdk("install", made / "bundle", tmp_path / "device", "--no-probe")
    words = ["install", made / "bundle", tmp_path / "device", "--reference", made / "reference.npz"]
    error = edge_sdk(*words, "--max-changed", "0.001", code=2).stderr
    assert f"it failed its probe on this device: {INT8}: " in error
    assert len(error.splitlines()) == 1
    assert Device(tmp_path / "device").journal().current == "a"
    shown = edge_sdk("slots", tmp_path / "device").stdout
    assert "last update: slot b, failed since" in shown


def test_an_unhealthy_run_brings_the_old_bundle_back(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ``edge-sdk run`` as a service: each start fails, the next ones end up with the old bundle."""
    device = tmp_path / "device"
    for _ in range(2):
        edge_sdk("install", made / "bundle", device, "--no-probe", "--max-starts", "2")
    answer = Stream.__call__

    def broken(self: Stream, frame: Any) -> Any:
        if Device(device).journal().current == "b":
            raise EngineError("kernel failed.")
        return answer(self, frame)

    monkeypatch.setattr(Stream, "__call__", broken)
    for _ in range(2):
        assert "kernel failed" in edge_sdk("run", device, SCENE, code=2).stderr
    assert json.loads(edge_sdk("run", device, SCENE, "--json").stdout)["frames"] == FRAMES
    update = Device(device).journal().update
    assert update is not None
    assert update.state == "rolled_back"
    with pytest.raises(UpdateError):
        Device(device).rollback()


def test_a_probe_gives_numbers_that_json_can_hold(made: Path) -> None:
    report = run_probe(
        Bundle.open(made / "bundle"), made / "reference.npz", ProbeSettings(max_changed=ANYTHING)
    )
    assert np.isfinite([one.changed for one in report.engines]).all()
    assert ProbeReport.model_validate_json(report.model_dump_json()) == report
