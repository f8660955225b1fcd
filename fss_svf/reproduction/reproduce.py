"""fss-svf reproduce: what a table still lacks is run, then the table is reported."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fss_svf.config import ReportConfig, ReportFormat, ReproduceConfig
from fss_svf.errors import TrainingError, listing
from fss_svf.page.report import report
from fss_svf.registry import DATASETS
from fss_svf.reproduction.choosing import choices_table
from fss_svf.reproduction.hours import estimated_hours, rates_of
from fss_svf.reproduction.job import Job
from fss_svf.reproduction.jobs import make_jobs
from fss_svf.reproduction.machines import machines_table
from fss_svf.reproduction.plan import Estimate, commands, plan_table
from fss_svf.reproduction.running import Runner, read_seconds

log = logging.getLogger(__name__)


def reproduce(config: ReproduceConfig, out: Path) -> None:
    """Print the plan of config.table, run in `out` what is missing, and report all results there.

    `out` gets pretrain/, choose/, train/ and evaluate/ with a run folder a job, plan.md, commands.txt with what was missing,
    seconds.json, and the report. Raises ConfigError and DataError before anything runs; TrainingError at the end, naming
    what failed.
    """
    if config.device_model is not None:
        rates_of(config.device_model)  # a wrong name is an error at once
    jobs, times = make_jobs(config, out), out / "seconds.json"
    missing = [job for job in jobs if not job.done]
    if not config.plan:
        _require_datasets(missing)
    plan = _plan(config, jobs, missing, times)
    print(plan)
    (out / "plan.md").write_text(plan + "\n", encoding="utf-8")
    (out / "commands.txt").write_text(commands(missing), encoding="utf-8")
    if config.plan:
        finished = len(jobs) - len(missing)
        log.info("%d of %d jobs are finished; the others' commands: %s", finished, len(jobs), out / "commands.txt")
        return
    failed = _run(config, out, missing, times)
    if not missing:
        log.info("all %d jobs are finished, nothing to run", len(jobs))
    if any(out.glob("evaluate/**/result.json")):  # of other calls too: only=, folds
        report(ReportConfig("report", out / "evaluate", out, get_args(ReportFormat)), out)
    if missing:
        if any(job.waits for job in missing):
            jobs = make_jobs(config, out)
            print(choices_table(jobs, config.table.checkpoint))
        plan = _plan(config, jobs, [job for job in jobs if not job.done], times)
        (out / "plan.md").write_text(plan + "\n", encoding="utf-8")
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(missing)} jobs failed or lacked what failed: {listing(job.name for job in failed)}; "
            f"what stands above says where to look, the same command runs what is missing"
        )


def _require_datasets(jobs: Sequence[Job]) -> None:
    """Raise DataError of the first dataset that is not prepared: here, not in every job."""
    for split in ("train", "val"):
        datasets = {str(job.dataset): job.dataset for job in jobs if split == "val" or job.stage != "evaluate"}
        for dataset in datasets.values():
            DATASETS.build(dataset).split(split)


def _plan(config: ReproduceConfig, jobs: Sequence[Job], missing: Sequence[Job], times: Path) -> str:
    """The tables of the jobs, of the rates, and of the machines."""
    seconds, estimate = read_seconds(times), None
    if config.device_model is not None and missing:
        log.info("counting the operations of each model's training step, for hours on %s", config.device_model)
        estimate = Estimate(config.device_model, config.processes, estimated_hours(missing, config.device_model))
    choices = choices_table(jobs, config.table.checkpoint)
    machines = machines_table([job for job in jobs if job not in missing], seconds)
    return "\n\n".join(filter(None, [plan_table(jobs, missing, seconds, config.jobs, estimate), choices, machines]))


def _run(config: ReproduceConfig, out: Path, missing: Sequence[Job], times: Path) -> list[Job]:
    """Run the missing jobs, those that wait for a rate after the others. Returns those that failed or lacked what failed."""
    runner = Runner(config.jobs, config.processes, times, "device=cpu" in config.overrides)
    # A candidate whose loss is not finite is done all the same.
    failed = [job for job in runner.run([job for job in missing if not job.waits]) if not job.done]
    waited = {job.name for job in missing if job.waits}
    if not waited:
        return failed
    later = [job for job in make_jobs(config, out) if job.name in waited and not job.done]
    lacking = [job for job in later if job.waits]
    for row in dict.fromkeys(job.group for job in lacking):
        log.warning("row %s is left out: it has no chosen rate", row)
    return [*failed, *lacking, *runner.run([job for job in later if not job.waits])]
