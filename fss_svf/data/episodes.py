"""Draws episodes: the images of episode number n are a pure function of (index, split, seed, n)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from fss_svf.data.index import Index
from fss_svf.errors import ConfigError, DataError, listing

Order = Literal["in_order", "pairs", "random", "shuffled_epochs", "by_class", "in_turn", "balanced"]

# The orders that repeat a list.
WALKS: tuple[Order, ...] = ("in_order", "pairs")

# Independent random streams of one seed.
_EPISODE, _EPOCH, AUGMENTATION, _WAYS, _PASS, WHOLE_LIST, RELIANCE = 0, 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode as image numbers of the split's index.

    class_ids  its N classes, way 1 first
    supports   N * K images, way by way
    alone      whether a support's mask shows its class alone, and the other classes are background; else those of the
               episode are ignored in it
    shown      the classes that the supports show where they are others than class_ids (evaluation/reliance.py), or ()
    """

    number: int
    class_ids: tuple[int, ...]
    query: int
    supports: tuple[int, ...]
    alone: bool = False
    shown: tuple[int, ...] = ()

    @property
    def class_id(self) -> int:
        """The class of a one-way episode. Raises ValueError for several ways."""
        (class_id,) = self.class_ids
        return class_id

    @property
    def way(self) -> int:
        """N, the number of classes."""
        return len(self.class_ids)

    @property
    def shot(self) -> int:
        """K, supports of each class."""
        return len(self.supports) // self.way

    def named(self, index: Index) -> dict[str, object]:
        """Classes, query and supports by name, as a dict for JSON."""
        return {
            "classes": [index.class_name(c) for c in self.class_ids],
            "query": str(index.names[self.query]),
            "supports": [str(index.names[image]) for image in self.supports],
        }

    @property
    def masked_classes(self) -> tuple[int, ...]:
        """The classes that are ignored in the mask of a support of another class, ascending."""
        return () if self.alone else tuple(sorted(self.shown or self.class_ids))

    def first_supports(self, shot: int) -> EpisodeSpec:
        """The same episode with the first `shot` supports of each way."""
        starts = range(0, len(self.supports), self.shot or 1)
        return replace(self, supports=tuple(i for start in starts for i in self.supports[start : start + shot]))


class EpisodeSampler:
    """Draws episodes: `sampler[n]` is the same for any process, worker, batch size or history.

    Queries are all images of the list. The supports of a class are its images with at least min_area pixels of it (2,048
    in all papers, at original size).

    order: how the query and its class are drawn. Three orders choose the query first:

    in_order         repeats the list (`places` may set another order than the index')
    random           draws queries independently
    shuffled_epochs  has every query once in each epoch, in a new order

    The class is then drawn from all classes of this sampler in the query, also those under min_area. The order `pairs`
    repeats a list of queries with their class: one entry for each class that an image may be a support of. Three orders
    choose the class first, then its query from the images that may be its supports:

    by_class  draws both evenly (HSNet on COCO)
    in_turn   takes the classes in turn, and draws the query evenly (PATNet)
    balanced  takes the classes in turn; each class uses its images in a random order, all of them before any is repeated

    Supports never include the query. They are drawn without replacement, or with it where `repeats`. A 1-shot support is
    the first of the 5-shot supports of the same episode.

    way: N classes in an episode. The query and its class are drawn as above. N - 1 other classes of this sampler are
    added, whether the query has them or not, and the ways are in random order. No image is a support of two ways.
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
        pairs: np.ndarray | None = None,
        places: np.ndarray | None = None,
        repeats: bool = False,
    ) -> None:
        """keep: (N,) bool, the images that may be used.

        pairs   (N, C + 1) bool, the supports of each class, instead of the area rule; every order that begins with a
                query then walks or draws these pairs
        places  (N,) of the images in the order of the list; None: as in the index

        Raises DataError for a class with too few images, ConfigError for more ways than classes.
        """
        _require_ways(way, classes, what)
        large = (index.areas >= min_area if pairs is None else pairs) & keep[:, None]
        self._supports = {c: np.flatnonzero(large[:, c]) for c in classes}
        # The query may be one of the class's images, and so may all supports of an episode.
        needed = way * shot + 1 if not repeats else (way - 1) * shot + 2
        few = [c for c in classes if len(self._supports[c]) < needed]
        kind = f"{shot}-shot" if way == 1 else f"{way}-way {shot}-shot"
        if few and too_few_images == "error":
            counts = listing([f"{index.class_name(c)} has {len(self._supports[c])}" for c in few])
            rule, lower = (
                (f"with at least {min_area} px", ", lower dataset.min_area") if pairs is None else ("listed", "")
            )
            raise DataError(
                f"{what}: {kind} episodes need {needed} images of each class {rule}, {counts}; add images{lower}, or leave "
                "such classes out with dataset.too_few_images=skip"
            )
        self.skipped = tuple(few)
        self.classes = tuple(c for c in classes if c not in set(few))
        self.index, self.way, self.shot, self.seed, self.order = index, way, shot, seed, order
        self.repeats = repeats
        of_classes = large[:, list(self.classes)]
        if order == "pairs" or pairs is not None:
            self.queries, column = np.nonzero(of_classes)
            self._query_classes: np.ndarray | None = np.array(self.classes, int)[column]
        else:
            # As in the papers, an image is listed if one class is large enough in it.
            self.queries, self._query_classes = np.flatnonzero(of_classes.any(axis=1)), None
        if places is not None:
            by_place = np.argsort(places[self.queries], kind="stable")
            self.queries = self.queries[by_place]
            self._query_classes = None if self._query_classes is None else self._query_classes[by_place]
        if not len(self.queries):
            raise DataError(f"{what}: no class has the {needed} images that {kind} episodes need; add images")
        _require_ways(way, self.classes, f"{what}, without the classes of too few images,")

    def __len__(self) -> int:
        """The number of queries, or of pairs, which is one epoch."""
        return len(self.queries)

    def images(self) -> np.ndarray:
        """Every image that an episode may use, ascending."""
        return np.unique(np.concatenate([self.queries, *(self._supports[c] for c in self.classes if self.shot)]))

    def __getitem__(self, number: int) -> EpisodeSpec:
        if number < 0:
            raise IndexError(f"episode numbers start at 0, got {number}")
        random = np.random.default_rng([self.seed, number, _EPISODE])
        query, query_class = self._query(number, random)
        class_ids = self._ways(number, query_class)
        # The query's class continues the random stream of the query, so that its supports do not depend on the ways.
        streams = [
            random if c == query_class else np.random.default_rng([self.seed, number, _WAYS, c]) for c in class_ids
        ]
        images = [self._images(c, query, stream) for c, stream in zip(class_ids, streams)]
        taken = {query}
        supports: list[list[int]] = [[] for _ in class_ids]
        # One at a time, each way in turn, so that the first support does not depend on the shot.
        for _ in range(self.shot):
            for chosen, of_class in zip(supports, images):
                again = chosen if self.repeats else ()
                chosen.append(next(image for image in of_class if image not in taken or image in again))
                taken.add(chosen[-1])
        return EpisodeSpec(number, class_ids, query, tuple(image for chosen in supports for image in chosen))

    def _ways(self, number: int, query_class: int) -> tuple[int, ...]:
        """The query's class and way - 1 others, in random order."""
        random = np.random.default_rng([self.seed, number, _WAYS])
        others = random.permutation([c for c in self.classes if c != query_class])[: self.way - 1]
        return tuple(int(c) for c in random.permutation([query_class, *others]))

    def _images(self, class_id: int, query: int, random: np.random.Generator) -> Iterator[int]:
        """The class's images without the query, drawn evenly with replacement, endlessly."""
        candidates = self._supports[class_id]
        # The query's position among them is skipped, without copying the list.
        skipped = int(np.searchsorted(candidates, query))
        is_one = bool(skipped < len(candidates) and candidates[skipped] == query)
        while True:
            position = int(random.integers(len(candidates) - is_one))
            yield int(candidates[position + (is_one and position >= skipped)])

    def _query(self, number: int, random: np.random.Generator) -> tuple[int, int]:
        """The query and its class."""
        if self.order in ("by_class", "in_turn"):
            turn = number % len(self.classes) if self.order == "in_turn" else random.integers(len(self.classes))
            class_id = self.classes[turn]
            return int(random.choice(self._supports[class_id])), class_id
        if self.order == "balanced":
            turn, column = divmod(number, len(self.classes))
            class_id = self.classes[column]
            images = self._supports[class_id]
            walk, position = divmod(turn, len(images))
            return int(images[_pass_order(self.seed, class_id, walk, len(images))[position]]), class_id
        position = self._position(number, random)
        query = int(self.queries[position])
        if self._query_classes is not None:
            return query, int(self._query_classes[position])
        return query, int(random.choice([c for c in self.classes if self.index.areas[query, c] > 0]))

    def _position(self, number: int, random: np.random.Generator) -> int:
        if self.order in WALKS:
            return number % len(self.queries)
        if self.order == "random":
            return int(random.integers(len(self.queries)))
        epoch, position = divmod(number, len(self.queries))
        return int(_epoch_order(self.seed, epoch, len(self.queries))[position])


def _require_ways(way: int, classes: Sequence[int], what: str) -> None:
    if way > max(1, len(classes)):
        raise ConfigError(f"way={way}: {what} has {len(classes)} classes to draw from; set way={len(classes)} or less")


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, _EPOCH]).permutation(n)


# Classes take turns, so one order of every class is needed at a time.
@lru_cache(maxsize=128)
def _pass_order(seed: int, class_id: int, walk: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, class_id, _PASS, walk]).permutation(n)
