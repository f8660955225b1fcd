"""What a run computes on: processor, threads, GPUs. Numbers may differ between machines, times always do."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """As a dict for JSON.

    processor     its name; of a virtual machine what that shows
    instructions  the largest set that PyTorch's kernels use, such as AVX2
    cores         CPU cores that this process may use
    threads       threads of PyTorch in this process
    gpus          names of those that this process sees
    """
    import torch  # processes that prepare data import this module, and do without

    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
    }


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
