"""dataset=folder: a person's own images and masks, with folds of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from fss_svf.config import require
from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.coco import Coco, CocoOptions, CocoSplit
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, absent, require_folder
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.voc import IMAGE_ENDINGS, index_label, read_lines, read_names
from fss_svf.errors import ConfigError, DataError, did_you_mean, listing
from fss_svf.registry import DATASETS


@dataclass(frozen=True)
class FolderOptions(DatasetOptions):
    """Paths are relative to the root. `folds`: class names by fold; null makes four folds by class_partition."""

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
        """As in DatasetOptions; classes that no fold names are always base classes."""
        if self.folds is None:
            return super().novel(class_names, fold)
        for name in self.folds[fold]:
            if name not in class_names:
                raise ConfigError(
                    f"dataset.folds: no class {name!r}{did_you_mean(name, class_names)}; known: {listing(class_names, 20)}"
                )
        return tuple(number for number, name in enumerate(class_names, 1) if name in self.folds[fold])


@dataclass(frozen=True)
class FolderSplit(Split):
    """A split whose images have endings of their own."""

    files: Mapping[str, str]

    def image_path(self, number: int) -> Path:
        name = str(self.index.names[number])
        if name not in self.files:
            raise DataError(f"{self.images}: no image {name} any more; put it back, or run 'fss-svf prepare' again")
        return self.images / self.files[name]


@DATASETS.register("folder", FolderOptions)
class Folder(Dataset):
    """images/NAME.jpg (or .png, ...), masks/NAME.png of class numbers, classes.txt with a name a line, class 1 first.

    Or images/NAME.jpg and an instances JSON in COCO's format, in place of masks, class names and lists. Without lists
    both splits hold all images: the filter of novel classes keeps their images apart.
    """

    name = "folder"
    options: FolderOptions

    def __init__(self, options: FolderOptions) -> None:
        super().__init__(options)
        self.images, self.masks = options.root / options.images, options.root / options.masks

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        if self.options.instances is not None:
            return self._as_coco(self.options.instances).prepare(workers)
        for folder, key in ((self.options.root, "root"), (self.images, "images"), (self.masks, "masks")):
            require_folder(folder, f"dataset.{key}", self.name)
        class_names = self._class_names()
        files = self._files()
        self.options.prepared.mkdir(parents=True, exist_ok=True)
        same = self.options.train_list == self.options.val_list
        train = self._index("train", class_names, files, workers)
        return {"train": train, "val": train if same else self._index("val", class_names, files, workers)}

    def split(self, name: SplitName) -> Split:
        if self.options.instances is not None:
            return self._as_coco(self.options.instances).split(name)
        path, listed, files = self._index_path(name), self._list(name), self._files()
        index = self._open_index(path, None if listed is None else self.options.root / listed)
        self._require_same_images(name, index, files)
        return self._checked(path, FolderSplit(index, self.images, "", self.masks, files), self._sources(name))

    def _require_same_images(self, split: SplitName, index: Index, files: Mapping[str, str]) -> None:
        """Raise DataError where images with masks were added since the preparation: without a list all are used."""
        listed, known = self._list(split), set(index.names.tolist())
        new = [name for name in (files if listed is None else self._listed_names(split, listed)) if name not in known]
        unmasked = set(absent(self.masks, new, ".png"))
        added = [name for name in new if name in files and name not in unmasked]
        if added:
            raise DataError(
                f"{self.images / files[added[0]]}: added with its mask since the dataset was prepared, and {len(added) - 1} "
                f"more; run {self._prepare} again, or take them away"
            )

    def _sources(self, split: SplitName) -> list[Path]:
        listed = self._list(split)
        return [self.options.root / name for name in (self.options.classes, listed) if name is not None]

    def _as_coco(self, instances: str) -> Coco:
        where = CocoSplit(annotations=instances, images=self.options.images)
        shared = {f.name: getattr(self.options, f.name) for f in fields(DatasetOptions)}
        missing = self.options.allow_missing
        coco = Coco(
            CocoOptions(**shared, train=where, val=where, mask_mode="full", allow_missing=missing, check_counts=False)
        )
        coco.name, coco.keys = self.name, {"annotations": "dataset.instances", "images": "dataset.images"}
        return coco

    def _index_path(self, split: SplitName) -> Path:
        listed = self._list(split)
        o, names = self.options, None if listed is None else self._listed_names(split, listed)
        # Other images, masks or lists have an index of their own: a run cannot read the wrong one.
        decided_by = fingerprint(o.images, o.masks, o.classes, names)[:8]
        return o.prepared / f"{'all' if listed is None else Path(listed).stem}-{decided_by}.npz"

    def _listed_names(self, split: SplitName, listed: str) -> list[str]:
        return read_names(self.options.root / listed, f"dataset.{split}_list")

    def _list(self, split: SplitName) -> str | None:
        return self.options.train_list if split == "train" else self.options.val_list

    def _class_names(self) -> tuple[str, ...]:
        path = self.options.root / self.options.classes
        if not path.is_file():
            raise DataError(f"dataset=folder: no {path}; write the class names into it, one a line, class 1 first")
        names = [line.strip() for line in read_lines(path) if line.strip()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not 1 <= len(names) <= 254:
            found = f"{listing(twice)} twice" if twice else f"{len(names)} of them"
            raise DataError(f"{path}: expected 1 to 254 class names, each once, found {found}")
        return tuple(names)

    def _files(self) -> dict[str, str]:
        """File name by name without ending."""
        found: dict[str, str] = {}
        for path in sorted(self.images.iterdir()) if self.images.is_dir() else ():
            if path.suffix.lower() in IMAGE_ENDINGS:
                if path.stem in found:
                    raise DataError(
                        f"{self.images}: both {found[path.stem]} and {path.name} go with {path.stem}.png; rename one"
                    )
                found[path.stem] = path.name
        return found

    def _index(
        self, split: SplitName, class_names: tuple[str, ...], files: Mapping[str, str], workers: int | None
    ) -> Index:
        listed = self._list(split)
        names = list(files) if listed is None else self._listed_names(split, listed)
        no_mask = absent(self.masks, names, ".png")
        missing = [*(n for n in names if n not in files), *no_mask]
        gone = set(missing)
        kept = [name for name in names if name not in gone]
        if missing and not (self.options.allow_missing and kept):
            what = f"{self.masks / missing[0]}.png" if missing[0] in files else f"an image {self.images / missing[0]}"
            raise DataError(
                f"dataset=folder: {len(gone)} of {len(names)} names lack image or mask, first {what}; add them, or set "
                "dataset.allow_missing=true to go on with the others"
            )
        if not kept:
            raise DataError(
                f"dataset=folder: no image under {self.images} ({', '.join(IMAGE_ENDINGS)}); set dataset.images"
            )
        items = [self.images / files[name] for name in kept]
        return build_index(
            self._index_path(split),
            items,
            partial(index_mask, self.masks),
            class_names,
            fingerprint("folder", class_names, [item.name for item in items]),
            workers,
            f"folder {split}",
            files=lambda image: (image, self.masks / f"{image.stem}.png"),
            sources=self._sources(split),
        )


def index_mask(masks: Path, image: Path) -> ImageRow:
    """The row of one image file."""
    return index_label(image, masks / f"{image.stem}.png", image.stem)
