"""By how much the rows of a table differ on the same episodes: means over folds and trainings, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fss_svf.evaluation.intervals import interval, students_interval
from fss_svf.page.episodes import Episodes, Measured, of_row
from fss_svf.reporting.rows import Row
from fss_svf.reporting.table import Table


@dataclass(frozen=True)
class Paired:
    """Row minus reference in mIoU, fractions. folds: those that both have.

    interval   over episodes, by the bootstrap
    trainings  the difference of each training seed that both have, means over folds
    """

    row: Row
    reference: Row
    folds: tuple[int, ...]
    difference: float
    interval: tuple[float, float]
    trainings: tuple[float, ...]

    @property
    def trainings_interval(self) -> tuple[float, float] | None:
        """Student's; None for one training."""
        return students_interval(self.trainings)

    @property
    def clear(self) -> bool:
        """Whether no interval holds 0."""
        return all(of is None or not of[0] <= 0 <= of[1] for of in (self.interval, self.trainings_interval))


# By fold and training seed.
Cells = Mapping[int, Mapping[Any, Measured]]


def paired_differences(table: Table, episodes: Episodes, shot: int) -> Iterator[tuple[Row, list[Paired]]]:
    """For each row as the reference, the best first: its differences to the other rows, the highest first."""
    folds = sorted({fold for row in table.rows for s, fold in row.cells if s == shot})
    cells: dict[int, Cells] = {
        id(row): {fold: of for fold in folds if (of := of_row(episodes, row, shot, fold))} for row in table.rows
    }
    rows = [row for row in table.rows if cells[id(row)]]
    for reference in sorted(rows, key=lambda row: _mean(cells[id(row)]), reverse=True):
        found = [_pair(row, reference, cells) for row in rows if row is not reference]
        pairs = sorted((one for one in found if one is not None), key=lambda one: one.difference, reverse=True)
        if pairs:
            yield reference, pairs


def _mean(cells: Cells) -> float:
    return float(np.mean([np.mean([one.scores.miou[0] for one in of.values()]) for of in cells.values()]))


def _pair(row: Row, reference: Row, cells: Mapping[int, Cells]) -> Paired | None:
    """None where no fold has the same episodes in both. What was not trained is paired with every training."""
    a, b = cells[id(reference)], cells[id(row)]
    folds = [fold for fold in b if fold in a and _seeds(a[fold], b[fold])]
    seeds = (
        [pair for pair in _seeds(a[folds[0]], b[folds[0]]) if all(pair in _seeds(a[f], b[f]) for f in folds)]
        if folds
        else []
    )
    if not seeds:
        return None
    pairs = {fold: [(a[fold][of_a], b[fold][of_b]) for of_a, of_b in seeds] for fold in folds}
    if not all(of_a.same_episodes(of_b) for of in pairs.values() for of_a, of_b in of):
        return None
    differences = np.array([[of_b.scores.miou[0] - of_a.scores.miou[0] for of_a, of_b in of] for of in pairs.values()])
    # Folds are drawn apart: equal lists of numbers of episodes would otherwise be drawn alike in each.
    resamples = [
        np.roll(np.mean([of_b.resamples.miou - of_a.resamples.miou for of_a, of_b in of], axis=0), 7 * place)
        for place, of in enumerate(pairs.values())
    ]
    ends = interval(np.mean(resamples, axis=0))
    assert ends is not None
    return Paired(row, reference, tuple(folds), float(differences.mean()), ends, tuple(differences.mean(0).tolist()))


def _seeds(a: Mapping[Any, Measured], b: Mapping[Any, Measured]) -> list[tuple[Any, Any]]:
    """The pairs of training seeds of a and b."""
    if None in a or None in b:
        return [(of_a, of_b) for of_a in a for of_b in b]
    return [(seed, seed) for seed in a if seed in b]
