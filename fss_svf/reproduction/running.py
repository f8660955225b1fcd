"""Runs jobs as processes of their own: side by side, each after what it needs, and none left behind."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch

from fss_svf.errors import Stopped
from fss_svf.reproduction.cost import Clock
from fss_svf.reproduction.jobs import Job

log = logging.getLogger(__name__)
# A training that a signal stopped and that can go on.
_STOPPED = 75


class Runner:
    """jobs: how many side by side; processes: of torchrun for each job."""

    def __init__(self, jobs: int, processes: int, clock: Clock) -> None:
        self.jobs, self.processes, self.clock = jobs, processes, clock
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ending = False
        self._gpus: queue.Queue[str] = queue.Queue()
        gpus = _gpus() if jobs > 1 and processes == 1 else []
        for number in range(jobs):
            self._gpus.put(gpus[number % len(gpus)] if len(gpus) > 1 else "")

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
            status, last_words = self._process(job, gpu)
            seconds = time.perf_counter() - began
            with self._lock:
                self.clock.add(job, seconds)
            if status not in (0, _STOPPED):
                log.error(
                    "%s ended with status %d; %s says why%s", job.name, status, job.folder / "log.txt", last_words
                )
            return status
        finally:
            self._gpus.put(gpu)

    def _process(self, job: Job, gpu: str) -> tuple[int, str]:
        """Its exit status, and where the screen did not show it the last line it wrote."""
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        # On the CPU there is no pretraining by several processes.
        several = self.processes > 1 and not (job.verb == "pretrain" and not torch.cuda.is_available())
        command = [sys.executable, *(launcher if several else []), "-m", "fss_svf", *job.command()]
        if self.jobs == 1:
            return self._wait(command, env=environment), ""
        # Side by side, their bars would write over each other.
        with tempfile.TemporaryFile() as screen:
            status = self._wait(command, env=environment, stdout=subprocess.DEVNULL, stderr=screen)
            screen.seek(max(0, screen.seek(0, os.SEEK_END) - 10_000))
            lines = screen.read().decode(errors="replace").replace("\r", "\n").split("\n")
        return status, next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def _wait(self, command: Sequence[str], **options: Any) -> int:
        with self._lock:
            if self._ending:
                return _STOPPED
            process = subprocess.Popen(command, **options)
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
        return status

    def _end_all(self) -> None:
        with self._lock:
            self._ending = True
            for process in self._running:
                process.terminate()


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES is to be for each GPU that this process sees."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return said.split(",")[: torch.cuda.device_count()]
