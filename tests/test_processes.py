"""Training over processes: the steps of one process, one run folder, and an end for all when one fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fss_svf
from fss_svf.checkpoint import load_checkpoint
from fss_svf.errors import ConfigError
from fss_svf.training.step import Shares
from tests.conftest import TOY

PACKAGE_AT = Path(fss_svf.__file__).parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# fss-svf that keeps the gradients of its first step in GRADIENTS, without dropout where NO_DROPOUT is set; process FAILS
# fails in its third step.
CHANGED = """
import os
import torch
from fss_svf import distributed
from fss_svf.cli import main
from fss_svf.training.step import Step

if "NO_DROPOUT" in os.environ:
    torch.nn.Dropout2d.forward = lambda self, x: x
call, move, number = Step.__call__, Step._move, iter(range(10**6))

def keep(self):
    path = os.environ.get("GRADIENTS")
    if path and distributed.rank() == 0 and not os.path.exists(path):
        names = {id(p): name for name, p in self.model.named_parameters()}
        torch.save({n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}, path)
    move(self)

def failing(self, step, parts):
    if step == 2 and str(distributed.rank()) == os.environ.get("FAILS"):
        raise ZeroDivisionError("a defect")
    return call(self, step, parts)

Step.__call__, Step._move = failing, keep
main()
"""


@pytest.fixture
def start(tmp_path):
    """Start Python with arguments in tmp_path, where changed.py lies; what still runs at the end is killed."""
    (tmp_path / "changed.py").write_text(CHANGED)
    running = []

    def call(*arguments, **variables):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE_AT), **variables}
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield call
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def small(toy_root):
    """A training of four steps of six episodes."""
    return ("train", *TOY, f"dataset.root={toy_root}", "backbone=tiny", "backbone.width=8", "method.width=8",
            "recipe=toy", "recipe.size=65", "recipe.batch_size=6", "recipe.max_steps=4", "workers=0", "device=cpu",
            "validate.every=2", "validate.episodes=6", "log_every=1", "tuning=svf")  # fmt: skip


def ended(process, seconds=240):
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out, err


METHODS = {
    "baseline": ("+method.down_query_trains=true",),
    "pfenet": (),
    "panet": ("~method.width",),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["baseline", "pfenet"])
def test_gradients_are_those_of_one_process(start, small, tmp_path, method):
    """Items hold different numbers of pixels that are not ignored: a mean of the processes' means would be another."""
    arguments = (*small, f"method={method}", "recipe.max_steps=1", "validate.episodes=3")
    runs = {
        "alone": ("changed.py",),
        "parts": ("changed.py", "accumulate=3"),
        "two": (*TORCHRUN, 2, "changed.py"),
        "three": (*TORCHRUN, 3, "changed.py"),
    }
    for name, how in runs.items():
        options = [part for part in how if "=" in str(part)]
        command = [part for part in how if part not in options]
        process = start(
            *command, *arguments, *options, f"hydra.run.dir={name}", NO_DROPOUT="1", GRADIENTS=str(tmp_path / f"{name}.pt")
        )
        ended(process)
    alone = torch.load(tmp_path / "alone.pt")
    assert any(name.endswith(".S") for name in alone)
    for name in ("parts", "two", "three"):
        found = torch.load(tmp_path / f"{name}.pt")
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            assert (found[key] - value).norm() <= 1e-5 * value.norm() + 1e-12, (name, key)
