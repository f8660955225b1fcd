"""VOC-style folders: JPEGImages/NAME.jpg, a folder of label PNGs, ImageSets/Segmentation/{train,val}.txt."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.dataset import (
    Dataset,
    DatasetOptions,
    Split,
    SplitName,
    absent,
    link_to_nothing,
    require_folder,
    require_images,
)
from fss_svf.data.file_names import IMAGE_ENDINGS
from fss_svf.data.identity import label_digest, record
from fss_svf.data.images import image_size, read_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.label_values import class_areas
from fss_svf.errors import DataError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_ENDING = re.compile(f"({'|'.join(map(re.escape, IMAGE_ENDINGS))})$", re.IGNORECASE)


class VocFolder(Dataset):
    """A dataset in VOC's layout under options.root. Subclasses set class_names and may set label_folder."""

    class_names: tuple[str, ...]
    label_folder = "SegmentationClass"

    def __init__(self, options: DatasetOptions) -> None:
        super().__init__(options)
        self.images = options.root / "JPEGImages"
        self.labels = options.root / self.label_folder

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        for folder in (self.options.root, self.images, self.labels):
            require_folder(folder, "dataset.root", self.name)
        self.options.prepared.mkdir(parents=True, exist_ok=True)
        return {"train": self._index("train", workers), "val": self._index("val", workers)}

    def split(self, name: SplitName) -> Split:
        path = self._index_path(name)
        split = Split(self._open_index(path), self.images, ".jpg", self.labels)
        return self._checked(path, split, [self._list(name)])

    def _index_path(self, name: SplitName) -> Path:
        return self.options.prepared / f"{name}.npz"

    def _index(self, split: SplitName, workers: int | None) -> Index:
        path = self._list(split)
        names = read_names(path, f"dataset={self.name}")
        names = self._labelled(require_images(self.images, names, ".jpg", allow_missing=None))
        return build_index(
            self._index_path(split),
            names,
            partial(index_named, self.images, self.labels),
            self.class_names,
            fingerprint("voc", self.class_names, names),
            workers,
            f"{self.name} {split}",
            files=lambda name: (self.images / f"{name}.jpg", self.labels / f"{name}.png"),
            sources=[path],
        )

    def _list(self, split: SplitName) -> Path:
        return self.options.root / "ImageSets" / "Segmentation" / f"{split}.txt"

    def _labelled(self, names: list[str]) -> list[str]:
        missing = absent(self.labels, names, ".png")
        if missing:
            raise DataError(
                f"{self.labels}: {len(missing)} of {len(names)} labels are missing, first {missing[0]}.png"
                f"{link_to_nothing(self.labels / f'{missing[0]}.png')}; finish the download"
            )
        return names


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte order mark. Raises DataError for another encoding."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from None


def read_names(path: Path, what: str) -> list[str]:
    """The image names in a list file, one in each line, without repetitions. what: the config key or dataset that uses it.

    Lines of other projects' lists ("JPEGImages/NAME.jpg SegmentationClassAug/NAME.png") are read as NAME.
    Raises DataError if there is none.
    """
    if not path.is_file():
        raise DataError(f"{what}: no list {path}; set the key to its path, or finish the download")
    lines = [line.strip() for line in read_lines(path) if line.strip()]
    if not lines:
        raise DataError(f"{what}: the list {path} is empty; write it again, or finish the download")
    first = [re.sub(r"^(\S+\.jpg)\s+\S+\.png$", r"\1", line) for line in lines]
    return list(dict.fromkeys(_ENDING.sub("", Path(line).name) for line in first))


def index_label(image: Path, label: Path, name: str) -> ImageRow:
    """The row of one image, with the areas of its label. The sizes of image and label must agree."""
    files = record(image), record(label)
    numbers = read_label(label)
    size = image_size(image)
    if size != numbers.shape:
        raise DataError(
            f"{label}: label of {numbers.shape[1]} x {numbers.shape[0]} for an image of {size[1]} x {size[0]}; replace the "
            "wrong one"
        )
    return ImageRow(name, *size, class_areas(numbers), content=label_digest(numbers), files=files)


def index_named(images: Path, labels: Path, name: str) -> ImageRow:
    """The row of images/NAME.jpg and labels/NAME.png."""
    return index_label(images / f"{name}.jpg", labels / f"{name}.png", name)
