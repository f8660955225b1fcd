"""Episodes by their query: what is encoded, compared and segmented once, whatever number of episodes hold it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fss_svf.data.manifest import EpisodeList

# The image numbers of an episode's supports, way by way.
SupportIds = tuple[int, ...]


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


class EpisodeId(NamedTuple):
    """An episode by its shot, the number of its run, and its number in that run."""

    shot: int
    run: int
    number: int


@dataclass(frozen=True)
class QueryGroup:
    """All episodes of one query and the same classes.

    measured  ways and their classes, as far as the query holds them
    episodes  the different ones by their supports, each with every number that it has
    masked    the classes that are ignored in the mask of a support of another one
    """

    query: Query
    class_ids: tuple[int, ...]
    measured: Mapping[int, int]
    episodes: Mapping[SupportIds, Sequence[EpisodeId]]
    masked: tuple[int, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.episodes.values()))

    def supports(self, images: SupportIds) -> list[Support]:
        """The supports of an episode of this group, way by way."""
        shot = len(images) // len(self.class_ids)
        return [Support(image, self.class_ids[i // shot], self.masked) for i, image in enumerate(images)]

    def all_supports(self) -> list[Support]:
        """Each different one once, in the order of the episodes."""
        return list(dict.fromkeys(s for images in self.episodes for s in self.supports(images)))

    def needs(self) -> list[Query | Support]:
        """What must be encoded before the group can run."""
        return [self.query, *self.all_supports()]


def group_episodes(lists: Mapping[int, Sequence[EpisodeList]]) -> list[QueryGroup]:
    """Groups in the order of their classes, so that features of a class's supports are needed for a short while.

    lists: of each shot, one a run.
    """
    grouped: dict[tuple[tuple[int, ...], int], dict[SupportIds, list[EpisodeId]]] = defaultdict(
        lambda: defaultdict(list)
    )
    of_first: dict[tuple[tuple[int, ...], int], tuple[Mapping[int, int], tuple[int, ...]]] = {}
    for shot, runs in lists.items():
        for run, episodes in enumerate(runs):
            for number, spec in enumerate(episodes.specs):
                key = spec.class_ids, spec.query
                grouped[key][spec.supports].append(EpisodeId(shot, run, number))
                if key not in of_first:
                    # Whatever the order of the ways, a support's mask is the same.
                    of_first[key] = episodes.measured(spec), spec.masked_classes
    return [
        QueryGroup(Query(key[1]), key[0], of_first[key][0], dict(grouped[key]), of_first[key][1])
        for key in sorted(grouped)
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
