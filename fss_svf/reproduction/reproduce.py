"""fss-svf reproduce: what a table still lacks is run, then the table is reported."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from fss_svf.config import EvaluateConfig, ReportConfig, ReportFormat, ReproduceConfig
from fss_svf.errors import TrainingError, listing
from fss_svf.evaluation.untrained import choose
from fss_svf.page.report import report
from fss_svf.registry import DATASETS
from fss_svf.reproduction.jobs import make_jobs
from fss_svf.reproduction.plan import commands, plan_table
from fss_svf.reproduction.running import Runner, read_seconds

log = logging.getLogger(__name__)


def reproduce(config: ReproduceConfig, out: Path) -> None:
    """Print the plan of config.table, run in `out` what is missing, and report all results there.

    `out` gets pretrain/, train/ and evaluate/ with a run folder a job, plan.md, commands.txt with what was missing,
    seconds.json, and the report. Raises ConfigError and DataError before anything runs; TrainingError at the end, naming
    what failed.
    """
    jobs, times = make_jobs(config, out), out / "seconds.json"
    missing = [job for job in jobs if not job.done]
    plan = plan_table(jobs, missing, read_seconds(times), config.jobs)
    print(plan)
    (out / "plan.md").write_text(plan + "\n", encoding="utf-8")
    (out / "commands.txt").write_text(commands(missing), encoding="utf-8")
    if config.plan:
        finished = len(jobs) - len(missing)
        log.info("%d of %d jobs are finished; the others' commands: %s", finished, len(jobs), out / "commands.txt")
        return
    datasets = {str(c.dataset): c.dataset for job in missing if not isinstance(c := job.config, EvaluateConfig)}
    for dataset in datasets.values():
        for split in ("train", "val"):
            DATASETS.build(dataset).split(split)  # one that is not prepared is an error here, not in every job
    evaluations = [job.config for job in missing if isinstance(job.config, EvaluateConfig)]
    others = {str(c.dataset): choose(DATASETS, c.dataset) for c in evaluations if "name" in c.dataset}
    for dataset in others.values():
        DATASETS.build(dataset).split("val")
    failed = Runner(config.jobs, config.processes, times, "device=cpu" in config.overrides).run(missing)
    if not missing:
        log.info("all %d jobs are finished, nothing to run", len(jobs))
    if any(out.glob("evaluate/**/result.json")):  # of other calls too: only=, folds
        report(ReportConfig("report", out / "evaluate", out, get_args(ReportFormat)), out)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(missing)} jobs failed or lacked what failed: {listing(job.name for job in failed)}; "
            f"what stands above says where to look, the same command runs what is missing"
        )
