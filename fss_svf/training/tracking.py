"""What a person sees of a training: TensorBoard's curves, log.csv, and how long the device waited for data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fss_svf.config import to_mapping
from fss_svf.console import as_text
from fss_svf.training.log_table import LogTable

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


class Curves(SummaryWriter):
    """TensorBoard's files and log.csv of the run folder `out`. What a killed run wrote after its last checkpoint, of this
    step, is cut off, and written again.
    """

    def __init__(self, out: Path, step: int, validated: bool) -> None:
        super().__init__(str(out / "tensorboard"), purge_step=step + 1)
        self._table = LogTable(out / "log.csv", step, validated)

    def add_row(self, values: Mapping[str, float], step: int) -> None:
        """Losses and rates, or scores: a scalar each, and a row of log.csv."""
        write_scalars(self, values, step)
        self._table.add(values, step)


def write_scalars(writer: SummaryWriter, values: Mapping[str, float], step: int) -> None:
    """One TensorBoard scalar an entry."""
    for name, value in values.items():
        writer.add_scalar(name, value, step)


def write_hparams(writer: SummaryWriter, config: Any, scores: tuple[str, ...]) -> None:
    """The config's values for TensorBoard's HPARAMS page, beside the curves of these names.

    Through this writer: SummaryWriter.add_hparams makes a run of its own.
    """
    values = {name: value for name, value in _flat(to_mapping(config)) if isinstance(value, (bool, int, float, str))}
    # A path may have letters that are none, and TensorBoard's files hold UTF-8.
    values = {name: as_text(value) if isinstance(value, str) else value for name, value in values.items()}
    for summary in hparams(values, dict.fromkeys(scores, 0.0)):
        writer._get_file_writer().add_summary(summary)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
