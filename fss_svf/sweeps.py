"""What became of the jobs of a sweep, whatever launcher ran them and in whatever process: told at its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fss_svf.errors import FssError
from fss_svf.provenance import write_json

_AT_WORK = "did not come to its end (killed, or still at work)"


class Logged(Exception):
    """The result of a job that ended with an error, which its log has already. Raised, it would end Hydra's sweep."""


class Outcomes(Callback):
    """Every job leaves a file in a folder of the sweep, since launchers hand results to Hydra's sweeper alone.

    Hydra makes one (conf/run/folder.yaml), and jobs in other processes, or on other machines, have a copy. These end
    when the folder is gone: the sweep was interrupted.
    """

    sweep: Outcomes | None = None  # the one that this process began

    def __init__(self) -> None:
        self.folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute() / f".sweep-{uuid4().hex}"
        with suppress(OSError):  # what cannot be written Hydra meets next, and its error is told
            folder.mkdir(parents=True)
            self.folder = folder
        Outcomes.sweep = self

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if self.folder is None:
            return
        self.ended = Event()
        if Outcomes.sweep is not self:
            if not self.folder.exists():  # a job that waited in a queue
                sys.exit(130)
            Thread(target=self._watch, args=(self.folder,), daemon=True).start()
        self._note(config, _AT_WORK)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if self.folder is None:
            return
        self.ended.set()
        # The property would raise it.
        value = job_return._return_value
        self._note(config, str(value) if isinstance(value, Exception) else None)

    def _watch(self, folder: Path) -> None:
        while not self.ended.wait(1):
            if not folder.exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    def _note(self, config: DictConfig, error: str | None) -> None:
        assert self.folder is not None
        overrides = OmegaConf.to_container(config.hydra.overrides.task)
        with suppress(FileNotFoundError):  # gone
            write_json(self.folder / f"{config.hydra.job.num:06d}.json", {"overrides": overrides, "error": error})


def gist(error: Exception) -> str:
    """The first line of an error, with its kind where that is no message for people."""
    first = str(error).strip().split("\n")[0]
    return first if isinstance(error, FssError) else f"{type(error).__name__}: {first}"


def report(again: bool) -> bool:
    """End this process's sweep: print how many jobs finished, and what failed; whether all did. True without a sweep.

    again: the same command runs what is missing.
    """
    sweep, Outcomes.sweep = Outcomes.sweep, None
    if sweep is None or sweep.folder is None:
        return True
    jobs = [json.loads(path.read_text()) for path in sorted(sweep.folder.glob("*.json"))]
    failed = [job for job in jobs if job["error"] is not None]
    lines = [f"sweep: {len(jobs) - len(failed)} of {len(jobs)} jobs finished"]
    for job in failed:
        swept = [o for o in job["overrides"] if not all(o in other["overrides"] for other in jobs)]
        lines.append(f"  failed: {' '.join(swept or job['overrides'])}: {job['error']}")
    if failed and again:
        lines.append("the same command again runs what is missing")
    print("\n".join(lines), file=sys.stderr)
    # Where a launcher gave up, jobs may be at work on other machines: they go on.
    if not any(job["error"] == _AT_WORK for job in failed):
        shutil.rmtree(sweep.folder, ignore_errors=True)
    return not failed


def interrupt() -> None:
    """End this process's sweep with the jobs that still run somewhere."""
    if Outcomes.sweep is not None and Outcomes.sweep.folder is not None:
        shutil.rmtree(Outcomes.sweep.folder, ignore_errors=True)
    Outcomes.sweep = None
