"""How long the parts of an evaluation take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


class Timer:
    """Seconds by what they were spent on. On a GPU they are measured by events, which nothing waits for until the end."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda" and torch.cuda.is_available()
        self._seconds: dict[str, float] = defaultdict(float)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        if not self._events:
            start = perf_counter()
            yield
            self._seconds[what] += perf_counter() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._pending.append((what, begin, end))
        if len(self._pending) > 1000:
            self._read()

    def seconds(self) -> dict[str, float]:
        """So far; on a GPU this waits for the device."""
        if self._pending:
            torch.cuda.synchronize()
            self._read()
        return dict(self._seconds)

    def _read(self) -> None:
        """Add what the device is done with."""
        pending = []
        for what, begin, end in self._pending:
            if end.query():
                self._seconds[what] += begin.elapsed_time(end) / 1000
            else:
                pending.append((what, begin, end))
        self._pending = pending
