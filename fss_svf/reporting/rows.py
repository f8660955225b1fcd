"""Groups results into rows of a table. Results of a row differ only in fold, shot and the seed of their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Result = Mapping[str, Any]
Words = tuple[str, str, str, str]
# For every (shot, fold) the results by the seed of their training; None if nothing was trained.
Cells = dict[tuple[int, int], dict[Any, Result]]
# method, tuning, backbone weights, first and second part of the description of the training
Key = tuple[str, str, str, str, str]
_ABSENT = object()
_WEIGHTS = "backbone_weights_hash"
LAST_STEP = "last step"  # `selection` of a checkpoint that was not chosen by validation


@dataclass(frozen=True)
class Estimate:
    """A mean over training seeds, a fraction. deviation: of the sample, None for one seed. seeds: their number."""

    value: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Row:
    """words: method, tuning, backbone weights at the start, and the training."""

    words: Words
    cells: Cells
    seeds: tuple[Any, ...]

    @property
    def first(self) -> Result:
        """The first result, for what all results of the row have in common."""
        return next(iter(next(iter(self.cells.values())).values()))

    def of(self, shot: int, fold: int) -> list[Result]:
        """The results of a cell, one for each seed."""
        return list(self.cells.get((shot, fold), {}).values())

    def cell(self, shot: int, fold: int, key: str = "miou") -> Estimate | None:
        """The estimate over the seeds of a cell; None if there is no number."""
        values = (entry(r, key) for r in self.of(shot, fold))
        return estimate([value for value in values if value is not None])

    def mean(self, shot: int, folds: Sequence[int], key: str = "miou") -> Estimate | None:
        """The estimate of the mean over folds, over the seeds that have all folds."""
        of_folds = [self.cells.get((shot, fold), {}) for fold in folds]
        means = []
        for seed in self.seeds:
            values = [entry(cell[seed], key) for cell in of_folds if seed in cell]
            known = [value for value in values if value is not None]
            if len(known) == len(folds):
                means.append(fmean(known))
        return estimate(means)


def entry(result: Result, key: str) -> Any:
    """What a result has under a dotted key such as reliance.in_query.difference; None where it has none."""
    found: Any = result
    for part in key.split("."):
        found = None if found is None else found.get(part)
    return found


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and standard deviation; None for no values."""
    if not values:
        return None
    return Estimate(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def rows_of(results: Sequence[Result]) -> list[Row]:
    """The rows of the results of a table, in their order."""
    keys = [_key(r) for r in results]
    # Results trained with other options, data or weights are separate rows, which list the difference. Rows of one recipe
    # also list its options in which any of them differ: its name alone would call them equal. Options that differ between
    # folds by nature are compared last, among results of one fold.
    for by_fold in (False, True):
        keys = _distinguished(results, keys, by_fold)
    rows: dict[Key, Cells] = {}
    for r, key in zip(results, keys):
        cell = rows.setdefault(key, {}).setdefault((r["shot"], r["fold"]), {})
        cell[(r["checkpoint"] or {}).get("seed")] = r
    return [_row(key, cells) for key, cells in rows.items()]


def _row(key: tuple[str, ...], cells: Cells) -> Row:
    seeds = tuple(dict.fromkeys(seed for of_seed in cells.values() for seed in of_seed))
    *words, kind, rest = key
    trained = [seed for seed in seeds if seed is not None]
    without = f"none, {rest}" if rest and not kind else "none"
    training = f"{kind}, {seeds_in_words(trained)}, {rest}" if trained else without
    return Row((words[0], words[1], words[2], training), cells, seeds)


def seeds_in_words(seeds: Sequence[int]) -> str:
    """ "seed 321", "2 seeds (1, 5)", "5 seeds (321 to 325)"."""
    each = sorted(seeds)
    if len(each) == 1:
        return f"seed {each[0]}"
    run = len(each) > 2 and each == list(range(each[0], each[-1] + 1))
    return f"{len(each)} seeds ({f'{each[0]} to {each[-1]}' if run else ', '.join(map(str, each))})"


def _key(result: Result) -> Key:
    """The key of a row: method, tuning, backbone weights at the start, and the training without its seed, in two parts."""
    trained = result["checkpoint"]
    kind = rest = ""
    if trained:
        kind = f"{ways(trained, '{}-way ')}{trained['shot']}-shot, {trained['recipe']}"
        # Held-out classes differ in every fold. If rows differ in them, `validate.held_out` is listed.
        rest = trained["selection"].split(":")[0]
    # A row has all folds, so the fold of a base learner is not part of the key.
    weights = result["backbone_weights"].split(", ")[0]
    return method_of(result), result["tuning"], weights, kind, rest


def method_of(result: Result) -> str:
    """The method, and how it joins several classes where it does not predict them at once."""
    return result["method"] + (", way_rule=argmax" if result.get("way_rule") == "argmax" else "")


def _distinguished(results: Sequence[Result], keys: Sequence[Key], by_fold: bool) -> list[Key]:
    """The keys, extended by the options in which results of the same key differ, and those of its recipe in which results
    of the same recipe do."""
    of_row: dict[Key, list[Result]] = {}
    of_recipe: dict[str | None, list[Result]] = {}
    for r, key in zip(results, keys):
        of_row.setdefault(key, []).append(r)
        of_recipe.setdefault(_recipe(r), []).append(r)
    differing = {key: _differing_options(row, by_fold) for key, row in of_row.items()}
    of_recipes = {
        recipe: [name for name in _differing_options(of, by_fold) if name.startswith("recipe.")]
        for recipe, of in of_recipe.items()
    }
    names = [list(dict.fromkeys([*differing[key], *of_recipes[_recipe(r)]])) for r, key in zip(results, keys)]
    return [_with_options(r, key, each) for r, key, each in zip(results, keys, names)]


def _recipe(result: Result) -> str | None:
    """The recipe's name; None without a training."""
    return result["checkpoint"]["recipe"] if result["checkpoint"] else None


def _differing_options(row: Sequence[Result], by_fold: bool) -> list[str]:
    """The options that differ among these results. by_fold: those that depend on the fold, among results of one fold."""
    names = []
    for name in dict.fromkeys(name for r in row for name in _options(r)):
        values: dict[int | None, list[Any]] = {}
        for r in row:
            values.setdefault(r["fold"] if by_fold else None, []).append(_options(r).get(name, _ABSENT))
        if _is_of_a_fold(name, row[0]) == by_fold and any(v != of[0] for of in values.values() for v in of):
            names.append(name)
    return names


def _is_of_a_fold(name: str, result: Result) -> bool:
    """Whether an option differs in every fold by nature: the hash of a checkpoint trained for the fold, and the number of
    steps, which follows from the fold's images."""
    if name == _WEIGHTS:
        return bool(result["backbone_weights"].startswith(("base learner", "official ")))
    return name in ("step", "method.base_learner.hash", "method.base_learner.step", "backbone.weights.step")


def _with_options(result: Result, key: Key, names: Sequence[str]) -> Key:
    method, tuning, weights, kind, rest = key
    options = _options(result)
    differing = [f"{name}={options[name]}" for name in names if name in options and name != _WEIGHTS]
    if _WEIGHTS in names:  # also for results without a training
        digest = options.get(_WEIGHTS)
        weights = f"{weights} ({digest[:8] if digest else 'content not recorded'})"
    return method, tuning, weights, kind, ", ".join(filter(None, [rest, *differing]))


def _options(result: Result) -> Mapping[str, Any]:
    """The options of the training, or of a method without one, the hash of its weights, and its steps unless a validation
    chose them. Older results may have none."""
    trained = result["checkpoint"] or {}
    options = {**result.get("options", {}), **trained.get("options", {})}
    if "step" in trained and trained["selection"] == LAST_STEP:
        options["step"] = trained["step"]
    if _WEIGHTS in result:
        options[_WEIGHTS] = result[_WEIGHTS]
    return options


def ways(result: Result, text: str) -> str:
    """`text` with the number of ways inserted; empty for one way. Older results do not record it."""
    way = result.get("way", 1)
    return text.format(way) if way > 1 else ""
