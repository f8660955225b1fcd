"""All runs of an evaluation: the engine's outcomes, brought to the episodes they belong to."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fss_svf import distributed
from fss_svf.config import to_mapping
from fss_svf.console import progress
from fss_svf.data.episodes import EpisodeSpec
from fss_svf.data.manifest import EpisodeList
from fss_svf.evaluation.base_classes import BaseClassCounts
from fss_svf.evaluation.counts import Counts, EpisodeCount
from fss_svf.evaluation.engine import Engine, Outcome, Runner, Task
from fss_svf.evaluation.records import Records
from fss_svf.evaluation.work import Group, group_episodes, share

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The outcome of one run of a protocol, of one seed and shot.

    episodes  of every episode its counts, in order
    others    the same of a method's further predictions (FewShotMethod.also_evaluated) by name
    base      counts of the base classes, where they are measured
    """

    num_classes: int
    episodes: list[EpisodeCount]
    others: dict[str, list[EpisodeCount]]
    base: BaseClassCounts | None

    @cached_property
    def counts(self) -> Counts:
        """The counts of all its episodes."""
        return self._sum(self.episodes)

    def counts_of(self, other: str) -> Counts:
        """The counts of a further prediction."""
        return self._sum(self.others[other])

    def _sum(self, episodes: Sequence[EpisodeCount]) -> Counts:
        counts = Counts(self.num_classes)
        for episode in episodes:
            counts.add(episode)
        return counts


@dataclass(frozen=True)
class Evaluated:
    """runs: of each shot, one a seed. seconds: of this process, by what they went for."""

    runs: dict[int, list[Run]]
    seconds: Mapping[str, float]


def evaluate_lists(
    task: Task, engine: Engine, lists: Mapping[int, Sequence[EpisodeList]], records: Path | None = None
) -> Evaluated:
    """Evaluate the episodes of every shot and seed. `records`: a folder to keep finished work in until all is done.

    Of several processes, all of which must call this, each does a share; every one gets the whole.
    """
    groups = group_episodes(lists)
    kept = None if records is None else Records(records, _subject(task, engine, groups), distributed.rank())
    # One process may have read what another finished after it, and all must share the same work.
    done: dict[int, Outcome] = {}
    for found in distributed.gather({} if kept is None else kept.found):
        done.update(found)
    positions = [position for position in range(len(groups)) if position not in done]
    mine = share(groups, positions, distributed.rank(), distributed.world())
    runner = Runner(task, engine, groups, mine)
    counts = Counts(len(task.split.index.class_names))

    def add(position: int, outcome: Outcome) -> None:
        for count, places in zip(outcome.counts[""], groups[position].episodes.values()):
            for _ in places:
                counts.add(count)

    for position, outcome in done.items():
        add(position, outcome)
    finished = sum(len(groups[position]) for position in done)
    if finished:
        log.info("%s of %s episodes were done", f"{finished:,}", f"{sum(map(len, groups)):,}")
    own: dict[int, Outcome] = {}
    with (
        closing(kept) if kept is not None else nullcontext(),
        progress(finished + sum(len(groups[p]) for p in mine), "evaluate", "episode", finished) as bar,
        closing(iter(runner)) as outcomes,  # an interrupt leaves no codes behind
    ):

        def show(new: int = 0) -> None:
            images = f"{runner.encoded} of {runner.images} images encoded"
            bar.set_postfix_str(f"mIoU {100 * counts.miou():.1f}, {images}", refresh=False)
            bar.update(new)

        runner.tell = show  # the first episodes of a class wait for many images
        for position, outcome in outcomes:
            own[position] = outcome
            if kept is not None:
                kept.add(position, outcome)
            add(position, outcome)
            show(len(groups[position]))
    for part in distributed.gather(own):
        done.update(part)
    return Evaluated(_assemble(task, lists, groups, done), runner.seconds)


def predicted(task: Task, engine: Engine, episodes: EpisodeList) -> list[tuple[EpisodeSpec, Tensor, Tensor]]:
    """Of each episode, the mask said, uint8 in 0..N at the label's place, and the true one."""
    found = {}
    groups = group_episodes({episodes.shot: [episodes]})
    runner = Runner(task, engine, groups, range(len(groups)))
    for position, _ in runner:
        for images, places in groups[position].episodes.items():
            found.update({place.number: runner.masks[images] for place in places})
    return [(spec, *found[number]) for number, spec in enumerate(episodes.specs)]


def _assemble(
    task: Task, lists: Mapping[int, Sequence[EpisodeList]], groups: Sequence[Group], outcomes: Mapping[int, Outcome]
) -> dict[int, list[Run]]:
    n, names = len(task.split.index.class_names), ("", *task.model.also_evaluated)
    placed: dict[tuple[int, int], dict[str, dict[int, EpisodeCount]]] = {}
    base: dict[tuple[int, int], BaseClassCounts] = {}
    for shot, runs in lists.items():
        for run in range(len(runs)):
            placed[shot, run] = {name: {} for name in names}
            if task.base is not None:
                base[shot, run] = BaseClassCounts(n, task.base)
    for position, outcome in sorted(outcomes.items()):
        for i, places in enumerate(groups[position].episodes.values()):
            for place in places:
                for name in names:
                    placed[place.shot, place.run][name][place.number] = outcome.counts[name][i]
                if outcome.base is not None:
                    base[place.shot, place.run].add(outcome.base, outcome.fused[i] if outcome.fused else {})

    def run_of(shot: int, run: int, length: int) -> Run:
        counts = {name: [placed[shot, run][name][number] for number in range(length)] for name in names}
        return Run(n, counts.pop(""), counts, base.get((shot, run)))

    return {shot: [run_of(shot, run, len(e)) for run, e in enumerate(runs)] for shot, runs in lists.items()}


def _subject(task: Task, engine: Engine, groups: Sequence[Group]) -> str:
    """A hash over everything that decides the outcomes."""
    told = hashlib.sha256()
    for name, value in task.model.state_dict().items():
        told.update(name.encode())
        told.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    episodes = [[group.query.image, group.class_ids, list(group.episodes)] for group in groups]
    how = [task.annotation, vars(task.transform), to_mapping(task.protocol), task.base, engine.precision]
    names = task.split.index.hash
    told.update(json.dumps([names, how, episodes]).encode())
    return told.hexdigest()[:16]
