"""fss-svf compare: the difference of two results on the same episodes, with its interval.

Both numbers shake with the episodes, but together: an episode hard for one is hard for the other. Their difference, taken
in each resample, shakes far less than the two apart. Of several trainings each, those of one seed are a pair.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fss_svf.config import CompareConfig
from fss_svf.errors import ConfigError, DataError, did_you_mean, listing
from fss_svf.evaluation.differences import differences, verdict
from fss_svf.evaluation.episode_table import EpisodeTable
from fss_svf.evaluation.intervals import LEVEL, RESAMPLES
from fss_svf.evaluation.saved import saved_tables
from fss_svf.provenance import write_json, write_run_folder
from fss_svf.reporting.comparison import comparison_table
from fss_svf.reporting.results import read_result
from fss_svf.reporting.rows import LAST_STEP

log = logging.getLogger(__name__)

_TOLD = (
    "method",
    "way_rule",
    "tuning",
    "backbone",
    "backbone_weights",
    "backbone_weights_hash",
    "checkpoint",
    "miou",
    "fb_iou",
)
_THE_MODEL = ("method", "way_rule", "backbone", "tuning", "backbone_weights", "backbone_weights_hash")
_SHARED = ("dataset", "fold", "way", "shot", "size", "protocol_hash", "seeds", "num_episodes")


@dataclass(frozen=True)
class _Training:
    """One result; `name` is a or b, of several a[0], a[1], ..."""

    name: str
    path: Path
    result: Mapping[str, Any]
    tables: list[EpisodeTable]

    @property
    def counted(self) -> tuple[list[EpisodeTable], bool]:
        return self.tables, bool(self.result["protocol"]["never_drawn"] == "zero")

    @property
    def seed(self) -> int | None:
        return (self.result.get("checkpoint") or {}).get("seed")


def compare(config: CompareConfig, out: Path) -> dict[str, Any]:
    """Print how result b differs from result a; writes compare.json and compare.md into `out`.

    Raises ConfigError for a result that is not given or is several, and for trainings that do not make pairs; DataError
    for a damaged one and for two whose episodes are not the same.
    """
    sides = _side("a", config.a), _side("b", config.b)
    a, b = _pairs(*sides)
    for one, other in [*((a[0], other) for other in a[1:]), *zip(a, b)]:
        _require_same_measurement(one, other)
        _require_same_episodes(one, other)
    first = a[0]
    _require_classes(config.classes, first.tables[0].classes)
    found = {
        **{name: [_told(training) for training in side] for name, side in zip(("a", "b"), sides)},
        **{key: first.result[key] for key in _SHARED},
        "protocol": first.result["protocol"]["name"],
        "level": LEVEL,
        "resamples": RESAMPLES,
        **differences([t.counted for t in a], [t.counted for t in b], config.classes),
    }
    equal = all(_equal_counts(*pair) for pair in zip(a, b))
    found["verdict"] = verdict(found["miou"], equal, episodes=min(map(len, first.tables)))
    text = comparison_table(found)
    write_run_folder(out, config)
    write_json(out / "compare.json", found)
    (out / "compare.md").write_text(text + "\n")
    print(text)
    log.info("comparison in %s", out)
    return found


def _side(name: str, paths: Sequence[Path] | Path | None) -> list[_Training]:
    """The results of one side, in the order of their training seeds."""
    if paths is None or paths == ():
        raise ConfigError(f"{name}: nothing given; say compare a=RESULT b=RESULT, folders of evaluate or result.json")
    if isinstance(paths, Path) or len(paths) == 1:
        return [_training(name, paths if isinstance(paths, Path) else paths[0])]
    trainings = [_training(f"{name}[{i}]", path) for i, path in enumerate(paths)]
    for training in trainings:
        if training.seed is None:
            raise ConfigError(
                f"{training.name}={training.path}: was not trained; give it alone, of a list each is a training of its own"
            )
    return sorted(trainings, key=lambda t: t.seed or 0)


def _training(name: str, path: Path) -> _Training:
    path = _result_file(name, path)
    result = read_result(path)
    if result["protocol"].get("classes") == "all":
        raise ConfigError(
            f"{name}={path}: of base and novel classes at once (protocol={result['protocol']['name']}), which compare does "
            "not take; their intervals stand in each result.json"
        )
    return _Training(name, path, result, saved_tables(path, result))


def _result_file(name: str, path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.rglob("result.json"))
    if not found:
        there = "there is no result.json under it" if path.is_dir() else "there is no such folder or file"
        raise ConfigError(f"{name}={path}: {there}; give the folder of an evaluation")
    if len(found) > 1:
        folders = listing(str(p.parent.relative_to(path)) for p in found)
        raise ConfigError(f"{name}={path}: holds {len(found)} results ({folders}); give the folder of one")
    return found[0]


def _pairs(a: list[_Training], b: list[_Training]) -> tuple[list[_Training], list[_Training]]:
    """Both sides, the i-th of each a pair: of the same training seed, or one result without a training with each.

    Raises ConfigError for other seeds, and where a side is not of trainings of one thing, told by what differs.
    """
    if len(a) == len(b) == 1:
        return a, b
    if len(a) == 1 and a[0].seed is None:
        a = a * len(b)
    elif len(b) == 1 and b[0].seed is None:
        b = b * len(a)
    seeds = [[training.seed for training in side if training.seed is not None] for side in (a, b)]
    if (seeds[0] and seeds[1] and seeds[0] != seeds[1]) or any(len(set(side)) < len(side) for side in seeds):
        of_a, of_b = (listing(side, limit=10) or "none" for side in seeds)
        raise ConfigError(
            f"a, b: trainings of the seeds {of_a} in a and {of_b} in b; give lists with one result a seed, of the same seeds"
        )
    for side in (a, b):
        if side[0].seed is None:
            continue
        first = _what_was_trained(side[0])
        for other in side[1:]:
            of_other = _what_was_trained(other)
            for key in dict.fromkeys((*first, *of_other)):
                if first.get(key) != of_other.get(key):
                    raise ConfigError(
                        f"{side[0].name}={side[0].path}, {other.name}={other.path}: not trainings of one thing, {key} is "
                        f"{first.get(key)} in one and {of_other.get(key)} in the other; only their seeds may differ"
                    )
    return a, b


def _what_was_trained(training: _Training) -> dict[str, Any]:
    left_out = {"path", "seed", "options"}
    # The best step is another one of every seed; the last is one of what was trained as long.
    if training.result["checkpoint"].get("selection", LAST_STEP) != LAST_STEP:
        left_out.add("step")
    checkpoint = {k: v for k, v in training.result["checkpoint"].items() if k not in left_out}
    told = {key: training.result.get(key) for key in _THE_MODEL}
    return {**told, **checkpoint, **training.result["checkpoint"].get("options", {})}


def _require_classes(classes: Sequence[str] | None, known: Sequence[str]) -> None:
    for name in classes or ():
        if name not in known:
            raise ConfigError(
                f"classes: {name!r} is not measured here, but {listing(known, 20)}{did_you_mean(name, known)}"
            )
    if len(set(classes or ())) < len(classes or ()):
        raise ConfigError(f"classes: {listing(classes or (), 20)} has a class twice")


def _require_same_measurement(a: _Training, b: _Training) -> None:
    """The same dataset, fold, ways, shot and protocol; the first that differs is told."""
    for key in ("dataset", "fold", "way", "shot"):
        _require_equal(a, b, key, a.result[key], b.result[key])
    if a.result["protocol_hash"] != b.result["protocol_hash"]:
        # The hash alone says nothing; what went into it does.
        _require_equal(a, b, "precision", *(t.result.get("precision", "float32") for t in (a, b)))
        _require_equal(a, b, "features_dtype", *(t.result.get("features_dtype") for t in (a, b)))
        for key in ("protocol", "data"):
            for part in dict.fromkeys((*a.result[key], *b.result[key])):
                if (key, part) in (("protocol", "size"), ("protocol", "half_width")):
                    continue  # not in it
                _require_equal(a, b, f"{key}.{part}", *(t.result[key].get(part) for t in (a, b)))
    for key in ("size", "protocol_hash", "seeds"):
        _require_equal(a, b, key, a.result[key], b.result[key])
    _require_equal(a, b, "classes", *(list(t.result["per_class_counts"]) for t in (a, b)))


def _require_equal(a: _Training, b: _Training, what: str, of_a: object, of_b: object) -> None:
    if of_a != of_b:
        raise DataError(
            f"{a.name}={a.path}, {b.name}={b.path}: not the same episodes, {what} is {of_a} in {a.name} and {of_b} in "
            f"{b.name}; evaluate both alike"
        )


def _require_same_episodes(a: _Training, b: _Training) -> None:
    for of_a, of_b in zip(a.tables, b.tables):
        where = f"of seed {of_a.seed}, the first that differs:"
        for n, (in_a, in_b) in enumerate(zip(of_a.names, of_b.names)):
            for part in ("classes", "query", "supports"):
                _require_equal(a, b, f"episode {n} {where} {part}", getattr(in_a, part), getattr(in_b, part))
            pixels = (int(t.counted[n]) for t in (of_a, of_b))
            _require_equal(a, b, f"episode {n} {where} number of counted pixels", *pixels)


def _told(training: _Training) -> dict[str, Any]:
    return {"path": str(training.path), **{key: training.result.get(key) for key in _TOLD}}


def _equal_counts(a: _Training, b: _Training) -> bool:
    return all(np.array_equal(of_a.counts, of_b.counts) for of_a, of_b in zip(a.tables, b.tables))
