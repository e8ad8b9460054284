"""The parity probe: a new bundle against its stored reference, on this very device, before anything is switched.

It runs in a process of its own (:mod:`edge_sdk.update.probe_child`), because an engine that does not fit can also crash
or never return.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import Field, ValidationError

from edge_sdk.bundle import FLOAT32, Bundle, extend_bundle
from edge_sdk.errors import MissingFileError, UpdateError
from edge_sdk.settings import Settings

# Where a bundle carries its reference; listed in its manifest like any other file.
REFERENCE = "reference.npz"
# Of what a process that died said last.
_LAST_WORDS = 300


class ProbeSettings(Settings):
    """What a new bundle must show on the device.

    Args:
        engines: engine sets to run; None for the float32 graphs and those that the bundle names as chosen.
        max_error: largest relative error (p99 over the largest value; of class ids the share that differs) of any
            output of the float32 graphs, run on the reference's own inputs. Between CPUs it is about 1e-5.
        max_changed: share of the answers (of a mask, its pixels) that may be others than the reference's.
        max_drop: points of the task's metric against the labels that an engine may lose against the reference; of a
            reference without labels nothing is asked, because agreement over a few frames hangs on their rarest class.
        threads: CPU threads of one step; None for the backend's own choice.
        limit_s: seconds after which the probe counts as failed.
    """

    engines: tuple[str, ...] | None = Field(default=None, min_length=1)
    max_error: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    max_changed: float = Field(default=0.1, ge=0, le=1)
    max_drop: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    threads: int | None = Field(default=None, ge=1)
    limit_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)


class ProbedEngine(Settings):
    """One engine set's probe.

    Args:
        engine: its name.
        changed: share of the answers that are not the reference's, 0-1.
        drop_points: what it loses against the reference, by the labels; None where there are none.
        worst_error: largest relative error of an output on the reference's own inputs; None where it is not finite.
        worst_output: step and name of that output.
        problem: what is wrong; empty where nothing is.
    """

    engine: str
    changed: float
    drop_points: float | None
    worst_error: float | None
    worst_output: str
    problem: str = ""


class ProbeReport(Settings):
    """What the probe found.

    Args:
        engines: every engine set that ran.
        frames: of the reference.
        error: why it could not run to its end; empty where it did.
    """

    engines: tuple[ProbedEngine, ...] = ()
    frames: int = 0
    error: str = ""

    @property
    def problem(self) -> str:
        """What is wrong; empty where the bundle passed."""
        return self.error or "; ".join(one.problem for one in self.engines if one.problem)


class ProbeJob(Settings):
    """What the probe's process is given."""

    bundle: Path
    reference: Path
    settings: ProbeSettings


def with_reference(bundle: Bundle, reference: str | Path) -> Bundle:
    """The bundle with its reference in it; a signature must be made anew.

    Raises:
        MissingFileError, FileFormatError: the reference is not there, or none.
        BundleError: it is another pair's.
    """
    from edge_sdk.parity import Reference

    Reference.open(reference).check_for(bundle)
    return extend_bundle(bundle, {REFERENCE: Path(reference)})


def reference_of(bundle: Bundle, given: Path | None) -> Path:
    """The reference to probe with: ``given``, or the one that the bundle carries.

    Raises:
        MissingFileError: there is neither.
    """
    if given is not None:
        return given
    if REFERENCE not in bundle.manifest.files:
        raise MissingFileError(
            f"bundle {bundle.path}: it carries no {REFERENCE} to probe it with on this device.",
            hint="Record one (edge-sdk compare BUNDLE SOURCE --limit 20 --periods 1 --reference FILE) and give it to "
            "edge-sdk sign or edge-sdk install with --reference FILE.",
        )
    return bundle.path / REFERENCE


def probed_engines(bundle: Bundle, settings: ProbeSettings) -> tuple[str, ...]:
    """Names of the engine sets to run.

    Raises:
        BundleError: one that was named is not there.
    """
    named = settings.engines or (FLOAT32, *bundle.manifest.chosen.values())
    for name in named:
        bundle.pair(name)
    return tuple(dict.fromkeys(named))


def run_probe(bundle: Bundle, reference: Path, settings: ProbeSettings) -> ProbeReport:
    """Probe ``bundle`` in a process of its own.

    Returns:
        What was found; a process that crashed or took too long is a problem in it, no exception.

    Raises:
        UpdateError: no process can be started.
        BundleError: an engine set that was named is not there.
    """
    settings = settings.model_copy(update={"engines": probed_engines(bundle, settings)})
    job = ProbeJob(bundle=bundle.path, reference=reference, settings=settings)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [sys.executable, "-m", "edge_sdk.update.probe_child", str(out)]
        try:
            done = subprocess.run(
                command,
                input=job.model_dump_json(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=settings.limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ProbeReport(error=f"it did not end within {settings.limit_s:g} s")
        except OSError as error:
            raise UpdateError(f"the probe's process cannot be started: {error}.") from error
        try:
            return ProbeReport.model_validate_json(out.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return ProbeReport(error=_death(done))


def _death(done: subprocess.CompletedProcess[str]) -> str:
    how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with exit code {done.returncode}"
    said = " ".join(done.stderr.split())[-_LAST_WORDS:]
    return f"its process died {how}{': ' + said if said else ''}"
