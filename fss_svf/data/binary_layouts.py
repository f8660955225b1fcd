"""Where downloads with binary masks keep their images and masks: one Layout each."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from fss_svf.data.file_names import named
from fss_svf.errors import DataError

JPEG, PNG = (".jpg", ".jpeg"), (".png",)
LISTS = files("fss_svf.data") / "lists"


class Item(NamedTuple):
    """An image and its binary masks: (class number, file) of each."""

    name: str
    image: Path
    masks: tuple[tuple[int, Path], ...]


class Found(NamedTuple):
    """What a download holds: images with masks, files that should exist but do not, and files that are not used."""

    items: list[Item]
    absent: list[Path]
    unused: list[Path]


@dataclass(frozen=True)
class Layout:
    """Paths are relative to the first of `roots` that has the folders; {} in them is a class.

    roots       folders below dataset.root that the download may unpack to
    images      the folder of images. With {} an image is of that class, and its name in the index is CLASS/NAME
    masks       the folder of masks. With {} in it alone, an image has a mask for each class that it shows
    classes     their folders or names, class 1 first
    suffix      what a mask's name adds to its image's
    class_of    the class number by image name, where neither path has {}; None: class 1. Exactly these images are expected
    subfolders  whether the images may lie in subfolders of `images`
    some        whether images without a mask belong to the download; they are not used
    other       patterns of files that only another form of the dataset has, which is not read
    other_is    what that form is, and the way out
    """

    roots: tuple[str, ...]
    images: str
    masks: str
    classes: tuple[str, ...]
    suffix: str = ""
    class_of: Callable[[], Mapping[str, int]] | None = None
    image_endings: tuple[str, ...] = JPEG
    mask_endings: tuple[str, ...] = PNG
    subfolders: bool = False
    some: bool = False
    other: tuple[str, ...] = ()
    other_is: str = ""

    def under(self, root: Path) -> Path:
        """The folder of the download. Raises DataError naming the folders that are looked for."""
        for candidate in self.roots:
            if any(
                all((root / candidate / path.format(name)).is_dir() for path in (self.images, self.masks))
                for name in self.classes
            ):
                return root / candidate
        if any(next((root / r).glob(pattern), None) for r in self.roots for pattern in self.other):
            raise DataError(f"{root.absolute()}: {self.other_is}")
        tree = [path.format(self.classes[0]) for path in (self.images, self.masks)]
        such = "such as " if "{}" in self.images + self.masks else ""
        places = f" (or below {', '.join(self.roots[1:])})" if len(self.roots) > 1 else ""
        raise DataError(
            f"{root.absolute()}: no folder {such}{' and '.join(dict.fromkeys(tree))} in it{places}; unpack the download "
            "there, or set dataset.root to its path (data/README.md shows the tree)"
        )

    def find(self, root: Path, only: Collection[str] | None = None) -> Found:
        """The images and masks below dataset.root, by class and then by name as text. Raises DataError.

        only: the classes whose folders of images are listed; None: all
        """
        base, found = self.under(root), Found([], [], [])
        classes = None if self.class_of is None else self.class_of()
        for prefix, images, folders in self._groups(base, self.classes if only is None else only):
            masks = {c: named(folder, self.mask_endings) for c, folder in folders.items()}
            of_masks = [stem for of_class in masks.values() for stem in of_class]
            names = [
                *images,
                *(m.removesuffix(self.suffix) for m in of_masks if m.endswith(self.suffix)),
                *(classes or ()),
            ]
            # Where an image needs no mask of every class, a class without any mask is a folder that was not unpacked.
            found.absent.extend(folders[c] for c in folders if not names or (len(folders) > 1 and not masks[c]))
            found.unused.extend(folders[1] / masks[1][m] for m in of_masks if not m.endswith(self.suffix))
            for name in dict.fromkeys(names):
                if classes is not None and name not in classes:
                    raise DataError(
                        f"{images.get(name, name)}: not among the {len(classes):,} images of this dataset; move it"
                    )
                paths = {c: folders[c] / file for c in masks if (file := masks[c].get(name + self.suffix))}
                if name in images and paths:
                    numbered = ((classes[name] if classes else c, path) for c, path in paths.items())
                    found.items.append(Item(prefix + name, images[name], tuple(numbered)))
                elif name not in images:
                    found.absent.append(base / self.images.format(prefix[:-1]) / f"{name}{self.image_endings[0]}")
                elif self.some:
                    found.unused.append(images[name])
                else:
                    found.absent.append(min(folders.items())[1] / f"{name}{self.suffix}{self.mask_endings[0]}")
        return found

    def _groups(self, base: Path, only: Collection[str]) -> Iterator[tuple[str, dict[str, Path], dict[int, Path]]]:
        """Images by name whose masks are in the same folders: the prefix of the names, the images, the folders by class."""
        if "{}" in self.images:
            for c, name in ((c, name) for c, name in enumerate(self.classes, 1) if name in only):
                yield f"{name}/", self._images(base / self.images.format(name)), {c: base / self.masks.format(name)}
        else:
            classes = self.classes if "{}" in self.masks else self.classes[:1]
            folders = {c: base / self.masks.format(name) for c, name in enumerate(classes, 1)}
            yield "", self._images(base / self.images), folders

    def _images(self, folder: Path) -> dict[str, Path]:
        below = sorted(p for p in folder.iterdir() if p.is_dir()) if self.subfolders else []
        images: dict[str, Path] = {}
        for place in (folder, *below):
            for name, file in named(place, self.image_endings).items():
                if name in images:
                    raise DataError(f"{place / file}: {images[name]} has the same name; remove one")
                images[name] = place / file
        return images


def read_list(name: str) -> tuple[str, ...]:
    """The lines of a list in the package."""
    return tuple((LISTS / name).read_text().split())


ISIC_CLASSES = ("nevus", "melanoma", "seborrheic_keratosis")


def isic_classes() -> dict[str, int]:
    """The class number of each of ISIC 2018's 2,594 training images."""
    lines = (LISTS / "isic2018_classes.csv").read_text().splitlines()
    return {row["ID"]: ISIC_CLASSES.index(row["Class"]) + 1 for row in csv.DictReader(lines)}


FSS_SPLITS = {split: read_list(f"fss1000_{split}.txt") for split in ("train", "val", "test")}

LAYOUTS = {
    "fss1000": Layout(
        roots=("", "FSS-1000", "FSS-1000/data", "data", "fewshot_data", "fewshot_data/fewshot_data"),
        images="{}",
        masks="{}",
        classes=tuple(name for names in FSS_SPLITS.values() for name in names),
    ),
    "isic2018": Layout(
        roots=("", "ISIC"),
        images="ISIC2018_Task1-2_Training_Input",
        masks="ISIC2018_Task1_Training_GroundTruth",
        classes=ISIC_CLASSES,
        suffix="_segmentation",
        class_of=isic_classes,
        subfolders=True,
    ),
    "chest_xray": Layout(
        roots=("", "LungSegmentation"),
        images="CXR_png",
        masks="masks",
        classes=("lung",),
        suffix="_mask",
        image_endings=PNG,
        some=True,
    ),
    "deepglobe": Layout(
        roots=("", "Deepglobe"),
        images="{}/test/origin",
        masks="{}/test/groundtruth",
        classes=("1", "2", "3", "4", "5", "6"),
    ),
    "suim": Layout(
        roots=("", "SUIM"),
        images="images",
        masks="masks/{}",
        classes=("FV", "HD", "PF", "RI", "RO", "SR", "WR"),
        mask_endings=(".bmp", *PNG),
        other=("train_val", "TEST", "masks/*.bmp", "masks/*.png"),
        other_is="SUIM in the form of its authors (train_val and TEST, masks in colours); put all images into images/ and a "
        "binary mask for each class into masks/CLASS/, as docs/data.md says",
    ),
}
