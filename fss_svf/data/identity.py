"""Checks whether the files behind an index are still those that the preparation read.

A file with the same size and times is the same. If they differ, as after a copy, its content decides: a copied dataset is
the same dataset, and an edited label is not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fss_svf.errors import DataError

_BLOCK = 1 << 20


class FileRecord(NamedTuple):
    """A file as it was read: the digest of its bytes, its size, and the times of its last change in nanoseconds.

    ctime is the time of the inode. It reveals edits by tools that restore mtime.
    """

    digest: int
    size: int
    mtime: int
    ctime: int


# The row of an image without such a file in a table of records.
NO_FILE = FileRecord(0, -1, 0, 0)


def record(path: Path) -> FileRecord:
    """The record of a file. Raises DataError if it cannot be read."""
    try:
        before = os.stat(path)  # before reading: a change during the read gives other times at the next check
        return FileRecord(file_digest(path), *_times(before))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and the disk") from None


def file_digest(path: str | Path) -> int:
    """A digest of the bytes, in 64 bits. Raises OSError."""
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return _number(digest.digest())


def label_digest(label: np.ndarray) -> int:
    """A digest of the size and pixels of an (H, W) uint8 label, in 64 bits. Programs write different PNGs of a label."""
    digest = hashlib.blake2b(f"{label.shape}".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(label).tobytes())
    return _number(digest.digest())


def changed_file(records: np.ndarray, paths: Sequence[str], gone_too: bool) -> str | None:
    """The first of `paths` whose content differs from its record; None if all are the same.

    records: (N, 4) int64, FileRecords. Records of files with the same content and new times are updated in place.
    gone_too: a missing file counts as changed. Raises DataError for a file that cannot be read.
    """
    known = records.tolist()
    others: list[tuple[int, str, tuple[int, int, int]]] = []
    for i, path in enumerate(paths):
        if known[i][1] == NO_FILE.size:
            continue
        try:
            now = _times(os.stat(path))
        except OSError:
            if gone_too:
                return path
            continue
        if now[0] != known[i][1]:
            return path
        if list(now) != known[i][1:]:
            others.append((i, path, now))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda other: _digest(other[1]), others)
        for (i, path, now), digest in zip(others, digests):
            if digest != known[i][0]:
                pool.shutdown(wait=False, cancel_futures=True)
                return path
            records[i, 1:] = now
    return None


def table(records: Sequence[Sequence[FileRecord]]) -> np.ndarray | None:
    """(N, R, 4) int64 of the records of N images, padded with NO_FILE; None if no image has a record."""
    most = max(map(len, records), default=0)
    if most == 0:
        return None
    filled: Iterator[FileRecord] = (
        row[role] if role < len(row) else NO_FILE for row in records for role in range(most)
    )
    return np.array([tuple(one) for one in filled], np.int64).reshape(len(records), most, 4)


def _digest(path: str) -> int:
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and the disk") from None


def _times(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little", signed=True)
