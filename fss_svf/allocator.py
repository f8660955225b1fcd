"""Keeping freed memory in the process: a training step on a CPU frees and asks for the same gigabytes again and again."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_GLIBC = {True: (0, 2**31 - 1), False: (65536, 128 * 1024)}  # of mmaps at most, and of free bytes at the heap's end


def keep_freed_memory(keep: bool = True) -> bool:
    """Whether the C library could be told to keep what is freed (False: to work as installed). glibc alone can.

    As installed, every tensor of more than some megabytes is mapped when it is made and unmapped when it is freed, and
    the kernel clears its pages anew: a fifth of a training step on two cores (docs/measurements.md).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mmaps, trim = _GLIBC[keep]
        return bool(libc.mallopt(_M_MMAP_MAX, mmaps) and libc.mallopt(_M_TRIM_THRESHOLD, trim))
    except (OSError, AttributeError):  # another C library
        return False
