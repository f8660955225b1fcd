"""The plan of a table as a person reads it, and as a scheduler takes it."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from fss_svf.reporting.markdown import markdown_lines
from fss_svf.reproduction.job import Job

STAGES = ("pretrain", "choose", "train", "evaluate")
_HEADER = ("jobs of", "base learners", "rates", "trainings", "evaluations", "hours to do")


@dataclass(frozen=True)
class Estimate:
    """Hours of jobs on a device by its table of rates. processes: that share a job, each with such a device."""

    device_model: str
    processes: int
    on_one: Mapping[Job, float]

    @property
    def hours(self) -> dict[Job, float]:
        return {job: hours / self.processes for job, hours in self.on_one.items()}

    @property
    def in_words(self) -> str:
        of_each = f" in each of {self.processes} processes" if self.processes > 1 else ""
        return (
            f" '~': an estimate, not measured, for device_model={self.device_model}{of_each}: the arithmetic of the "
            "training steps over a sustained rate (docs/reproducing.md), without loading, validation and evaluations; a "
            "finished job of the kind takes its place."
        )


def plan_table(
    jobs: Sequence[Job],
    missing: Sequence[Job],
    seconds: Mapping[str, float],
    side_by_side: int,
    estimate: Estimate | None = None,
) -> str:
    """A line a row of the table, finished of all: Markdown, with the sum below.

    seconds   of the jobs that ran here, by name
    estimate  hours of jobs of whose kind none has finished here
    """
    timed = defaultdict(list)
    for job in jobs:
        if job not in missing and job.name in seconds:
            timed[job.kind].append(seconds[job.name])
    hours = dict(estimate.hours) if estimate else {}
    hours |= {job: mean(timed[job.kind]) / 3600 for job in missing if job.kind in timed}
    lines = []
    for group in (*dict.fromkeys(job.group for job in jobs), "all"):
        own = [job for job in jobs if group in (job.group, "all")]
        to_do = [job for job in own if job in missing]
        known = sum(hours.get(job, 0) for job in to_do) / (side_by_side if group == "all" else 1)
        cells = [_count([job for job in own if job.stage == stage], missing) for stage in STAGES]
        unknown = sum(job not in hours for job in to_do)
        about = "~" if any(job in hours and job.kind not in timed for job in to_do) else ""
        lines.append([group, *cells, f"{about}{known:.1f}" + (f" + {unknown} jobs" if unknown else "")])
    return markdown_lines([_HEADER, *lines], words=1) + (
        "\n\nCells are finished/all. Hours are the mean of the finished jobs of the same row and shot; those of '+ N jobs' "
        "are known when one of their kind has finished here (conf/experiment/ has estimates). The last line is for "
        f"jobs={side_by_side}."
        + (estimate.in_words if estimate else "")
        + (
            " Trainings of rows with rates, and what needs them, begin when their rate is chosen."
            if any(job.waits for job in missing)
            else ""
        )
    )


def commands(jobs: Sequence[Job]) -> str:
    """The commands of jobs, a line each, in stages with an empty line between: all of a stage may run at once.

    Those that wait for a rate are left out: their commands are not known before it is chosen.
    """
    ready = [job for job in jobs if not job.waits]
    stages = (["fss-svf " + shlex.join(job.command()) for job in ready if job.stage == stage] for stage in STAGES)
    return "\n\n".join("\n".join(stage) for stage in stages if stage) + "\n"


def _count(jobs: Sequence[Job], missing: Sequence[Job]) -> str:
    return f"{sum(job not in missing for job in jobs)}/{len(jobs)}" if jobs else ""
