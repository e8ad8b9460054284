"""What figures do not depend on: where time begins, how long a second is, the order in the file."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.bench.document import SUBJECT, BenchDocument
from edge_sdk.bench.samples import BareBlock, Block, FrameColumns, Reading, Start
from edge_sdk.bench.statistics import compute
from tests.bench_world import make_document


def flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every number of nested figures by its path."""
    if isinstance(value, dict):
        return {
            key: found
            for name, inner in value.items()
            for key, found in flat(inner, (*path, str(name))).items()
        }
    if isinstance(value, (list, tuple)):
        return {
            key: found for i, inner in enumerate(value) for key, found in flat(inner, (*path, str(i))).items()
        }
    return {path: value}


def changed(made: BenchDocument, times: float = 1.0, later_ms: float = 0.0) -> BenchDocument:
    """The same run on a clock that runs otherwise: every time so many times longer, its beginning so much later."""

    def all_times(found: Any, *moments: str) -> dict[str, Any]:
        data = found.model_dump()
        for name, value in data.items():
            if name.endswith("_ms") and value is not None:
                shift = later_ms if name in moments else 0.0
                data[name] = (
                    {key: one * times for key, one in value.items()} if isinstance(value, dict)
                    else tuple(one * times + shift for one in value) if isinstance(value, tuple)
                    else value * times + shift
                )  # fmt: skip
        return data

    def of_block(found: Block) -> Block:
        frames = FrameColumns.model_validate(all_times(found.frames, "due_ms", "called_ms"))
        return Block.model_validate({**all_times(found), "frames": frames})

    return BenchDocument.model_validate(
        {
            **dict(made),
            "source": made.source.model_copy(update={"fps": made.source.fps / times}),
            "starts": tuple(Start.model_validate(all_times(found)) for found in made.starts),
            "blocks": tuple(map(of_block, made.blocks)),
            "bare": tuple(BareBlock.model_validate(all_times(found)) for found in made.bare),
            "readings": tuple(Reading.model_validate(all_times(found, "at_ms")) for found in made.readings),
        }
    )


WORLD = make_document(rounds=3, periods=3, rows=(SUBJECT, "teacher"), growth_bytes=1000, noise=0.1)


@settings(max_examples=10, deadline=None)
@given(later_ms=st.floats(0, 1e7))
def test_where_time_begins_changes_nothing(later_ms):
    before, after = (flat(compute(made).model_dump()) for made in (WORLD, changed(WORLD, later_ms=later_ms)))
    assert before.keys() == after.keys()
    for path, value in before.items():
        shift = later_ms if path[-1] == "at_ms" else 0.0
        assert after[path] == (
            value if isinstance(value, str | None) else pytest.approx(value + shift, rel=1e-6, abs=1e-6)
        )


def power_of_time(path: tuple[str, ...]) -> int:
    """How a figure follows the length of a second: 1 for times, -1 for what is told by second or hour, else 0."""
    if "throughput_fps" in path or "growth_bytes_per_hour" in path:
        return -1
    in_distribution = path[0] == "rows" and path[2] in ("stages", "gpu")
    return int((in_distribution and path[-1] != "frames") or any(name.endswith("_ms") for name in path))


@settings(max_examples=10, deadline=None)
@given(times=st.floats(0.01, 100))
def test_a_clock_that_runs_faster_scales_every_time(times):
    before, after = (flat(compute(made).model_dump()) for made in (WORLD, changed(WORLD, times=times)))
    assert before.keys() == after.keys()
    for path, value in before.items():
        factor = times ** power_of_time(path)
        wanted = value if isinstance(value, str | None) else pytest.approx(value * factor, rel=1e-6, abs=1e-9)
        assert after[path] == wanted, path


@settings(max_examples=10, deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_the_order_in_the_file_does_not_matter(random):
    def shuffled(items: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(random.sample(items, len(items)))

    parts = {name: shuffled(getattr(WORLD, name)) for name in ("blocks", "bare", "readings", "starts")}
    assert compute(WORLD.model_copy(update=parts)) == compute(WORLD)
