"""Loader processes that end, or have no shared memory, are one line and no wait."""

import os
import signal
import time
from functools import partial

import pytest
import torch

from fss_svf.data import loader
from fss_svf.data.loader import batches
from fss_svf.data.loading import LabelBatch, collate_labels
from tests.one_line import data_error


def item(number):
    return LabelBatch(torch.full((1, 3, 4, 4), number), torch.zeros(1, 4, 4))


def killed_at(number, at):
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return item(number)


def without_memory(number):
    raise MemoryError


def gone(number):
    return open("/nowhere/at/all.jpg")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_process_ends_the_run_in_seconds(workers):
    began = time.monotonic()
    with data_error("a loader process was killed", "shared memory", "--shm-size", "workers=0"):
        list(batches(partial(killed_at, at=4), collate_labels, range(40), 2, workers))
    assert time.monotonic() - began < 30


def test_a_process_killed_between_two_batches_is_told_at_the_next():
    """And not by PyTorch's handler, wherever the main process is."""
    loaded = batches(item, collate_labels, range(400), 2, 1)
    next(loaded)
    (worker,) = torch.multiprocessing.active_children()
    worker.kill()
    for _ in range(50):
        time.sleep(0.01)
    with data_error("a loader process was killed", "workers=0"):
        list(loaded)
    assert not torch.multiprocessing.active_children()


def test_shared_memory_that_is_too_small(monkeypatch):
    """What a full /dev/shm raises arrives, though PyTorch's own sending would lose it."""

    def full(self):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with data_error("MiB in shared memory (unable to write", "No space left on device", "--shm-size", "workers=0"):
        next(batches(item, collate_labels, range(4), 2, 1))
    assert len(list(batches(item, collate_labels, range(4), 2, 0))) == 2


def test_processes_that_cannot_be_started(monkeypatch):
    def refused(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loader.DataLoader, "__iter__", refused)
    with data_error("loader processes cannot be started", "No space left on device", "workers=0"):
        next(batches(item, collate_labels, range(4), 2, 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_memory_and_no_file_are_one_line(workers):
    with data_error("no memory left to load item 0", "workers="):
        next(batches(without_memory, collate_labels, range(4), 2, workers))
    with data_error("/nowhere/at/all.jpg: cannot be read"):
        next(batches(gone, collate_labels, range(4), 2, workers))


def test_more_workers_than_cores_are_said_once(caplog, monkeypatch):
    monkeypatch.setattr(loader, "cores", lambda: 1)
    loader._warn_of_cores.cache_clear()
    for _ in range(2):
        assert len(list(batches(item, collate_labels, range(4), 2, 3))) == 2
    assert [r.getMessage() for r in caplog.records] == [
        "workers=3: more loader processes than cores (1); workers=1 is faster"
    ]
