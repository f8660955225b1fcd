"""dataset=class_folders: a folder a class, with CLASS/NAME.jpg and its black-and-white mask CLASS/NAME.png."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, require_folder
from fss_svf.data.images import image_size, read_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.errors import DataError
from fss_svf.registry import DATASETS


@dataclass(frozen=True)
class ClassFolderOptions(DatasetOptions):
    """ending: of the images, with its dot."""

    ending: str


class ClassFolderSplit(Split):
    def label(self, number: int) -> np.ndarray:
        return class_label(self.labels, self.index.class_names, str(self.index.names[number]))


@DATASETS.register("class_folders", ClassFolderOptions)
class ClassFolders(Dataset):
    """Both splits hold all images: the filter of novel classes keeps theirs out of training."""

    name = "class_folders"
    options: ClassFolderOptions

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        root = self.options.root
        require_folder(root, "dataset.root", self.name)
        masks = sorted(root.glob("*/*.png"))
        classes = sorted({mask.parent.name for mask in masks})
        if not 1 <= len(classes) <= 254:
            raise DataError(f"{root}: {len(classes)} folders with masks, expected 1 to 254; set dataset.root")
        self.options.prepared.mkdir(parents=True, exist_ok=True)
        names = [f"{mask.parent.name}/{mask.stem}" for mask in masks]
        # What the index depends on: where one of these changes, it is made anew.
        made_from = fingerprint(self.name, names, [mask.stat().st_mtime_ns for mask in masks])
        work = partial(row_of, root, self.options.ending, classes)
        index = build_index(self._path(), names, work, classes, made_from, workers, self.name)
        return {"train": index, "val": index}

    def split(self, name: SplitName) -> Split:
        return ClassFolderSplit(
            self._open_index(self._path()), self.options.root, self.options.ending, self.options.root
        )

    def _path(self) -> Path:
        return self.options.prepared / "index.npz"


def row_of(root: Path, ending: str, classes: Sequence[str], name: str) -> ImageRow:
    """The size of image CLASS/NAME and the area of its one class; a function of the module, since processes call it."""
    label = class_label(root, classes, name)
    class_id = classes.index(name.split("/")[0]) + 1
    return ImageRow(name, *image_size(root / f"{name}{ending}"), {class_id: int((label == class_id).sum())})


def class_label(root: Path, classes: Sequence[str], name: str) -> np.ndarray:
    """(H, W) uint8: the number of the image's class on the white of its mask, from 1 on, 0 elsewhere."""
    mask = read_label(root / f"{name}.png")
    return np.where(mask > 127, classes.index(name.split("/")[0]) + 1, 0).astype(np.uint8)
