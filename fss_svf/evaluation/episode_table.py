"""The table of a seed's episodes and their pixel counts, and episodes.csv beside each result.json, which it is written to.

Images and classes stand by name, so that two results can be laid side by side wherever they were measured.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fss_svf.data.manifest import EpisodeList
from fss_svf.errors import DataError
from fss_svf.evaluation.metric import BACKGROUND, CLASSES, FOREGROUND
from fss_svf.files import atomic_write

COLUMNS = (
    "seed", "number", "class", "query", "supports", "intersection", "union", "true", "predicted",
    "foreground_intersection", "foreground_union", "counted",
)  # fmt: skip
# Files of version 0.1 have no sizes of the masks.
_SIZES = ("true", "predicted")
_OLDER = tuple(name for name in COLUMNS if name not in _SIZES)


@dataclass(frozen=True)
class EpisodeNames:
    """An episode by name: the classes of its ways, its query, and way by way its supports."""

    classes: tuple[str, ...]
    query: str
    supports: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class EpisodeTable:
    """The counts of the E episodes of one seed, number 0 first. Of metric.py: int64 pixels of intersection and union.

    classes   (C,) names: the classes that the evaluation measures, drawn or not
    names     (E,)
    measured  (E, C) bool, whether the episode is counted for the class
    counts    (E, 2 + C, 2) of background, foreground (any class's) and each class, 0 where it is not measured
    further   the same counts of a method's further predictions by name; not in the file
    supports  of a whole list, whose episodes share them: names of class and image; not in the file. Then each episode is
              counted for all classes, names have the query alone, and `measured` says which classes it holds
    true      (E, C) int64 pixels of each class in the label, 0 where it is not measured; None in a file of version 0.1
    base      sums over episodes of a base learner's counts, (1 + n + C, 2), by what was measured; not in the file
    """

    seed: int
    classes: tuple[str, ...]
    names: tuple[EpisodeNames, ...]
    measured: np.ndarray
    counts: np.ndarray
    further: dict[str, np.ndarray] = field(default_factory=dict)
    base: dict[str, np.ndarray] = field(default_factory=dict)
    supports: tuple[tuple[str, str], ...] = ()
    true: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def total(self) -> np.ndarray:
        """(2 + C, 2): the counts of all episodes."""
        return self.counts.sum(0)

    @property
    def counted(self) -> np.ndarray:
        """(E,) pixels of the mask that are not 255."""
        return self.counts[:, BACKGROUND, 0] + self.counts[:, FOREGROUND, 1]

    @property
    def predicted(self) -> np.ndarray | None:
        """(E, C) pixels predicted as each class, 0 where it is not measured; None where `true` is."""
        return None if self.true is None else self.counts[:, CLASSES:].sum(2) - self.true

    @property
    def episodes(self) -> dict[str, int]:
        """How many episodes are counted for each class."""
        return {name: int(n) for name, n in zip(self.classes, self.measured.sum(0))}


def empty_table(episodes: EpisodeList, classes: Sequence[int], further: Iterable[str] = ()) -> EpisodeTable:
    """The table of a list before its episodes are counted. `classes`: the numbers of those that are measured."""
    index, column = episodes.index, {c: i for i, c in enumerate(classes)}
    measured = np.zeros((len(episodes), len(classes)), bool)
    names = []
    supports: list[tuple[str, str]] = []
    if episodes.whole:
        spec = episodes.specs[0]
        ways = [index.class_name(c) for c in spec.class_ids for _ in range(spec.shot)]
        supports = list(zip(ways, map(str, index.names[list(spec.supports)])))
        queries = [spec.query for spec in episodes.specs]
        names = [EpisodeNames((), str(name), ()) for name in index.names[queries]]
        measured[:] = index.areas[np.ix_(queries, list(classes))] > 0
    for n, spec in enumerate(() if episodes.whole else episodes.specs):
        images = [str(index.names[image]) for image in (spec.query, *spec.supports)]
        names.append(EpisodeNames(tuple(map(index.class_name, spec.class_ids)), images[0], tuple(images[1:])))
        measured[n, [column[c] for c in episodes.measured(spec).values()]] = True
    shape = len(episodes), CLASSES + len(classes), 2
    return EpisodeTable(
        seed=episodes.seed,
        classes=tuple(map(index.class_name, classes)),
        names=tuple(names),
        measured=measured,
        counts=np.zeros(shape, np.int64),
        further={name: np.zeros(shape, np.int64) for name in further},
        supports=tuple(supports),
        true=np.zeros(measured.shape, np.int64),
    )


def total_counts(tables: Sequence[EpisodeTable]) -> dict[str, dict[str, int]]:
    """Intersection, union and number of episodes of each class over all seeds."""
    pixels = np.sum([table.total[CLASSES:] for table in tables], axis=0)
    return {
        name: {
            "intersection": int(pixels[c, 0]),
            "union": int(pixels[c, 1]),
            "episodes": sum(table.episodes[name] for table in tables),
        }
        for c, name in enumerate(tables[0].classes)
    }


def save_episode_table(path: Path, tables: Sequence[EpisodeTable]) -> None:
    """Write COLUMNS, a row an episode, seed after seed. A way that is not counted leaves its place empty: "12;".

    Of a whole list, a row has the classes that the query holds or is predicted to hold, and no supports: save_supports.
    Without `true` in every table, the sizes of the masks are left out, as in a file of version 0.1.
    """
    columns = COLUMNS if all(table.true is not None for table in tables) else _OLDER
    with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for table in tables:
            writer.writerows(_cells(table, n) for n in range(len(table)))


def _cells(table: EpisodeTable, n: int) -> dict[str, object]:
    """The row of episode `n`, by column."""
    names, foreground = table.names[n], table.counts[n, FOREGROUND]
    if table.supports:
        present = np.flatnonzero(table.counts[n, CLASSES:, 1]).tolist()
        names = replace(names, classes=tuple(table.classes[c] for c in present))
    ways = [table.classes.index(name) for name in names.classes]

    def of_ways(pixels: np.ndarray | None) -> str:
        """(C,) pixels of the episode's ways."""
        if pixels is None:
            return ""
        return ";".join(str(pixels[c]) if table.supports or table.measured[n, c] else "" for c in ways)

    return {
        "seed": table.seed,
        "number": n,
        "class": _joined(names.classes),
        "query": names.query,
        "supports": _joined(names.supports),
        "intersection": of_ways(table.counts[n, CLASSES:, 0]),
        "union": of_ways(table.counts[n, CLASSES:, 1]),
        "true": of_ways(None if table.true is None else table.true[n]),
        "predicted": of_ways(None if table.predicted is None else table.predicted[n]),
        "foreground_intersection": foreground[0],
        "foreground_union": foreground[1],
        "counted": table.counted[n],
    }


def save_supports(path: Path, tables: Iterable[EpisodeTable]) -> None:
    """Write the supports of whole lists: seed, class, support, class by class in the order in which they were drawn."""
    with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seed", "class", "support"))
        writer.writerows((table.seed, *row) for table in tables for row in table.supports)


def load_episode_table(path: Path, classes: Sequence[str]) -> list[EpisodeTable]:
    """The tables of a file, one a seed, in its order; `classes` names their columns.

    Raises DataError that names file and line: for another header, a cut or missing row, a class not in `classes`, or
    counts that cannot be (an intersection beyond its union, a union beyond the pixels that count, true and predicted
    pixels that do not add up to both).
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
        if (header := tuple(next(reader, ()))) not in (COLUMNS, _OLDER):
            raise ValueError(f"expected the columns {', '.join(COLUMNS)}, found {', '.join(header) or 'none'}")
        for cells in reader:
            if len(cells) != len(header):
                raise ValueError(f"expected {len(header)} cells, found {len(cells)}")
            row = dict(zip(header, cells))
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
    return [_table(seed, tuple(classes), of_seed, header == COLUMNS) for seed, of_seed in rows.items()]


def _table(seed: int, classes: tuple[str, ...], rows: Sequence[_Row], with_sizes: bool) -> EpisodeTable:
    measured = np.zeros((len(rows), len(classes)), bool)
    counts = np.zeros((len(rows), CLASSES + len(classes), 2), np.int64)
    true = np.zeros(measured.shape, np.int64) if with_sizes else None
    column = {name: c for c, name in enumerate(classes)}
    for n, row in enumerate(rows):
        both, either = row.foreground
        counts[n, FOREGROUND] = both, either
        counts[n, BACKGROUND] = row.counted - either, row.counted - both
        for name, pair in row.of_class.items():
            measured[n, column[name]], counts[n, CLASSES + column[name]] = True, pair
        if true is not None:
            true[n, [column[name] for name in row.true]] = list(row.true.values())
    return EpisodeTable(seed, classes, tuple(row.names for row in rows), measured, counts, true=true)


@dataclass(frozen=True)
class _Row:
    """One episode. of_class: intersection and union of the classes that it is counted for. true: their pixels in the
    label; empty in a file of version 0.1."""

    names: EpisodeNames
    of_class: Mapping[str, tuple[int, int]]
    true: Mapping[str, int]
    foreground: tuple[int, int]
    counted: int


def _read(row: Mapping[str, str], classes: Sequence[str]) -> _Row:
    """Raises ValueError."""
    names = EpisodeNames(_parted(row["class"]), row["query"], _parted(row["supports"]))
    unknown = [name for name in names.classes if name not in classes]
    if unknown:
        raise ValueError(f"class {unknown[0]!r} is none of those that its result.json measures")
    counted = _number(row["counted"])
    both, either = row["intersection"].split(";"), row["union"].split(";")
    if not len(both) == len(either) == len(names.classes):
        raise ValueError(f"{len(names.classes)} classes, {len(both)} intersections, {len(either)} unions")
    pairs = {name: (i, u) for name, i, u in zip(names.classes, both, either) if i or u}
    of_class = {name: _pair(i, u, counted) for name, (i, u) in pairs.items()}
    foreground = _pair(row["foreground_intersection"], row["foreground_union"], counted)
    return _Row(names, of_class, _true(row, names, of_class), foreground, counted)


def _true(row: Mapping[str, str], names: EpisodeNames, of_class: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Pixels of each class that is counted, in the label; empty without such a column. Raises ValueError."""
    if "true" not in row:
        return {}
    sizes = [row[name].split(";") for name in _SIZES]
    found = {}
    for name, true, predicted in zip(names.classes, *sizes):
        if name in of_class:
            both, either = of_class[name]
            found[name] = _number(true)
            if found[name] + _number(predicted) != both + either or not both <= found[name] <= either:
                raise ValueError(
                    f"{true} true and {predicted} predicted pixels cannot be with intersection {both}, union {either}"
                )
    if any(len(size) != len(names.classes) for size in sizes):
        raise ValueError(f"{len(names.classes)} classes, {' and '.join(str(len(s)) for s in sizes)} sizes of masks")
    return found


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
