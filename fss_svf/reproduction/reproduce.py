"""fss-svf reproduce: what a table still lacks is run, then the table is reported."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fss_svf.config import ReportConfig, ReportFormat, ReproduceConfig
from fss_svf.errors import TrainingError, listing
from fss_svf.reporting.report import report
from fss_svf.reproduction.cost import Clock, Costs
from fss_svf.reproduction.jobs import Job, make_jobs
from fss_svf.reproduction.plan import commands, plan_table
from fss_svf.reproduction.running import Runner

log = logging.getLogger(__name__)


def reproduce(config: ReproduceConfig, out: Path) -> None:
    """Print the plan of config.table, run in `out` what is missing, and report all results there.

    `out` gets pretrain/, train/ and evaluate/ with a run folder a job, plan.md, commands.txt with what was missing, and
    the report. Raises ConfigError and DataError before anything runs; TrainingError at the end, naming what failed.
    """
    jobs = make_jobs(config, out)
    clock, costs = Clock(out / "seconds.json"), Costs()
    missing = [job for job in jobs if not job.done]
    done = {job.name for job in jobs} - {job.name for job in missing}
    plan = plan_table(jobs, done, costs, clock, config.tflops, config.jobs)
    print(plan)
    (out / "plan.md").write_text(plan + "\n", encoding="utf-8")
    (out / "commands.txt").write_text(commands(missing), encoding="utf-8")
    if config.plan:
        log.info(
            "%d of %d jobs are finished; the commands of the others: %s", len(done), len(jobs), out / "commands.txt"
        )
        return
    on_cpu = "device=cpu" in config.overrides
    failed = _run(missing, Runner(config.jobs, config.processes, clock, on_cpu)) if missing else []
    if not missing:
        log.info("all %d jobs are finished, nothing to run", len(jobs))
    if any(out.glob("evaluate/**/result.json")):  # of other calls too: only=, folds
        report(ReportConfig("report", out / "evaluate", out / "report", get_args(ReportFormat)), out)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(missing)} jobs failed or lacked what failed: {listing(job.name for job in failed)}; "
            f"what stands above says where to look, the same command runs what is missing"
        )


def _run(missing: Sequence[Job], runner: Runner) -> list[Job]:
    """Run the jobs stage by stage; those that failed, and those that need one of them."""
    failed: list[Job] = []
    number = 1
    for verb in ("pretrain", "train", "evaluate"):
        stage = [job for job in missing if job.verb == verb]
        lacking = [job for job in stage if job.needs in failed]
        for job in lacking:
            assert job.needs is not None
            log.warning("%s is left out: it needs %s", job.name, job.needs.name)
        ready = [job for job in stage if job not in lacking]
        failed += [*lacking, *runner.run(ready, number, len(missing))]
        number += len(stage)
    return failed
