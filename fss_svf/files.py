"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A file to write, which takes the name `path` when the block ends, and is gone when the block fails.

    Its own name is nobody else's, should two processes write the same file.
    """
    unfinished = path.with_name(f"{uuid4().hex}.partial")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
