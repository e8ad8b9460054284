"""The front: pairs of several budgets beside networks of several widths, in float32 and INT8; writes RESULTS.md.

    python benchmarks/front/run.py [--scene camvid] [--teacher 32_views] [--share 0.5]
                                   [--only NAME] [--only-measure] [--only-words] [--trial] [--list]

Run it from the repository's root; everything goes to runs/front. A training that is done is not done again, and one
that was stopped goes on from its last checkpoint; ``--only`` runs one of those that ``--list`` names, so that several
can run at once. ``--trial`` goes the whole way with a few steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import plan as plans
import words
from settings import FULL, INT8, SCENES, TEACHERS, TRIAL, Benchmark

from edge_sdk.build.pipeline import build
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.bundle import Bundle
from edge_sdk.cli.progress import RichProgress
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.compile.calibrate import CalibrateRecipe, DrawSettings, calibrate
from edge_sdk.distill import DistillRecipe, TrainRecipe, distill, train_teacher
from edge_sdk.distill.cross import load_cross
from edge_sdk.distill.cross_recipe import CrossRecipe
from edge_sdk.distill.cross_training import distill_cross
from edge_sdk.distill.modules import save_checkpoint
from edge_sdk.evaluate.front import Front, measure_front
from edge_sdk.files import write_text
from edge_sdk.profile.prepare.stage import profile
from edge_sdk.profile.table import CostTable
from edge_sdk.progress import Progress

COMMAND = "python benchmarks/front/run.py"


@dataclass(frozen=True)
class Job:
    """One stage: what it leaves, what must be there before, and how it is done."""

    result: Path
    after: tuple[str, ...]
    do: Callable[[Progress], object]


def jobs(plan: Benchmark) -> dict[str, Job]:
    """Every training and cost table by name, in an order in which what is needed comes before."""
    found = {}
    if not plan.teacher.views:
        found[plans.TEACHER] = _training(plans.teacher_recipe(plan), ())
    for name, given in plans.net_recipes(plan).items():
        found[name] = _training(given, () if plan.teacher.views else (plans.TEACHER,))
    for student in plan.teacher.students:
        recipe = plans.joined_recipe(plan, student)
        after = tuple(name for name in (plans.TEACHER, plans.net_name(student.width)) if name in found)
        found[plans.joined_name(student)] = _training(recipe, after)
    if not plan.teacher.budgets:
        return found
    found[plans.GAMMA4] = _training(plans.gamma4_recipe(plan), (plans.TEACHER,))
    for precision in plan.precisions:
        table = plans.profile_recipe(plan, precision)
        found[f"cost_{precision}"] = Job(table.out / "table.json", (), partial(_profile, table))
        for budget in plan.teacher.budgets:
            name = plans.pair_name(precision, budget)
            after = (plans.TEACHER, f"cost_{precision}")
            result = plan.folder / name / "student.pt"
            found[name] = Job(result, after, partial(_searched, plan, precision, budget))
    return found


def _training(recipe: TrainRecipe | DistillRecipe | CrossRecipe, after: tuple[str, ...]) -> Job:
    if isinstance(recipe, TrainRecipe):
        return Job(recipe.out / "model.pt", after, lambda progress: train_teacher(recipe, progress=progress))
    if isinstance(recipe, CrossRecipe):
        return Job(recipe.out / "student.pt", after, partial(_joined, recipe))
    return Job(recipe.out / "student.pt", after, lambda progress: distill(recipe, progress=progress))


def _joined(recipe: CrossRecipe, progress: Progress) -> None:
    """The pair, and its student's weights by themselves."""
    pair = Path(distill_cross(recipe, progress=progress).checkpoint)
    network = load_cross(pair)[0].student.network
    save_checkpoint(plans.alone_weights(pair), {"state_dict": network.state_dict()})


def _profile(recipe: plans.ProfileRecipe, progress: Progress) -> None:
    profile(recipe, progress=progress)


def _searched(plan: Benchmark, precision: str, budget: float, progress: Progress) -> None:
    """Search and fine-tune under a share of the reference student's time."""
    table = CostTable.load(plan.folder / f"cost_{precision}" / "table.json")
    budget_ms = plans.budget_of(table, budget)
    sys.stderr.write(f"   budget {budget_ms:.2f} ms\n")
    distill(plans.pair_recipe(plan, precision, budget, budget_ms), progress=progress)


def run(plan: Benchmark, every: dict[str, Job], progress: Progress) -> None:
    """All jobs that are not done, one after the other."""
    waiting = [name for name, job in every.items() if not job.result.is_file()]
    began_s = time.monotonic()
    for done, name in enumerate(waiting):
        sys.stderr.write(f"== {done + 1}/{len(waiting)} {name}\n")
        every[name].do(progress)
        spent_s = time.monotonic() - began_s
        left_s = spent_s / (done + 1) * (len(waiting) - done - 1)
        sys.stderr.write(f"   {spent_s / 60:.1f} min so far, about {left_s / 60:.0f} min left\n")


def built(plan: Benchmark, recipe: ExportRecipe, made_of: Path, progress: Progress) -> Bundle:
    """The bundle of a network or pair, in float32 and INT8; made anew where the checkpoint it is of is newer."""
    scene, folder = SCENES[plan.scene], recipe.out
    manifest = folder / "manifest.json"
    if manifest.is_file() and manifest.stat().st_mtime > made_of.stat().st_mtime:
        found = Bundle.open(folder)
        if INT8 in found.manifest.variants:
            return found
    bundle = export(recipe, progress=progress)
    recorded = folder.with_suffix(".npz")
    recorded.unlink(missing_ok=True)
    calibrate(
        CalibrateRecipe(
            bundle=bundle.path,
            draw=DrawSettings(sources=scene.stills, clips=plan.calibration, frames=2),
            out=recorded,
        ),
        progress=progress,
    )
    int8 = BuildRecipe(
        bundle=bundle.path, calibration=recorded, backends=("onnxruntime",), precisions=("int8",)
    )
    return build(int8, progress=progress).bundle


def measured(plan: Benchmark, every: dict[str, Job], progress: Progress) -> Front:
    """Everything in one run, beside the cost tables' checks."""
    trained = {name: job.result for name, job in every.items() if job.result.suffix == ".pt"}
    missing = [name for name, result in trained.items() if not result.is_file()]
    pairs = [name for name in trained if trained[name].name == "student.pt" and name not in missing]
    if lacking := [name for name in missing if trained[name].name == "model.pt" or "joined" in name]:
        raise SystemExit(f"{lacking[0]}: not trained yet: {COMMAND} --only {lacking[0]}")
    teacher = plans.teacher(plan)
    built(plan, plans.network_recipe(plan, plans.TEACHER, teacher), plans.teacher_weights(plan), progress)
    for name, weights in {**plans.rivals(plan), **{name: trained[name] for name in pairs}}.items():
        built(plan, plans.export_recipe(plan, name, weights), weights, progress)
    for student in plan.teacher.students:
        pair = trained[plans.joined_name(student)]
        network = plans.alone(plan, student, plans.alone_weights(pair))
        built(plan, plans.network_recipe(plan, plans.alone_name(student), network), pair, progress)
    recipe = plans.front_recipe(plan, [plans.bundle_of(plan, name) for name in pairs])
    found = measure_front(recipe, progress=progress)
    found.write_report(plan.folder / "front")
    return found


def write_results(plan: Benchmark, found: Front, every: dict[str, Job]) -> list[words.Claim]:
    """RESULTS.md beside this file."""
    costs = {
        precision: job for precision in plan.precisions if (job := every.get(f"cost_{precision}")) is not None
    }
    tables = {name: CostTable.load(job.result) for name, job in costs.items() if job.result.is_file()}
    proofs = words.claims(plan, found, tables)
    missing = [name for name, job in every.items() if not job.result.is_file()]
    path = results_file(plan).with_suffix(".md")
    text = words.results(plan, found, tables, proofs, missing, _command(plan))
    write_text(path.with_name(path.name.replace("results", "RESULTS")), text)
    return proofs


def _command(plan: Benchmark) -> str:
    """By which these results come again."""
    scene = "" if plan.scene == FULL.scene else f" --scene {plan.scene}"
    teacher = f" --teacher {plan.teacher.name}" if plan.teacher.views else ""
    share = f" --share {plan.share:g}" if plan.share != 1 else ""
    return COMMAND + scene + teacher + share


def results_file(plan: Benchmark) -> Path:
    """Of the figures of this scene and teacher."""
    named = [plan.scene] if plan.scene != FULL.scene else []
    if plan.teacher.views:
        named.append("views")
    if plan.share != 1:
        named.append(f"{round(100 * plan.share)}")
    return plan.results / ("_".join(["results", *named]) + ".json")


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scene", choices=sorted(SCENES), default=FULL.scene)
    parser.add_argument(
        "--teacher", choices=sorted(TEACHERS), default=FULL.teacher.name, help="the keyframes' network"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of every training's steps; default 1")
    parser.add_argument("--only", metavar="NAME", help="one training or cost table alone")
    parser.add_argument("--only-measure", action="store_true", help="measure what is trained")
    parser.add_argument(
        "--only-words", action="store_true", help="write RESULTS.md anew from what was measured"
    )
    parser.add_argument("--trial", action="store_true", help="a few steps of everything")
    parser.add_argument("--list", action="store_true", help="name what there is to do")
    given = parser.parse_args()
    if not 0 < given.share <= 1:
        parser.error(f"--share: expected more than 0, at most 1, got {given.share}")
    plan = replace(TRIAL if given.trial else TEACHERS[given.teacher], scene=given.scene)
    if given.share != 1:
        plan = plan.shortened(given.share)
    every = jobs(plan)
    if given.list:
        for name, job in every.items():
            sys.stdout.write(f"{'done' if job.result.is_file() else '-':4} {name}\n")
        return
    with RichProgress() as progress:
        if given.only is not None:
            if given.only not in every:
                parser.error(f"--only: expected one of {', '.join(every)}, got {given.only}")
            if lacking := [name for name in every[given.only].after if not every[name].result.is_file()]:
                parser.error(f"--only {given.only}: needs {lacking[0]} first: {COMMAND} --only {lacking[0]}")
            every[given.only].do(progress)
            return
        if given.only_words:
            found = Front.model_validate_json(results_file(plan).read_text(encoding="utf-8"))
        else:
            if not given.only_measure:
                run(plan, every, progress)
            found = measured(plan, every, progress)
            write_text(results_file(plan), found.to_json() + "\n")
        proofs = write_results(plan, found, every)
    for proof in proofs:
        sys.stdout.write(f"{'holds' if proof.holds else 'FAILS':5} {proof.text}: {proof.found}\n")


if __name__ == "__main__":
    main()
