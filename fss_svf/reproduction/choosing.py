"""The rates of rows with candidates: each candidate is trained, and the best mIoU on held-out base classes wins.

Nothing is written down of a choice: it follows from the finished run folders under choose/, each time anew.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from fss_svf.config import TrainConfig
from fss_svf.errors import TrainingError
from fss_svf.reporting.markdown import markdown_lines
from fss_svf.reproduction.job import Job

_HEADER = ("rate of", "fold", "held-out mIoU of each candidate", "chosen")


def chosen(candidates: Mapping[float, Job], checkpoint: Literal["last", "best"]) -> float | None:
    """The candidate of the best score, the first of equals. None while one is not done, and where none has a score.

    checkpoint: of which the score is, the one that the table evaluates.
    """
    if not all(job.done for job in candidates.values()):
        return None
    scores = {rate: score(job.folder, checkpoint) for rate, job in candidates.items()}
    known = {rate: value for rate, value in scores.items() if value is not None}
    return max(known, key=lambda rate: known[rate]) if known else None


def score(run: Path, checkpoint: Literal["last", "best"]) -> float | None:
    """mIoU of the run's last validation, or of its best one; None where its loss was not finite. Raises TrainingError."""
    finished = run / "finished.json"
    if not finished.exists():
        return None
    try:
        if checkpoint == "best":
            return float(json.loads(finished.read_text())["score"])
        with (run / "log.csv").open(encoding="utf-8", newline="") as file:
            return [float(row["score"]) for row in csv.DictReader(file) if row.get("score")][-1]
    except (OSError, ValueError, LookupError) as error:
        raise TrainingError(
            f"{run}: the score of its validation cannot be read ({error}); move it away, and it is trained again"
        ) from None


def choices_table(jobs: Sequence[Job], checkpoint: Literal["last", "best"]) -> str:
    """A line a choice: the scores of its candidates, and the rate chosen: Markdown. Empty without candidates."""
    groups: dict[tuple[str, object, int], dict[float, Job]] = {}
    for job in jobs:
        if job.rate is not None:
            assert isinstance(job.config, TrainConfig)
            groups.setdefault((job.group, job.config.fold, job.config.shot), {})[job.rate] = job
    if not groups:
        return ""
    shots = {shot for _, _, shot in groups}
    lines = []
    for (row, fold, shot), candidates in groups.items():
        rate = chosen(candidates, checkpoint)
        cells = [f"{candidate:g}: {_in_words(job, checkpoint)}" for candidate, job in candidates.items()]
        at_end = rate in (min(candidates), max(candidates))
        word = "-" if rate is None else f"{rate:g}" + (" (the outermost)" if at_end else "")
        lines.append([row + (f", {shot}-shot" if len(shots) > 1 else ""), str(fold), ", ".join(cells), word])
    return markdown_lines([_HEADER, *lines], words=4)


def _in_words(job: Job, checkpoint: Literal["last", "best"]) -> str:
    if not job.done:
        return "-"
    value = score(job.folder, checkpoint)
    return "not finite" if value is None else f"{100 * value:.1f}"
