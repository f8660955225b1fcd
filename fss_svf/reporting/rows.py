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
# method, tuning, weights, kind and rest of the training
Key = tuple[str, str, str, str, str]
_ABSENT = object()
_WEIGHTS = "backbone_weights_hash"
LAST_STEP = "last step"  # how a checkpoint was chosen that no validation chose


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
    keys = [_key(r) for r in results]
    # Results of one name that were trained with other options, or on other data or weights, are other rows, which say what
    # differs. What is another one in every fold by its nature is compared last, among results of one fold.
    for by_fold in (False, True):
        keys = _told_apart(results, keys, by_fold)
    found: dict[Key, Cells] = {}
    for r, key in zip(results, keys):
        cell = found.setdefault(key, {}).setdefault((r["shot"], r["fold"]), {})
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


def _key(result: Result) -> Key:
    """What makes a row: method, tuning, what the backbone started from, and the training but for its seed, in two parts."""
    trained = result["checkpoint"]
    kind = rest = ""
    if trained:
        kind = f"{ways(trained, '{}-way ')}{trained['shot']}-shot, {trained['recipe']}"
        # Held-out classes are others in every fold, and told by `validate.held_out` where rows differ in them.
        rest = trained["selection"].split(":")[0]
    # Folds stand side by side in a row, so the fold of a base learner is not part of it.
    weights = result["backbone_weights"].split(", ")[0]
    return result["method"], result["tuning"], weights, kind, rest


def _told_apart(results: Sequence[Result], keys: Sequence[Key], by_fold: bool) -> list[Key]:
    """The keys, with the options in which the results of a row differ."""
    of_row: dict[Key, list[Result]] = {}
    for r, key in zip(results, keys):
        of_row.setdefault(key, []).append(r)
    telling = {key: _telling_options(row, by_fold) for key, row in of_row.items()}
    return [_with_options(r, key, telling[key]) for r, key in zip(results, keys)]


def _telling_options(row: Sequence[Result], by_fold: bool) -> list[str]:
    """The options that differ among these results; by_fold: those of a fold's own, among the results of one fold."""
    found = []
    for name in dict.fromkeys(name for r in row for name in _options(r)):
        values: dict[int | None, list[Any]] = {}
        for r in row:
            values.setdefault(r["fold"] if by_fold else None, []).append(_options(r).get(name, _ABSENT))
        if _is_of_a_fold(name, row[0]) == by_fold and any(v != of[0] for of in values.values() for v in of):
            found.append(name)
    return found


def _is_of_a_fold(name: str, result: Result) -> bool:
    """Whether an option's value is another one in every fold: the hash of a checkpoint that was trained for one, and the
    steps of an epoch of its images."""
    if name == _WEIGHTS:
        return bool(result["backbone_weights"].startswith(("base learner", "official ")))
    return name in ("step", "method.base_learner.hash", "method.base_learner.step", "backbone.weights.step")


def _with_options(result: Result, key: Key, names: Sequence[str]) -> Key:
    method, tuning, weights, kind, rest = key
    options = _options(result)
    differing = [f"{name}={options[name]}" for name in names if name in options and name != _WEIGHTS]
    if _WEIGHTS in names:  # also of what was not trained, which has no other words
        digest = options.get(_WEIGHTS)
        weights = f"{weights} ({digest[:8] if digest else 'content not recorded'})"
    return method, tuning, weights, kind, ", ".join([rest, *differing])


def _options(result: Result) -> Mapping[str, Any]:
    """The options of its training, its weights' hash, and its steps unless they were chosen by a validation; a result of
    before they were kept has none."""
    trained = result["checkpoint"] or {}
    found = dict(trained.get("options", {}))
    if "step" in trained and trained["selection"] == LAST_STEP:
        found["step"] = trained["step"]
    if _WEIGHTS in result:
        found[_WEIGHTS] = result[_WEIGHTS]
    return found


def ways(result: Result, text: str) -> str:
    """The text with the number of ways where there are several. A result of before there were has none."""
    way = result.get("way", 1)
    return text.format(way) if way > 1 else ""
