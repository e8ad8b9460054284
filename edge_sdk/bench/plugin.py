"""Latency tests in pytest: the fixture ``edge_bench`` measures a bundle on this machine and holds it to budgets.

It is loaded in every pytest run of everybody who has edge_sdk installed, so importing it loads nothing but pytest, and
it does nothing where the fixture is not used.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from edge_sdk.bench.budget import Budget
    from edge_sdk.bench.document import BenchDocument
    from edge_sdk.bench.figures import Figures
    from edge_sdk.bench.findings import Breach, Finding
    from edge_sdk.bench.recipe import BenchRecipe
    from edge_sdk.bench.verdict import Verdict
    from edge_sdk.runtime.engine import Backend

_FIXTURE = "edge_bench"
_PRESETS = ("quick", "standard", "soak")
_DOCUMENTS = pytest.StashKey["dict[Any, BenchDocument]"]()
_PLACE = pytest.StashKey["str"]()
# Of the worst frames that a failing test shows.
_WORST = 5


class BenchWarning(pytest.PytestWarning):
    """A bench's figures should not be relied on."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of latency tests."""
    group = parser.getgroup(_FIXTURE, "edge_sdk latency tests")
    group.addoption(
        "--edge-bench-out",
        type=Path,
        metavar="DIR",
        help="write JSON and HTML report of each latency test to a folder of its own in DIR",
    )
    group.addoption(
        "--edge-bench-preset",
        choices=_PRESETS,
        help="length and rounds of every latency test, instead of what the tests say",
    )
    group.addoption(
        "--edge-bench-seconds",
        type=float,
        metavar="SECONDS",
        help="length of every latency test, instead of what the tests say",
    )
    group.addoption(
        "--edge-bench-required",
        action="store_true",
        help="a latency test whose device or backend is not there fails instead of being skipped",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", f"{_FIXTURE}: latency tests; set on every test that uses the fixture")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that measure, so that ``-m edge_bench`` finds them."""
    for item in items:
        if _FIXTURE in getattr(item, "fixturenames", ()):
            item.add_marker(_FIXTURE)
            # Where tests are spread over processes by --dist loadgroup, these stay in one.
            if item.config.pluginmanager.has_plugin("xdist"):
                item.add_marker(pytest.mark.xdist_group(_FIXTURE))


@pytest.fixture
def edge_bench(request: pytest.FixtureRequest) -> EdgeBench:
    """Measures a bundle on this machine and fails the test where a budget is broken; see :class:`EdgeBench`."""
    return EdgeBench(request)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line a bench, of those that passed too, and the reason of each that was skipped."""
    lines = []
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                found = [text for name, text in report.user_properties if name == _FIXTURE]
                lines += [f"{report.nodeid}: {text}" for text in found]
    if lines:
        terminalreporter.section("edge_sdk latency tests")
        for line in lines:
            terminalreporter.line(line)


class EdgeBench:
    """What the fixture ``edge_bench`` gives a test: a function of a bundle, settings and budgets."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._item: pytest.Item = request.node
        self._config = request.config
        self._count = 0

    def __call__(
        self,
        bundle: str | Path,
        *,
        device: str | None = None,
        backend: str | Backend | None = None,
        **settings: Any,
    ) -> BenchDocument:
        """Measure ``bundle`` and hold it to budgets.

        Tests of one session that ask for the same measurement share it. A run that is ``invalid``, such as a throttled
        one, fails whatever its figures; one that is ``doubtful`` is a warning.

        Args:
            bundle: folder of the bundle, or a device folder; relative to the working directory.
            device: text that the name of the board, the processor or the GPU must contain, in any case; elsewhere the
                test is skipped.
            backend: name of the runtime, or an object that is one; the test is skipped where it is not installed.
            settings: keys of :class:`edge_sdk.bench.BenchRecipe` and of :class:`edge_sdk.bench.Budget`. ``accuracy``
                is True where accuracy has a budget, else False.

        Returns:
            the run, for assertions of one's own.
        """
        __tracebackhide__ = True
        from edge_sdk.errors import DependencyError, EdgeSdkError

        self._count += 1
        own = None if backend is None or isinstance(backend, str) else backend
        name = {} if backend is None else {"backend": backend if own is None else own.name}
        found: EdgeSdkError
        try:
            recipe, budget = self._parse({"bundle": bundle, **name, **settings})
            self.require(device=device, backend=recipe.backend if own is None else None)
            self._refuse_company()
            return self._hold(self._measure(recipe, own), budget)
        except EdgeSdkError as error:
            found = error
        # Out here the error is not shown a second time, as the cause of the failure.
        if isinstance(found, DependencyError):
            self._skip(str(found))
        pytest.fail(f"{_FIXTURE}: {found}", pytrace=False)

    def _parse(self, given: dict[str, Any]) -> tuple[BenchRecipe, Budget]:
        from edge_sdk.bench.budget import Budget, check_recipe
        from edge_sdk.bench.recipe import BenchRecipe
        from edge_sdk.errors import RecipeError
        from edge_sdk.settings import parse_settings

        keys = {"device": None, **BenchRecipe.model_fields, **Budget.model_fields}
        for name in given:
            if name not in keys:
                near = difflib.get_close_matches(name, keys, n=1)
                meant = (
                    f", did you mean '{near[0]}'?" if near else ": neither a setting of a bench nor a budget"
                )
                raise RecipeError(f"unknown name '{name}'{meant}")
        budgets = {name: value for name, value in given.items() if name in Budget.model_fields}
        settings = {name: value for name, value in given.items() if name not in budgets}
        preset, seconds = (
            self._config.getoption("edge_bench_preset"),
            self._config.getoption("edge_bench_seconds"),
        )
        if preset is not None:  # what the test says of length and rounds belongs to its own preset
            settings = {name: value for name, value in settings.items() if name not in ("seconds", "rounds")}
            settings["preset"] = preset
        if seconds is not None:
            settings["seconds"] = seconds
        if not any(budgets.get(name) for name in ("min_miou", "min_agreement")):
            settings.setdefault(
                "accuracy", False
            )  # it takes a pass over the clip for each alignment of the keyframes
        recipe = parse_settings(settings, BenchRecipe, "settings")
        budget = parse_settings(budgets, Budget, "budgets")
        check_recipe(recipe, budget)
        return recipe, budget

    def _refuse_company(self) -> None:
        """Other tests on the same machine are in every figure."""
        workers = getattr(self._config, "workerinput", {}).get("workercount", 1)
        if workers > 1:
            pytest.fail(
                f"{_FIXTURE}: a latency test needs the machine for itself, and pytest-xdist runs {workers} workers: "
                f"run 'pytest -n 0 -m {_FIXTURE}', and the others with '-m \"not {_FIXTURE}\"'.",
                pytrace=False,
            )

    def require(self, *, device: str | None = None, backend: str | None = None) -> None:
        """Skip the test where it has no business; for tests that prepare something before they measure.

        Args:
            device: as in the call.
            backend: name of the runtime.

        Raises:
            RecipeError: there is no backend of that name.
        """
        from edge_sdk.gpu import find_gpu
        from edge_sdk.runtime.engine import backend_available, backend_named

        if device is not None:
            place = self._place()
            if device.lower() not in place.lower():
                self._skip(f"device: this is no '{device}' but {place}")
        if backend is not None and not backend_available(backend):
            backend_named(backend)
            needs = "an NVIDIA GPU" if backend == "tensorrt" and find_gpu() is None else "packages"
            self._skip(
                f"backend '{backend}' needs {needs} that this machine does not have; see 'edge-sdk doctor'"
            )

    def _place(self) -> str:
        """Board, processor and GPU."""
        from edge_sdk.conditions import Conditions
        from edge_sdk.gpu import find_gpu

        if _PLACE not in self._config.stash:
            here, gpu = Conditions.now(None), find_gpu()
            names = (here.machine, here.cpu, gpu.name if gpu is not None else "no GPU")
            self._config.stash[_PLACE] = "; ".join(names)
        return self._config.stash[_PLACE]

    def _skip(self, reason: str) -> NoReturn:
        if self._config.getoption("edge_bench_required"):
            pytest.fail(f"{_FIXTURE}: {reason} (--edge-bench-required)", pytrace=False)
        self._item.user_properties.append((_FIXTURE, f"SKIPPED, nothing was measured: {reason}"))
        pytest.skip(f"{_FIXTURE}: {reason}")

    def _measure(self, recipe: BenchRecipe, backend: Backend | None) -> BenchDocument:
        from edge_sdk import bench as package

        shared = self._config.stash.setdefault(_DOCUMENTS, {})
        bundles = (recipe.bundle, recipe.teacher, recipe.rival)
        stamps = tuple(map(_stamps, bundles))

        def key(accuracy: bool) -> tuple[Any, ...]:
            return recipe.model_copy(update={"out": None, "accuracy": accuracy}), backend, stamps

        # A run that was scored too serves a test that does not ask for it.
        found = next((at for at in (key(True), key(recipe.accuracy)) if at in shared), None)
        if found is None:
            found = key(recipe.accuracy)
            shared[found] = package.bench(recipe, backend=backend)
        document = shared[found]
        if recipe.out is not None:
            self._write(document, recipe.out)
        if (folder := self._config.getoption("edge_bench_out")) is not None:
            name = re.sub(r"[^\w.\[\]-]+", "_", self._item.nodeid)
            self._write(document, folder / (name if self._count == 1 else f"{name}-{self._count}"))
        return document

    def _write(self, document: BenchDocument, folder: Path) -> None:
        from edge_sdk.bench.document import JSON_NAME
        from edge_sdk.bench.report import write_report
        from edge_sdk.errors import DependencyError
        from edge_sdk.files import write_text

        try:
            write_report(document, folder)
        except DependencyError as error:
            # A device need not have what draws; what was measured is no less true.
            write_text(folder / JSON_NAME, document.to_json())
            self._item.warn(BenchWarning(f"{_FIXTURE}: {folder} holds {JSON_NAME} but no report: {error}"))

    def _hold(self, document: BenchDocument, budget: Budget) -> BenchDocument:
        from edge_sdk.bench.judge import breaches, judge
        from edge_sdk.bench.verdict import Verdict

        __tracebackhide__ = True
        figures = document.figures
        verdict = Verdict.of(document, figures)
        self._item.add_report_section("call", _FIXTURE, _details(document, figures, verdict))
        if verdict.grade == "doubtful":
            self._item.warn(BenchWarning(f"{_FIXTURE}: doubtful: {' '.join(verdict.reasons)}"))
        findings = judge(document, figures, budget)
        broken = breaches(document, figures, findings)
        headline = _headline(document, figures, findings, broken)
        self._item.user_properties.append((_FIXTURE, f"{headline}; {verdict.grade}"))
        if broken:
            pytest.fail("\n".join(breach.line() for breach in broken), pytrace=False)
        return document


def _stamps(bundle: Path | None) -> tuple[tuple[str, int], ...]:
    """What tells a bundle from the one that was at the same place before: the times of its manifests."""
    if bundle is None:
        return ()
    return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in bundle.rglob("*.json")))


def _headline(
    document: BenchDocument, figures: Figures, findings: tuple[Finding, ...], broken: tuple[Breach, ...]
) -> str:
    """Latency, misses and how many budgets held, in one line."""
    from edge_sdk.bench.document import SUBJECT

    row = figures.row(SUBJECT, "camera") or figures.row(SUBJECT, "saturated")
    parts = []
    if row is not None and (found := row.latency()) is not None:
        pace = f"age at {document.source.fps:g} frames a second" if row.mode == "camera" else "saturated"
        times = f"p50 {found.p50_ms.value:.2f}, p99 {found.p99_ms.value:.2f}, max {found.max_ms:.2f} ms"
        parts.append(f"{times} ({pace})")
        if row.deadline is not None:
            parts.append(f"{row.deadline.miss_rate.value:.2%} missed")
    close = [finding.budget for finding in findings if finding.uncertain and not finding.broken]
    held = f"{len(findings)} budget{'' if len(findings) == 1 else 's'} held" if findings else "no budgets"
    budgets = f"{len(broken)} broken" if broken else held
    parts.append(f"{budgets} ({', '.join(close)} within the margin of error)" if close else budgets)
    return "; ".join(parts)


def _details(document: BenchDocument, figures: Figures, verdict: Verdict) -> str:
    """What a failing test shows: verdict, machine, and the slowest frames with their conditions."""
    here = document.conditions
    machine = (here.machine, here.cpu, document.machine.accelerator, document.machine.power_mode)
    lines = [
        f"verdict: {verdict.grade}",
        *(f"  {text}" for text in (*verdict.reasons, *verdict.remarks)),
        "machine: " + ", ".join(filter(None, machine)),
    ]
    for mode, pace in (("camera", "at camera pace"), ("saturated", "saturated")):
        worst = [frame.line() for frame in figures.worst if frame.mode == mode][:_WORST]
        lines += [f"slowest frames {pace}:", *(f"  {line}" for line in worst)] if worst else []
    return "\n".join(lines)
