"""fss-svf prepare: checks a download and builds labels and index, once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fss_svf.config import PrepareConfig
from fss_svf.data.dataset import Dataset, DatasetOptions
from fss_svf.data.episodes import listed_images
from fss_svf.data.index import Index
from fss_svf.data.synonyms import warn_of_twice
from fss_svf.errors import DataError, listing
from fss_svf.provenance import write_run_folder
from fss_svf.registry import DATASETS

log = logging.getLogger(__name__)


def prepare(config: PrepareConfig, out: Path) -> None:
    """Prepare config.dataset and print its counts: images listed in each fold, by the area rule and the filter, and the
    images of each class.
    """
    dataset: Dataset = DATASETS.build(config.dataset)
    with _writing(dataset.options):
        indexes = dataset.prepare(config.workers)
    write_run_folder(out, config)
    options = dataset.options
    warn_of_twice(indexes["train"].class_names, options.synonyms)
    for name, index in indexes.items():
        folds = range(options.num_folds)
        listed = [int(listed_images(index, options, fold, name).sum()) for fold in folds]
        filtered = " without novel classes" if name == "train" and options.filter_novel else ""
        print(
            f"{config.dataset.name} {name}: {len(index):,} images, {len(index.class_names)} classes, index {index.hash}; "
            f"images listed{filtered} in folds 0..{folds[-1]}: {' / '.join(f'{n:,}' for n in listed)}"
        )
        print(f"{config.dataset.name} {name}, images of each class: {images_of_classes(index, options.min_area)}")
        lacking = [
            index.class_name(number)
            for number in range(1, len(index.class_names) + 1)
            if not index.areas[:, number].any()
        ]
        if lacking:
            log.warning("%s: no image of %s: no episode can show them", name, listing(lacking, 20))
    print(f"ready under {options.prepared}")


def images_of_classes(index: Index, min_area: int) -> str:
    """Of each class its images with at least `min_area` pixels of it, and how many more there are with fewer."""
    words = []
    for number, name in enumerate(index.class_names, 1):
        counted, all_ = (int((index.areas[:, number] >= area).sum()) for area in (min_area, 1))
        words.append(
            f"{name} {counted:,}" + (f" (and {all_ - counted:,} below {min_area:,} px)" if all_ > counted else "")
        )
    return ", ".join(words)


@contextmanager
def _writing(options: DatasetOptions) -> Iterator[None]:
    """What the system says against writing into dataset.prepared, or against making the root (the toy's is made), becomes a
    DataError that names the key."""
    try:
        yield
    except OSError as error:
        key, folder = ("prepared", options.prepared) if options.root.exists() else ("root", options.root)
        # A file that is open already has no name in the error, as on a full disk.
        path = Path(error.filename or folder)
        if not (path.is_relative_to(folder) or folder.is_relative_to(path)):
            raise
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}); make room and the right to write there, or set "
            f"dataset.{key}= to another folder; the same command goes on where it was"
        ) from None
