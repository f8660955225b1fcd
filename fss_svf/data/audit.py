"""fss-svf prepare check=true: what a prepared dataset holds, and what is doubtful in it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fss_svf.console import progress
from fss_svf.data.dataset import Dataset, Split, SplitName
from fss_svf.data.decoding import as_rgb, load, opened, orientation_of
from fss_svf.data.identity import file_digest
from fss_svf.data.images import PALETTE
from fss_svf.data.label_values import IGNORE
from fss_svf.data.overlay import overlay
from fss_svf.data.synonyms import listed_twice, other_names
from fss_svf.errors import listing
from fss_svf.files import atomic_write
from fss_svf.machine import cores
from fss_svf.provenance import write_json

log = logging.getLogger(__name__)

TINY = 1 / 1000  # of the image: a smaller mask is listed
_MOST_BITS = 3  # of 64, in which the patterns of two copies may differ
_COLUMNS, _ROWS, _CELL, _HEAD, _GAP = 6, 4, 200, 18, 6


class Look(NamedTuple):
    """An image's EXIF orientation, the digest of its file, and its coarse pattern of light; None if it is flat."""

    orientation: int
    digest: int
    pattern: int | None


def audit(dataset: Dataset, workers: int | None) -> None:
    """Print a table of a dataset, and write two files into its prepared folder: audit.json, and a sheet of
    random images, audit.png."""
    splits: dict[SplitName, Split] = {name: dataset.split(name) for name in dataset.splits}
    both = len({split.index.hash for split in splits.values()}) < len(splits)
    if both:
        del splits["train"]
    looks = {name: look_at_all(split, name, workers) for name, split in splits.items()}
    options, class_names = dataset.options, splits["val"].index.class_names
    report = {
        "dataset": dataset.name,
        "one_split": both,
        "splits": {name: of_split(split, looks[name], options.min_area) for name, split in splits.items()},
        "same_file": same_files(splits, looks),
        "alike": alike(splits, looks),
        "classes_listed_twice": listed_twice(class_names, options.synonyms),
        "other_names_of_classes": other_names(class_names, options.synonyms),
    }
    folder = options.prepared
    write_json(folder / "audit.json", report)
    with atomic_write(folder / "audit.png") as unfinished:
        Image.fromarray(contact_sheet(splits["val"])).save(unfinished, format="PNG")
    print("\n".join(table(report)))
    print(f"audit of {dataset.name}: {folder / 'audit.json'}, {folder / 'audit.png'}")


def look_at_all(split: Split, name: str, workers: int | None) -> list[Look]:
    """The Look of every image of a split."""
    index = split.index
    digests = None if index.files is None else index.files[:, 0, 0].tolist()

    def look(number: int) -> Look:
        path = split.image_path(number)
        return look_at(path, file_digest(path) if digests is None else digests[number])

    looks = []
    threads = max(1, cores() if workers is None else workers)
    with ThreadPoolExecutor(threads) as pool, progress(len(index), f"check {name}", "image") as bar:
        for one in pool.map(look, range(len(index))):
            looks.append(one)
            bar.update(1)
    return looks


def look_at(path: Path, digest: int) -> Look:
    """The pattern is 64 comparisons of neighbours among 8 x 9 grey cells: a copy of another size or quality has it too."""
    with opened(path) as image:
        orientation = orientation_of(image)
        image.draft("RGB", (128, 128))  # of a JPEG only a smaller version is decoded
        load(image)
        grey = as_rgb(image, path).mean(axis=2, dtype=np.float32)
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.diff(cells, axis=1) > 1  # below a grey level it would be noise
    few = not 8 <= np.count_nonzero(bits) <= 56
    return Look(orientation, digest, None if few else int.from_bytes(np.packbits(bits).tobytes(), "big"))


def of_split(split: Split, looks: Sequence[Look], min_area: int) -> dict[str, Any]:
    """Sizes, images of each class, and names of images with something doubtful."""
    index = split.index
    names, classes = index.names.tolist(), index.areas[:, 1:]
    pixels = index.sizes.astype(np.int64).prod(axis=1)
    tiny = (classes > 0) & (classes < TINY * pixels[:, None])
    return {
        "index": index.hash,
        "images": len(index),
        "height": _range(index.sizes[:, 0]),
        "width": _range(index.sizes[:, 1]),
        "min_area": min_area,
        "classes": {
            name: {"images": int((of >= min_area).sum()), "below_min_area": int(((of > 0) & (of < min_area)).sum())}
            for name, of in zip(index.class_names, classes.T)
        },
        "without_object": [names[n] for n in np.flatnonzero(~classes.any(axis=1))],
        "tiny_masks": [[names[n], index.class_names[c], int(classes[n, c])] for n, c in np.argwhere(tiny)],
        "exif_orientation": [name for name, look in zip(names, looks) if look.orientation != 1],
    }


def _range(values: np.ndarray) -> dict[str, int]:
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def same_files(splits: Mapping[SplitName, Split], looks: Mapping[SplitName, Sequence[Look]]) -> list[list[str]]:
    """SPLIT/NAME of images whose files have the same bytes, by file."""
    files: dict[int, list[str]] = defaultdict(list)
    for image, look in _named(splits, looks):
        files[look.digest].append(image)
    return [group for group in files.values() if len(group) > 1]


def alike(splits: Mapping[SplitName, Split], looks: Mapping[SplitName, Sequence[Look]]) -> list[list[str]]:
    """SPLIT/NAME of images whose patterns differ in few bits; of those with the same file the first."""
    files: dict[int, tuple[str, int]] = {}
    for image, look in _named(splits, looks):
        if look.pattern is not None:
            files.setdefault(look.digest, (image, look.pattern))
    images: dict[int, list[str]] = defaultdict(list)
    for image, pattern in files.values():
        images[pattern].append(image)
    group_of = {pattern: {pattern} for pattern in images}
    # Of four parts, two patterns that differ in three bits have one in common.
    for shift in range(0, 64, 64 // (_MOST_BITS + 1)):
        parts: dict[int, list[int]] = defaultdict(list)
        for pattern in images:
            parts[pattern >> shift & 0xFFFF].append(pattern)
        for part in parts.values():
            for one, other in combinations(part, 2):
                if (one ^ other).bit_count() <= _MOST_BITS and group_of[one] is not group_of[other]:
                    joined = group_of[one] | group_of[other]
                    group_of |= dict.fromkeys(joined, joined)
    groups = {id(group): group for group in group_of.values()}.values()
    named = ([image for pattern in group for image in images[pattern]] for group in groups)
    return [sorted(group) for group in named if len(group) > 1]


def _named(splits: Mapping[SplitName, Split], looks: Mapping[SplitName, Sequence[Look]]) -> Iterator[tuple[str, Look]]:
    for name, split in splits.items():
        yield from zip((f"{name}/{image}" for image in split.index.names.tolist()), looks[name])


def table(report: Mapping[str, Any]) -> list[str]:
    """The report as lines of a table, and a line for each thing that is doubtful."""
    head = ("split", "images", "classes", "median size", "no object", "tiny masks", "EXIF turns")
    rows = [
        (
            name,
            f"{of['images']:,}",
            str(sum(c["images"] > 0 for c in of["classes"].values())),
            f"{of['width']['median']} x {of['height']['median']}",
            *(f"{len(of[key]):,}" for key in ("without_object", "tiny_masks", "exif_orientation")),
        )
        for name, of in report["splits"].items()
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    if report["one_split"]:  # of the same images
        rows = [("both", *row[1:]) for row in rows]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in (head, *rows)]
    for key, what in (("same_file", "the same file"), ("alike", "alike, perhaps copies")):
        groups = report[key]
        between = [group for group in groups if len({image.split("/")[0] for image in group}) > 1]
        if groups:
            first = " = ".join((between or groups)[0][:3])
            lines.append(f"{what}: {len(groups):,} groups, {len(between):,} of them in train and val; first {first}")
    for name, of in report["splits"].items():
        for key, what in (
            ("without_object", "no object"),
            ("tiny_masks", "a mask below 0.1% of the image"),
            ("exif_orientation", "an EXIF orientation"),
        ):
            if of[key]:
                firsts = [" ".join(map(str, one)) if isinstance(one, list) else one for one in of[key]]
                lines.append(f"{name}, {what}: {listing(firsts, 3)}")
    if report["classes_listed_twice"]:
        pairs = listing(" = ".join(pair) for pair in report["classes_listed_twice"])
        lines.append(f"classes of one meaning: {pairs}")
    if report["other_names_of_classes"]:
        others = (f"{name} ({'/'.join(words)})" for name, words in report["other_names_of_classes"].items())
        lines.append(f"classes with other names in other datasets: {listing(others)}")
    return lines


def contact_sheet(split: Split, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB: random images, each with the classes of its label in VOC's colours and their names."""
    index = split.index
    with_object = np.flatnonzero(index.areas.any(axis=1))
    chosen = np.random.default_rng(seed).permutation(with_object)[: _COLUMNS * _ROWS]
    sheet = Image.new("RGB", (_COLUMNS * (_CELL + _GAP) + _GAP, _ROWS * (_CELL + _HEAD + _GAP) + _GAP), "white")
    font = ImageFont.load_default(11)
    for place, number in enumerate(chosen.tolist()):
        image, label = split.pair(number)
        values = [int(value) for value in np.unique(label) if value not in (0, IGNORE)]
        small = Image.fromarray(image)
        small.thumbnail((_CELL, _CELL))
        colours = [tuple(colour) for colour in PALETTE[1 : max(values) + 1].tolist()]
        cell = Image.fromarray(overlay(np.asarray(small), label, colours))
        left, top = _GAP + place % _COLUMNS * (_CELL + _GAP), _GAP + place // _COLUMNS * (_CELL + _HEAD + _GAP)
        sheet.paste(cell, (left, top + _HEAD))
        names = [index.class_name(c) for c in np.flatnonzero(index.areas[number]).tolist()]
        title = Image.new("RGB", (_CELL, _HEAD), "white")
        ImageDraw.Draw(title).text((0, 2), ", ".join(names), fill="black", font=font)
        sheet.paste(title, (left, top))
    return np.asarray(sheet)
