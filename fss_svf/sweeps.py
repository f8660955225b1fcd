"""What became of the jobs of a sweep, whatever launcher ran them and in whatever process: told at its end."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fss_svf.errors import FssError
from fss_svf.provenance import write_json

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class Logged(Exception):
    """A job ended with an error that its log, and with it the console, has told already."""


class Outcomes(Callback):
    """Every job leaves a file in a folder of the sweep, since launchers hand results to Hydra's sweeper alone.

    Hydra makes one (conf/run/folder.yaml); jobs in other processes have a copy.
    """

    sweep: Outcomes | None = None  # of this process

    def __init__(self) -> None:
        self.folder = Path()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self.folder = Path(config.hydra.sweep.dir).absolute() / f".sweep-{uuid4().hex}"
        self.folder.mkdir(parents=True)
        Outcomes.sweep = self

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if self.folder != Path():
            self._note(config, "ended without a word: killed?")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if self.folder != Path():
            # The property would raise it.
            value = job_return._return_value
            self._note(config, str(value) if isinstance(value, Exception) else None)

    def _note(self, config: DictConfig, error: str | None) -> None:
        overrides = OmegaConf.to_container(config.hydra.overrides.task)
        write_json(self.folder / f"{config.hydra.job.num:06d}.json", {"overrides": overrides, "error": error})


def failed_job(error: Exception, sweeper: str) -> Logged:
    """What the job returns. Sweepers that search want it raised; Hydra's own would end the sweep after the batch."""
    logged = Logged(gist(error))
    if sweeper != _BASIC:
        raise logged
    return logged


def gist(error: Exception) -> str:
    """The first line of an error, with its kind where that is no message for people."""
    first = str(error).strip().split("\n")[0]
    return first if isinstance(error, FssError) else f"{type(error).__name__}: {first}"


def running() -> bool:
    """Whether this process has begun a sweep."""
    return Outcomes.sweep is not None


def tell_outcome(again: bool) -> bool:
    """Say on the screen how many jobs of this process's sweep finished, and what failed; whether all did.

    again: the same command runs what is missing.
    """
    if Outcomes.sweep is None:
        return True
    jobs = [json.loads(path.read_text()) for path in sorted(Outcomes.sweep.folder.glob("*.json"))]
    _forget()
    failed = [job for job in jobs if job["error"] is not None]
    lines = [f"sweep: {len(jobs) - len(failed)} of {len(jobs)} jobs finished"]
    for job in failed:
        swept = [o for o in job["overrides"] if not all(o in other["overrides"] for other in jobs)]
        lines.append(f"  failed: {' '.join(swept or job['overrides'])}: {job['error']}")
    if failed and again:
        lines.append("the same command again runs what is missing")
    print("\n".join(lines), file=sys.stderr)
    return not failed


def stop() -> None:
    """End what an interrupted sweep of this process has started."""
    if Outcomes.sweep is not None:
        _forget()


def _forget() -> None:
    if Outcomes.sweep is not None:
        shutil.rmtree(Outcomes.sweep.folder, ignore_errors=True)
    Outcomes.sweep = None
