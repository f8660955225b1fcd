"""dataset=lvis: LVIS v1 on the images of COCO 2017, as LVIS-92i."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np

from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.coco_annotations import AnnotatedImage, Annotations, Instance
from fss_svf.data.coco_draw import mask_runs, runs_box
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, absent, require_folder
from fss_svf.data.identity import label_digest, record
from fss_svf.data.images import image_size, write_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.label_values import class_areas, is_wide
from fss_svf.data.partition import Partition
from fss_svf.errors import DataError
from fss_svf.registry import DATASETS

log = logging.getLogger(__name__)

FOLDS, OF_A_FOLD = 10, 92
# val has images of COCO's train2017 too.
IMAGE_FOLDERS = ("train2017", "val2017")


@dataclass(frozen=True)
class LvisOptions(DatasetOptions):
    """train, val: the JSON files, relative to the root."""

    train: str
    val: str
    allow_missing: bool
    class_partition: Partition = field(default="mod4", init=False)

    @property
    def num_folds(self) -> int:
        return FOLDS

    def novel(self, class_names: Sequence[str], fold: int) -> tuple[int, ...]:
        """Every tenth class, 92 of them. The classes of two images or more in val are numbered first."""
        return tuple(range(fold + 1, len(class_names) + 1, FOLDS))[:OF_A_FOLD]


@DATASETS.register("lvis", LvisOptions)
class Lvis(Dataset):
    """The train split is optional: without its JSON the dataset can be tested, not trained on."""

    name = "lvis"
    options: LvisOptions

    @property
    def splits(self) -> tuple[SplitName, ...]:
        return ("train", "val") if self._json("train").is_file() else ("val",)

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        require_folder(self.options.root, "dataset.root", self.name)
        return {name: self._index(name, workers) for name in self.splits}

    def split(self, name: SplitName) -> Split:
        self._require_split(name)
        folder = self._prepared(name)
        split = Split(self._open_index(folder / "index.npz"), self.options.root, ".jpg", folder / "labels")
        return self._checked(folder / "index.npz", split, [self._json(name)])

    @cached_property
    def _val(self) -> Annotations:
        path = self._json("val")
        if not path.is_file():
            raise DataError(f"dataset=lvis: no {path.absolute()}; set dataset.val to it, relative to dataset.root")
        return Annotations(path)

    def _json(self, split: SplitName) -> Path:
        return self.options.root / (self.options.train if split == "train" else self.options.val)

    def _prepared(self, split: SplitName) -> Path:
        return self.options.prepared / f"{self._json(split).stem}{'-part' * self.options.allow_missing}"

    def _index(self, split: SplitName, workers: int | None) -> Index:
        annotations = self._val if split == "val" else Annotations(self._json(split))
        if annotations.class_names != self._val.class_names:
            raise DataError(
                f"{self._json(split)}: its categories differ from those of {self._json('val')}; download both again"
            )
        order = class_order(self._val)
        number_of = np.argsort(np.concatenate([[0], order])).tolist()  # by the number in the file
        items = self._present(annotations.images)
        folder = self._prepared(split)
        labels = folder / "labels"
        for name in IMAGE_FOLDERS:
            (labels / name).mkdir(parents=True, exist_ok=True)
        return build_index(
            folder / "index.npz",
            items,
            partial(draw_image, self.options.root, labels, number_of),
            [annotations.class_names[c - 1] for c in order],
            fingerprint("lvis", annotations.digest, order, [item.stem for item in items]),
            workers,
            f"lvis {split}",
            files=lambda item: (self.options.root / item.file, labels / f"{item.stem}.png"),
            sources=[self._json(split)],
        )

    def _present(self, images: list[AnnotatedImage]) -> list[AnnotatedImage]:
        """The images that exist, with the folder in their names. Raises DataError."""
        names = [image.file for image in images]
        found: dict[str, str] = {}
        for folder in IMAGE_FOLDERS:
            missing = set(absent(self.options.root / folder, names, ""))
            found |= {name: folder for name in names if name not in missing}
        gone = [name for name in names if name not in found]
        if gone:
            text = f"{self.options.root}: {len(gone):,} of {len(names):,} images are missing, first {gone[0]}"
            if not (self.options.allow_missing and found):
                raise DataError(
                    f"{text}, which is in neither {' nor '.join(IMAGE_FOLDERS)}; finish the download of COCO 2017, or set "
                    "dataset.allow_missing=true to use the others"
                )
            log.warning("%s; using the others", text)
        return [
            image._replace(stem=f"{found[image.file]}/{image.stem}", file=f"{found[image.file]}/{image.file}")
            for image in images
            if image.file in found
        ]


def class_order(val: Annotations) -> list[int]:
    """The classes of two val images or more, then the others, both by the category's id."""
    images = Counter(c for image in val.images for c in {instance.number for instance in image.instances})
    return sorted(range(1, len(val.class_names) + 1), key=lambda c: (images[c] < 2, c))


def draw_image(root: Path, labels: Path, number_of: Sequence[int], item: AnnotatedImage) -> ImageRow:
    """Draw the label PNG of an image and return its row of the index. Raises DataError naming image and annotation.

    number_of: the class number by the number in the file
    """
    image = record(root / item.file)
    size = image_size(root / item.file)
    if size != (item.height, item.width):
        raise DataError(
            f"{root / item.file}: image of {size[1]} x {size[0]}, annotated as {item.width} x {item.height}; replace it"
        )
    try:
        numbered = [instance._replace(number=number_of[instance.number]) for instance in item.instances]
        label, boxes = draw_label(numbered, item.height, item.width, is_wide(len(number_of) - 1))
    except ValueError as error:
        raise DataError(f"{root / item.file}: {error}; correct or remove the annotation") from None
    write_label(labels / f"{item.stem}.png", label)
    files = image, record(labels / f"{item.stem}.png")
    return ImageRow(item.stem, *size, class_areas(label), boxes, label_digest(label), files)


def draw_label(
    instances: Sequence[Instance], height: int, width: int, wide: bool
) -> tuple[np.ndarray, tuple[tuple[int, int, int, int, int], ...]]:
    """(H, W) uint8 class numbers, uint16 if `wide`, and the box of each complete instance.

    Smaller instances overwrite larger ones, so that an object on another, as a button on a coat, keeps its pixels.
    """
    drawn = []
    for number, _, segmentation, annotation in instances:
        try:
            starts, stops = mask_runs(segmentation, height, width)
        except Exception as error:  # pycocotools raises anything for damaged input
            raise ValueError(f"annotation {annotation}: its segmentation cannot be drawn ({error})") from None
        if len(starts):
            drawn.append((int((stops - starts).sum()), number, starts, stops))
    columns = np.zeros(width * height, np.uint16 if wide else np.uint8)
    for _, number, starts, stops in sorted(drawn, key=lambda one: -one[0]):
        for start, stop in zip(starts.tolist(), stops.tolist()):
            columns[start:stop] = number
    boxes = tuple((number, *runs_box(starts, stops, height)) for _, number, starts, stops in drawn)
    return cv2.transpose(columns.reshape(width, height)), boxes
