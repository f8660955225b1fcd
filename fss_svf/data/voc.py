"""VOC-style folders: JPEGImages/NAME.jpg, a folder of label PNGs, ImageSets/Segmentation/{train,val}.txt."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, absent, require_folder, require_images
from fss_svf.data.images import image_size, read_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.errors import DataError


class VocFolder(Dataset):
    """A dataset in VOC's layout under options.root. Subclasses name their classes and their label folder."""

    class_names: tuple[str, ...]
    label_folder = "SegmentationClass"

    def __init__(self, options: DatasetOptions) -> None:
        super().__init__(options)
        self.images = options.root / "JPEGImages"
        self.labels = options.root / self.label_folder

    def prepare(self, workers: int) -> dict[SplitName, Index]:
        for folder in (self.options.root, self.images, self.labels):
            require_folder(folder, "dataset.root", self.name)
        self.options.prepared.mkdir(parents=True, exist_ok=True)
        return {"train": self._index("train", workers), "val": self._index("val", workers)}

    def split(self, name: SplitName) -> Split:
        return Split(self._open_index(self._index_path(name)), self.images, ".jpg", self.labels)

    def _index_path(self, name: SplitName) -> Path:
        return self.options.prepared / f"{name}.npz"

    def _index(self, split: SplitName, workers: int) -> Index:
        names = self._names(split)
        names = require_images(self.images, names, ".jpg", allow_missing=None)
        # Size and time of the labels stand for their content: an edited label makes the index anew.
        stats = [(self.labels / f"{name}.png").stat() for name in self._labelled(names)]
        return build_index(
            self._index_path(split),
            names,
            partial(index_label, self.images, self.labels),
            self.class_names,
            fingerprint("voc", self.class_names, names, [(s.st_size, s.st_mtime_ns) for s in stats]),
            workers,
            f"{self.name} {split}",
        )

    def _names(self, split: SplitName) -> list[str]:
        path = self.options.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not path.exists():
            raise DataError(f"dataset={self.name}: no list {path}; the download is incomplete")
        names = path.read_text().split()
        if not names:
            raise DataError(f"dataset={self.name}: the list {path} is empty; the download is incomplete")
        return names

    def _labelled(self, names: list[str]) -> list[str]:
        missing = absent(self.labels, names, ".png")
        if missing:
            raise DataError(
                f"{self.labels}: {len(missing)} of {len(names)} labels are missing, first {missing[0]}.png; finish the "
                "download"
            )
        return names


def index_label(images: Path, labels: Path, name: str) -> ImageRow:
    """The row of one image: the areas of its label, whose size must be the image's."""
    label = read_label(labels / f"{name}.png")
    size = image_size(images / f"{name}.jpg")
    if size != label.shape:
        raise DataError(
            f"{labels / name}.png: label of {label.shape[1]} x {label.shape[0]} for an image of {size[1]} x {size[0]}; "
            "replace the wrong one"
        )
    return ImageRow(name, *size, class_areas(label))


def class_areas(label: np.ndarray) -> dict[int, int]:
    """Pixels of every class in a label, without background 0 and ignored 255."""
    counts = np.bincount(label.reshape(-1), minlength=256)
    return {int(c): int(counts[c]) for c in np.flatnonzero(counts[:255]) if c != 0}
