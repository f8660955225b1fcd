"""Lists of episodes and their file, a small table. With it two codebases can be compared on the same episodes.

Files contain one-way episodes. Those of several ways are drawn again, which gives the same ones.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fss_svf.data.episodes import EpisodeSampler, EpisodeSpec
from fss_svf.data.index import Index
from fss_svf.errors import DataError
from fss_svf.files import atomic_write

COLUMNS = ("seed", "number", "class", "class_name", "query")


@dataclass(frozen=True)
class EpisodeList:
    """Episodes of one seed with `shot` supports each; `specs[n]` is episode number n."""

    index: Index
    shot: int
    seed: int
    specs: tuple[EpisodeSpec, ...]

    @classmethod
    def drawn(cls, sampler: EpisodeSampler, count: int) -> EpisodeList:
        """Episodes 0..count - 1 of a sampler."""
        return cls(sampler.index, sampler.shot, sampler.seed, tuple(sampler[n] for n in range(count)))

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, number: int) -> EpisodeSpec:
        return self.specs[number]

    def first_supports(self, shot: int) -> EpisodeList:
        """The same episodes with the first `shot` of their supports."""
        return replace(self, shot=shot, specs=tuple(s.first_supports(shot) for s in self.specs))

    @property
    def whole(self) -> bool:
        """Whether these are the episodes of a WholeList, each measured for all its classes."""
        return bool(self.specs) and self.specs[0].alone

    def measured(self, spec: EpisodeSpec) -> dict[int, int]:
        """{way: class} of the classes in the query: as in PANet, only these are counted for an episode."""
        return {way: c for way, c in enumerate(spec.class_ids, 1) if self.index.areas[spec.query, c] > 0}

    def coverage(self, classes: Iterable[int]) -> dict[int, int]:
        """For every class in `classes` the number of episodes in which it is measured."""
        if self.whole:
            queries, classes = [spec.query for spec in self.specs], list(classes)
            return dict(zip(classes, (self.index.areas[np.ix_(queries, classes)] > 0).sum(0).tolist()))
        drawn = Counter(c for spec in self.specs for c in self.measured(spec).values())
        return {c: drawn[c] for c in classes}


def save_episodes(path: Path, lists: Sequence[EpisodeList]) -> None:
    """Write CSV rows of seed, number, class, class_name, query, support_1 .. support_K; images by their names."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow([*COLUMNS, *(f"support_{k}" for k in range(1, lists[0].shot + 1))])
            for episodes in lists:
                index = episodes.index
                for spec in episodes.specs:
                    images = [index.names[image] for image in (spec.query, *spec.supports)]
                    table.writerow(
                        [episodes.seed, spec.number, spec.class_id, index.class_name(spec.class_id), *images]
                    )
    except OSError as error:
        raise DataError(f"episodes.save={path}: cannot be written ({error}); choose another file") from None


def load_episodes(
    path: Path, index: Index, classes: Sequence[int], shot: int, repeats: bool = False
) -> list[EpisodeList]:
    """The episodes of a file that save_episodes or another program wrote, one list a seed, in the file's order.

    classes: those that may be tested. If there are more supports than `shot`, the first are used. repeats: a support may be
    listed twice. Raises DataError naming the line for an unknown image or class, a class that may not be tested or is not in
    the image, a query among its supports, or too few supports.
    """
    image_of = {name: number for number, name in enumerate(index.names.tolist())}
    by_seed: dict[int, list[EpisodeSpec]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            names = list(table.fieldnames or ())
            wanted = [*COLUMNS, *(f"support_{k}" for k in range(1, max(shot, len(names) - len(COLUMNS)) + 1))]
            if names != wanted:
                raise DataError(f"{path}: expected the columns {', '.join(wanted)}, found {', '.join(names) or 'none'}")
            for row in table:
                try:
                    if None in row:
                        raise ValueError("more cells than columns")
                    specs = by_seed.setdefault(_seed(row["seed"]), [])
                    spec = _read(
                        row, [row[name] for name in wanted[len(COLUMNS) :] if row[name]][:shot], index, image_of
                    )
                    _require_sound(spec, index, classes, shot, repeats)
                    if spec.number != len(specs):
                        raise ValueError(f"episode {spec.number}, expected {len(specs)}: a line is missing or repeated")
                    specs.append(spec)
                except (ValueError, TypeError) as error:
                    raise DataError(f"{path}, line {table.line_num}: {error}; write the file again") from None
    except FileNotFoundError:
        raise DataError(f"episodes.load={path}: no such file; write one with episodes.save=FILE") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of episodes ({error})") from None
    if not by_seed:
        raise DataError(f"{path}: contains no episode")
    return [EpisodeList(index, shot, seed, tuple(specs)) for seed, specs in by_seed.items()]


def episodes_hash(lists: Sequence[EpisodeList]) -> str:
    """16 hex digits over the episodes: seeds, classes and images by name."""
    rows = [
        [episodes.seed, spec.class_id, *(str(episodes.index.names[image]) for image in (spec.query, *spec.supports))]
        for episodes in lists
        for spec in episodes.specs
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _seed(text: str) -> int:
    if int(text) < 0:
        raise ValueError(f"seed {text} is negative")
    return int(text)


def _read(row: dict[str, str], supports: list[str], index: Index, image_of: dict[str, int]) -> EpisodeSpec:
    for name in (row["query"], *supports):
        if name not in image_of:
            raise ValueError(f"image {name!r} is not in the dataset's index")
    class_id = int(row["class"])
    if not 1 <= class_id <= len(index.class_names) or index.class_name(class_id) != row["class_name"]:
        raise ValueError(f"class {row['class']} is not {row['class_name']!r} in this dataset")
    images = tuple(image_of[name] for name in supports)
    return EpisodeSpec(int(row["number"]), (class_id,), image_of[row["query"]], images)


def _require_sound(spec: EpisodeSpec, index: Index, classes: Sequence[int], shot: int, repeats: bool) -> None:
    name = index.class_name(spec.class_id)
    if spec.class_id not in classes:
        raise ValueError(f"class {spec.class_id} ({name}) is not novel in this fold")
    if len(spec.supports) < shot:
        raise ValueError(f"{len(spec.supports)} supports, {shot} are needed")
    if spec.query in spec.supports or (len(set(spec.supports)) != shot and not repeats):
        raise ValueError("the query and its supports must be different images")
    for image in (spec.query, *spec.supports):
        if index.areas[image, spec.class_id] == 0:
            raise ValueError(f"{index.names[image]} contains no {name}")
