"""Every variant's masks over the clip, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.bundle import FLOAT32, Bundle
from edge_sdk.errors import BundleError, EngineError
from edge_sdk.evaluate.baselines import copied, flowed
from edge_sdk.evaluate.clip import Clip, Tick
from edge_sdk.evaluate.evaluation import AtDistance
from edge_sdk.evaluate.metrics import Planned, Reference, StreamScores, consistency_of, pair_lookups, plan
from edge_sdk.evaluate.replay import Replay, mean_interval
from edge_sdk.runtime.engine import Backend
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, ExternalSchedule, ScheduleSettings
from edge_sdk.tasks import Segmentation

# Two exports of one teacher round differently; a pixel on the border of two classes may go either way.
MAX_TEACHER_MISMATCH = 0.001

Masks = Iterable[tuple[Planned, np.ndarray]]


@dataclass(frozen=True)
class Accuracy:
    """Scores of one variant at one interval; meanings as in :class:`edge_sdk.evaluate.evaluation.Row`."""

    labels: float | None
    agreement: float | None
    by_distance: tuple[AtDistance, ...]
    consistency: float | None

    @classmethod
    def of(cls, scores: StreamScores) -> Accuracy:
        """What ``scores`` added up."""
        at = tuple(
            AtDistance(distance=distance, frames=frames, labels=labels, agreement=agreement)
            for distance, frames, labels, agreement in scores.by_distance()
        )
        return cls(scores.labels(), scores.agreement(), at, scores.consistency())


def per_frame_masks(
    bundle: Bundle,
    clip: Clip,
    threads: int | None,
    tick: Callable[[int], None],
    engine: str = FLOAT32,
    backend: str | Backend = "onnxruntime",
) -> list[Segmentation]:
    """The keyframe step's mask of every frame."""
    masks = []
    with EdgeRunner(
        bundle, backend=backend, engine=engine, schedule=AlwaysSchedule(), threads=threads
    ) as runner:
        for frame in clip.frames:
            masks.append(Segmentation(runner(frame).mask.copy()))
            tick(len(masks))
    return masks


class Judge:
    """Scores variants over one clip.

    Args:
        clip: frames and labels.
        teacher: the teacher's mask per frame.
        pair: the bundle with the delta step.
        threads: of the runner.
        phases_of: phases of an interval that are counted.
        own_teacher: whether the teacher's masks come from another bundle than the pair and are to be compared with
            its keyframe step.
        tick: progress.
        backend: runs the pair.
        consistency: also measure how steady masks are over time, which takes the flow between all frames.
    """

    def __init__(
        self,
        clip: Clip,
        teacher: Sequence[Segmentation],
        pair: Bundle,
        *,
        threads: int | None,
        phases_of: Callable[[int], range],
        own_teacher: bool,
        tick: Tick,
        backend: str | Backend = "onnxruntime",
        consistency: bool = True,
    ) -> None:
        self._clip, self._teacher, self._pair, self._backend = clip, teacher, pair, backend
        self._threads, self._phases_of, self._own_teacher, self._tick = threads, phases_of, own_teacher, tick
        lookups = None
        if consistency:
            pairs = len(clip) - 1
            lookups = pair_lookups(clip.images, lambda done: tick("flow between frames", done, pairs))
        self._reference = Reference(pair.task, clip.masks, teacher, lookups)
        self.kept: dict[int, np.ndarray] = {}

    def label_consistency(self) -> float | None:
        """Temporal consistency of the labels; None where no two frames in a row have them."""
        lookups = self._reference.lookups
        return None if lookups is None else consistency_of(self._clip.masks, self._pair.task, lookups)

    def every_frame(self, masks: Sequence[Segmentation]) -> Accuracy:
        """A network that ran on every frame."""
        scores = StreamScores(self._reference, 1)
        planned = plan(len(self._clip), 1, 0)
        scores.add_phase((where, mask.mask) for where, mask in zip(planned, masks, strict=True))
        return Accuracy.of(scores)

    def copy(self, interval: int) -> Accuracy:
        """The last keyframe's mask, kept."""
        return Accuracy.of(self.copied(interval))

    def flow(self, interval: int) -> Accuracy:
        """The last keyframe's mask, moved along optical flow."""
        return Accuracy.of(self.flowed(interval))

    def delta(self, interval: int, keep: Iterable[int] = (), engine: str = FLOAT32) -> Accuracy:
        """The pair, really run for every phase; arguments and errors are those of :meth:`deltas`."""
        return Accuracy.of(self.deltas(interval, keep, engine))

    def copied(self, interval: int, masks: Sequence[Segmentation] | None = None) -> StreamScores:
        """Scores of copying by distance; ``masks`` of another teacher than the reference, per frame."""
        found = self._teacher if masks is None else masks
        return self._over_phases("copy", interval, lambda planned: copied(planned, found))

    def flowed(self, interval: int, masks: Sequence[Segmentation] | None = None) -> StreamScores:
        """Scores of warping by distance; ``masks`` of another teacher than the reference, per frame."""
        found, images = self._teacher if masks is None else masks, self._clip.images
        return self._over_phases("flow", interval, lambda planned: flowed(planned, found, images))

    def deltas(self, interval: int, keep: Iterable[int] = (), engine: str = FLOAT32) -> StreamScores:
        """Scores of the pair by distance, really run for every phase.

        Where every phase is counted these hold the scores of every smaller interval too: a frame's answer rests on its
        keyframe and on what came between, however far it is to the next keyframe.

        Args:
            interval: frames from keyframe to keyframe.
            keep: frames whose masks in phase 0 are put into ``kept``.
            engine: which engines of the pair.

        Raises:
            BundleError: the keyframe step and the teacher's own bundle disagree.
        """
        wanted, checks = set(keep), self._checks_teacher(engine)

        def masks_of(planned: Sequence[Planned]) -> Masks:
            first_phase = planned[:1] == [Planned(0, 0)]
            return self._run(runner, planned, wanted if first_phase else set(), checks)

        with self._pair_runner(engine) as runner:
            return self._over_phases(_delta_name(engine), interval, masks_of)

    def replayed(self, plans: Sequence[Sequence[Planned]], engine: str = FLOAT32) -> StreamScores:
        """Scores of the pair where ``plans`` say which keyframe each frame rests on; one plan a pass.

        Plans in which keyframes come late are for pairs whose delta step does not rewrite the state.

        Raises:
            BundleError: the keyframe step and the teacher's own bundle disagree.
        """
        scores = StreamScores(self._reference, 1)
        done, total = 0, sum(map(len, plans))
        with self._pair_runner(engine) as runner:
            for planned in plans:
                scores.add_phase(self._run(runner, planned, set(), self._checks_teacher(engine)))
                done += len(planned)
                self._tick(_delta_name(engine), done, total)
        return scores

    def told(
        self,
        schedule: ScheduleSettings,
        more: Callable[[float], Iterable[int]],
        *,
        lag: int | None = None,
        engine: str = FLOAT32,
    ) -> tuple[StreamScores, float]:
        """Scores of the pair under a schedule that is told what its delta steps find, and the mean interval.

        Args:
            schedule: followed from frame 0 first; frames a keyframe in that pass are the mean interval.
            more: first frames of the passes after that one, by the mean interval.
            lag: frames that keyframes come late, as for :class:`Replay`.
            engine: which engines of the pair.

        Raises:
            BundleError: the keyframe step and the teacher's own bundle disagree.
        """
        scores = StreamScores(self._reference, 1)
        with self._pair_runner(engine) as runner:

            def follow(start: int, part: int, parts: int) -> Replay:
                plan = Replay(schedule, self._clip.images, start=start, lag=lag)
                scores.add_phase(self._run(runner, plan, set(), self._checks_teacher(engine), plan.told))
                self._tick(f"{_delta_name(engine)} {schedule.kind}", part, parts)
                return plan

            interval = mean_interval(follow(0, 0, 1).planned)
            starts = [start for start in more(interval) if start]
            for part, start in enumerate(starts, start=1):
                follow(start, part, len(starts))
        return scores, interval

    def replayed_masks(
        self,
        plans: Sequence[Sequence[Planned]],
        masks_of: Callable[[Sequence[Planned]], Masks],
    ) -> StreamScores:
        """Scores of masks that need no runner, over the same kind of plans."""
        scores = StreamScores(self._reference, 1)
        for planned in plans:
            scores.add_phase(masks_of(planned))
        return scores

    def _pair_runner(self, engine: str) -> EdgeRunner:
        return EdgeRunner(
            self._pair,
            backend=self._backend,
            engine=engine,
            schedule=ExternalSchedule(),
            threads=self._threads,
        )

    def _checks_teacher(self, engine: str) -> bool:
        return self._own_teacher and engine == FLOAT32

    def _over_phases(
        self, name: str, interval: int, masks_of: Callable[[Sequence[Planned]], Masks]
    ) -> StreamScores:
        scores = StreamScores(self._reference, interval)
        plans = [plan(len(self._clip), interval, phase) for phase in self._phases_of(interval)]
        done, total = 0, sum(map(len, plans))

        def counted(masks: Masks) -> Masks:
            nonlocal done
            for item in masks:
                yield item
                done += 1
                self._tick(f"{name} K={interval}", done, total)

        for planned in plans:
            scores.add_phase(counted(masks_of(planned)))
        return scores

    def _run(
        self,
        runner: EdgeRunner,
        planned: Iterable[Planned],
        keep: set[int],
        own_teacher: bool,
        told: Callable[[float | None], None] | None = None,
    ) -> Iterator[tuple[Planned, np.ndarray]]:
        runner.reset()
        keyframes = differing = since = 0
        key = -1
        for where in planned:
            # Images instead of frames: where keyframes come late, the runner goes back to an older one.
            if where.key != key:
                key, since = where.key, 0
                runner.request_keyframe()
                result = runner(self._clip.frames[key].image)
            if where.distance:
                since += 1
                result = runner(self._clip.frames[where.index].image)
            if result.state_age != since:
                raise EngineError(f"runner: frame {where.index} has age {result.state_age}, not {since}.")
            if told is not None:
                told(result.trust)
            mask = result.mask.copy()
            if where.distance == 0:
                keyframes += 1
                differing += int(np.count_nonzero(mask != self._teacher[where.index].mask))
            if where.index in keep:
                self.kept[where.index] = mask
            yield where, mask
        if own_teacher:
            check_same_teacher(differing, keyframes * self._teacher[0].mask.size)


def _delta_name(engine: str) -> str:
    return "delta" if engine == FLOAT32 else f"delta {engine}"


def check_same_teacher(differing: int, pixels: int) -> None:
    """Refuse a teacher bundle whose masks are not those of the pair's keyframe step.

    Args:
        differing: pixels on which the two disagree.
        pixels: pixels compared.

    Raises:
        BundleError: more than 0.1 % differ.
    """
    if differing > MAX_TEACHER_MISMATCH * pixels:
        raise BundleError(
            f"teacher: its masks differ from those of the bundle's keyframe step on {differing / pixels:.2%} of the "
            f"pixels, expected at most {MAX_TEACHER_MISMATCH:.1%}.",
            hint="Export the teacher from the same weights as the bundle, or leave `teacher` out.",
        )
