"""pycuda is compiled while other tests run, and the tests that need it come last."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda import prepare

FILE = Path(__file__).with_name("test_simulated.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path == FILE)  # keeps the order of the others


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(item.path == FILE for item in session.items) and not session.config.option.collectonly:
        prepare.begin()


def pytest_unconfigure() -> None:
    prepare.end()
