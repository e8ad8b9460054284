"""At a camera's pace: are frames late because something learns beside them? On two cores, one of them for learning."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import streams
from cases import FIXED_CAMERA, Kept

from edge_sdk import EdgeRunner, open_source
from edge_sdk.adapt.replay import LessonLog
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.progress import Progress
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import ExternalSchedule
from edge_sdk.video.frame import Frame

# The video's own rate and twice that; each for so many frames, with and without learning, in turn.
RATES = {12.5: 375, 25.0: 750} if streams.LIMIT is None else {25.0: 50}
ROUNDS = 2 if streams.LIMIT is None else 1
# The highest threshold learns most.
SETTINGS = AdaptSettings(threshold=0.9, resume=False, **FIXED_CAMERA)
SECONDS = ROUNDS * 2 * sum(frames / rate + 4 for rate, frames in RATES.items())


def measure(progress: Progress) -> list[dict[str, Any]]:
    """Rows: rate, with or without learning, share of missed deadlines, ages of answers, lessons."""
    bundle, stream = streams.bundle("camera", progress), streams.stream("camera")
    kept = Kept(
        "pace", [bundle.manifest_sha256, stream.uri, SETTINGS.model_dump(mode="json"), list(RATES.items())]
    )
    if not kept.fresh:
        with open_source(stream.uri, limit=streams.LIMIT) as source:
            images = [frame.image for frame in source]
        rows = []
        total = ROUNDS * sum(2 * frames for frames in RATES.values())
        done = 0
        for rate, count in RATES.items():
            found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
            for _ in range(ROUNDS):
                keys: Collection[int] = ()
                # First with: which frames are the teacher's is only known then, and both are to have the same.
                for learns in (True, False):
                    row, keys = _paced(
                        bundle, images[:count], rate, keys if not learns else None,
                        lambda index, before=done: progress.update("pace", before + index, total),
                    )  # fmt: skip
                    found[learns].append(row)
                    done += count
            rows += [_joined(rate, learns, parts) for learns, parts in found.items()]
        kept.write(rows)
    return list(kept.read())


def _paced(
    bundle: Any,
    images: list[np.ndarray],
    rate: float,
    keys: Collection[int] | None,
    tick: Callable[[int], None],
) -> tuple[dict[str, Any], list[int]]:
    """One round; ``keys`` are the teacher's frames where nothing learns, None where the learner decides."""
    log, period_s = LessonLog(), 1 / rate
    options: dict[str, Any] = (
        {"adapt": SETTINGS, "on_adapt": log} if keys is None else {"schedule": ExternalSchedule()}
    )
    ages, teacher_at = [], []
    with EdgeRunner(bundle, threads=1, **options) as runner:
        if keys is None:
            runner.adaptation.wait_idle(60.0)
        began_s = time.monotonic() + 0.5
        for index, image in enumerate(images):
            due_s = began_s + index * period_s
            time.sleep(max(0.0, due_s - time.monotonic()))
            if keys is not None and index in keys:
                runner.request_keyframe()
            result = runner(Frame(image, index, due_s))
            ages.append((time.monotonic() - due_s) * 1e3)
            if result.kind is StepKind.KEYFRAME:
                teacher_at.append(index)
            tick(index + 1)
    lessons = log.records()
    figures = {
        "ages_ms": ages, "teacher": teacher_at, "lessons": len(lessons), "updates": sum(one.updates for one in lessons),
        "learning_share": sum(one.took_ms for one in lessons) / (1e3 * len(images) * period_s),
    }  # fmt: skip
    return figures, teacher_at


def _joined(rate: float, learns: bool, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    ages = np.concatenate([row["ages_ms"] for row in rounds])
    between = np.concatenate([np.delete(row["ages_ms"], row["teacher"]) for row in rounds])
    period_ms = 1e3 / rate
    return {
        "rate": rate,
        "learns": learns,
        "frames": len(ages),
        "missed": float((ages > period_ms).mean()),
        "missed_of_student": float((between > period_ms).mean()),
        "p50_ms": float(np.percentile(ages, 50)),
        "p99_ms": float(np.percentile(ages, 99)),
        "max_ms": float(ages.max()),
        "teacher_frames": sum(len(row["teacher"]) for row in rounds),
        "lessons": sum(row["lessons"] for row in rounds),
        "updates": sum(row["updates"] for row in rounds),
        "learning_share": float(np.mean([row["learning_share"] for row in rounds])),
    }
