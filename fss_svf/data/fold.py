"""A fold of a dataset: its novel and base classes, the images it lists, and the samplers of its episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fss_svf.config import FoldNumber
from fss_svf.data.dataset import DatasetOptions, SplitName
from fss_svf.data.episodes import WALKS, EpisodeSampler, Order
from fss_svf.data.index import Index
from fss_svf.data.partition import part_of_images
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
        """(N,) bool. With filter_novel (the dagger of BAM and SVF) training leaves out every image with a novel pixel; with
        train_fraction it has a part of what is left."""
        keep = np.ones(len(index), bool)
        if split == "train" and self.options.filter_novel:
            keep &= ~index.having(self.novel)
        if split == "train" and self.options.train_fraction < 1:
            listed = keep[:, None] & (index.areas[:, list(self.base)] >= self.options.min_area)
            keep &= part_of_images(index.names.tolist(), listed, self.options.train_fraction)
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
        condition = f", in images without {listing(self.names(without))}" if without else ""
        if split == "train" and self.options.train_fraction < 1:
            condition += f", with dataset.train_fraction={self.options.train_fraction}"
        sampler = EpisodeSampler(
            index,
            self.classes(split) if classes is None else classes,
            self.usable(index, split) & ~index.having(without),
            shot,
            seed,
            order,
            self.options.min_area,
            self.options.too_few_images,
            what=f"fold {self.number}, {split}{condition}",
            way=way,
            # Without supports an episode is an image (base learners).
            pairs=self.options.pairs(index, split, order == "pairs") if shot else None,
            places=self.options.query_places(index, split) if order in WALKS else None,
            repeats=repeats,
        )
        if split == "train" and self.options.train_fraction < 1 and sampler.skipped:
            # too_few_images=skip is for classes that lack images, not for those that a part has lost.
            whole = replace(self, options=replace(self.options, train_fraction=1.0))
            skipped = whole.sampler(index, split, shot, seed, order, classes, way, without, repeats).skipped
            if lost := [c for c in sampler.skipped if c not in skipped]:
                raise DataError(
                    f"dataset.train_fraction={self.options.train_fraction}: fold {self.number}, {split}: too few images are "
                    f"left of {listing(self.names(lost))}, which have enough in the whole; raise it, or lower "
                    "dataset.min_area"
                )
        return sampler
