"""The soak of tests/soak.py, short: every frame and every fault accounted for."""

from __future__ import annotations

import pytest

from tests.soak import CALLBACK, CORRUPT, ENGINE, SLOW, STALL, soak


@pytest.mark.parametrize("background", [False, True], ids=["in turn", "beside"])
def test_every_frame_and_every_fault_is_accounted_for(background: bool) -> None:
    frames = 2 * max(STALL, CORRUPT, CALLBACK, SLOW, ENGINE) + 100
    account = soak(frames, background)
    assert account.problems() == []
    assert {name for name, count in account.injected.items() if count >= 2} == {
        "stall",
        "corrupt",
        "callback",
        "engine",
    }
    assert account.replaced > 0
    assert account.gaps >= 6
