"""How sure a number is: its spread over seeds, and intervals over episodes and over trainings.

The percentile bootstrap (Efron, 1979): an evaluation's episodes are drawn again, with replacement and as many, the
number is taken anew each time, and the interval is where the middle of these numbers lies. Each seed draws from its own
episodes; what is bootstrapped is the mean over seeds, as reported. Trainings are few, and far too few to be drawn again:
their interval is Student's (1908).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean, stdev

import numpy as np
from scipy.special import stdtrit

from fss_svf.evaluation.episode_table import EpisodeTable
from fss_svf.evaluation.metric import Scores, mean_scores, scores

LEVEL = 0.95
RESAMPLES = 1000
# Of the resampling alone, so that a result can be had again to the digit.
_SEED = 0
# Drawn numbers and weights at once, some 50 MB whatever the number of episodes.
_CELLS = 2_000_000


def measured(tables: Sequence[EpisodeTable], zero: bool) -> Scores:
    """The numbers of an evaluation, means over its seeds, R = 1. zero: a class without a union counts as 0."""
    return mean_scores([scores(table.total[None], zero) for table in tables])


def resampled(tables: Sequence[EpisodeTable], zero: bool, resamples: int = RESAMPLES) -> Scores:
    """The same numbers of `resamples` bootstrap samples.

    Which episodes are drawn depends on the numbers of seeds and episodes alone: results of the same episodes have the
    same resamples, and their difference is a paired one.
    """
    return mean_scores(resampled_seeds(tables, zero, resamples))


def resampled_seeds(tables: Sequence[EpisodeTable], zero: bool, resamples: int = RESAMPLES) -> list[Scores]:
    """Those of each seed."""
    return [scores(resampled_sums(t, number, resamples), zero) for number, t in enumerate(tables)]


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The middle `level` of the values, (R,) with NaN left out; None when there is no other."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample, over its n - 1; None for one value."""
    return stdev(values) if len(values) > 1 else None


def students_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Where the mean of all such values lies, for normal ones: mean ± t s / sqrt(n). None for fewer than two."""
    if len(values) < 2:
        return None
    half = students_t(len(values) - 1, level) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def students_t(freedom: int, level: float = LEVEL) -> float:
    """The t that a value of Student's distribution does not exceed in size with probability `level`."""
    return float(stdtrit(freedom, (1 + level) / 2))


def weights(episodes: int, number: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each episode is in each resample, (r, episodes) int64 at a time; `number` of the seed, from 0."""
    random = np.random.default_rng([_SEED, number])
    chunk = max(1, _CELLS // episodes)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = random.integers(episodes, size=(rows, episodes))
        # Each row of draws has bins of its own, so that one bincount counts them all.
        drawn += np.arange(rows)[:, None] * episodes
        yield np.bincount(drawn.ravel(), minlength=rows * episodes).reshape(rows, episodes)


def resampled_sums(table: EpisodeTable, number: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(R, 2 + C, 2) sums of the episodes' counts in each resample; `number` of the seed, from 0."""
    # In float64, which is exact up to 2^53 and multiplies matrices fast; sums of pixels stay far below.
    columns = table.counts.reshape(len(table), -1).astype(np.float64)
    sums = [chunk.astype(np.float64) @ columns for chunk in weights(len(table), number, resamples)]
    return np.concatenate(sums).reshape(-1, *table.counts.shape[1:])
