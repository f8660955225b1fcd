"""Real data for tests, which is never part of this repository: FSS_SVF_REAL_DATA, or ../shared/real if there is one."""

import os
from pathlib import Path

import pytest

REAL = Path(os.environ.get("FSS_SVF_REAL_DATA", Path(__file__).parents[2] / "shared" / "real"))


def real_data(*parts: str) -> Path:
    """A file or folder of the real data; skips the test where it is absent."""
    path = REAL.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real data at {path}; set FSS_SVF_REAL_DATA")
    return path
