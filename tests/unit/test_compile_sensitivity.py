"""The layer that INT8 hurts is found and stays in higher precision; a budget beyond reach is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="quantising needs onnx")
pytest.importorskip("onnxruntime", reason="quantising needs ONNX Runtime")

import onnx

from edge_sdk.build.recipe import AccuracySettings, Int8Settings
from edge_sdk.compile.quantize import sensitivity
from edge_sdk.compile.quantize.sensitivity import facts_of, layer_damage, meet_budget
from edge_sdk.compile.quantize.trial import PairTrial
from edge_sdk.compile.quantize.variants import Quantizer
from edge_sdk.errors import EngineError, RecipeError
from edge_sdk.runtime.schedule import EverySchedule
from tests import quantised_pairs as pairs

LAYERS = {"first", "mix", "recall", "up"}


def silent(stage: str, done: int, total: int) -> None:
    pass


def accuracy(**changes: Any) -> AccuracySettings:
    return AccuracySettings(
        **{"source": pairs.unlabelled(), "interval": pairs.INTERVAL, "limit": 8, **changes}
    )


def fragile(folder: Path) -> Quantizer:
    """The pair with one layer, ``mix``, that INT8 ruins and float32 does not notice.

    Channel 0 of its input is never above 0, so the huge weights that multiply it change no answer; but the scale of
    every channel is made for them, and the weights that do the work round to 0.
    """
    graph = pairs.recurrent_graph("delta").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
    weight, bias = constants["mix.weight"], constants["first.bias"]
    weight[:, 0, 1, 1] = 300 * np.abs(weight).max()
    bias[0] = -30
    bundle = pairs.recurrent(folder / "bundle", mix__weight=weight, first__bias=bias)
    return Quantizer(bundle, pairs.record(bundle, folder / "set.npz"))


@pytest.fixture(scope="module")
def plain() -> Quantizer:
    return pairs.quantizer("recurrent")


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Quantizer:
    return fragile(tmp_path_factory.mktemp("fragile"))


def test_the_fragile_layer_ranks_first(plain: Quantizer, spoilt: Quantizer) -> None:
    before, after = (layer_damage(found, Int8Settings(), silent) for found in (plain, spoilt))
    assert set(before) == set(after) == LAYERS
    assert next(iter(after)) == "mix"
    assert after["mix"] > 5 * before["mix"]
    assert after["mix"] > 3 * max(value for name, value in after.items() if name != "mix")
    for found in (before, after):
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert all(value > 0 for value in found.values())


def test_the_fragile_layer_is_the_one_that_is_kept(spoilt: Quantizer) -> None:
    found = meet_budget(spoilt, Int8Settings(), accuracy(max_drop=10), "onnxruntime", silent)
    assert found.settings.keep == ("mix",)
    (none, lost), (one, left) = found.trials
    assert (none, one) == (0, 1)
    assert lost > 40
    assert left < 10
    done = spoilt.int8(found.settings, "onnxruntime", facts_of(found))
    assert done.variant.provenance["kept"]["delta"]["mix"] == "kept"  # type: ignore[index,call-overload]
    facts: Any = done.variant.provenance
    assert facts["trials"] == [{"kept": k, "lost_points": points} for k, points in found.trials]
    assert next(iter(facts["damage"])) == "mix"


@pytest.mark.parametrize("keep", [("mix",), ("mix", "recall")])
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_what_is_kept_is_computed_in_float_to_the_end(
    spoilt: Quantizer, keep: tuple[str, ...], backend: Any
) -> None:
    """ONNX Runtime has an optimiser that quantises float layers between bytes; and with no INT8 reader of the state
    its form is not that of the bytes that stand for the ReLU before it."""
    done = spoilt.int8(Int8Settings(keep=keep, remainder="float32"), backend)
    models = {Path(path).stem: onnx.load_from_string(content) for path, content in done.files.items()}
    frames = pairs.images(8)
    both = zip(pairs.stream(spoilt.graphs, frames), pairs.stream(models, frames), strict=True)
    assert min(float((a["mask"] == b["mask"]).mean()) for a, b in both) > 0.96


def test_a_pair_within_the_budget_is_left_alone(plain: Quantizer) -> None:
    found = meet_budget(plain, Int8Settings(), accuracy(max_drop=20), "onnxruntime", silent)
    assert found.settings == Int8Settings()
    assert found.damage == {}
    assert len(found.trials) == 1
    always = meet_budget(plain, Int8Settings(), accuracy(max_drop=20, sweep="always"), "onnxruntime", silent)
    assert set(always.damage) == LAYERS
    assert always.settings == Int8Settings()


def test_without_a_sweep_the_loss_is_told_and_nothing_kept(spoilt: Quantizer) -> None:
    found = meet_budget(spoilt, Int8Settings(), accuracy(max_drop=0, sweep="never"), "onnxruntime", silent)
    assert found.settings == Int8Settings()
    assert found.trials[0][1] > 0


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_budget_that_cannot_be_met_is_an_error_with_the_trials(spoilt: Quantizer, backend: Any) -> None:
    match = (
        rf"int8 for {backend}: it loses more than 0\.0 points \(0 kept: [\d.]+; 1 kept: [\d.]+\).*max_drop"
    )
    with pytest.raises(EngineError, match=match):
        meet_budget(spoilt, Int8Settings(), accuracy(max_drop=0), backend, silent)


def test_trials_double_and_skip_what_is_kept_already(
    plain: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer hurts most here, and is kept from the start: a trial for it would be the first trial again."""
    many = {"up": 9.0, **{f"layer{index}": 1 / (index + 1) for index in range(12)}}
    tried: list[tuple[str, ...]] = []
    losses = iter([0.9, 0.5, 0.6, 0.7, 0.9])

    def quantized(graphs: Any, ranges: Any, state: Any, settings: Int8Settings, backend: str) -> Any:
        tried.append(settings.keep)
        return real(graphs, ranges, state, Int8Settings(), backend)

    real = sensitivity.quantize_pair
    monkeypatch.setattr(sensitivity, "layer_damage", lambda *_: many)
    monkeypatch.setattr(sensitivity, "quantize_pair", quantized)
    monkeypatch.setattr(sensitivity, "score_of", lambda *_: next(losses))
    found = meet_budget(plain, Int8Settings(keep=("first",)), accuracy(max_drop=1), "onnxruntime", silent)
    added = [keep[1:] for keep in tried]
    assert added == [(), ("layer0",), ("layer0", "layer1"), ("layer0", "layer1", "layer2", "layer3")]
    assert all(keep[0] == "first" for keep in tried)
    assert found.settings.keep == tried[-1]
    assert [round(points) for _, points in found.trials] == [40, 30, 20, 0]


def test_too_few_frames_for_the_interval(plain: Quantizer) -> None:
    with pytest.raises(
        RecipeError, match=r"accuracy\.interval: 30 needs as many frames, .* gave 8\."
    ) as error:
        meet_budget(plain, Int8Settings(), accuracy(interval=30), "onnxruntime", silent)
    assert "longer source" in str(error.value)


def test_progress_ends_where_it_said(plain: Quantizer) -> None:
    told: list[tuple[str, int, int]] = []
    layer_damage(plain, Int8Settings(), lambda *figures: told.append(figures))
    assert told == [("sensitivity", index, len(LAYERS)) for index in range(len(LAYERS) + 1)]


def test_a_trial_runs_as_the_pair_does(plain: Quantizer) -> None:
    """State handed on from step to step, a keyframe every interval: as in a session of our own."""
    frames = pairs.images(9)
    found = list(PairTrial(plain.graphs).stream(frames, EverySchedule(interval=pairs.INTERVAL)))
    for mine, theirs in zip(found, pairs.stream(plain.graphs, frames), strict=True):
        assert set(mine) == {"mask"}
        assert np.array_equal(mine["mask"], theirs["mask"])
