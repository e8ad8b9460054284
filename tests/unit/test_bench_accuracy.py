"""Scores of a bench's rows against scores counted by hand over tiny pairs, and schedules replayed against real runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from edge_sdk.bench.accuracy import measured_lag, reference, score, scores_of
from edge_sdk.bench.document import SUBJECT, Row, Variant
from edge_sdk.bench.lineup import Lineup
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, RecipeError
from edge_sdk.evaluate.accuracy import Judge
from edge_sdk.evaluate.clip import Clip
from edge_sdk.evaluate.metrics import plan
from edge_sdk.evaluate.replay import Replay, mean_interval, replay
from edge_sdk.runtime import stream
from edge_sdk.runtime.background import BackgroundKeyframe, BackgroundKeyframes
from edge_sdk.runtime.engine import backend_named
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import (
    AlwaysSchedule,
    ChangeSchedule,
    DriftSchedule,
    EverySchedule,
    ExternalSchedule,
    ScheduleSettings,
)
from edge_sdk.tasks import Segmentation, task_from_spec
from edge_sdk.video.frame import Frame
from tests.graphs import TinyPair, chaining, per_frame, random_images, residual, telling

SIZE = (24, 32)
COUNT = 9
IMAGES = random_images(COUNT, SIZE)
TASK = task_from_spec(residual().manifest().task)
# Labels of every other frame: the teacher's answer of the frame mirrored, so that nobody is perfect.
TRUTHS = [
    Segmentation(np.ascontiguousarray(mask[:, ::-1])) if index % 2 == 0 else None
    for index, mask in enumerate(residual(SIZE).expected(IMAGES, [StepKind.KEYFRAME] * COUNT))
]
DRIFT = DriftSchedule(below=0.4, max_interval=4)
CHANGE = ChangeSchedule(threshold=75.0, max_interval=4, stride=8)
Answers = Iterator[tuple[int, np.ndarray]]


def clip(labels: bool = True, images: list[np.ndarray] = IMAGES) -> Clip:
    frames = tuple(Frame(image, index, index / 25) for index, image in enumerate(images))
    return Clip("clip", 25.0, frames, tuple(TRUTHS if labels else [None] * len(images)))


@pytest.fixture
def pair(request) -> TinyPair:
    return getattr(request, "param", residual)(SIZE)


@pytest.fixture
def lineup(pair: TinyPair, tmp_path: Path) -> Lineup:
    return Lineup(pair.write(tmp_path / "pair"), None, per_frame(SIZE).write(tmp_path / "rival"))


def row(variant: Variant = "pair", schedule: ScheduleSettings | None = None, **more) -> Row:
    found = EverySchedule(interval=3) if schedule is None else schedule
    return Row(name="row", variant=variant, engine="float32", schedule=found, **more)


def counted(answers: Answers) -> tuple[float, float]:
    """Scores against the labels and the teacher of answers (frame, mask)."""
    teacher = residual(SIZE).expected(IMAGES, [StepKind.KEYFRAME] * COUNT)
    labels, agreement = TASK.score(), TASK.score()
    for index, mask in answers:
        truth = TRUTHS[index]
        if truth is not None:
            labels.update(Segmentation(mask), truth)
        agreement.update(Segmentation(mask), Segmentation(teacher[index]))
    return labels.compute()["miou"], agreement.compute()["miou"]


def every(pair: TinyPair, interval: int, between: StepKind = StepKind.DELTA) -> Answers:
    """The pair's answers over every alignment of the keyframes."""
    for phase in range(interval):
        planned = plan(COUNT, interval, phase)
        kinds = [between if where.distance else StepKind.KEYFRAME for where in planned]
        for where, mask in zip(planned, pair.expected(IMAGES[phase:], kinds), strict=True):
            yield where.index, mask


def late(pair: TinyPair, distances: range) -> Answers:
    """The delta step's answer to every frame on the state of every frame that is so far back."""
    assert pair.delta_formula is not None
    for index in range(COUNT):
        for distance in distances:
            if index >= distance:
                _, state = pair.keyframe_formula(IMAGES[index - distance], None)
                yield index, pair.delta_formula(IMAGES[index], state)[0]


def followed(pair: TinyPair, schedule: ScheduleSettings, starts: list[int]) -> Answers:
    """What the pair answers where the schedule itself is asked, from several first frames."""
    for start in starts:
        rule, kinds, age = schedule.start(), [], None
        for image in IMAGES[start:]:
            kinds.append(StepKind.KEYFRAME if age is None else rule.decide(image, age))
            if age is None:
                rule.decide(image, None)
            age = 1 if kinds[-1] is StepKind.KEYFRAME else (age or 0) + 1
        yield from zip(range(start, COUNT), pair.expected(IMAGES[start:], kinds), strict=True)


@pytest.mark.parametrize("pair", [residual, chaining], indirect=True)
@pytest.mark.parametrize("interval", [2, 3, 7])
def test_every_k_frames_over_every_alignment(pair, lineup, interval) -> None:
    wanted = row(schedule=EverySchedule(interval=interval))
    found = scores_of([wanted], lineup, clip())["row"]
    assert (found.labels, found.agreement) == pytest.approx(counted(every(pair, interval)), abs=1e-12)
    assert (found.interval, found.note) == (interval, "")


def test_one_pass_serves_all_intervals_and_late_keyframes(pair, lineup) -> None:
    rows = [
        row(schedule=EverySchedule(interval=k)).model_copy(update={"name": f"{k}"}) for k in (2, 3, 5)
    ] + [row(background=True).model_copy(update={"name": "late"})]
    calls: list[tuple[str, int, int]] = []
    progress = SimpleNamespace(update=lambda *args: calls.append(args))
    together = scores_of(rows, lineup, clip(), lags={"late": 2}, progress=progress)
    for wanted in rows:
        alone = scores_of([wanted], lineup, clip(), lags={"late": 2})[wanted.name]
        assert together[wanted.name] == alone
    assert [args for args in calls if args[1] == args[2]] == [("teacher", 9, 9), ("delta K=5", 35, 35)]


@pytest.mark.parametrize(
    ("interval", "lag", "distances"),
    [
        (3, 1, range(1, 4)),
        (3, 2, range(2, 5)),
        (3, 3, range(3, 6)),
        (2, 3, range(3, 7)),  # one that is due while another runs is left out
        (2, 5, range(5, 11)),
    ],
)
def test_late_keyframes_are_counted_from_where_they_come(pair, lineup, interval, lag, distances) -> None:
    wanted = row(schedule=EverySchedule(interval=interval), background=True)
    long = replay(wanted.schedule, IMAGES * 8, lag=lag)
    assert {where.distance for where in long[4 * lag :]} == set(distances)
    if distances.stop > COUNT:
        with pytest.raises(
            RecipeError, match=r"row row: a keyframe every 2 frames needs 11 frames, .* gave 9"
        ):
            scores_of([wanted], lineup, clip(), lags={"row": lag})
        return
    found = scores_of([wanted], lineup, clip(), lags={"row": lag}, fps=20.0)["row"]
    assert (found.labels, found.agreement) == pytest.approx(counted(late(pair, distances)), abs=1e-12)
    assert found.note == f"keyframes come {lag} frames late at 20 fps"


@pytest.mark.parametrize("pair", [residual, chaining], indirect=True)
def test_a_schedule_that_looks_is_followed_from_several_first_frames(pair, lineup) -> None:
    mean = mean_interval(replay(CHANGE, IMAGES))
    assert 1 < mean < 4, "the threshold is to give keyframes and deltas"
    found = scores_of([row(schedule=CHANGE)], lineup, clip())["row"]
    starts = list(range(min(round(mean), 5)))
    assert (found.labels, found.agreement) == pytest.approx(
        counted(followed(pair, CHANGE, starts)), abs=1e-12
    )
    assert found.interval == mean
    assert found.note == f"a keyframe every {mean:.1f} frames on this clip ({1 / mean:.1%} of them)"


@pytest.mark.parametrize("pair", [telling], indirect=True)
@pytest.mark.parametrize("lag", [None, 2])
def test_a_schedule_that_is_told_is_followed_while_the_steps_run(lag, pair, lineup) -> None:
    # What the steps tell hangs on the frame alone here, so a replay can be told without running them.
    plans = []
    for start in range(5):
        plans.append(Replay(DRIFT, IMAGES, start=start, lag=lag))
        for where in plans[-1]:
            red = float(IMAGES[where.index][0, 0, 2]) / 256
            plans[-1].told(red if where.distance else None)
    mean = mean_interval(plans[0].planned)
    assert 1 < mean < 4, "the trust is to give keyframes and deltas"
    starts = range(min(round(mean), COUNT // 2))

    def answers() -> Answers:
        for start in starts:
            for where in plans[start].planned:
                mask, state = pair.keyframe_formula(IMAGES[where.key], None)
                yield (
                    where.index,
                    pair.delta_formula(IMAGES[where.index], state)[0] if where.distance else mask,
                )

    wanted = row(schedule=DRIFT, background=lag is not None)
    found = scores_of([wanted], lineup, clip(), lags={"row": lag} if lag else None)["row"]
    assert (found.labels, found.agreement) == pytest.approx(counted(answers()), abs=1e-12)
    assert found.interval == mean
    assert f"a keyframe every {mean:.1f} frames on this clip ({1 / mean:.1%} of them)" in found.note


def test_what_runs_no_delta_steps_cannot_follow_drift(lineup) -> None:
    with pytest.raises(
        RecipeError, match=r"row row: schedule 'drift' hears from delta steps, and 'copy' runs none"
    ):
        scores_of([row("copy", DRIFT)], lineup, clip())
    with pytest.raises(TypeError, match="schedule 'drift' has to be told"):
        replay(DRIFT, IMAGES)


def test_external_keyframes_come_at_the_longest_interval_alone(pair, lineup) -> None:
    schedule = ExternalSchedule(max_interval=4)
    found = scores_of([row(schedule=schedule)], lineup, clip())["row"]
    assert found.interval == 3.0  # nine frames, keyframes at 0, 4 and 8
    assert found.agreement == pytest.approx(counted(followed(pair, schedule, [0, 1, 2]))[1], abs=1e-12)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (row("teacher", AlwaysSchedule()), lambda p: every(p, 1)),
        (row("pair", AlwaysSchedule()), lambda p: every(p, 1)),
        (row("rival", AlwaysSchedule()), lambda p: every(p, 1)),
        (row("copy", EverySchedule(interval=3, between="skip")), lambda p: every(p, 3, StepKind.SKIP)),
        (row("pair", EverySchedule(interval=3, between="skip")), lambda p: every(p, 3, StepKind.SKIP)),
    ],
)
def test_networks_on_every_frame_and_kept_answers(
    wanted: Row, expected: Callable[[TinyPair], Answers], pair, lineup
) -> None:
    found = scores_of([wanted], lineup, clip())["row"]
    assert (found.labels, found.agreement) == pytest.approx(counted(expected(pair)), abs=1e-12)


def test_flow_is_scored_as_evaluate_scores_it(pair, lineup) -> None:
    teacher = [Segmentation(mask) for mask in pair.expected(IMAGES, [StepKind.KEYFRAME] * COUNT)]
    judge = Judge(
        clip(), teacher, lineup.subject, threads=1, phases_of=range, own_teacher=False, tick=lambda *_: None
    )
    for interval in (2, 3):
        wanted = row("flow", EverySchedule(interval=interval, between="skip"))
        found, expected = scores_of([wanted], lineup, clip())["row"], judge.flow(interval)
        assert (found.labels, found.agreement) == (expected.labels, expected.agreement)


def test_copy_and_flow_follow_a_schedule_that_looks(pair, lineup) -> None:
    starts = list(range(round(mean_interval(replay(CHANGE, IMAGES)))))
    masks = pair.expected(IMAGES, [StepKind.KEYFRAME] * COUNT)
    kept = [(where.index, masks[where.key]) for s in starts for where in replay(CHANGE, IMAGES, start=s)]
    found = scores_of([row("copy", CHANGE)], lineup, clip())["row"]
    assert (found.labels, found.agreement) == pytest.approx(counted(iter(kept)), abs=1e-12)
    assert scores_of([row("flow", CHANGE)], lineup, clip())["row"].interval == found.interval


def test_without_labels_agreement_is_left(pair, lineup) -> None:
    found = scores_of([row()], lineup, clip(labels=False))["row"]
    assert found.labels is None
    assert found.agreement == pytest.approx(counted(every(pair, 3))[1], abs=1e-12)


def test_rows_are_filled_in_and_those_with_scores_keep_them(pair, lineup) -> None:
    known = row(labels=0.25, agreement=0.5).model_copy(update={"name": "known"})
    new = row(schedule=CHANGE, note="its own").model_copy(update={"name": SUBJECT})
    recipe = BenchRecipe(bundle=lineup.subject.path, source="clip", threads=1)
    filled = score([new, known], lineup, clip(), recipe)
    assert filled[1] == known
    assert filled[0].agreement is not None
    assert filled[0].note.startswith("its own; a keyframe every")
    assert score([known], lineup, None, recipe) == (known,)  # type: ignore[arg-type]  # nothing is run


def test_refusals(pair, lineup, tmp_path) -> None:
    with pytest.raises(RecipeError, match="a keyframe every 10 frames needs 10 frames, source clip gave 9"):
        scores_of([row(schedule=EverySchedule(interval=10))], lineup, clip())
    spec = lineup.subject.manifest.task.model_copy(update={"kind": "detection"})
    other = SimpleNamespace(subject=SimpleNamespace(manifest=SimpleNamespace(task=spec), path=Path("b")))
    with pytest.raises(
        RecipeError, match="accuracy: a detection is not scored beside its times, bundle b is one"
    ):
        scores_of([row()], other, clip())  # type: ignore[arg-type]
    rewriting = Lineup(chaining(SIZE).write(tmp_path / "chaining"), None, None)
    with pytest.raises(BundleError, match="the delta step rewrites the state 'memory'"):
        scores_of([row(background=True)], rewriting, clip())


def test_the_reference_is_float32_wherever_it_can_be_run(lineup, tmp_path, monkeypatch) -> None:
    ours = backend_named("onnxruntime")
    assert reference(lineup.subject, ours) == (ours, "float32")
    gpu = SimpleNamespace(name="tensorrt")
    assert reference(lineup.subject, gpu)[1] == "float32"  # on ONNX Runtime
    monkeypatch.setattr("edge_sdk.bench.accuracy.backend_available", lambda name: False)
    with pytest.raises(BundleError, match=r"no engines 'tensorrt-float32'\. Add float32 to `precisions`"):
        reference(lineup.subject, gpu)
    built = lineup.subject.manifest.pair.model_dump() | {"backend": "tensorrt", "precision": "float32"}
    fake = SimpleNamespace(manifest=SimpleNamespace(engines={"tensorrt-float32": built}), path=tmp_path)
    assert reference(cast(Bundle, fake), gpu) == (gpu, "tensorrt-float32")


# Schedules replayed against real runs.

SCHEDULES: list[ScheduleSettings] = [
    AlwaysSchedule(),
    EverySchedule(interval=3),
    EverySchedule(interval=4, phase=2),
    EverySchedule(interval=3, between="skip"),
    CHANGE,
    ChangeSchedule(threshold=1.0, min_interval=3, stride=4),
    ExternalSchedule(),
    ExternalSchedule(max_interval=2),
]


@pytest.mark.parametrize("pair", [telling], indirect=True)
def test_a_replay_that_is_told_is_what_a_runner_does(pair, lineup) -> None:
    plan, ages = Replay(DRIFT, IMAGES), []
    with EdgeRunner(lineup.subject, schedule=DRIFT, threads=1) as runner:
        for where in plan:
            result = runner(IMAGES[where.index])
            ages.append(result.state_age)
            plan.told(result.trust)
    assert [where.distance for where in plan.planned] == ages
    assert {0, 1} < set(ages)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_replay_is_what_a_runner_does(schedule, start, lineup) -> None:
    planned = replay(schedule, IMAGES, start=start)
    with EdgeRunner(lineup.subject, schedule=schedule, threads=1) as runner:
        ages = [runner(image).state_age for image in IMAGES[start:]]
    assert [where.distance for where in planned] == ages
    assert [where.index for where in planned] == list(range(start, COUNT))


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s.uses_delta], ids=str)
def test_a_replay_with_late_keyframes_is_what_a_runner_does(schedule, lag, lineup, monkeypatch) -> None:
    class Counted(BackgroundKeyframe):
        """Finished after ``lag`` frames, whatever the clock says."""

        left = 0

        def start(self, image, seq, bank):
            super().start(image, seq, bank)
            self.left = lag

        def collect(self):
            self.left -= 1
            while self.running and self.left <= 0 and not self._steps[self._bank].finished():
                time.sleep(0.0005)
            return super().collect() if self.left <= 0 else None

    monkeypatch.setattr(stream, "BackgroundKeyframe", Counted)
    background = BackgroundKeyframes()
    with EdgeRunner(lineup.subject, schedule=schedule, threads=1, background=background) as runner:
        ages = [runner(image).state_age for image in IMAGES]
    assert [where.distance for where in replay(schedule, IMAGES, lag=lag)] == ages


@pytest.mark.parametrize("lag", [1, 2, 3, 5])
def test_how_late_keyframes_come_is_measured_at_the_cameras_rate(lag) -> None:
    class Runner:
        """Keyframes every second frame beside the frames, each ``lag`` frames late, and once later."""

        def reset(self):
            self.ages = iter(
                where.distance for where in replay(EverySchedule(interval=2), [IMAGES[0]] * 400, lag=lag)
            )

        def __call__(self, image):
            return SimpleNamespace(state_age=next(self.ages))

    now = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    found = measured_lag(Runner(), clip(), 50.0, clock=lambda: now[0], sleep=sleep)  # type: ignore[arg-type]
    assert found == lag
    assert slept[0] == 0.0
    assert slept[1:] == pytest.approx([0.02] * (len(slept) - 1))


def test_a_keyframe_that_never_comes_is_as_late_as_it_gets() -> None:
    ages = iter(range(1000))
    runner = type(
        "R",
        (),
        {"reset": lambda self: None, "__call__": lambda self, _: SimpleNamespace(state_age=next(ages))},
    )()
    assert measured_lag(runner, clip(), 1e9, sleep=lambda _: None) == 20


def test_a_real_runner_tells_how_late_its_keyframes_come(lineup) -> None:
    found = scores_of([row(background=True)], lineup, clip(), threads=1, fps=200.0)["row"]
    assert found.note.startswith("keyframes come ")
    assert found.agreement is not None


def test_engines_that_are_not_there_are_named(lineup) -> None:
    wanted = row().model_copy(update={"engine": "onnxruntime-int8"})
    with pytest.raises(BundleError, match="it has no engines 'onnxruntime-int8'"):
        scores_of([wanted], lineup, clip())
