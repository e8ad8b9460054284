"""What the front says in words: tables, the recovered shares, the claims."""

from __future__ import annotations

from dataclasses import dataclass

from plan import GAMMA4
from settings import INT8, Benchmark

from edge_sdk.evaluate.front import Front
from edge_sdk.evaluate.front.document import FrontRow
from edge_sdk.profile.table import CostTable

# At equal mean latency a pair must recover so much of what lies between the per-frame network and the teacher.
ASKED = {5: 0.7, 10: 0.5}
TOLERATED = 0.9


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
        for interval, asked in ASKED.items():
            if interval in plan.teacher.intervals:
                proofs.append(_recovered(found, engine, interval, asked))
                proofs.append(_beats_baselines(found, engine, interval))
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


def _recovered(found: Front, engine: str, interval: int, asked: float) -> Claim:
    text = f"{engine}, K={interval}: the best pair recovers at least {asked}"
    rows = [row for row in _pairs(found, engine, interval) if row.who != GAMMA4]
    shares = {
        row.who: row.recovered.share for row in rows if row.recovered and row.recovered.share is not None
    }
    if not shares:
        return Claim(text, "no pair has a share", False)
    best = max(shares, key=lambda who: shares[who])
    return Claim(text, f"{shares[best]:.2f} ({best})", shares[best] >= asked)


def _beats_baselines(found: Front, engine: str, interval: int) -> Claim:
    best = max(_pairs(found, engine, interval), key=lambda row: row.labels)
    others = {
        row.kind: row.labels
        for row in found.rows
        if row.engine == engine and row.interval == interval and row.kind in ("copy", "flow")
    }
    shown = ", ".join(f"{kind} {labels:.4f}" for kind, labels in others.items())
    holds = all(best.labels > labels for labels in others.values())
    return Claim(f"{engine}, K={interval}: beats copy and flow", f"{best.labels:.4f} against {shown}", holds)


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
        "the way from the best per-frame network of the same mean latency (interpolated between the widths) to the "
        "teacher, the share that a pair goes; in brackets where it is faster than every network, beside the fastest.",
        "",
        *_who(plan),
        "",
        "| precision | who | K | mIoU | mean ms (IQR) | speed-up | ms between keyframes | recovered | state MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(row) for row in found.rows),
        "",
        "## Cost tables",
        "",
    ]
    for precision, table in tables.items():
        lines += [
            f"{precision}: {len(table.checked)} random students, predicted and measured ms, {table.rounds} rounds; "
            f"commit {table.commit}, {table.created}:",
            "",
        ]
        lines += ["| predicted | measured (IQR) | off |", "| --- | --- | --- |"]
        lines += [
            f"| {one.predicted_ms:.2f} | {one.ms.median:.2f} ({one.ms.iqr:.2f}) | {one.off:+.0%} |"
            for one in table.checked
        ]
        lines.append("")
    lines += ["## Claims", "", "| claim | measured | holds |", "| --- | --- | --- |"]
    lines += [f"| {one.text} | {one.found} | {'yes' if one.holds else '**no**'} |" for one in proofs]
    lines += ["", *(f"Warning: {text}" for text in found.warnings)]
    if missing:
        lines += ["", f"Not made, and so left out: {', '.join(missing)}."]
    return "\n".join(lines).rstrip() + "\n"


def _who(plan: Benchmark) -> list[str]:
    """What the rows are, and how long each learned."""
    nets, joined, gamma4 = plan.net_course, plan.join_course, plan.gamma4_course
    return [
        f"- `teacher`: {plan.teacher_course.steps} steps of {plan.teacher_course.batch} labelled frames.",
        "- `widthN`: a network for every frame, taught by the teacher and the labels; begins from channels of the "
        f"teacher: {nets.steps} steps of {nets.batch}.",
        "- `joinedN`: the pair of the teacher and widthN, which learns on with confidence and motion: "
        f"{joined.steps} steps of {joined.batch} pairs of frames.",
        "- `widthN_after`: that pair's student alone on every frame, so that no pair's student has learned more than "
        "a rival.",
        f"- `{GAMMA4}`: the published delta layers, low rank by 4, from the teacher: {gamma4.steps} steps of "
        f"{gamma4.batch} pairs.",
        "- others: students of single blocks, searched under a budget with the cost table, "
        f"{plan.pair_course.steps} steps of {plan.pair_course.batch} pairs.",
    ]


def _line(row: FrontRow) -> str:
    times = row.times
    between = "" if times.between_ms is None or row.interval == 1 else f"{times.between_ms:.2f}"
    cells = [
        row.engine, row.who, str(row.interval), f"{row.labels:.4f}",
        f"{times.mean_ms.median:.2f} ({times.mean_ms.iqr:.2f})", f"{times.speedup.median:.2f}", between,
        _share(row), f"{row.state_bytes / 1e6:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _share(row: FrontRow) -> str:
    found = row.recovered
    if found is None:
        return ""
    if found.share is not None:
        return f"{found.share:.2f}"
    return "-" if found.beside_fastest is None else f"({found.beside_fastest:.2f})"
