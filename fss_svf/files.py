"""Atomic files: they appear complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file to write. It is renamed to `path` when the block ends, and removed when the block fails.

    Its name is unique, so that two processes may write the same `path`.
    """
    unfinished = path.with_name(f"{uuid4().hex}.partial")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
