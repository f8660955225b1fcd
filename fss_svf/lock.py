"""One process at a time works in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fss_svf.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows: no lock there
    fcntl = None  # type: ignore[assignment]

_held: set[IO[str]] = set()


@contextmanager
def locked(folder: Path, work: str = "works in this run folder") -> Iterator[None]:
    """Hold folder/.lock while the block runs; the kernel lets go of it when the process ends, however it ends.

    Raises ConfigError while another process holds it, which says that this one does `work`. No lock where the platform or
    the file system has none.
    """
    if fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another process {work}; end it, or wait for its end") from None
        except OSError:
            pass  # a file system without locks, as some of clusters are mounted
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def _leave_to_parent() -> None:
    """A lock lasts as long as any copy of its file is open: loader processes must not outlive a killed run with one."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
