"""``edge-sdk run`` from a bundle of two tiny graphs to its files, and every way in which it refuses."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_sdk.bundle import Manifest, StepSpec, StepsSpec, write_bundle
from edge_sdk.cli import app
from edge_sdk.cli.export import describe
from edge_sdk.cli.run import process
from edge_sdk.cli.run_summary import RunSummary
from edge_sdk.errors import VideoError
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.tasks import TaskSpec
from edge_sdk.tensors import TensorSpec
from edge_sdk.video import Frame, open_source
from tests.cameras import FakeDevice

cv2 = pytest.importorskip("cv2")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

HEIGHT, WIDTH = 40, 64
SOURCE = f"synthetic:shapes?height={HEIGHT}&width={WIDTH}&frames=12&seed=1"
FRAME = TensorSpec(name="frame", shape=(HEIGHT, WIDTH, 3), dtype="uint8")
MASK = TensorSpec(name="mask", shape=(HEIGHT, WIDTH), dtype="uint8")
BLUE = TensorSpec(name="blue", shape=(HEIGHT, WIDTH), dtype="float32")


def graph_bytes(name, nodes, inputs, outputs):
    kinds = {"uint8": onnx.TensorProto.UINT8, "float32": onnx.TensorProto.FLOAT}
    make = onnx.helper.make_tensor_value_info
    constants = [
        onnx.numpy_helper.from_array(np.array(0, np.int64), "channel"),
        onnx.numpy_helper.from_array(np.array(127, np.float32), "half"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        name,
        [make(spec.name, kinds[spec.dtype], spec.shape) for spec in inputs],
        [make(spec.name, kinds[spec.dtype], spec.shape) for spec in outputs],
        constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Keyframe: is the pixel bluer than 127? It remembers the blue channel. Delta: the same of what is remembered."""
    node = onnx.helper.make_node
    written = BLUE.model_copy(update={"name": "state.blue.next"})
    read = BLUE.model_copy(update={"name": "state.blue"})
    judge = [
        node("Greater", ["value", "half"], ["is"]),
        node("Cast", ["is"], ["mask"], to=onnx.TensorProto.UINT8),
    ]
    keyframe = graph_bytes(
        "keyframe",
        [
            node("Gather", ["frame", "channel"], ["b"], axis=2),
            node("Cast", ["b"], ["value"], to=onnx.TensorProto.FLOAT),
            node("Identity", ["value"], ["state.blue.next"]),
            *judge,
        ],
        [FRAME],
        [MASK, written],
    )
    delta = graph_bytes("delta", [node("Identity", ["state.blue"], ["value"]), *judge], [FRAME, read], [MASK])
    manifest = Manifest(
        name="tiny",
        method="delta",
        task=TaskSpec(classes=("dull", "blue")),
        frame=FRAME,
        steps=StepsSpec(
            keyframe=StepSpec(graph="keyframe.onnx", inputs=(FRAME,), outputs=(MASK, written), macs=7),
            delta=StepSpec(graph="delta.onnx", inputs=(FRAME, read), outputs=(MASK,), macs=3),
        ),
        state=(BLUE,),
        schedule=EverySchedule(interval=4),
    )
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    return write_bundle(folder, manifest, {"keyframe.onnx": keyframe, "delta.onnx": delta})


def run(bundle, source, *args):
    return CliRunner().invoke(app, ["run", str(bundle.path), str(source), *map(str, args)])


def test_json_counts_steps_and_times(bundle):
    result = run(bundle, SOURCE, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [report[key] for key in ("frames", "keyframes", "deltas", "skips")] == [12, 3, 9, 0]
    assert {name: values["frames"] for name, values in report["latency_ms"].items()} == {
        "all": 12,
        "keyframe": 3,
        "delta": 9,
    }
    for values in report["latency_ms"].values():
        assert 0 < values["p50"] <= values["p99"]
    assert set(report["stages_ms"]) == {"copy in", "step", "copy out", "decode", "draw", "write"}
    assert report["stages_ms"]["draw"] == report["stages_ms"]["write"] == 0
    assert 0 < report["wall_frames_per_second"] <= report["runner_frames_per_second"]
    assert (report["source"], report["output"]) == (SOURCE, None)
    assert "run: 12/12" in result.stderr


def test_people_get_counts_stages_and_paths(bundle, tmp_path):
    out = tmp_path / "deep" / "out.mp4"
    result = run(bundle, SOURCE, "--out", out, "--limit", "5", "--interval", "2")
    assert result.exit_code == 0, result.output
    assert "5 frames: 3 keyframes (60.0%), 2 deltas, 0 skips" in result.stdout
    (stages,) = [line for line in result.stdout.splitlines() if line.startswith("ms a frame:")]
    assert [word for word in stages.split() if word.isalpha()] == [
        "ms",
        "a",
        "copy",
        "in",
        "step",
        "decode",
        "draw",
        "write",
    ]
    assert f"output: {out}" in result.stdout
    with open_source(out) as video:
        assert (video.frame_count, tuple(video.size_hw)) == (5, (HEIGHT, WIDTH))


def test_a_folder_of_annotated_pictures_differs_from_the_frames(bundle, tmp_path):
    result = run(bundle, SOURCE, "--out", f"{tmp_path}/frames/", "--limit", "3")
    assert result.exit_code == 0, result.output
    pictures = sorted((tmp_path / "frames").iterdir())
    assert len(pictures) == 3
    with open_source(SOURCE, limit=1) as source:
        (frame,) = source
    drawn = cv2.imread(str(pictures[0]))
    assert drawn.shape == frame.image.shape
    assert (drawn != frame.image).any()


def test_result_lines_follow_the_frames(bundle, tmp_path):
    file = tmp_path / "results.jsonl"
    assert run(bundle, SOURCE, "--results", file, "--limit", "6").exit_code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(6))
    assert [line["kind"] for line in lines] == ["keyframe", "delta", "delta", "delta", "keyframe", "delta"]
    assert [line["state_age"] for line in lines] == [0, 1, 2, 3, 0, 1]
    with open_source(SOURCE, limit=1) as source:
        (frame,) = source
    blue = float((frame.image[:, :, 0] > 127).mean())
    # A delta step repeats what its keyframe remembered.
    for line in lines[:4]:
        assert line["share"].get("blue", 0.0) == pytest.approx(blue, abs=1e-6)
    stages = {"copy_in_ms", "step_ms", "copy_out_ms", "decode_ms"}
    assert set(lines[0]["times"]) == {*stages, "total_ms", "gpu_ms"}


def test_a_schedule_recipe_decides(bundle, tmp_path):
    recipe = tmp_path / "schedule.yaml"
    recipe.write_text("schedule: {kind: every, interval: 3, between: skip}\n")
    report = json.loads(run(bundle, SOURCE, "--schedule", recipe, "--json").stdout)
    assert [report[key] for key in ("keyframes", "deltas", "skips")] == [4, 0, 8]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (
            [SOURCE.replace("height=40", "height=48")],
            ["48 x 64 (height x width)", "takes 40 x 64", "Export the bundle"],
        ),
        (["{tmp}/none.mp4"], ["none.mp4"]),
        (["{tmp}/notes.mp4"], ["notes.mp4"]),
        ([SOURCE + "&colour=red"], ["unknown key 'colour'"]),
        ([SOURCE, "--out", "{tmp}/out.txt"], ["out.txt", "*.mp4"]),
        (["{tmp}/notes.mp4", "--out", "{tmp}/notes.mp4"], ["--out: expected a place of its own"]),
        (
            [SOURCE, "--out", "{tmp}/a.mp4", "--results", "{tmp}/a.mp4"],
            ["--out and --results", "got the same"],
        ),
        ([SOURCE, "--backend", "abacus"], ["abacus", "onnxruntime"]),
        ([SOURCE, "--schedule", "{tmp}/bad.yaml"], ["intervall', did you mean 'interval'?"]),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_file(args, parts, bundle, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    (tmp_path / "bad.yaml").write_text("schedule: {kind: every, interval: 3, intervall: 3}\n")
    before = sorted(tmp_path.rglob("*"))
    result = run(bundle, *(arg.replace("{tmp}", str(tmp_path)) for arg in args))
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("edge-sdk: error: ")
    for part in parts:
        assert part in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_bundle_is_refused(bundle, tmp_path):
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    data = bytearray((copy / "delta.onnx").read_bytes())
    data[-1] ^= 1
    (copy / "delta.onnx").write_bytes(data)
    result = CliRunner().invoke(app, ["run", str(copy), SOURCE])
    assert result.exit_code == 2
    assert "'delta.onnx' is damaged or replaced: expected SHA-256" in result.stderr


class _Stopped:
    """A source that is interrupted after some frames, as by Ctrl-C."""

    uri, size_hw, fps = "camera:0", (HEIGHT, WIDTH), 30.0

    def __init__(self, *, live, frame_count):
        self.live, self.frame_count = live, frame_count

    def __iter__(self):
        for seq in range(3):
            yield Frame(np.zeros((HEIGHT, WIDTH, 3), np.uint8), seq, seq / 30)
        raise KeyboardInterrupt


@pytest.mark.parametrize(("live", "frame_count", "kept"), [(True, None, True), (False, 100, False)])
def test_an_interrupt_ends_a_camera_run_but_discards_half_a_file(bundle, tmp_path, live, frame_count, kept):
    from edge_sdk import EdgeRunner

    out, results = tmp_path / "out.avi", tmp_path / "results.jsonl"
    summary = RunSummary(bundle=bundle.path, source="camera:0", output=str(out), results=results)
    progress = SimpleNamespace(update=lambda *args, **figures: None)
    source = _Stopped(live=live, frame_count=frame_count)
    with EdgeRunner(bundle) as runner:
        if kept:
            process(runner, source, summary, progress)
        else:
            with pytest.raises(KeyboardInterrupt):
                process(runner, source, summary, progress)
    assert summary.frames == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == (["out.avi", "results.jsonl"] if kept else [])


def test_export_describes_the_bundle_it_wrote(bundle):
    told = describe(bundle)
    assert told["path"] == bundle.path
    assert told["size_bytes"] == sum(
        (bundle.path / name).stat().st_size for name in ("keyframe.onnx", "delta.onnx")
    )
    assert told["frame"] == "40x64x3 uint8"
    assert told["state_bytes"] == HEIGHT * WIDTH * 4
    assert (told["keyframe_macs"], told["delta_macs"]) == (7, 3)


def test_the_readmes_other_programs_run(bundle, tmp_path, monkeypatch, capsys):
    """The ten lines for a camera are run in test_jetson_camera.py, the update's and the latency test in their own."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    programs = [code for code in found if '"my_pair"' in code and "edge_bench" not in code]
    assert ["threaded=True" in code for code in programs] == [True, False, False]
    assert ["BackgroundKeyframes(" in code for code in programs] == [False, True, False]
    assert ["MultiRunner(" in code for code in programs] == [False, False, True]
    image = np.zeros((*bundle.size_hw, 3), np.uint8)
    known = {"EdgeRunner": EdgeRunner, "frame": image, "last_seq": -1, "left": image, "right": image}
    for code in programs:
        names = dict(known)
        exec(code.replace('"my_pair"', repr(str(bundle.path))), names)
        if "result" in names:
            assert names["result"].seq == 0
    assert "answered=1" in capsys.readouterr().out


def test_evaluate_prints_its_table_and_leaves_a_report(bundle, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    frames = tmp_path / "frames"
    assert run(bundle, SOURCE, "--out", f"{frames}/").exit_code == 0
    options = ["--intervals", "2,4", "--repeats", "2"]
    command = ["evaluate", str(bundle.path), str(frames), *options]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    assert "teacher" in result.stdout
    report = tmp_path / "report" / "report.html"
    assert f"report: {report}" in result.stdout
    assert report.stat().st_size > 1000

    recipe = tmp_path / "evaluate.yaml"
    recipe.write_text(f"bundle: {bundle.path}\nsource: nowhere\nintervals: [3]\nrepeats: 1\n")
    result = CliRunner().invoke(app, [*command, "--recipe", str(recipe), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    # Options win over the recipe.
    assert told["recipe"]["intervals"] == [2, 4]
    assert told["recipe"]["source"] == str(frames)
    assert told["recipe"]["repeats"] == 2


def _live(device):
    from edge_sdk.video import LiveSettings, LiveSource

    return LiveSource(device, settings=LiveSettings(stall_s=5, pause_s=0.01, max_pause_s=0.01, lost_s=0.1))


def _camera_steps(frames):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return [image, lambda: time.sleep(0.002)] * frames


@pytest.mark.parametrize("end", ["interrupt", "signal", "lost"])
def test_what_a_live_run_has_written_is_kept_however_it_ends(bundle, tmp_path, end):
    from edge_sdk import EdgeRunner
    from edge_sdk.video.signals import Stopped

    out, results = tmp_path / "out.avi", tmp_path / "results.jsonl"
    summary = RunSummary(bundle=bundle.path, source="fake:0", output=str(out), results=results)
    device = FakeDevice(_camera_steps(50 if end == "lost" else 100_000), VideoError("fake:0: unplugged."))

    def update(*args, **figures):
        if end != "lost" and summary.frames == 5:
            raise KeyboardInterrupt if end == "interrupt" else Stopped(143)

    with EdgeRunner(bundle) as runner, _live(device) as source:
        if end == "lost":
            with pytest.raises(VideoError, match=r"fake:0: lost: .*unplugged"):
                process(runner, source, summary, SimpleNamespace(update=update))
        else:
            process(runner, source, summary, SimpleNamespace(update=update))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.avi", "results.jsonl"]
    assert len(results.read_text().splitlines()) == summary.frames > 0
    live = summary.figures()["live"]
    assert live["delivered"] == summary.frames
    assert live["received"] - live["delivered"] - live["dropped"] in (0, 1)
    assert live["stalls"] == (end == "lost")
    assert 0 < live["answer_age_ms"]["p50"] <= live["answer_age_ms"]["p99"]
    assert "dropped for newer ones" in str(summary.renderables()[-1])
    assert all(device.released)


def test_a_file_has_no_live_figures(bundle):
    result = run(bundle, SOURCE, "--json")
    assert json.loads(result.stdout)["live"] is None
