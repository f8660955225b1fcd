"""COCO's own format: instances_*.json and its image folder, drawn into label PNGs and an index."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from fss_svf.config import require
from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, absent, require_folder, require_images
from fss_svf.data.images import image_size, write_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.voc import class_areas
from fss_svf.errors import DataError
from fss_svf.registry import DATASETS

MaskMode = Literal["full", "first_polygon"]


@dataclass(frozen=True)
class CocoSplit:
    """Where one split lies: an instances JSON and its image folder. Paths are relative to the dataset's root."""

    annotations: str
    images: str


@dataclass(frozen=True)
class CocoOptions(DatasetOptions):
    train: CocoSplit
    val: CocoSplit
    mask_mode: MaskMode
    allow_missing: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("train", "val"):
            require(getattr(self, key).annotations.endswith(".json"), f"{key}.annotations", "a .json file",
                    getattr(self, key).annotations)  # fmt: skip


@DATASETS.register("coco", CocoOptions)
class Coco(Dataset):
    """COCO-20i, or anything in COCO's format. Classes are numbered 1..C in the order of their category ids."""

    name = "coco"
    options: CocoOptions

    def prepare(self, workers: int) -> dict[SplitName, Index]:
        require_folder(self.options.root, "dataset.root", self.name)
        train = self._prepare_split("train", workers)
        # One JSON may serve as both splits: the filter of novel classes keeps their images apart.
        same = self.options.val == self.options.train
        return {"train": train, "val": train if same else self._prepare_split("val", workers)}

    def split(self, name: SplitName) -> Split:
        folder = self._prepared(name)
        images = self.options.root / getattr(self.options, name).images
        return Split(self._open_index(folder / "index.npz"), images, ".jpg", folder / "labels")

    def _prepared(self, name: SplitName) -> Path:
        # Each way of drawing masks has its own folder, so that choosing another one cannot read the wrong labels.
        train, val = self.options.train, self.options.val
        stem = Path(getattr(self.options, name).annotations).stem
        if train != val and Path(train.annotations).stem == Path(val.annotations).stem:
            stem = f"{name}-{stem}"  # train/instances.json and val/instances.json
        return self.options.prepared / f"{stem}-{self.options.mask_mode}"

    def _prepare_split(self, name: SplitName, workers: int) -> Index:
        where: CocoSplit = getattr(self.options, name)
        images = self.options.root / where.images
        require_folder(images, f"dataset.{name}.images", self.name)
        path = self.options.root / where.annotations
        if not path.is_file():
            raise DataError(
                f"dataset=coco: no annotation file {path.absolute()}; set dataset.{name}.annotations to the "
                "instances_*.json under dataset.root"
            )
        annotations = Annotations(path)
        kept = set(require_images(images, list(annotations.instances), ".jpg", self.options.allow_missing))
        items = [(stem, instances) for stem, instances in annotations.instances.items() if stem in kept]
        folder = self._prepared(name)
        labels = folder / "labels"
        labels.mkdir(parents=True, exist_ok=True)
        missing = set(absent(labels, [stem for stem, _ in items], ".png"))
        return build_index(
            folder / "index.npz",
            items,
            partial(draw_image, images, labels, self.options.mask_mode),
            annotations.class_names,
            fingerprint("coco", annotations.digest, self.options.mask_mode, [stem for stem, _ in items]),
            workers,
            f"{self.name} {name}",
            written=lambda item: item[0] not in missing,
        )


class Annotations:
    """An instances JSON: the class names, and the instances of every annotated image in the file's order."""

    def __init__(self, path: Path) -> None:
        try:
            raw = path.read_bytes()
            self.digest = hashlib.sha256(raw).hexdigest()
            content = json.loads(raw)
            categories = sorted(content["categories"], key=lambda category: category["id"])
            images = {image["id"]: image for image in content["images"]}
            names = {key: image_name(image["file_name"], path) for key, image in images.items()}
            found: dict[str, list[dict[str, Any]]] = defaultdict(list)
            number = {category["id"]: i for i, category in enumerate(categories, 1)}
            self.class_names = tuple(category["name"] for category in categories)
            for annotation in content["annotations"]:
                image = images[annotation["image_id"]]
                found[names[image["id"]]].append(
                    {
                        "class": number[annotation["category_id"]],
                        "segmentation": annotation["segmentation"],
                        "crowd": bool(annotation.get("iscrowd", 0)),
                        "size": (image["height"], image["width"]),
                    }
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: not a whole COCO instances file ({type(error).__name__}: {error}); half a download? get it anew"
            ) from None
        if not 1 <= len(self.class_names) <= 254:
            raise DataError(f"{path}: {len(self.class_names)} categories; label PNGs hold 1 to 254 classes")
        if not found:
            raise DataError(f"{path}: no annotations; a file of images alone cannot be used")
        self.instances = {name: found[name] for name in names.values() if name in found}


def image_name(file_name: str, annotations: Path) -> str:
    """The index's name of an image: its path below the image folder, without the ending. Raises DataError."""
    path = PurePosixPath(file_name)
    if path.suffix != ".jpg" or path.is_absolute() or ".." in path.parts:
        raise DataError(f"{annotations}: image {file_name!r}: expected a .jpg below the image folder; rename it")
    return str(path.with_suffix(""))


def draw_image(images: Path, labels: Path, mask_mode: MaskMode, item: tuple[str, list[dict[str, Any]]]) -> ImageRow:
    """Draw one image's label PNG and return its row of the index. Raises DataError naming the image."""
    stem, instances = item
    height, width = instances[0]["size"]
    found = image_size(images / f"{stem}.jpg")
    if found != (height, width):
        raise DataError(
            f"{images / stem}.jpg: image of {found[1]} x {found[0]}, annotated as {width} x {height}; replace the image"
        )
    try:
        label = draw_label(instances, height, width, mask_mode)
    except Exception as error:  # pycocotools raises whatever its C code meets
        raise DataError(f"{stem}: its segmentation cannot be drawn ({error}); mend or remove the annotation") from None
    (labels / stem).parent.mkdir(parents=True, exist_ok=True)  # a name may hold sub folders
    write_label(labels / f"{stem}.png", label)
    return ImageRow(stem, height, width, class_areas(label))


def draw_label(instances: list[dict[str, Any]], height: int, width: int, mask_mode: MaskMode) -> np.ndarray:
    """(H, W) uint8 class numbers; later instances overwrite earlier ones.

    full: all polygons of an instance, and crowds (PANet). first_polygon: the first polygon of each instance and no
    crowds (the widely copied script of RePRI and DIaM).
    """
    label = np.zeros((height, width), np.uint8)
    for instance in instances:
        segmentation = instance["segmentation"]
        if mask_mode == "first_polygon":
            if instance["crowd"] or isinstance(segmentation, dict):
                continue
            segmentation = segmentation[:1]
        encoded = segmentation
        if isinstance(segmentation, list):
            encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            encoded = coco_mask.frPyObjects(segmentation, height, width)
        label[coco_mask.decode(encoded) == 1] = instance["class"]
    return label
