"""fss-svf prepare: checks a download and builds labels and indexes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fss_svf.config import PrepareConfig
from fss_svf.data.audit import audit
from fss_svf.data.dataset import Dataset, DatasetOptions
from fss_svf.data.fold import Fold
from fss_svf.data.index import Index
from fss_svf.data.synonyms import warn_of_twice
from fss_svf.errors import DataError, listing
from fss_svf.provenance import write_run_folder
from fss_svf.registry import DATASETS

log = logging.getLogger(__name__)

MOST_LISTED = 100  # classes


def prepare(config: PrepareConfig, out: Path) -> None:
    """Prepare config.dataset. Print the number of images in each fold, by the area rule and the filter, and of each
    class."""
    dataset: Dataset = DATASETS.build(config.dataset)
    with _writing(dataset.options):
        indexes = dataset.prepare(config.workers)
    write_run_folder(out, config)
    options = dataset.options
    warn_of_twice(indexes["val"].class_names, options.synonyms)
    for name, index in indexes.items():
        folds = [Fold(options, index.class_names, number) for number in range(options.num_folds)]
        classes = sorted({c for fold in folds for c in fold.classes(name)})
        listed = [int(fold.listed(index, name).sum()) for fold in folds]
        filtered = " without novel classes" if name == "train" and options.filter_novel else ""
        print(
            f"{config.dataset.name} {name}: {len(index):,} images, {len(index.class_names)} classes, index {index.hash}; "
            f"images listed{filtered} in folds 0..{folds[-1].number}: {' / '.join(f'{n:,}' for n in listed)}"
        )
        print(
            f"{config.dataset.name} {name}, images of each class: {images_of_classes(index, options.min_area, classes)}"
        )
        lacking = [index.class_name(c) for c in classes if not index.areas[:, c].any()]
        if lacking:
            log.warning("%s: no image of %s, so there are no episodes of them", name, listing(lacking, 20))
    print(f"ready under {options.prepared}")
    if config.check:
        with _writing(options):
            audit(dataset, config.workers)


def images_of_classes(index: Index, min_area: int, classes: Sequence[int]) -> str:
    """For each class the number of images with at least `min_area` pixels of it, and of those with fewer.

    Of many classes the range of the numbers, and the classes with the fewest images.
    """
    if len(classes) > MOST_LISTED:
        images = {c: int((index.areas[:, c] >= min_area).sum()) for c in classes}
        low, high = min(images.values()), max(images.values())
        if low == high:
            return f"{low:,} of at least {min_area:,} px"
        fewest = listing([f"{index.class_name(c)} {images[c]:,}" for c in sorted(classes, key=lambda c: images[c])])
        return f"{low:,} to {high:,} of at least {min_area:,} px, fewest of {fewest}"
    counts = []
    for number in classes:
        name = index.class_name(number)
        large, every = (int((index.areas[:, number] >= area).sum()) for area in (min_area, 1))
        counts.append(
            f"{name} {large:,}" + (f" (and {every - large:,} below {min_area:,} px)" if every > large else "")
        )
    return ", ".join(counts)


@contextmanager
def _writing(options: DatasetOptions) -> Iterator[None]:
    """Turn an error while writing into dataset.prepared, or while creating the toy dataset's root, into a DataError that
    names the key."""
    try:
        yield
    except OSError as error:
        key, folder = ("prepared", options.prepared) if options.root.exists() else ("root", options.root)
        # The error of a file that is already open, as on a full disk, has no name.
        path = Path(error.filename or folder)
        if not (path.is_relative_to(folder) or folder.is_relative_to(path)):
            raise
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}); make it writable and free some space, or set "
            f"dataset.{key}= to another folder; the same command continues where it stopped"
        ) from None
