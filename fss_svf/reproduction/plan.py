"""The plan of a table as a person reads it, and as a scheduler takes it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from fss_svf.reporting.markdown import markdown_lines
from fss_svf.reproduction.cost import Clock, Costs
from fss_svf.reproduction.jobs import Job

_HEADER = ("jobs of", "base learners", "trainings", "evaluations", "steps to do", "PFLOP to do", "hours to do")


def plan_table(
    jobs: Sequence[Job], done: set[str], costs: Costs, clock: Clock, tflops: float, side_by_side: int
) -> str:
    """A line a row of the table, finished of all: Markdown, with the sum and what the hours are worth below.

    done: names of the finished jobs. tflops: TFLOP/s that are assumed while none was timed.
    """
    measured = clock.speed([job for job in jobs if job.name in done], costs)
    speed = measured or tflops * 1e12
    lines, total = [], 0.0
    for group in dict.fromkeys(job.group for job in jobs):
        own = [job for job in jobs if job.group == group]
        to_do = [job for job in own if job.name not in done]
        operations = sum(map(costs.operations, to_do))
        total += operations
        cells = [_count(own, done, verb) for verb in ("pretrain", "train", "evaluate")]
        lines.append(
            [group, *cells, f"{sum(map(costs.steps, to_do)):,}", _round(operations / 1e15), _hours(operations, speed)]
        )
    sums = [_count(jobs, done, verb) for verb in ("pretrain", "train", "evaluate")]
    steps = sum(costs.steps(job) for job in jobs if job.name not in done)
    lines.append(["all", *sums, f"{steps:,}", _round(total / 1e15), _hours(total / side_by_side, speed)])
    how = "measured on the jobs that ran here" if measured else "assumed (tflops)"
    return (
        markdown_lines([_HEADER, *lines], words=1)
        + "\n\nCells are finished/all. Hours are an estimate by the operations of the backbone alone (heads and validations "
        f"come on top), at {speed / 1e12:.3g} TFLOP/s, {how}; in the last line {side_by_side} side by side."
    )


def commands(jobs: Sequence[Job]) -> str:
    """The commands of jobs, a line each, in stages with an empty line between: all of a stage may run at once."""
    stages = (
        ["fss-svf " + shlex.join(job.command()) for job in jobs if job.verb == verb]
        for verb in ("pretrain", "train", "evaluate")
    )
    return "\n\n".join("\n".join(stage) for stage in stages if stage) + "\n"


def _count(jobs: Sequence[Job], done: set[str], verb: str) -> str:
    own = [job for job in jobs if job.verb == verb]
    return f"{sum(job.name in done for job in own)}/{len(own)}" if own else ""


def _hours(operations: float, speed: float) -> str:
    return _round(operations / speed / 3600)


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
