"""All runs of an evaluation: the counts of the engine's groups, brought to the episodes they belong to."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fss_svf import distributed
from fss_svf.config import to_mapping
from fss_svf.console import progress
from fss_svf.data.episodes import EpisodeSpec
from fss_svf.data.manifest import EpisodeList
from fss_svf.evaluation.engine import Engine, GroupCounts
from fss_svf.evaluation.episode_loss import EpisodeLoss
from fss_svf.evaluation.episode_table import EpisodeTable, empty_table
from fss_svf.evaluation.groups import Key, QueryGroup, SupportIds, group_episodes, share
from fss_svf.evaluation.metric import CLASSES, class_iou, mean_iou
from fss_svf.evaluation.records import Records
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.evaluation.timer import Timer

log = logging.getLogger(__name__)


def evaluate_lists(
    task: EvaluationTask,
    options: EngineOptions,
    lists: Mapping[Key, Sequence[EpisodeList]],
    records: Path | None = None,
    timer: Timer | None = None,
    loss: EpisodeLoss | None = None,
) -> dict[Key, list[EpisodeTable]]:
    """Evaluate the episodes of every list and seed: of each list's key, such as the shot, the tables, one a seed.

    records  a folder to keep finished work in until all is done
    timer    measures what this process spends its time on
    loss     gathers that of the episodes that this process runs

    Of several processes, all of which must call this, each does a share; every one gets the whole.
    """
    groups = group_episodes(lists)
    kept = None if records is None else Records(records, _subject(task, options, groups), distributed.rank())
    # One process may have read what another finished after it, and all must share the same work.
    done: dict[int, GroupCounts[np.ndarray]] = {}
    for part in distributed.gather({} if kept is None else kept.finished):
        done.update(part)
    positions = [position for position in range(len(groups)) if position not in done]
    mine = share(groups, positions, distributed.rank(), distributed.world())
    so_far = np.zeros((len(task.classes), 2), np.int64)
    for position, counts in done.items():
        _add(so_far, task, groups[position], counts)
    finished = sum(len(groups[position]) for position in done)
    if finished:
        log.info("%s of %s episodes were done", f"{finished:,}", f"{sum(map(len, groups)):,}")
    new: dict[int, GroupCounts[np.ndarray]] = {}
    with (
        closing(kept) if kept is not None else nullcontext(),
        progress(finished + sum(len(groups[p]) for p in mine), "evaluate", "episode", finished) as bar,
    ):

        def show(episodes: int = 0) -> None:
            images = f"{engine.features.encoded} of {engine.features.images} images encoded"
            bar.set_postfix_str(f"mIoU {100 * mean_iou(class_iou(so_far)):.1f}, {images}", refresh=False)
            bar.update(episodes)

        # The first episodes of a class wait for many images: progress is shown there too.
        engine = Engine(task, options, groups, mine, show, timer, loss)
        with closing(iter(engine)) as of_groups:  # an interrupt leaves no files behind
            for position, counts, _ in of_groups:
                new[position] = counts
                if kept is not None:
                    kept.add(position, counts)
                _add(so_far, task, groups[position], counts)
                show(len(groups[position]))
    for part in distributed.gather(new):
        done.update(part)
    return _tables(task, lists, groups, done)


def predicted(
    task: EvaluationTask, options: EngineOptions, episodes: EpisodeList
) -> list[tuple[EpisodeSpec, Tensor, Tensor]]:
    """Of each episode, the predicted mask, uint8 in 0..N at the label's place, and the true one."""
    found = {}
    groups = group_episodes({episodes.shot: [episodes]})
    for position, _, masks in Engine(task, options, groups, range(len(groups))):
        for images, ids in groups[position].episodes.items():
            predicted_mask, true_mask = masks[images]
            found.update({one.number: (predicted_mask.cpu(), true_mask.cpu()) for one in ids})
    return [(spec, *found[number]) for number, spec in enumerate(episodes.specs)]


def _add(total: np.ndarray, task: EvaluationTask, group: QueryGroup, counts: GroupCounts[np.ndarray]) -> None:
    """Add the episodes of a group to the pixels (C, 2) of the classes that are measured. Wrong supports are not of the
    mIoU."""
    if group.shown:
        return
    times = np.array([len(ids) for ids in group.episodes.values()])
    for row, column in _columns(task, group).items():
        total[column] += times @ counts.prediction[:, row]


def _columns(task: EvaluationTask, group: QueryGroup) -> dict[int, int]:
    """The rows of a group's counts that are measured, and the classes of the task that they count."""
    if task.protocol.classes == "all":
        return {CLASSES + column: column for column in range(len(task.classes))}
    return {CLASSES + way - 1: task.classes.index(c) for way, c in group.measured.items()}


def _tables(
    task: EvaluationTask,
    lists: Mapping[Key, Sequence[EpisodeList]],
    groups: Sequence[QueryGroup],
    counts: Mapping[int, GroupCounts[np.ndarray]],
) -> dict[Key, list[EpisodeTable]]:
    tables: dict[Any, list[EpisodeTable]] = {
        name: [empty_table(run, task.classes, task.further) for run in runs] for name, runs in lists.items()
    }
    for position, of_group in sorted(counts.items()):
        group = groups[position]
        columns = _columns(task, group)
        for i, ids in enumerate(group.episodes.values()):
            for one in ids:
                table = tables[one.lists][one.run]
                pairs = [(table.counts, of_group.prediction)]
                pairs += [(table.further[name], of_group.further[name]) for name in task.further]
                for of_table, rows in pairs:
                    of_table[one.number, :CLASSES] = rows[i, :CLASSES]
                    for row, column in columns.items():
                        of_table[one.number, CLASSES + column] = rows[i, row]
                assert table.true is not None
                for row, column in columns.items():
                    table.true[one.number, column] = of_group.true[row - CLASSES]
                if of_group.base is not None:
                    assert task.base is not None
                    _add_base(table, task.base, task.classes.index(group.class_ids[0]), of_group, i)
    return tables


def _add_base(
    table: EpisodeTable, base: Sequence[int], column: int, counts: GroupCounts[np.ndarray], episode: int
) -> None:
    """Add the base learner's counts of an episode, whose novel class is `column` of the table."""
    n = len(base)
    assert counts.base is not None
    for name, of_episode in {"base": counts.base, **{k: rows[episode] for k, rows in counts.fusions.items()}}.items():
        total = table.base.setdefault(name, np.zeros((1 + n + len(table.classes), 2), np.int64))
        total[: 1 + n] += of_episode[: 1 + n]
        if name != "base":
            total[1 + n + column] += of_episode[1 + n]


def _subject(task: EvaluationTask, options: EngineOptions, groups: Sequence[QueryGroup]) -> str:
    """A hash over everything that decides the counts."""
    digest = hashlib.sha256()
    for name, value in task.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    # Where all episodes of a run have the same supports, these stand once.
    numbers: dict[SupportIds, int] = {}
    episodes = [
        [
            group.query.image,
            group.class_ids,
            [numbers.setdefault(images, len(numbers)) for images in group.episodes],
            *([group.shown] if group.shown else []),
        ]
        for group in groups
    ]
    how = [task.annotation, vars(task.transform), to_mapping(task.protocol), task.base]
    how += [options.precision, options.features_dtype, task.classes]
    how += ["argmax"] if task.way_rule == "argmax" else []
    digest.update(json.dumps([task.split.index.hash, how, episodes, list(numbers)]).encode())
    return digest.hexdigest()[:16]
