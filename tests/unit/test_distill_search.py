"""The search under a budget: what it decides, what it leaves, and that a stopped one goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

import yaml  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402

from edge_sdk.distill.convert import to_delta  # noqa: E402
from edge_sdk.distill.delta_recipe import DeltaSettings, DistillRecipe, SearchSettings  # noqa: E402
from edge_sdk.distill.distil import distill, load_student  # noqa: E402
from edge_sdk.distill.modules import read_checkpoint, save_checkpoint  # noqa: E402
from edge_sdk.distill.search import BudgetSearch, fitted  # noqa: E402
from edge_sdk.errors import MissingFileError, RecipeError  # noqa: E402
from edge_sdk.evaluate.timing import Spread  # noqa: E402
from edge_sdk.machine import MachineFacts  # noqa: E402
from edge_sdk.profile.structure import Structure  # noqa: E402
from edge_sdk.profile.table import CostTable, WholeStudent  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from edge_sdk.tasks.base import TaskSpec  # noqa: E402
from edge_sdk.video.synthetic import SYNTHETIC_CLASSES  # noqa: E402
from tests import nets  # noqa: E402

CLIP = "synthetic:shapes?height=32&width=48&frames=6"
MACHINE = MachineFacts(arch="aarch64", os="linux", device="a board", memory_bytes=1 << 33)
CANDIDATES = ("full", "rank/4", "half", "kept")
# The two convolutions in the middle of the tiny network, one after the other.
UNITS: dict[str, tuple[str, ...]] = {"3": CANDIDATES, "6": CANDIDATES}
COSTS = {"full": 3.0, "rank/4": 1.5, "half": 1.0, "kept": 0.0}


def table(costs: Mapping[str, Mapping[str, float]] | None = None, rest_ms: float = 1.0) -> CostTable:
    """A device on which a student takes ``rest_ms`` and what its units cost; 6 reads 3 alone."""
    units = {name: dict(found) for name, found in (costs or dict.fromkeys(UNITS, COSTS)).items()}
    names = list(units)
    reference = dict.fromkeys(names, "full")
    whole = rest_ms + sum(found["full"] for found in units.values())
    return CostTable(
        machine=MACHINE, runtime="onnxruntime 1.0", backend="onnxruntime", precision="float32", threads=1,
        frame_hw=nets.SIZE_HW, units=units, rounds=3,
        structure=Structure(
            reads={name: tuple(names[max(i - 1, 0) : i]) for i, name in enumerate(names)}, answer=(names[-1],)
        ),
        reference=WholeStudent(choice=reference, ms=Spread(median=whole, iqr=0.1)),
    )  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(table().to_json())
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    save_checkpoint(path, nets.randomise(nets.tiny(len(SYNTHETIC_CLASSES))).state_dict())
    return path


def recipe(out: Path, teacher: Path, written: Path, **changes: Any) -> DistillRecipe:
    data: dict[str, Any] = {
        "out": out,
        "teacher": {
            "factory": "tests.nets:tiny", "arguments": {"classes": len(SYNTHETIC_CLASSES)},
            "checkpoint": teacher,
        },
        "task": TaskSpec(classes=SYNTHETIC_CLASSES).model_dump(),
        "delta": {"units": UNITS, "include": []},
        "data": {"video": [CLIP], "max_gap": 29, "motion": {"max_gap": 29}},
        "optimiser": {"kind": "adamw", "lr": 0.01},
        "search": {"table": written, "budget_ms": 3.0, "until": 0.5},
        "loop": {"steps": 6, "batch": 2, "workers": 0, "checkpoint_every": 1, "accelerator": "cpu"},
    }  # fmt: skip
    for key, value in changes.items():
        data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_settings(data, DistillRecipe, "test")


class Stop(Exception):
    """What a user's Ctrl-C is to the loop."""


class Watcher:
    """Notes every update, and stops the run after one step where it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.seen: list[dict[str, float]] = []

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        self.seen.append(figures)
        if done == self.stop_at:
            raise Stop


def weights(path: Path) -> dict[str, Tensor]:
    return dict(read_checkpoint(path)["state_dict"])


# What fits a budget


def test_the_likeliest_choice_stays_where_it_fits() -> None:
    scores = {name: {"full": -0.1, "rank/4": -3.0, "half": -4.0, "kept": -5.0} for name in UNITS}
    assert fitted(scores, table(), 7.0) == {"3": "full", "6": "full"}


# budget, what is left of full and full; the scores are below
TRADES = [
    (6.9, {"3": "rank/4", "6": "full"}),  # 0.2 for 1.5 ms in 3, against 1.0 for 1.5 in 6
    (5.4, {"3": "half", "6": "full"}),  # 0.1 more for half a millisecond
    (4.9, {"3": "half", "6": "rank/4"}),
    (3.4, {"3": "half", "6": "half"}),
]


@pytest.mark.parametrize(("budget_ms", "expected"), TRADES)
def test_what_costs_the_least_likelihood_for_a_millisecond_is_traded(
    budget_ms: float, expected: dict[str, str]
) -> None:
    scores = {
        "3": {"full": -0.1, "rank/4": -0.3, "half": -0.4, "kept": -9.0},
        "6": {"full": -0.1, "rank/4": -1.1, "half": -1.6, "kept": -9.0},
    }
    assert fitted(scores, table(), budget_ms) == expected


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(1.0, 7.0))
def test_a_choice_always_fits_or_is_refused_with_both_figures(seed: int, budget_ms: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    names = [f"u{i}" for i in range(4)]
    costs = {
        name: dict(zip(CANDIDATES, (*torch.rand(3, generator=generator).tolist(), 0.0), strict=True))
        for name in names
    }
    scores = {
        name: dict(zip(CANDIDATES, torch.randn(4, generator=generator).log_softmax(0).tolist(), strict=True))
        for name in names
    }
    made = table(costs, rest_ms=2.0)
    if budget_ms < 2.0:
        with pytest.raises(RecipeError, match=r"expected at least 2\.000 ms.*got 1\.\d\d\d ms"):
            fitted(scores, made, budget_ms)
        return
    choice = fitted(scores, made, budget_ms)
    assert made.predict(choice) <= budget_ms
    # Nothing was traded that need not be: where the likeliest fit, they stay.
    likeliest = {name: max(found, key=found.__getitem__) for name, found in scores.items()}
    if made.predict(likeliest) <= budget_ms:
        assert choice == likeliest


def test_an_impossible_candidate_is_still_traded_for() -> None:
    scores = {"3": {"full": 0.0, "kept": -float("inf")}, "6": {"full": 0.0, "kept": -float("inf")}}
    assert table().predict(fitted(scores, table(), 4.5)) <= 4.5


# The search


def search(written: Path, steps: int = 10, **changes: Any) -> tuple[BudgetSearch, Any]:
    net = to_delta(
        nets.randomise(nets.tiny()), torch.zeros(1, 3, *nets.SIZE_HW), DeltaSettings(units=UNITS, include=())
    ).net
    given_ = {"table": written, "budget_ms": 3.0, **changes}
    return BudgetSearch(net, parse_settings(given_, SearchSettings, "test"), steps=steps), net


def test_the_expected_time_is_that_of_the_probabilities(written: Path) -> None:
    found, net = search(written)
    probabilities = {name: unit.g_gate.shares().tolist() for name, unit in net.units.items()}
    mean = {
        name: sum(p * COSTS[each] for p, each in zip(shares, CANDIDATES, strict=True))
        for name, shares in probabilities.items()
    }
    # What 3 costs counts where 6, its only reader, is computed.
    alive = 1 - probabilities["6"][CANDIDATES.index("kept")]
    assert found.expected_ms().item() == pytest.approx(1.0 + mean["6"] + alive * mean["3"], abs=1e-5)
    loss, expected = found.loss()
    assert loss.item() == pytest.approx(max(float(expected) / 3.0 - 1, 0), abs=1e-6)


def test_the_loss_falls_towards_cheaper_candidates_and_ends_at_the_budget(written: Path) -> None:
    found, net = search(written, budget_ms=1.5)
    loss, before = found.loss()
    assert loss.item() > 0
    loss.backward()
    for unit in net.units.values():
        grad = dict(zip(CANDIDATES, unit.g_gate.logits.grad.tolist(), strict=True))
        assert grad["full"] > 0 > grad["kept"]
    with torch.no_grad():
        for unit in net.units.values():
            unit.g_gate.logits += torch.tensor([-5.0, 0.0, 0.0, 5.0])
    loss, expected = found.loss()
    assert float(expected) < 1.5 < float(before)
    assert loss.item() == 0


def test_it_is_decided_once_and_held(written: Path) -> None:
    found, net = search(written, budget_ms=9.0)
    assert found.until_step == 4
    with torch.no_grad():
        net.units["3"].g_gate.logits[1] = 3.0
        net.units["6"].g_gate.logits[2] = 3.0
    for step in range(4):
        found.begin_step(step)
        assert not found.over
        assert net.units["3"].g_gate.fixed is None
    found.begin_step(4)
    assert found.over
    assert net.choice == {"3": "rank/4", "6": "half"}
    with torch.no_grad():
        net.units["3"].g_gate.logits[0] = 9.0
    found.begin_step(5)
    assert net.choice == {"3": "rank/4", "6": "half"}
    assert found.expected_ms().item() == pytest.approx(1.0 + 1.5 + 1.0)
    # A checkpoint holds it.
    other, again = search(written, budget_ms=9.0)
    other.load_state_dict(found.state_dict())
    other.begin_step(5)
    assert again.choice == net.choice


def test_tables_of_other_units_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(table({"3": COSTS, "7": COSTS}).to_json())
    with pytest.raises(
        RecipeError, match=r"expected a table of this network's units.*'6' is in the network alone"
    ):
        search(path)
    path.write_text(table({"3": COSTS, "6": {"full": 1.0, "kept": 0.0}}).to_json())
    with pytest.raises(RecipeError, match=r"unit '6' was measured as full, kept, got 'rank/4'"):
        search(path)
    with pytest.raises(MissingFileError, match="cost table: expected a file at"):
        search(tmp_path / "none.json")


def test_what_cannot_be_is_refused_before_training(written: Path) -> None:
    with pytest.raises(RecipeError, match=r"'search.budget_ms': expected at least 1\.000 ms.*got 0\.500 ms"):
        search(written, budget_ms=0.5)
    net = to_delta(
        nets.randomise(nets.tiny()), torch.zeros(1, 3, *nets.SIZE_HW), DeltaSettings(candidates="low_rank")
    ).net
    with pytest.raises(RecipeError, match="'search': no unit has more than one candidate"):
        BudgetSearch(net, SearchSettings(table=written, budget_ms=3.0), steps=10)


# Training


def test_a_stopped_search_goes_on_bit_for_bit(tmp_path: Path, teacher: Path, written: Path) -> None:
    straight = distill(recipe(tmp_path / "a", teacher, written))
    # Before it is decided, and after.
    for stop_at in (2, 4):
        again = recipe(tmp_path / f"b{stop_at}", teacher, written)
        with pytest.raises(Stop):
            distill(again, progress=Watcher(stop_at))
        assert distill(again).figures == straight.figures
        first, second = weights(tmp_path / "a" / "student.pt"), weights(again.out / "student.pt")
        assert list(first) == list(second)
        assert all(torch.equal(first[key], second[key]) for key in first)
    # A finished one writes the same again.
    (tmp_path / "a" / "student.pt").unlink()
    distill(recipe(tmp_path / "a", teacher, written))
    assert list(weights(tmp_path / "a" / "student.pt")) == list(first)


@pytest.mark.parametrize("rounded", [False, True])
def test_what_a_search_leaves(tmp_path: Path, teacher: Path, written: Path, rounded: bool) -> None:
    extra: dict[str, Any] = {"quantization": {"start": 0.2}} if rounded else {}
    chosen = recipe(tmp_path / "out", teacher, written, validation=[CLIP], intervals=[5, 30], **extra)
    watcher = Watcher()
    report = distill(chosen, progress=watcher)
    assert {"cost", "expected_ms", "miou_k30"} <= set(report.figures)
    assert report.figures["cost"] == 0
    choice = yaml.safe_load((tmp_path / "out" / "choice.yaml").read_text())
    assert set(choice) == set(UNITS)
    assert table().predict(choice) <= 3.0
    assert report.figures["expected_ms"] == pytest.approx(table().predict(choice))
    assert watcher.seen[0]["expected_ms"] != report.figures["expected_ms"]

    net, _, meta = load_student(tmp_path / "out" / "student.pt")
    assert meta["choice"] == choice
    assert not any("gate" in key or "parametrizations" in key for key in net.state_dict())
    assert net.choice == {name: kind for name, kind in choice.items() if name in net.units}
    rows = {row.name: row for row in report.layers}
    assert {name: rows[name].reason for name in UNITS} == choice

    # The choice is a setting of another training, which may begin with what the search trained.
    start = tmp_path / "out" / "student.pt"
    again = recipe(
        tmp_path / "again", teacher, written, start=start, search=None,
        delta={"units": UNITS, "include": [], "choice": str(tmp_path / "out" / "choice.yaml")},
        loop={"steps": 1}, optimiser={"lr": 1e-30},
    )  # fmt: skip
    distill(again)
    first, second = weights(start), weights(tmp_path / "again" / "student.pt")
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_cheap_candidate_wins_where_it_costs_no_accuracy(tmp_path: Path, teacher: Path) -> None:
    """Low rank that loses nothing is taken in the unit where it saves time; the other keeps full, which is as fast."""
    content = read_checkpoint(teacher)
    weight = content["3.weight"]
    # Of rank one, which a quarter of the channels holds exactly.
    content["3.weight"] = (
        weight[:1, :1] * torch.linspace(1, 2, len(weight))[:, None, None, None] * torch.ones_like(weight[:1])
    )
    exact = tmp_path / "teacher.pt"
    save_checkpoint(exact, content)
    path = tmp_path / "table.json"
    units = {"3": ("full", "rank/4"), "6": ("full", "kept")}
    path.write_text(table({"3": {"full": 3.0, "rank/4": 1.0}, "6": {"full": 1.0, "kept": 0.0}}).to_json())
    chosen = recipe(
        tmp_path / "out", exact, path, delta={"units": units, "include": []},
        search={"table": path, "budget_ms": 3.0, "until": 0.9, "weight": 2.0},
        loop={"steps": 60, "batch": 4, "checkpoint_every": 60}, optimiser={"kind": "adamw", "lr": 0.005},
        loss={"task": {"source": "teacher"}, "feature": 0.1, "feature_until": 1.0},
    )  # fmt: skip
    distill(chosen)
    choice = yaml.safe_load((tmp_path / "out" / "choice.yaml").read_text())
    assert choice == {"3": "rank/4", "6": "full"}


def test_candidates_without_a_table_are_charged_what_they_compute(
    tmp_path: Path, teacher: Path, written: Path
) -> None:
    chosen = recipe(tmp_path / "out", teacher, written, search=None, loss={"cost": 5.0})
    watcher = Watcher()
    report = distill(chosen, progress=watcher)
    assert watcher.seen[0]["cost"] > report.figures["cost"] > 0
    assert "expected_ms" not in report.figures
    assert not (tmp_path / "out" / "choice.yaml").exists()
    net, _, meta = load_student(tmp_path / "out" / "student.pt")
    assert "choice" not in meta
    assert all(unit.g_gate is None for unit in net.units.values())


def test_the_published_gates_may_be_searched(tmp_path: Path, teacher: Path) -> None:
    path = tmp_path / "table.json"
    two = {"full": 2.0, "rank/4": 1.0}
    path.write_text(table({"3": two, "6": two}).to_json())
    chosen = recipe(tmp_path / "out", teacher, path, delta={"units": {}, "include": ["*"]})
    distill(chosen)
    assert yaml.safe_load((tmp_path / "out" / "choice.yaml").read_text()) == {"3": "rank/4", "6": "rank/4"}
    net, _, _ = load_student(tmp_path / "out" / "student.pt")
    assert {key.split(".")[1] for key in net.network.state_dict() if ".g_" in key} == {"g_low"}
