"""Base classes of datasets: options, a preparation, and two splits that read images and labels."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fss_svf.config import require
from fss_svf.data.file_names import present
from fss_svf.data.images import read_image, read_label
from fss_svf.data.index import Index
from fss_svf.data.partition import FOLDS, Partition, novel_classes
from fss_svf.data.synonyms import spelling
from fss_svf.errors import DataError

log = logging.getLogger(__name__)

SplitName = Literal["train", "val"]
SupportAnnotation = Literal["mask", "bbox", "scribble"]


@dataclass(frozen=True)
class DatasetOptions:
    """Options of every dataset. conf/dataset/*.yaml describes the effect of each."""

    root: Path
    prepared: Path
    class_partition: Partition
    min_area: int
    filter_novel: bool
    too_few_images: Literal["error", "skip"]
    support_annotation: SupportAnnotation
    synonyms: tuple[tuple[str, ...], ...] = field(default=(), kw_only=True)
    # Checkpoints of before this key have none.
    train_fraction: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        require(0 < self.train_fraction <= 1, "train_fraction", "a fraction above 0, at most 1", self.train_fraction)
        require(self.min_area >= 1, "min_area", "a number of pixels >= 1", self.min_area)
        words = all(len(group) > 1 and all(spelling(word) for word in group) for group in self.synonyms)
        require(words, "synonyms", "lists of two or more names, such as [[hen,chicken]]", self.synonyms)

    @property
    def num_folds(self) -> int:
        return FOLDS

    def novel(self, class_names: Sequence[str], fold: int) -> tuple[int, ...]:
        """The class numbers tested in `fold`, ascending; may be empty with fewer classes than folds."""
        return novel_classes(len(class_names), fold, self.class_partition)

    def pairs(self, index: Index, split: SplitName, by_pair: bool) -> np.ndarray | None:
        """(N, C + 1) bool, the classes that each image is listed under, if a list says so; None: by `min_area`.

        by_pair: whether the episodes of a test walk pairs of image and class. Raises DataError for a list of other labels.
        """
        return None

    def query_places(self, index: Index, split: SplitName) -> np.ndarray | None:
        """(N,) the places of the images in the list that a test walks; None: the index' own order."""
        return None

    def base(self, class_names: Sequence[str], fold: int) -> tuple[int, ...]:
        """The class numbers that `fold` may be trained on, ascending: all that are not novel."""
        novel = set(self.novel(class_names, fold))
        return tuple(c for c in range(1, len(class_names) + 1) if c not in novel)


@dataclass(frozen=True)
class Split:
    """The images of one split: its index, and the files of images and labels."""

    index: Index
    images: Path
    image_ending: str
    labels: Path

    def image_path(self, number: int) -> Path:
        """The file of image `number`."""
        return self.images / f"{self.index.names[number]}{self.image_ending}"

    def label_path(self, number: int) -> Path:
        """The file of the label of image `number`."""
        return self.labels / f"{self.index.names[number]}.png"

    def image(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of image `number` as stored, like the labels of VOC and COCO. Raises DataError."""
        return read_image(self.image_path(number))

    def label(self, number: int) -> np.ndarray:
        """(H, W) uint8 of image `number`: index.value of each class, 0 elsewhere, and 255. Raises DataError."""
        return self.index.with_values(read_label(self.label_path(number), self.index.wide), number)

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and label. Raises DataError if their sizes differ."""
        image, label = self.image(number), self.label(number)
        if image.shape[:2] != label.shape:
            raise DataError(
                f"{self.label_path(number)}: label of {label.shape[1]} x {label.shape[0]} for an image of "
                f"{image.shape[1]} x {image.shape[0]}; replace it, or delete it and prepare the dataset again"
            )
        return image, label


class Dataset(ABC):
    """A dataset with its options. Nothing is read before `prepare` or `split`."""

    name: str

    def __init__(self, options: DatasetOptions) -> None:
        self.options = options

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits of the download. Without train a dataset can be tested, not trained on."""
        return "train", "val"

    @abstractmethod
    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        """Check the download and write labels and indexes. workers=None: one for each core. Raises DataError.

        Returns an index for each of `splits`.
        """

    @abstractmethod
    def split(self, name: SplitName) -> Split:
        """Open a prepared split. Raises DataError if it was not prepared."""

    def _require_split(self, name: SplitName) -> None:
        """Raise DataError if the download has no such split."""
        if name not in self.splits:
            raise DataError(
                f"dataset={self.name}: {self.options.root} has no train split, and can only be tested; train on "
                "another dataset, or complete the download (data/README.md)"
            )

    def _open_index(self, path: Path, listed: Path | None = None) -> Index:
        """The index at `path`, made from the names in the file `listed`. Raises DataError if there is none."""
        try:
            return Index.load(path)
        except FileNotFoundError:
            root = self.options.root
            if not root.is_dir():
                raise DataError(
                    f"dataset={self.name}: no folder {root.absolute()} (dataset.root){link_to_nothing(root)}, and so not "
                    f"prepared; correct the path, or run {self._prepare} first"
                ) from None
            what = f" for {listed} as it is now" if listed else ""
            raise DataError(
                f"dataset={self.name}: not prepared{what}, there is no {path}; run {self._prepare} first"
            ) from None

    def _checked(
        self, path: Path, split: Split, sources: Sequence[Path], origins: Sequence[Sequence[Path]] = ()
    ) -> Split:
        """The split, after a check that its files are those its index at `path` was made from.

        Raises DataError naming a file that changed. Files that are gone are skipped here; reading them raises.

        sources  as given to build_index
        origins  for each image the files that its label was made from
        """
        index = split.index
        files = [[str(split.image_path(n)), str(split.label_path(n))] for n in range(len(index))]
        for of_image, of_label in zip(files, origins):
            of_image.extend(map(str, of_label))
        now = self._unchanged(path, index, files, sources)
        return split if now is index else replace(split, index=now)

    def _unchanged(self, path: Path, index: Index, files: Sequence[Sequence[str]], sources: Sequence[Path]) -> Index:
        """The index at `path` with the present times of its files, saved if they are new. Raises DataError as _checked.

        files, sources: as for Index.checked
        """
        changed, now = index.checked(files, sources)
        if changed is not None:
            raise DataError(
                f"{changed}: changed since the dataset was prepared, so the index describes other data; run "
                f"{self._prepare} again, or restore the file"
            )
        if now is not index:
            try:
                now.save(path)
            except OSError:
                log.info("%s: cannot be written, so copied files are read and checked at every start", path)
        return now

    @property
    def _prepare(self) -> str:
        command = f"fss-svf prepare dataset={self.name} dataset.root={self.options.root}"
        return f"'{command}' (and the dataset options of this run)"


def require_folder(path: Path, key: str, name: str) -> None:
    """Raise DataError if the folder is missing. key: the config key that sets it."""
    if not path.is_dir():
        raise DataError(
            f"dataset={name}: no folder {path.absolute()}{link_to_nothing(path)}; set {key} to its path "
            "(data/README.md shows the tree)"
        )


def absent(folder: Path, names: Sequence[str], ending: str) -> list[str]:
    """The names without a file in `folder`, or with a broken link. A name may contain subfolders.

    Lists folders, which is faster than looking up each file.
    """
    existing: set[Path] = set().union(*(present(parent) for parent in {(folder / name).parent for name in names}))
    return [name for name in names if folder / (name + ending) not in existing]


def link_to_nothing(path: Path) -> str:
    """The addition to a message if the missing file `path` is a broken link, or an empty string."""
    return f" (a link to {os.readlink(path)}, which is missing: git annex get, dvc pull)" if path.is_symlink() else ""


def require_images(folder: Path, names: list[str], ending: str, allow_missing: bool | None) -> list[str]:
    """The names whose image is in `folder`. Missing ones raise DataError unless they are allowed.

    allow_missing: None if the dataset has no such option.
    """
    missing = absent(folder, names, ending)
    if missing and not allow_missing:
        go_on = ", or set dataset.allow_missing=true to use the others"
        raise DataError(
            f"{folder}: {len(missing)} of {len(names)} images are missing, first {missing[0]}{ending}"
            f"{link_to_nothing(folder / (missing[0] + ending))}; finish the download{'' if allow_missing is None else go_on}"
        )
    gone = set(missing)
    kept = [name for name in names if name not in gone]
    if missing and kept:
        log.warning("%s: %d of %d images are missing; using the others", folder, len(missing), len(names))
    if not kept:
        raise DataError(
            f"{folder}: none of the {len(names)} images exists, first {missing[0]}{ending}"
            f"{link_to_nothing(folder / (missing[0] + ending))}; set the folder of the images"
        )
    return kept
