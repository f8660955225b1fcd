"""What an evaluation has to do: every episode of every seed and shot by its query, each different one once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fss_svf.data.manifest import EpisodeList

# The image numbers of an episode's supports, way by way.
Supports = tuple[int, ...]


class Support(NamedTuple):
    """An image as a support. Its mask shows `class_id`, and 255 on the other classes of the episode.

    class_ids  all classes of the episode, ascending
    """

    image: int
    class_id: int
    class_ids: tuple[int, ...]


class Query(NamedTuple):
    """An image as a query."""

    image: int


class Place(NamedTuple):
    """Where an episode stands: its shot, the number of its run, its number in that run."""

    shot: int
    run: int
    number: int


@dataclass(frozen=True)
class Group:
    """All episodes of one query and the same classes.

    measured  ways and their classes, as far as the query holds them
    episodes  the different ones by their supports, each with all its places
    """

    query: Query
    class_ids: tuple[int, ...]
    measured: Mapping[int, int]
    episodes: Mapping[Supports, Sequence[Place]]

    def __len__(self) -> int:
        return sum(map(len, self.episodes.values()))

    def supports(self, images: Supports) -> list[Support]:
        """The supports of an episode of this group, way by way."""
        shot = len(images) // len(self.class_ids)
        # Whatever the order of the ways, an image's mask is the same.
        classes = tuple(sorted(self.class_ids))
        return [Support(image, self.class_ids[i // shot], classes) for i, image in enumerate(images)]

    def all_supports(self) -> list[Support]:
        """Each different one once, in the order of the episodes."""
        return list(dict.fromkeys(s for images in self.episodes for s in self.supports(images)))

    def needs(self) -> list[Query | Support]:
        """What must be encoded before the group can run."""
        return [self.query, *self.all_supports()]


@dataclass(frozen=True)
class ImageRoles:
    """An image, and what it is encoded as."""

    image: int
    query: Query | None
    supports: tuple[Support, ...]

    def __iter__(self) -> Iterator[Query | Support]:
        return iter((*([self.query] if self.query else []), *self.supports))


def group_episodes(lists: Mapping[int, Sequence[EpisodeList]]) -> list[Group]:
    """Groups in the order of their classes, so that codes of a class's supports are needed for a short while.

    lists: of each shot, one a run.
    """
    found: dict[tuple[tuple[int, ...], int], dict[Supports, list[Place]]] = defaultdict(lambda: defaultdict(list))
    measured: dict[tuple[tuple[int, ...], int], Mapping[int, int]] = {}
    for shot, runs in lists.items():
        for run, episodes in enumerate(runs):
            for number, spec in enumerate(episodes.specs):
                key = spec.class_ids, spec.query
                found[key][spec.supports].append(Place(shot, run, number))
                measured.setdefault(key, episodes.measured(spec))
    return [
        Group(Query(query), class_ids, measured[class_ids, query], dict(found[class_ids, query]))
        for class_ids, query in sorted(found)
    ]


def roles_of_images(groups: Sequence[Group]) -> list[ImageRoles]:
    """Every image once, in the order in which the groups need it first."""
    roles: dict[int, dict[Query | Support, None]] = {}
    for group in groups:
        for key in group.needs():
            roles.setdefault(key.image, {})[key] = None
    return [
        ImageRoles(
            image,
            next((key for key in keys if isinstance(key, Query)), None),
            tuple(key for key in keys if isinstance(key, Support)),
        )
        for image, keys in roles.items()
    ]


def share(groups: Sequence[Group], positions: Sequence[int], rank: int, ranks: int) -> list[int]:
    """The positions that process `rank` of `ranks` works on: neighbours, who share supports; of about equal work."""
    # To encode a query costs about as much as to segment a few episodes.
    costs = [len(groups[position].episodes) + 4 for position in positions]
    total, before, mine = sum(costs), 0, []
    for position, cost in zip(positions, costs):
        if (2 * before + cost) * ranks // (2 * total) == rank:
            mine.append(position)
        before += cost
    return mine
