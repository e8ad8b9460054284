"""These tests run in a child process over the simulated driver, see ``tests/cuda/test_simulated.py``."""

from __future__ import annotations

import os

collect_ignore_glob = [] if "EDGE_SDK_SIMULATED_CUDA" in os.environ else ["test_*.py"]
