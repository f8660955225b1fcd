"""Makes batches in loader processes. The content of a batch does not depend on the number of workers.

A loader process that ends, or too little shared memory, gives an error of one line instead of an endless wait.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fss_svf import distributed
from fss_svf.data.augment import tame_threads
from fss_svf.errors import LOADER_LOST, MORE_SHARED_MEMORY, DataError, FssError
from fss_svf.machine import cores

log = logging.getLogger(__name__)
# Replaced by the warning in _warn_of_cores.
warnings.filterwarnings("ignore", "This DataLoader will create")
# The threads of DataLoader that pin memory; their errors are not printed.
_quiet: WeakSet[threading.Thread] = WeakSet()


class _Numbered(Dataset):
    """A dataset whose item n is `make(n)`. An expected error is passed to the main process as an item."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(number)
        except FssError as error:
            # DataLoader would wrap an error raised in a worker into a long traceback.
            return error
        except MemoryError:
            return DataError(f"no memory left to load item {number}; use fewer workers=, or a smaller batch")
        except OSError as error:
            if error.filename is None:
                raise
            return DataError(f"{error.filename}: cannot be read ({error.strerror})")


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        failed = next((item for item in items if isinstance(item, FssError)), None)
        if failed is not None:
            return failed
        batch = self.collate(items)
        return batch if get_worker_info() is None else _in_shared_memory(batch)


def _in_shared_memory(batch: Any) -> Any:
    """The batch in shared memory, as a loader process sends it; an error item if that fails.

    DataLoader would do this in a thread, print the thread's error, and wait for the batch forever.
    """
    tensors = list(_tensors(batch))
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        size = sum(tensor.nbytes for tensor in tensors) / 2**20
        reason = _first_line(error)
        return DataError(
            f"a loader process cannot put a batch of {size:.1f} MiB in shared memory ({reason}); {MORE_SHARED_MEMORY}"
        )
    return batch


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in the fields, lists and tuples of a batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        yield from _tensors(list(vars(value).values()))


def batches(
    make: Callable[[int], Any],
    collate: Callable[[list[Any]], Any],
    numbers: Sequence[int],
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
) -> Generator[Any, None, None]:
    """Yield collate([make(n), ...]) over `numbers` in order, made in `workers` processes (0: in this one)."""
    loader = DataLoader(
        _Numbered(make),
        batch_size=batch_size,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_Collate(collate),
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        # The numbers fix the order of episodes; with this generator DataLoader does not use the global one.
        generator=torch.Generator(),
    )
    _warn_of_cores(workers)
    for batch in _with_lost_processes(loader) if workers else loader:
        if isinstance(batch, FssError):
            raise batch
        yield batch


def _with_lost_processes(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of the loader's processes. Raises DataError if they cannot be started, or if one of them ends."""
    failure: str | None = None
    try:
        batches: Any = _begin(loader)
    except (OSError, RuntimeError) as error:
        failure = f"loader processes cannot be started ({_first_line(error)}); {MORE_SHARED_MEMORY}"
    while failure is None:
        try:
            batch = next(batches, None)
        # Reading from a process that has ended gives one of these.
        except (RuntimeError, OSError, EOFError) as error:
            if str(error).startswith("Caught ") or (isinstance(error, RuntimeError) and not _of_sharing(error)):
                raise
            failure = f"{LOADER_LOST} ({_first_line(error)})"
            continue
        if batch is None:
            return
        yield batch
    # The caught error refers to the loader; without this its other processes would not end here.
    batches = None
    raise DataError(failure)


def _begin(loader: DataLoader[Any]) -> Any:
    """The iterator over the loader, without PyTorch's handler of SIGCHLD.

    That handler raises an error for an ended process at any point of the main process. The loader itself checks its
    processes every five seconds while it waits for a batch.
    """
    with_signals = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if with_signals else None
    try:
        batches: Any = iter(loader)
    finally:
        if with_signals:
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    if loader.pin_memory:
        _quiet.add(batches._pin_memory_thread)
    return batches


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _of_sharing(error: RuntimeError) -> bool:
    """Whether an error is about the loader's processes or their memory, not raised by the code they ran."""
    words = ("DataLoader worker (pid", "Pin memory thread", "shared memory", "open files", "ancdata", "ancillary data")
    return any(word in str(error) for word in words)


def _show_thread(arguments: threading.ExceptHookArgs) -> None:
    """As Python does, except for threads reading from a loader process that ended: the loader raises that error."""
    if arguments.thread not in _quiet:
        threading.__excepthook__(arguments)


threading.excepthook = _show_thread


@cache
def _warn_of_cores(workers: int) -> None:
    # No warning for the default, 2.
    if workers > max(2, cores()) and distributed.rank() == 0:
        log.warning(
            "workers=%d: more loader processes than cores (%d); workers=%d is faster", workers, cores(), cores()
        )


def _outlive_signals() -> None:
    """Ignore the signals of a scheduler or terminal, which go to all processes of a job: the main process needs its
    loaders to finish its step, and then ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # only Linux has it
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_main_process_signals, daemon=True).start()


def _end_when_main_process_signals() -> None:
    # The main process sends SIGTERM to loaders that it did not close, and waits for them.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)


def _start_worker(_: int) -> None:
    _outlive_signals()
    torch.set_num_threads(1)
    tame_threads()
