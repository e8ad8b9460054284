"""The process that builds: TensorRT is loaded here and nowhere else, so that whatever it does ends here.

It is given a :class:`Job` as JSON on stdin, writes messages as lines of JSON to the file descriptor named on its
command line, and the plan to the job's path. Messages are ``{"share": 0.25}``, ``{"outcome": {...}}`` or
``{"error": CLASS, "message": ..., "hint": ...}``. Whatever the libraries print goes to its stdout and stderr.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from edge_sdk.build.tensorrt.config import leave_open, make_config, set_timing_cache, use_dla
from edge_sdk.build.tensorrt.memory import ADVICE, spendable_bytes, workspace_limit
from edge_sdk.build.tensorrt.monitor import make_monitor
from edge_sdk.build.tensorrt.network import asked_precisions, check_request, make_network
from edge_sdk.build.tensorrt.settings import Job, Outcome, TensorRTSettings
from edge_sdk.build.tensorrt.shares import realised_precisions
from edge_sdk.build.tensorrt.timing_cache import TimingCache
from edge_sdk.errors import DependencyError, EdgeSdkError, EngineError
from edge_sdk.gpu import find_gpu
from edge_sdk.machine import machine_facts
from edge_sdk.optional import require

_PR_SET_PDEATHSIG = 1
# Smallest change of progress that is worth a message.
_STEP = 0.01
_RUNTIMES = ("tensorrt", "tensorrt_rtx")
_LEAN = "libnvinfer_lean"
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "cudaError 2:")
_NO_DRIVER = "no GPU with a driver here, the plan was built ahead of time"


def main() -> None:
    """Do the job given on stdin."""
    _die_with_parent()
    channel = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8", buffering=1)

    def send(**message: Any) -> bool:
        try:
            channel.write(json.dumps(message) + "\n")
        except BrokenPipeError:
            return False
        return True

    try:
        outcome = build(
            Job.model_validate_json(sys.stdin.readline()), Reporter(lambda share: send(share=share))
        )
        send(outcome=outcome.model_dump(mode="json"))
    except EdgeSdkError as error:
        message = str(error).removesuffix(error.hint).rstrip() if error.hint else str(error)
        send(error=type(error).__name__, message=message, hint=error.hint)
        sys.exit(error.exit_code)


class Reporter:
    """Passes on the share done where it has moved enough."""

    def __init__(self, send: Callable[[float], bool]) -> None:
        self._send, self._sent = send, -1.0

    def __call__(self, share: float) -> bool:
        """Report ``share``, 0-1; ``False`` where nobody listens any more."""
        if share - self._sent < _STEP and share < 1.0:
            return True
        self._sent = share
        return self._send(share)


class Heard(logging.Handler):
    """Keeps what TensorRT says through polygraphy's logger, for messages."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.errors.append(" ".join(record.getMessage().split()).removeprefix("[E] "))

    def last(self) -> str:
        """The newest complaint."""
        return self.errors[-1] if self.errors else "no message"


@dataclass(frozen=True)
class Library:
    """TensorRT as it was found here.

    Args:
        trt: the module.
        runtime: module and version.
        heard: what it complains of.
    """

    trt: Any
    runtime: str
    heard: Heard


def load_library(choice: str) -> Library:
    """Load TensorRT.

    Args:
        choice: ``tensorrt``, ``tensorrt_rtx``, or ``auto`` for the first that is installed.

    Raises:
        DependencyError: it is not installed or cannot be loaded.
    """
    names = _RUNTIMES if choice == "auto" else (choice,)
    name = next((name for name in names if find_spec(name) is not None), names[0])
    # polygraphy decides when it is imported which of the two it drives.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if name == "tensorrt_rtx" else "0"
    try:
        trt = require(name, "building for TensorRT")
    except OSError as error:  # a library of the operating system's that is not there
        raise DependencyError(
            f"building for TensorRT needs {name}, which cannot be loaded: {error}."
        ) from error
    logger = require("polygraphy.logger", "building for TensorRT").G_LOGGER
    logger.use_python_logging_system = True
    heard = Heard()
    logging.getLogger("Polygraphy").addHandler(heard)
    return Library(trt, f"{name} {trt.__version__}", heard)


def build(job: Job, report: Callable[[float], bool]) -> Outcome:
    """Parse, check, build and read back.

    Raises:
        EdgeSdkError: whatever keeps the plan from being built as asked.
    """
    settings = job.settings
    library = load_library(settings.runtime)
    trt = library.trt
    spendable = spendable_bytes()
    workspace, note = workspace_limit(settings.workspace_bytes, spendable)
    builder, network, parser = make_network(trt, job.graph)
    asked = asked_precisions(trt, network)
    check_request(asked, job.precision, job.graph)
    notes = [note] if note else []

    def configure() -> Any:
        monitor = make_monitor(trt, report)
        refit_all = settings.refittable and not job.open
        config = make_config(trt, builder, network, settings, workspace, monitor, refit_all=refit_all)
        if settings.refittable and job.open:
            leave_open(trt, network, config, job.open)
        fallen = use_dla(trt, builder, network, config, settings)
        notes.extend(text for text in fallen if text not in notes)
        # The configuration refers to the monitor without owning it.
        return config, monitor

    plan = _build_with_cache(library, builder, network, configure, settings, notes)
    job.plan.write_bytes(plan)
    del parser
    realised, unknown = read_back(library, plan, asked, settings)
    return Outcome(
        runtime=library.runtime, workspace_bytes=workspace, asked=asked, realised=realised,
        realised_unknown=unknown, notes=tuple(notes),
    )  # fmt: skip


def _build_with_cache(
    library: Library, builder: Any, network: Any, configure: Any, settings: TensorRTSettings, notes: list[str]
) -> Any:
    """The plan; once more without the timing cache where TensorRT does not like that."""
    cache = None
    # TensorRT for RTX compiles on the device and has no use for one.
    if settings.use_timing_cache and not library.runtime.startswith("tensorrt_rtx"):
        cache = TimingCache(library.runtime, machine_facts("tensorrt"), settings)
    known = cache.read() if cache is not None else None
    config, monitor = configure()
    accepted = known is None or set_timing_cache(config, known)
    plan = builder.build_serialized_network(network, config) if accepted else None
    if plan is None and known is not None and cache is not None:
        reason = library.heard.last() if library.heard.errors else "it does not fit"
        notes.append(f"TensorRT rejected the timing cache {cache.folder} ({reason}); built without it")
        config, monitor = configure()
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(library)
    if cache is not None:
        timing = config.get_timing_cache()
        cache.write(bytes(timing.serialize()) if timing is not None else b"")
    del monitor
    return plan


def _failure(library: Library) -> EngineError:
    reason = library.heard.last()
    if any(word.lower() in " ".join(library.heard.errors).lower() for word in _OUT_OF_MEMORY):
        return EngineError(f"TensorRT ran out of memory while building: {reason}.", hint=ADVICE)
    hint = (
        "Try a lower 'optimisation_level' or other builder settings, and 'edge-sdk doctor' for this machine."
    )
    if _LEAN in reason:
        hint = "Version-compatible plans hold TensorRT's lean runtime: install it, or leave 'version_compatible' out."
    return EngineError(f"TensorRT cannot build this graph: {reason.rstrip('.')}.", hint=hint)


def read_back(
    library: Library, plan: Any, asked: dict[str, str], settings: TensorRTSettings
) -> tuple[dict[str, str] | None, str]:
    """Precision of each layer as the finished plan has it, or ``None`` and the reason.

    Raises:
        EngineError: there is a GPU and the plan that was just built cannot be loaded.
    """
    if find_gpu() is None:
        return None, _NO_DRIVER
    trt = library.trt
    runtime = trt.Runtime(require("polygraphy.backend.trt", "reading a plan back").get_trt_logger())
    # A version-compatible plan holds code of its own, which this process has just made.
    runtime.engine_host_code_allowed = settings.version_compatible
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"the plan was built but cannot be loaded here: {library.heard.last().rstrip('.')}.",
            hint="See what 'edge-sdk doctor' says of this machine.",
        )
    inspector = engine.create_engine_inspector()
    information = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return realised_precisions(information, asked), ""


def _die_with_parent() -> None:
    """Let Linux end this process when the one that started it is gone, so that no build is left behind."""
    if sys.platform == "linux":
        import_module("ctypes").CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
