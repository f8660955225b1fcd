"""dataset=pascal: Pascal-5i from VOC 2012 and SBD as they are downloaded, by the papers' lists and counts."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

from fss_svf.data.archives import unpack_until
from fss_svf.data.build import build_index, fingerprint
from fss_svf.data.counts import require_papers_counts
from fss_svf.data.dataset import Dataset, DatasetOptions, Split, SplitName, absent
from fss_svf.data.file_names import present
from fss_svf.data.identity import record
from fss_svf.data.images import read_label, write_label
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.sbd import read_sbd_label
from fss_svf.data.voc import VOC_CLASSES, index_named, read_names
from fss_svf.errors import DataError, listing
from fss_svf.files import appearing_whole
from fss_svf.registry import DATASETS

log = logging.getLogger(__name__)

# Images that a fold lists, folds 0..3: train with the filter of novel classes and without, and val.
PAPERS: dict[tuple[SplitName, bool], tuple[int, ...]] = {
    ("train", True): (4208, 3726, 2752, 4510),
    ("train", False): (4760, 4588, 4097, 5108),
    ("val", True): (364, 445, 592, 336),
}

# Label file of each name, by split.
Sources = dict[SplitName, dict[str, Path]]


@dataclass(frozen=True)
class PascalOptions(DatasetOptions):
    train_list: Path | None
    allow_missing: bool
    check_counts: bool


@dataclass(frozen=True)
class Places:
    """Where the parts of the download lie; None for what is not there.

    voc  holds JPEGImages, ImageSets and SegmentationClass
    aug  SegmentationClassAug: the labels of VOC and SBD as others have merged them
    sbd  SBD's cls/*.mat
    """

    voc: Path | None
    aug: Path | None
    sbd: Path | None

    @classmethod
    def under(cls, root: Path) -> Places:
        # By VOC's training list: its test set, on the same page, has the same folders.
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
        unpack_until(lambda: Places.under(root).voc is not None, root, ("VOCdevkit/VOC2012", "VOC2012", "JPEGImages"))
        unpack_until(self._labelled, root, ("SegmentationClassAug", "benchmark_RELEASE"))
        places = Places.under(root)
        if places.voc is None:
            raise DataError(
                f"dataset=pascal: no VOC 2012 under {root} (VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt, or its "
                "archive); set dataset.root to where it is (data/README.md shows the tree)"
            )
        if places.aug is None and places.sbd is None:
            raise DataError(
                f"dataset=pascal: no labels under {root}: neither benchmark_RELEASE/dataset/cls (SBD) nor "
                "SegmentationClassAug, nor their archives; data/README.md shows the tree"
            )
        sources: Sources = {
            "train": label_sources(places, self._train_names(places.voc)),
            "val": label_sources(places, _voc_names(places.voc, "val")),
        }
        papers = self._complete(places, sources) and self.options.check_counts
        self.options.prepared.mkdir(parents=True, exist_ok=True)
        return {split: self._index(split, sources[split], places, papers, workers) for split in sources}

    def split(self, name: SplitName) -> Split:
        places = Places.under(self.options.root)
        if places.voc is None:
            raise DataError(
                f"dataset=pascal: not prepared, there is no VOC 2012 under {self.options.root}; set dataset.root to "
                "where it is, and run 'fss-svf prepare dataset=pascal' first"
            )
        path, listed = self._index_path(name, places), self.options.train_list if name == "train" else None
        index = self._open_index(path, listed)
        split = Split(index, places.voc / "JPEGImages", ".jpg", self._labels(places))
        # SBD's labels may be gone once they are merged.
        merged = places.aug is not None or places.sbd is not None
        origins = list(label_sources(places, index.names.tolist()).values()) if merged else []
        return self._checked(path, split, self._lists(places.voc), origins)

    def _labelled(self) -> bool:
        places = Places.under(self.options.root)
        return places.aug is not None or places.sbd is not None

    def _train_names(self, voc: Path) -> list[str]:
        if self.options.train_list is not None:
            names = read_names(self.options.train_list, "dataset.train_list")
        else:
            names = list(dict.fromkeys([*sbd_train_noval(), *_voc_names(voc, "train")]))
        tested = set(_voc_names(voc, "val"))
        leaks = [name for name in names if name in tested]
        if leaks:
            raise DataError(
                f"dataset=pascal: {len(leaks)} names of the training list are in VOC's val list too: {listing(leaks)}; "
                "take them out of the training list"
            )
        return names

    def _lists(self, voc: Path) -> list[Path]:
        """The files that say which images are trained on and tested; the training list is without the tested ones."""
        lists = [voc / "ImageSets" / "Segmentation" / f"{split}.txt" for split in ("train", "val")]
        return [*lists, *([] if self.options.train_list is None else [self.options.train_list])]

    def _index_path(self, split: SplitName, places: Places) -> Path:
        assert places.voc is not None
        # Labels of another source, and another list, have their own index: a run cannot read the wrong one.
        source = "aug" if places.aug else "sbd"
        listed = (
            f"-{fingerprint(self._train_names(places.voc))[:8]}" if split == "train" and self.options.train_list else ""
        )
        return self.options.prepared / f"{split}-{source}{listed}.npz"

    def _labels(self, places: Places) -> Path:
        return places.aug or self.options.prepared / "labels"

    def _complete(self, places: Places, sources: Sources) -> bool:
        """Whether every file is there. Names that lack one are taken out of `sources`, or DataError is raised."""
        assert places.voc is not None
        images = places.voc / "JPEGImages"
        folders = {images, *(source.parent for of_split in sources.values() for source in of_split.values())}
        there: set[Path] = set().union(*map(present, folders))
        missing: dict[Path, None] = {}  # in order, each once
        for of_split in sources.values():
            for name, source in list(of_split.items()):
                lacking = [file for file in (images / f"{name}.jpg", source) if file not in there]
                if lacking:
                    missing |= dict.fromkeys(lacking)
                    del of_split[name]
        report = self.options.prepared / "missing.txt"
        if not missing:
            if report.exists():  # a read-only folder refuses to delete even what is not there
                report.unlink()
            return True
        self.options.prepared.mkdir(parents=True, exist_ok=True)
        report.write_text("".join(f"{file}\n" for file in missing))
        text = f"dataset=pascal: {len(missing):,} files are missing: {listing(missing, 2)} (all in {report})"
        kept = " and ".join(f"{len(of_split):,} of {split}" for split, of_split in sources.items())
        if not self.options.allow_missing or not all(sources.values()):
            raise DataError(
                f"{text}, which leaves {kept}; finish the download, or set dataset.allow_missing=true to go on with what "
                "is there"
            )
        log.warning("%s; going on with %s", text, kept)
        return False

    def _index(
        self, split: SplitName, sources: dict[str, Path], places: Places, papers: bool, workers: int | None
    ) -> Index:
        """`papers`: whether the papers' counts must come out."""
        assert places.voc is not None
        images, labels = places.voc / "JPEGImages", self._labels(places)

        def check(index: Index) -> None:
            for (of, filtered), expected in PAPERS.items():
                if papers and of == split and (of == "val" or self.options.train_list is None):
                    require_papers_counts(index, self.options, split, filtered, "contiguous", expected)

        names = list(sources)
        labels.mkdir(parents=True, exist_ok=True)
        return build_index(
            self._index_path(split, places),
            list(sources.values()),
            partial(merge_label, images, labels),
            VOC_CLASSES,
            fingerprint("pascal", VOC_CLASSES, names),
            workers,
            f"pascal {split}",
            files=lambda source: (images / f"{source.stem}.jpg", labels / f"{source.stem}.png", source),
            sources=self._lists(places.voc),
            check=check,
        )


def sbd_train_noval() -> list[str]:
    """SBD's images for training that are not in VOC 2012's val lists, 5,623 names (SBD's authors publish the list)."""
    return (files("fss_svf.data") / "lists" / "sbd_train_noval.txt").read_text().split()


def _voc_names(voc: Path, split: SplitName) -> list[str]:
    return read_names(voc / "ImageSets" / "Segmentation" / f"{split}.txt", "dataset=pascal")


def label_sources(places: Places, names: list[str]) -> dict[str, Path]:
    """The file with each name's label: VOC's where it has one, SBD's otherwise."""
    if places.aug is not None:
        return {name: places.aug / f"{name}.png" for name in names}
    assert places.voc is not None
    assert places.sbd is not None
    folder = places.voc / "SegmentationClass"
    no_png, no_mat = set(absent(folder, names, ".png")), set(absent(places.sbd, names, ".mat"))
    # What neither has is missing from the one that should have it.
    listed = {*_voc_names(places.voc, "train"), *_voc_names(places.voc, "val")}
    of_voc = {name for name in names if name not in no_png or (name in no_mat and name in listed)}
    return {name: folder / f"{name}.png" if name in of_voc else places.sbd / f"{name}.mat" for name in names}


def merge_label(images: Path, labels: Path, source: Path) -> ImageRow:
    """Make labels/NAME.png of VOC's PNG or SBD's .mat where it is not that file already; the index's row of it."""
    target, origin = labels / f"{source.stem}.png", record(source)
    if source.suffix == ".mat":
        write_label(target, read_sbd_label(source))
    elif source != target:
        read_label(source)  # a damaged one is told by its own name
        with appearing_whole(target) as unfinished:
            shutil.copyfile(source, unfinished)
    row = index_named(images, labels, source.stem)
    return row if source == target else replace(row, files=(*row.files, origin))
