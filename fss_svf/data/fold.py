"""A fold of a dataset: its novel and base classes, the images it lists, and the samplers of its episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fss_svf.config import FoldNumber
from fss_svf.data.dataset import DatasetOptions, SplitName
from fss_svf.data.episodes import WALKS, EpisodeSampler, Order
from fss_svf.data.index import Index
from fss_svf.errors import DataError, listing


@dataclass(frozen=True)
class Fold:
    """Fold `number` of a dataset. A run resolves it once and passes it on.

    options      options of the dataset
    class_names  (C,) names of classes 1..C, as in the dataset's indexes
    number       0..options.num_folds - 1, or all: every class is a base class
    """

    options: DatasetOptions
    class_names: Sequence[str]
    number: FoldNumber

    @cached_property
    def novel(self) -> tuple[int, ...]:
        """Numbers of the tested classes, ascending."""
        return () if self.number == "all" else self.options.novel(self.class_names, self.number)

    @cached_property
    def base(self) -> tuple[int, ...]:
        """Numbers of the training classes, ascending."""
        every = tuple(range(1, len(self.class_names) + 1))
        return every if self.number == "all" else self.options.base(self.class_names, self.number)

    def classes(self, split: SplitName) -> tuple[int, ...]:
        """The classes of a split's episodes: base classes in train, novel ones in val."""
        return self.novel if split == "val" else self.base

    def require_novel(self) -> None:
        """Raise DataError where no class is tested."""
        if self.number == "all":
            raise DataError("fold=all: every class trains, none is tested; evaluate on another dataset")
        if not self.novel:
            raise DataError(
                f"fold={self.number}: no class is novel in it, the dataset has {len(self.class_names)}; choose another"
            )

    def names(self, classes: Sequence[int]) -> list[str]:
        """The names of these class numbers."""
        return [self.class_names[c - 1] for c in classes]

    def usable(self, index: Index, split: SplitName) -> np.ndarray:
        """(N,) bool. With filter_novel (the dagger of BAM and SVF) training leaves out every image with a novel pixel."""
        keep = np.ones(len(index), bool)
        if split == "train" and self.options.filter_novel:
            keep &= ~index.having(self.novel)
        return keep

    def listed(self, index: Index, split: SplitName) -> np.ndarray:
        """(N,) bool: the images in the fold's list, by the area rule and the filter."""
        large: np.ndarray = index.having(self.classes(split), self.options.min_area)
        return large & self.usable(index, split)

    def supports(self, index: Index, split: SplitName, by_pair: bool) -> np.ndarray:
        """(N, C + 1) bool: the classes of which each image may be a support, by the dataset's list or by the area rule.

        by_pair: whether the episodes walk pairs of image and class.
        """
        pairs = self.options.pairs(index, split, by_pair)
        large = index.areas >= self.options.min_area if pairs is None else pairs
        return large & self.usable(index, split)[:, None]

    def sampler(
        self,
        index: Index,
        split: SplitName,
        shot: int,
        seed: int,
        order: Order,
        classes: Sequence[int] | None = None,
        way: int = 1,
        without: Sequence[int] = (),
        repeats: bool = False,
    ) -> EpisodeSampler:
        """The sampler of a split with the dataset's options.

        classes: the classes of episodes; None: all of the split. without: classes of which no image may have a pixel.
        repeats: as of EpisodeSampler.
        Raises DataError if no class is novel in this fold or a class has too few images, ConfigError for more ways than
        classes.
        """
        if self.number != "all" or (classes is None and split == "val"):
            self.require_novel()
        if split == "train" and not self.base:
            raise DataError(f"fold={self.number}: all classes of this dataset are tested; train on another dataset")
        without_names = f", in images without {listing(self.names(without))}" if without else ""
        return EpisodeSampler(
            index,
            self.classes(split) if classes is None else classes,
            self.usable(index, split) & ~index.having(without),
            shot,
            seed,
            order,
            self.options.min_area,
            self.options.too_few_images,
            what=f"fold {self.number}, {split}{without_names}",
            way=way,
            # Without supports an episode is an image (base learners).
            pairs=self.options.pairs(index, split, order == "pairs") if shot else None,
            places=self.options.query_places(index, split) if order in WALKS else None,
            repeats=repeats,
        )
