"""A dataset, a fold of it, and the episodes of a protocol."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from numbers import Integral
from pathlib import Path
from typing import Any

from fss_svf import conf_files
from fss_svf.config import EpisodeFiles, FoldNumber, Protocol, check_fold, check_size, require
from fss_svf.data import loading
from fss_svf.data.augment import EvalTransform
from fss_svf.data.dataset import Dataset, Split
from fss_svf.data.fold import Fold
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError
from fss_svf.evaluation.plan import Plan, make_plan
from fss_svf.evaluation.untrained import choose
from fss_svf.registry import DATASETS, Choice


@dataclass(frozen=True)
class LoadedDataset:
    """A prepared dataset.

    name    of its YAML in conf/dataset/
    choice  what it is registered as, and its options
    """

    name: str
    choice: Choice
    dataset: Dataset

    @cached_property
    def split(self) -> Split:
        """The images that are tested. Raises DataError where the dataset is not prepared."""
        return self.dataset.split("val")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 1..C."""
        return self.split.index.class_names

    def fold(self, number: FoldNumber) -> LoadedFold:
        """Fold `number`, whose novel classes are tested; "all" has base classes alone. Raises ConfigError for another."""
        check_fold(number, self.choice)
        return LoadedFold(self, Fold(self.dataset.options, self.class_names, number))


@dataclass(frozen=True)
class LoadedFold:
    """A fold of a dataset."""

    data: LoadedDataset
    fold: Fold

    @property
    def novel(self) -> list[str]:
        """Names of the classes that are tested."""
        return self.fold.names(self.fold.novel)

    @property
    def base(self) -> list[str]:
        """Names of the classes that a model may be trained on."""
        return self.fold.names(self.fold.base)


class Episodes:
    """The episodes of a protocol on a fold, of all its runs one after the other. `evaluate` measures a model on them.

    episodes[n], and iterating, give each as an Episode of one (B = 1) of normalised float images, its query mask in the
    input's size.
    """

    def __init__(self, fold: LoadedFold, plan: Plan, shot: int, size: int | None) -> None:
        self.fold, self.plan, self.shot, self.size = fold, plan, shot, size

    @property
    def protocol(self) -> Protocol:
        return self.plan.protocol

    def __len__(self) -> int:
        return self._ends[-1]

    @cached_property
    def _ends(self) -> list[int]:
        """The number of episodes of each run and of those before it."""
        return list(accumulate(map(len, self.plan.episodes[self.shot])))

    def __getitem__(self, number: int) -> Episode:
        if not 0 <= number < len(self):
            raise IndexError(f"episode {number} of {len(self)}")
        run = bisect_right(self._ends, number)
        place = number - (self._ends[run - 1] if run else 0)
        spec, data = self.plan.episodes[self.shot][run][place], self.fold.data
        make = loading.Episodes(data.split, data.dataset.options.support_annotation)
        transform = self.transform(self.size)
        pairs = [transform(*pair) for pair in (make.query(spec), *make.supports(spec))]
        return loading.episode_of(pairs, spec, place).normalized()

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))

    def transform(self, size: int | None) -> EvalTransform:
        """How an image becomes the input. Raises ConfigError without a size."""
        if size is None:
            raise ConfigError("size: protocol and model fix none; give the input's pixels, episodes(..., size=473)")
        return EvalTransform(size, self.protocol.resize, self.protocol.pad)


def load_dataset(
    name: str, root: str | Path | None = None, *, prepare: bool = False, workers: int | None = 0, **options: Any
) -> LoadedDataset:
    """dataset=NAME with the options of conf/dataset/NAME.yaml, or those given here.

    root     the folder with its files; None: the YAML's, such as data/pascal
    prepare  do what `fss-svf prepare` does first; done before, it returns at once
    workers  processes that prepare; 0: this one, None: one a core. They import the script, which must stand under
             `if __name__ == "__main__":`

    Raises ConfigError for an unknown name or option, DataError.

    >>> data = fss_svf.load_dataset("toy", root="data/toy", train_images=180, val_images=120, seed=3, prepare=True)
    >>> data.fold(0).novel
    ['cat', 'car', 'apple', 'umbrella', 'house']
    """
    values = conf_files.values(f"dataset/{name}", {**options, **({} if root is None else {"root": root})})
    choice = choose(DATASETS, values)
    dataset: Dataset = DATASETS.build(choice)
    if prepare:
        dataset.prepare(workers)
    return LoadedDataset(name, choice, dataset)


def episodes(
    fold: LoadedFold,
    protocol: str | Protocol = "svf",
    shot: int = 1,
    *,
    size: int | None = None,
    way: int | None = None,
) -> Episodes:
    """The episodes that `fss-svf evaluate protocol=... shot=...` draws.

    protocol  a name of conf/protocol/, or a Protocol: Protocol.load("svf", episodes=200)
    size      of the input in pixels; None: the protocol's
    way       classes an episode; None: 1, or with protocol.classes=all those that need supports, base ones first

    Raises ConfigError, DataError.

    >>> episode = fss_svf.episodes(fold, "svf", shot=5, size=97)[0]
    >>> episode.support_images.shape, episode.support_masks.shape
    (torch.Size([1, 5, 3, 97, 97]), torch.Size([1, 5, 97, 97]))
    """
    chosen = Protocol.load(protocol) if isinstance(protocol, str) else protocol
    return drawn(fold, chosen, shot, size, way)


def drawn(
    fold: LoadedFold,
    protocol: Protocol,
    shot: int,
    size: int | None,
    way: int | None,
    usual_way: int = 1,
    base_learner: bool = False,
) -> Episodes:
    """As `episodes`. usual_way: where way is None and the protocol leaves it open; base_learner: as of make_plan."""
    if not isinstance(shot, Integral):
        raise ConfigError(f"shot: expected one whole number, got {shot!r}; call it once for each")
    require(shot >= 1, "shot", "a whole number >= 1", shot)
    require(way is None or way >= 1, "way", "a whole number >= 1", way)
    if way is None and protocol.classes == "novel":
        way = usual_way
    size = protocol.size if size is None else size
    if size is not None:
        check_size(size)
    index, files = fold.data.split.index, EpisodeFiles(None, None)
    plan = make_plan(index, fold.fold, (shot,), protocol, files, way, base_learner)
    return Episodes(fold, plan, shot, size)
