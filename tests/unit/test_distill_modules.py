"""Networks by name, and checkpoints: never half, never with code in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from edge_sdk.distill.models import ddrnet_23, ddrnet_23_slim, ddrnet_39, small_segmenter  # noqa: E402
from edge_sdk.distill.modules import (  # noqa: E402
    fill_module,
    load_module,
    make_module,
    read_checkpoint,
    read_weights,
    save_checkpoint,
)
from edge_sdk.distill.recipes import ModuleSettings  # noqa: E402
from edge_sdk.errors import CheckpointError, FileFormatError, MissingFileError, RecipeError  # noqa: E402
from tests import nets  # noqa: E402

TINY = "tests.nets:tiny"
NOT_CALLABLE = 3


def raises() -> nn.Module:
    raise KeyError("no such backbone")


FACTORIES = [
    ("tests.nets", {}, "expected package.module:function, got 'tests.nets'"),
    (":tiny", {}, "expected package.module:function"),
    ("tests.nothing:tiny", {}, "cannot import tests.nothing:tiny: ModuleNotFoundError.*PYTHONPATH"),
    ("tests.nets:tinny", {}, "cannot import tests.nets:tinny: .*no attribute 'tinny'"),
    (TINY, {"widht": 4}, "'arguments' of tests.nets:tiny: .*unexpected keyword argument 'widht'"),
    ("tests.nets:frames", {}, "'arguments' of tests.nets:frames: missing a required argument: 'count'"),
    ("tests.nets:frames", {"count": 1}, "to return an nn.Module, got list"),
    (f"{__name__}:NOT_CALLABLE", {}, "3 is not a callable object"),
    (f"{__name__}:raises", {}, "raises raised KeyError: 'no such backbone'"),
]


@pytest.mark.parametrize(("factory", "arguments", "message"), FACTORIES)
def test_factories_that_do_not_work(factory: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_module(ModuleSettings(factory=factory, arguments=arguments))


def test_a_factory_gets_its_arguments() -> None:
    module = make_module(ModuleSettings(factory=TINY, arguments={"classes": 7, "width": 16}))
    assert module[0].out_channels == 16  # type: ignore[index]
    assert module[-1].out_channels == 7  # type: ignore[index]


def test_weights_are_never_random_by_omission() -> None:
    with pytest.raises(RecipeError, match=r"expected a file with trained weights, got none.*edge-sdk train"):
        load_module(ModuleSettings(factory=TINY))


class Wrapper(nn.Module):
    """Its own names begin as DistributedDataParallel's do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Conv2d(3, 4, 1)


def wrap_plain(weights: dict[str, Any]) -> dict[str, Any]:
    return weights


def prefixed(prefix: str) -> Any:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


LAYOUTS = {
    "bare": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w, "optimizer": {"state": {}}},
    "ddp": prefixed("module."),
    "nested ddp": lambda w: {"model_state_dict": prefixed("module.")(w)},
    "compiled": prefixed("_orig_mod."),
    "ddp of compiled": prefixed("module._orig_mod."),
    "compiled ddp": prefixed("_orig_mod.module."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoint_layouts(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = nets.randomise(nets.tiny())
    path = tmp_path / "weights.pt"
    torch.save(LAYOUTS[layout](source.state_dict()), path)
    module = load_module(ModuleSettings(factory=TINY, checkpoint=path))
    assert not module.training
    for name, value in source.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)


def test_a_modules_own_prefix_is_kept(tmp_path: Path) -> None:
    source, target = Wrapper(), Wrapper()
    save_checkpoint(tmp_path / "w.pt", source.state_dict())
    fill_module(target, read_weights(tmp_path / "w.pt"), "w.pt")
    assert torch.equal(target.module.weight, source.module.weight)


def test_a_checkpoint_that_does_not_fit_names_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    weights = nets.tiny(width=16).state_dict()
    del weights["1.bias"]
    weights["aux.weight"] = torch.zeros(1)
    save_checkpoint(path, weights)
    before = nets.tiny()
    kept = {name: value.clone() for name, value in before.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        fill_module(before, read_weights(path), path)
    message = str(caught.value)
    assert f"checkpoint {path} does not fit Sequential" in message
    assert "1 missing (1.bias)" in message
    assert "1 not in the module (aux.weight)" in message
    assert "of another shape (0.weight: expected (8, 3, 3, 3), got (16, 3, 3, 3), 1.weight: " in message
    assert "'arguments'" in message
    assert all(torch.equal(before.state_dict()[name], value) for name, value in kept.items())


class Harmful:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm.txt"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hook": Harmful()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Harmful()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(
            FileFormatError, match=r"\.pt: not a file of tensors, or with code in it.*state_dict"
        ):
            read_checkpoint(name)
    assert not (tmp_path / "harm.txt").exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nets.tiny(), tmp_path / "whole.pt")
    with pytest.raises(FileFormatError, match=r"with code in it \(torch.nn.modules.*\), which is never run"):
        read_weights(tmp_path / "whole.pt")


def test_other_contents(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"checkpoint: expected a file at .*nothing.pt"):
        read_checkpoint(tmp_path / "nothing.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(FileFormatError, match="expected a dictionary of tensors, got Tensor"):
        read_checkpoint(tmp_path / "tensor.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="expected a state dict, found no tensors"):
        read_weights(tmp_path / "none.pt")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_checkpoints_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = tmp_path / "whole.pt"
    if not whole.exists():
        torch.save(nets.tiny().state_dict(), whole)
    content = whole.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "noise", "text"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif kind == "noise":
        content = data.draw(st.binary(max_size=300))
    else:
        content = data.draw(st.text(max_size=50)).encode()
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"damaged.pt: "):
        read_checkpoint(path)


def test_saving_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    save_checkpoint(path, {"w": torch.ones(2)})
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"w": torch.zeros(2), "bad": lambda: None})
    assert torch.equal(read_checkpoint(path)["w"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


# Reference networks


@pytest.mark.parametrize(
    ("factory", "millions"), [(ddrnet_23_slim, 5.70), (ddrnet_23, 20.15), (ddrnet_39, 32.36)]
)
def test_published_sizes(factory: Any, millions: float) -> None:
    with torch.device("meta"):
        network = factory(19)
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("factory", [ddrnet_23_slim, ddrnet_23, ddrnet_39])
@pytest.mark.parametrize("size_hw", [(64, 96), (33, 47), (75, 130)])
def test_ddrnets_are_at_an_eighth_of_any_size(factory: Any, size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = factory(5, width=4).eval()
    with torch.no_grad():
        out = network(torch.randn(1, 3, *size_hw))
    assert out.shape == (1, 5, -(-size_hw[0] // 8), -(-size_hw[1] // 8))
    assert out.isfinite().all()


def test_width_scales_every_layer() -> None:
    with torch.device("meta"):
        wide, narrow = ddrnet_23_slim(19, width=32), ddrnet_23_slim(19, width=16)
    pairs = zip(wide.modules(), narrow.modules(), strict=True)
    convs = [(a, b) for a, b in pairs if isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d)]
    assert len(convs) > 50
    for index, (a, b) in enumerate(convs):
        assert a.out_channels == (b.out_channels if index == len(convs) - 1 else 2 * b.out_channels)


def test_the_small_network_is_at_a_quarter() -> None:
    network = small_segmenter(classes=5, width=8).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 30, 45)).shape == (1, 5, 8, 12)
