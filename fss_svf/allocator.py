"""Keeping freed memory in the process: a training step on a CPU frees and asks for the same gigabytes again and again."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Whether the C library could be told to keep what is freed, for good. glibc alone can.

    As installed it maps every block of more than 32 MB when it is made and unmaps it when it is freed, and the kernel
    clears its pages anew (docs/measurements.md has a training step both ways).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):  # another C library
        return False
