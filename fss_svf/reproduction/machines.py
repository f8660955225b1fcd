"""Where the finished jobs of a table ran, and how long they took."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fss_svf.reporting.markdown import markdown_lines
from fss_svf.reproduction.job import Job

_HEADER = ("ran on", "jobs", "hours")


def machines_table(jobs: Sequence[Job], seconds: Mapping[str, float]) -> str:
    """A line for each machine and set of versions: Markdown. Empty where nothing has run.

    jobs: the finished ones. seconds: of the jobs, by name, as `reproduce` measured them; jobs side by side each count
    their own. A job that went on elsewhere counts for the machine where it ended.
    """
    found: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        found[_where(job.folder)].append(job)
    lines = []
    for where, of_machine in found.items():
        timed = [seconds[job.name] for job in of_machine if job.name in seconds]
        unknown = len(of_machine) - len(timed)
        hours = f"{sum(timed) / 3600:.1f}" + (f" + {unknown} jobs" if unknown else "")
        lines.append([where, f"{len(of_machine)}", hours])
    return markdown_lines([_HEADER, *lines], words=1) if lines else ""


def _where(folder: Path) -> str:
    try:
        start: dict[str, Any] = json.loads((folder / "provenance.json").read_text())["starts"][-1]
        versions = (
            f"Python {start['python']}, torch {start['packages']['torch']}, fss-svf {start['packages']['fss-svf']}"
        )
        return f"{_in_words(start['machine'])}; {versions}" if "machine" in start else f"not recorded; {versions}"
    except (OSError, ValueError, LookupError, TypeError):
        return "not recorded"


def _in_words(machine: Mapping[str, Any]) -> str:
    cpu = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads a job, {machine['instructions']}"
    return ", ".join([*machine["gpus"], cpu])
