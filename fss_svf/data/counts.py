"""The papers' numbers of images a fold lists: the proof that a preparation gives the papers' data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fss_svf.data.dataset import DatasetOptions, SplitName
from fss_svf.data.episodes import listed_images
from fss_svf.data.folds import Partition
from fss_svf.data.index import Index
from fss_svf.errors import DataError

# All papers: a class counts in an image from 2 * 32 * 32 pixels on.
PAPERS_MIN_AREA = 2048


def counts_of_folds(
    index: Index, options: DatasetOptions, split: SplitName, filtered: bool, partition: Partition
) -> tuple[int, ...]:
    """Images that each fold of `partition` lists at the papers' area, with or without the filter of novel classes."""
    papers = replace(options, filter_novel=filtered, class_partition=partition, min_area=PAPERS_MIN_AREA)
    return tuple(int(listed_images(index, papers, fold, split).sum()) for fold in range(papers.num_folds))


def require_papers_counts(
    index: Index,
    options: DatasetOptions,
    split: SplitName,
    filtered: bool,
    partition: Partition,
    expected: Sequence[int],
) -> None:
    """Raise DataError unless the folds list as many images as in the papers."""
    found = counts_of_folds(index, options, split, filtered, partition)
    if found != tuple(expected):
        what = "with" if filtered else "without"
        raise DataError(
            f"{split}: the folds list {' / '.join(map(str, found))} images {what} the filter of novel classes, in the "
            f"papers {' / '.join(map(str, expected))}: these are other labels; get them anew, or set "
            "dataset.check_counts=false to use them as they are"
        )
