"""Trust through an export: torch's number comes out of the graph, and what is none is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")
pytest.importorskip("onnxruntime", reason="an export is checked with ONNX Runtime")

from torch import Tensor  # noqa: E402

from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.distill.frames import FrameToInput, Preprocess  # noqa: E402
from edge_sdk.distill.steps import TRUST, State  # noqa: E402
from edge_sdk.errors import ConversionError, EngineError, RecipeError  # noqa: E402
from edge_sdk.runtime.result import StepKind  # noqa: E402
from edge_sdk.runtime.runner import EdgeRunner  # noqa: E402
from edge_sdk.runtime.schedule import DriftSchedule  # noqa: E402
from edge_sdk.tensors import TensorSpec  # noqa: E402
from tests import trust_pairs  # noqa: E402
from tests.trust_pairs import HW, TrustPair  # noqa: E402


class Odd(TrustPair):
    """Its trust is given."""

    def __init__(self, trust: Tensor) -> None:
        super().__init__()
        self.given = trust

    def trust(self, confidence: Tensor) -> Tensor:
        return self.given


class InState(TrustPair):
    """A keyframe step whose state has the reserved name."""

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        full, state = super().keyframe(x)
        return full, {**state, TRUST: full.mean()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("trust")
    return trust_pairs.bundle(folder, schedule={"kind": "drift", "below": 0.5, "max_interval": 4})


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *HW, 3), np.uint8))


def test_the_graph_tells_what_torch_tells(bundle: Bundle) -> None:
    pair, to_input = TrustPair().eval(), FrameToInput(Preprocess())
    found, expected = [], []
    state: State = {}
    with EdgeRunner(bundle, threads=1) as runner, torch.no_grad():
        for image in images(9):
            result = runner(image)
            x = to_input(torch.from_numpy(image).float()[None])
            if result.kind is StepKind.KEYFRAME:
                state = pair.keyframe(x)[1]
                assert result.trust is None
            else:
                found.append(result.trust)
                expected.append(float(pair.delta(x, state)[1][TRUST]))
    assert found
    # Float32 sums of 384 sigmoids in another order.
    np.testing.assert_allclose(np.array(found, float), expected, rtol=1e-5)


def test_the_manifest_names_it_and_it_is_no_state(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.pair.trust == TensorSpec(name=TRUST, shape=(), dtype="float32")
    assert [spec.name for spec in manifest.state] == ["own", "residual"]
    assert manifest.steps.delta is not None
    assert [spec.name for spec in manifest.steps.delta.outputs] == ["mask", TRUST]
    assert manifest.schedule == DriftSchedule(below=0.5, max_interval=4)
    differing = manifest.provenance["torch_and_onnxruntime_differ"]
    assert isinstance(differing, dict)
    assert set(differing) == {"state", "mask", TRUST}


def test_a_pair_that_does_not_tell_is_exported_as_ever(tmp_path: Path) -> None:
    made = trust_pairs.bundle(tmp_path, TrustPair(tells=False)).manifest
    assert made.pair.trust is None
    differing = made.provenance["torch_and_onnxruntime_differ"]
    assert isinstance(differing, dict)
    assert set(differing) == {"state", "mask"}


@pytest.mark.parametrize(
    ("pair", "settings", "error", "message"),
    [
        (
            TrustPair(tells=False),
            {"schedule": {"kind": "drift", "below": 0.5}},
            RecipeError,
            r"schedule 'drift': .* returns 'trust', that of this trust pair does not\. Use schedule 'every' or",
        ),
        (Odd(torch.zeros(1)), {}, ConversionError, r"'trust' .* expected a float of shape \(\), got \(1,\) float32"),
        (Odd(torch.zeros(1, 1, 4, 6)), {}, ConversionError, r"got \(1, 1, 4, 6\) float32\. Return one number"),
        (Odd(torch.tensor(1)), {}, ConversionError, r"expected a float of shape \(\), got \(\) int64"),
        (InState(), {}, ConversionError, r"keyframe step: it returns 'trust', .*Give that state tensor another"),
    ],
    ids=["drift without", "an axis", "a map", "an integer", "state"],
)  # fmt: skip
def test_what_is_no_trust_is_refused(
    pair: TrustPair, settings: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        trust_pairs.bundle(tmp_path, pair, **settings)
    assert not (tmp_path / "bundle").exists()


def test_a_graph_that_tells_something_else_than_torch_is_refused(tmp_path: Path) -> None:
    class Fickle(TrustPair):
        """Its answer hangs on how often it was asked, which a graph cannot know."""

        asked = 0

        def trust(self, confidence: Tensor) -> Tensor:
            self.asked += 1
            return confidence.mean() * 0 + self.asked / 100

    with pytest.raises(EngineError, match="ONNX Runtime and torch differ in the trust by"):
        trust_pairs.bundle(tmp_path, Fickle())
