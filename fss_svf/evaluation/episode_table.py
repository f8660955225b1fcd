"""episodes.csv beside each result.json: what each episode showed, and its pixel counts.

Images and classes stand by name, so that two results can be laid side by side wherever they were measured.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fss_svf.data.manifest import EpisodeList
from fss_svf.errors import DataError
from fss_svf.evaluation.counts import EpisodeCount
from fss_svf.files import appearing_whole

COLUMNS = (
    "seed", "number", "class", "query", "supports", "intersection", "union", "foreground_intersection",
    "foreground_union", "counted",
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """What an episode shows, by name: the classes of its ways, and way by way their supports."""

    classes: tuple[str, ...]
    query: str
    supports: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class EpisodeTable:
    """The E episodes of one seed, number 0 first, with counts by class in C columns; all numbers int64 pixels.

    classes              (C,) names: the classes that the evaluation measures, drawn or not
    shown                (E,)
    measured             (E, C) bool, whether the episode is counted for the class
    intersection, union  (E, C), 0 where it is not
    foreground           (E, 2) intersection and union of any class's foreground
    counted              (E,) pixels of the mask that are not 255
    """

    seed: int
    classes: tuple[str, ...]
    shown: tuple[Shown, ...]
    measured: np.ndarray
    intersection: np.ndarray
    union: np.ndarray
    foreground: np.ndarray
    counted: np.ndarray

    def __len__(self) -> int:
        return len(self.shown)


@dataclass(frozen=True)
class _Row:
    """One episode. of_class: intersection and union by class, of the classes that it is counted for."""

    shown: Shown
    of_class: Mapping[str, tuple[int, int]]
    foreground: tuple[int, int]
    counted: int


def episode_table(episodes: EpisodeList, counts: Iterable[EpisodeCount], classes: Sequence[int]) -> EpisodeTable:
    """The table of an evaluated list: `counts` in its order, `classes` the numbers of those that are measured."""
    index = episodes.index
    rows = []
    for spec, count in zip(episodes.specs, counts, strict=True):
        names = [str(index.names[image]) for image in (spec.query, *spec.supports)]
        of_class = dict(zip(map(index.class_name, count.classes), zip(count.intersection, count.union)))
        shown = Shown(tuple(map(index.class_name, spec.class_ids)), names[0], tuple(names[1:]))
        rows.append(_Row(shown, of_class, count.foreground, count.counted))
    return _table(episodes.seed, tuple(map(index.class_name, classes)), rows)


def total_counts(tables: Sequence[EpisodeTable]) -> dict[str, dict[str, int]]:
    """Intersection, union and number of episodes of each class over all seeds."""
    found = {}
    for c, name in enumerate(tables[0].classes):
        columns = {
            "intersection": [t.intersection[:, c] for t in tables],
            "union": [t.union[:, c] for t in tables],
            "episodes": [t.measured[:, c] for t in tables],
        }
        found[name] = {key: int(sum(column.sum() for column in each)) for key, each in columns.items()}
    return found


def save_episode_table(path: Path, tables: Iterable[EpisodeTable]) -> None:
    """Write COLUMNS, a row an episode, seed after seed. A way that is not counted leaves its place empty: "12;"."""
    with appearing_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for table in tables:
            column = {name: c for c, name in enumerate(table.classes)}
            for n, shown in enumerate(table.shown):
                ways = [column[name] for name in shown.classes]
                both, either = (
                    ";".join(str(of[n, c]) if table.measured[n, c] else "" for c in ways)
                    for of in (table.intersection, table.union)
                )
                names = (_joined(shown.classes), shown.query, _joined(shown.supports))
                writer.writerow([table.seed, n, *names, both, either, *table.foreground[n], table.counted[n]])


def load_episode_table(path: Path, classes: Sequence[str]) -> list[EpisodeTable]:
    """The tables of a file, one a seed, in its order; `classes` names their columns.

    Raises DataError that names file and line: for another header, a cut or missing row, a class not in `classes`, or
    counts that cannot be (an intersection beyond its union, a union beyond the pixels that count).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; evaluate again, which writes it beside result.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a table of episodes ({error}); evaluate again") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: dict[int, list[_Row]] = {}
    try:
        if (header := tuple(next(reader, ()))) != COLUMNS:
            raise ValueError(f"expected the columns {', '.join(COLUMNS)}, found {', '.join(header) or 'none'}")
        for cells in reader:
            if len(cells) != len(COLUMNS):
                raise ValueError(f"expected {len(COLUMNS)} cells, found {len(cells)}")
            row = dict(zip(COLUMNS, cells))
            of_seed = rows.setdefault(_number(row["seed"]), [])
            if _number(row["number"]) != len(of_seed):
                raise ValueError(f"episode {row['number']}, expected {len(of_seed)}: a line is missing or twice")
            of_seed.append(_read(row, classes))
        if not text.endswith("\n"):
            raise ValueError("the file is cut here")
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}, line {max(1, reader.line_num)}: {error}; evaluate again") from None
    if not rows:
        raise DataError(f"{path}: holds no episode; evaluate again")
    return [_table(seed, tuple(classes), of_seed) for seed, of_seed in rows.items()]


def _table(seed: int, classes: tuple[str, ...], rows: Sequence[_Row]) -> EpisodeTable:
    measured = np.zeros((len(rows), len(classes)), bool)
    intersection, union = (np.zeros((len(rows), len(classes)), np.int64) for _ in range(2))
    column = {name: c for c, name in enumerate(classes)}
    for n, row in enumerate(rows):
        for name, (both, either) in row.of_class.items():
            c = column[name]
            measured[n, c], intersection[n, c], union[n, c] = True, both, either
    return EpisodeTable(
        seed=seed,
        classes=classes,
        shown=tuple(row.shown for row in rows),
        measured=measured,
        intersection=intersection,
        union=union,
        foreground=np.array([row.foreground for row in rows], np.int64).reshape(-1, 2),
        counted=np.array([row.counted for row in rows], np.int64),
    )


def _read(row: Mapping[str, str], classes: Sequence[str]) -> _Row:
    """Raises ValueError."""
    shown = Shown(_parted(row["class"]), row["query"], _parted(row["supports"]))
    unknown = [name for name in shown.classes if name not in classes]
    if unknown:
        raise ValueError(f"class {unknown[0]!r} is none of those that its result.json measures")
    counted = _number(row["counted"])
    both, either = row["intersection"].split(";"), row["union"].split(";")
    if not len(both) == len(either) == len(shown.classes):
        raise ValueError(f"{len(shown.classes)} classes, {len(both)} intersections, {len(either)} unions")
    pairs = {name: (i, u) for name, i, u in zip(shown.classes, both, either) if i or u}
    of_class = {name: _pair(i, u, counted) for name, (i, u) in pairs.items()}
    foreground = _pair(row["foreground_intersection"], row["foreground_union"], counted)
    return _Row(shown, of_class, foreground, counted)


def _pair(intersection: str, union: str, counted: int) -> tuple[int, int]:
    both, either = _number(intersection), _number(union)
    if not both <= either <= counted:
        raise ValueError(f"intersection {both}, union {either} and {counted} counted pixels cannot be")
    return both, either


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"expected a whole number >= 0, got {text!r}")
    return int(text)


def _joined(names: Sequence[str]) -> str:
    """Names joined by ";" as CSV does it: one that holds ";" itself stands in quotes."""
    cell = io.StringIO()
    csv.writer(cell, delimiter=";", lineterminator="").writerow(names)
    return cell.getvalue()


def _parted(cell: str) -> tuple[str, ...]:
    return tuple(next(csv.reader([cell], delimiter=";", strict=True), ()))
