"""A cache of decoded images and labels in memory shared by the loader's workers, up to a limit.

Sizes are known from the index, so every image has a slot before anything is decoded. The first worker that decodes an
image writes it there and sets a flag at the end. Two workers at one slot write the same bytes, so no lock is needed.
"""

from __future__ import annotations

import logging
import mmap
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from fss_svf.data.dataset import Split
from fss_svf.errors import DataError

log = logging.getLogger(__name__)

_GB = 10**9
_MEMINFO = Path("/proc/meminfo")


def cached(split: Split, cache_gb: float, numbers: np.ndarray | None = None) -> Split:
    """The split with a cache, described in a log line; with cache_gb=0 the split itself."""
    if cache_gb == 0:
        return split
    result = CachedSplit(split, cache_gb, numbers)
    log.info("%s", result.describe())
    return result


class CachedSplit(Split):
    """A split that decodes an image once for all forked workers, within `cache_gb` gigabytes (10^9 bytes).

    Images get slots in the order of `numbers`, or of the list, until the next does not fit. The others are decoded each
    time. Memory is used as slots are filled. Arrays from the cache are read-only. A pickled copy, as spawned workers
    get, has no shared memory and decodes each time.
    """

    def __init__(self, split: Split, cache_gb: float, numbers: np.ndarray | None = None) -> None:
        """numbers: the images that will be read; None: all. Raises DataError if there is not enough memory."""
        super().__init__(**{field.name: getattr(split, field.name) for field in fields(Split)})
        self.split, self.cache_gb = split, cache_gb
        wanted = np.arange(len(self.index)) if numbers is None else np.asarray(numbers, np.int64)
        # Each image once, in the given order.
        wanted = wanted[np.sort(np.unique(wanted, return_index=True)[1])]
        ends = np.cumsum(4 * self.index.sizes[wanted].astype(np.int64).prod(axis=1))
        self.wanted, self.slots = len(wanted), int((ends <= cache_gb * _GB).sum())
        self.bytes = int(ends[self.slots - 1]) if self.slots else 0
        _require_memory(cache_gb, self.bytes)
        # The offset of each image in the arena; -1: it has no slot.
        self._start = np.full(len(self.index), -1, np.int64)
        self._start[wanted[: self.slots]] = np.concatenate([[0], ends])[: self.slots]
        self._arena, self._ready = self._shared(self.bytes), self._shared(len(self.index) if self.slots else 0)
        self._warned = False

    def _shared(self, length: int) -> np.ndarray:
        """(length,) uint8 zeros in memory shared with forked processes."""
        if not length:
            return np.zeros(0, np.uint8)
        try:
            # Anonymous memory, since containers often allow only 64 MB in /dev/shm.
            return np.frombuffer(mmap.mmap(-1, length), np.uint8)
        except OSError as error:
            raise DataError(f"cache_gb={self.cache_gb:g}: not available ({error.strerror}); lower it") from None

    def image_path(self, number: int) -> Path:
        """As Split.image_path."""
        return self.split.image_path(number)

    def image(self, number: int) -> np.ndarray:
        """As Split.image; from the cache if it has the image."""
        return self._kept(number)[0] if self._is_ready(number) else self.split.image(number)

    def label(self, number: int) -> np.ndarray:
        """As Split.label; from the cache if it has the image."""
        return self._kept(number)[1] if self._is_ready(number) else self.split.label(number)

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """As Split.pair, with the result put in the cache. Raises DataError also if the size differs from the index."""
        if self._is_ready(number):
            return self._kept(number)
        image, label = self.split.pair(number)
        height, width = self.index.sizes[number].tolist()
        if label.shape != (height, width):
            raise DataError(
                f"{self.image_path(number)}: {label.shape[1]} x {label.shape[0]}, but {width} x {height} when it was "
                "prepared; run 'fss-svf prepare' again"
            )
        if self._start[number] >= 0:
            for slot, values in zip(self._slot(number), (image, label)):
                slot[:] = values
            self._ready[number] = 1
        return image, label

    def describe(self) -> str:
        """One line: how many images fit, and in how much memory."""
        return f"cache: {self.slots:,} of {self.wanted:,} images fit, {self.bytes / _GB:.2f} of {self.cache_gb:g} GB"

    def _is_ready(self, number: int) -> bool:
        return self._start[number] >= 0 and bool(self._ready[number])

    def _kept(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = self._slot(number)
        image.setflags(write=False)
        label.setflags(write=False)
        return image, label

    def _slot(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) and (H, W) views of the image's slot: first its colours, then its label."""
        height, width = self.index.sizes[number].tolist()
        start, pixels = int(self._start[number]), height * width
        slot = self._arena[start : start + 4 * pixels]
        return slot[: 3 * pixels].reshape(height, width, 3), slot[3 * pixels :].reshape(height, width)

    def __getstate__(self) -> dict[str, Any]:
        if self.slots and not self._warned:
            log.warning("cache_gb: spawned worker processes share no memory, so each image is decoded each time")
            self._warned = True
        nothing = {"_arena": np.zeros(0, np.uint8), "_ready": np.zeros(0, np.uint8), "slots": 0, "bytes": 0}
        return {**self.__dict__, **nothing, "_start": np.full(len(self.index), -1, np.int64)}


def _require_memory(cache_gb: float, needed: int) -> None:
    available = _available_memory()
    if not cache_gb >= 0 or needed > available:
        raise DataError(
            f"cache_gb={cache_gb:g}: expected 0 or more; it needs {needed / _GB:.1f} GB, and "
            f"{available / _GB:.1f} GB of memory are free now; lower it"
        )


def _available_memory() -> float:
    """Bytes available without swapping; infinity if the system does not report them (macOS)."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return float("inf")
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kilobytes[0] if kilobytes else float("inf")
