"""dataset=pascal: Pascal-5i from the downloads of VOC 2012 and SBD, checked against the papers' counts."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from fss_svf.data.archives import unpack_until
from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.counts import require_papers_counts
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, absent
from fss_svf.data.file_names import present
from fss_svf.data.identity import record
from fss_svf.data.images import read_label, write_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.official_lists import hsnet_pascal
from fss_svf.data.sbd import read_sbd_label
from fss_svf.data.voc import VOC_CLASSES, index_named, read_names
from fss_svf.errors import DataError, listing
from fss_svf.files import atomic_write
from fss_svf.registry import DATASETS

log = logging.getLogger(__name__)

# Images in folds 0..3: train with the filter of novel classes and without, and val.
PAPERS: dict[tuple[SplitName, bool], tuple[int, ...]] = {
    ("train", True): (4208, 3726, 2752, 4510),
    ("train", False): (4760, 4588, 4097, 5108),
    ("val", True): (364, 445, 592, 336),
}

# The label file of each name, by split.
Sources = dict[SplitName, dict[str, Path]]


@dataclass(frozen=True)
class PascalOptions(DatasetOptions):
    train_list: Literal["hsnet"] | Path | None
    allow_missing: bool
    check_counts: bool

    def pairs(self, index: Index, split: SplitName, by_pair: bool) -> np.ndarray | None:
        """HSNet's pairs: in tests by pair, and in training on its list."""
        if not (by_pair if split == "val" else self.train_list == "hsnet"):
            return None
        return hsnet_pairs(index, split)


@dataclass(frozen=True)
class Download:
    """Folders of the download; None for a missing one.

    voc  the folder of JPEGImages, ImageSets and SegmentationClass
    aug  SegmentationClassAug: the labels of VOC and SBD as merged by others
    sbd  SBD's cls/*.mat
    """

    voc: Path | None
    aug: Path | None
    sbd: Path | None

    @classmethod
    def under(cls, root: Path) -> Download:
        # Identified by VOC's training list, since its test set has the same folders.
        voc = _first(root, ("", "VOCdevkit/VOC2012", "VOC2012"), "ImageSets/Segmentation/train.txt")
        aug = _first(root, ("SegmentationClassAug",)) or (_first(voc, ("SegmentationClassAug",)) if voc else None)
        sbd = _first(root, ("benchmark_RELEASE/dataset/cls", "dataset/cls", "cls"))
        return cls(voc, aug, sbd)


def _first(base: Path, folders: tuple[str, ...], holding: str = "") -> Path | None:
    return next((base / folder for folder in folders if (base / folder / holding).exists()), None)


@DATASETS.register("pascal", PascalOptions)
class Pascal(Dataset):
    """Training: VOC 2012 train and SBD's train_noval, 5,953 images. Test: VOC 2012 val, 1,449."""

    name = "pascal"
    options: PascalOptions

    def prepare(self, workers: int | None) -> dict[SplitName, Index]:
        root = self.options.root
        unpack_until(lambda: Download.under(root).voc is not None, root, ("VOCdevkit/VOC2012", "VOC2012", "JPEGImages"))
        unpack_until(self._labelled, root, ("SegmentationClassAug", "benchmark_RELEASE"))
        download = Download.under(root)
        if download.voc is None:
            raise DataError(
                f"dataset=pascal: no VOC 2012 under {root} (VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt, or its "
                "archive); set dataset.root to its path (data/README.md shows the tree)"
            )
        if download.aug is None and download.sbd is None:
            raise DataError(
                f"dataset=pascal: no labels under {root}: neither benchmark_RELEASE/dataset/cls (SBD) nor "
                "SegmentationClassAug, nor their archives; data/README.md shows the tree"
            )
        sources: Sources = {
            "train": label_sources(download, self._train_names(download.voc)),
            "val": label_sources(download, _voc_names(download.voc, "val")),
        }
        papers = self._complete(download, sources) and self.options.check_counts
        self.options.prepared.mkdir(parents=True, exist_ok=True)
        return {split: self._index(split, sources[split], download, papers, workers) for split in sources}

    def split(self, name: SplitName) -> Split:
        download = Download.under(self.options.root)
        if download.voc is None:
            raise DataError(
                f"dataset=pascal: not prepared, there is no VOC 2012 under {self.options.root}; set dataset.root to "
                "its path, and run 'fss-svf prepare dataset=pascal' first"
            )
        path, listed = self._index_path(name, download), self.options.train_list if name == "train" else None
        index = self._open_index(path, listed if isinstance(listed, Path) else None)
        split = Split(index, download.voc / "JPEGImages", ".jpg", self._labels(download))
        # SBD's labels may be deleted after they are merged.
        merged = download.aug is not None or download.sbd is not None
        sources = label_sources(download, index.names.tolist()).values() if merged else []
        origins = [[source] for source in sources]
        return self._checked(path, split, self._lists(download.voc), origins)

    def _labelled(self) -> bool:
        download = Download.under(self.options.root)
        return download.aug is not None or download.sbd is not None

    def _train_names(self, voc: Path) -> list[str]:
        if self.options.train_list == "hsnet":
            names = list(hsnet_pascal("train"))
        elif self.options.train_list is not None:
            names = read_names(self.options.train_list, "dataset.train_list")
        else:
            names = list(dict.fromkeys([*sbd_train_noval(), *_voc_names(voc, "train")]))
        tested = set(_voc_names(voc, "val"))
        leaks = [name for name in names if name in tested]
        if leaks:
            raise DataError(
                f"dataset=pascal: {len(leaks)} names of the training list are in VOC's val list too: {listing(leaks)}; "
                "remove them from the training list"
            )
        return names

    def _lists(self, voc: Path) -> list[Path]:
        """The list files of training and test images. The training list does not include test images."""
        lists = [voc / "ImageSets" / "Segmentation" / f"{split}.txt" for split in ("train", "val")]
        return [*lists, *([self.options.train_list] if isinstance(self.options.train_list, Path) else [])]

    def _index_path(self, split: SplitName, download: Download) -> Path:
        assert download.voc is not None
        # Another source of labels or another list has a separate index, so that a run cannot read the wrong one.
        source = "aug" if download.aug else "sbd"
        listed = (
            f"-{fingerprint(self._train_names(download.voc))[:8]}"
            if split == "train" and self.options.train_list
            else ""
        )
        return self.options.prepared / f"{split}-{source}{listed}.npz"

    def _labels(self, download: Download) -> Path:
        return download.aug or self.options.prepared / "labels"

    def _complete(self, download: Download, sources: Sources) -> bool:
        """Whether every file exists. Names with a missing file are removed from `sources`, or DataError is raised."""
        assert download.voc is not None
        images = download.voc / "JPEGImages"
        folders = {images, *(source.parent for of_split in sources.values() for source in of_split.values())}
        existing: set[Path] = set().union(*map(present, folders))
        missing: dict[Path, None] = {}  # in order, each once
        for of_split in sources.values():
            for name, source in list(of_split.items()):
                absent_files = [file for file in (images / f"{name}.jpg", source) if file not in existing]
                if absent_files:
                    missing |= dict.fromkeys(absent_files)
                    del of_split[name]
        report = self.options.prepared / "missing.txt"
        if not missing:
            if report.exists():  # a read-only folder refuses to delete even a missing file
                report.unlink()
            return True
        self.options.prepared.mkdir(parents=True, exist_ok=True)
        report.write_text("".join(f"{file}\n" for file in missing))
        text = f"dataset=pascal: {len(missing):,} files are missing: {listing(missing, 2)} (all in {report})"
        kept = " and ".join(f"{len(of_split):,} of {split}" for split, of_split in sources.items())
        if not self.options.allow_missing or not all(sources.values()):
            raise DataError(
                f"{text}, which leaves {kept}; finish the download, or set dataset.allow_missing=true to use the others"
            )
        log.warning("%s; using %s", text, kept)
        return False

    def _index(
        self, split: SplitName, sources: dict[str, Path], download: Download, papers: bool, workers: int | None
    ) -> Index:
        """papers: whether the counts must equal the papers'."""
        assert download.voc is not None
        images, labels = download.voc / "JPEGImages", self._labels(download)

        def check(index: Index) -> None:
            for (of, filtered), expected in PAPERS.items():
                if papers and of == split and (of == "val" or self.options.train_list is None):
                    require_papers_counts(index, self.options, split, filtered, "contiguous", expected)

        names = list(sources)
        labels.mkdir(parents=True, exist_ok=True)
        return build_index(
            self._index_path(split, download),
            list(sources.values()),
            partial(merge_label, images, labels),
            VOC_CLASSES,
            fingerprint("pascal", VOC_CLASSES, names),
            workers,
            f"pascal {split}",
            files=lambda source: (images / f"{source.stem}.jpg", labels / f"{source.stem}.png", source),
            sources=self._lists(download.voc),
            check=check,
        )


def sbd_train_noval() -> list[str]:
    """SBD's training images that are not in VOC 2012's val lists, 5,623 names (a list published by SBD's authors)."""
    return (files("fss_svf.data") / "lists" / "sbd_train_noval.txt").read_text().split()


def hsnet_pairs(index: Index, split: SplitName) -> np.ndarray:
    """(N, C + 1) bool, the classes that HSNet lists each image under.

    Logs how many pairs are of images that the index lacks. Raises DataError if all are, or for a label without its class.
    """
    listed, pairs, kept = hsnet_pascal(split), np.zeros(index.areas.shape, bool), 0
    for row, name in enumerate(index.names.tolist()):
        for c in listed.get(name, ()):
            if not index.areas[row, c]:
                raise DataError(
                    f"{name}: HSNet lists it under {index.class_name(c)}, its label has no pixel of it; download the "
                    "labels again"
                )
            pairs[row, c] = True
            kept += 1
    total = sum(map(len, listed.values()))
    if not kept:
        raise DataError(
            f"dataset=pascal, {split}: no image of HSNet's list is there; set dataset.root to VOC 2012 and SBD"
        )
    if kept < total:
        log.warning("HSNet's %s list: images of %s of %s pairs are missing", split, f"{total - kept:,}", f"{total:,}")
    return pairs


def _voc_names(voc: Path, split: SplitName) -> list[str]:
    return read_names(voc / "ImageSets" / "Segmentation" / f"{split}.txt", "dataset=pascal")


def label_sources(download: Download, names: list[str]) -> dict[str, Path]:
    """The label file of each name: VOC's if it has one, else SBD's."""
    if download.aug is not None:
        return {name: download.aug / f"{name}.png" for name in names}
    assert download.voc is not None
    assert download.sbd is not None
    folder = download.voc / "SegmentationClass"
    no_png, no_mat = set(absent(folder, names, ".png")), set(absent(download.sbd, names, ".mat"))
    # If neither has the label, the file that should exist is reported as missing.
    listed = {*_voc_names(download.voc, "train"), *_voc_names(download.voc, "val")}
    of_voc = {name for name in names if name not in no_png or (name in no_mat and name in listed)}
    return {name: folder / f"{name}.png" if name in of_voc else download.sbd / f"{name}.mat" for name in names}


def merge_label(images: Path, labels: Path, source: Path) -> ImageRow:
    """Write labels/NAME.png from VOC's PNG or SBD's .mat, unless it is that file, and return its row of the index."""
    target, origin = labels / f"{source.stem}.png", record(source)
    if source.suffix == ".mat":
        write_label(target, read_sbd_label(source))
    elif source != target:
        read_label(source)  # an error names the source file
        with atomic_write(target) as unfinished:
            shutil.copyfile(source, unfinished)
    row = index_named(images, labels, source.stem)
    return row if source == target else replace(row, files=(*row.files, origin))
