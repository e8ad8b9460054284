"""Alarms, the log, and the folder that a restart goes on from."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.adapt.drift import Alarm, DriftState, DriftWatch
from edge_sdk.adapt.journal import (
    AlarmRaised,
    Event,
    Journal,
    LearningStopped,
    LessonLearned,
    Resumed,
    Started,
    TeacherFrame,
    TrainerRestarted,
    WeightsRefused,
    WeightsTaken,
    read_log,
)
from edge_sdk.adapt.settings import DriftSettings
from edge_sdk.adapt.state import Session, StateFolder
from edge_sdk.adapt.stride import StrideState
from edge_sdk.errors import EdgeSdkError, FileFormatError, MissingFileError, OutputError, RecipeError

BASE, OTHER = "a" * 64, "b" * 64
EVENTS: tuple[Event, ...] = (
    Started(at=1.0, source="clip.mp4"),
    TeacherFrame(at=2.0, seq=0, stride=8, version=0, lesson=True),
    LessonLearned(
        at=3.0,
        seq=0,
        before=0.25,
        after=0.75,
        updates=8,
        losses=(1.5, 0.5),
        took_ms=80.0,
        stride=8,
        version=1,
    ),
    WeightsTaken(at=4.0, seq=5, lesson=0, version=1, prepare_ms=12.0, agreement=0.75, replaced=0.25),
    WeightsRefused(at=5.0, seq=8, version=2, kept=1, reason="worse"),
    TrainerRestarted(at=6.0, version=1, restarts=1, reason="killed by signal 9"),
    AlarmRaised(at=7.0, seq=16, alarm=Alarm(cause="drop", agreement=0.25, reference=0.75, frames=1)),
    Resumed(at=8.0, version=1, stride=8),
    LearningStopped(at=9.0, reason="too often"),
)


# --- alarms


def causes(pairs: list[tuple[float, float]], **settings: float) -> list[list[str]]:
    watch = DriftWatch(DriftSettings.model_validate(settings))
    return [[alarm.cause for alarm in watch.see(*pair, 0.8)] for pair in pairs]


def test_a_drop_is_told_once_until_it_is_well_again() -> None:
    befores = [0.7, 0.7, 0.49, 0.2, 0.7, 0.1]
    # Means before each: none, 0.7, 0.7, 0.63, 0.5225, 0.558
    assert causes([(before, 0.9) for before in befores], mean_over=4) == [[], [], ["drop"], [], [], ["drop"]]


def test_a_fall_of_just_the_setting_is_no_drop() -> None:
    assert causes([(0.75, 0.9), (0.5, 0.9)], drop=0.25) == [[], []]
    assert causes([(0.75, 0.9), (0.49, 0.9)], drop=0.25) == [[], ["drop"]]
    assert causes([(0.75, 0.9), (0.75, 0.9)], drop=0.0) == [[], []]


def test_stuck_is_told_once_until_the_threshold_is_reached() -> None:
    afters = [0.7] * 4 + [0.8, 0.7, 0.79, math.nan, 0.7]
    found = causes([(0.7, after) for after in afters], stuck_after=3)
    assert found == [[], [], ["stuck"], [], [], [], [], ["stuck"], []]


def test_an_agreement_that_is_no_number_is_a_drop_and_spoils_no_mean() -> None:
    watch = DriftWatch(DriftSettings())
    watch.see(0.7, 0.9, 0.8)
    assert [alarm.cause for alarm in watch.see(math.nan, 0.9, 0.8)] == ["drop"]
    assert watch.state.mean == pytest.approx(0.7)


@given(
    pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30),
    cut=st.integers(0, 30),
)
def test_restored_it_raises_what_it_would_have(pairs: list[tuple[float, float]], cut: int) -> None:
    settings = DriftSettings(mean_over=3, stuck_after=2)
    whole = DriftWatch(settings)
    expected = [whole.see(*pair, 0.8) for pair in pairs]
    first = DriftWatch(settings)
    found = [first.see(*pair, 0.8) for pair in pairs[:cut]]
    second = DriftWatch(settings, first.state)
    assert found + [second.see(*pair, 0.8) for pair in pairs[cut:]] == expected


def test_alarms_in_words() -> None:
    drop = Alarm(cause="drop", agreement=0.25, reference=0.75, frames=1)
    stuck = Alarm(cause="stuck", agreement=0.5, reference=0.8, frames=5)
    assert "fell to 0.250 from 0.750" in drop.message
    assert "below 0.80 after learning on 5 teacher frames" in stuck.message


# --- the log


def test_every_event_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    journal = Journal(path)
    for number, event in enumerate(EVENTS, 1):
        journal.write(event)
        assert len(read_log(path)) == number  # each is in the file at once
    journal.close()
    journal.close()
    journal.write(EVENTS[0])  # after the end, nothing
    assert read_log(path) == EVENTS
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert len(set(kinds)) == len(EVENTS)


def test_losses_that_are_no_numbers_are_readable(tmp_path: Path) -> None:
    lesson = LessonLearned(
        seq=1, before=0.5, after=math.nan, updates=1, losses=(math.inf,), took_ms=1.0, stride=8, version=1
    )
    with Journal(tmp_path / "log.jsonl") as journal:
        journal.write(lesson)
    (event,) = read_log(tmp_path / "log.jsonl")
    assert isinstance(event, LessonLearned)
    assert math.isnan(event.after)
    assert event.losses == (math.inf,)


def test_a_crash_while_writing_loses_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    journal = Journal(path)
    for event in EVENTS[:3]:
        journal.write(event)
    journal.close()
    whole = path.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        kept = sum(end < cut for end in ends)
        assert read_log(path) == EVENTS[:kept]
        again = Journal(path)
        again.write(EVENTS[-1])
        again.close()
        assert read_log(path) == (*EVENTS[:kept], EVENTS[-1])


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"kind": "later"}', "", '{"kind": "started", "x": 1}'])
def test_a_line_that_is_no_event(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{EVENTS[0].model_dump_json()}\n{line}\n{EVENTS[1].model_dump_json()}\n")
    with pytest.raises(FileFormatError, match="line 2 is no event"):
        read_log(path)


def test_logs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.jsonl"):
        read_log(tmp_path / "nothing.jsonl")
    (tmp_path / "taken").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "taken" / "log.jsonl")


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    def write(journal: Journal) -> None:
        for event in EVENTS * 20:
            journal.write(event)

    with Journal(tmp_path / "log.jsonl") as journal:
        threads = [threading.Thread(target=write, args=(journal,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_log(tmp_path / "log.jsonl")) == 4 * 20 * len(EVENTS)


# --- the state folder


def session(version: int, base: str = BASE, **others: object) -> Session:
    return Session.model_validate(
        {"base": base, "version": version, "stride": StrideState(16, 40, True, 32), **others}
    )


def keep(state: StateFolder, version: int) -> Session:
    """What a trainer and its runner do."""
    state.version_folder(version).mkdir()
    (state.version_folder(version) / "trainer.pt").write_text(str(version))
    saved = session(version, drift=DriftState(0.5, 3, 1, True), updates=7, agreement=0.75)
    state.save(saved)
    return saved


def versions(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "versions").iterdir())


def test_kept_and_gone_on_from(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    with StateFolder(folder, BASE) as state:
        assert state.session is None
        for version in (1, 2, 5):
            saved = keep(state, version)
            state.journal.write(EVENTS[0])
        assert versions(folder) == ["000002", "000005"]  # the last two
        assert state.session == saved
    with StateFolder(folder, BASE) as state:
        assert state.session == saved
        assert saved.stride == StrideState(16, 40, True, 32)
        assert (state.version_folder(5) / "trainer.pt").read_text() == "5"
        state.journal.write(EVENTS[1])
    assert read_log(folder / "log.jsonl") == (*[EVENTS[0]] * 3, EVENTS[1])


def test_what_a_crash_left_behind_is_removed(tmp_path: Path) -> None:
    with StateFolder(tmp_path, BASE) as state:
        keep(state, 3)
    for name in (".000004-abc", "000004"):  # being written; written, but not yet in a session
        (tmp_path / "versions" / name).mkdir()
    with StateFolder(tmp_path, BASE) as state:
        assert versions(tmp_path) == ["000003"]
        assert state.session is not None
        assert state.session.version == 3


def test_a_session_of_the_bundles_own_weights_needs_no_folder(tmp_path: Path) -> None:
    with StateFolder(tmp_path, BASE) as state:
        state.save(session(0))
    with StateFolder(tmp_path, BASE) as state:
        assert state.session == session(0)


def test_starting_over_keeps_the_log_only(tmp_path: Path) -> None:
    with StateFolder(tmp_path, BASE) as state:
        keep(state, 3)
        state.journal.write(EVENTS[0])
    with StateFolder(tmp_path, OTHER, resume=False) as state:
        assert state.session is None
        assert versions(tmp_path) == []
        assert not (tmp_path / "session.json").exists()
    assert read_log(tmp_path / "log.jsonl") == (EVENTS[0],)


def test_one_learner_at_a_time(tmp_path: Path) -> None:
    with (
        StateFolder(tmp_path, BASE) as state,
        pytest.raises(OutputError, match="another process learns with this state"),
    ):
        StateFolder(tmp_path, BASE)
    state.close()
    StateFolder(tmp_path, BASE).close()


def test_saving_what_is_not_there_changes_nothing(tmp_path: Path) -> None:
    with StateFolder(tmp_path, BASE) as state:
        saved = keep(state, 1)
        with pytest.raises(FileFormatError, match="names version 2"):
            state.save(session(2))
        with pytest.raises(RecipeError, match="another bundle"):
            state.save(session(1, OTHER))
        assert state.session == saved
        assert Session.load(tmp_path / "session.json") == saved


DAMAGED = [
    ("", FileFormatError, "session of online distillation"),
    ("[]", FileFormatError, "session of online distillation"),
    ('{"format": 2}', FileFormatError, "'format'"),
    (session(3).to_json().replace('"stride": 16', '"stride": 0'), FileFormatError, "at least 1"),
    (session(3).to_json(), FileFormatError, "names version 3.*000003 is not there.*resume=False"),
    (session(0, OTHER).to_json(), RecipeError, "state of another bundle.*resume=False"),
]


@pytest.mark.parametrize(("text", "error", "message"), DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_states_are_refused_and_left_as_they_are(
    tmp_path: Path, text: str, error: type[EdgeSdkError], message: str
) -> None:
    (tmp_path / "session.json").write_text(text)
    (tmp_path / "versions" / "000002").mkdir(parents=True)
    with pytest.raises(error, match=message):
        StateFolder(tmp_path, BASE)
    assert (tmp_path / "session.json").read_text() == text
    assert versions(tmp_path) == ["000002"]
    StateFolder(tmp_path, BASE, resume=False).close()  # what failed holds no lock
