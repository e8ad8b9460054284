"""Which revision of the SDK is running, for provenance."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_GIT_TIMEOUT_S = 10.0


def commit_of_sources() -> str | None:
    """Commit of the checkout this package runs from, ``+changes`` where files differ; ``None`` where it is installed.

    A virtual environment inside someone else's checkout is an installation: this very file must be tracked.
    """
    git = shutil.which("git")
    folder = Path(__file__).parent
    if git is None or _git(git, folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git(git, folder, "rev-parse", "--short=12", "HEAD")
    changed = _git(git, folder, "status", "--porcelain", "--untracked-files=no", ":/edge_sdk")
    return f"{commit}+changes" if commit and changed else commit


def _git(git: str, folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            [git, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
