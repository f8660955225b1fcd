"""Which images make up episode number n: a pure function of (index, split, seed, n)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from fss_svf.data.dataset import DatasetOptions, SplitName
from fss_svf.data.index import Index
from fss_svf.errors import ConfigError, DataError, listing

Order = Literal["in_order", "random", "shuffled_epochs", "by_class", "balanced"]

# Independent random streams of one seed.
_EPISODE, _EPOCH, AUGMENTATION, _WAYS, _PASS = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode by image numbers of the split's index.

    class_ids  its N classes, that of way 1 first
    supports   N * K images, way by way
    """

    number: int
    class_ids: tuple[int, ...]
    query: int
    supports: tuple[int, ...]

    @property
    def class_id(self) -> int:
        """The class of an episode of one class. Raises ValueError for several."""
        (class_id,) = self.class_ids
        return class_id

    @property
    def way(self) -> int:
        """N, classes at once."""
        return len(self.class_ids)

    @property
    def shot(self) -> int:
        """K, supports a class."""
        return len(self.supports) // self.way

    def named(self, index: Index) -> dict[str, object]:
        """Classes, query and supports by their names, ready for JSON."""
        return {
            "classes": [index.class_name(c) for c in self.class_ids],
            "query": str(index.names[self.query]),
            "supports": [str(index.names[image]) for image in self.supports],
        }

    def first_supports(self, shot: int) -> EpisodeSpec:
        """The same episode with the first `shot` supports of each way."""
        starts = range(0, len(self.supports), self.shot or 1)
        return replace(self, supports=tuple(i for start in starts for i in self.supports[start : start + shot]))


class EpisodeSampler:
    """Draws episodes: `sampler[n]` is the same for any process, worker, batch size or history.

    queries   every image of the list that holds a class of this sampler
    supports  of a class: its images with at least min_area pixels of it (2,048 in all papers, at original size)

    order: how the query and its class come about. Three orders choose the query first: "in_order" walks the list again
    and again, "random" draws queries independently, "shuffled_epochs" shows every query once an epoch in an order of
    that epoch. The class is then drawn from all classes of this sampler in the query, also those under min_area.
    Two choose the class first, and as its query one of the images that may be its supports: "by_class" draws both
    evenly (HSNet on COCO); "balanced" takes the classes in turn, and each class goes through its images in a random
    order, all of them before any a second time, then in another order.

    The supports are drawn without replacement, never the query. A 1-shot support is the first of the 5-shot supports of
    the same episode.

    way: N classes an episode. The query and its class are those of one way; N - 1 other classes of this sampler are
    drawn beside it, whether the query holds them or not, and the ways stand in random order. No image is a support of
    two ways.
    """

    def __init__(
        self,
        index: Index,
        classes: Sequence[int],
        keep: np.ndarray,
        shot: int,
        seed: int,
        order: Order,
        min_area: int,
        too_few_images: Literal["error", "skip"] = "error",
        what: str = "this split",
        way: int = 1,
    ) -> None:
        """`keep`: (N,) bool, the images that may be used at all.

        Raises DataError for a class with too few images, ConfigError for more ways than classes.
        """
        _require_ways(way, classes, what)
        large = (index.areas >= min_area) & keep[:, None]
        self._supports = {c: np.flatnonzero(large[:, c]) for c in classes}
        # A query is itself among its class's images, and all supports of an episode may be among them too.
        needed = way * shot + 1
        few = [c for c in classes if len(self._supports[c]) < needed]
        kind = f"{shot}-shot" if way == 1 else f"{way}-way {shot}-shot"
        if few and too_few_images == "error":
            found = listing([f"{index.class_name(c)} has {len(self._supports[c])}" for c in few])
            raise DataError(
                f"{what}: {kind} episodes need {needed} images a class of at least {min_area} px each, {found}; "
                "add images, lower dataset.min_area, or leave such classes out with dataset.too_few_images=skip"
            )
        self.skipped = tuple(few)
        self.classes = tuple(c for c in classes if c not in set(few))
        self.index, self.way, self.shot, self.seed, self.order = index, way, shot, seed, order
        # As in the papers' lists: an image is listed when one class is large enough in it.
        self.queries = np.flatnonzero(large[:, list(self.classes)].any(axis=1)) if self.classes else np.array([], int)
        if not len(self.queries):
            raise DataError(f"{what}: no class has the {needed} images that {kind} episodes need; nothing to draw")
        _require_ways(way, self.classes, f"{what}, without the classes of too few images,")

    def __len__(self) -> int:
        """The number of queries: one epoch."""
        return len(self.queries)

    def images(self) -> np.ndarray:
        """Every image that an episode may show, ascending."""
        return np.unique(np.concatenate([self.queries, *(self._supports[c] for c in self.classes if self.shot)]))

    def __getitem__(self, number: int) -> EpisodeSpec:
        if number < 0:
            raise IndexError(f"episode numbers start at 0, got {number}")
        random = np.random.default_rng([self.seed, number, _EPISODE])
        query, own = self._query(number, random)
        class_ids = self._ways(number, own)
        # The query's class goes on with the stream that drew it, so that one way is as it was before there were more.
        streams = [random if c == own else np.random.default_rng([self.seed, number, _WAYS, c]) for c in class_ids]
        images = [self._images(c, query, stream) for c, stream in zip(class_ids, streams)]
        taken = {query}
        supports: list[list[int]] = [[] for _ in class_ids]
        # One at a time, each way in turn: the first support must not depend on the shot.
        for _ in range(self.shot):
            for chosen, of_class in zip(supports, images):
                chosen.append(next(image for image in of_class if image not in taken))
                taken.add(chosen[-1])
        return EpisodeSpec(number, class_ids, query, tuple(image for chosen in supports for image in chosen))

    def _ways(self, number: int, own: int) -> tuple[int, ...]:
        """The query's class `own` and way - 1 others, in random order."""
        random = np.random.default_rng([self.seed, number, _WAYS])
        others = random.permutation([c for c in self.classes if c != own])[: self.way - 1]
        return tuple(int(c) for c in random.permutation([own, *others]))

    def _images(self, class_id: int, query: int, random: np.random.Generator) -> Iterator[int]:
        """The class's images but for the query, one drawn evenly after the other, without end."""
        candidates = self._supports[class_id]
        # The query's own place among them, which is left out without copying the list.
        own = int(np.searchsorted(candidates, query))
        is_one = bool(own < len(candidates) and candidates[own] == query)
        while True:
            place = int(random.integers(len(candidates) - is_one))
            yield int(candidates[place + (is_one and place >= own)])

    def _query(self, number: int, random: np.random.Generator) -> tuple[int, int]:
        """The query and its class."""
        if self.order == "by_class":
            own = self.classes[random.integers(len(self.classes))]
            return int(random.choice(self._supports[own])), own
        if self.order == "balanced":
            turn, place = divmod(number, len(self.classes))
            own = self.classes[place]
            images = self._supports[own]
            walk, position = divmod(turn, len(images))
            return int(images[_pass_order(self.seed, own, walk, len(images))[position]]), own
        query = int(self.queries[self._position(number, random)])
        return query, int(random.choice([c for c in self.classes if self.index.areas[query, c] > 0]))

    def _position(self, number: int, random: np.random.Generator) -> int:
        if self.order == "in_order":
            return number % len(self.queries)
        if self.order == "random":
            return int(random.integers(len(self.queries)))
        epoch, position = divmod(number, len(self.queries))
        return int(_epoch_order(self.seed, epoch, len(self.queries))[position])


def _require_ways(way: int, classes: Sequence[int], what: str) -> None:
    if way > max(1, len(classes)):
        raise ConfigError(f"way={way}: {what} has {len(classes)} classes to draw from; say way={len(classes)} or less")


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, _EPOCH]).permutation(n)


# Classes take turns, so one order of every class is in use at a time.
@lru_cache(maxsize=128)
def _pass_order(seed: int, class_id: int, walk: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, class_id, _PASS, walk]).permutation(n)


def split_classes(index: Index, options: DatasetOptions, fold: int, split: SplitName) -> tuple[int, ...]:
    """The classes whose episodes this split shows: the base classes in train, the novel ones in val."""
    novel = options.novel(index.class_names, fold)
    return novel if split == "val" else tuple(c for c in range(1, len(index.class_names) + 1) if c not in novel)


def usable_images(index: Index, options: DatasetOptions, fold: int, split: SplitName) -> np.ndarray:
    """(N,) bool. With filter_novel (BAM's and SVF's dagger) training leaves out every image with a novel pixel."""
    keep = np.ones(len(index), bool)
    if split == "train" and options.filter_novel:
        keep &= ~index.having(split_classes(index, options, fold, "val"))
    return keep


def listed_images(index: Index, options: DatasetOptions, fold: int, split: SplitName) -> np.ndarray:
    """(N,) bool: the images that a fold's list holds, by the area rule and the filter."""
    large = index.having(split_classes(index, options, fold, split), options.min_area)
    found: np.ndarray = large & usable_images(index, options, fold, split)
    return found


def make_sampler(
    index: Index,
    options: DatasetOptions,
    fold: int,
    split: SplitName,
    shot: int,
    seed: int,
    order: Order,
    classes: Sequence[int] | None = None,
    way: int = 1,
    without: Sequence[int] = (),
) -> EpisodeSampler:
    """The sampler of a fold's split by the dataset's options, of all the split's classes or of `classes` alone.

    without: classes of which no image may hold a pixel.
    """
    if not split_classes(index, options, fold, "val"):
        raise DataError(
            f"fold={fold}: no class is novel in it, the dataset has {len(index.class_names)}; choose another"
        )
    return EpisodeSampler(
        index,
        split_classes(index, options, fold, split) if classes is None else classes,
        usable_images(index, options, fold, split) & ~index.having(without),
        shot,
        seed,
        order,
        options.min_area,
        options.too_few_images,
        what=f"fold {fold}, {split}"
        + (f", in images without {listing(map(index.class_name, without))}" if without else ""),
        way=way,
    )
