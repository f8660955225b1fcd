"""One process at a time works in a folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fss_svf.errors import ConfigError

# What file systems without locks say, as some of clusters are mounted.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def locked(folder: Path, work: str = "works in this run folder") -> Iterator[None]:
    """Hold folder/.lock while the block runs; the system lets go of it when the process ends, however it ends.

    Raises ConfigError while another process holds it, which says that this one does `work`. No lock where the file system
    has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"{folder}: another process {work}; end it, or wait for its end") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()
