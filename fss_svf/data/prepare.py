"""fss-svf prepare: checks a download and builds labels and index, once."""

from __future__ import annotations

from pathlib import Path

from fss_svf.config import PrepareConfig
from fss_svf.data.dataset import Dataset
from fss_svf.data.episodes import listed_images
from fss_svf.data.synonyms import warn_of_twice
from fss_svf.provenance import write_run_folder
from fss_svf.registry import DATASETS


def prepare(config: PrepareConfig, out: Path) -> None:
    """Prepare config.dataset and print its counts: images listed in each fold, by the area rule and the filter."""
    dataset: Dataset = DATASETS.build(config.dataset)
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
    print(f"ready under {options.prepared}")
