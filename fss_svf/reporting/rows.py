"""Which results share a row of a table: those that differ in fold, shot or the seed of their training alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Result = Mapping[str, Any]
Words = tuple[str, str, str, str]
# Of every shot and fold the results by the seed of their training; None for what was not trained.
Cells = dict[tuple[int, int], dict[Any, Result]]
_ABSENT = object()


@dataclass(frozen=True)
class Estimate:
    """A number over training seeds, a fraction. deviation: of a sample, None for one seed; seeds: how many."""

    value: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Row:
    """words: method, tuning, what the backbone started from, and the training."""

    words: Words
    cells: Cells
    seeds: tuple[Any, ...]

    @property
    def first(self) -> Result:
        """Some result of it, which says what all have in common."""
        return next(iter(next(iter(self.cells.values())).values()))

    def of(self, shot: int, fold: int) -> list[Result]:
        """Results of a cell, one a seed."""
        return list(self.cells.get((shot, fold), {}).values())

    def cell(self, shot: int, fold: int, key: str = "miou") -> Estimate | None:
        """Over the seeds of a cell; None where there is no number."""
        return estimate([r[key] for r in self.of(shot, fold) if r[key] is not None])

    def mean(self, shot: int, folds: Sequence[int], key: str = "miou") -> Estimate | None:
        """The mean over folds of each seed that has them all, over these seeds."""
        of_folds = [self.cells.get((shot, fold), {}) for fold in folds]
        means = []
        for seed in self.seeds:
            values = [cell[seed][key] for cell in of_folds if seed in cell and cell[seed][key] is not None]
            if len(values) == len(folds):
                means.append(fmean(values))
        return estimate(means)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and standard deviation; None of nothing."""
    if not values:
        return None
    return Estimate(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def rows_of(results: Sequence[Result]) -> list[Row]:
    """The rows of a table's results, in their order."""
    # Results of one name that were trained with other options are other rows, which say what differs.
    telling = _telling_options(results)
    found: dict[tuple[str, ...], Cells] = {}
    for r in results:
        cell = found.setdefault(_key(r, telling), {}).setdefault((r["shot"], r["fold"]), {})
        cell[(r["checkpoint"] or {}).get("seed")] = r
    return [_row(key, cells) for key, cells in found.items()]


def _row(key: tuple[str, ...], cells: Cells) -> Row:
    seeds = tuple(dict.fromkeys(seed for of_seed in cells.values() for seed in of_seed))
    *words, kind, rest = key
    trained = [seed for seed in seeds if seed is not None]
    training = f"{kind}, {said_seeds(trained)}, {rest}" if trained else "none"
    return Row((words[0], words[1], words[2], training), cells, seeds)


def said_seeds(seeds: Sequence[int]) -> str:
    """ "seed 321", "2 seeds (1, 5)", "5 seeds (321 to 325)"."""
    each = sorted(seeds)
    if len(each) == 1:
        return f"seed {each[0]}"
    run = len(each) > 2 and each == list(range(each[0], each[-1] + 1))
    return f"{len(each)} seeds ({f'{each[0]} to {each[-1]}' if run else ', '.join(map(str, each))})"


def _telling_options(results: Sequence[Result]) -> dict[tuple[str, ...], list[str]]:
    """The options that differ among the results of a row, by the row without them."""
    of_row: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for r in results:
        of_row.setdefault(_key(r), []).append(_options(r))
    found = {}
    for row, each in of_row.items():
        keys = dict.fromkeys(key for options in each for key in options)
        found[row] = [key for key in keys if any(o.get(key, _ABSENT) != each[0].get(key, _ABSENT) for o in each)]
    return found


def _key(result: Result, telling: Mapping[tuple[str, ...], Sequence[str]] | None = None) -> tuple[str, ...]:
    """What makes a row: method, tuning, what the backbone started from, and the training but for its seed, in two parts."""
    trained = result["checkpoint"]
    kind = rest = ""
    if trained:
        kind = f"{ways(trained, '{}-way ')}{trained['shot']}-shot, {trained['recipe']}"
        # Held-out classes are others in every fold, and told by `validate.held_out` where rows differ in them.
        rest = trained["selection"].split(":")[0]
    # Folds stand side by side in a row, so the fold of a base learner is not part of it.
    weights = result["backbone_weights"].split(", ")[0]
    key = result["method"], result["tuning"], weights, kind, rest
    options = _options(result)
    differing = [f"{name}={options[name]}" for name in (telling or {}).get(key, ()) if name in options]
    return (*key[:-1], ", ".join([rest, *differing]))


def _options(result: Result) -> Mapping[str, Any]:
    """The options of its training; a result of before they were kept has none."""
    found: Mapping[str, Any] = (result["checkpoint"] or {}).get("options", {})
    return found


def ways(result: Result, text: str) -> str:
    """The text with the number of ways where there are several. A result of before there were has none."""
    way = result.get("way", 1)
    return text.format(way) if way > 1 else ""
