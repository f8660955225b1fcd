"""Generalized few-shot segmentation: every listed image is a query once, and all its classes are segmented together.

Source: the protocol of CAPL (CVPR 2022) in the words of DIaM (CVPR 2023). Supports of base classes are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fss_svf.data.episodes import WHOLE_LIST, EpisodeSpec
from fss_svf.data.fold import Fold
from fss_svf.data.index import Index
from fss_svf.data.label_values import MOST_IN_8_BITS
from fss_svf.data.manifest import EpisodeList
from fss_svf.errors import DataError, listing


class WholeList:
    """Draws the supports of a run, and makes an episode of every image that is none of them.

    The supports of a novel class are its val images with at least min_area pixels of it and without a pixel of another novel
    class; those of a base class have no novel class at all. K of a class are different images; where it has fewer, they are
    repeated by random draws. They depend on (index, seed, class) alone, and the first of K are those of fewer shots.

    ways      the classes that have supports, ascending among the base ones and then the novel ones
    classes   those that are segmented, in this order: base classes that need no supports, and the ways
    left_out  classes without a possible support that too_few_images=skip leaves out; their pixels are background
    listed    (L,) images with a pixel of any of `classes`, ascending
    """

    def __init__(self, index: Index, fold: Fold, base_needs_supports: bool) -> None:
        """Raises DataError where a class has no possible support, none is novel or none is base, and for more than 254."""
        fold.require_novel()
        if index.wide:
            raise DataError(
                f"protocol.classes=all: labels every pixel with one of at most {MOST_IN_8_BITS} classes, this dataset has "
                f"{len(index.class_names):,}; take a protocol of novel classes alone"
            )
        self.index, novel = index, fold.novel
        wanted = (*fold.base, *novel) if base_needs_supports else novel
        self._candidates = {c: self._may_support(fold, c, novel) for c in wanted}
        none = [c for c in wanted if not len(self._candidates[c])]
        if none and fold.options.too_few_images == "error":
            raise DataError(
                f"fold {fold.number}, val: no image can be a support of {listing(fold.names(none))}: with at least "
                f"{fold.options.min_area} px of it, and of no other novel class; add images, lower dataset.min_area, or "
                "leave such classes out with dataset.too_few_images=skip"
            )
        self.left_out = tuple(none)
        self.ways = tuple(c for c in wanted if c not in none)
        self.classes = self.ways if base_needs_supports else (*fold.base, *self.ways)
        self.base = tuple(c for c in self.classes if c not in novel)
        for kind, number in (("base", len(self.base)), ("novel", len(self.classes) - len(self.base))):
            if not number:
                raise DataError(
                    f"fold {fold.number}, val: protocol.classes=all measures base and novel classes, and no {kind} class "
                    "has a possible support; add images, or take another dataset or protocol"
                )
        self.listed = np.flatnonzero(index.having(self.classes))

    def episodes(self, shot: int, seed: int) -> EpisodeList:
        """The run of a seed. Raises DataError where every listed image is a support."""
        of_ways = [self._supports(c, shot, seed) for c in self.ways]
        # One tuple for all: of COCO at 5 shots it has 400 images.
        supports = tuple(image for images in of_ways for image in images)
        queries = np.setdiff1d(self.listed, supports).tolist()
        if not queries:
            raise DataError(
                f"seed {seed}, {shot}-shot: each of the {len(self.listed)} listed images is a support, and none is left "
                "as a query; add images"
            )
        specs = (EpisodeSpec(n, self.ways, query, supports, alone=True) for n, query in enumerate(queries))
        return EpisodeList(self.index, shot, seed, tuple(specs))

    def _may_support(self, fold: Fold, class_id: int, novel: Sequence[int]) -> np.ndarray:
        others = [c for c in novel if c != class_id]
        large = self.index.areas[:, class_id] >= fold.options.min_area
        return np.flatnonzero(large & ~self.index.having(others))

    def _supports(self, class_id: int, shot: int, seed: int) -> list[int]:
        random, candidates = np.random.default_rng([seed, class_id, WHOLE_LIST]), self._candidates[class_id]
        drawn = random.permutation(candidates)[:shot].tolist()
        while len(drawn) < shot:
            drawn.append(int(random.choice(candidates)))
        return drawn
