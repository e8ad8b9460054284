"""The cost table: what a choice costs, what vanishes behind kept units, what is refused, how rounds are summed up."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.cli.profile import lines
from edge_sdk.errors import FileFormatError, MissingFileError, RecipeError
from edge_sdk.evaluate.timing import Spread
from edge_sdk.identity import EngineIdentity
from edge_sdk.machine import MachineFacts
from edge_sdk.profile import CostTable
from edge_sdk.profile.measure import _Step, measure, tabulate, time_by_turns
from edge_sdk.profile.prepared import INDEX, ProfileIndex, TinyRef, open_prepared
from edge_sdk.profile.structure import Structure
from edge_sdk.profile.table import CheckedStudent, WholeStudent
from edge_sdk.progress import Silent

MACHINE = MachineFacts(arch="aarch64", os="linux", device="a board", memory_bytes=1 << 33)
# stem (a layer) -> a -> b -> answer; a -> side (a layer) -> pool -> answer. Behind pool, side and, with b, a vanish.
STRUCTURE = Structure(
    reads={"stem": (), "a": ("stem",), "b": ("a",), "side": ("a",), "pool": ("side",)}, answer=("b", "pool")
)
UNITS = {
    "a": {"full": 4.0, "rank/4": 1.0, "kept": 0.0},
    "b": {"full": 3.0, "kept": 0.0},
    "pool": {"full": 2.0, "kept": 0.0},
}
FULL = {"a": "full", "b": "full", "pool": "full"}


def table(reference=None, ms=10.0, **changes):
    content = {
        "machine": MACHINE, "runtime": "onnxruntime 1.0", "backend": "onnxruntime", "precision": "float32",
        "threads": 1, "frame_hw": (32, 48), "units": UNITS, "fixed": {"stem": 0.25, "side": 0.5},
        "structure": STRUCTURE, "rounds": 5,
        "reference": WholeStudent(choice=reference or FULL, ms=Spread(median=ms, iqr=0.1)), **changes,
    }  # fmt: skip
    return CostTable.model_validate(content)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, 10.0),
        ({"a": "rank/4"}, 7.0),
        ({"a": "kept"}, 5.75),  # and the stem, which only a reads
        ({"b": "kept"}, 7.0),
        ({"pool": "kept"}, 7.5),  # and side
        ({"b": "kept", "pool": "kept"}, 0.25),  # and a, side and stem
        ({"a": "kept", "b": "kept", "pool": "kept"}, 0.25),
    ],
)
def test_a_choice_costs_the_reference_and_the_differences_of_what_still_runs(choice, expected):
    assert table().predict({**FULL, **choice}) == pytest.approx(expected)


def test_predictions_are_the_same_from_any_reference_that_was_measured_as_predicted():
    first = table()
    for reference in ({**FULL, "pool": "kept"}, {**FULL, "a": "rank/4", "b": "kept"}):
        other = table(reference, first.predict(reference))
        for a in UNITS["a"]:
            for b in UNITS["b"]:
                for pool in UNITS["pool"]:
                    choice = {"a": a, "b": b, "pool": pool}
                    assert other.predict(choice) == pytest.approx(first.predict(choice))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_expectation_is_the_mean_over_students_that_are_drawn(draws):
    # A chain, where readers are one each: there independence is exact.
    chain = table(
        {"a": "full", "b": "full"},
        units={"a": UNITS["a"], "b": UNITS["b"]}, fixed={"stem": 0.25},
        structure=Structure(reads={"stem": (), "a": ("stem",), "b": ("a",)}, answer=("b",)),
    )  # fmt: skip
    a = {"full": draws[0], "rank/4": (1 - draws[0]) * draws[1], "kept": (1 - draws[0]) * (1 - draws[1])}
    b = {"full": draws[2], "kept": 1 - draws[2]}
    mean = sum(a[x] * b[y] * chain.predict({"a": x, "b": y}) for x in a for y in b)
    assert chain.expected({"a": a, "b": b}) == pytest.approx(mean)


def test_the_expectation_has_gradients_that_prefer_the_cheaper():
    torch = pytest.importorskip("torch")
    logits = {unit: torch.zeros(len(found), requires_grad=True) for unit, found in UNITS.items()}
    shares = {u: dict(zip(UNITS[u], logits[u].softmax(0), strict=True)) for u in UNITS}
    expected = table().expected(shares)
    expected.backward()
    assert expected.shape == ()
    for unit, values in logits.items():
        assert values.grad[-1] < 0 < values.grad[0], unit  # more of kept costs less, more of full more


def test_what_vanishes_is_named():
    assert set(STRUCTURE.vanished(FULL)) == set()
    assert set(STRUCTURE.vanished({**FULL, "pool": "kept"})) == {"side"}
    assert set(STRUCTURE.vanished({**FULL, "b": "kept", "pool": "kept"})) == {"side", "a", "stem"}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda t: t.cost("c", "full"), r"one of the units a, b, pool, got 'c'. Measure it with: edge-sdk profile"),
        (lambda t: t.cost("b", "rank/4"), r"unit 'b' was measured as full, kept, got 'rank/4'. Add it to delta.units"),
        (lambda t: t.predict({"a": "full"}), r"choice: expected a candidate for every unit, got none for 'b'"),
        (lambda t: t.predict({**FULL, "b": "half"}), r"unit 'b' was measured as full, kept, got 'half'"),
        (lambda t: t.expected({"a": {"full": 1.0}}), r"shares: expected probabilities for every unit.*'b'"),
        (lambda t: t.expected({"a": {"half": 1.0}}), r"unit 'a' was measured as full, rank/4, kept, got 'half'"),
    ],
)  # fmt: skip
def test_questions_that_the_table_cannot_answer(ask, message):
    with pytest.raises(RecipeError, match=message):
        ask(table())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format"),
        ({"unit": {}}, "unknown key 'unit'"),
        ({"units": {**UNITS, "c": {"full": 1.0}}}, "'c' is in one alone"),
        ({"structure": {"reads": {"a": ["b"]}, "answer": []}}, "is no part|in one alone"),
        ({"reference": {"choice": {"a": "full"}, "ms": {"median": 1.0, "iqr": 0.0}}}, "got none for 'b'"),
    ],
)
def test_tables_that_are_refused(tmp_path, change, message):
    file = tmp_path / "table.json"
    file.write_text(json.dumps({**json.loads(table().to_json()), **change}))
    with pytest.raises(FileFormatError, match=message):
        CostTable.load(file)
    with pytest.raises(MissingFileError, match="cost table: expected a file"):
        CostTable.load(tmp_path / "none.json")


def test_a_table_is_read_as_it_was_written(tmp_path):
    student = CheckedStudent(choice=FULL, ms=Spread(median=9.0, iqr=0.2), predicted_ms=10.0)
    written = table(checked=(student,), spread_ms={"a": {"full": 0.1}})
    (tmp_path / "table.json").write_text(written.to_json())
    assert CostTable.load(tmp_path / "table.json") == written
    assert written.checked[0].off == pytest.approx(1 / 9)


def test_the_share_of_good_predictions_counts_both_sides():
    students = [
        CheckedStudent(choice=FULL, ms=Spread(median=10.0, iqr=0.0), predicted_ms=ms)
        for ms in (8.4, 8.6, 11.4, 11.6)
    ]
    assert table(checked=students).within == 0.5
    assert table().within is None


@pytest.mark.parametrize("parts", [(), ("side",), ("stem", "side"), ("a", "b"), tuple(STRUCTURE.reads)])
def test_a_structure_without_some_parts_sees_through_them(parts):
    found = STRUCTURE.without(parts)
    assert set(found.reads) == set(STRUCTURE.reads) - set(parts)
    for choice in ({}, {"pool": "kept"}, {"b": "kept"}, {"b": "kept", "pool": "kept"}):
        left = {unit: kind for unit, kind in choice.items() if unit not in parts}
        assert set(found.vanished(left)) == set(STRUCTURE.vanished(left)) - set(parts)


@pytest.mark.parametrize(
    ("reads", "answer", "message"),
    [
        ({"a": ("b",), "b": ("a",)}, ("a",), "a, b read each other in a ring"),
        ({"a": ("c",)}, ("a",), "'a' reads 'c', which is no part"),
        ({"a": ()}, ("b",), "'the answer' reads 'b', which is no part"),
    ],
)
def test_structures_that_are_refused(reads, answer, message):
    with pytest.raises(FileFormatError, match=message):
        Structure(reads=reads, answer=answer).in_order()


def ref(name):
    return TinyRef(bundle=name, kept="kept-1")


def index(**changes):
    content = {
        "backend": "onnxruntime", "precision": "float32", "threads": 1, "frame_hw": (32, 48), "rounds": 3,
        "units": {"a": {"full": [ref("full-1"), ref("full-2")], "rank/4": [ref("rank4-1")], "kept": []}},
        "fixed": {"stem": [ref("stem-1")]}, "structure": Structure(reads={"a": ("stem",), "stem": ()}, answer=("a",)),
        "reference": {"a": "full"}, "students": {"student_00": {"a": "rank/4"}, "student_01": {"a": "kept"}}, **changes,
    }  # fmt: skip
    return ProfileIndex.model_validate(content)


def identity():
    return EngineIdentity(
        backend="onnxruntime", precision="float32", step="delta", graph_sha256="0" * 64, engine_sha256="0" * 64,
        engine_bytes=1, runtime="onnxruntime 1.0", machine=MACHINE, created="", sdk_version="0", build_s=0.0,
    )  # fmt: skip


def times():
    # A slow spell of the machine in the last round falls on all alike.
    spell = np.array([0.0, 0.0, 0.1, 0.0, 5.0])
    bare = {
        "tiny/kept-1": 1.0, "tiny/full-1": 3.0, "tiny/full-2": 2.5, "tiny/rank4-1": 0.9, "tiny/stem-1": 1.25,
        "whole/reference": 10.0, "whole/student_00": 7.0, "whole/student_01": 5.0,
    }  # fmt: skip
    return {name: value + spell for name, value in bare.items()}


def test_costs_are_what_each_call_takes_above_keeping_the_unit_within_a_round():
    found = tabulate(index(), times(), identity())
    assert found.units["a"] == pytest.approx({"full": 3.5, "rank/4": 0.0, "kept": 0.0})  # never below nothing
    assert found.fixed == pytest.approx({"stem": 0.25})
    assert found.spread_ms["a"]["full"] == pytest.approx(0.0)  # slow spells cancel
    assert (found.reference.ms.median, found.rounds, found.machine) == (10.0, 5, MACHINE)
    assert [s.predicted_ms for s in found.checked] == pytest.approx([6.5, 6.25])
    assert [s.ms.median for s in found.checked] == [7.0, 5.0]
    assert found.within == 0.5


class Counted:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def delta_ms(self):
        self.log.append(self.name)
        return float(len(self.log))


def test_every_engine_is_timed_once_a_round_in_changing_order():
    log: list[str] = []
    names = [f"engine {n}" for n in range(6)]
    found = time_by_turns({name: Counted(log, name) for name in names}, 20, Silent())
    turns = [log[i : i + 6] for i in range(0, len(log), 6)]
    assert len(turns) > 20  # some at the beginning count for nothing
    assert all(sorted(turn) == names for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 15
    last = len(log) - 6 * 20
    assert sorted(value for row in found.values() for value in row) == [last + 1 + n for n in range(6 * 20)]


class Interrupted:
    """A runner whose step is off the processor for most of its time."""

    bundle = SimpleNamespace(manifest=SimpleNamespace(frame=SimpleNamespace(shape=(4, 4, 3))))

    def __call__(self, frame):
        assert (frame.shape, frame.dtype) == ((4, 4, 3), np.uint8)

    def time_bare(self, kinds):
        began = time.perf_counter()
        time.sleep(0.05)
        return [SimpleNamespace(wall_ms=(time.perf_counter() - began) * 1e3, gpu_ms=None) for _ in kinds]


def test_the_processors_clock_stands_still_while_others_have_the_processor():
    assert _Step(Interrupted(), "wall").delta_ms() >= 50
    assert _Step(Interrupted(), "processor").delta_ms() < 25  # a busy machine may take some to switch


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, MissingFileError, r"expected a prepared folder, it holds no profile.json. On the workstation run"),
        ("{", FileFormatError, "not a readable profile index"),
        (index().to_json().replace('"rounds": 3', '"rounds": 0'), FileFormatError, "'rounds'"),
        (index().to_json().replace("full-1", "../x"), FileFormatError, "expected the name of a bundle in the folder"),
        (index().to_json(), MissingFileError, "bundle: expected a folder"),
    ],
)  # fmt: skip
def test_folders_that_are_refused(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / INDEX).write_text(content)
    with pytest.raises(error, match=message):
        measure(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match="found nothing there"):
        open_prepared(tmp_path / "none")


@pytest.mark.parametrize(
    ("iqr", "clock", "part"),
    [(2.0, "wall", "see 'clock'"), (2.0, "processor", "quiet machine"), (0.5, "wall", None)],
)
def test_a_noisy_reference_is_told(iqr, clock, part):
    found = table(reference=None, clock=clock)
    noisy = found.model_copy(update={"reference": WholeStudent(choice=FULL, ms=Spread(median=10.0, iqr=iqr))})
    notes = [line for line in lines(noisy) if line.startswith("note: ")]
    assert notes == [] if part is None else part in notes[0]
