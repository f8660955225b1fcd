"""The episodes behind the rows of a table, and their numbers in bootstrap samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fss_svf.errors import DataError
from fss_svf.evaluation.episode_table import EpisodeTable
from fss_svf.evaluation.intervals import measured, resampled
from fss_svf.evaluation.metric import CLASSES, Scores, iou, mean_scores
from fss_svf.evaluation.saved import saved_tables
from fss_svf.reporting.rows import Result, Row

log = logging.getLogger(__name__)
# Of an archive without these files every result would be a line.
_TOLD = 3


@dataclass(frozen=True, eq=False)
class Measured:
    """The episodes of one result, a table a seed. zero: a class without a union counts as 0."""

    tables: Sequence[EpisodeTable]
    zero: bool

    @cached_property
    def scores(self) -> Scores:
        """R = 1: the result's own numbers."""
        return measured(self.tables, self.zero)

    @cached_property
    def resamples(self) -> Scores:
        return resampled(self.tables, self.zero)

    @cached_property
    def ious(self) -> np.ndarray:
        """(n,) IoU of each class in each episode that is counted for it; those without a union are left out."""
        values = np.concatenate([iou(t.counts[:, CLASSES:])[t.measured] for t in self.tables])
        return values[~np.isnan(values)]

    @cached_property
    def sizes(self) -> np.ndarray | None:
        """(n,) the share of the image that the class covers, in the order of `ious`; None in files of version 0.1."""
        found = []
        for t in self.tables:
            if t.true is None:
                return None
            known = ~np.isnan(iou(t.counts[:, CLASSES:])[t.measured])
            found.append((t.true / t.counted[:, None])[t.measured][known])
        return np.concatenate(found)

    def same_episodes(self, other: Measured) -> bool:
        return len(self.tables) == len(other.tables) and all(
            a.names == b.names and a.classes == b.classes and np.array_equal(a.counted, b.counted)
            for a, b in zip(self.tables, other.tables)
        )


# By the path of its result.json.
Episodes = Mapping[str, Measured]


def read_episodes(results: Sequence[Result]) -> Episodes:
    """The episodes of every result that has readable ones; of the others a warning says why not."""
    found, unread = {}, []
    for result in results:
        if "path" not in result or "per_class_counts" not in result:
            continue  # of an older version
        if result["protocol"].get("classes") == "all":
            continue  # whole images: its file has other rows (docs/results.md)
        try:
            tables = saved_tables(Path(result["path"]), result)
        except DataError as error:
            unread.append(error)
            continue
        found[result["path"]] = Measured(tables, result["protocol"].get("never_drawn") == "zero")
    for why in unread[:_TOLD]:
        log.warning("%s; the report has no plots of these episodes", why)
    if unread[_TOLD:]:
        log.warning("nor of %d more results, whose episodes.csv is missing or damaged", len(unread[_TOLD:]))
    return found


def of_row(episodes: Episodes, row: Row, shot: int, fold: int) -> dict[Any, Measured]:
    """The episodes of a row's results by the seed of their training; a row of further predictions has none."""
    of_seeds = row.cells.get((shot, fold), {})
    return {
        seed: episodes[r["path"]] for seed, r in of_seeds.items() if "prediction" not in r and r.get("path") in episodes
    }


def over_trainings(of_seeds: Mapping[Any, Measured]) -> Scores:
    """The bootstrap samples of the mean over trainings, which are all of the same episodes."""
    return mean_scores([one.resamples for one in of_seeds.values()])
