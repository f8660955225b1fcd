"""Episodes to look at: some by their number, the best and the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fss_svf.data.loading import Episodes
from fss_svf.data.manifest import EpisodeList
from fss_svf.evaluation.counts import EpisodeCount, count_episode
from fss_svf.evaluation.engine import Engine, Task
from fss_svf.evaluation.runs import predicted
from fss_svf.reporting.pictures import EpisodePicture


def pick(episodes: EpisodeList, counts: Sequence[EpisodeCount], number: int) -> dict[str, EpisodeList]:
    """`number` episodes each: the first as "episodes", the best and the worst by the IoU of their foreground.

    Of one query the best or worst episode alone, or they would all show the same image.
    """
    order = sorted(range(len(episodes)), key=lambda n: _iou(counts[n]))
    chosen = {"episodes": list(range(len(episodes)))[:number]}
    for what, ranked in (("worst", order), ("best", order[::-1])):
        of_query: dict[int, int] = {}
        for n in ranked:
            of_query.setdefault(episodes[n].query, n)
        chosen[what] = list(of_query.values())[:number]
    return {what: replace(episodes, specs=tuple(episodes[n] for n in numbers)) for what, numbers in chosen.items()}


def pictures_of(task: Task, engine: Engine, chosen: Mapping[str, EpisodeList]) -> dict[str, list[EpisodePicture]]:
    """The pictures of every list, whose episodes run together: they may show the same images."""
    every = replace(next(iter(chosen.values())), specs=tuple(s for episodes in chosen.values() for s in episodes.specs))
    drawn = iter(episode_pictures(task, engine, every))
    return {what: [next(drawn) for _ in episodes.specs] for what, episodes in chosen.items()}


def episode_pictures(task: Task, engine: Engine, episodes: EpisodeList) -> list[EpisodePicture]:
    """A row of a picture for each episode, which is run once more."""
    images = Episodes(task.split, task.annotation)
    found = []
    for spec, said, truth in predicted(task, engine, episodes):
        names = ", ".join(episodes.index.class_name(c) for c in spec.class_ids)
        iou = _iou(count_episode(episodes.measured(spec), said, truth))
        found.append(
            EpisodePicture(
                title=f"{names}  IoU {100 * iou:.0f}",
                supports=[images.support(spec, 0, way) for way in range(1, spec.way + 1)],
                query_image=task.split.image(spec.query),
                truth=truth.numpy(),
                prediction=said.numpy(),
            )
        )
    return found


def _iou(count: EpisodeCount) -> float:
    both, either = count.foreground
    return both / max(either, 1)
