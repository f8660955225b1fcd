"""What a person sees of a training: curves, log.csv, memory, and how long the device waited for data."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fss_svf.config import PretrainConfig, TrainConfig, to_mapping
from fss_svf.console import as_text
from fss_svf.training.log_table import LogTable
from fss_svf.training.loggers import make_logger

log = logging.getLogger(__name__)

# From this share of time on, more loader processes are worth a word.
_HUNGRY = 0.25


class DataWait:
    """Passes a stream on, and measures how long the device waited for it.

    The first item is left out: it comes after the loader's processes have started. A GPU works on while the host is ahead
    of it, so that there the time counts between its last operation of a step and its first of the next.
    """

    def __init__(self, stream: Iterator[Any], device: torch.device | None = None) -> None:
        self._stream = stream
        self._warned = False
        self._mark: Callable[[], Any] = perf_counter
        self._between: Callable[[Any, Any], float] = lambda before, after: after - before
        if device is not None and device.type == "cuda":
            self._mark, self._between = _event, _seconds_between

    def __iter__(self) -> Iterator[Any]:
        for first in self._stream:
            self._start()
            yield first
            break
        while True:
            requested = self._mark()
            try:
                item = next(self._stream)
            except StopIteration:
                return
            self._waits.append((requested, self._mark()))
            yield item

    def _start(self) -> None:
        self._since = perf_counter()
        self._waits: list[tuple[Any, Any]] = []

    def pause(self, seconds: float) -> None:
        """Leave these seconds out, in which no item was asked for."""
        self._since += seconds

    def read(self) -> dict[str, float]:
        """Share of the time since the last reading that went into waiting, and seconds an item; nothing before the second.

        Call it when the device has finished. Warns once where the share is large over 20 items and more.
        """
        if not self._waits:
            return {}
        spent, items = perf_counter() - self._since, len(self._waits)
        share = sum(self._between(*wait) for wait in self._waits) / spent
        if share > _HUNGRY and items >= 20 and not self._warned:
            log.warning(
                "waiting for data takes %.0f%% of the time: raise workers, or cache_gb to keep decoded images",
                100 * share,
            )
            self._warned = True
        self._start()
        return {"time/data_wait_share": share, "time/seconds_a_step": spent / items}


def _event() -> torch.cuda.Event:
    """A mark in the GPU's queue of operations."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(before: torch.cuda.Event, after: torch.cuda.Event) -> float:
    after.synchronize()
    return before.elapsed_time(after) / 1000


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peaks in MB (10^6 bytes): of this process since its start, and on a GPU of PyTorch's tensors since the last reading.

    The device is not waited for.
    """
    found = {"memory/host_mb": _peak_resident() / 1e6}
    if device.type == "cuda":
        found["memory/gpu_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        torch.cuda.reset_peak_memory_stats(device)
    return found


def _peak_resident() -> int:
    """Bytes. Linux's VmHWM where it is, since ru_maxrss of a new process begins at its parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Curves:
    """log.csv of the run folder `out`, and the logger of the config, None with logger=none. Of one process.

    step, validated  of the checkpoint that the run goes on from, 0 for a new one
    """

    def __init__(self, config: TrainConfig | PretrainConfig, out: Path, step: int, validated: bool) -> None:
        self._table = LogTable(out / "log.csv", step, validated)
        self.logger = make_logger(config.logger, out, config.name, step)

    def begin(self, config: TrainConfig | PretrainConfig, notes: Mapping[str, str]) -> None:
        """The config's values, and words about the run."""
        if self.logger is not None:
            values = {k: v for k, v in _flat(to_mapping(config)) if isinstance(v, (bool, int, float, str))}
            # A path may have letters that are none, and loggers write UTF-8.
            values = {name: as_text(value) if isinstance(value, str) else value for name, value in values.items()}
            self.logger.hparams(values, {name: as_text(text) for name, text in notes.items()})

    def add_row(self, values: Mapping[str, float], step: int) -> None:
        """Losses and rates, or scores: a scalar each, and a row of log.csv."""
        self.add_scalars(values, step)
        self._table.add(values, step)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """What another run of the same config has otherwise, such as times, and is in no row."""
        if self.logger is not None:
            self.logger.scalars(values, step)

    def flush(self) -> None:
        if self.logger is not None:
            self.logger.flush()

    def close(self, finished: bool) -> None:
        """finished: whether the training came to its last step."""
        if self.logger is not None:
            self.logger.close(finished)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
