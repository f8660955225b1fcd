"""dataset=folder: a user's images and masks, with folds by class name or by partition."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np

from fss_svf.config import require
from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.coco import Coco, CocoOptions, CocoSplit
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, link_to_nothing, require_folder
from fss_svf.data.file_names import IMAGE_ENDINGS, image_files, in_subfolders, named, plain, present
from fss_svf.data.folder_checks import check_classes, check_turned, warn_of_turned
from fss_svf.data.identity import label_digest, record
from fss_svf.data.images import read_image_of_label, read_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.label_values import class_areas, is_wide, require_classes
from fss_svf.data.voc import read_lines, read_names
from fss_svf.errors import ConfigError, DataError, did_you_mean, listing
from fss_svf.registry import DATASETS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderOptions(DatasetOptions):
    """Paths are relative to the root. folds: class names by fold; None: four folds by class_partition."""

    images: str
    masks: str
    classes: str
    instances: str | None
    train_list: str | None
    val_list: str | None
    allow_missing: bool
    folds: tuple[tuple[str, ...], ...] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        is_json = self.instances is None or self.instances.endswith(".json")
        require(is_json, "instances", "null or a .json file", self.instances)
        lists = self.train_list or self.val_list
        require(self.instances is None or not lists, "instances", "null with lists of images", self.instances)
        if self.folds is not None:
            names = [name for fold in self.folds for name in fold]
            twice = sorted({name for name in names if names.count(name) > 1})
            require(not twice, "folds", "every class in one fold at most", ", ".join(twice))
            require(all(self.folds) and bool(self.folds), "folds", "at least one class in every fold", self.folds)

    @property
    def num_folds(self) -> int:
        return super().num_folds if self.folds is None else len(self.folds)

    def novel(self, class_names: Sequence[str], fold: int) -> tuple[int, ...]:
        """As in DatasetOptions. Classes that are in no fold are always base classes."""
        if self.folds is None:
            return super().novel(class_names, fold)
        wanted = [plain(name) for name in self.folds[fold]]
        for name in wanted:
            if name not in class_names:
                raise ConfigError(
                    f"dataset.folds: no class {name!r}{did_you_mean(name, class_names)}; known: {listing(class_names, 20)}"
                )
        return tuple(number for number, name in enumerate(class_names, 1) if name in wanted)


@dataclass(frozen=True)
class FolderSplit(Split):
    """A split whose files have individual endings and spellings. Images are turned like their masks.

    files, masks: file names by the index's names
    """

    files: Mapping[str, str]
    masks: Mapping[str, str]

    def image_path(self, number: int) -> Path:
        return self._path(number, self.images, self.files, "image")

    def label_path(self, number: int) -> Path:
        return self._path(number, self.labels, self.masks, "mask")

    def image(self, number: int) -> np.ndarray:
        return read_image_of_label(self.image_path(number), self.index.sizes[number].tolist())

    def _path(self, number: int, folder: Path, files: Mapping[str, str], what: str) -> Path:
        name = str(self.index.names[number])
        if name not in files:
            raise DataError(f"{folder}: the {what} {name} is gone; restore it, or run 'fss-svf prepare' again")
        return folder / files[name]


@DATASETS.register("folder", FolderOptions)
class Folder(Dataset):
    """images/NAME.jpg (or .png, ...), masks/NAME.png of class numbers, classes.txt with a name in each line, class 1 first.

    Or images/NAME.jpg and an instances JSON in COCO's format instead of masks, class names and lists. Without lists both
    splits have all images: the filter of novel classes keeps their images apart.
    """

    name = "folder"
    options: FolderOptions

    def __init__(self, options: FolderOptions) -> None:
        super().__init__(options)
        self.images, self.masks = options.root / options.images, options.root / options.masks

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        if self.options.instances is not None:
            coco = self._as_coco(self.options.instances)
            indexes = coco.prepare(workers)
            warn_of_turned(coco.split("train"))
            return indexes
        for folder, key in ((self.options.root, "root"), (self.images, "images"), (self.masks, "masks")):
            require_folder(folder, f"dataset.{key}", self.name)
        class_names = self._class_names()
        self.options.prepared.mkdir(parents=True, exist_ok=True)
        same = self.options.train_list == self.options.val_list
        train = self._index("train", class_names, workers)
        return {"train": train, "val": train if same else self._index("val", class_names, workers)}

    def split(self, name: SplitName) -> Split:
        if self.options.instances is not None:
            return self._as_coco(self.options.instances).split(name)
        path, listed = self._index_path(name), self._list(name)
        index = self._open_index(path, None if listed is None else self.options.root / listed)
        images, masks = named(self.images, IMAGE_ENDINGS), named(self.masks, (".png",))
        self._require_same_images(name, index, images, masks)
        return self._checked(path, FolderSplit(index, self.images, "", self.masks, images, masks), self._sources(name))

    def _require_same_images(
        self, split: SplitName, index: Index, images: Mapping[str, str], masks: Mapping[str, str]
    ) -> None:
        """Raise DataError if images with masks were added since the preparation: without a list all are used."""
        listed, prepared = self._list(split), set(index.names.tolist())
        names = images if listed is None else self._listed_names(split, listed)
        added = [name for name in names if name in images and name in masks and name not in prepared]
        if added:
            raise DataError(
                f"{self.images / images[added[0]]}: added with its mask since the dataset was prepared, and "
                f"{len(added) - 1} more; run {self._prepare} again, or remove them"
            )

    def _sources(self, split: SplitName) -> list[Path]:
        listed = self._list(split)
        return [self.options.root / name for name in (self.options.classes, listed) if name is not None]

    def _as_coco(self, instances: str) -> Coco:
        where = CocoSplit(annotations=instances, images=self.options.images)
        shared = {f.name: getattr(self.options, f.name) for f in fields(DatasetOptions)}
        missing = self.options.allow_missing
        coco = Coco(
            CocoOptions(
                **shared,
                train=where,
                val=where,
                mask_mode="full",
                query_order="file",
                allow_missing=missing,
                check_counts=False,
            )
        )
        coco.name, coco.keys = self.name, {"annotations": "dataset.instances", "images": "dataset.images"}
        return coco

    def _index_path(self, split: SplitName) -> Path:
        listed = self._list(split)
        o, names = self.options, None if listed is None else self._listed_names(split, listed)
        # Other images, masks or lists have a separate index, so that a run cannot read a wrong or incomplete one.
        identity = fingerprint(o.images, o.masks, o.classes, names, o.allow_missing)[:8]
        return o.prepared / f"{'all' if listed is None else Path(listed).stem}-{identity}.npz"

    def _listed_names(self, split: SplitName, listed: str) -> list[str]:
        return [plain(name) for name in read_names(self.options.root / listed, f"dataset.{split}_list")]

    def _list(self, split: SplitName) -> str | None:
        return self.options.train_list if split == "train" else self.options.val_list

    def _class_names(self) -> tuple[str, ...]:
        path = self.options.root / self.options.classes
        if not path.is_file():
            raise DataError(
                f"dataset=folder: no {path}{link_to_nothing(path)}; write one class name a line into it, class 1 first"
            )
        names = [plain(line.strip()) for line in read_lines(path) if line.strip()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{path}: expected class names, each once, found {listing(twice)} twice; remove one")
        require_classes(names, path)
        return tuple(names)

    def _index(self, split: SplitName, class_names: tuple[str, ...], workers: int | None) -> Index:
        files, masks = named(self.images, IMAGE_ENDINGS), named(self.masks, (".png",))
        listed = self._list(split)
        names = list(files) if listed is None else self._listed_names(split, listed)
        existing = present(self.images) | present(self.masks)
        missing = {}  # descriptions by name
        for name in names:
            image, mask = self.images / files.get(name, name), self.masks / masks.get(name, f"{name}.png")
            for path in {image, mask} - existing:
                missing[name] = f"{'' if name in files else 'an image '}{path}{link_to_nothing(path)}"
        kept = [name for name in names if name not in missing]
        if missing and not (self.options.allow_missing and kept):
            others = [] if masks else image_files(self.masks)
            kind = f" (masks are PNG files, {others[0].name} is not)" if others else ""
            raise DataError(
                f"dataset=folder: {len(missing)} of {len(names)} names have no image or no mask, first "
                f"{next(iter(missing.values()))}{kind}; add them, or set dataset.allow_missing=true to use the others"
            )
        below = in_subfolders(self.images)
        if not kept:
            raise DataError(
                f"dataset=folder: no image under {self.images} ({', '.join(IMAGE_ENDINGS)}){below}; or set dataset.images"
            )
        if below:
            log.warning("%s: %d images%s", self.images, len(files), below)
        alone = [self.masks / file for name, file in masks.items() if name not in files]
        if alone and listed is None:
            log.warning("%d masks have no image and are not used, first %s", len(alone), alone[0])
        items = [(name, self.images / files[name], self.masks / masks[name]) for name in kept]

        def check(index: Index) -> None:
            check_classes(index, [mask for _, _, mask in items])
            check_turned(index, [image for _, image, _ in items])

        return build_index(
            self._index_path(split),
            items,
            partial(index_mask, len(class_names)),
            class_names,
            fingerprint("folder", class_names, [image.name for _, image, _ in items]),
            workers,
            f"folder {split}",
            files=lambda item: item[1:],
            sources=self._sources(split),
            check=check,
        )


def index_mask(classes: int, item: tuple[str, Path, Path]) -> ImageRow:
    """The row of (name, image, mask). Both files are decoded, so that damaged or ambiguous ones are errors here.

    classes: how many the dataset has
    """
    name, image, mask = item
    files = record(image), record(mask)
    label = read_label(mask, is_wide(classes))
    size = read_image_of_label(image, label.shape).shape
    if size[:2] != label.shape:
        raise DataError(
            f"{mask}: label of {label.shape[1]} x {label.shape[0]} for an image of {size[1]} x {size[0]}; replace the "
            "wrong one"
        )
    areas = class_areas(label)
    if max(areas, default=0) > classes:
        raise DataError(
            f"{mask}: has class {max(areas)}, the dataset has 1..{classes} (dataset.classes); correct one of the two"
        )
    return ImageRow(name, size[0], size[1], areas, content=label_digest(label), files=files)
