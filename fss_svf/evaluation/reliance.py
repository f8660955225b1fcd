"""Support reliance: by how much mIoU falls when the supports show another class than the one that is scored.

Every drawn episode (query q, class c) is run again with wrong supports: images of another class c', whose masks show c'.
The prediction is still held against c in q. Reliance is mIoU with the right supports less mIoU with the wrong ones, of the
same episodes and classes. A model that segments whatever object there is, whatever the supports show, is near 0. One that
segments c only because the supports show c is near its mIoU.

in_query  c' is in the query too, with at least min_area pixels: there is another object to segment. It is drawn evenly
          from the dataset's other classes in q, novel and base: novel ones alone would leave few episodes, and a base class
          is as wrong as a novel one. An episode whose query holds no other class is no part of this number.
random    c' is drawn evenly from the other novel classes, whether q holds it or not. Every episode has one.

The supports of c' are drawn as those of c are: K different images of the split with enough pixels of c', never the query.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fss_svf.data.episodes import RELIANCE, EpisodeSpec
from fss_svf.data.fold import Fold
from fss_svf.data.manifest import EpisodeList
from fss_svf.errors import ConfigError
from fss_svf.evaluation.episode_table import EpisodeTable
from fss_svf.evaluation.groups import ListKey
from fss_svf.evaluation.intervals import interval, resampled_sums
from fss_svf.evaluation.metric import CLASSES, class_iou, mean_iou
from fss_svf.evaluation.plan import Plan
from fss_svf.files import atomic_write

log = logging.getLogger(__name__)

# Which class the wrong supports show, by its key in result.json: and as a sentence names it.
KINDS = {"in_query": "another class in the query", "random": "a random other class"}
COLUMNS = (
    "seed", "number", "kind", "class", "support_class", "query", "supports", "intersection", "union",
)  # fmt: skip

WrongLists = Mapping[ListKey, Sequence[EpisodeList]]


def require_one_way(way: int | None) -> None:
    """Raise ConfigError for several ways, where "another class" may be one of the episode's own."""
    if way != 1:
        got = "protocol.classes=all" if way is None else f"way={way}"
        raise ConfigError(f"reliance=true: is of episodes of one class, got {got}; say way=1, or leave reliance out")


def wrong_lists(plan: Plan, fold: Fold) -> dict[ListKey, list[EpisodeList]]:
    """The episodes of a plan with wrong supports, by (shot, kind), one list a seed. Raises ConfigError for several ways.

    An episode keeps its number, so that a list may have gaps. Which class and images are drawn depends on seed and number.
    """
    require_one_way(plan.way)
    most = max(plan.episodes)
    index = plan.episodes[most][0].index
    large = fold.supports(index, "val", plan.protocol.queries == "pairs")
    images = {c: np.flatnonzero(large[:, c]) for c in sorted({*plan.classes, *fold.novel, *fold.base})}
    in_query = index.areas >= fold.options.min_area

    def draw(spec: EpisodeSpec, seed: int, kind: str) -> EpisodeSpec | None:
        of_class = {
            c: others
            for c in (images if kind == "in_query" else plan.classes)
            if c != spec.class_id
            and (kind == "random" or in_query[spec.query, c])
            and len(others := images[c][images[c] != spec.query]) >= most
        }
        if not of_class:
            return None
        random = np.random.default_rng([seed, spec.number, RELIANCE, list(KINDS).index(kind)])
        shown = int(random.choice(list(of_class)))
        supports = random.permutation(of_class[shown])[:most]
        return replace(spec, supports=tuple(map(int, supports)), shown=(shown,))

    lists: dict[ListKey, list[EpisodeList]] = {}
    for kind, what in KINDS.items():
        runs = []
        for episodes in plan.episodes[most]:
            drawn = (draw(spec, episodes.seed, kind) for spec in episodes.specs)
            runs.append(replace(episodes, specs=tuple(spec for spec in drawn if spec is not None)))
        count = sum(map(len, runs))
        log.info("reliance: %s of %s episodes with supports of %s", f"{count:,}", f"{_number(plan):,}", what)
        if not count:
            log.warning("reliance: no episode can have supports of %s; its number is null", what)
        lists |= {(shot, kind): [episodes.first_supports(shot) for episodes in runs] for shot in plan.episodes}
    return lists


def _number(plan: Plan) -> int:
    return sum(len(episodes) for episodes in next(iter(plan.episodes.values())))


def measure_reliance(
    shot: int,
    right: Sequence[EpisodeTable],
    lists: WrongLists,
    tables: Mapping[ListKey, Sequence[EpisodeTable]],
    base: Iterable[int],
) -> dict[str, Any]:
    """`reliance` of result.json (docs/results.md), by kind: every number a fraction, a mean over seeds.

    right   the tables of the drawn episodes, one a seed
    lists   of wrong_lists, and tables: theirs, by the same keys
    base    numbers of the base classes
    """
    base = set(base)
    found = {}
    for kind in KINDS:
        # Both sides are of the same episodes: those that have wrong supports.
        sides = [
            (_rows(table, episodes), wrong)
            for table, episodes, wrong in zip(right, lists[shot, kind], tables[shot, kind])
            if len(episodes)
        ]
        specs = [spec for episodes in lists[shot, kind] for spec in episodes.specs]
        found[kind] = {
            **_difference(sides),
            "episodes": len(specs),
            "base_episodes": sum(spec.shown[0] in base for spec in specs),
            "classes": len({spec.class_id for spec in specs}),
        }
    return found


def _rows(table: EpisodeTable, episodes: EpisodeList) -> EpisodeTable:
    """The rows of these episodes."""
    numbers = [spec.number for spec in episodes.specs]
    names = tuple(table.names[n] for n in numbers)
    return replace(table, names=names, measured=table.measured[numbers], counts=table.counts[numbers])


def _difference(sides: Sequence[tuple[EpisodeTable, EpisodeTable]]) -> dict[str, Any]:
    """Of the tables by right and by wrong supports of each seed. Resamples are paired: both sides draw the same episodes."""
    if not sides:
        return dict.fromkeys(("difference", "interval", "right", "wrong"))
    right, wrong = (float(side[0]) for side in _mious(sides, lambda table, _: table.total[None]))
    of_right, of_wrong = _mious(sides, resampled_sums)
    return {
        "difference": right - wrong,
        "interval": interval(of_right - of_wrong),
        "right": right,
        "wrong": wrong,
    }


def _mious(
    sides: Sequence[tuple[EpisodeTable, EpisodeTable]], sums: Callable[[EpisodeTable, int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """mIoU (R,) by right and by wrong supports, means over seeds; sums: (R, 2 + C, 2) of a table and its seed's number.

    Both are over the classes that have a union on both sides.
    """
    mious = []
    for number, tables in enumerate(sides):
        right, wrong = (class_iou(sums(table, number)[:, CLASSES:]) for table in tables)
        absent = np.isnan(right) | np.isnan(wrong)
        mious.append([mean_iou(np.where(absent, np.nan, of_class)) for of_class in (right, wrong)])
    of_right, of_wrong = np.mean(mious, axis=0)
    return of_right, of_wrong


def save_wrong_episodes(
    path: Path, shot: int, lists: WrongLists, tables: Mapping[ListKey, Sequence[EpisodeTable]]
) -> None:
    """Write COLUMNS, a row for each episode with wrong supports; counts are of `class`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for kind in KINDS:
            for episodes, table in zip(lists[shot, kind], tables[shot, kind]):
                index = episodes.index
                for row, spec in enumerate(episodes.specs):
                    names = index.class_name(spec.class_id), index.class_name(spec.shown[0]), index.names[spec.query]
                    supports = ";".join(map(str, index.names[list(spec.supports)]))
                    # A table has a column for each class, all but that of the episode 0.
                    counts = table.counts[row, CLASSES:].sum(0)
                    writer.writerow([table.seed, spec.number, kind, *names, supports, *counts])


def reliance_in_words(reliance: Mapping[str, Any], level: float) -> str:
    """The numbers in percent as one line."""
    parts = []
    for kind, what in KINDS.items():
        one = reliance[kind]
        if one["difference"] is None:
            parts.append(f"with {what}: none")
            continue
        low, high = one["interval"]
        parts.append(
            f"with {what} {100 * one['difference']:.1f} ({level:.0%} interval {100 * low:.1f} to {100 * high:.1f}; mIoU "
            f"{100 * one['right']:.1f} by the right supports, {100 * one['wrong']:.1f} by these; {one['episodes']:,} "
            "episodes)"
        )
    return f"support reliance {', '.join(parts)}"
