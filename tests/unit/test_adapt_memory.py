"""The shared memory: areas, checks on what the other side wrote, weights as bytes."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.adapt import memory as module
from edge_sdk.adapt.memory import Layout, SharedMemory, anonymous_memory, pack_weights, unpack_weights
from edge_sdk.errors import ClosedError, OutputError, ShapeError, TrainerError
from edge_sdk.tensors import TensorSpec

LAYOUT = Layout(frame_hw=(4, 6), graphs={"keyframe": 100, "delta": 5000}, weights=640)

sizes = st.integers(1, 1 << 20)
weights = st.dictionaries(
    st.text(max_size=20),
    arrays.arrays(
        st.sampled_from([np.float32, np.float16]), arrays.array_shapes(min_dims=0, max_dims=4, max_side=4)
    ),
    max_size=4,
)


@pytest.fixture
def shared():
    fd = anonymous_memory(LAYOUT.size)
    memory = SharedMemory(LAYOUT, fd)
    yield memory
    memory.close()
    os.close(fd)


@given(
    hw=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    graphs=st.dictionaries(st.sampled_from(["keyframe", "delta"]), sizes),
    most=st.integers(0, 1 << 20),
)
def test_areas_lie_on_pages_and_never_overlap(hw, graphs, most) -> None:
    layout = Layout(frame_hw=hw, graphs=graphs, weights=most)
    end = 0
    for begin, size in layout.areas.values():
        assert begin % mmap.PAGESIZE == 0
        assert begin >= end
        end = begin + size
    assert layout.size >= end
    assert Layout.model_validate_json(layout.model_dump_json()) == layout


@pytest.mark.parametrize(
    "bad",
    [
        {"frame_hw": (0, 6)},
        {"frame_hw": (4,)},
        {"frame_hw": (4, 6), "graphs": {"delta": 0}},
        {"frame_hw": (4, 6), "weights": -1},
        {"frame_hw": (4, 6), "depth": 3},
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(bad) -> None:
    with pytest.raises(ValueError, match=r"frame_hw|graphs|weights|depth"):
        Layout(**bad)


def test_a_layout_for_a_bundle_has_room_for_graphs_that_grow_and_for_all_weights() -> None:
    specs = [TensorSpec(name=f"layer{i}.weight", shape=(7, i + 1), dtype="float32") for i in range(30)]
    layout = Layout.of((4, 6), {"delta": 4_000_000}, specs)
    assert layout.graphs["delta"] >= 5_000_000
    packed = pack_weights({spec.name: np.ones(spec.shape, spec.dtype) for spec in specs})
    assert len(packed) == layout.weights
    assert Layout.of((4, 6), {}).weights == 0


def test_arrays_pass_from_one_mapping_to_the_other() -> None:
    fd = anonymous_memory(LAYOUT.size)
    ours, theirs = SharedMemory(LAYOUT, fd), SharedMemory(LAYOUT, fd)
    os.close(fd)
    image = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    ours.put("frame", image)
    ours.put("label", image[..., 1])
    theirs.write("graph.delta", b"graph")
    assert np.array_equal(theirs.image("frame"), image)
    assert np.array_equal(theirs.copy("label"), image[..., 1])
    assert not theirs.copy("mask").any()
    assert ours.read("graph.delta", 5) == b"graph"
    kept = ours.copy("frame")
    theirs.put("frame", 255 - image)
    assert np.array_equal(kept, image)
    with pytest.raises(ValueError, match="read-only"):
        theirs.image("frame")[0, 0] = 1
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("area", "image"),
    [
        ("frame", np.zeros((4, 6), np.uint8)),
        ("frame", np.zeros((6, 4, 3), np.uint8)),
        ("frame", np.zeros((4, 6, 3), np.float32)),
        ("label", np.zeros((4, 6, 1), np.uint8)),
        ("mask", np.zeros((4, 6), np.int8)),
    ],
)
def test_an_image_of_another_size_or_type_is_refused(shared, area, image) -> None:
    with pytest.raises(ShapeError, match=f"{area}: expected"):
        shared.put(area, image)


@pytest.mark.parametrize("size", [-1, 101, 1 << 40])
def test_no_more_is_read_than_the_area_has(shared, size) -> None:
    with pytest.raises(TrainerError, match=r"'graph\.keyframe' has room for 100 bytes"):
        shared.read("graph.keyframe", size)


def test_no_more_is_written_than_the_area_has(shared) -> None:
    shared.write("graph.keyframe", b"x" * 100)
    with pytest.raises(TrainerError, match="room for 100 bytes, got 101"):
        shared.write("graph.keyframe", b"x" * 101)
    with pytest.raises(TrainerError, match=r"no area 'graph\.student', it has frame, label"):
        shared.read("graph.student", 1)


def test_once_closed_it_says_so(shared) -> None:
    view = shared.image("frame")
    shared.close()  # the view keeps it mapped
    assert view.shape == (4, 6, 3)
    del view
    shared.close()
    shared.close()
    for use in (
        lambda: shared.copy("mask"),
        lambda: shared.read("weights", 1),
        lambda: shared.write("weights", b""),
        lambda: shared.put("mask", np.zeros((4, 6), np.uint8)),
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()


def test_memory_of_another_size_is_refused() -> None:
    fd = anonymous_memory(LAYOUT.size - 1)
    with pytest.raises(TrainerError, match=f"expected {LAYOUT.size} bytes"):
        SharedMemory(LAYOUT, fd)
    os.close(fd)


def test_the_other_side_cannot_cut_the_memory_short() -> None:
    """Reading behind its end would kill the runner."""
    fd = anonymous_memory(8192)
    for size in (0, 4096, 16384):
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(fd, size)
    os.close(fd)


def test_where_there_is_no_memfd_a_file_without_a_name_serves(monkeypatch, tmp_path) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    fd = anonymous_memory(LAYOUT.size)
    assert not list(tmp_path.iterdir())
    memory = SharedMemory(LAYOUT, fd)
    os.close(fd)
    memory.write("graph.delta", b"graph")
    assert memory.read("graph.delta", 5) == b"graph"
    memory.close()


def test_no_room_is_an_error_with_advice(monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(module.os, "ftruncate", full)
    with pytest.raises(OutputError, match="8192 bytes cannot be had"):
        anonymous_memory(8192)
    assert len(os.listdir("/proc/self/fd")) == before


@given(given_weights=weights)
def test_weights_come_back_bit_for_bit(given_weights) -> None:
    found = unpack_weights(pack_weights(given_weights))
    assert list(found) == list(given_weights)
    for name, array in given_weights.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert not found[name].flags.writeable


@pytest.mark.parametrize("dtype", ["float64", "int8", "object"])
def test_weights_of_another_type_are_refused(dtype) -> None:
    with pytest.raises(ShapeError, match=f"'w': expected float32 or float16, got {dtype}"):
        pack_weights({"w": np.zeros(3, dtype)})


PACKED = pack_weights({"a": np.arange(20, dtype=np.float32), "b": np.ones((2, 3), np.float16)})


def _signed(data: bytes) -> bytes:
    """With the SHA-256 that it should have: what is wrong then is found by other means."""
    return data[:8] + hashlib.sha256(data[40:]).digest() + data[40:]


def _with(old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert old in PACKED
    return _signed(PACKED.replace(old, new))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "SHA-256"),
        (b"\xff" * 200, "SHA-256"),
        (PACKED[:-1], "SHA-256"),
        (PACKED[:-64] + b"\1" + PACKED[-63:], "SHA-256"),
        (_signed(b"\0" * 40), "header is not readable"),
        (_signed(b"\xff" * 200), "header is not readable"),
        (_signed(PACKED[:-64]), "bytes, got"),
        (_signed(PACKED + b"\0" * 64), "bytes, got"),
        (_with(b'"name":"b"', b'"name":"a"'), "twice"),
        (_with(b'"float16"', b'"float64"'), "float64"),
        (_with(b'"float16"', b'"objects"'), "objects"),
        (_with(b"[2,3]", b"[-23]"), "-23"),
        (_with(b"[20]", b"[99]"), "bytes, got"),
    ],
)
def test_damaged_weights_are_refused(data, message) -> None:
    with pytest.raises(TrainerError, match=message):
        unpack_weights(data)


@given(st.integers(0, len(PACKED) - 1), st.integers(0, 7))
def test_a_turned_bit_is_found(place, bit) -> None:
    data = bytearray(PACKED)
    data[place] ^= 1 << bit
    with pytest.raises(TrainerError, match="weights from the trainer"):
        unpack_weights(bytes(data))


@given(st.binary(max_size=300))
def test_any_signed_bytes_are_weights_or_a_trainer_error(data) -> None:
    with contextlib.suppress(TrainerError):
        unpack_weights(_signed(data.ljust(40)))
