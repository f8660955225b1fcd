"""Reads the episodes of a saved result, and checks that they are its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fss_svf.errors import DataError, listing
from fss_svf.evaluation.episode_table import EpisodeTable, load_episode_table, total_counts


def saved_tables(path: Path, result: Mapping[str, Any]) -> list[EpisodeTable]:
    """The tables, one a seed, of the episodes.csv beside the result.json at `path`.

    Raises DataError for a result of an older version, and for a table that is damaged or of another result.
    """
    table = path.with_name("episodes.csv")
    missing = [key for key in ("per_class_counts", "way", "num_episodes", "data") if key not in result]
    if missing:
        raise DataError(f"{path}: has no {', '.join(missing)}, as results of older versions; evaluate again")
    counts = result["per_class_counts"]
    tables = load_episode_table(table, list(counts))
    found = {t.seed: len(t) for t in tables}
    expected = dict.fromkeys(result["seeds"], result["num_episodes"] // len(result["seeds"]))
    if found != expected:
        raise DataError(f"{table}: holds {_by_seed(found)}, its result.json is of {_by_seed(expected)}; evaluate again")
    if total_counts(tables) != counts:
        raise DataError(f"{table}: its counts are not those of the result.json beside it; evaluate again")
    return tables


def _by_seed(lengths: Mapping[int, int]) -> str:
    return listing(f"{episodes} episodes of seed {seed}" for seed, episodes in lengths.items())
