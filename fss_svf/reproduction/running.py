"""Runs jobs as processes of their own: side by side, each after what it needs, and none left behind."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from fss_svf.errors import STOPPED, ConfigError, Stopped
from fss_svf.provenance import write_json
from fss_svf.reproduction.job import Job

log = logging.getLogger(__name__)
_SCREEN = "screen.txt"  # the output of one of several jobs


class Runner:
    """Runs jobs, `at_once` side by side, each by so many processes of torchrun; writes how long each took to `times`.

    Where there are GPUs, each process of each job has one of its own, but jobs of one process share what is too few.
    Raises ConfigError where there are too few of them for several jobs of several processes. on_cpu: they need none.
    """

    def __init__(self, at_once: int, processes: int, times: Path, on_cpu: bool = False) -> None:
        self.at_once, self.processes, self.times = at_once, processes, times
        self._free = shares([] if on_cpu else _gpus(), at_once, processes)
        self._running: dict[subprocess.Popen[bytes], tuple[Job, str, float]] = {}  # with its GPUs and when it began

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Run jobs, each after what it needs of the others. Returns those that failed or lacked what failed.

        Raises Stopped where one was stopped by a signal. Whatever raises here, an interrupt too, ends all that run.
        """
        waiting, failed = list(jobs), []
        try:
            while waiting or self._running:
                not_done = [*waiting, *(job for job, _, _ in self._running.values())]
                for job in list(waiting):
                    lacks = job.needs in failed
                    if not lacks and (job.needs in not_done or not self._free):
                        continue
                    waiting.remove(job)
                    if lacks:
                        log.warning("%s is left out: it needs a job that failed", job.name)
                    else:
                        log.info("job %d of %d: %s", len(jobs) - len(waiting), len(jobs), job.name)
                    if lacks or not self._start(job):
                        failed.append(job)
                time.sleep(0.1)
                for process in [process for process in self._running if process.poll() is not None]:
                    job, status = self._end(process), process.returncode
                    if status == STOPPED:
                        raise Stopped(f"{job.name} was stopped; the same command goes on with it")
                    if status != 0:
                        where = "the lines above" if self.at_once == 1 else _SCREEN
                        log.error(
                            "%s ended with status %d; see %s and log.txt in %s", job.name, status, where, job.folder
                        )
                        failed.append(job)
        finally:
            for process in self._running:
                process.terminate()
            for process in list(self._running):
                process.wait()
                self._end(process)
        return [job for job in jobs if job in failed]

    def _start(self, job: Job) -> bool:
        gpus = self._free.pop(0)
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {})}
        environment.pop("HYDRA_FULL_ERROR", None)  # set by this verb for itself; an error of a job is a line too
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        # On the CPU there is no pretraining by several processes.
        several = self.processes > 1 and not (job.verb == "pretrain" and not torch.cuda.is_available())
        command = [sys.executable, *(launcher if several else []), "-m", "fss_svf", *job.command()]
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            # The bars of several jobs would write over each other.
            with nullcontext() if self.at_once == 1 else (job.folder / _SCREEN).open("ab") as screen:
                process = subprocess.Popen(command, env=environment, stdout=screen, stderr=screen)
        except OSError as error:  # its folder cannot be made, or the machine has no process left
            log.error("%s could not be started: %s", job.name, error)
            self._free.append(gpus)
            return False
        self._running[process] = job, gpus, time.perf_counter()
        return True

    def _end(self, process: subprocess.Popen[bytes]) -> Job:
        """Note the time of a job whose process has ended: the sum, where it goes on later. Its GPUs are free again."""
        job, gpus, began = self._running.pop(process)
        self._free.append(gpus)
        seconds = read_seconds(self.times)
        write_json(self.times, {**seconds, job.name: seconds.get(job.name, 0) + time.perf_counter() - began})
        return job


def read_seconds(path: Path) -> dict[str, float]:
    """How long jobs took, by name. Only an estimate needs it: empty where the file cannot be read."""
    try:
        seconds: dict[str, float] = json.loads(path.read_text())
        return seconds
    except (OSError, ValueError):
        return {}


def shares(gpus: Sequence[str], jobs: int, processes: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each job; empty where jobs take what they find."""
    if jobs == 1 or not gpus:
        return [""] * jobs
    if processes > 1 and len(gpus) < jobs * processes:
        raise ConfigError(
            f"jobs={jobs} processes={processes}: each process needs a GPU of its own, {jobs * processes} in all, and there "
            f"are {len(gpus)}; lower one of them"
        )
    return [",".join(gpus[(n * processes + i) % len(gpus)] for i in range(processes)) for n in range(jobs)]


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them: a scheduler may have given some."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in names.split(",")[:count]] if names else [str(number) for number in range(count)]
