"""result.json, as docs/results.md says, and the lines that tell of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import numpy as np

from fss_svf.config import to_mapping
from fss_svf.data.dataset import Dataset
from fss_svf.data.episodes import WALKS
from fss_svf.evaluation.base_classes import base_scores
from fss_svf.evaluation.episode_table import EpisodeTable, save_episode_table, save_supports, total_counts
from fss_svf.evaluation.generalized import generalized, parts
from fss_svf.evaluation.intervals import LEVEL, RESAMPLES, deviation, interval, resampled_seeds
from fss_svf.evaluation.metric import Scores, mean_scores, scores
from fss_svf.evaluation.plan import Plan
from fss_svf.evaluation.subject import Subject
from fss_svf.evaluation.task import EngineOptions
from fss_svf.provenance import write_json

log = logging.getLogger(__name__)


def make_result(
    subject: Subject,
    plan: Plan,
    shot: int,
    tables: Sequence[EpisodeTable],
    data: Mapping[str, Any],
    options: EngineOptions,
    reliance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """result.json, as docs/results.md says: every number a fraction; means over the seeds, whose own stand in `runs`.

    tables: one a seed, of plan.classes. data: of data_source. reliance: of measure_reliance, where it was asked for.
    """
    protocol = plan.protocol
    zero = protocol.never_drawn == "zero"
    index = plan.episodes[shot][0].index
    of_seeds = [scores(table.total[None], zero) for table in tables]
    runs = [_numbers(of_seed, len(plan.base)) for of_seed in of_seeds]
    per_class = [None if isnan(value) else float(value) for value in mean_scores(of_seeds).per_class[0]]
    drawn = {name: sum(table.episodes[name] for table in tables) for name in tables[0].classes}
    names = [index.class_name(c) for c in _in_order(plan)]
    # What is as usual is not in the hash, so that results from before it could be chosen keep theirs.
    choices: dict[str, str] = {} if options.precision == "float32" else {"precision": options.precision}
    choices |= {} if options.features_dtype is None else {"features_dtype": options.features_dtype}
    return {
        **_mean(runs),
        "std": {key: deviation([run[key] for run in runs]) for key in runs[0]},
        "interval": _intervals(tables, zero, len(plan.base)),
        "per_class": {**dict.fromkeys(names), **dict(zip(tables[0].classes, per_class))},
        "per_class_counts": total_counts(tables),
        **_of_subject(subject),
        "way": plan.way,
        **({} if subject.way_rule is None else {"way_rule": subject.way_rule}),
        "shot": shot,
        "protocol": to_mapping(protocol),
        "protocol_hash": protocol.hash(size=subject.size, data=data, **choices),
        "precision": options.precision,
        "features_dtype": options.features_dtype,
        "num_episodes": sum(map(len, tables)),
        "seeds": [protocol.seed + i for i in range(protocol.runs)],
        "episodes_per_class": {name: drawn.get(name, 0) for name in names},
        "also": _also(tables, len(plan.classes), zero, len(plan.base)),
        **({} if reliance is None else {"reliance": reliance}),
        "runs": runs,
        "data": data,
        "images_listed": plan.listed,
        "classes_seen": list(subject.classes_seen),
        "classes_left_out": [index.class_name(c) for c in plan.left_out],
    }


def save_result(folder: Path, result: Mapping[str, Any], tables: Sequence[EpisodeTable]) -> None:
    """Write result.json and episodes.csv, of whole lists also supports.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = list(tables)
    if tables[0].supports:
        save_supports(folder / "supports.csv", tables)
    # Before the result, so that where there is a result its episodes are there too.
    save_episode_table(folder / "episodes.csv", tables)
    write_json(folder / "result.json", result)


def data_source(dataset: Dataset, plan: Plan) -> dict[str, Any]:
    """What decides the data that is measured, and the episodes on it; the same for every shot of an evaluation."""
    shot = max(plan.episodes)
    index = plan.episodes[shot][0].index
    walks_list = plan.protocol.queries in WALKS and dataset.options.query_places(index, "val") is not None
    return {"index": index.hash, **_data_choices(dataset, shot, walks_list), **plan.source}


def _of_subject(subject: Subject) -> dict[str, Any]:
    """What a result says of the model and of where it comes from."""
    return {
        "fold": subject.fold,
        "method": subject.method,
        "backbone": subject.backbone,
        "tuning": subject.tuning,
        "dataset": subject.dataset.name,
        "size": subject.size,
        "backbone_weights": subject.weights,
        "backbone_weights_hash": subject.weights_hash,
        "trainable_backbone_values": subject.trainable,
        "checkpoint": subject.checkpoint,
        **({"options": dict(subject.options)} if subject.options else {}),
    }


def _in_order(plan: Plan) -> list[int]:
    """All classes of the fold that are measured or left out, ascending; base classes, where they are measured, first."""
    novel = [c for c in (*plan.classes, *plan.left_out) if c not in plan.base]
    return [*plan.base, *sorted(novel)]


def _numbers(of_seed: Scores, base: int) -> dict[str, float]:
    """By name, the numbers of R = 1. base: see generalized."""
    if not base:
        return of_seed.numbers()
    further = {name: float(values[0]) for name, values in parts(of_seed, base).items()}
    return {**generalized(of_seed, base).numbers(), **further}


def _intervals(tables: Sequence[EpisodeTable], zero: bool, base: int) -> dict[str, Any]:
    of_seeds = resampled_seeds(tables, zero)
    found = {}
    if base:
        of_parts = [parts(of_seed, base) for of_seed in of_seeds]
        found = {name: interval(np.mean([of[name] for of in of_parts], axis=0)) for name in of_parts[0]}
        of_seeds = [generalized(of_seed, base) for of_seed in of_seeds]
    resamples = mean_scores(of_seeds)
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "miou": interval(resamples.miou),
        "fb_iou": interval(resamples.fb_iou),
        **found,
    }


def _also(tables: Sequence[EpisodeTable], classes: int, zero: bool, base: int) -> dict[str, Any]:
    """Numbers of a method's further predictions and of base classes. classes: how many are measured."""
    also = {
        name: _mean([_numbers(scores(table.further[name].sum(0)[None], zero), base) for table in tables])
        for name in tables[0].further
    }
    if tables[0].base:
        n = len(tables[0].base["base"]) - 1 - classes
        of_base = [base_scores(table.base, n, zero) for table in tables]
        also |= {name: _mean([numbers[name] for numbers in of_base]) for name in of_base[0]}
    return also


def shares(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values()) or 1.0
    return "time: " + ", ".join(f"{what} {100 * value / total:.0f}%" for what, value in seconds.items())


def _mean(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: mean(run[key] for run in runs) for key in runs[0]}


def _data_choices(dataset: Dataset, largest_shot: int, walks_list: bool) -> dict[str, Any]:
    """The dataset's options that decide what is measured; the same for every fold.

    walks_list: whether the queries come in an order of their own, that of query_order's list.
    """
    keys = ["class_partition", "folds", "min_area", "mask_mode", "support_annotation", "too_few_images"]
    keys += ["query_order"] if walks_list else []
    found = {key: getattr(dataset.options, key) for key in keys if hasattr(dataset.options, key)}
    # Which classes are left out depends on the largest shot.
    return {**found, "largest_shot": largest_shot} if found["too_few_images"] == "skip" else found


_PARTS_IN_WORDS = {"base_miou": "base mIoU", "novel_miou": "novel mIoU", "harmonic_mean": "harmonic mean"}


def in_words(result: Mapping[str, Any]) -> str:
    """The numbers in percent with how sure they are, as one line."""
    seeds, episodes, names = len(result["seeds"]), result["num_episodes"], {"miou": "mIoU", "fb_iou": "FB-IoU"}
    over = f"{episodes:,} episodes" if seeds == 1 else f"{seeds} seeds of {episodes // seeds:,} episodes"
    if result["protocol"].get("classes") == "all":
        names = {**_PARTS_IN_WORDS, "miou": "mean of both", "fb_iou": "FB-IoU"}
        over = f"{episodes:,} queries" if seeds == 1 else f"{seeds} seeds, {episodes:,} queries in all"
    found = []
    for key, name in names.items():
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
