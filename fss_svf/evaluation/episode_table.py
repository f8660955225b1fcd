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
    "seed", "number", "class", "query", "supports", "intersection", "union", "foreground_intersection",
    "foreground_union", "counted",
)  # fmt: skip


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


def save_episode_table(path: Path, tables: Iterable[EpisodeTable]) -> None:
    """Write COLUMNS, a row an episode, seed after seed. A way that is not counted leaves its place empty: "12;".

    Of a whole list, a row has the classes that the query holds or is predicted to hold, and no supports: save_supports.
    """
    with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for table in tables:
            column = {name: c for c, name in enumerate(table.classes)}
            for n, names in enumerate(table.names):
                if table.supports:
                    present = np.flatnonzero(table.counts[n, CLASSES:, 1]).tolist()
                    names = replace(names, classes=tuple(table.classes[c] for c in present))
                ways = [column[name] for name in names.classes]
                both, either = (
                    ";".join(
                        str(table.counts[n, CLASSES + c, part]) if table.supports or table.measured[n, c] else ""
                        for c in ways
                    )
                    for part in (0, 1)
                )
                texts = (_joined(names.classes), names.query, _joined(names.supports))
                foreground = table.counts[n, FOREGROUND]
                writer.writerow([table.seed, n, *texts, both, either, *foreground, table.counted[n]])


def save_supports(path: Path, tables: Iterable[EpisodeTable]) -> None:
    """Write the supports of whole lists: seed, class, support, class by class in the order in which they were drawn."""
    with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seed", "class", "support"))
        writer.writerows((table.seed, *row) for table in tables for row in table.supports)


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
    counts = np.zeros((len(rows), CLASSES + len(classes), 2), np.int64)
    column = {name: c for c, name in enumerate(classes)}
    for n, row in enumerate(rows):
        both, either = row.foreground
        counts[n, FOREGROUND] = both, either
        counts[n, BACKGROUND] = row.counted - either, row.counted - both
        for name, pair in row.of_class.items():
            measured[n, column[name]], counts[n, CLASSES + column[name]] = True, pair
    return EpisodeTable(seed, classes, tuple(row.names for row in rows), measured, counts)


@dataclass(frozen=True)
class _Row:
    """One episode. of_class: intersection and union of the classes that it is counted for."""

    names: EpisodeNames
    of_class: Mapping[str, tuple[int, int]]
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
    return _Row(names, of_class, foreground, counted)


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
