"""The benchmark of clip classifiers: train, distil, export, run; writes RESULTS.md and results.json beside this file.

    python benchmarks/clips/run.py [--jobs 2] [--only-measure] [--trial] [--list]

Run it from the repository's root; everything goes to runs/clips. Trainings run as processes of their own with one
thread each, ``--jobs`` at once. One that is done is not done again, and one that was stopped goes on from its last
checkpoint; one whose settings (settings.py) have changed is done anew. ``--trial`` goes the whole way with a few steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import words
from measure import measure, measurements
from plan import Training, trainings
from settings import FULL, TRIAL, Benchmark

from edge_sdk.cli.progress import RichProgress
from edge_sdk.distill.clips.recipes import ClipTrainRecipe
from edge_sdk.files import write_text
from edge_sdk.revision import commit_of_sources

COMMAND = "python benchmarks/clips/run.py"
_LOG = "train.log"


def train(training: Training) -> None:
    """Run one training in this process and note that it is done."""
    import torch

    from edge_sdk.distill.clips.distil import distill_clips
    from edge_sdk.distill.clips.train import train_clips

    torch.set_num_threads(1)
    began_s = time.monotonic()
    recipe = training.recipe
    with RichProgress() as progress:
        if isinstance(recipe, ClipTrainRecipe):
            report = train_clips(recipe, progress=progress)
        else:
            report = distill_clips(recipe, progress=progress)
    note = {
        "figures": report.figures, "seconds": round(time.monotonic() - began_s, 1), "commit": commit_of_sources(),
    }  # fmt: skip
    write_text(training.note, json.dumps(note, indent=1) + "\n")


def start(training: Training, trial: bool) -> subprocess.Popen[bytes]:
    """A training as a process of its own; what it says goes to a file in its folder."""
    training.recipe.out.mkdir(parents=True, exist_ok=True)
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--only", training.name, *(["--trial"] if trial else [])]
    with open(training.recipe.out / _LOG, "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **one})


def train_all(every: dict[str, Training], jobs: int, trial: bool) -> None:
    """All trainings that are not done, teachers before their students, ``jobs`` at once."""
    waiting = [training for training in every.values() if not training.note.is_file()]
    running: dict[str, subprocess.Popen[bytes]] = {}
    done, began_s, count = 0, time.monotonic(), len(waiting)
    sys.stderr.write(f"== {len(every)} trainings, {count} to do\n")
    try:
        while waiting or running:
            for training in [one for one in waiting if one.after is None or every[one.after].note.is_file()]:
                if len(running) < jobs:
                    waiting.remove(training)
                    running[training.name] = start(training, trial)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    done += 1
                    _told(every[name], process.returncode, done, count, time.monotonic() - began_s)
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _told(training: Training, code: int, done: int, count: int, spent_s: float) -> None:
    log = training.recipe.out / _LOG
    if code or not training.note.is_file():
        raise SystemExit(f"{training.name}: ended with {code}, see {log}")
    figures = json.loads(training.note.read_text())["figures"]
    left = spent_s / done * (count - done)
    sys.stderr.write(
        f"== {done}/{count} {training.name}: top-1 {100 * figures['top1']:.1f}; {spent_s / 60:.1f} min so far, about "
        f"{left / 60:.0f} min left\n"
    )


def write_results(plan: Benchmark, every: dict[str, Training]) -> list[words.Claim]:
    """Measure what is not yet measured, then RESULTS.md and results.json."""
    evaluations = {}
    with RichProgress() as progress:
        for one in measurements(plan, every):
            sys.stderr.write(f"== {one.name}\n")
            evaluations[one.table, one.network, one.seed] = measure(plan, one, progress)
    done = {name: training for name, training in every.items() if training.note.is_file()}
    notes = {name: json.loads(training.note.read_text()) for name, training in done.items()}
    found = words.Found(plan, every, notes, evaluations)
    proofs = words.claims(found)
    write_text(Path(plan.results) / "RESULTS.md", words.results(found, COMMAND, proofs))
    written = json.dumps(words.document(found, COMMAND, proofs), indent=1)
    write_text(Path(plan.results) / "results.json", written + "\n")
    return proofs


def main() -> int:
    """Run the benchmark; exit 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="trainings at once; 0: one by one in this process"
    )
    parser.add_argument("--only", metavar="NAME", help="run this training and nothing else")
    parser.add_argument("--list", action="store_true", help="name the trainings, done or not")
    parser.add_argument("--only-measure", action="store_true", help="use the networks that are there")
    parser.add_argument("--trial", action="store_true", help="a few steps each, to runs/clips_trial")
    arguments = parser.parse_args()
    plan = TRIAL if arguments.trial else FULL
    every = trainings(plan)
    if arguments.list:
        lines = (f"{'done' if one.note.is_file() else '-':5}{name}\n" for name, one in every.items())
        sys.stdout.write("".join(lines))
        return 0
    if arguments.only:
        train(every[arguments.only])
        return 0
    if not arguments.only_measure and arguments.jobs > 0:
        train_all(every, arguments.jobs, arguments.trial)
    elif not arguments.only_measure:
        for training in every.values():
            if not training.note.is_file():
                train(training)
    proofs = write_results(plan, every)
    sys.stdout.write(
        "".join(f"{'ok' if holds else 'MISSED'}: {claim}: {value}\n" for claim, value, holds in proofs)
    )
    return 0 if all(holds for _, _, holds in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
