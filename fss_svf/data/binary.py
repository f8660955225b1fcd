"""Datasets of binary masks: FSS-1000, ISIC 2018, Chest X-ray, DeepGlobe and SUIM, as the cross-domain papers test them.

`prepare` draws the masks of an image into one label. Their layouts are in binary_layouts.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from fss_svf.data.binary_layouts import FSS_SPLITS, LAYOUTS, Found, Item
from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, require_folder
from fss_svf.data.decoding import load, opened, orientation_of
from fss_svf.data.identity import label_digest, record
from fss_svf.data.images import image_size, read_image_of_label, write_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.label_values import IGNORE, class_areas, is_wide
from fss_svf.data.partition import Partition
from fss_svf.errors import DataError, listing
from fss_svf.registry import DATASETS

log = logging.getLogger(__name__)

OBJECT = 128  # a mask is the object from this grey on, as in PATNet's code


@dataclass(frozen=True)
class BinaryOptions(DatasetOptions):
    """One fold that tests all classes."""

    allow_missing: bool
    class_partition: Partition = field(default="contiguous", init=False)
    filter_novel: bool = field(default=False, init=False)
    train_fraction: float = field(default=1.0, init=False)

    @property
    def num_folds(self) -> int:
        return 1

    def novel(self, class_names: Sequence[str], fold: int) -> tuple[int, ...]:
        return tuple(range(1, len(class_names) + 1))


@dataclass(frozen=True)
class Fss1000Options(BinaryOptions):
    """One fold that trains on 520 classes and tests 240 others."""

    tested: Literal["test", "val"]
    train_fraction: float = field(default=1.0, kw_only=True)

    def novel(self, class_names: Sequence[str], fold: int) -> tuple[int, ...]:
        return _numbers(class_names, FSS_SPLITS[self.tested])

    def base(self, class_names: Sequence[str], fold: int) -> tuple[int, ...]:
        return _numbers(class_names, FSS_SPLITS["train"])


@dataclass(frozen=True)
class BinarySplit(Split):
    """A split whose images lie in several folders. paths: the file of each image, by its name in the index."""

    paths: Mapping[str, Path]

    def image_path(self, number: int) -> Path:
        return self.paths[str(self.index.names[number])]

    def image(self, number: int) -> np.ndarray:
        return read_image_of_label(self.image_path(number), self.index.sizes[number].tolist())


class BinaryMasks(Dataset):
    """A download with binary masks, by its layout. All its classes are tested: there is no train split."""

    options: BinaryOptions
    splits: tuple[SplitName, ...] = ("val",)

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        return {name: self._index(name, workers) for name in self.splits}

    def split(self, name: SplitName) -> Split:
        require_folder(self.options.root, "dataset.root", self.name)
        self._require_split(name)
        path, labels = self._index_path(name), self.options.prepared / "labels"
        index, items = self._open_index(path), self._find(name).items
        if index.fingerprint != self._made_from(items):
            names = set(index.names.tolist()) ^ {item.name for item in items}
            what = f"{len(names)} images with masks, first {min(names)}," if names else "masks of some images"
            raise DataError(
                f"dataset={self.name}: {what} were added, removed or renamed since prepare; run {self._prepare} again"
            )
        split = BinarySplit(index, labels, "", labels, {item.name: item.image for item in items})
        return self._checked(path, split, [], [[mask for _, mask in item.masks] for item in items])

    def _find(self, split: SplitName) -> Found:
        return LAYOUTS[self.name].find(self.options.root)

    def _made_from(self, items: Sequence[Item]) -> str:
        masks = [(item.name, [(c, path.name) for c, path in item.masks]) for item in items]
        return fingerprint(self.name, LAYOUTS[self.name].classes, masks)

    def _index_path(self, split: SplitName) -> Path:
        # Data with missing files have a separate index, so that they are not taken for the complete ones.
        return self.options.prepared / f"all{'-part' * self.options.allow_missing}.npz"

    def _index(self, split: SplitName, workers: int | None) -> Index:
        require_folder(self.options.root, "dataset.root", self.name)
        layout, found = LAYOUTS[self.name], self._find(split)
        self._require_all(found)
        labels = self.options.prepared / "labels"
        labels.mkdir(parents=True, exist_ok=True)
        index = build_index(
            self._index_path(split),
            found.items,
            partial(draw_masks, labels, is_wide(len(layout.classes))),
            layout.classes,
            self._made_from(found.items),
            workers,
            f"{self.name} {split}",
            files=lambda item: (item.image, labels / f"{item.name}.png", *(mask for _, mask in item.masks)),
        )
        others = [
            mask
            for item, size in zip(found.items, index.sizes.tolist())
            for _, mask in item.masks
            if list(image_size(mask)) != size
        ]
        if others:
            log.warning("%d masks have another size than their image and are resized, first %s", len(others), others[0])
        empty = np.flatnonzero(~index.areas.any(axis=1))
        if len(empty):
            log.warning(
                "%d masks have no object, first %s; no episode uses their images", len(empty), index.names[empty[0]]
            )
        return index

    def _require_all(self, found: Found) -> None:
        if found.unused:
            log.info("%d files are not used, having no image or mask, first %s", len(found.unused), found.unused[0])
        if not found.absent and found.items:
            return
        text = f"dataset={self.name}: {len(found.absent):,} files are missing: {listing(found.absent, 2)}"
        if not (self.options.allow_missing and found.items):
            raise DataError(f"{text}; finish the download, or set dataset.allow_missing=true to use the others")
        log.warning("%s; using %s images", text, f"{len(found.items):,}")


@DATASETS.register("fss1000", Fss1000Options)
class Fss1000(BinaryMasks):
    """FSS-1000 (CVPR 2020) in its 520 classes for training, 240 for validation and 240 for the test."""

    name = "fss1000"
    options: Fss1000Options

    splits = ("train", "val")

    def _find(self, split: SplitName) -> Found:
        return LAYOUTS[self.name].find(self.options.root, set(FSS_SPLITS[self._list(split)]))

    def _index_path(self, split: SplitName) -> Path:
        return self.options.prepared / f"{self._list(split)}{'-part' * self.options.allow_missing}.npz"

    def _list(self, split: SplitName) -> str:
        return "train" if split == "train" else self.options.tested


@DATASETS.register("isic2018", BinaryOptions)
class Isic2018(BinaryMasks):
    """The training images of ISIC 2018's tasks 1 and 2 in three classes of lesions."""

    name = "isic2018"


@DATASETS.register("chest_xray", BinaryOptions)
class ChestXray(BinaryMasks):
    """Lungs in chest X-rays. Images without a mask belong to the download."""

    name = "chest_xray"


@DATASETS.register("deepglobe", BinaryOptions)
class DeepGlobe(BinaryMasks):
    """Tiles of DeepGlobe's land cover in six classes, as PATNet's authors cut them."""

    name = "deepglobe"


@DATASETS.register("suim", BinaryOptions)
class Suim(BinaryMasks):
    """Underwater pictures with a mask for each of seven classes."""

    name = "suim"


def draw_masks(labels: Path, wide: bool, item: Item) -> ImageRow:
    """Draw labels/NAME.png of the masks of an image and return its row of the index. Pixels in two masks are ignored.

    A mask of another size is resized to that of the image. The image is decoded too, so that a damaged one is an error
    here. wide: as read_label. Raises DataError, also for a mask with the height and width of its image exchanged.
    """
    files = [record(path) for path in (item.image, *(mask for _, mask in item.masks))]
    label, ignored = np.zeros((0, 0), np.uint16 if wide else np.uint8), 65_535 if wide else IGNORE
    for c, path in item.masks:
        mask = read_binary_mask(path)
        if not label.size:
            height, width = read_image_of_label(item.image, mask.shape).shape[:2]
            label = np.zeros((height, width), label.dtype)
        if mask.shape == (width, height) != (height, width):
            raise DataError(
                f"{path}: mask of {height} x {width} for an image of {width} x {height}, as if one of them were turned; "
                "replace it"
            )
        mask = resized(mask, height, width)
        label[mask] = np.where(label[mask] == 0, c, ignored)
    target = labels / f"{item.name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_label(target, label)
    files.insert(1, record(target))
    return ImageRow(item.name, height, width, class_areas(label), content=label_digest(label), files=tuple(files))


def resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool of an (H, W) mask by nearest neighbour, as by PyTorch: row y is row y * H // height."""
    return mask[np.ix_(np.arange(height) * mask.shape[0] // height, np.arange(width) * mask.shape[1] // width)]


def read_binary_mask(path: Path) -> np.ndarray:
    """(H, W) bool: True where the grey value is 128 or more. Colours and palettes are turned to grey, as by Pillow.

    Raises DataError as read_image does, for 16 bits, an EXIF orientation, and a mask that is dark but not empty.
    """
    with opened(path) as image:
        if image.mode == "F" or image.mode.startswith("I"):
            raise DataError(f"{path}: a mask in more than 8 bits; save it in 8, with 255 at the object")
        load(image)
        if orientation_of(image) != 1:
            raise DataError(f"{path}: a mask with an EXIF orientation; save it upright, without EXIF")
        grey = np.asarray(image.convert("L"))
    if 0 < (high := grey.max()) < OBJECT:
        raise DataError(
            f"{path}: no grey value of {OBJECT} or more, the highest is {high}; a mask is the object from {OBJECT} on: save "
            "it with 255 there"
        )
    return np.asarray(grey >= OBJECT)


def _numbers(class_names: Sequence[str], of: Sequence[str]) -> tuple[int, ...]:
    wanted = set(of)
    return tuple(number for number, name in enumerate(class_names, 1) if name in wanted)
