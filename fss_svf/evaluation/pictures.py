"""Episodes to look at: some by their number, the best and the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fss_svf.data.episodes import EpisodeSpec
from fss_svf.data.loading import Episodes
from fss_svf.data.manifest import EpisodeList
from fss_svf.evaluation.episode_table import EpisodeTable
from fss_svf.evaluation.metric import FOREGROUND, count_masks, iou
from fss_svf.evaluation.runs import predicted
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.reporting.pictures import EpisodePicture

# COCO's folds have 20 novel classes.
_MOST_CLASSES = 20


def pick(episodes: EpisodeList, table: EpisodeTable, number: int) -> dict[str, EpisodeList]:
    """`number` episodes each: the first as "episodes", the best and the worst by the IoU of their foreground.

    Of one query the best or worst episode alone, or they would all show the same image. "gallery" holds all of them
    once, and of each class its best and worst episode.
    """
    of_episode = np.nan_to_num(iou(table.counts[:, FOREGROUND]))
    order = sorted(range(len(episodes)), key=lambda n: of_episode[n])
    chosen = {"episodes": list(range(len(episodes)))[:number]}
    for what, ranked in (("worst", order), ("best", order[::-1])):
        of_query: dict[int, int] = {}
        for n in ranked:
            of_query.setdefault(episodes[n].query, n)
        chosen[what] = list(of_query.values())[:number]
    if number:
        chosen["gallery"] = _gallery(episodes, order, chosen)
    return {what: replace(episodes, specs=tuple(episodes[n] for n in numbers)) for what, numbers in chosen.items()}


def _gallery(episodes: EpisodeList, order: Sequence[int], chosen: Mapping[str, Sequence[int]]) -> list[int]:
    """Numbers in ascending order. `order`: all of them, the worst first."""
    extremes: dict[tuple[int, ...], tuple[int, int]] = {}
    for n in order:
        classes = tuple(sorted(episodes[n].class_ids))
        worst, _ = extremes.get(classes, (n, n))
        extremes[classes] = worst, n
    # Of several ways there are very many sets of classes, and the first ones do.
    of_classes = [n for pair in list(extremes.values())[:_MOST_CLASSES] for n in pair]
    return sorted({*of_classes, *(n for numbers in chosen.values() for n in numbers)})


def pick_exchanged(right: EpisodeList, wrong: EpisodeList, number: int) -> dict[str, EpisodeList]:
    """The first `number` episodes with wrong supports (reliance.py), of different queries, in three lists of equal length.

    "right" and "wrong" have those supports; "none" has the wrong ones with nothing marked. So an episode whose wrong
    supports show its own class too is left out.
    """
    of_query: dict[int, EpisodeSpec] = {}
    for spec in wrong.specs:
        if not (wrong.index.areas[list(spec.supports), spec.class_id] > 0).any():
            of_query.setdefault(spec.query, spec)
    chosen = tuple(of_query.values())[:number]
    # Masks show class_ids, of which these images have nothing.
    specs = {
        "right": tuple(right[spec.number] for spec in chosen),
        "wrong": chosen,
        "none": tuple(replace(spec, shown=()) for spec in chosen),
    }
    return {what: replace(right, specs=of_list) for what, of_list in specs.items()}


def pictures_of(
    task: EvaluationTask, options: EngineOptions, chosen: Mapping[str, EpisodeList]
) -> dict[str, list[EpisodePicture]]:
    """The pictures of every list, whose episodes run together: they may show the same images."""
    every = replace(next(iter(chosen.values())), specs=tuple(s for episodes in chosen.values() for s in episodes.specs))
    drawn = iter(episode_pictures(task, options, every))
    return {what: [next(drawn) for _ in episodes.specs] for what, episodes in chosen.items()}


def episode_pictures(task: EvaluationTask, options: EngineOptions, episodes: EpisodeList) -> list[EpisodePicture]:
    """A row of a picture for each episode, which is run once more."""
    images = Episodes(task.split, task.annotation)
    found = []
    for spec, predicted_mask, truth in predicted(task, options, episodes):
        # Of a whole list each way is a class of the task, and there are too many supports to look at.
        names, ways = spec.class_ids, range(1, spec.way + 1)
        if episodes.whole:
            names, ways = tuple(c for c in task.classes if episodes.index.areas[spec.query, c] > 0), range(0)
        several = max(2, spec.way) if episodes.whole else spec.way
        counts = count_masks(predicted_mask[None], truth, several)[0, FOREGROUND].numpy()
        query_image = task.split.image(spec.query)
        # A padded label is shown without its padding, which is below and to the right.
        rows, columns = truth.shape
        if task.protocol.label == "resized":
            rows, columns = task.transform.inner(*query_image.shape[:2])
        found.append(
            EpisodePicture(
                number=spec.number,
                classes=tuple(episodes.index.class_name(c) for c in names),
                iou=float(np.nan_to_num(iou(counts))),
                # Wrong supports are marked as the model sees them.
                supports=[
                    images.support(replace(spec, class_ids=spec.shown or spec.class_ids), 0, way) for way in ways
                ],
                query_image=query_image,
                truth=truth[:rows, :columns].numpy(),
                prediction=predicted_mask[:rows, :columns].numpy(),
            )
        )
    return found
