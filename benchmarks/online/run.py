"""The benchmark of online distillation: learn on two streams, compare, write RESULTS.md and results.json beside this.

    python benchmarks/online/run.py [--only NAME ...] [--again NAME ...] [--list]

It wants data/davis and data/videos; run it from the repository's root, where nothing else runs: about 25 minutes on two
cores. Before it, once, the student's weights of before the streams and the teacher of the camera:

    edge-sdk train benchmarks/online/pretrain.yaml
    edge-sdk train benchmarks/online/teacher.yaml
    edge-sdk train benchmarks/online/pretrain_frame.yaml
    edge-sdk train benchmarks/online/pretrain_camera.yaml

Each measurement is kept under runs/online/results and made again only where its settings or bundle have changed, so a
run that was stopped goes on; ``--again`` makes one again, ``--only`` makes no others and writes no results. To try it
out, ``ONLINE_LIMIT=60`` in the environment takes that many frames of each stream; its results go to runs/online/trial.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import live
import streams
import torch
import words

from edge_sdk import open_source
from edge_sdk.adapt.judge import Judge
from edge_sdk.adapt.report import AdaptReport, StreamFacts
from edge_sdk.cli.progress import RichProgress
from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.facts import BundleFacts
from edge_sdk.files import write_text
from edge_sdk.progress import Progress

COMMAND = "python benchmarks/online/run.py"
PUBLISHED = "-published-"
OTHERS = {
    "davis-memory": "memory",
    "davis-change": "on change",
    "camera-correct": "join correct",
    "camera-refit": "refit",
}
# What measures no times may share the machine with its like, a core each: recorded masks, and trainings.
SHARED = (
    "davis-0.7",
    "davis-0.8",
    "davis-0.9",
    "davis-memory",
    "davis-change",
    "davis-offline",
    "camera-offline",
)


def measurements() -> dict[str, tuple[Callable[[Progress], Any], float]]:
    """By name: how it is made, and roughly how many seconds it takes on one of two cores."""
    found: dict[str, tuple[Callable[[Progress], Any], float]] = {
        "camera-teacher": (lambda progress: cases.teacher("camera", progress), 40),
        "davis-offline": (lambda progress: cases.offline("davis", progress), 150),
        "camera-offline": (lambda progress: cases.offline("camera", progress), 150),
    }
    for name, case in cases.CASES.items():
        found[name] = (lambda progress, name=name: cases.learn(name, progress), case.seconds)  # type: ignore[misc]
    for name in ("davis", "camera"):
        found[f"{name}-student"] = (lambda progress, name=name: cases.student(name, progress), 15)  # type: ignore[misc]
    found["pace"] = (live.measure, live.SECONDS)
    found |= {name: (lambda progress, name=name: report(name, progress), 60) for name in ("davis", "camera")}  # type: ignore[misc]
    return found


def report(name: str, progress: Progress) -> AdaptReport:
    """The report of one stream, from what was measured; copying and flow are scored here."""
    stream, bundle = streams.stream(name), streams.bundle(name, progress)
    runs = {case: cases.learn(case, progress) for case in cases.CASES if case.startswith(f"{name}-")}
    rests_on = [
        stream.uri, bundle.manifest_sha256,
        {case: run.model_dump(mode="json") for case, (run, _) in runs.items()},
    ]  # fmt: skip
    kept = cases.Kept(f"{name}-report", rests_on)
    if not kept.fresh:
        kept.write(_report(name, stream, bundle, runs, progress).model_dump(mode="json"))
    found = AdaptReport.model_validate(kept.read())
    found.write(cases.RESULTS.parent / f"{name}_report")
    return found


def _report(
    name: str, stream: streams.Stream, bundle: Any, runs: dict[str, Any], progress: Progress
) -> AdaptReport:
    teacher = cases.teacher(name, progress)
    frames = len(teacher.masks)
    judge = Judge(bundle.task.spec, teacher, parts=stream.parts)
    rows, courses, keys = [], [], {}
    for case, (run, masks) in runs.items():
        kind = "published" if PUBLISHED in case else "online"
        title = f"{kind} {run.settings.threshold:g}" + (f", {OTHERS[case]}" if case in OTHERS else "")
        row, course = judge.online(title, run, masks)
        rows.append(row)
        courses.append(course)
        if (case not in OTHERS or case == "davis-change") and PUBLISHED not in case:
            keys[title] = run.keyframes
    compared = [row for row in rows if row.name in keys]
    with open_source(stream.uri, limit=streams.LIMIT) as source:
        tick = cases.ticking(progress, f"{name}: copy and flow", frames)
        rows += judge.baselines((frame.image for frame in source), compared, keys, tick=tick)
        facts = StreamFacts(
            uri=stream.uri, frames=frames, height=bundle.size_hw[0], width=bundle.size_hw[1], fps=source.fps,
            teacher="recorded" if name == "davis" else "bundle", teacher_ms=teacher.frame_ms, parts=stream.parts,
        )  # fmt: skip
    for title, kind, found in (
        ("offline", "offline", cases.offline(name, progress)),
        ("student as it began", "frozen", cases.student(name, progress)),
    ):
        rows.append(judge.student(title, kind, found.masks, found.frame_ms))  # type: ignore[arg-type]
    return AdaptReport(
        rows=tuple(rows), courses=tuple(courses), stream=facts, task=bundle.task.spec,
        bundle=BundleFacts.of("subject", bundle), conditions=Conditions.now(1),
    )  # fmt: skip


def write_results(progress: Progress) -> list[words.Claim]:
    """RESULTS.md and results.json from what was measured."""
    reports = {name: report(name, progress) for name in ("davis", "camera")}
    pace = live.measure(progress)
    proofs = words.claims(reports["camera"], pace)
    files = sorted(path for path in cases.RESULTS.glob("*.json"))
    commits = [json.loads(path.read_text())["conditions"]["commit"] or "unknown" for path in files]
    text = words.results(COMMAND, reports, pace, proofs, commits)
    out = streams.HERE if streams.LIMIT is None else cases.RESULTS.parent
    write_text(out / "RESULTS.md", text)
    # A figure for every frame is in runs/online; here are the rows and lessons.
    leave_out = {"courses": {"__all__": {"agreement"}}, "bundle": {"provenance"}}
    found = {
        "command": COMMAND,
        "claims": [{"claim": claim, "measured": value, "holds": holds} for claim, value, holds in proofs],
        "pace": pace,
        **{name: one.model_dump(mode="json", exclude=leave_out) for name, one in reports.items()},
    }
    write_text(out / "results.json", json.dumps(found, indent=1) + "\n")
    return proofs


def beside(names: list[str], cores: list[int], told: Callable[[str], None]) -> None:
    """Make measurements that may share the machine, one a core."""
    waiting, running = list(names), {}
    while waiting or running:
        for core in cores:
            if core not in running and waiting:
                name = waiting.pop(0)
                command = [sys.executable, __file__, "--only", name]
                running[core] = name, subprocess.Popen(["taskset", "-c", str(core), *command])
        for core, (name, process) in list(running.items()):
            if process.poll() is not None:
                del running[core]
                if process.returncode:
                    for _, other in running.values():
                        other.terminate()
                    raise SystemExit(f"{name}: ended with {process.returncode}")
                told(name)
        time.sleep(0.5)


def make_all(progress: Progress) -> None:
    """Every measurement, with what is left."""
    every, began_s = measurements(), time.monotonic()
    left = {name: seconds for name, (_, seconds) in every.items()}

    def told(name: str) -> None:
        left.pop(name, None)
        cores = len(os.sched_getaffinity(0))
        rest = sum(s for n, s in left.items() if n not in SHARED) + sum(
            s for n, s in left.items() if n in SHARED
        ) / min(2, cores)
        sys.stderr.write(
            f"== {len(every) - len(left)}/{len(every)} {name}: {(time.monotonic() - began_s) / 60:.1f} min so far, "
            f"about {rest / 60:.0f} min left\n"
        )

    for name in ("davis", "camera", "camera_published", "camera_correct", "camera_open"):
        streams.bundle(name, progress)
        streams.stream(name)
    every["camera-teacher"][0](progress)
    told("camera-teacher")
    beside(list(SHARED), sorted(os.sched_getaffinity(0))[:2], told)
    for name, (make, _) in every.items():
        if name in left:
            make(progress)
            told(name)


def main() -> int:
    """Run the benchmark; exit 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = measurements()
    parser.add_argument("--only", action="append", choices=list(every), metavar="NAME")
    parser.add_argument("--again", action="append", choices=list(every), metavar="NAME", default=[])
    parser.add_argument("--list", action="store_true", help="name the measurements")
    arguments = parser.parse_args()
    if arguments.list:
        sys.stdout.write("".join(f"{name}\n" for name in every))
        return 0
    torch.set_num_threads(1)
    for name in arguments.again:
        for file in (f"{name}.json", f"{name.split('-')[0]}-report.json"):
            Path(cases.RESULTS / file).unlink(missing_ok=True)
    with RichProgress() as progress:
        if arguments.only:
            for name in arguments.only:
                every[name][0](progress)
            return 0
        make_all(progress)
        proofs = write_results(progress)
    sys.stdout.write(
        "".join(f"{'ok' if holds else 'MISSED'}: {claim}: {value}\n" for claim, value, holds in proofs)
    )
    return 0 if all(holds for _, _, holds in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
