"""Builds an index in parallel. A killed preparation loses at most one chunk of work in each process."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fss_svf.console import progress
from fss_svf.data.identity import FileRecord, changed_file, record
from fss_svf.data.index import FORMAT, ImageRow, Index
from fss_svf.errors import DataError
from fss_svf.files import atomic_write
from fss_svf.lock import locked
from fss_svf.machine import cores

# Images in a part file: a tenth of a second of COCO, 2,566 files for its training set. Small, so that processes finish
# at the same time and an interrupt takes effect at once.
CHUNK = 32


def fingerprint(*parts: object) -> str:
    """16 hex digits over everything an index depends on."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def build_index(
    path: Path,
    items: Sequence[Any],
    work: Callable[[Any], ImageRow],
    class_names: Sequence[str],
    made_from: str,
    workers: int | None,
    title: str,
    files: Callable[[Any], Sequence[Path]] = lambda _: (),
    sources: Sequence[Path] = (),
    check: Callable[[Index], None] = lambda _: None,
) -> Index:
    """Apply `work` to every item and save the rows as the index at `path`. An index that is up to date is returned as is.

    work       picklable; called in `workers` processes (0: in this one; None: one for each core)
    made_from  fingerprint of the input. Finished chunks are kept under it until the index is complete, so that a
               preparation of the same input continues from them.
    files      the paths of an item's files, in the order of the records in its row
    sources    files that all items come from, such as a list. An index or part whose files changed or are gone is rebuilt.
    check      may raise. A new index is then not saved; the finished chunks stay, and the next run continues from them.
               An existing index is checked too, and stays.

    Raises ConfigError while another process prepares an index in the same folder.
    """
    existing = _finished(path, made_from, [list(map(str, files(item))) for item in items], sources)
    if existing is not None:
        check(existing)
        return existing
    with locked(path.parent, "prepares this dataset"):
        records = [record(source) for source in sources]
        # There is no index until everything is written: it would describe files that are being replaced.
        path.unlink(missing_ok=True)
        parts = path.with_suffix(".parts")
        (parts / made_from).mkdir(parents=True, exist_ok=True)
        # The name states the format and the chunk, so that a later version with other chunks or rows ignores it.
        chunks = [
            (parts / made_from / f"v{FORMAT}-{CHUNK}-{start:08d}.json", items[start : start + CHUNK])
            for start in range(0, len(items), CHUNK)
        ]
        todo = [(shard, chunk) for shard, chunk in chunks if not (shard.exists() and _holds(shard, map(files, chunk)))]
        with progress(len(items), title, "image") as bar:
            bar.update(len(items) - sum(len(chunk) for _, chunk in todo))
            if workers == 0:
                for shard, chunk in todo:
                    bar.update(_do_chunk(shard, chunk, work))
            else:
                _in_processes(todo, work, cores() if workers is None else workers, bar)
        index = Index.from_rows(_read([shard for shard, _ in chunks]), class_names, made_from, records)
        check(index)
        index.save(path)
        shutil.rmtree(parts, ignore_errors=True)  # leftovers do no harm
        return index


def _finished(path: Path, made_from: str, files: Sequence[Sequence[str]], sources: Sequence[Path]) -> Index | None:
    """The index of this input; None if it is missing, damaged, of an older format, or of files that changed."""
    try:
        index = Index.load(path)
    except (FileNotFoundError, DataError):
        return None
    if index.fingerprint != made_from or len(index) != len(files):
        return None
    changed, now = index.checked(files, sources, gone_too=True)
    if changed is not None:
        return None
    if now is not index:
        now.save(path)
    return now


def _holds(shard: Path, files: Iterable[Sequence[Path]]) -> bool:
    """Whether a part was made from these files as they are now."""
    for row, paths in zip(_read([shard]), files):
        records = np.array(row.files, np.int64).reshape(-1, 4)
        if changed_file(records, list(map(str, paths))[: len(records)], gone_too=True) is not None:
            return False
    return True


def _in_processes(
    todo: Sequence[tuple[Path, Sequence[Any]]], work: Callable[[Any], ImageRow], workers: int, bar: Any
) -> None:
    # spawn: a fork of a process with threads (of PyTorch or OpenCV) can hang
    context = multiprocessing.get_context("spawn")
    waiting, jobs = iter(todo), set[Future[int]]()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        try:
            while True:
                # Two for each process, one of them queued, so that little is left to finish after an interrupt.
                for shard, chunk in islice(waiting, 2 * workers - len(jobs)):
                    with _interrupt_held():
                        jobs.add(pool.submit(_do_chunk, shard, chunk, work))
                if not jobs:
                    break
                done, jobs = wait(jobs, return_when=FIRST_COMPLETED)
                for job in done:
                    bar.update(job.result())
        except BrokenProcessPool:
            raise DataError(
                "a preparation process was killed, perhaps out of memory; run the same command again with fewer workers=, "
                "it continues where it was"
            ) from None
        except BaseException:
            with _interrupt_held():  # a second interrupt would leave the processes running
                pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block. A process started in it never gets it, so it prints no traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the main process. Otherwise the workers of a killed process would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do_chunk(shard: Path, chunk: Sequence[Any], work: Callable[[Any], ImageRow]) -> int:
    rows = [work(item) for item in chunk]
    with atomic_write(shard) as unfinished:
        unfinished.write_text(json.dumps([[getattr(row, f.name) for f in fields(row)] for row in rows]))
    return len(chunk)


def _read(shards: Sequence[Path]) -> Iterator[ImageRow]:
    for shard in shards:
        try:
            rows = json.loads(shard.read_text())
        except ValueError:
            raise DataError(f"{shard}: damaged; delete it and prepare again") from None
        for name, height, width, areas, boxes, content, files in rows:
            areas = {int(c): area for c, area in areas.items()}
            records = tuple(FileRecord(*file) for file in files)
            yield ImageRow(name, height, width, areas, tuple(map(tuple, boxes)), content, records)
