"""``edge-sdk adapt`` from end to end, with a trainer that learns without torch."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_sdk.adapt.adaptation import Adaptation
from edge_sdk.adapt.recipe import AdaptRecipe
from edge_sdk.adapt.replay import LessonLog
from edge_sdk.adapt.report import AdaptReport
from edge_sdk.bundle import Bundle
from edge_sdk.cli import app
from edge_sdk.cli.adapt import read_settings
from edge_sdk.errors import RecipeError

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
from tests.fake_student import bright_bundle  # noqa: E402
from tests.fake_trainer import MODULE  # noqa: E402

SIZE_HW, FRAMES = (32, 48), 40


@pytest.fixture(autouse=True)
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Adaptation.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "trainer", MODULE)
    monkeypatch.setattr("edge_sdk.adapt.keep.merge_weights", lambda base, kept, out: shutil.copy(base, out))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Frames with a ramp of blue that moves."""
    (tmp_path / "clip").mkdir()
    ramp = np.linspace(0, 255, SIZE_HW[1]).astype(np.uint8)
    for index in range(FRAMES):
        image = np.zeros((*SIZE_HW, 3), np.uint8)
        image[:, :, 0] = np.roll(ramp, index)
        cv2.imwrite(str(tmp_path / "clip" / f"{index:03}.png"), image)
    return tmp_path / "clip"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bright_bundle(tmp_path / "bright", size_hw=SIZE_HW)


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, ["adapt", *map(str, args)])


def test_a_recording_is_learned_kept_and_reported(bundle: Bundle, clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    result = invoke(
        bundle.path, clip, "--threshold", 0.95, "--state", tmp_path / "state", "--keep", tmp_path / "kept",
        "--save", f"{tmp_path / 'drawn'}/", "--report", tmp_path / "report", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    learned = figures["adaptation"]
    assert (figures["frames"], learned["frames"], figures["stopped"]) == (FRAMES, FRAMES, False)
    assert learned["teacher_frames"] == figures["keyframes"] < FRAMES
    assert learned["updates"] > 0
    assert learned["version"] > 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == FRAMES
    kept = Bundle.open(tmp_path / "kept")
    assert kept.manifest.online is not None
    assert str(clip) in json.dumps(kept.manifest.provenance)
    assert (tmp_path / "state" / "log.jsonl").is_file()
    report = AdaptReport.load(tmp_path / "report" / "adapt.json")
    row, began = report.row("online 0.95"), report.row("student, not learning")
    assert row.teacher_frames == figures["keyframes"]
    assert row.updates == learned["updates"]
    assert row.score.mean is not None
    assert began.score.mean is not None
    assert row.score.mean > began.score.mean
    assert report.stream.frames == FRAMES
    # A recording waits for its lessons: as in the paper.
    assert report.courses[0].settings.pace == "in_turn"
    again = invoke(bundle.path, clip, "--state", tmp_path / "state", "--limit", 3, "--json")
    assert json.loads(again.stdout)["adaptation"]["frames"] == FRAMES + 3


def test_the_table_says_what_was_learned(bundle: Bundle, clip: Path) -> None:
    result = invoke(bundle.path, clip, "--limit", 12)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for part in (
        "What was learned",
        "teacher frames",
        "of 12 (",
        "updates",
        "agreement after",
        "12 frames: ",
    ):
        assert part in text


def test_recorded_masks_take_the_teachers_place(bundle: Bundle, clip: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for index in range(FRAMES):
        cv2.imwrite(str(masks / f"{index:03}.png"), np.ones(SIZE_HW, np.uint8))
    found = invoke(
        bundle.path, clip, "--teacher", masks, "--limit", 9, "--report", tmp_path / "report", "--json"
    )
    assert found.exit_code == 0, found.output
    report = AdaptReport.load(tmp_path / "report" / "adapt.json")
    assert (report.stream.teacher, report.stream.teacher_ms) == ("recorded", None)
    assert report.row("copy (online 0.8, evenly)").score.mean == 1.0  # every mask is the same


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_a_clean_end(
    bundle: Bundle, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
    signum: int,
) -> None:  # fmt: skip
    from edge_sdk.cli import run_summary

    added = run_summary.RunSummary.add

    def add(self: Any, *args: Any, **kwargs: Any) -> None:
        added(self, *args, **kwargs)
        if self.frames == 10:
            signal.raise_signal(signum)

    monkeypatch.setattr(run_summary.RunSummary, "add", add)
    # A shell's background jobs ignore Ctrl-C, and so would this process.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    result = invoke(
        bundle.path, clip, "--keep", tmp_path / "kept", "--save", f"{tmp_path / 'drawn'}/", "--json"
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["frames"], figures["stopped"]) == (10, True)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 10
    assert Bundle.open(tmp_path / "kept").path == tmp_path / "kept"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--key", "k.pem"], "'key' signs the bundle that 'keep' names"),
        (["--pace", "fast"], "adapt.pace"),
        (["--threshold", "1.5"], "adapt.threshold"),
        (["--keep", "{bundle}"], "--keep: expected a place of its own"),
        (["--report", "{bundle}/report"], "--report: expected a place of its own"),
        (["--save", "{clip}"], "which is the source's"),
        (["--keep", "{tmp}/a", "--report", "{tmp}/a"], "two are the same"),
        (["--keep", "{clip}"], "--keep: expected a place of its own"),
        (["--teacher", "{tmp}/none"], "folder of recorded masks"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_anything_runs(
    bundle: Bundle, clip: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    filled = [arg.format(bundle=bundle.path, clip=clip, tmp=tmp_path) for arg in args]
    result = invoke(bundle.path, clip, *filled)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "a").exists()


def test_a_report_of_a_camera_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    result = invoke(bundle.path, "camera:0", "--report", tmp_path / "report")
    assert result.exit_code == 2
    assert "record it" in result.stderr


@pytest.mark.parametrize(
    ("source", "recipe", "given", "pace"),
    [
        ("clip.mp4", "{}", {}, "in_turn"),
        ("camera:0", "{}", {}, "beside"),
        ("rtsp://host/a", "{}", {"threshold": 0.7}, "beside"),
        ("clip.mp4", "{}", {"threshold": 0.7}, "in_turn"),
        ("clip.mp4", "{}", {"pace": "beside"}, "beside"),
        ("clip.mp4", "{pace: beside}", {}, "beside"),
        ("clip.mp4", "{pace: beside, max_updates: 2}", {"threshold": 0.7}, "beside"),
        ("clip.mp4", "{max_updates: 2}", {"threshold": 0.7}, "in_turn"),
    ],
)
def test_the_pace_follows_the_source_unless_it_is_named(
    tmp_path: Path, source: str, recipe: str, given: dict[str, Any], pace: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{{bundle: b, source: s, adapt: {recipe}}}")
    found = read_settings(path, {"bundle": None, "source": source}, given)
    assert (found.adapt.pace, str(found.source)) == (pace, source)
    assert found.adapt.threshold == given.get("threshold", 0.8)
    assert found.adapt.max_updates == (2 if "max_updates" in recipe else 8)


def test_a_recipe_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("{bundle: b, source: s, adapt: {treshold: 0.5}}")
    with pytest.raises(RecipeError, match="did you mean 'threshold'"):
        read_settings(path, {}, {})
    with pytest.raises(RecipeError, match="SOURCE: expected"):
        read_settings(None, {"bundle": "b"}, {})
    assert AdaptRecipe(bundle=Path("b"), source="rtsp://u:secret@h/p").model_dump_json().count("secret") == 0


def test_lessons_are_gathered_from_events() -> None:
    from edge_sdk.adapt.journal import LessonLearned, Started, WeightsRefused, WeightsTaken

    log = LessonLog()
    log(Started())
    for seq, after in ((0, 0.9), (8, float("nan")), (16, 0.8)):
        log(LessonLearned(
            seq=seq, before=0.5, after=after, updates=2, took_ms=5.0, stride=8, version=1 + seq // 8,
        ))  # fmt: skip
    log(WeightsTaken(seq=17, lesson=16, version=3, prepare_ms=7.0))
    log(WeightsRefused(seq=8, version=2, kept=1, reason="worse"))
    assert [(one.seq, one.after, one.taken, one.prepare_ms) for one in log.records()] == [
        (0, 0.9, True, None), (8, None, False, None), (16, 0.8, True, 7.0)
    ]  # fmt: skip
