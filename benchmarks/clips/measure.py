"""What the trained networks do on the device's own way: exported, run by EdgeRunner frame by frame, timed together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plan import TEACHER, Training, name_of
from settings import (
    FEWER_BASELINE,
    FEWER_CLAIMED,
    SMALLER_BASELINE,
    SMALLER_CLAIMED,
    Benchmark,
    Clips,
)

from edge_sdk.build.pipeline import build
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.bundle import Bundle, set_name
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.compile.calibrate import CalibrateRecipe, DrawSettings, calibrate
from edge_sdk.evaluate.clips import ClipEvaluateRecipe, ClipEvaluation, evaluate_clips
from edge_sdk.evaluate.clips.evaluation import JSON_NAME
from edge_sdk.progress import Progress

INT8 = set_name("onnxruntime", "int8")
_CALIBRATION_CLIPS = 24


@dataclass(frozen=True)
class Measurement:
    """A student beside its teacher and the same student without one, of one seed.

    Args:
        others: further students, by the name of their row.
        int8: measure the student's INT8 engines too.
    """

    table: str
    network: str
    seed: int
    clips: Clips
    teacher: Training
    student: Training
    rival: Training
    others: dict[str, Training]
    int8: bool

    @property
    def name(self) -> str:
        return name_of(self.table, self.network, "measured", self.seed)


def measurements(plan: Benchmark, trainings: dict[str, Training]) -> Iterator[Measurement]:
    """One for each network of both tables and each seed."""
    tables = (
        ("fewer", plan.fewer.families, plan.fewer.clips, FEWER_CLAIMED, FEWER_BASELINE),
        ("smaller", plan.smaller.networks, plan.smaller.clips, SMALLER_CLAIMED, SMALLER_BASELINE),
    )
    for table, networks, clips, claimed, baseline in tables:
        for network in networks:
            for seed in plan.seeds:

                def found(row: str, table: str = table, network: str = network, seed: int = seed) -> Training:
                    return trainings[name_of(table, network, row, seed)]

                further = plan.smaller.further.get(network, {}) if table == "smaller" else {}
                others = {row: found(row) for row in further if seed in plan.further_seeds}
                yield Measurement(
                    table, network, seed, clips, found(TEACHER), found(claimed), found(baseline), others,
                    plan.int8 and seed == plan.seeds[0],
                )  # fmt: skip


def measure(plan: Benchmark, wanted: Measurement, progress: Progress) -> ClipEvaluation:
    """The evaluation on clips that no training has seen; one that was made of the same files is read again."""
    given = (*(wanted.teacher, wanted.student, wanted.rival), *wanted.others.values())
    settings = [wanted.clips.test_uri, plan.timed, plan.repeats, plan.streamed, wanted.int8]
    content = json.dumps([*settings, *(str(training.result) for training in given)])
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    folder = plan.runs / "measured" / f"{wanted.name}-{digest}"
    if (folder / JSON_NAME).is_file():
        return ClipEvaluation.load(folder / JSON_NAME)
    bundles = {training.row: _bundle(training, wanted.clips, progress) for training in given}
    if wanted.int8:
        row = wanted.student.row
        bundles[row] = _in_int8(bundles[row], wanted, progress)
    recipe = ClipEvaluateRecipe(
        bundle=bundles[wanted.student.row].path, teacher=bundles[TEACHER].path, rival=bundles[wanted.rival.row].path,
        others=tuple(bundles[row].path for row in wanted.others), source=wanted.clips.test_uri,
        engines=(INT8,) if wanted.int8 else (), timed=plan.timed, repeats=plan.repeats, streamed=plan.streamed,
        threads=1, out=folder,
    )  # fmt: skip
    evaluation = evaluate_clips(recipe, progress=progress)
    evaluation.write_report(folder)
    return evaluation


def _bundle(training: Training, clips: Clips, progress: Progress) -> Bundle:
    recipe = ExportRecipe(
        out=bundle_folder(training), checkpoint=training.result, frame_hw=(clips.side, clips.side)
    )
    return export(recipe, progress=progress)


def bundle_folder(training: Training) -> Path:
    """Where its bundle goes; the folder's name is the row's in an evaluation."""
    return training.recipe.out / name_of(training.network, training.row)


def _in_int8(bundle: Bundle, wanted: Measurement, progress: Progress) -> Bundle:
    """The bundle with INT8 engines for this CPU, calibrated on clips that the student has learned from."""
    recorded = wanted.student.recipe.out / "calibration.npz"
    recorded.unlink(missing_ok=True)
    draw = DrawSettings(
        labelled=(wanted.clips.train_uri(wanted.seed),), clips=min(_CALIBRATION_CLIPS, wanted.clips.train)
    )
    calibrate(CalibrateRecipe(bundle=bundle.path, draw=draw, out=recorded), progress=progress)
    recipe = BuildRecipe(
        bundle=bundle.path, calibration=recorded, backends=("onnxruntime",), precisions=("int8",)
    )
    return build(recipe, progress=progress).bundle
