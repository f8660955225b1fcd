"""How sure a number is: its spread over seeds, and intervals over episodes and over trainings.

The percentile bootstrap (Efron, 1979): an evaluation's episodes are drawn again, with replacement and as many, the
number is taken anew each time, and the interval is where the middle of these numbers lies. Each seed draws from its own
episodes; what is bootstrapped is the mean over seeds, as reported. Trainings are few, and far too few to be drawn again:
their interval is Student's (1908).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi, sin, sqrt, tan
from statistics import mean, stdev

import numpy as np

from fss_svf.evaluation.episode_table import EpisodeTable

LEVEL = 0.95
RESAMPLES = 1000
# Of the resampling alone, so that a result can be had again to the digit.
_SEED = 0
# Drawn numbers and weights at once, some 50 MB whatever the number of episodes.
_CELLS = 2_000_000


@dataclass(frozen=True, eq=False)
class Scores:
    """Fractions in float64, R of each: measured (R = 1), or once a resample.

    miou, fb_iou  (R,)
    per_class     (R, C), NaN where the class has no union, and so no part in the mean
    """

    miou: np.ndarray
    fb_iou: np.ndarray
    per_class: np.ndarray

    def __sub__(self, other: Scores) -> Scores:
        return Scores(self.miou - other.miou, self.fb_iou - other.fb_iou, self.per_class - other.per_class)

    def miou_of(self, classes: Sequence[int]) -> np.ndarray:
        """(R,): the mean of these columns of per_class; 0 where none of them was measured."""
        return _mean_of_present(self.per_class[:, classes], axis=1)


def measured(tables: Sequence[EpisodeTable], zero: bool) -> Scores:
    """The numbers of an evaluation, means over its seeds, R = 1. Equal to those of evaluation/counts.py.

    zero: a class without a union counts as 0 (as in PFENet, BAM and SVF) and is not left out.
    """
    return mean_scores([_scores(_columns(table).sum(0, keepdims=True), zero) for table in tables])


def resampled(tables: Sequence[EpisodeTable], zero: bool, resamples: int = RESAMPLES) -> Scores:
    """The same numbers of `resamples` bootstrap samples.

    Which episodes are drawn depends on the numbers of seeds and episodes alone: results of the same episodes have the
    same resamples, and their difference is a paired one.
    """
    return mean_scores(
        [_scores(_resampled_sums(table, number, resamples), zero) for number, table in enumerate(tables)]
    )


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
    """The t that a value of Student's distribution does not exceed in size with probability `level`.

    By halving: the probability is a finite sum in the angle atan(t / sqrt(freedom)) (Abramowitz and Stegun, 26.7.3 and 4).
    """
    low, high = 0.0, pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _students_probability(angle, freedom) < level else (low, angle)
    return sqrt(freedom) * tan(low)


def _students_probability(angle: float, freedom: int) -> float:
    """Of |t| <= sqrt(freedom) tan(angle)."""
    odd = freedom % 2
    term = total = cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cos(angle) ** 2
        total += term
    if not odd:
        return sin(angle) * total
    return 2 / pi * (angle + sin(angle) * total * (freedom > 1))


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


def _resampled_sums(table: EpisodeTable, number: int, resamples: int) -> np.ndarray:
    # In float64, which is exact up to 2^53 and multiplies matrices fast; sums of pixels stay far below.
    columns = _columns(table).astype(np.float64)
    return np.concatenate([chunk.astype(np.float64) @ columns for chunk in weights(len(table), number, resamples)])


def _columns(table: EpisodeTable) -> np.ndarray:
    """What is summed, (E, 2 C + 3): intersections, unions, the foreground's two, counted pixels."""
    return np.concatenate([table.intersection, table.union, table.foreground, table.counted[:, None]], axis=1)


def _scores(sums: np.ndarray, zero: bool) -> Scores:
    """Scores of (R, 2 C + 3) sums, as evaluation/counts.py defines them."""
    classes = (sums.shape[1] - 3) // 2
    per_class = _ratio(sums[:, :classes], sums[:, classes : 2 * classes])
    if zero:
        per_class = np.nan_to_num(per_class)
    both, either, counted = sums[:, -3:].T
    parts = np.stack([_ratio(both, either), _ratio(counted - either, counted - both)], axis=1)
    return Scores(_mean_of_present(per_class, axis=1), _mean_of_present(parts, axis=1), per_class)


def _ratio(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """IoU, NaN without a union."""
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def _mean_of_present(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what is not NaN; 0 when nothing is there."""
    present = ~np.isnan(values)
    return np.nan_to_num(values).sum(axis) / np.maximum(present.sum(axis), 1)


def mean_scores(runs: Sequence[Scores]) -> Scores:
    """The mean over seeds, or trainings; a class's over those that have one."""
    per_class = np.stack([run.per_class for run in runs])
    over_seeds = np.where(np.isnan(per_class).all(0), np.nan, _mean_of_present(per_class, axis=0))
    return Scores(np.mean([r.miou for r in runs], axis=0), np.mean([r.fb_iou for r in runs], axis=0), over_seeds)
