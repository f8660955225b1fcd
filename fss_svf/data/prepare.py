"""fss-svf prepare: checks a download and builds labels and index, once."""

from __future__ import annotations

from pathlib import Path

from fss_svf.config import FOLDS, PrepareConfig
from fss_svf.data.dataset import Dataset
from fss_svf.data.episodes import split_classes, usable_images
from fss_svf.provenance import write_run_folder
from fss_svf.registry import DATASETS


def prepare(config: PrepareConfig, out: Path) -> None:
    """Prepare config.dataset and print its counts: images listed in each fold, by the area rule and the filter."""
    dataset: Dataset = DATASETS.build(config.dataset)
    indexes = dataset.prepare(config.workers)
    write_run_folder(out, config)
    options = dataset.options
    for name, index in indexes.items():
        listed = []
        for fold in range(FOLDS):
            large = index.having(split_classes(index, options, fold, name), options.min_area)
            listed.append(int((large & usable_images(index, options, fold, name)).sum()))
        filtered = " without novel classes" if name == "train" and options.filter_novel else ""
        print(
            f"{config.dataset.name} {name}: {len(index):,} images, {len(index.class_names)} classes, index {index.hash}; "
            f"images listed{filtered} in folds 0..{FOLDS - 1}: {' / '.join(f'{n:,}' for n in listed)}"
        )
    print(f"ready under {options.prepared}")
