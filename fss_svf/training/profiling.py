"""A profiler's trace of some training steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from fss_svf import distributed

log = logging.getLogger(__name__)

# Steps that are left out: the first allocate, and choose their kernels.
_BEFORE = 3


@contextmanager
def profiled(steps: int | None, out: Path) -> Iterator[Callable[[], None]]:
    """Yield what is to be called after each step.

    After 3 + `steps` of them out/profile has trace.json (for ui.perfetto.dev) and operations.txt (a table by time). Where
    `steps` is None, and in all processes but the first, nothing is measured.
    """
    if steps is None or distributed.rank() > 0:
        yield lambda: None
        return
    folder = out / "profile"

    def write(found: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(folder / "trace.json"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        (folder / "operations.txt").write_text(found.key_averages().table(sort_by=by, row_limit=50))
        log.info("profile of %d steps in %s", steps, folder)

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(wait=_BEFORE - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, profile_memory=True) as running:
        yield running.step
