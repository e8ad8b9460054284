"""References: one file that holds what the float32 pair received and answered, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edge_sdk.cli import app
from edge_sdk.errors import BundleError, ChecksumError, EdgeSdkError, FileFormatError, RecipeError, ShapeError
from edge_sdk.parity import CompareRecipe, Reference, compare, record_reference
from edge_sdk.parity.record import kept_periods
from edge_sdk.tasks import Segmentation
from edge_sdk.video import open_source
from tests.graphs import PAIRS
from tests.parity_world import FRAMES, SCENE, SIZE, settings, write_source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_source(tmp_path_factory.mktemp("frames"))


@pytest.mark.parametrize("name", PAIRS)
def test_a_reference_holds_frames_answers_labels_and_whole_passes(
    name: str, source: str, tmp_path: Path
) -> None:
    pair = PAIRS[name](SIZE)
    bundle = pair.write(tmp_path / "bundle")
    reference = record_reference(bundle, settings(source, periods=2), tmp_path / "reference.npz")
    assert pair.delta_formula is not None
    frames = list(open_source(source))
    moments = list(reference.stream(bundle.task))
    assert [moment.distance for moment in moments] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert reference.header.labelled == tuple(range(FRAMES))
    state: np.ndarray | None = None
    states: dict[int, np.ndarray] = {}
    for moment, frame in zip(moments, frames, strict=True):
        formula = pair.delta_formula if moment.distance else pair.keyframe_formula
        before, (mask, state) = state, formula(frame.image, state)
        assert state is not None
        assert (before is None) == (moment.index == 0)
        states[moment.index] = state
        assert np.array_equal(moment.image, frame.image)
        assert np.array_equal(moment.answers["mask"], mask)
        assert moment.truth is not None
        assert frame.truth is not None
        assert frame.truth.mask is not None
        assert isinstance(moment.truth, Segmentation)
        assert np.array_equal(moment.truth.mask, frame.truth.mask)
        for one in reference.passes():
            if one.frame == moment.index:
                assert np.array_equal(one.inputs["frame"], frame.image)
                if before is not None and one.distance:
                    assert np.array_equal(one.inputs["state.memory"], before)
                if "state.memory.next" in one.outputs:
                    assert np.array_equal(one.outputs["state.memory.next"], state)
                assert np.array_equal(one.outputs["mask"], mask)
    # Of three whole periods the first and the second are kept.
    assert [(one.frame, one.distance) for one in reference.passes()] == [(i, i % 3) for i in range(6)]


@given(frames=st.integers(1, 300), interval=st.integers(1, 20), wanted=st.integers(1, 8))
def test_whole_periods_are_spread_evenly(frames: int, interval: int, wanted: int) -> None:
    found = kept_periods(frames, interval, wanted)
    there = max(frames // interval, 1)
    assert len(found) == min(wanted, there)
    assert found <= set(range(there))
    gaps = np.diff([*sorted(found), there + min(found)])
    assert gaps.max() - gaps.min() <= 1


@pytest.fixture(scope="module")
def whole(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    bundle = PAIRS["chaining"](SIZE).write(folder / "bundle")
    return record_reference(bundle, settings(source, limit=3), folder / "reference.npz").path


@given(data=st.data())
def test_a_reference_with_any_byte_changed_is_refused(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file = whole.parent / "changed.npz"
    file.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"reference .*changed\.npz: .*Copy it again, or record it"):
        Reference.open(file)


def test_other_files_are_refused_as_references(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no reference\n" * 99)
    with pytest.raises(FileFormatError, match="it is truncated, or no reference"):
        Reference.open(tmp_path / "text.npz")
    content = whole.read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match="it is truncated, or no reference"):
        Reference.open(tmp_path / "cut.npz")
    (tmp_path / "changed.npz").write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    with pytest.raises(ChecksumError, match="it is damaged or was changed"):
        Reference.open(tmp_path / "changed.npz")


def test_a_reference_of_another_pair_is_refused(whole: Path, tmp_path: Path) -> None:
    PAIRS["residual"](SIZE).write(tmp_path / "other")
    with pytest.raises(
        BundleError, match=r"another pair, 'tiny-chaining': its delta graph is \w{12}\.\.\., that of"
    ):
        compare(CompareRecipe(bundle=tmp_path / "other", reference=whole))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"interval": 11}, RecipeError, "it gave 10 frames, a reference needs a whole keyframe period of 11"),
        (
            {"source": SCENE.replace("48", "64")},
            ShapeError,
            r"its frames are 32 x 64 .* takes 32 x 48.*Export",
        ),
        ({"source": "nowhere.mp4"}, EdgeSdkError, r"nowhere\.mp4"),
    ],
)
def test_sources_that_make_no_reference(
    source: str, tmp_path: Path, values: dict[str, Any], error: type[EdgeSdkError], message: str
) -> None:
    bundle = PAIRS["chaining"](SIZE).write(tmp_path / "bundle")
    with pytest.raises(error, match=message):
        record_reference(bundle, settings(**{"source": source, **values}), tmp_path / "reference.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SOURCE: expected frames to record a reference from, or --reference"),
        (["--reference", "{file}", "--limit", "3"], "--limit: it is of a new reference"),
        ([SCENE, "--reference", "{file}"], "it is there already. Leave SOURCE out"),
        (
            ["--reference", "{file}", "--engine", "tensorrt-int8"],
            "has no engines 'tensorrt-int8', only float32",
        ),
        (["--reference", "{file}", "--max-drop", "-1"], "--max-drop"),
        (["--reference", "{file}", "--grown", "0"], "'grown'"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(whole: Path, arguments: list[str], message: str) -> None:
    words = [word.replace("{file}", str(whole)) for word in arguments]
    result = CliRunner().invoke(app, ["compare", str(whole.parent / "bundle"), *words])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
