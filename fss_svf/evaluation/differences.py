"""By how much results of the same episodes differ, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fss_svf.evaluation.episode_table import EpisodeTable
from fss_svf.evaluation.intervals import LEVEL, interval, measured, resampled, students_interval
from fss_svf.evaluation.metric import Scores, mean_scores

# With fewer episodes a seed the interval covers less than it says (docs/results.md).
_FEW = 50

# The tables of a result, a seed each, and whether a class never drawn counts as 0 there.
Result = tuple[list[EpisodeTable], bool]


def differences(a: Sequence[Result], b: Sequence[Result], classes: Sequence[str] | None) -> dict[str, Any]:
    """Of mIoU, FB-IoU, each class, and of the mean of `classes` (`miou_of_classes`, where some are given).

    a, b: one result each, or several trainings of two things: the i-th of both are of one training seed. All are of the
    same episodes. Each entry has the means `a` and `b` and their `difference`, all fractions; the bootstrap `interval`
    over episodes of the difference and the share of resamples where `b_better`; and `trainings`, the difference of
    each, with `trainings_interval`, Student's (None for one training).
    """
    at, bt = ([measured(*result) for result in side] for side in (a, b))
    # The same episodes are drawn on both sides, and for all trainings.
    of_a, of_b = (mean_scores([resampled(*result) for result in side]) for side in (a, b))
    resamples = of_b - of_a
    names = a[0][0][0].classes
    episodes = sum(table.measured.sum(0) for table in a[0][0])

    def of(column: int) -> dict[str, Any]:
        of_at, of_bt = (np.array([scores.per_class[0, column] for scores in side]) for side in (at, bt))
        return _difference(of_at, of_bt, resamples.per_class[:, column])

    found = {
        "miou": _difference(_of("miou", at), _of("miou", bt), resamples.miou),
        "fb_iou": _difference(_of("fb_iou", at), _of("fb_iou", bt), resamples.fb_iou),
        "per_class": {name: {"episodes": int(episodes[c]), **of(c)} for c, name in enumerate(names)},
    }
    if classes is not None:
        columns = [names.index(name) for name in classes]
        of_at, of_bt = (np.array([scores.miou_of(columns)[0] for scores in side]) for side in (at, bt))
        found["miou_of_classes"] = {
            "classes": list(classes),
            "episodes": int(sum(episodes[c] for c in columns)),
            **_difference(of_at, of_bt, of_b.miou_of(columns) - of_a.miou_of(columns)),
        }
    return found


def _of(number: str, side: Sequence[Scores]) -> np.ndarray:
    return np.array([getattr(scores, number)[0] for scores in side])


def _difference(a: np.ndarray, b: np.ndarray, resamples: np.ndarray) -> dict[str, Any]:
    """a, b: (N,), of each training; resamples: (R,), of their mean difference. None for what is not measured."""
    of_a, of_b = (None if np.isnan(values).any() else float(values.mean()) for values in (a, b))
    known = resamples[~np.isnan(resamples)]
    trainings = [] if of_a is None or of_b is None else (b - a).tolist()
    return {
        "a": of_a,
        "b": of_b,
        "difference": None if of_a is None or of_b is None else of_b - of_a,
        "interval": interval(resamples),
        "b_better": float((known > 0).mean()) if len(known) else None,
        "trainings": trainings,
        "trainings_interval": students_interval(trainings),
    }


def verdict(miou: Mapping[str, Any], equal_counts: bool, episodes: int) -> str:
    """What may be said of a difference in mIoU. equal_counts: of every episode; episodes: a seed."""
    if equal_counts:
        return "No difference: the counts of every episode are equal."
    points, over_trainings = 100 * miou["difference"], miou["trainings_interval"]
    intervals = [miou["interval"]] if over_trainings is None else [miou["interval"], over_trainings]
    how_sure = f"{LEVEL:.0%} interval {_ends(miou['interval'])}, over episodes alone"
    if over_trainings is not None:
        how_sure = (
            f"{LEVEL:.0%} intervals {_ends(miou['interval'])} over episodes, {_ends(over_trainings)} over "
            f"{len(miou['trainings'])} trainings"
        )
    if all(low > 0 or high < 0 for low, high in intervals):
        sentence = f"b is {'better' if points > 0 else 'worse'} by {abs(points):.2f} mIoU ({how_sure})."
    else:
        sentence = f"The difference of {points:+.2f} mIoU is not significant at {LEVEL:.0%} ({how_sure})."
    if episodes < _FEW:
        sentence += f" {episodes} episodes a seed are few: the interval is too narrow."
    return sentence


def _ends(of: tuple[float, float]) -> str:
    return f"{100 * of[0]:+.2f} to {100 * of[1]:+.2f}"
