"""Each step of an engine set on the reference's own inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.manifest import StepName
from edge_sdk.parity.deviation import Deviations
from edge_sdk.parity.forms import StateForms
from edge_sdk.parity.reference import Reference
from edge_sdk.runtime.engine import Backend, Engine, EngineOptions
from edge_sdk.runtime.steps import StepEngines


def compare_steps(
    bundle: Bundle,
    backend: Backend,
    engine: str,
    reference: Reference,
    options: EngineOptions,
    tick: Callable[[int, int], None],
) -> Deviations:
    """Run every pass that the reference keeps whole and compare each output.

    State is given as this engine set keeps it, so that an INT8 step is compared on the INT8 image of the float32 state.

    Args:
        bundle: the pair.
        backend: of the engine set.
        engine: name of the engine set, or ``"float32"``.
        reference: inputs and expected outputs.
        options: how the engines are loaded.
        tick: called with passes done and in all.

    Raises:
        EngineError: the engine set cannot be loaded or run here.
    """
    found = Deviations(bundle.task.output_names)
    forms = StateForms(bundle.pair(engine))
    records = reference.header.passes
    with_delta = any(record.step == "delta" for record in records)
    engines = StepEngines.load(bundle, backend, options, engine=engine, with_delta=with_delta)
    try:
        runs: dict[StepName, _Run] = {"keyframe": _Run(engines.keyframe)}
        if engines.delta is not None:
            runs["delta"] = _Run(engines.delta)
        for done, one in enumerate(reference.passes(), start=1):
            outputs = runs[one.step]({name: forms.kept(name, array) for name, array in one.inputs.items()})
            found.add_pass(one, outputs, forms)
            tick(done, len(records))
    finally:
        engines.close()
    return found


class _Run:
    """One engine with buffers that the host reads and writes, state included."""

    def __init__(self, engine: Engine) -> None:
        specs = (*engine.inputs, *engine.outputs)
        self._buffers = {spec.name: engine.allocate(spec, host=True) for spec in specs}
        self._outputs = [spec.name for spec in engine.outputs]
        self._step = engine.bind(self._buffers)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs for ``inputs``, valid until the next call."""
        for name, array in inputs.items():
            np.copyto(self._buffers[name].host, array, casting="no")
        self._step.run()
        return {name: self._buffers[name].host for name in self._outputs}
