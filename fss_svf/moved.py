"""A run folder that was copied from another place or machine: whether its run is still that of a config.

Paths differ then. Those that were copied with the run folder are compared as they lie now, and a dataset by the hash of its
data.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from fss_svf import config
from fss_svf.config import EvaluateConfig
from fss_svf.registry import DATASETS, Choice
from fss_svf.relocation import move_of, replaced

_PLACE = ("root", "prepared")


def differing(then: Any, now: Any, folder: Path, dataset: Choice | None) -> list[str]:
    """The keys in which the run `then` of a folder is another than `now`, as config.differing, wherever it was run.

    dataset: whose data `now` reads; None: it is not known, and its place counts. Raises DataError where the place differs
    and the data there are not prepared.
    """
    others = config.differing(then, now)
    if others:
        there = relocated(then, folder)
        others = [key for key in others if key in config.differing(there, now)]
    if others == ["dataset"] and dataset is not None and _without_place(then) == _without_place(now):
        found, split = _hash_of_run(folder, now)
        others = [] if found is None or found == _hash_of(dataset, split) else others
    return others


def relocated(then: Any, folder: Path) -> Any:
    """The config with paths as they lie now: what was copied along with its run folder has moved as that has."""
    move = move_of(folder)
    return then if move is None else config.from_mapping(type(then), replaced(config.to_mapping(then), *move))


def _without_place(run: Any) -> Any:
    values: Any = config.to_mapping(run)["dataset"]
    return {key: value for key, value in values.items() if key not in _PLACE}


def _hash_of_run(folder: Path, run: Any) -> tuple[str | None, str]:
    """The hash of the data that a run in `folder` has recorded, None where it has not begun, and the split."""
    if isinstance(run, EvaluateConfig):
        results = sorted(folder.rglob("result.json"))
        return (json.loads(results[0].read_text())["data"]["index"] if results else None), "val"
    path = folder / "provenance.json"
    return (json.loads(path.read_text())["starts"][-1]["index"] if path.exists() else None), "train"


def _hash_of(dataset: Choice, split: str) -> str:
    return _opened(json.dumps(config.to_mapping(dataset)), split)


@cache
def _opened(dataset: str, split: str) -> str:
    """The hash of a split's data, once for all jobs of a table."""
    from fss_svf.training.data_seen import data_hash  # PyTorch, which no other start of a verb needs here

    values = json.loads(dataset)
    options: Any = config.from_mapping(
        DATASETS.entry(values["name"]).options, {k: v for k, v in values.items() if k != "name"}
    )
    index = DATASETS.build(Choice(values["name"], options)).split(split).index
    return data_hash(options, index) if split == "train" else index.hash
