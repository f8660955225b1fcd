"""Checks of values that dataclasses of several configs share; each raises ConfigError that names the key."""

from __future__ import annotations

from typing import Literal

from fss_svf.errors import ConfigError
from fss_svf.registry import Choice

# A fold's number, or all: every class trains and none is novel.
FoldNumber = int | Literal["all"]
# The least side of an input image, in pixels.
LEAST_SIZE = 33


def require(holds: bool, key: str, expected: str, got: object) -> None:
    """Raise ConfigError 'key: expected ..., got ...' unless `holds`."""
    if not holds:
        raise ConfigError(f"{key}: expected {expected}, got {got!r}")


def check_fold(fold: FoldNumber, dataset: Choice) -> None:
    """Raise ConfigError unless the dataset has such a fold. Of a single fold the classes that train are fixed: no all."""
    last = dataset.options.num_folds - 1
    expected = f"0..{last}" if last else f"0, the only fold of dataset={dataset.name}"
    require(last > 0 if fold == "all" else 0 <= fold <= last, "fold", expected, fold)


def check_workers(workers: int) -> None:
    require(workers >= 0, "workers", "a whole number >= 0", workers)


def check_seed(seed: int) -> None:
    require(seed >= 0, "seed", "a whole number >= 0", seed)


def check_size(size: int) -> None:
    """Raise ConfigError for a size that no backbone takes; which ones it takes, a backbone itself says (check_size)."""
    require(size >= LEAST_SIZE, "size", f"at least {LEAST_SIZE} pixels", size)
