"""fss-svf compare: the difference of two results on the same episodes, with its interval.

Both numbers shake with the episodes, but together: an episode hard for one is hard for the other. Their difference, taken
in each resample, shakes far less than the two apart.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fss_svf.config import CompareConfig
from fss_svf.errors import ConfigError, DataError, listing
from fss_svf.evaluation.episode_table import EpisodeTable, load_episode_table, total_counts
from fss_svf.evaluation.statistics import LEVEL, RESAMPLES, Scores, interval, measured, resampled
from fss_svf.provenance import write_json, write_run_folder
from fss_svf.reporting.comparison import comparison_table
from fss_svf.reporting.report import read_result

log = logging.getLogger(__name__)

# With fewer episodes a seed the interval covers less than it says (docs/results.md).
_FEW = 50
_TOLD = ("method", "tuning", "backbone", "backbone_weights", "checkpoint", "miou", "fb_iou")
_SHARED = ("dataset", "fold", "way", "shot", "size", "protocol_hash", "seeds", "num_episodes")


@dataclass(frozen=True)
class _Side:
    """One of the two results; `name` is a or b."""

    name: str
    path: Path
    result: Mapping[str, Any]
    tables: list[EpisodeTable]

    @property
    def zero(self) -> bool:
        return bool(self.result["protocol"]["never_drawn"] == "zero")


def compare(config: CompareConfig, out: Path) -> dict[str, Any]:
    """Print how result b differs from result a; writes compare.json and compare.md into `out`.

    Raises ConfigError for a result that is not given or is several, DataError for a damaged one and for two whose
    episodes are not the same.
    """
    a, b = _side("a", config.a), _side("b", config.b)
    _require_same_measurement(a, b)
    _require_same_episodes(a, b)
    found = {
        **{side.name: _told(side) for side in (a, b)},
        **{key: a.result[key] for key in _SHARED},
        "protocol": a.result["protocol"]["name"],
        "level": LEVEL,
        "resamples": RESAMPLES,
        **_differences(a, b),
    }
    found["verdict"] = verdict(found["miou"], _equal_counts(a, b), episodes=min(map(len, a.tables)))
    text = comparison_table(found)
    write_run_folder(out, config)
    write_json(out / "compare.json", found)
    (out / "compare.md").write_text(text + "\n")
    print(text)
    log.info("comparison in %s", out)
    return found


def _side(name: str, path: Path | None) -> _Side:
    path = _result_file(name, path)
    result = read_result(path)
    table = path.with_name("episodes.csv")
    missing = [key for key in ("per_class_counts", "way", "num_episodes", "data") if key not in result]
    if missing:
        raise DataError(f"{path}: has no {', '.join(missing)}, as results of older versions; evaluate again")
    counts = result["per_class_counts"]
    tables = load_episode_table(table, list(counts))
    found = {t.seed: len(t) for t in tables}
    expected = dict.fromkeys(result["seeds"], result["num_episodes"] // len(result["seeds"]))
    if found != expected:
        raise DataError(f"{table}: holds {_by_seed(found)}, its result.json is of {_by_seed(expected)}; evaluate again")
    if total_counts(tables) != counts:
        raise DataError(f"{table}: its counts are not those of the result.json beside it; evaluate again")
    return _Side(name, path, result, tables)


def _result_file(name: str, path: Path | None) -> Path:
    if path is None:
        raise ConfigError(f"{name}: nothing given; say compare a=RESULT b=RESULT, folders of evaluate or result.json")
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


def _by_seed(lengths: Mapping[int, int]) -> str:
    return listing(f"{episodes} episodes of seed {seed}" for seed, episodes in lengths.items())


def _require_same_measurement(a: _Side, b: _Side) -> None:
    """The same dataset, fold, ways, shot and protocol; the first that differs is told."""
    for key in ("dataset", "fold", "way", "shot"):
        _require_equal(a, b, key, a.result[key], b.result[key])
    if a.result["protocol_hash"] != b.result["protocol_hash"]:
        # The hash alone says nothing; what went into it does.
        _require_equal(a, b, "precision", *(side.result.get("precision", "float32") for side in (a, b)))
        for key in ("protocol", "data"):
            for part in dict.fromkeys((*a.result[key], *b.result[key])):
                if (key, part) in (("protocol", "size"), ("protocol", "half_width")):
                    continue  # not in it
                _require_equal(a, b, f"{key}.{part}", *(side.result[key].get(part) for side in (a, b)))
    for key in ("size", "protocol_hash", "seeds"):
        _require_equal(a, b, key, a.result[key], b.result[key])
    _require_equal(a, b, "classes", *(list(side.result["per_class_counts"]) for side in (a, b)))


def _require_equal(a: _Side, b: _Side, what: str, of_a: object, of_b: object) -> None:
    if of_a != of_b:
        raise DataError(
            f"a={a.path}, b={b.path}: not the same episodes, {what} is {of_a} in a and {of_b} in b; evaluate both alike"
        )


def _require_same_episodes(a: _Side, b: _Side) -> None:
    for of_a, of_b in zip(a.tables, b.tables):
        where = f"of seed {of_a.seed}, the first that differs:"
        for n, (in_a, in_b) in enumerate(zip(of_a.shown, of_b.shown)):
            for part in ("classes", "query", "supports"):
                _require_equal(a, b, f"episode {n} {where} {part}", getattr(in_a, part), getattr(in_b, part))
            pixels = (int(t.counted[n]) for t in (of_a, of_b))
            _require_equal(a, b, f"episode {n} {where} number of counted pixels", *pixels)


def _told(side: _Side) -> dict[str, Any]:
    return {"path": str(side.path), **{key: side.result[key] for key in _TOLD}}


def _differences(a: _Side, b: _Side) -> dict[str, Any]:
    """Those of mIoU, FB-IoU and each class."""
    at, bt = measured(a.tables, a.zero), measured(b.tables, b.zero)
    # The same episodes are drawn on both sides.
    resamples = resampled(b.tables, b.zero) - resampled(a.tables, a.zero)
    counts = a.result["per_class_counts"]
    return {
        "miou": _difference(at.miou, bt.miou, resamples.miou),
        "fb_iou": _difference(at.fb_iou, bt.fb_iou, resamples.fb_iou),
        "per_class": {
            name: {"episodes": counts[name]["episodes"], **_of_class(at, bt, resamples, c)}
            for c, name in enumerate(counts)
        },
    }


def _of_class(at: Scores, bt: Scores, resamples: Scores, c: int) -> dict[str, Any]:
    return _difference(at.per_class[:, c], bt.per_class[:, c], resamples.per_class[:, c])


def _difference(a: np.ndarray, b: np.ndarray, resamples: np.ndarray) -> dict[str, Any]:
    """Both numbers, b - a, its interval, and the share of resamples where b is better; None for what is not measured."""
    of_a, of_b = (None if np.isnan(value) else float(value) for value in (a[0], b[0]))
    known = resamples[~np.isnan(resamples)]
    return {
        "a": of_a,
        "b": of_b,
        "difference": None if of_a is None or of_b is None else of_b - of_a,
        "interval": interval(resamples),
        "b_better": float((known > 0).mean()) if len(known) else None,
    }


def verdict(miou: Mapping[str, Any], equal_counts: bool, episodes: int) -> str:
    """What may be said of a difference in mIoU. equal_counts: of every episode; episodes: a seed."""
    if equal_counts:
        return "No difference: the counts of every episode are equal."
    (low, high), points = miou["interval"], 100 * miou["difference"]
    how_sure = f"{LEVEL:.0%} interval {100 * low:+.2f} to {100 * high:+.2f}, over episodes alone"
    if low <= 0 <= high:
        told = f"The difference of {points:+.2f} mIoU is not told apart from 0 at {LEVEL:.0%} ({how_sure})."
    else:
        told = f"b is {'better' if points > 0 else 'worse'} by {abs(points):.2f} mIoU ({how_sure})."
    if episodes < _FEW:
        told += f" {episodes} episodes a seed are few: the interval is too narrow."
    return told


def _equal_counts(a: _Side, b: _Side) -> bool:
    parts = ("intersection", "union", "foreground")
    return all(
        np.array_equal(getattr(of_a, part), getattr(of_b, part))
        for of_a, of_b in zip(a.tables, b.tables)
        for part in parts
    )
