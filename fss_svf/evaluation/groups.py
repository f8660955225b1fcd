"""Episodes by their query: what is encoded, compared and segmented once, whatever number of episodes hold it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from fss_svf.data.manifest import EpisodeList

# The image numbers of an episode's supports, way by way.
SupportIds = tuple[int, ...]
# What tells lists of episodes apart: the shot, and with wrong supports (reliance.py) also which class these show.
ListKey = int | tuple[int, str]
Key = TypeVar("Key", bound=ListKey)


class Support(NamedTuple):
    """An image as a support. Its mask shows `class_id`, and 255 on the others of `masked`.

    masked  all classes of the episode, ascending; none where a mask is of its class alone
    """

    image: int
    class_id: int
    masked: tuple[int, ...]


@dataclass(frozen=True)
class Query:
    """An image as a query."""

    image: int


@dataclass(frozen=True)
class Label:
    """The label of a query image."""

    image: int


# The classes that the supports show, those to be segmented, and the query.
_GroupKey = tuple[tuple[int, ...], tuple[int, ...], int]


class EpisodeId(NamedTuple):
    """An episode by its lists (by their shot, as a rule), the number of its run, and its number in that run."""

    lists: ListKey
    run: int
    number: int


@dataclass(frozen=True)
class QueryGroup:
    """All episodes of one query and the same classes.

    class_ids  the classes that are to be segmented
    measured   ways and their classes, as far as the query holds them
    episodes   the different ones by their supports, each with every number that it has
    masked     the classes that are ignored in the mask of a support of another one
    shown      the classes that the supports show where they are others, or ()
    """

    query: Query
    class_ids: tuple[int, ...]
    measured: Mapping[int, int]
    episodes: Mapping[SupportIds, Sequence[EpisodeId]]
    masked: tuple[int, ...] = ()
    shown: tuple[int, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.episodes.values()))

    def supports(self, images: SupportIds) -> list[Support]:
        """The supports of an episode of this group, way by way."""
        shot = len(images) // len(self.class_ids)
        shown = self.shown or self.class_ids
        return [Support(image, shown[i // shot], self.masked) for i, image in enumerate(images)]

    def all_supports(self) -> list[Support]:
        """Each different one once, in the order of the episodes."""
        return list(dict.fromkeys(s for images in self.episodes for s in self.supports(images)))

    def needs(self) -> list[Query | Support]:
        """What must be encoded before the group can run."""
        return [self.query, *self.all_supports()]


def group_episodes(lists: Mapping[Key, Sequence[EpisodeList]]) -> list[QueryGroup]:
    """Groups in the order of the classes that their supports show, whose features are then needed for a short while.

    lists: of each key, one a run.
    """
    grouped: dict[_GroupKey, dict[SupportIds, list[EpisodeId]]] = defaultdict(lambda: defaultdict(list))
    of_first: dict[_GroupKey, tuple[Mapping[int, int], tuple[int, ...]]] = {}
    for name, runs in lists.items():
        for run, episodes in enumerate(runs):
            for number, spec in enumerate(episodes.specs):
                key = spec.shown or spec.class_ids, spec.class_ids, spec.query
                grouped[key][spec.supports].append(EpisodeId(name, run, number))
                if key not in of_first:
                    # Whatever the order of the ways, a support's mask is the same.
                    of_first[key] = episodes.measured(spec), spec.masked_classes
    return [
        QueryGroup(Query(query), classes, measured, dict(grouped[key]), masked, () if shown == classes else shown)
        for key in sorted(grouped)
        for shown, classes, query in [key]
        for measured, masked in [of_first[key]]
    ]


def roles_of_images(groups: Sequence[QueryGroup]) -> dict[int, list[Query | Support]]:
    """Of every image all that it is encoded as, the query first; in the order in which the groups need the images first."""
    roles: dict[int, dict[Query | Support, None]] = {}
    for group in groups:
        for key in group.needs():
            roles.setdefault(key.image, {})[key] = None
    return {image: sorted(keys, key=lambda key: isinstance(key, Support)) for image, keys in roles.items()}


def share(groups: Sequence[QueryGroup], positions: Sequence[int], rank: int, ranks: int) -> list[int]:
    """The positions that process `rank` of `ranks` works on: neighbours, who share supports; of about equal work."""
    # To encode a query costs about as much as to segment a few episodes.
    costs = [len(groups[position].episodes) + 4 for position in positions]
    total, before, mine = sum(costs), 0, []
    for position, cost in zip(positions, costs):
        if (2 * before + cost) * ranks // (2 * total) == rank:
            mine.append(position)
        before += cost
    return mine
