"""RESULTS.md and what is claimed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import INT8, bundle_folder
from plan import Training, name_of
from settings import (
    FEWER_BASELINE,
    FEWER_CLAIMED,
    SMALLER_BASELINE,
    SMALLER_CLAIMED,
    Benchmark,
)

from edge_sdk.evaluate.clips import ClipEvaluation, ClipRow
from edge_sdk.evaluate.table import macs, milliseconds

Claim = tuple[str, str, bool]
WITHIN, ABOVE = 2.0, 2.0  # points of top-1
FEWER_MACS, FEWER_TIME, SMALLER_SPEED = 0.85, 0.30, 3.0
HOW = """\
Clips are the twelve classes of `synthetic:motions`, which no single frame tells apart. *top-1* is in percent. In
the tables of what was measured it is that of the exported bundles over test clips that no training has seen:
EdgeRunner is given every frame of a clip and its last answer counts. In the tables of losses and of samplings it is
that of the trained networks over validation clips. Each seed has its own weights, batches and training clips, and
its own teacher; a student is compared with the teacher of its seed. Teachers and students without one learn from
the labelled clips; a distilled student also from clips whose labels nobody looks at, of which it learns what its
teacher makes of them. A cell with more than one seed is their mean, with the least and the greatest in brackets.
Times: one thread of ONNX Runtime, float32, interleaved runs over the same clips, skipped frames included;
*speed-up* is the teacher's time over this one, within each run."""
FEWER = """\
The teacher sees all {length} frames of a clip, the student {samples} of them: frames 0, {stride}, {twice}, ... The
student *without a teacher* learns from the labels for as many steps as the other one learns in all; both begin with
fresh weights and have the same settings. Teachers learn for {teacher} steps, students for {student}."""
SMALLER = """\
Every network sees all {length} frames of a clip, the camera's {high} x {high} pixels; the student's graph begins with a
bilinear resize to {low} x {low}. *feature maps*: 100 times the mean squared difference of the last maps, as published;
*logits at each place*: the published form for networks of unlike width. The baseline is the same network at the same
{low} x {low}, from labels alone, for as many steps. Teachers learn for {teacher} steps, students for {student}, and
from clips without labels too: they may pass a teacher that was not trained to its end."""
STREAM = """\
*right by*: frame of a clip, median over clips, after which its answer is right and stays so. *in a stream*: share of
the frames whose answer names what is shown, where the clips come as one stream that begins half a clip early and
nothing tells the runner where a clip begins: a window then lies half over one clip and half over the next."""


@dataclass(frozen=True)
class Found:
    """Everything that was measured.

    Args:
        plan: the settings.
        trainings: by name.
        notes: of the trainings, by name: ``figures``, ``seconds``, ``commit``.
        evaluations: by table, network and seed.
    """

    plan: Benchmark
    trainings: dict[str, Training]
    notes: dict[str, dict[str, Any]]
    evaluations: dict[tuple[str, str, int], ClipEvaluation]

    def over_seeds(self, table: str, network: str) -> list[ClipEvaluation]:
        """The evaluations of one network."""
        return [self.evaluations[table, network, seed] for seed in self.plan.seeds]

    def validated(self, table: str, network: str, row: str) -> list[float]:
        """Top-1 on validation clips in percent, one a seed for which the row was trained."""
        names = (
            name_of(table, network, row, seed) for seed in range(1 + max(map(_seed, self.trainings.values())))
        )
        return [100 * self.notes[name]["figures"]["top1"] for name in names if name in self.notes]


def _seed(training: Training) -> int:
    return training.seed


def claims(found: Found) -> list[Claim]:
    """Each claim: what is claimed, what was measured, whether it holds."""
    plan = found.plan
    proofs: list[Claim] = []
    for table, networks in (("fewer", plan.fewer.families), ("smaller", plan.smaller.networks)):
        what = (
            f"{plan.fewer.samples} of {plan.fewer.clips.length} frames"
            if table == "fewer"
            else "half the side"
        )
        for network in networks:
            evaluations = found.over_seeds(table, network)
            proofs += _accuracy(f"{network}, {what}", evaluations)
            proofs += _cheaper(f"{network}, {what}", evaluations, table)
    return proofs


def _accuracy(what: str, evaluations: Sequence[ClipEvaluation]) -> list[Claim]:
    lost = _points(evaluations, "teacher", "student")
    gained = _points(evaluations, "student", "rival")
    beside = f"{lost:.2f} below" if lost >= 0 else f"{-lost:.2f} above"
    return [
        (f"{what}: at most {WITHIN:g} points below its teacher", beside, lost <= WITHIN),
        (f"{what}: at least {ABOVE:g} points above the same without a teacher", f"{gained:.2f} above", gained >= ABOVE),
    ]  # fmt: skip


def _points(evaluations: Sequence[ClipEvaluation], better: str, worse: str) -> float:
    """How many points of top-1 the first row is above the second, mean over seeds."""
    return float(np.mean([100 * (_top1(e.row(better)) - _top1(e.row(worse))) for e in evaluations]))


def _top1(row: ClipRow) -> float:
    return row.scores["top1"]


def _cheaper(what: str, evaluations: Sequence[ClipEvaluation], table: str) -> list[Claim]:
    speedups = [evaluation.row("student").timing.speedup.median for evaluation in evaluations]
    slowest = min(speedups)
    if table == "smaller":
        return [
            (f"{what}: at least {SMALLER_SPEED:g} times faster", f"{slowest:.2f} times", slowest >= SMALLER_SPEED)
        ]  # fmt: skip
    work = [
        1 - (e.row("student").macs or 0) / (e.row("teacher").macs or 1)
        for e in evaluations
        if e.row("student").macs is not None
    ]
    least, time = min(work, default=0.0), 1 - 1 / slowest
    return [
        (f"{what}: multiply-accumulates fall by at least {FEWER_MACS:.0%}", f"{least:.1%}", least >= FEWER_MACS),
        (f"{what}: measured time falls by at least {FEWER_TIME:.0%}", f"{time:.1%}", time >= FEWER_TIME),
    ]  # fmt: skip


def table_of(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def spread(values: Sequence[float]) -> str:
    """Mean, with the least and the greatest where there are several."""
    if not values:
        return ""
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f}-{max(values):.1f})"


def _measured(found: Found, table: str, networks: Iterable[str], titles: dict[str, str]) -> str:
    """What the bundles do and cost, a line for each row of each network."""
    lines = []
    for network in networks:
        evaluations = found.over_seeds(table, network)
        for name in dict.fromkeys(row.name for e in evaluations for row in e.rows):
            rows = [row for e in evaluations for row in e.rows if row.name == name]
            lines.append((network, titles.get(name, name), *_cells(rows)))
    head = ("network", "row", "top-1", "frames seen", "MACs a clip", "ms a clip", "speed-up", "ms a seen frame",
            "ms a skipped frame", "state, bytes")  # fmt: skip
    return table_of(head, lines)


def _cells(rows: Sequence[ClipRow]) -> tuple[str, ...]:
    def median(value: Callable[[ClipRow], float]) -> float:
        return float(np.median([value(row) for row in rows]))

    skipped = [row.timing.skipped_ms for row in rows if row.timing.skipped_ms is not None]
    return (
        spread([100 * _top1(row) for row in rows]),
        f"{rows[0].seen:g}",
        macs(rows[0].macs),
        milliseconds(median(lambda row: row.timing.clip_ms.median)),
        " ".join(f"{row.timing.speedup.median:.2f}" for row in rows),
        milliseconds(median(lambda row: row.timing.seen_ms)),
        f"{np.median(skipped):.4f}" if skipped else "-",
        str(rows[0].state_bytes),
    )


def _streams(found: Found) -> str:
    lines = []
    for (table, network, seed), evaluation in found.evaluations.items():
        if table == "fewer" and seed == found.plan.seeds[0]:
            for row in evaluation.rows:
                settled = "-" if row.answers.settled is None else f"{row.answers.settled:g}"
                streamed = "-" if row.streamed is None else f"{100 * row.streamed.right:.1f}"
                at = [
                    f"{100 * row.answers.by_frame[place]:.0f}"
                    for place in _quarters(evaluation.source.length)
                ]
                lines.append((network, row.name, *at, settled, streamed))
    length = found.plan.fewer.clips.length
    head = (
        "network",
        "row",
        *(f"after {place + 1}" for place in _quarters(length)),
        "right by",
        "in a stream",
    )
    return table_of(head, lines)


def _quarters(length: int) -> list[int]:
    return [length * quarter // 4 - 1 for quarter in range(1, 5)]


def _losses(found: Found) -> str:
    fewer = found.plan.fewer
    name = fewer.compared
    lines = [("teacher", spread(found.validated("fewer", name, "teacher")))]
    lines += [
        (row, spread(found.validated("losses", name, row)))
        for row in (FEWER_BASELINE, *fewer.families[name].rows())
    ]
    return table_of(("row", name), lines)


def _samplings(found: Found) -> str:
    fewer = found.plan.fewer

    def cell(sampling: str, row: str, own: str) -> str:
        table, named = ("losses", row) if sampling == "uniform" else ("samplings", own)
        return spread(found.validated(table, fewer.compared, named))

    lines = [
        (
            sampling,
            cell(sampling, FEWER_BASELINE, f"{sampling}, no teacher"),
            cell(sampling, FEWER_CLAIMED, f"{sampling}, distilled"),
        )
        for sampling in fewer.samplings
    ]
    return table_of(("sampling", "no teacher", "distilled"), lines)


def _missing(found: Found) -> list[str]:
    """Rows of the plan that are empty because nobody trained them."""
    names = [name for name in found.trainings if name not in found.notes]
    return [f"Not trained, and so left empty: {', '.join(names)}."] if names else []


def results(found: Found, command: str, proofs: Sequence[Claim]) -> str:
    """RESULTS.md."""
    plan = found.plan
    first = next(iter(found.evaluations.values()))
    conditions = first.conditions
    commits = dict.fromkeys(str(note["commit"]) for note in found.notes.values())
    measured = dict.fromkeys(str(e.conditions.commit) for e in found.evaluations.values())
    fewer, smaller = plan.fewer, plan.smaller
    stride = fewer.clips.length // fewer.samples
    titles = {"student": f"student: {FEWER_CLAIMED}", "rival": "student without a teacher"}
    titles |= {f"student {INT8}": "the same student in INT8"}
    low = titles | {"student": f"student: {SMALLER_CLAIMED}", "rival": f"student: {SMALLER_BASELINE}"}
    low |= {
        bundle_folder(training).name: training.row
        for training in found.trainings.values()
        if training.table == "smaller"
    }
    warnings = dict.fromkeys(
        f"{network}, seed {seed}: {warning}"
        for (_, network, seed), e in found.evaluations.items()
        for warning in e.warnings
    )
    lines = [
        "# Clip classifiers that see fewer and smaller frames", "",
        f"Written by `{command}`; settings in settings.py. Machine: {conditions.cpu}, {conditions.cores} cores; "
        f"{conditions.date}; trained at commit {', '.join(commits)}, measured at commit {', '.join(measured)}. "
        f"Seeds of what is claimed: {', '.join(map(str, plan.seeds))}; of the other rows: "
        f"{', '.join(map(str, plan.further_seeds))}. Clips of a seed: {fewer.clips.train} with labels and "
        f"{fewer.clips.unlabelled} without; {fewer.clips.validation} to validate, {fewer.clips.test} to test; noise "
        f"{fewer.clips.noise:g} grey levels. In the table of smaller frames {smaller.clips.train} with labels and "
        f"{smaller.clips.unlabelled} without, noise {smaller.clips.noise:g} and things {smaller.clips.size:g} times as "
        "large.", "",
        HOW, "",
        "## Fewer frames", "",
        FEWER.format(
            length=fewer.clips.length, samples=fewer.samples, stride=stride, twice=2 * stride,
            teacher=fewer.teacher.steps, student=fewer.student.steps,
        ), "",
        _measured(found, "fewer", fewer.families, titles),
        f"Losses, singly and together, serial (a trained teacher, frozen) unless said; {fewer.compared}, "
        f"{fewer.short.steps} steps in place of {fewer.student.steps}:", "",
        _losses(found),
        f"Which frames are seen, {fewer.compared}, as many steps; a device sees them evenly spread (uniform):", "",
        _samplings(found),
        f"How soon an answer is right, seed {plan.seeds[0]}: top-1 after so many frames of a clip.", "",
        STREAM, "",
        _streams(found),
        "## Smaller frames", "",
        SMALLER.format(
            length=smaller.clips.length, high=smaller.clips.side, low=smaller.side, teacher=smaller.teacher.steps,
            student=smaller.student.steps,
        ), "",
        _measured(found, "smaller", smaller.networks, low),
        "## Claims", "",
        table_of(("claim", "measured", "holds"), [(a, b, "yes" if c else "**no**") for a, b, c in proofs]),
        *(f"Warning: {warning}" for warning in warnings),
        *_missing(found),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def document(found: Found, command: str, proofs: Sequence[Claim]) -> dict[str, Any]:
    """results.json: every figure behind the tables, but no raw times."""
    leave_out = {"rows": {"__all__": {"timing": {"runs_ms"}}}, "bundles": {"__all__": {"provenance"}}}
    return {
        "command": command,
        "claims": [{"claim": claim, "measured": value, "holds": holds} for claim, value, holds in proofs],
        "trainings": {
            name: {"recipe": training.recipe.model_dump(mode="json"), **found.notes[name]}
            for name, training in found.trainings.items()
            if name in found.notes
        },
        "evaluations": [
            {"table": table, "network": network, "seed": seed, **e.model_dump(mode="json", exclude=leave_out)}
            for (table, network, seed), e in found.evaluations.items()
        ],
    }
