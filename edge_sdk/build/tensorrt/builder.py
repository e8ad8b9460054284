"""From an ONNX graph to a plan and its identity, by way of a child process.

TensorRT can be killed for want of memory, crash, or never end. A process of its own turns each into an error with
advice, and leaves no file behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, cast

import edge_sdk
from edge_sdk import errors
from edge_sdk.build.tensorrt.memory import ADVICE
from edge_sdk.build.tensorrt.settings import Job, Outcome, TensorRTSettings
from edge_sdk.build.tensorrt.shares import MOST_UNKNOWN, UNKNOWN, check_realised, shares_of
from edge_sdk.errors import EdgeSdkError, EngineError
from edge_sdk.files import atomic_file, require_file, require_writable, sha256_of
from edge_sdk.identity import EngineIdentity, identity_path, machine_facts, write_identity
from edge_sdk.machine import available_memory_bytes
from edge_sdk.manifest import Precision, StepName
from edge_sdk.progress import Progress, Silent
from edge_sdk.revision import commit_of_sources

# Not settings of the plan, but of how it came about on this machine.
_NOT_RECORDED = {"timing_cache", "timeout_s", "use_timing_cache", "runtime"}
_GRACE_S = 5.0
# As a module it would look into the working directory first.
_START = "import sys; sys.path.remove(''); from edge_sdk.build.tensorrt.child import main; main()"


def build_plan(
    graph: Path,
    plan: Path,
    *,
    step: StepName,
    precision: Precision,
    settings: TensorRTSettings | None = None,
    calibration_sha256: str | None = None,
    open_weights: Sequence[str] = (),
    progress: Progress | None = None,
) -> EngineIdentity:
    """Build ``graph`` for this machine: writes ``plan``, a pure TensorRT plan, and its identity beside it.

    Args:
        graph: ONNX file with fixed shapes, its precision in its types.
        plan: where the plan goes; an older one there is replaced when the new one is complete.
        step: which step of the pair it is.
        precision: what the graph is meant to be; a graph or a plan that is not is an error.
        settings: the recipe's.
        calibration_sha256: of the calibration set that the graph's scales come from.
        open_weights: names of the only weights that can be exchanged later, with ``settings.refittable``; none for all.
        progress: told the percentage done, of stage ``"build STEP PRECISION"``.

    Returns:
        What was built, as it is written beside the plan.

    Raises:
        MissingFileError: no graph there.
        DependencyError: TensorRT or polygraphy is not installed.
        EngineError: TensorRT refuses the graph, cannot build it, ran out of memory or time, crashed, or built
            something else than was asked for.
        OutputError: the plan cannot be written there.
    """
    settings = settings or TensorRTSettings()
    require_file(graph, "graph", "Export the bundle again.")
    require_writable(plan.parent)
    plan.parent.mkdir(parents=True, exist_ok=True)
    graph_sha256 = sha256_of(graph)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=plan.parent, prefix=".build-") as folder:
        built = Path(folder) / plan.name
        job = Job(
            graph=graph.absolute(), plan=built.absolute(), step=step, precision=precision, settings=settings,
            open=tuple(open_weights),
        )  # fmt: skip
        outcome = run_child(job, progress or Silent())
        identity = _identity(job, outcome, graph_sha256, calibration_sha256, time.monotonic() - began)
        # An old identity must not stand beside the new plan, not even for a moment.
        identity_path(plan).unlink(missing_ok=True)
        with atomic_file(plan) as target:
            built.replace(target)
        write_identity(plan, identity)
    return identity


def _identity(
    job: Job, outcome: Outcome, graph_sha256: str, calibration_sha256: str | None, build_s: float
) -> EngineIdentity:
    """The identity of the plan that a job made.

    Raises:
        EngineError: what was built is not what was asked for.
    """
    shares, unknown, notes = _judge(outcome, job.settings, f"{job.step} step in {job.precision}")
    return EngineIdentity(
        backend="tensorrt",
        precision=job.precision,
        step=job.step,
        graph_sha256=graph_sha256,
        engine_sha256=sha256_of(job.plan),
        engine_bytes=job.plan.stat().st_size,
        runtime=outcome.runtime,
        machine=machine_facts("tensorrt"),
        settings=_recorded(job.settings, outcome),
        asked=shares_of(outcome.asked),
        shares=shares,
        shares_unknown=unknown,
        notes=(*outcome.notes, *notes),
        calibration_sha256=calibration_sha256,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        sdk_version=edge_sdk.__version__,
        commit=commit_of_sources(),
        build_s=round(build_s, 3),
    )


def run_child(job: Job, progress: Progress) -> Outcome:
    """Do a job in a process of its own; that process is gone when this returns or raises, whatever the reason.

    Raises:
        EdgeSdkError: what the child refused, or what became of it.
    """
    stage = f"build {job.step} {job.precision}"
    free = available_memory_bytes()
    read_end, write_end = os.pipe()
    with tempfile.TemporaryFile() as log, os.fdopen(read_end, "rb", buffering=0) as channel:
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", _START, str(write_end)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[write_end],
                env=_environment(), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(write_end)
        try:
            progress.update(stage, 0, 100)
            _send_job(child, job)
            answer = _listen(
                channel, job.settings.timeout_s, lambda share: progress.update(stage, int(share * 100), 100)
            )
            child.wait(_GRACE_S)
        except _TooLate:
            raise EngineError(
                f"{stage}: ended after {job.settings.timeout_s:g} s, it was not done.",
                hint="Lower 'optimisation_level' or raise 'timeout_s'.",
            ) from None
        except subprocess.TimeoutExpired:  # it has answered and does not end
            pass
        finally:
            _end(child)
        if "outcome" in answer:
            progress.update(stage, 100, 100)
            return Outcome.model_validate(answer["outcome"])
        raise _error_of(answer, child.returncode, log, free, stage)


class _TooLate(Exception):
    """The time is up."""


def _send_job(child: subprocess.Popen[bytes], job: Job) -> None:
    # Where it ended already, its exit code says why.
    with contextlib.suppress(BrokenPipeError), cast("IO[bytes]", child.stdin) as pipe:
        pipe.write(job.model_dump_json().encode() + b"\n")


def _listen(channel: Any, timeout_s: float | None, report: Callable[[float], None]) -> dict[str, Any]:
    """Pass on progress until the child closes its end; its last other message, or nothing."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    rest = b""
    answer: dict[str, Any] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not selector.select(left):
                raise _TooLate
            block = os.read(channel.fileno(), 1 << 16)
            if not block:
                return answer
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "share" in message:
                    report(message["share"])
                else:
                    answer = message


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()


def _error_of(answer: dict[str, Any], code: int, log: Any, free: int | None, stage: str) -> EdgeSdkError:
    if "error" in answer:
        kind = getattr(errors, answer["error"], EngineError)
        error: EdgeSdkError = kind(answer["message"], hint=answer["hint"])
        return error
    last = _last_line(log)
    if code == -signal.SIGKILL:
        memory = "" if free is None else f" ({free / 2**30:.1f} GiB were free when it began)"
        return EngineError(
            f"{stage}: the system killed it, as Linux does when memory runs out{memory}.", hint=ADVICE
        )
    if code < 0:
        return EngineError(
            f"{stage}: TensorRT crashed ({signal.Signals(-code).name}): {last}.",
            hint="Build again with 'use_timing_cache: false' and a lower 'optimisation_level'.",
        )
    return EngineError(
        f"{stage}: the build process failed with exit code {code}: {last}.", hint="Run 'edge-sdk doctor'."
    )


def _last_line(log: Any) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[-300:].rstrip(".") if lines else "no message"


def _environment() -> dict[str, str]:
    """This process's, with the package itself to be found last on the path."""
    package = str(Path(edge_sdk.__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [given, package]))}


def _judge(
    outcome: Outcome, settings: TensorRTSettings, what: str
) -> tuple[dict[str, float] | None, str, tuple[str, ...]]:
    """Shares as built, why they are unknown, and notes.

    Raises:
        EngineError: what was built is not what was asked for.
    """
    if outcome.realised is None:
        return None, outcome.realised_unknown, ()
    shares = shares_of(outcome.realised)
    if shares.get(UNKNOWN, 0.0) > MOST_UNKNOWN:
        return None, f"TensorRT's inspector names no precision for {shares[UNKNOWN]:.0%} of the layers", ()
    return shares, "", check_realised(outcome.asked, outcome.realised, settings.precision_tolerance, what)


def _recorded(settings: TensorRTSettings, outcome: Outcome) -> dict[str, Any]:
    return {
        **settings.model_dump(mode="json", exclude=_NOT_RECORDED),
        "workspace_bytes": outcome.workspace_bytes,
    }
