"""What the front says in words: tables, the recovered shares, the claims."""

from __future__ import annotations

import re
from dataclasses import dataclass

from plan import GAMMA4, TEACHER, pair_name
from settings import INT8, Benchmark

from edge_sdk.evaluate.front import Front
from edge_sdk.evaluate.front.document import FrontRow
from edge_sdk.evaluate.front.recovered import Point, Recovered, recovered
from edge_sdk.profile.table import CostTable

# Rows of networks that see half of each side.
HALF = re.compile(r"_\d+_after$")
# At equal mean latency a pair must recover so much of what lies between the per-frame network and the teacher.
ASKED = {5: 0.7, 10: 0.5}
TOLERATED = 0.9
# Of a bigger teacher: keyframe interval, points of mIoU, times as fast.
SPARED = (10, 0.5, {"float32": 3, INT8: 2})


@dataclass(frozen=True)
class Claim:
    """What is claimed, what was found, whether it holds."""

    text: str
    found: str
    holds: bool


def claims(plan: Benchmark, found: Front, tables: dict[str, CostTable]) -> list[Claim]:
    """Everything that the front is to show."""
    proofs = []
    for engine in ("float32", INT8):
        if plan.teacher.views:
            proofs.append(_little_lost(found, engine))
            continue
        for interval, asked in ASKED.items():
            if interval in plan.teacher.intervals:
                proofs += _worth_having(found, engine, interval, asked)
    for precision, table in tables.items():
        if table.checked:
            right = round((table.within or 0.0) * len(table.checked))
            proofs.append(
                Claim(
                    f"{precision}: the cost table is within 15 % for nine of ten random students",
                    f"{right} of {len(table.checked)}",
                    (table.within or 0.0) >= TOLERATED,
                )
            )
    return proofs


def _worth_having(found: Front, engine: str, interval: int, asked: float) -> list[Claim]:
    """That the pair which recovers most recovers enough, and that it beats what needs no network."""
    where = f"{engine}, K={interval}"
    rows = _pairs(found, engine, interval)
    proofs = []
    for rivals, shares in (
        ("networks of every width", {row.who: beside_widths(found, row) for row in rows}),
        ("those and networks of half frames", {row.who: row.recovered for row in rows}),
    ):
        known = {who: one.share for who, one in shares.items() if one and one.share is not None}
        text = f"{where}: beside {rivals} the best pair recovers at least {asked}"
        if not known:
            proofs.append(Claim(text, "no pair has a share", False))
            continue
        best = max(known, key=lambda who: known[who])
        proofs.append(Claim(text, f"{known[best]:.2f} ({best})", known[best] >= asked))
    others = {
        other.kind: other.labels
        for other in found.rows
        if other.engine == engine and other.interval == interval and other.kind in ("copy", "flow")
    }
    shown = ", ".join(f"{kind} {labels:.4f}" for kind, labels in others.items())
    told = {
        row.name: one.share for row in rows if (one := beside_widths(found, row)) and one.share is not None
    }
    recovers = max((row for row in rows if row.name in told), key=lambda row: told[row.name], default=None)
    for what, row in (
        ("the pair that recovers most", recovers),
        ("the most accurate pair", max(rows, key=lambda row: row.labels)),
    ):
        if row is not None:
            beats = all(row.labels > labels for labels in others.values())
            said = f"{row.labels:.4f} ({row.who}) against {shown}"
            proofs.append(Claim(f"{where}: {what} beats copy and flow", said, beats))
    return proofs


def beside_widths(found: Front, row: FrontRow) -> Recovered | None:
    """What a pair gains over the networks that see whole frames alone; they differ in width."""
    if row.kind != "pair":
        return None
    points = {
        other.who: Point(
            name=other.who, ms=other.times.mean_ms.median, accuracy=other.labels_at(row.interval)
        )
        for other in found.of(row.engine, "net", "teacher")
        if not HALF.search(other.who)
    }
    pair = Point(name=row.who, ms=row.times.mean_ms.median, accuracy=row.labels)
    return recovered(pair, [point for name, point in points.items() if name != TEACHER], points[TEACHER])


def _little_lost(found: Front, engine: str) -> Claim:
    """That one pair loses little at K=10 and is several times faster, against the teacher in the same precision."""
    interval, points, faster = SPARED
    text = f"{engine}, K={interval}: at most {points} points lost and at least {faster[engine]} times faster"
    teacher = next(row for row in found.rows if row.kind == "teacher" and row.engine == engine)
    rows = [
        (100 * (teacher.labels_at(interval) - row.labels), row.times.speedup.median, row.who)
        for row in _pairs(found, engine, interval)
    ]
    if not rows:
        return Claim(text, "no pair", False)
    good = [row for row in rows if row[1] >= faster[engine]]
    lost, speedup, who = min(good or rows)
    return Claim(text, f"{lost:.2f} points lost, {speedup:.2f} times ({who})", bool(good) and lost <= points)


def _pairs(found: Front, engine: str, interval: int) -> list[FrontRow]:
    return [
        row for row in found.rows if row.kind == "pair" and row.engine == engine and row.interval == interval
    ]


def results(
    plan: Benchmark, found: Front, tables: dict[str, CostTable], proofs: list[Claim], missing: list[str],
    command: str,
) -> str:  # fmt: skip
    """RESULTS.md."""
    conditions = found.conditions
    lines = [
        f"# {plan.scene}: pairs beside smaller networks on every frame",
        "",
        f"Written by `{command}`; settings in settings.py. Teacher: DDRNet-23-slim of width {plan.teacher.width}. "
        f"Machine: {conditions.cpu}, {conditions.cores} cores, {conditions.threads or 'all'} threads; commit "
        f"{conditions.commit}; {conditions.date}.",
        "",
        f"Median of {plan.repeats} interleaved runs; accuracy over every alignment of the keyframes. *recovered*: of "
        "the way from the best per-frame network of the same mean latency (interpolated) to the teacher, the share "
        "that a pair goes; in brackets where it is faster than every network, beside the fastest. Once beside the "
        "networks of several widths, and once beside those that see half of each side as well. *teacher*: its mIoU "
        "over the same frames, of which a clip's first ones are fewer steps away from a keyframe and so count less "
        "often; the networks' shares rest on theirs likewise.",
        "",
        *_who(plan, {row.who for row in found.rows}),
        "",
        "| precision | who | K | mIoU | teacher | mean ms (IQR) | speed-up | ms between keyframes "
        "| recovered, beside widths | beside all | state MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(found, row) for row in found.rows),
        "",
    ]
    lines += _tables(tables)
    lines += ["## Claims", "", "| claim | measured | holds |", "| --- | --- | --- |"]
    lines += [f"| {one.text} | {one.found} | {'yes' if one.holds else '**no**'} |" for one in proofs]
    lines += ["", *(f"Warning: {text}" for text in found.warnings)]
    if missing:
        lines += ["", f"Not made, and so left out: {', '.join(missing)}."]
    return "\n".join(lines).rstrip() + "\n"


def _who(plan: Benchmark, found: set[str]) -> list[str]:
    """What the rows are, and how long each learned."""
    nets, joined, half, gamma4 = plan.net_course, plan.join_course, plan.half_course, plan.gamma4_course
    views, course = plan.teacher.views, plan.teacher_course
    said = [f"- `teacher`: {course.steps} steps of {course.batch} labelled frames."]
    if views:
        shares = ", ".join(f"{view:g}" for view in views)
        said = [
            f"- `teacher`: the mean of `once` over the frame at {shares} times each side; "
            f"{sum(view**2 for view in views):.1f} times its work.",
            "- `once`: the network that it looks with, looking once.",
            f"- `width{plan.teacher.width}`: the same, taught by the teacher's answers alone, to its frames and to "
            f"others that nobody labelled ({plan.others_share:.0%}): {nets.steps} steps of {nets.batch}.",
        ]
    elif plan.teacher.nets:
        said.append(
            "- `widthN`: a network for every frame, taught by the teacher and the labels; begins from channels of the "
            f"teacher: {nets.steps} steps of {nets.batch}."
        )
    begins = "`widthN`, which learns on with confidence and motion"
    if views:
        begins = f"`width{plan.teacher.width}`, which stays as it is and is blended with the last answer, moved along"
    said.append(
        f"- `joinedN`: the pair of the teacher and {begins}: {joined.steps} steps of {joined.batch} pairs of frames."
    )
    if any(student.scale < 1 for student in plan.teacher.students):
        said.append(
            "- `joinedN_50`: the same of a student that sees half of each side of the frame: "
            f"{half.steps} steps of {half.batch} pairs."
        )
    said.append(
        "- `width..._after`: that pair's student alone on every frame, so that no pair's student has learned more than "
        "a rival."
    )
    if GAMMA4 in found:
        said.append(
            f"- `{GAMMA4}`: the published delta layers, low rank by 4, from the teacher: {gamma4.steps} steps of "
            f"{gamma4.batch} pairs."
        )
    searched = {
        pair_name(precision, budget) for precision in plan.precisions for budget in plan.teacher.budgets
    }
    if searched & found:
        said.append(
            "- `PRECISION_SHARE`: students of single blocks, searched under a budget, that share of the reference "
            "student's time in percent or what the cheapest student takes, with the cost table: "
            f"{plan.pair_course.steps} steps of {plan.pair_course.batch} pairs."
        )
    return said


def _tables(tables: dict[str, CostTable]) -> list[str]:
    """What each cost table said of random students, and what was measured."""
    lines = ["## Cost tables", ""] if tables else []
    for precision, table in tables.items():
        lines += [
            f"{precision}: {len(table.checked)} random students, predicted and measured ms, {table.rounds} rounds; "
            f"commit {table.commit}, {table.created}:",
            "",
            "| predicted | measured (IQR) | off |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {one.predicted_ms:.2f} | {one.ms.median:.2f} ({one.ms.iqr:.2f}) | {one.off:+.0%} |"
            for one in table.checked
        ]
        lines.append("")
    return lines


def _line(found: Front, row: FrontRow) -> str:
    times = row.times
    between = "" if times.between_ms is None or row.interval == 1 else f"{times.between_ms:.2f}"
    cells = [
        row.engine, row.who, str(row.interval), f"{row.labels:.4f}",
        "" if row.teacher is None else f"{row.teacher:.4f}",
        f"{times.mean_ms.median:.2f} ({times.mean_ms.iqr:.2f})", f"{times.speedup.median:.2f}", between,
        _share(beside_widths(found, row)), _share(row.recovered), f"{row.state_bytes / 1e6:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _share(found: Recovered | None) -> str:
    if found is None:
        return ""
    if found.share is not None:
        return f"{found.share:.2f}"
    return "-" if found.beside_fastest is None else f"({found.beside_fastest:.2f})"
