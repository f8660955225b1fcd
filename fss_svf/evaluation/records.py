"""Finished groups in a file, a line each, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, TextIO

from fss_svf.errors import DataError
from fss_svf.evaluation.counts import EpisodeCount, LabelCount
from fss_svf.evaluation.engine import Outcome


class Records:
    """Outcomes by their group's number, in `folder`/finished-RANK.jsonl: written by one process, read from all files.

    subject  what is evaluated, in a few digits. Raises DataError where the files are of another subject.
    """

    def __init__(self, folder: Path, subject: str, rank: int = 0) -> None:
        self.folder, self.subject = folder, subject
        self.found: dict[int, Outcome] = {}
        for path in _files(folder):
            self._read(path)
        self._path = folder / f"finished-{rank}.jsonl"
        self._file: TextIO | None = None  # made by the first outcome: a run that has none is none to resume

    def add(self, position: int, outcome: Outcome) -> None:
        """Keep an outcome. It is in the file when this returns."""
        # A line of its own before it, too: what a kill left of a line stays apart.
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a")
        line = {"subject": self.subject, "position": position, **_to_json(outcome)}
        self._file.write("\n" + json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, path: Path) -> None:
        for line in filter(None, path.read_text().split("\n")):
            try:
                values = json.loads(line)
                position, outcome = int(values["position"]), _from_json(values)
            except (ValueError, KeyError, TypeError):
                continue  # cut by a kill: that group runs again
            if values["subject"] != self.subject:
                raise DataError(
                    f"{path}: holds episodes of another evaluation (other weights, data, episodes or protocol); delete all "
                    "finished-*.jsonl there to begin anew"
                )
            self.found[position] = outcome


def has_records(folder: Path) -> bool:
    """Whether an evaluation began in `folder` and did not come to its end."""
    return bool(_files(folder))


def delete_records(folder: Path) -> None:
    """Delete the files of an evaluation whose results are written."""
    for path in _files(folder):
        path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("finished-*.jsonl"))


def _to_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "counts": {name: [astuple(count) for count in counts] for name, counts in outcome.counts.items()},
        "base": None if outcome.base is None else astuple(outcome.base),
        "fused": [{name: astuple(count) for name, count in fused.items()} for fused in outcome.fused],
    }


def _from_json(values: Mapping[str, Any]) -> Outcome:
    return Outcome(
        {name: [EpisodeCount(*map(_frozen, count)) for count in counts] for name, counts in values["counts"].items()},
        None if values["base"] is None else _labels(values["base"]),
        [{name: _labels(count) for name, count in fused.items()} for fused in values["fused"]],
    )


def _labels(values: list[list[int]]) -> LabelCount:
    return LabelCount(*map(tuple, values))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
