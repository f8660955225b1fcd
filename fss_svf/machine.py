"""What a run computes on: processor, threads, GPUs. Numbers may differ between machines, times always do."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """As a dict for JSON.

    processor     its name; of a virtual machine what that shows
    cores         CPU cores that this process may use
    instructions  the largest set that PyTorch's kernels use, such as AVX2
    threads       threads of PyTorch in this process
    gpus          names of those that it sees; none where it uses none

    The last three are of processes that have imported PyTorch: preparing data does without.
    """
    found: dict[str, Any] = {"processor": _processor(), "cores": cores()}
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        # To ask for a name begins CUDA, which a run on the CPU must not.
        count = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
        found["threads"] = torch.get_num_threads()
        found["gpus"] = [torch.cuda.get_device_name(n) for n in range(count)]
    return found


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
