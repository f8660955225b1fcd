"""Compares the number of images in each fold with the papers, which shows that the prepared data are the papers'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fss_svf.data.dataset import DatasetOptions, SplitName
from fss_svf.data.fold import Fold
from fss_svf.data.index import Index
from fss_svf.data.partition import Partition
from fss_svf.errors import DataError

# In all papers a class needs 2 * 32 * 32 pixels to count in an image.
PAPERS_MIN_AREA = 2048


def counts_of_folds(
    index: Index, options: DatasetOptions, split: SplitName, filtered: bool, partition: Partition
) -> tuple[int, ...]:
    """The number of images in each fold of `partition` at the papers' area, with or without the filter of novel classes."""
    papers = replace(
        options, filter_novel=filtered, class_partition=partition, min_area=PAPERS_MIN_AREA, train_fraction=1.0
    )
    folds = [Fold(papers, index.class_names, number) for number in range(papers.num_folds)]
    return tuple(int(fold.listed(index, split).sum()) for fold in folds)


def require_papers_counts(
    index: Index,
    options: DatasetOptions,
    split: SplitName,
    filtered: bool,
    partition: Partition,
    expected: Sequence[int],
) -> None:
    """Raise DataError unless each fold lists as many images as in the papers."""
    listed = counts_of_folds(index, options, split, filtered, partition)
    if listed != tuple(expected):
        what = "with" if filtered else "without"
        raise DataError(
            f"{split}: the folds list {' / '.join(map(str, listed))} images {what} the filter of novel classes, in the "
            f"papers {' / '.join(map(str, expected))}: these are other labels; download them again, or set "
            "dataset.check_counts=false to use them as they are"
        )
