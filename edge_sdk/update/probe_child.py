"""The process that probes: a job as JSON on stdin, the report as JSON in the file named on the command line."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from edge_sdk.bundle import FLOAT32
from edge_sdk.errors import EdgeSdkError
from edge_sdk.files import write_text
from edge_sdk.parity import CompareRecipe, compare
from edge_sdk.parity.comparison import EngineParity
from edge_sdk.update.probe import ProbedEngine, ProbeJob, ProbeReport, ProbeSettings

# Beyond the limit, after which whoever started this process should have ended it: then nobody is left to.
_GRACE_S = 5.0


def main() -> None:
    """Do the job given on stdin."""
    job = ProbeJob.model_validate_json(sys.stdin.read())
    signal.setitimer(signal.ITIMER_REAL, job.settings.limit_s + _GRACE_S)  # SIGALRM ends a process
    write_text(sys.argv[1], probe(job).model_dump_json())


def probe(job: ProbeJob) -> ProbeReport:
    """Run every engine set that the job names and judge it."""
    settings = job.settings
    recipe = CompareRecipe(
        bundle=Path(job.bundle),
        reference=job.reference,
        engines=settings.engines,
        threads=settings.threads,
    )
    try:
        found = compare(recipe)
    except EdgeSdkError as error:
        return ProbeReport(error=str(error))
    return ProbeReport(
        engines=tuple(judged(engine, settings) for engine in found.engines), frames=found.reference.frames
    )


def judged(engine: EngineParity, settings: ProbeSettings) -> ProbedEngine:
    """One engine set's figures, and what is wrong with them."""
    worst = max(engine.steps, key=lambda one: one.relative, default=None)
    error = None if worst is None else worst.relative
    where = "" if worst is None else f"{worst.step} {worst.output}"
    problems = []
    # Written so that a figure that is not a number counts as too large.
    changed, drop = 1 - engine.same, None if engine.labels is None else engine.drop_points
    if not changed <= settings.max_changed:
        problems.append(
            f"{changed:.2%} of its answers are not the reference's, {settings.max_changed:.2%} is allowed"
        )
    if drop is not None and not drop <= settings.max_drop:
        problems.append(f"it loses {drop:.2f} points by the labels, {settings.max_drop:g} are allowed")
    if engine.engine == FLOAT32 and error is not None and not error <= settings.max_error:
        problems.append(f"its {where} is off by {error:.2%}, {settings.max_error:.2%} is allowed")
    problems += [
        f"its {one.step} {one.output} holds {one.not_finite} values that are not finite"
        for one in (*engine.steps, *engine.stream)
        if one.not_finite
    ][:1]
    return ProbedEngine(
        engine=engine.engine,
        changed=changed,
        drop_points=drop,
        worst_error=None if error is None or error == float("inf") else error,
        worst_output=where,
        problem=f"{engine.engine}: {', '.join(problems)}" if problems else "",
    )


if __name__ == "__main__":
    main()
