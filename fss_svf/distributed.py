"""Several processes of one job, as torchrun starts them: the only place that knows torch.distributed.

Without torchrun, and before start(), there is one process: rank 0 of 1, for which everything here is nothing to do.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from fss_svf.errors import ConfigError

T = TypeVar("T")

# One process may work for days while the others wait for it. That it ended they see by its closed connection, and
# torchrun ends them.
_PATIENCE = timedelta(days=7)
_rank, _world = 0, 1
_store: Any = None


class PeerLost(Exception):
    """Another process of the job has ended before what was to be done together."""


def launched() -> tuple[int, int]:
    """Rank and number of processes in torchrun's environment; (0, 1) without it."""
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(os.environ):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def start() -> None:
    """Join the other processes that torchrun started; returns when all have.

    Tensors on GPUs go over NCCL, where there is one; those on the CPU, and objects, over Gloo.
    """
    global _rank, _world, _store
    rank, world = launched()
    if world == 1:
        return
    # 'fss-svf --help' comes without torch.
    import torch
    from torch import distributed

    nccl = torch.cuda.is_available() and distributed.is_nccl_available()
    _store, _, _ = next(distributed.rendezvous("env://", timeout=_PATIENCE))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if nccl else "gloo", store=_store, rank=rank, world_size=world, timeout=_PATIENCE
    )
    _rank, _world = rank, world


def end() -> None:
    """Leave the other processes, when the work of all is done: NCCL waits here for those of this machine, so that a process
    which has failed must end without it.
    """
    global _rank, _world, _store
    if _world > 1:
        from torch import distributed

        distributed.destroy_process_group()
    _rank, _world, _store = 0, 1, None


def rank() -> int:
    """The number of this process, from 0."""
    return _rank


def world() -> int:
    """How many processes there are."""
    return _world


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if _world > 1 else 0


def broadcast(value: T) -> T:
    """Process 0's value, in every process. Picklable. Raises PeerLost."""
    if _world == 1:
        return value
    from torch import distributed

    values = [value]
    _together(lambda: distributed.broadcast_object_list(values, 0))
    return values[0]


def gather(value: T) -> list[T]:
    """The values of all processes by rank, in every process. Picklable. Raises PeerLost."""
    if _world == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * _world
    _together(lambda: distributed.all_gather_object(values, value))
    return values


def total(values: Sequence[float]) -> list[float]:
    """The sums of these over all processes, in every process, as float64 on the CPU. Raises PeerLost."""
    if _world == 1:
        return list(values)
    import torch
    from torch import distributed

    sums = torch.tensor(values, dtype=torch.float64)
    _together(lambda: distributed.all_reduce(sums))
    return sums.tolist()


def data_parallel(module: Any, backwards: int) -> Any:
    """The torch module with gradients that are the mean over processes. Every process must use the same parameters each
    time; all start from process 0's parameters and buffers. One process: the module itself. backwards: how many there are
    before the gradients are wanted.

    Buffers stay each process's own: those of a frozen BatchNorm never change. A BatchNorm that trains takes its
    statistics over all processes on GPUs; PyTorch has none of this kind for the CPU. Raises ConfigError where two
    processes share a GPU.
    """
    if _world == 1:
        return module
    from torch import nn

    # Gradients of 1x1 convolutions in channels-last, which are copied; PyTorch tells it once a process.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    device = next(module.parameters()).device
    if device.type == "cuda":
        _require_own_gpus(device)
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module) if _trains_statistics(module) else module
    return nn.parallel.DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        **_buffers_once(module),
        # With no_sync it fails inside PyTorch (2.15: expect_autograd_hooks_).
        static_graph=backwards == 1,
    )


def barrier() -> None:
    """Wait until every process is here. Raises PeerLost."""
    gather(None)  # torch's own would take the GPU where there is one


def say_once(text: str, say: Callable[[], None]) -> None:
    """Call `say` in the first process that comes with this text: the same mistake is told once.

    Returns when it is told: torchrun ends all processes as soon as one ends with an error.
    """
    if _store is None:
        say()
        return
    key = f"said/{hashlib.sha256(text.encode()).hexdigest()}"
    first = True
    with suppress(RuntimeError):  # the store may be gone, with torchrun; better twice than not at all
        _store.add("said", 1)
        first = _store.add(key, 1) == 1
    if first:
        say()
    with suppress(RuntimeError):
        if first:
            _store.set(f"{key}/done", "")
        else:
            _store.wait([f"{key}/done"], timedelta(seconds=10))


def anything_said() -> bool:
    """Whether a process has said something by say_once."""
    with suppress(RuntimeError):
        return _store is not None and bool(_store.check(["said"]))
    return False


def _buffers_once(module: Any) -> dict[str, Any]:
    """Options of DistributedDataParallel for buffers (the factors of SVF) that are process 0's at the start, and not sent
    again with every forward."""
    from torch import distributed, nn

    if "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel).parameters:  # PyTorch 2.13
        return {"forward_sync_buffers": False}
    for buffer in module.buffers():
        distributed.broadcast(buffer, 0)
    return {"broadcast_buffers": False}


def _require_own_gpus(device: Any) -> None:
    """Raise ConfigError where two processes have one GPU: NCCL refuses it, with a page."""
    import torch

    gpus = gather((platform.node(), str(torch.cuda.get_device_properties(device).uuid)))
    if len(set(gpus)) < len(gpus):
        raise ConfigError(f"device={device}: two processes of a training share this GPU; start one process a GPU")


def _trains_statistics(module: Any) -> bool:
    from torch import nn

    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in module.modules())


def _together(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:  # "Connection closed by peer", and its kin
        raise PeerLost(str(error)) from error
