"""COCO's format: instances_*.json and its image folder, drawn into label PNGs and an index."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from fss_svf.config import require
from fss_svf.data.archives import unpack_until
from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.coco_annotations import AnnotatedImage, Annotations
from fss_svf.data.coco_draw import MaskMode, draw_image
from fss_svf.data.coco_files import CocoFiles, existing_files, read_file_names, write_file_names
from fss_svf.data.counts import counts_of_folds
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, require_folder, require_images
from fss_svf.data.index import Index
from fss_svf.data.label_values import MOST_IN_8_BITS, is_wide
from fss_svf.data.official_lists import coco_val_names
from fss_svf.errors import DataError
from fss_svf.registry import DATASETS

log = logging.getLogger(__name__)

QueryOrder = Literal["official", "hsnet", "file"]

# COCO 2014 in the papers: annotated images, and images in folds 0..3 of mod4 (training ones filtered).
PAPERS: dict[str, tuple[SplitName, int, tuple[int, ...]]] = {
    "instances_train2014": ("train", 82_081, (21917, 41809, 43045, 44614)),
    "instances_val2014": ("val", 40_137, (26052, 15305, 13138, 12640)),
}
# For the message that nothing was drawn.
_NOT_DRAWN = {
    "official": " (official draws no crowds)",
    "full": "",
    "first_polygon": " (first_polygon draws no crowds and no run lengths)",
}


@dataclass(frozen=True)
class CocoSplit:
    """An instances JSON and its image folder. Paths are relative to the dataset's root."""

    annotations: str
    images: str


@dataclass(frozen=True)
class CocoOptions(DatasetOptions):
    train: CocoSplit
    val: CocoSplit
    mask_mode: MaskMode
    allow_missing: bool
    check_counts: bool
    # Checkpoints of before this key have none. Their queries came in this order.
    query_order: QueryOrder = field(default="file", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("train", "val"):
            require(getattr(self, key).annotations.endswith(".json"), f"{key}.annotations", "a .json file",
                    getattr(self, key).annotations)  # fmt: skip

    def query_places(self, index: Index, split: SplitName) -> np.ndarray | None:
        """By query_order. Images that the list lacks come after it; None if it has none of the images (not COCO 2014)."""
        if split == "train" or self.query_order == "file":
            return None
        place = {name: number for number, name in enumerate(coco_val_names(self.query_order))}
        places = np.array([place.get(name, len(place)) for name in index.names.tolist()])
        return None if (places == len(place)).all() else places


@DATASETS.register("coco", CocoOptions)
class Coco(Dataset):
    """COCO-20i, or other data in COCO's format. Classes are numbered 1..C in the order of their category ids."""

    name = "coco"
    # The config keys in messages; dataset=folder has others.
    keys = {"annotations": "dataset.{split}.annotations", "images": "dataset.{split}.images"}  # noqa: RUF012
    options: CocoOptions

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        if self.name == Coco.name:
            for where in dict.fromkeys((self.options.train, self.options.val)):
                self._unpack(where)
        require_folder(self.options.root, "dataset.root", self.name)
        train = self._prepare_split("train", workers)
        # Both splits may use one JSON: the filter of novel classes keeps their images apart.
        same = self.options.val == self.options.train
        return {"train": train, "val": train if same else self._prepare_split("val", workers)}

    def split(self, name: SplitName) -> Split:
        folder, where = self._prepared(name), getattr(self.options, name)
        path, images = folder / "index.npz", self.options.root / where.images
        index = self._open_index(path)
        split = CocoFiles(index, images, ".jpg", folder / "labels", read_file_names(folder, index.fingerprint))
        if name == "val" and self.options.query_order != "file":
            self._log_order(index)
        return self._checked(path, split, [self.options.root / where.annotations])

    def _log_order(self, index: Index) -> None:
        """Log how far the images are those of query_order's list."""
        order = self.options.query_order
        assert order != "file"
        places, listed = self.options.query_places(index, "val"), len(coco_val_names(order))
        if places is None:
            log.info("%s: not COCO's val2014; queries come in the order of the file", self.options.val.annotations)
            return
        found = int((places < listed).sum())
        if found < listed:
            log.warning(
                "query_order=%s: %s of the list's %s images are missing", order, f"{listed - found:,}", f"{listed:,}"
            )
        if found < len(index):
            log.warning(
                "query_order=%s: %s images are not on the list and come after it", order, f"{len(index) - found:,}"
            )

    def _unpack(self, where: CocoSplit) -> None:
        """Unpack missing files from archives such as train2014.zip and annotations_trainval2014.zip."""
        images, annotations = self.options.root / where.images, self.options.root / where.annotations
        # An empty folder may have been created by hand for the tree in data/README.md.
        unpack_until(lambda: images.is_dir() and any(images.iterdir()), self.options.root, (where.images,))
        unpack_until(annotations.exists, self.options.root, (str(Path(where.annotations).parent),))

    def _prepared(self, name: SplitName) -> Path:
        # Every mask_mode has a separate folder, so that another one cannot read its labels. So has a dataset with missing
        # images, so that it is not taken for the complete one.
        train, val = self.options.train, self.options.val
        stem = Path(getattr(self.options, name).annotations).stem
        if train != val and Path(train.annotations).stem == Path(val.annotations).stem:
            stem = f"{name}-{stem}"  # train/instances.json and val/instances.json
        return self.options.prepared / f"{stem}-{self.options.mask_mode}{'-part' * self.options.allow_missing}"

    def _prepare_split(self, name: SplitName, workers: int | None) -> Index:
        where: CocoSplit = getattr(self.options, name)
        images = self.options.root / where.images
        require_folder(images, self.keys["images"].format(split=name), self.name)
        path = self.options.root / where.annotations
        if not path.is_file():
            raise DataError(
                f"dataset={self.name}: no annotation file {path.absolute()}; set "
                f"{self.keys['annotations'].format(split=name)} to the instances_*.json under dataset.root"
            )
        annotations = Annotations(path)
        if is_wide(len(annotations.class_names)):
            raise DataError(
                f"{path}: {len(annotations.class_names)} categories, more than the {MOST_IN_8_BITS} that are drawn here; "
                "leave some out, or use dataset=lvis for LVIS"
            )
        items = self._present(name, images, annotations.images)
        stems = [image.stem for image in items]
        self._require_papers_images(path, annotations)
        folder = self._prepared(name)
        labels = folder / "labels"
        labels.mkdir(parents=True, exist_ok=True)
        made_from = fingerprint("coco", annotations.digest, self.options.mask_mode, stems)
        write_file_names(folder, made_from, items)

        def check(index: Index) -> None:
            if not index.areas.any():
                raise DataError(
                    f"{path}: no annotation covers a pixel of its image{_NOT_DRAWN[self.options.mask_mode]}; check that "
                    "they are in pixels"
                )
            self._require_papers_folds(path, index)

        index = build_index(
            folder / "index.npz",
            items,
            partial(draw_image, images, labels, self.options.mask_mode),
            annotations.class_names,
            made_from,
            workers,
            f"{self.name} {name}",
            files=lambda item: (images / item.file, labels / f"{item.stem}.png"),
            sources=[path],
            check=check,
        )
        for left_by_a_kill in labels.glob("*.partial"):
            left_by_a_kill.unlink(missing_ok=True)
        return index

    def _present(self, name: SplitName, images: Path, listed: list[AnnotatedImage]) -> list[AnnotatedImage]:
        """The images that exist, with their file names as in the folder. Raises DataError."""
        names = existing_files(images, [image.file for image in listed])
        if not any(names) and listed[0].file.startswith(f"{images.name}/"):
            raise DataError(
                f"{images}: none of the {len(listed)} images exists, first {listed[0].file}; their names begin with that "
                f"folder: set {self.keys['images'].format(split=name)} to its parent"
            )
        files = [name or image.file for name, image in zip(names, listed)]
        kept = set(require_images(images, files, "", self.options.allow_missing))
        return [image._replace(file=file) for file, image in zip(files, listed) if file in kept]

    def _require_papers_images(self, path: Path, annotations: Annotations) -> None:
        _, expected, _ = PAPERS.get(path.stem, ("", None, ()))
        annotated = len(annotations.images)
        if self.options.check_counts and expected not in (None, annotated):
            raise DataError(
                f"{path}: {annotated:,} annotated images, COCO 2014 has {expected:,}; download the file again, or set "
                "dataset.check_counts=false to use it as it is"
            )

    def _require_papers_folds(self, path: Path, index: Index) -> None:
        """Raise DataError if the official masks of all images do not give the papers' folds; of other masks, log it."""
        split, images, expected = PAPERS.get(path.stem, ("train", -1, ()))
        if len(index) != images:
            return
        counts = counts_of_folds(index, self.options, split, True, "mod4")
        text = f"{path.stem}, mask_mode={self.options.mask_mode}: the folds list {_joined(counts)} images"
        if counts == expected:
            log.info("%s, as in the papers", text)
            return
        text += f", in the papers {_joined(expected)}"
        if self.options.mask_mode == "official" and self.options.check_counts and not self.options.allow_missing:
            raise DataError(
                f"{path}: {text}: these are other annotations; download the file again, or set "
                "dataset.check_counts=false or dataset.allow_missing=true to use them as they are"
            )
        log.warning("%s", text)


def _joined(counts: Sequence[int]) -> str:
    return " / ".join(map(str, counts))
