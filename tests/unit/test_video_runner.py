"""Live sources in front of the runners: a keyframe after every gap, and streams that do not disturb each other."""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.runtime.several import MultiRunner
from edge_sdk.video import LiveSettings, LiveSource, SeveralSources
from tests.cameras import FakeDevice, Step
from tests.graphs import random_images, residual

IMAGES = random_images(40)
SETTINGS = LiveSettings(stall_s=5, pause_s=0.01, max_pause_s=0.01, lost_s=0.1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory):
    return residual().write(tmp_path_factory.mktemp("bundles") / "b", EverySchedule(interval=1000))


def paced(images: list) -> list[Step]:
    steps: list[Step] = []
    for image in images:
        steps += [image, lambda: time.sleep(0.004)]
    return steps


def test_a_keyframe_follows_every_gap_and_nothing_else(bundle) -> None:
    # A corrupt frame, a connection that breaks off, a camera that is gone for good.
    broken = [*IMAGES[:12], None, *IMAGES[12:25]]
    device = FakeDevice(paced(broken), paced(IMAGES), [])
    seqs: list[int] = []
    kinds: list[StepKind] = []
    ages: list[float] = []
    with EdgeRunner(bundle, threads=1) as runner, LiveSource(device, settings=SETTINGS) as source:
        with pytest.raises(OSError, match="lost"):  # noqa: PT012
            for frame, result in runner.stream(source):
                seqs.append(frame.seq)
                kinds.append(result.kind)
                ages.append(result.delivered_s - result.captured_s)
                if frame.seq % 16 == 5:
                    time.sleep(0.03)  # a slow consumer misses frames
        stats = source.stats
    gaps = [
        after != before + 1
        for before, after in zip([None, *seqs[:-1]], seqs, strict=True)
        if before is not None
    ]
    expected = [StepKind.KEYFRAME, *(StepKind.KEYFRAME if gap else StepKind.DELTA for gap in gaps)]
    assert kinds == expected
    assert len(seqs) == stats.delivered
    assert (stats.corrupt, stats.reconnects) == (1, 1)
    assert stats.dropped > 0
    assert kinds.count(StepKind.KEYFRAME) >= 4
    assert min(ages) > 0


def test_streams_of_one_pair_answer_as_each_would_alone(bundle) -> None:
    with MultiRunner(bundle, streams=3, threads=1) as runner:
        devices = [FakeDevice(paced(IMAGES[offset : offset + 20]), []) for offset in (0, 5, 15)]
        sources = SeveralSources({i: LiveSource(d, settings=SETTINGS) for i, d in enumerate(devices)})
        seen: dict[int, list] = defaultdict(list)
        with sources, pytest.raises(OSError, match="every stream has failed"):  # noqa: PT012
            for stream, frame in sources:
                seen[stream].append((frame, runner(stream, frame)))
    assert sorted(seen) == [0, 1, 2]
    for stream, pairs in seen.items():
        assert len(pairs) > 2, stream
        with EdgeRunner(bundle, threads=1, schedule=runner.schedules[stream]) as alone:
            for frame, result in pairs:
                expected = alone(frame)
                assert expected.kind is result.kind
                np.testing.assert_array_equal(expected.mask, result.mask)
