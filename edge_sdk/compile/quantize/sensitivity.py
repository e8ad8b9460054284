"""Which layers INT8 hurts, and which of them stay in higher precision so that an accuracy budget is met."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from edge_sdk.build.choose import read_frames, schedule_of
from edge_sdk.build.recipe import AccuracySettings, Int8Settings
from edge_sdk.compile.quantize.int8 import convolutions, quantize_pair
from edge_sdk.compile.quantize.nodes import layer_of
from edge_sdk.compile.quantize.trial import answers_of, score_of, session_of
from edge_sdk.compile.quantize.variants import Quantizer
from edge_sdk.errors import EngineError
from edge_sdk.evaluate.clip import Clip, Tick
from edge_sdk.manifest import BackendName, is_told
from edge_sdk.tasks import Prediction

# Passes a step that each layer is tried on: enough to rank layers, few enough to try them all.
_PASSES = 4


@dataclass(frozen=True)
class Budgeted:
    """INT8 settings that meet a budget.

    Attributes:
        settings: with the layers to keep in ``keep``.
        damage: relative error that each layer alone makes in the answer, worst first; empty where no layer was tried.
        trials: layers kept and points of the task's score lost, in the order tried.
    """

    settings: Int8Settings
    damage: dict[str, float]
    trials: tuple[tuple[int, float], ...]


def layer_damage(quantizer: Quantizer, settings: Int8Settings, tick: Tick) -> dict[str, float]:
    """Relative root-mean-square error of the answer when one layer alone is quantised, by layer, worst first.

    The answer is what the class is chosen from, or the outputs themselves where nothing is chosen. Errors of both steps
    are added: what harms the keyframe harms every frame after it.
    """
    ranges = quantizer.ranges(settings)
    watched = {step: _watched(model) for step, model in quantizer.graphs.items()}
    feeds = {
        step: [dict(given.inputs) for given in quantizer.chosen(step, _PASSES)] for step in quantizer.graphs
    }
    right = {step: _answers(quantizer.graphs[step], watched[step], feeds[step]) for step in quantizer.graphs}
    layers = list(
        dict.fromkeys(layer_of(node) for model in quantizer.graphs.values() for node in convolutions(model))
    )
    damage: dict[str, float] = {}
    for index, layer in enumerate(layers):
        tick("sensitivity", index, len(layers))
        total = 0.0
        for step, model in quantizer.graphs.items():
            if layer in {layer_of(node) for node in convolutions(model)}:
                alone = quantize_pair({step: model}, ranges, {}, settings, "tensorrt", only={layer})
                total += _error(_answers(alone.graphs[step], watched[step], feeds[step]), right[step])
        damage[layer] = total
    tick("sensitivity", len(layers), len(layers))
    return dict(sorted(damage.items(), key=lambda item: -item[1]))


def meet_budget(
    quantizer: Quantizer,
    settings: Int8Settings,
    accuracy: AccuracySettings,
    backend: BackendName,
    tick: Tick,
) -> Budgeted:
    """Keep the worst layers in higher precision, 1, 2, 4, ... of them, until the stream loses no more than the budget.

    Raises:
        EngineError: the budget is not met with half of the layers kept.
        RecipeError: the source has too few frames.
    """
    clip, truths = _material(quantizer, accuracy)
    task = quantizer.bundle.task
    schedule = schedule_of(quantizer.bundle, accuracy.interval)
    reference = score_of(quantizer.graphs, clip, truths, task, schedule)
    damage: dict[str, float] = {}
    if accuracy.sweep == "always":
        damage = layer_damage(quantizer, settings, tick)
    trials: list[tuple[int, float]] = []
    already: set[str] = set()
    count, current = 0, settings
    while True:
        done = quantize_pair(quantizer.graphs, quantizer.ranges(current), quantizer.state, current, backend)
        found = score_of(done.graphs, clip, truths, task, schedule)
        lost = 100 * (reference - found)
        trials.append((count, round(lost, 3)))
        if lost <= accuracy.max_drop or accuracy.sweep == "never":
            return Budgeted(current, damage, tuple(trials))
        damage = damage or layer_damage(quantizer, settings, tick)
        if not count:  # such as the last layer: keeping it once more helps nobody
            already = {layer for kept in done.kept.values() for layer in kept}
        count = max(1, 2 * count)
        if count > (len(damage) - len(already)) / 2:
            told_of = "; ".join(f"{kept} kept: {points:.2f}" for kept, points in trials)
            raise EngineError(
                f"int8 for {backend}: it loses more than {accuracy.max_drop} points ({told_of}).",
                hint="Raise accuracy.max_drop, try int8.method: percentile, or record more calibration passes.",
            )
        worst = tuple(layer for layer in damage if layer not in already)[:count]
        current = settings.model_copy(update={"keep": (*settings.keep, *worst)})


def _material(quantizer: Quantizer, accuracy: AccuracySettings) -> tuple[Clip, list[Prediction | None]]:
    """Frames, and what is right for each: labels, or where there are none the float32 pair's answers."""
    bundle = quantizer.bundle
    clip = read_frames(bundle, accuracy, accuracy.limit)
    if clip.labelled:
        return clip, list(clip.truths)
    schedule = schedule_of(bundle, accuracy.interval)
    return clip, list(answers_of(quantizer.graphs, clip, bundle.task, schedule))


def _watched(model: onnx.ModelProto) -> list[str]:
    chosen_from = [node.input[0] for node in model.graph.node if node.op_type in ("ArgMax", "TopK")]
    return chosen_from or [value.name for value in model.graph.output if not is_told(value.name)]


def _answers(
    model: onnx.ModelProto, names: list[str], feeds: list[dict[str, np.ndarray]]
) -> list[np.ndarray]:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    there = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    session = session_of(shown)
    return [np.concatenate([part.ravel() for part in session.run(names, feed)]) for feed in feeds]


def _error(found: list[np.ndarray], right: list[np.ndarray]) -> float:
    wrong = sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in zip(found, right, strict=True))
    whole = sum(float((b.astype(np.float64) ** 2).sum()) for b in right)
    return float(np.sqrt(wrong / whole)) if whole else 0.0


def facts_of(found: Budgeted) -> dict[str, object]:
    """For the variant's provenance."""
    return {
        "trials": [{"kept": kept, "lost_points": points} for kept, points in found.trials],
        "damage": {name: round(value, 6) for name, value in found.damage.items()},
    }
