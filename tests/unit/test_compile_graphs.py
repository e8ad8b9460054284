"""Step graphs as modules: resizing as matrix products, and decoding."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.compile.graphs import BilinearAsMatmul, Decoder, StepGraph  # noqa: E402
from edge_sdk.distill.convert import to_delta  # noqa: E402
from edge_sdk.distill.delta import Pass  # noqa: E402
from edge_sdk.distill.delta_recipe import DeltaSettings  # noqa: E402
from edge_sdk.distill.frames import FrameToInput  # noqa: E402
from edge_sdk.distill.models import ddrnet_23_slim  # noqa: E402
from edge_sdk.distill.recipes import Preprocess  # noqa: E402
from edge_sdk.distill.steps import PerFrame, StepPair  # noqa: E402
from tests import nets  # noqa: E402

sides = st.integers(1, 14)


@settings(max_examples=80)
@given(
    sides, sides, st.integers(1, 20), st.integers(1, 20), st.sampled_from([None, False, True]), st.booleans()
)
def test_resizing_as_matrix_products(
    h: int, w: int, out_h: int, out_w: int, corners: bool | None, square: bool
) -> None:
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(h * 100 + w))
    size: object = out_h if square else (out_h, out_w)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=corners)  # type: ignore[arg-type]
    with BilinearAsMatmul():
        found = F.interpolate(x, size=size, mode="bilinear", align_corners=corners)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


OTHERS: list[dict[str, object]] = [
    {"size": (9, 5), "mode": "nearest"},
    {"size": (9, 5), "mode": "bicubic"},
    {"size": (3, 2), "mode": "bilinear", "antialias": True},
    {"size": (3, 2), "mode": "area"},
    {"scale_factor": 1.7, "mode": "bilinear"},
    {"scale_factor": 0.5, "mode": "bilinear", "recompute_scale_factor": True},
]


@pytest.mark.parametrize("settings_", OTHERS)
def test_other_resizing_is_left_alone(settings_: dict[str, object]) -> None:
    x = torch.randn(1, 2, 6, 7)
    expected = F.interpolate(x, **settings_)  # type: ignore[arg-type]
    with BilinearAsMatmul():
        found = F.interpolate(x, **settings_)  # type: ignore[arg-type]
    assert torch.equal(found, expected)


def test_an_axis_that_keeps_its_size_is_not_multiplied() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[..., 1, 2] = torch.inf  # a product with zeros would make it nan in its whole row or column
    with BilinearAsMatmul():
        rows, columns = (F.interpolate(x, size=size, mode="bilinear") for size in ((8, 4), (4, 8)))
        same = F.interpolate(x, size=(4, 4), mode="bilinear")
    assert rows[..., [0, 1, 3]].isfinite().all()
    assert columns[..., [0, 2, 3], :].isfinite().all()
    assert torch.equal(same, x)


def test_lines_and_modules() -> None:
    line = torch.randn(1, 2, 5)
    image = torch.randn(1, 2, 5, 4)
    with BilinearAsMatmul():
        assert F.interpolate(line, size=9, mode="linear").shape == (1, 2, 9)
        found = nn.Upsample(size=(7, 9), mode="bilinear", align_corners=True)(image)
    torch.testing.assert_close(found, F.interpolate(image, size=(7, 9), mode="bilinear", align_corners=True))
    assert torch.equal(F.interpolate(image, size=(3, 3)), F.interpolate(image, size=(3, 3)))


@pytest.mark.parametrize("stride", [1, 2, 3, 8])
@pytest.mark.parametrize("size_hw", [(16, 24), (17, 23)])
def test_decoding_repeats_every_strides_answer(stride: int, size_hw: tuple[int, int]) -> None:
    logits = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = Decoder(size_hw, stride)(logits)
    assert mask.dtype == torch.uint8
    assert mask.shape == size_hw
    small = (-(-size_hw[0] // stride), -(-size_hw[1] // stride))
    best = F.interpolate(logits, size=small, mode="bilinear").argmax(1)[0]
    for i in range(size_hw[0]):
        for j in range(size_hw[1]):
            assert int(mask[i, j]) == int(best[i // stride, j // stride])


def test_a_step_graph_runs_its_step() -> None:
    torch.manual_seed(0)
    net = to_delta(
        nets.foreign("nested"), torch.zeros(1, 3, *nets.SIZE_HW), DeltaSettings()
    ).net.keep_choices()
    to_input, decoder = FrameToInput(Preprocess()), Decoder(nets.SIZE_HW, 1)
    keyframe = StepGraph(net, "keyframe", to_input, decoder, (), matmul_resize=False).eval()
    frames = torch.randint(0, 256, (2, *nets.SIZE_HW, 3), dtype=torch.uint8)
    with torch.no_grad():
        mask, *state = keyframe(frames[0])
        assert keyframe.writes == ("middle.stages.0.a.0", "middle.stages.0.b.0")
        delta = StepGraph(net, "delta", to_input, decoder, keyframe.writes, matmul_resize=True).eval()
        (later,) = delta(frames[1], *state)
        assert delta.writes == ()
        logits, _ = net.delta(to_input(frames[1:]), dict(zip(keyframe.writes, state, strict=True)))
        assert (later != decoder(logits)).float().mean() < 1e-3
        assert torch.equal(mask, decoder(net.keyframe(to_input(frames[:1]))[0]))


def test_state_takes_half_of_the_published_form() -> None:
    torch.manual_seed(0)
    net = to_delta(nets.randomise(ddrnet_23_slim(width=8)), torch.zeros(1, 3, 64, 96), DeltaSettings()).net

    def size(state: dict[str, Tensor]) -> int:
        return sum(t.numel() * t.element_size() for t in state.values())

    published: dict[str, Tensor] = {}
    with torch.no_grad():
        net.run(Pass.KEYFRAME, torch.zeros(1, 3, 64, 96), published, "published")
        _, telescoped = net.keyframe(torch.zeros(1, 3, 64, 96))
    assert len(published) == 2 * len(telescoped) == 2 * net.joins
    assert size(telescoped) <= size(published) / 2


def test_steps_that_are_not_defined_say_so() -> None:
    with pytest.raises(TypeError, match="PerFrame defines no delta step"):
        PerFrame(nn.Identity()).delta(torch.zeros(1), {})
    with pytest.raises(TypeError, match="StepPair defines no keyframe step"):
        StepPair().keyframe(torch.zeros(1))
