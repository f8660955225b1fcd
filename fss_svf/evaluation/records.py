"""Finished groups in a file, a line each, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fss_svf.errors import DataError
from fss_svf.evaluation.engine import GroupCounts


class Records:
    """Counts by their group's number, in `folder`/finished-RANK.jsonl: written by one process, read from all files.

    subject  what is evaluated, in a few digits. Raises DataError where the files are of another subject.
    """

    def __init__(self, folder: Path, subject: str, rank: int = 0) -> None:
        self.folder, self.subject = folder, subject
        self.finished: dict[int, GroupCounts[np.ndarray]] = {}
        for path in _files(folder):
            self._read(path)
        self._path = folder / f"finished-{rank}.jsonl"
        # `add` opens it: a run without finished groups leaves no file, and is not resumed.
        self._file: TextIO | None = None

    def add(self, position: int, counts: GroupCounts[np.ndarray]) -> None:
        """Keep a group's counts. They are in the file when this returns."""
        # A line of its own before it, too: what a kill left of a line stays apart.
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a")
        line = {"subject": self.subject, "position": position, "counts": vars(counts)}
        self._file.write("\n" + json.dumps(line, default=np.ndarray.tolist) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, path: Path) -> None:
        for line in filter(None, path.read_text().split("\n")):
            try:
                values = json.loads(line)
                position = int(values["position"])
                counts = _counts(**values["counts"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut by a kill: that group runs again
            if values["subject"] != self.subject:
                raise DataError(
                    f"{path}: holds episodes of another evaluation (other weights, data, episodes or protocol); delete all "
                    "finished-*.jsonl there to begin anew"
                )
            self.finished[position] = counts


def _counts(prediction: Any, further: Any, base: Any, fusions: Any, true: Any) -> GroupCounts[np.ndarray]:
    """The counts that a line holds. Raises TypeError and others for a line of another version."""
    return GroupCounts(
        _array(prediction),
        {name: _array(one) for name, one in further.items()},
        None if base is None else _array(base),
        {name: _array(one) for name, one in fusions.items()},
        _array(true),
    )


def _array(values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def has_records(folder: Path) -> bool:
    """Whether an evaluation began in `folder` and did not come to its end."""
    return bool(_files(folder))


def delete_records(folder: Path) -> None:
    """Delete the files of an evaluation whose results are written."""
    for path in _files(folder):
        path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("finished-*.jsonl"))
