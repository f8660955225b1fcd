"""log.csv of a run folder: losses, rates and scores by step, for a spreadsheet or pandas."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from fss_svf.errors import TrainingError
from fss_svf.files import atomic_write

Row = dict[str, str]


class LogTable:
    """A row for each log line, and one for each validation; what a row does not have is an empty field.

    step, validated  of the checkpoint that the run goes on from, 0 for a new one: rows that come again are cut off. Raises
                     TrainingError for a file of other content
    """

    def __init__(self, path: Path, step: int, validated: bool) -> None:
        self.path = path
        self.columns, rows = _read(path)
        try:
            steps = [int(row["step"]) for row in rows]
        except (KeyError, ValueError):
            raise TrainingError(
                f"{path}: another program has changed it; move it away, and the run begins a new one"
            ) from None
        kept = [
            row for row, at in zip(rows, steps) if at < step or (at == step and (validated or not row.get("score")))
        ]
        if path.exists():
            self._write(kept if step else [])

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Append one row. A name that is new becomes a column."""
        row = {"step": str(step), **{name: f"{value:.6g}" for name, value in values.items()}}
        new = [name for name in row if name not in self.columns]
        if new:  # once for losses and once for scores
            self.columns += new
            self._write([*_read(self.path)[1], row])
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def _write(self, rows: list[Row]) -> None:
        with atomic_write(self.path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows; without the last row where a kill left half of it."""
    if not path.exists():
        return [], []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    rows = list(reader)
    return list(reader.fieldnames or []), rows
