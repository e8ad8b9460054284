"""The device's half of ``edge-sdk profile``: build every prepared pair, time them by turns, sum up.

Needs neither torch nor onnx.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

import numpy as np

import edge_sdk
from edge_sdk.build.pipeline import build
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.bundle import Bundle, set_name
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.timing import Spread
from edge_sdk.files import write_text
from edge_sdk.identity import EngineIdentity
from edge_sdk.profile.prepared import REFERENCE, TABLE, ProfileIndex, TinyRef, open_prepared
from edge_sdk.profile.table import CheckedStudent, Clock, CostTable, WholeStudent
from edge_sdk.progress import Progress, Silent
from edge_sdk.revision import commit_of_sources
from edge_sdk.runtime.engine import backend_named
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import ExternalSchedule

# Rounds that count for nothing: caches, branch predictors and clocks settle.
_WARM_UP_ROUNDS = 5


class Timed(Protocol):
    """Something whose delta step can be timed."""

    def delta_ms(self) -> float:
        """Run it once; milliseconds."""
        ...


def measure(folder: str | Path, *, rounds: int | None = None, progress: Progress | None = None) -> CostTable:
    """Build and time a prepared folder on this machine.

    Args:
        folder: what ``edge-sdk profile RECIPE --prepare-only`` left.
        rounds: how often each engine is timed; None for what was prepared.
        progress: told of each bundle and round.

    Returns:
        the table, which is also written into the folder.

    Raises:
        MissingFileError, FileFormatError, BundleError: the folder is not whole.
        DependencyError: the runtime is not installed here.
        EngineError: it refuses a graph.
    """
    progress = progress or Silent()
    place, index = Path(folder), open_prepared(folder)
    if rounds is not None and rounds < 1:
        raise RecipeError(f"rounds: expected at least 1, got {rounds}.")
    identity, names = None, index.bundles()
    for done, name in enumerate(names):
        progress.update("build", done, len(names))
        identity = _built(place / name, index)
    progress.update("build", len(names), len(names))
    if identity is None:
        raise RecipeError(f"profile {place}: its index names no bundle.")
    with ExitStack() as opened:
        timed = _opened(place, index, opened)
        times = time_by_turns(timed, rounds or index.rounds, progress)
    table = tabulate(index, times, identity)
    write_text(place / TABLE, table.to_json())
    return table


def time_by_turns(timed: Mapping[str, Timed], rounds: int, progress: Progress) -> dict[str, np.ndarray]:
    """Time every engine once a round, in an order that is drawn anew each round.

    So a slow spell of the machine falls on all alike, and what an engine finds in the caches is as little its own as
    in the midst of a network.

    Returns:
        by name, (rounds,) float64 milliseconds.
    """
    names = list(timed)
    times = {name: np.zeros(rounds) for name in names}
    order = np.random.default_rng(0)
    for index in range(-_WARM_UP_ROUNDS, rounds):
        for place in order.permutation(len(names)):
            name = names[place]
            found = timed[name].delta_ms()
            if index >= 0:
                times[name][index] = found
        if index >= 0:
            progress.update("time (rounds)", index + 1, rounds)
    return times


def tabulate(index: ProfileIndex, times: Mapping[str, np.ndarray], identity: EngineIdentity) -> CostTable:
    """The cost table of measured times.

    Args:
        index: what was measured.
        times: by bundle, (rounds,) float64 milliseconds, all of the same rounds.
        identity: of an engine that was measured: device and runtime.
    """
    units: dict[str, dict[str, float]] = {}
    spreads: dict[str, dict[str, float]] = {}
    for unit, candidates in index.units.items():
        costs = {candidate: _cost(calls, times) for candidate, calls in candidates.items()}
        units[unit] = {candidate: cost.median for candidate, cost in costs.items()}
        spreads[unit] = {candidate: cost.iqr for candidate, cost in costs.items()}
    fixed = {layer: _cost(calls, times) for layer, calls in index.fixed.items()}
    spreads |= {layer: {"fixed": cost.iqr} for layer, cost in fixed.items()}
    table = CostTable(
        machine=identity.machine,
        runtime=identity.runtime,
        backend=index.backend,
        precision=index.precision,
        threads=index.threads,
        frame_hw=index.frame_hw,
        clock=index.clock,
        units=units,
        fixed={layer: cost.median for layer, cost in fixed.items()},
        spread_ms=spreads,
        structure=index.structure,
        reference=WholeStudent(choice=index.reference, ms=Spread.of(times[f"whole/{REFERENCE}"])),
        rounds=len(times[f"whole/{REFERENCE}"]),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        sdk_version=edge_sdk.__version__,
        commit=commit_of_sources(),
    )
    checked = tuple(
        CheckedStudent(
            choice=choice, ms=Spread.of(times[f"whole/{name}"]), predicted_ms=table.predict(choice)
        )
        for name, choice in index.students.items()
    )
    return table.model_copy(update={"checked": checked})


def _cost(calls: tuple[TinyRef, ...], times: Mapping[str, np.ndarray]) -> Spread:
    """Median and quartile distance, over the rounds, of what a candidate takes above keeping the unit."""
    if not calls:
        return Spread(median=0.0, iqr=0.0)
    above = sum((times[f"tiny/{c.bundle}"] - times[f"tiny/{c.kept}"] for c in calls), np.zeros(()))
    found = Spread.of(np.atleast_1d(above))
    # Nothing is cheaper than keeping; what falls below is noise, and a search would run after it.
    return found.model_copy(update={"median": max(found.median, 0.0)})


class _Step:
    """The delta step of an opened bundle.

    Args:
        runner: opened, of one thread with the caller.
        clock: the wall's, or the calling thread's own, which stands still while others have the processor.
    """

    def __init__(self, runner: EdgeRunner, clock: Clock) -> None:
        self._runner, self._clock = runner, clock
        frame = np.random.default_rng(0).integers(0, 256, runner.bundle.manifest.frame.shape, np.uint8)
        runner(frame)

    def delta_ms(self) -> float:
        began_ns = time.thread_time_ns()
        (found,) = self._runner.time_bare([StepKind.DELTA])
        if self._clock == "processor":
            return (time.thread_time_ns() - began_ns) * 1e-6
        return found.wall_ms if found.gpu_ms is None else found.gpu_ms


def _built(place: Path, index: ProfileIndex) -> EngineIdentity:
    """Build a bundle for this machine, unless it is there already."""
    recipe = BuildRecipe(
        bundle=place, backends=(index.backend,), precisions=(index.precision,), tensorrt=index.tensorrt
    )
    return build(recipe).engines[-1].identity


def _opened(place: Path, index: ProfileIndex, opened: ExitStack) -> dict[str, Timed]:
    """Every bundle's delta step; all engines are of one backend and run on this very thread."""
    backend, found = backend_named(index.backend), {}
    for name in index.bundles():
        runner = EdgeRunner(
            Bundle.open(place / name, verify=False),
            backend=backend,
            engine=set_name(index.backend, index.precision),
            schedule=ExternalSchedule(),
            threads=index.threads,
            threaded=False,
        )
        found[name] = _Step(opened.enter_context(runner), index.clock)
    return dict(found)
