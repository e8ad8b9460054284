"""From a checkpoint to a bundle that runs: torch and the runtime agree, and what is refused."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting needs torch")
onnx = pytest.importorskip("onnx", reason="exporting needs onnx")
pytest.importorskip("onnxruntime", reason="an export is checked with ONNX Runtime")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.compile import ExportRecipe, export  # noqa: E402
from edge_sdk.compile.specs import graph_macs  # noqa: E402
from edge_sdk.distill.candidates import Gate  # noqa: E402
from edge_sdk.distill.convert import to_delta  # noqa: E402
from edge_sdk.distill.delta_recipe import DistillRecipe  # noqa: E402
from edge_sdk.distill.distil import load_student  # noqa: E402
from edge_sdk.distill.frames import FrameToInput  # noqa: E402
from edge_sdk.distill.modules import save_checkpoint  # noqa: E402
from edge_sdk.errors import CheckpointError, ConversionError, EngineError, RecipeError, ShapeError  # noqa: E402
from edge_sdk.runtime.result import StepKind  # noqa: E402
from edge_sdk.runtime.runner import EdgeRunner  # noqa: E402
from edge_sdk.runtime.schedule import EverySchedule  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from tests import nets  # noqa: E402

HW = nets.SIZE_HW
CLASSES = ["a", "b", "c", "d"]
TOLERANCE = 1e-3  # the recipe's default: share of pixels that may differ


def make(name: str) -> nn.Module:
    """The factory of recipes."""
    return nets.foreign(name)


def student(folder: Path, name: str, seed: int = 0, **delta: Any) -> Path:
    """A ``student.pt`` with random candidates, as a distillation would write it."""
    weights = folder / "teacher.pt"
    network = make(name)
    save_checkpoint(weights, network.state_dict())
    data = {
        "out": folder,
        "teacher": {"factory": f"{__name__}:make", "arguments": {"name": name}, "checkpoint": weights},
        "task": {"classes": CLASSES},
        "delta": delta,
        "data": {"video": ["none"]},
        "loop": {"steps": 1},
    }
    recipe = parse_settings(data, DistillRecipe, "test")
    net = to_delta(network, torch.zeros(1, 3, *HW), recipe.delta).net
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.student_parameters():
            if parameter.ndim:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        gate = net.layers[0].g_gate if net.layers else None
        if isinstance(gate, Gate):
            gate.logit.fill_(1.0)
    meta = {
        "kind": "delta", "recipe": recipe.model_dump(mode="json"), "figures": {"loss": 0.5}, "commit": "abc",
        "example_hw": list(HW),
    }  # fmt: skip
    path = folder / "student.pt"
    save_checkpoint(path, {"state_dict": net.network.state_dict(), "meta": meta})
    return path


def video(count: int, size_hw: tuple[int, int] = HW, seed: int = 3) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 of a scene that drifts, with noise."""
    rng = np.random.default_rng(seed)
    scene = rng.integers(0, 256, (size_hw[0] // 4 + 2, size_hw[1] // 4 + count + 2, 3)).astype(np.float32)
    big = np.kron(scene, np.ones((4, 4, 1), np.float32))
    noise = rng.normal(0, 6, (count, *size_hw, 3))
    return [
        np.clip(big[: size_hw[0], i : i + size_hw[1]] + noise[i], 0, 255).astype(np.uint8)
        for i in range(count)
    ]


def decode(logits: Tensor, size_hw: tuple[int, int]) -> np.ndarray:
    full = F.interpolate(logits, size=size_hw, mode="bilinear", align_corners=False)
    return full.argmax(1)[0].numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A student of the nested network and its bundle."""
    folder = tmp_path_factory.mktemp("plain")
    path = student(folder, "nested")
    return path, export(ExportRecipe(out=folder / "bundle", checkpoint=path, frame_hw=HW))


def check_against_torch(path: Path, bundle: Bundle, frame_hw: tuple[int, int] = HW) -> None:
    """Every pixel of every frame of a stream, keyframes and chained deltas, against the torch modules."""
    net, recipe, _ = load_student(path)
    to_input = FrameToInput(recipe.preprocess)
    state: dict[str, Tensor] = {}
    teacher_like, wrong = 0, []
    with EdgeRunner(bundle, schedule=EverySchedule(interval=3)) as runner, torch.no_grad():
        for index, image in enumerate(video(8, frame_hw)):
            result = runner(image)
            x = to_input(torch.from_numpy(image)[None])
            if index % 3 == 0:
                assert result.kind is StepKind.KEYFRAME
                logits, state = net.keyframe(x)
            else:
                assert result.kind is StepKind.DELTA
                logits, _ = net.delta(x, state)
                teacher_like += int(np.array_equal(decode(net.network(x), frame_hw), result.mask))
            assert result.mask.shape == frame_hw
            assert result.mask.dtype == np.uint8
            wrong.append(float((result.mask != decode(logits, frame_hw)).mean()))
    assert max(wrong) <= TOLERANCE
    # The students are not the teacher, or a delta graph that runs the teacher would pass.
    assert teacher_like == 0


def test_a_pair_runs_in_the_runtime_as_in_torch(plain: tuple[Path, Bundle]) -> None:
    check_against_torch(*plain)


PAIRS = [
    ("in_place", {}),
    ("shared", {}),
    ("residual", {"blocks": ["middle"]}),
    ("nested", {"kept": ["middle.stages.0.b"]}),
    ("train_statistics", {}),
]


@pytest.mark.parametrize(("name", "delta"), PAIRS)
def test_networks_with_peculiarities_export(name: str, delta: dict[str, Any], tmp_path: Path) -> None:
    path = student(tmp_path, name, **delta)
    bundle = export(ExportRecipe(out=tmp_path / "bundle", checkpoint=path, frame_hw=HW))
    check_against_torch(path, bundle)


def test_the_manifest_says_what_the_graphs_are(plain: tuple[Path, Bundle]) -> None:
    path, bundle = plain
    manifest = bundle.manifest
    names = ["middle.stages.0.a.0", "middle.stages.0.b.0"]
    assert manifest.method == "delta"
    assert manifest.name == "bundle"
    assert [spec.name for spec in manifest.state] == names
    assert {spec.shape for spec in manifest.state} == {(1, 8, 16, 24)}
    keyframe, delta = manifest.steps.keyframe, manifest.steps.delta
    assert delta is not None
    assert [t.name for t in keyframe.inputs] == ["frame"]
    assert [t.name for t in keyframe.outputs] == ["mask", *(f"state.{n}.next" for n in names)]
    assert [t.name for t in delta.inputs] == ["frame", *(f"state.{n}" for n in names)]
    assert [t.name for t in delta.outputs] == ["mask"]
    assert (delta.inputs[0].shape, delta.inputs[0].dtype) == ((*HW, 3), "uint8")
    assert (delta.outputs[0].shape, delta.outputs[0].dtype) == (HW, "uint8")
    assert isinstance(manifest.schedule, EverySchedule)
    assert manifest.schedule.interval == 5
    # 3 x 3 from three to eight, 3 x 3 and 1 x 1 of eight, 1 x 1 to four, all on 16 x 24.
    assert keyframe.macs is not None
    assert delta.macs is not None
    teacher = (27 * 8 + 72 * 8 + 64 + 32) * 384
    # At the keyframe the students run too: the first is the full candidate, the second of rank two.
    assert keyframe.macs == teacher + (72 * 8 + 2 * 16) * 384
    assert delta.macs == (27 * 8 + 72 * 8 + 2 * 16 + 32) * 384
    provenance = manifest.provenance
    assert provenance["training"]["figures"] == {"loss": 0.5}  # type: ignore[index,call-overload]
    assert provenance["training"]["recipe"]["task"]["classes"] == CLASSES  # type: ignore[index,call-overload]
    assert provenance["export"]["checkpoint"] == str(path)  # type: ignore[index,call-overload]
    assert set(provenance["versions"]) == {"torch", "onnx"}  # type: ignore[arg-type]
    assert 0 <= provenance["torch_and_onnxruntime_differ"]["state"] <= TOLERANCE  # type: ignore[index,call-overload,operator]
    assert set(manifest.files) == {"keyframe.onnx", "delta.onnx"}


def test_graphs_are_static_and_folded(plain: tuple[Path, Bundle]) -> None:
    for step in ("keyframe", "delta"):
        model = onnx.load(str(plain[1].path / f"{step}.onnx"))
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"Shape", "Identity", "BatchNormalization", "Dropout", "If", "Loop"}
        values = [*model.graph.input, *model.graph.output]
        assert all(d.dim_value > 0 for v in values for d in v.type.tensor_type.shape.dim)
        assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    # No subtraction is left of the telescoped form.
    assert "Sub" not in {node.op_type for node in model.graph.node}


def test_a_networks_resizes_and_the_frames(tmp_path: Path) -> None:
    """Network input smaller than the frame, odd frame size, coarse decoding, native resizing."""
    path = student(tmp_path, "nested")
    content = torch.load(path)
    content["meta"]["recipe"]["preprocess"]["size_hw"] = list(HW)
    save_checkpoint(path, content)
    size = (45, 61)
    for matmul in (True, False):
        bundle = export(
            ExportRecipe(out=tmp_path / f"b{matmul}", checkpoint=path, frame_hw=size, matmul_resize=matmul)
        )
        check_against_torch(path, bundle, size)


# Per-frame networks, with exact answers


def picked(tmp_path: Path, size_hw: tuple[int, int], **changes: Any) -> Bundle:
    weights = tmp_path / "picker.pt"
    save_checkpoint(weights, nets.picker().state_dict())
    preprocess = {"mean": (0, 0, 0), "std": (1, 1, 1), **changes.pop("preprocess", {})}
    data = {
        "out": tmp_path / "bundle",
        "module": {"factory": "tests.nets:picker", "checkpoint": weights},
        "task": {"classes": ["one", "two", "three"]},
        "preprocess": preprocess,
        "frame_hw": size_hw,
        **changes,
    }
    return export(parse_settings(data, ExportRecipe, "test"))


def answer(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    with EdgeRunner(bundle) as runner:
        return np.array(runner(image).mask)


@pytest.mark.parametrize(("order", "opset"), [("RGB", 17), ("BGR", 21)])
def test_colour_order_is_in_the_graph(order: str, opset: int, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    bundle = picked(tmp_path, (9, 14), preprocess={"order": order}, opset=opset)
    channels = image[..., ::-1] if order == "RGB" else image
    assert np.array_equal(answer(bundle, image), channels.argmax(-1))
    assert bundle.manifest.steps.delta is None
    assert bundle.manifest.method == "per_frame"
    assert bundle.manifest.steps.keyframe.macs == 9 * 9 * 14
    assert bundle.manifest.provenance["training"]["module"]["factory"] == "tests.nets:picker"  # type: ignore[index,call-overload]
    model = onnx.load(str(bundle.path / "keyframe.onnx"))
    assert model.opset_import[0].version == opset


def test_mean_and_scale_are_in_the_graph(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    mean, std = (10.0, 100.0, 180.0), (20.0, 1.0, 50.0)
    bundle = picked(tmp_path, (8, 12), preprocess={"mean": mean, "std": std})
    expected = ((image[..., ::-1].astype(np.float64) - mean) / std).argmax(-1)
    assert np.array_equal(answer(bundle, image), expected)


def test_coarse_decoding(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    mask = answer(picked(tmp_path, (9, 13), decode_stride=4), image)
    logits = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).float().permute(2, 0, 1)[None]
    small = F.interpolate(logits, size=(3, 4), mode="bilinear", align_corners=False).argmax(1)[0].numpy()
    assert np.array_equal(mask, small.repeat(4, 0).repeat(4, 1)[:9, :13])


# What is refused


def test_recipes_that_contradict_themselves() -> None:
    module = {"factory": "tests.nets:picker"}
    task = {"classes": ["a"]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "expected one of 'checkpoint', 'module' and 'online', got none"),
        ({"checkpoint": "a.pt", "module": module, "task": task}, "'online', got 'checkpoint' and 'module'"),
        ({"module": module}, "'module' needs a 'task'"),
        ({"checkpoint": "a.pt", "task": task}, "'checkpoint' knows its own task"),
        ({"checkpoint": "a.pt", "preprocess": {"order": "BGR"}}, "'checkpoint' knows its own preprocess"),
        ({"checkpoint": "a.pt", "opset": 16}, "'opset'"),
        ({"checkpoint": "a.pt", "decode_stride": 0}, "'decode_stride'"),
    ]
    for data, message in cases:
        with pytest.raises(RecipeError, match=message):
            parse_settings({"out": "o", "frame_hw": (8, 8), **data}, ExportRecipe, "test")


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", nets.picker().state_dict())
    with pytest.raises(CheckpointError, match=r"expected one written by edge-sdk train or distill.*'module'"):
        export(ExportRecipe(out=tmp_path / "b", checkpoint=tmp_path / "w.pt", frame_hw=(8, 8)))


def test_classes_must_match(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"expected class logits \(1, 2, h, w\).*got \(1, 3, 8, 8\)"):
        picked(tmp_path, (8, 8), task={"classes": ["one", "two"]})
    assert not (tmp_path / "bundle").exists()


def test_an_operator_that_onnx_lacks(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "s.pt", nets.spectral().state_dict())
    before = logging.getLogger("torch.onnx").level
    with pytest.raises(ConversionError, match=r"keyframe step: torch cannot write it as ONNX: "):
        picked(tmp_path, (8, 8), module={"factory": "tests.nets:spectral", "checkpoint": tmp_path / "s.pt"})
    assert logging.getLogger("torch.onnx").level == before
    assert not (tmp_path / "bundle").exists()


def test_a_disagreement_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("edge_sdk.compile.export")  # its function hides it
    real = module._write_onnx

    def spoilt(graph: Any, inputs: Any, file: Path, *more: Any) -> None:
        real(graph, inputs, file, *more)
        model = onnx.load(str(file))
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), tensor.name))
        onnx.save(model, str(file))

    monkeypatch.setattr(module, "_write_onnx", spoilt)
    with pytest.raises(
        EngineError, match=r"ONNX Runtime and torch differ in the mask by .*allowed are 1e-03"
    ):
        picked(tmp_path, (8, 8))
    assert not (tmp_path / "bundle").exists()


def test_a_graph_that_the_runtime_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def refuse(*args: Any, **settings: Any) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel\nmore")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(EngineError, match=r"ONNX Runtime refuses the keyframe step: .*no kernel\. Try"):
        picked(tmp_path, (8, 8))


def test_macs_are_counted_on_the_graph(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1, groups=1)
            self.wise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
            self.up = nn.ConvTranspose2d(8, 4, 2, 2)
            self.mix = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.up(self.wise(self.conv(x))).permute(0, 2, 3, 1))

    file = tmp_path / "mixed.onnx"
    torch.onnx.export(
        Mixed().eval(),
        (torch.zeros(1, 3, 8, 12),),
        str(file),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    places = 4 * 6
    expected = 27 * 8 * places + 9 * 8 * places + (8 * 4 * 4) * places + 4 * 5 * 96
    assert graph_macs(onnx.load(str(file))) == expected
