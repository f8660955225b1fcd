"""Runs jobs as processes of their own: side by side, each after what it needs, and none left behind."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from typing import IO

import torch

from fss_svf.errors import ConfigError, Stopped
from fss_svf.reproduction.cost import Clock
from fss_svf.reproduction.jobs import Job

log = logging.getLogger(__name__)
# A training that a signal stopped and that can go on.
_STOPPED = 75
# What a job of several says: also what a library or the system says beside the log.
_SCREEN = "screen.txt"


class Runner:
    """jobs: how many side by side; processes: of torchrun for each job.

    Where there are GPUs, each process of each job has one of its own, but jobs of one process share what is too few.
    Raises ConfigError where there are too few of them for several jobs of several processes. on_cpu: they need none.
    """

    def __init__(self, jobs: int, processes: int, clock: Clock, on_cpu: bool = False) -> None:
        self.jobs, self.processes, self.clock = jobs, processes, clock
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ending = False
        self._gpus: queue.Queue[str] = queue.Queue()
        for names in _shares([] if on_cpu else _gpus(), jobs, processes):
            self._gpus.put(",".join(names))

    def run(self, jobs: Sequence[Job], number: int, total: int) -> list[Job]:
        """Run jobs of one stage, none of which needs another; number of total: of the first. Returns those that failed.

        Raises Stopped where one was stopped by a signal; ends what runs when this process is to end.
        """
        pool, statuses = ThreadPoolExecutor(self.jobs), {}
        try:
            started = {pool.submit(self._one, job, n, total): job for n, job in enumerate(jobs, number)}
            for future in as_completed(started):
                statuses[started[future].name] = future.result()
                if future.result() == _STOPPED:
                    raise Stopped(f"{started[future].name} was stopped; the same command goes on with it")
        except BaseException:
            self._end_all()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return [job for job in jobs if statuses[job.name] != 0]

    def _one(self, job: Job, number: int, total: int) -> int:
        gpu = self._gpus.get()
        try:
            log.info("job %d of %d: %s", number, total, job.name)
            began = time.perf_counter()
            status = self._process(job, gpu)
            seconds = time.perf_counter() - began
            with self._lock:
                self.clock.add(job, seconds)
            if status not in (0, _STOPPED) and not self._ending:  # else it was told to end; torchrun's status is 1 then
                where = f"in {job.folder} {_SCREEN} and" if self.jobs > 1 else f"the lines above and, in {job.folder},"
                log.error("%s ended with status %d; %s log.txt say why", job.name, status, where)
            return status
        except OSError as error:  # its folder cannot be made, or the machine has no process left
            log.error("%s could not be started: %s", job.name, error)
            return 1
        finally:
            self._gpus.put(gpu)

    def _process(self, job: Job, gpu: str) -> int:
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        environment.pop("HYDRA_FULL_ERROR", None)  # set by this verb for itself; an error of a job is a line too
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        # On the CPU there is no pretraining by several processes.
        several = self.processes > 1 and not (job.verb == "pretrain" and not torch.cuda.is_available())
        command = [sys.executable, *(launcher if several else []), "-m", "fss_svf", *job.command()]
        with self._lock, self._screen(job) as screen:
            if self._ending:
                return _STOPPED
            process = subprocess.Popen(command, env=environment, stdout=screen, stderr=screen)
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
        return status

    def _screen(self, job: Job) -> AbstractContextManager[IO[bytes] | None]:
        """Where a job writes to. Side by side, their bars would write over each other."""
        if self.jobs == 1:
            return nullcontext()
        job.folder.mkdir(parents=True, exist_ok=True)
        return (job.folder / _SCREEN).open("ab")

    def _end_all(self) -> None:
        with self._lock:
            self._ending = True
            for process in self._running:
                process.terminate()


def _shares(gpus: Sequence[str], jobs: int, processes: int) -> list[Sequence[str]]:
    """The GPUs of each job; none of all jobs: they take what they find."""
    if jobs == 1 or not gpus:
        return [()] * jobs
    if processes == 1:
        return [(gpus[number % len(gpus)],) for number in range(jobs)]
    if len(gpus) < jobs * processes:
        raise ConfigError(
            f"jobs={jobs} processes={processes}: each process needs a GPU of its own, {jobs * processes} in all, and there "
            f"are {len(gpus)}; lower one of them"
        )
    return [gpus[number * processes : (number + 1) * processes] for number in range(jobs)]


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them: a scheduler may have given some."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in given.split(",")[:count]] if given else [str(number) for number in range(count)]
