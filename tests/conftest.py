"""What all tests share."""

from __future__ import annotations

import contextlib
import os

import pytest

# Many small tensors are slower on several threads, and tests share their machine. Set before torch is loaded, and not
# by importing it: tests of the device's side run without it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The device's tests also run where only the device's packages are.
with contextlib.suppress(ImportError):
    from hypothesis import settings

    # Time limits of single examples say something of the machine's other work, not of the code.
    settings.register_profile("edge_sdk", deadline=None)
    settings.load_profile("edge_sdk")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts a package of a given name and source before the real one, in this process and in probes."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, source):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(source)

    return make
