"""Programs that tests start, interrupt and kill: each a process group of its own, none of which outlives its test."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import fss_svf

PACKAGE_AT = Path(fss_svf.__file__).parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@contextmanager
def starting(folder):
    """Gives a function that starts Python with its arguments in `folder`, with variables of the environment as keywords."""
    running = []

    def start(*arguments, **variables):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE_AT), **variables},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        running.append(process)
        return process

    try:
        yield start
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def ended(process, status=0, seconds=240):
    """What a process wrote, once it has ended with this status."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == status, err
    return out, err
