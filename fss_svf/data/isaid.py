"""dataset=isaid: iSAID-5i, whose aerial images `prepare` cuts into patches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fss_svf.config import require
from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, require_folder
from fss_svf.data.decoding import load, opened
from fss_svf.data.file_names import named
from fss_svf.data.identity import label_digest, record
from fss_svf.data.images import read_image, read_label, write_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.label_values import IGNORE, class_areas
from fss_svf.data.partition import Partition
from fss_svf.data.voc import index_label
from fss_svf.errors import DataError, listing
from fss_svf.files import atomic_write
from fss_svf.registry import DATASETS

log = logging.getLogger(__name__)

FOLDS = 3
CLASSES = {
    "ship": (0, 0, 63), "storage_tank": (0, 63, 63), "baseball_diamond": (0, 63, 0), "tennis_court": (0, 63, 127),
    "basketball_court": (0, 63, 191), "ground_track_field": (0, 63, 255), "bridge": (0, 127, 63),
    "large_vehicle": (0, 127, 127), "small_vehicle": (0, 0, 127), "helicopter": (0, 0, 191),
    "swimming_pool": (0, 0, 255), "roundabout": (0, 191, 127), "soccer_ball_field": (0, 127, 191),
    "plane": (0, 127, 255), "harbor": (0, 100, 155),
}  # fmt: skip
SUFFIX = "_instance_color_RGB"
Item = tuple[str, Path, Path]  # name, image and mask


@dataclass(frozen=True)
class IsaidOptions(DatasetOptions):
    """patch: the side of the patches, in pixels."""

    patch: int
    allow_missing: bool
    class_partition: Partition = field(default="contiguous", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.patch >= 33, "patch", "at least 33 pixels", self.patch)

    @property
    def num_folds(self) -> int:
        return FOLDS

    def novel(self, class_names: Sequence[str], fold: int) -> tuple[int, ...]:
        """Blocks of five classes."""
        return tuple(c for c in range(1, len(class_names) + 1) if (c - 1) * FOLDS // len(class_names) == fold)


@DATASETS.register("isaid", IsaidOptions)
class Isaid(Dataset):
    """SPLIT/images/NAME.png, SPLIT/semantic_png/NAME_instance_color_RGB.png. The train split is optional, for tests."""

    name = "isaid"
    options: IsaidOptions

    @property
    def splits(self) -> tuple[SplitName, ...]:
        return ("train", "val") if (self.options.root / "train").is_dir() else ("val",)

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        require_folder(self.options.root, "dataset.root", self.name)
        return {name: self._index(name, workers) for name in self.splits}

    def split(self, name: SplitName) -> Split:
        self._require_split(name)
        folder = self._prepared(name)
        self._require_same(name, folder / "whole.npz")
        split = Split(self._open_index(folder / "index.npz"), folder / "images", ".png", folder / "labels")
        return self._checked(folder / "index.npz", split, [])

    def _require_same(self, split: SplitName, path: Path) -> None:
        """Raise DataError if the images and masks that were cut are others now. They may be deleted."""
        whole, now = self._open_index(path), {item[0]: item[1:] for item in self._found(split)[0]}
        names = whole.names.tolist()
        if added := sorted(now.keys() - set(names)):
            raise DataError(
                f"dataset=isaid: {len(added)} images with masks, first {added[0]}, were added since prepare; run "
                f"{self._prepare} again"
            )
        self._unchanged(path, whole, [list(map(str, now.get(name, ()))) for name in names], [])

    def _prepared(self, split: SplitName) -> Path:
        part = "-part" * self.options.allow_missing
        return self.options.prepared / f"{split}-{self.options.patch}{part}"

    def _index(self, split: SplitName, workers: int | None) -> Index:
        folder, items = self._prepared(split), self._items(split)
        images, labels = folder / "images", folder / "labels"
        for new in (images, labels):
            new.mkdir(parents=True, exist_ok=True)
        patches = self._cut(split, items, workers)
        if gone := set(patches) - cut_patches(folder):
            log.warning("%s: %s patches are gone, first %s; cutting again", folder, f"{len(gone):,}", min(gone))
            (folder / "whole.npz").unlink()
            patches = self._cut(split, items, workers)
        return build_index(
            folder / "index.npz",
            patches,
            partial(index_patch, images, labels),
            list(CLASSES),
            fingerprint("isaid patches", patches),
            workers,
            f"isaid {split}",
            files=lambda name: (images / f"{name}.png", labels / f"{name}.png"),
        )

    def _cut(self, split: SplitName, items: Sequence[Item], workers: int | None) -> list[str]:
        """Cut the images, if they are not cut, and return the names of the patches with an object.

        patches.txt keeps the names, for a patch that is deleted later must not make the dataset smaller.
        """
        folder, patch = self._prepared(split), self.options.patch
        whole = build_index(
            folder / "whole.npz",
            items,
            partial(cut, folder / "images", folder / "labels", patch),
            list(CLASSES),
            fingerprint("isaid", patch, [name for name, _, _ in items]),
            workers,
            f"isaid {split}, cutting",
            files=lambda item: item[1:],
        )
        listed = folder / "patches.txt"
        lines = listed.read_text(encoding="utf-8").split("\n") if listed.exists() else [""]
        if lines[0] == whole.hash:
            return lines[1:]
        made = cut_patches(folder)
        names = [
            name
            for image, (height, width) in zip(whole.names.tolist(), whole.sizes.tolist())
            for name, _, _ in patches_of(image, height, width, patch)
            if name in made
        ]
        with atomic_write(listed) as unfinished:
            unfinished.write_text("\n".join([whole.hash, *names]), encoding="utf-8")
        return names

    def _items(self, split: SplitName) -> list[Item]:
        for folder in self._folders(split):
            require_folder(folder, "dataset.root", self.name)
        both, gone = self._found(split)
        if gone or not both:
            text = f"dataset=isaid: {len(gone):,} files are missing: {listing(gone, 2)}"
            if not (both and self.options.allow_missing):
                raise DataError(f"{text}; finish the download, or set dataset.allow_missing=true to use the others")
            log.warning("%s; using %s images", text, f"{len(both):,}")
        return both

    def _folders(self, split: SplitName) -> tuple[Path, Path]:
        return self.options.root / split / "images", self.options.root / split / "semantic_png"

    def _found(self, split: SplitName) -> tuple[list[Item], list[Path]]:
        """The images that have a mask, and the files that are missing."""
        images, masks = self._folders(split)
        files, of_masks = named(images, (".png",)), named(masks, (".png",))
        names = dict.fromkeys([*files, *(m.removesuffix(SUFFIX) for m in of_masks if m.endswith(SUFFIX))])
        both = [name for name in names if name in files and name + SUFFIX in of_masks]
        gone = [
            images / f"{name}.png" if name not in files else masks / f"{name}{SUFFIX}.png"
            for name in names
            if name not in both
        ]
        return [(name, images / files[name], masks / of_masks[name + SUFFIX]) for name in both], gone


def cut_patches(folder: Path) -> set[str]:
    """The names of the patches whose image and label are in the prepared folder."""
    return named(folder / "images", (".png",)).keys() & named(folder / "labels", (".png",)).keys()


def cut(images: Path, labels: Path, patch: int, item: Item) -> ImageRow:
    """Write the patches of an image that show an object, and their labels; return the row of the whole image."""
    name, image_path, mask_path = item
    files = record(image_path), record(mask_path)
    label, image = read_colours(mask_path), read_image(image_path)
    if image.shape[:2] != label.shape:
        raise DataError(
            f"{mask_path}: label of {label.shape[1]} x {label.shape[0]} for an image of {image.shape[1]} x "
            f"{image.shape[0]}; replace one of them"
        )
    height, width = label.shape
    for patch_name, rows, columns in patches_of(name, height, width, patch):
        part = label[rows, columns]
        if not class_areas(part):
            (labels / f"{patch_name}.png").unlink(missing_ok=True)  # of an earlier mask
            continue
        with atomic_write(images / f"{patch_name}.png") as unfinished:
            Image.fromarray(image[rows, columns]).save(unfinished, format="PNG", compress_level=1)
        write_label(labels / f"{patch_name}.png", part)
    return ImageRow(name, height, width, class_areas(label), content=label_digest(label), files=files)


def patches_of(name: str, height: int, width: int, patch: int) -> Iterator[tuple[str, slice, slice]]:
    """The patches of an image side by side: NAME_Y0_Y1_X0_X1, rows and columns. The last of a row or column ends at the
    image's border, over the one before it. An image no larger than a patch is one."""
    for top in _starts(height, patch):
        for left in _starts(width, patch):
            bottom, right = min(top + patch, height), min(left + patch, width)
            yield f"{name}_{top}_{bottom}_{left}_{right}", slice(top, bottom), slice(left, right)


def _starts(length: int, patch: int) -> list[int]:
    return sorted({*range(0, max(1, length - patch + 1), patch), max(0, length - patch)})


def index_patch(images: Path, labels: Path, name: str) -> ImageRow:
    """The row of images/NAME.png and labels/NAME.png."""
    return index_label(images / f"{name}.png", labels / f"{name}.png", name)


def read_colours(path: Path) -> np.ndarray:
    """(H, W) uint8 class numbers from iSAID's colours, or from a palette or grey PNG that holds class numbers.

    Raises DataError for a colour or number of no class.
    """
    with opened(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            label = read_label(path)
            if ((label > len(CLASSES)) & (label != IGNORE)).any():
                raise DataError(f"{path}: numbers above {len(CLASSES)}; a label in grey holds class numbers")
            return label
        load(image)
        colours = np.asarray(image.convert("RGB")).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    label, known = np.zeros(colours.shape, np.uint8), colours == 0
    for number, (red, green, blue) in enumerate(CLASSES.values(), 1):
        of_class = colours == (red << 16) + (green << 8) + blue
        label[of_class], known = number, known | of_class
    if not known.all():
        value = int(colours[~known][0])
        raise DataError(
            f"{path}: the colour {(value >> 16, value >> 8 & 255, value & 255)} is of no class of iSAID; replace the file"
        )
    return label
