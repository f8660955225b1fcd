"""result.json, as docs/results.md says, and the lines that tell of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from statistics import fmean as mean
from typing import Any

from fss_svf.config import to_mapping
from fss_svf.data.dataset import Dataset
from fss_svf.evaluation.counts import Counts
from fss_svf.evaluation.episode_table import EpisodeTable, total_counts
from fss_svf.evaluation.plan import Plan
from fss_svf.evaluation.runs import Run
from fss_svf.evaluation.statistics import LEVEL, RESAMPLES, deviation, interval, resampled
from fss_svf.evaluation.subject import Subject
from fss_svf.model import trainable_values

log = logging.getLogger(__name__)


def make_result(
    subject: Subject,
    plan: Plan,
    shot: int,
    runs: list[Run],
    tables: list[EpisodeTable],
    names: Mapping[int, str],
    data: Mapping[str, Any],
    precision: str,
) -> dict[str, Any]:
    """result.json, as docs/results.md says: every number a fraction; means over runs, whose own stand in `runs`."""
    protocol = plan.protocol
    zero = plan.classes if protocol.never_drawn == "zero" else ()
    each = [run.counts.per_class(zero) for run in runs]
    per_class: dict[str, float | None] = {}
    for c, name in names.items():
        values = [iou[c] for iou in each if c in iou]
        per_class[name] = mean(values) if values else None
    scores = [_scores(run.counts, zero) for run in runs]
    also = {name: _mean([_scores(run.counts_of(name), zero) for run in runs]) for name in runs[0].others}
    if runs[0].base is not None:
        base = [run.base.scores(plan.classes, protocol.never_drawn == "zero") for run in runs if run.base is not None]
        also |= {name: _mean([scores[name] for scores in base]) for name in base[0]}
    resamples = resampled(tables, protocol.never_drawn == "zero")
    return {
        **_mean(scores),
        "std": {key: deviation([score[key] for score in scores]) for key in ("miou", "fb_iou")},
        "interval": {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "miou": interval(resamples.miou),
            "fb_iou": interval(resamples.fb_iou),
        },
        "per_class": per_class,
        "per_class_counts": total_counts(tables),
        "fold": subject.fold,
        "way": plan.way,
        "shot": shot,
        "method": subject.method,
        "backbone": subject.backbone,
        "tuning": subject.tuning,
        "dataset": subject.dataset.name,
        "protocol": to_mapping(protocol),
        "protocol_hash": protocol.hash(size=subject.size, data=data, **_unless("float32", precision=precision)),
        "size": subject.size,
        "precision": precision,
        "num_episodes": protocol.episodes * protocol.runs,
        "seeds": [protocol.seed + i for i in range(protocol.runs)],
        "episodes_per_class": {name: sum(int(r.counts.episodes[c]) for r in runs) for c, name in names.items()},
        "also": also,
        "runs": scores,
        "backbone_weights": subject.weights,
        "backbone_weights_hash": subject.weights_hash,
        "trainable_backbone_values": trainable_values(subject.model.backbone),
        "checkpoint": subject.checkpoint,
        "data": data,
        "images_listed": plan.listed,
        "classes_left_out": [names[c] for c in plan.left_out],
    }


def _unless(usual: str, **value: str) -> dict[str, str]:
    """Nothing where the value is the usual one, so that results of before it was told keep their hash."""
    return {} if usual in value.values() else value


def shares(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values()) or 1.0
    return "time: " + ", ".join(f"{what} {100 * value / total:.0f}%" for what, value in seconds.items())


def _scores(counts: Counts, zero: Iterable[int]) -> dict[str, float]:
    return {"miou": counts.miou(zero), "fb_iou": counts.fb_iou()}


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {key: mean(score[key] for score in scores) for key in scores[0]}


def data_choices(dataset: Dataset, largest_shot: int) -> dict[str, Any]:
    """The dataset's options that decide what is measured; the same for every fold."""
    keys = ("class_partition", "folds", "min_area", "mask_mode", "support_annotation", "too_few_images")
    found = {key: getattr(dataset.options, key) for key in keys if hasattr(dataset.options, key)}
    # Which classes are left out depends on the largest shot.
    return {**found, "largest_shot": largest_shot} if found["too_few_images"] == "skip" else found


def in_words(result: Mapping[str, Any]) -> str:
    """The numbers in percent with how sure they are, as one line."""
    seeds, episodes = len(result["seeds"]), result["num_episodes"]
    over = f"{episodes:,} episodes" if seeds == 1 else f"{seeds} seeds of {episodes // seeds:,} episodes"
    found = []
    for key, name in (("miou", "mIoU"), ("fb_iou", "FB-IoU")):
        low, high = result["interval"][key]
        spread = "" if seeds == 1 else f", sd over seeds {100 * result['std'][key]:.1f}"
        found.append(
            f"{name} {100 * result[key]:.1f} ({result['interval']['level']:.0%} interval {100 * low:.1f} to "
            f"{100 * high:.1f}{spread})"
        )
    return f"{result['shot']}-shot: {', '.join(found)}, over {over}"


def warn_of_absent(result: Mapping[str, Any]) -> None:
    absent = [name for name, value in result["per_class"].items() if value is None]
    if absent:
        log.warning(
            "%d-shot: %d of %d classes were not measured and are not in the mean: %s",
            result["shot"],
            len(absent),
            len(result["per_class"]),
            ", ".join(absent),
        )
