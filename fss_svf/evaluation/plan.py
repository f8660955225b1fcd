"""Every episode of an evaluation, known before the first one runs: a mistake is told at once, coverage is shown."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fss_svf import distributed
from fss_svf.config import EpisodeFiles, Protocol
from fss_svf.data.fold import Fold
from fss_svf.data.index import Index
from fss_svf.data.manifest import EpisodeList, episodes_hash, load_episodes, save_episodes
from fss_svf.data.whole_list import WholeList
from fss_svf.errors import ConfigError, DataError, listing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    episodes   a list for every shot, one entry a seed
    classes    the classes that may be drawn; with protocol.classes=all those that are segmented, the base ones first
    left_out   classes that too_few_images=skip leaves out
    protocol   with the seeds and the number of episodes as they are
    source     what else decides the episodes, for the protocol's hash
    way        classes an episode
    listed     images that the fold's list of queries holds
    base       base classes among `classes`
    """

    episodes: dict[int, list[EpisodeList]]
    classes: tuple[int, ...]
    left_out: tuple[int, ...]
    protocol: Protocol
    source: dict[str, Any]
    way: int
    listed: int
    base: tuple[int, ...] = ()


def make_plan(
    index: Index,
    fold: Fold,
    shots: Sequence[int],
    protocol: Protocol,
    files: EpisodeFiles,
    way: int | None = 1,
    base_learner: bool = False,
) -> Plan:
    """Draw the episodes by the protocol, or read them from files.load; write them to files.save.

    way           None with protocol.classes=all
    base_learner  whether the method segments base classes without supports; read with protocol.classes=all

    Raises DataError; ConfigError for more ways than classes, and for a file of several ways.
    """
    if (way is None) != (protocol.classes == "all"):
        raise ConfigError(f"way={way}: protocol={protocol.name} has classes={protocol.classes}; leave way out")
    for key, path in (("save", files.save), ("load", files.load)):
        if way != 1 and path is not None:
            several, one = ("all classes", "take another protocol") if way is None else (f"way={way}", "say way=1")
            raise ConfigError(
                f"episodes.{key}={path}: a file holds episodes of one class, not of {several}; leave it out (the same "
                f"seed draws the same episodes), or {one}"
            )
    if way is None:
        return _plan_of_whole_list(index, fold, shots, protocol, base_learner)
    novel, most, repeats = fold.novel, max(shots), protocol.supports == "with_replacement"
    if files.load is not None:
        lists = load_episodes(files.load, index, novel, most, repeats)
        lengths = {len(episodes) for episodes in lists}
        if len(lengths) != 1 or [e.seed for e in lists] != list(range(lists[0].seed, lists[0].seed + len(lists))):
            raise DataError(f"{files.load}: expected consecutive seeds with equally many episodes; split the file")
        protocol = replace(protocol, episodes=lengths.pop(), seed=lists[0].seed, runs=len(lists))
        log.info(
            "%s: %d seeds from %d on, %d episodes each", files.load, protocol.runs, protocol.seed, protocol.episodes
        )
        drawn = {spec.class_id for episodes in lists for spec in episodes.specs}
        skipped = novel[:0]
        if fold.options.too_few_images == "skip":
            skipped = fold.sampler(index, "val", most, protocol.seed, protocol.order, repeats=repeats).skipped
        left_out = tuple(c for c in skipped if c not in drawn)
    else:
        # What the largest shot must leave out is left out of all: shots are compared on the same classes and queries.
        seeds = range(protocol.seed, protocol.seed + protocol.runs)
        samplers = [fold.sampler(index, "val", most, seed, protocol.order, way=way, repeats=repeats) for seed in seeds]
        assert protocol.episodes is not None
        lists = [EpisodeList.drawn(sampler, protocol.episodes) for sampler in samplers]
        left_out = samplers[0].skipped
    classes = tuple(c for c in novel if c not in left_out)
    # Written and read back, episodes are the same measurement; drawn ones are told by the protocol itself.
    source: dict[str, Any] = {"episodes": episodes_hash(lists)} if files.save or files.load else {}
    if way > 1:
        source["way"] = way
    require_coverage(lists, classes, protocol)
    if files.save is not None and distributed.rank() == 0:
        save_episodes(files.save, lists)
        log.info("episodes written to %s", files.save)
    # A 1-shot episode is the 5-shot episode with its first support.
    by_shot = {shot: [episodes.first_supports(shot) for episodes in lists] for shot in shots}
    listed = int(fold.listed(index, "val").sum())
    return Plan(by_shot, classes, left_out, protocol, source, way, listed)


def _plan_of_whole_list(index: Index, fold: Fold, shots: Sequence[int], protocol: Protocol, base_learner: bool) -> Plan:
    """Each shot's queries are the list without its own supports, whatever other shots are measured beside it."""
    whole = WholeList(index, fold, base_needs_supports=not base_learner)
    seeds = range(protocol.seed, protocol.seed + protocol.runs)
    by_shot = {shot: [whole.episodes(shot, seed) for seed in seeds] for shot in shots}
    for runs in by_shot.values():
        require_coverage(runs, whole.classes, protocol)
    return Plan(
        episodes=by_shot,
        classes=whole.classes,
        left_out=whole.left_out,
        protocol=protocol,
        source={"supports_of": "novel classes" if base_learner else "base and novel classes"},
        way=len(whole.classes),
        listed=len(whole.listed),
        base=whole.base,
    )


def require_coverage(lists: Sequence[EpisodeList], classes: Sequence[int], protocol: Protocol) -> None:
    """Log how many episodes each class has. A class without one in some run is what protocol.never_drawn says."""
    index = lists[0].index
    for episodes in lists:
        drawn = episodes.coverage(classes)
        by_count = sorted(drawn, key=lambda c: drawn[c])
        fewest, most = (f"{drawn[c]} ({index.class_name(c)})" for c in (by_count[0], by_count[-1]))
        log.info("seed %d: %s episodes, %s to %s a class", episodes.seed, f"{len(episodes):,}", fewest, most)
        absent = [index.class_name(c) for c in by_count if not drawn[c]]
        if absent and episodes.whole:
            what = "have no query but supports", "false positives alone count"
            if protocol.never_drawn == "error":
                raise DataError(
                    f"seed {episodes.seed}, {episodes.shot}-shot: {len(absent)} of {len(classes)} classes {what[0]}: "
                    f"{listing(absent)}; add images, or say protocol.never_drawn=leave_out ({what[1]})"
                )
            log.warning("%d of %d classes %s: %s; %s", len(absent), len(classes), what[0], ", ".join(absent), what[1])
        elif absent and protocol.never_drawn == "error":
            raise DataError(
                f"seed {episodes.seed}: {len(absent)} of {len(classes)} classes are never drawn in {len(episodes)} "
                f"episodes: {listing(absent)}; raise protocol.episodes (a file's: add to it), or say "
                "protocol.never_drawn=leave_out (of the mean) or zero (as PFENet, BAM and SVF count them)"
            )
        elif absent:
            log.warning("never drawn, %s: %s", protocol.never_drawn.replace("_", " "), ", ".join(absent))
