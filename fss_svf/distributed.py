"""Several processes of one job, started by torchrun. No other module imports torch.distributed.

Without torchrun, and before start(), there is one process: rank 0 of 1. Every function here then does nothing special.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from fss_svf.errors import ConfigError

T = TypeVar("T")

# One process may work for days while the others wait for it. If it ends, its connection closes and torchrun ends the
# others; no timeout is needed for that. GPUs wait for each other only within a training step, with NCCL's default timeout.
_TIMEOUT = timedelta(days=7)
_rank, _world = 0, 1
_store: Any = None
# The group of objects and of tensors on the CPU; None: the default group.
_cpu_group: Any = None


class PeerLost(Exception):
    """Another process of the job ended before a collective operation."""


def launched() -> tuple[int, int]:
    """Rank and number of processes in torchrun's environment; (0, 1) without it."""
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(os.environ):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def start() -> None:
    """Join the other processes that torchrun started. Returns when all have joined.

    Tensors on GPUs use NCCL, if available; tensors on the CPU and objects use Gloo.
    """
    global _rank, _world, _store, _cpu_group
    rank, world = launched()
    if world == 1:
        return
    # Imported here, so that 'fss-svf --help' does not load torch.
    import torch
    from torch import distributed

    nccl = torch.cuda.is_available() and distributed.is_nccl_available()
    _store, _, _ = next(distributed.rendezvous("env://", timeout=_TIMEOUT))
    options = {"store": _store, "rank": rank, "world_size": world}
    if nccl:
        distributed.init_process_group("nccl", **options)
        _cpu_group = distributed.new_group(backend="gloo", timeout=_TIMEOUT)
    else:
        distributed.init_process_group("gloo", timeout=_TIMEOUT, **options)
    _rank, _world = rank, world


def end() -> None:
    """Leave the process group when all processes have done their work.

    NCCL waits here for the processes of this machine, so a process that failed must not call it.
    """
    global _rank, _world, _store, _cpu_group
    if _world > 1:
        from torch import distributed

        distributed.destroy_process_group()
    _rank, _world, _store, _cpu_group = 0, 1, None, None


def leave(status: int) -> NoReturn:
    """End this process, one of several, with this exit status.

    Threads of Gloo and of DistributedDataParallel may still run. One of them that asks for Python while the interpreter
    is being taken apart ends the process with SIGABRT, and torchrun then ends the others.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def rank() -> int:
    """The number of this process, counted from 0."""
    return _rank


def world() -> int:
    """The number of processes."""
    return _world


def local_rank() -> int:
    """The number of this process on its machine, counted from 0."""
    return int(os.environ["LOCAL_RANK"]) if _world > 1 else 0


def broadcast(value: T) -> T:
    """Process 0's value, in every process. Picklable. Raises PeerLost."""
    if _world == 1:
        return value
    from torch import distributed

    values = [value]
    _together(lambda: distributed.broadcast_object_list(values, 0, group=_cpu_group))
    return values[0]


def gather(value: T) -> list[T]:
    """The values of all processes by rank, in every process. Picklable. Raises PeerLost."""
    if _world == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * _world
    _together(lambda: distributed.all_gather_object(values, value, group=_cpu_group))
    return values


def total(values: Sequence[float]) -> list[float]:
    """The sums of `values` over all processes, in every process, computed in float64 on the CPU. Raises PeerLost."""
    if _world == 1:
        return list(values)
    import torch
    from torch import distributed

    sums = torch.tensor(values, dtype=torch.float64)
    _together(lambda: distributed.all_reduce(sums, group=_cpu_group))
    return sums.tolist()


def total_on_device(values: Any) -> Any:
    """The sums of a tensor over all processes, in place on its device. On a GPU this does not wait. Raises PeerLost."""
    if _world > 1:
        from torch import distributed

        _together(lambda: distributed.all_reduce(values, group=_group_of(values.device)))
    return values


def data_parallel(module: Any, backwards: int) -> Any:
    """Wrap `module` so that its gradients are the mean over processes. One process gets `module` itself.

    All processes start from the parameters and buffers of process 0, and must use the same parameters in each step.
    backwards: the number of backward passes before the gradients are read.

    Buffers are not synchronised: those of a frozen BatchNorm never change. A BatchNorm that trains takes its statistics
    over all processes on GPUs; PyTorch has no such BatchNorm for the CPU. Raises ConfigError if two processes share a GPU.
    """
    if _world == 1:
        return module
    from torch import nn

    # Gradients of 1x1 convolutions in channels-last are copied, of which PyTorch warns once a process.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    device = next(module.parameters()).device
    if device.type == "cuda":
        _require_separate_gpus(device)
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module) if _trains_statistics(module) else module
    return nn.parallel.DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        process_group=_group_of(device),
        **_buffers_once(module, device),
        # A static graph with no_sync fails inside PyTorch (2.15: expect_autograd_hooks_).
        static_graph=backwards == 1,
    )


def barrier() -> None:
    """Wait until every process is here. Raises PeerLost."""
    gather(None)  # torch's barrier would use the GPU, if there is one


def log_once(text: str, log: Callable[[], None]) -> None:
    """Call `log` in the first process that arrives with this text, so that an error of all processes is logged once.

    Returns when it is logged: torchrun ends all processes as soon as one ends with an error.
    """
    if _store is None:
        log()
        return
    key = f"logged/{hashlib.sha256(text.encode()).hexdigest()}"
    first = True
    with suppress(RuntimeError):  # the store may have ended with torchrun; log twice rather than never
        _store.add("logged", 1)
        first = _store.add(key, 1) == 1
    if first:
        log()
    with suppress(RuntimeError):
        if first:
            _store.set(f"{key}/done", "")
        else:
            _store.wait([f"{key}/done"], timedelta(seconds=10))


def anything_logged() -> bool:
    """Whether any process has logged something with log_once."""
    with suppress(RuntimeError):
        return _store is not None and bool(_store.check(["logged"]))
    return False


def _group_of(device: Any) -> Any:
    """The process group for tensors on this device; None: the default one."""
    return None if device.type == "cuda" else _cpu_group


def _buffers_once(module: Any, device: Any) -> dict[str, Any]:
    """Options of DistributedDataParallel that send buffers (the factors of SVF) once, at the start, from process 0."""
    from torch import distributed, nn

    if "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel).parameters:  # PyTorch 2.13
        return {"forward_sync_buffers": False}
    for buffer in module.buffers():
        distributed.broadcast(buffer, 0, group=_group_of(device))
    return {"broadcast_buffers": False}


def _require_separate_gpus(device: Any) -> None:
    """Raise ConfigError if two processes use one GPU, which NCCL refuses with a long message."""
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
    except RuntimeError as error:  # such as "Connection closed by peer"
        raise PeerLost(str(error)) from error
