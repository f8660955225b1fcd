"""Building an index in parallel, so that a kill in the middle loses one chunk of work and no more."""

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
from fss_svf.files import appearing_whole
from fss_svf.lock import locked

# Images a part file: a tenth of a second of COCO's, 2,566 files of its training set. Small, so that many processes
# finish together, and that an interrupt is answered at once.
CHUNK = 32


def fingerprint(*parts: object) -> str:
    """16 hex digits over whatever an index depends on."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    """Apply `work` to every item, and save the rows as the index at `path`; nothing is done when it is there already.

    `work` must be picklable and is called in `workers` processes (0: in this one; None: one a core). Finished chunks are
    kept beside the index until it is whole, under the fingerprint `made_from`: a preparation of the same input goes on
    from them. `files` gives the paths of an item's files, in the order of the records in its row, and `sources` what the
    whole comes from, such as a list: an index or a part whose files have changed since, or are gone, is made anew.
    `check` may raise: a new index is then not saved, the finished chunks stay, and the next run comes back to it at once;
    an index that was there is checked too, and stays. Raises ConfigError while another process makes an index in the same
    folder.
    """
    there = _finished(path, made_from, [list(map(str, files(item))) for item in items], sources)
    if there is not None:
        check(there)
        return there
    with locked(path.parent, "prepares this dataset"):
        records = [record(source) for source in sources]
        # From here until everything is written anew there is no index, or it would describe files that are being replaced.
        path.unlink(missing_ok=True)
        parts = path.with_suffix(".parts")
        (parts / made_from).mkdir(parents=True, exist_ok=True)
        # What a part holds is told by its name: a later version with other chunks or rows passes it by.
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
        shutil.rmtree(parts, ignore_errors=True)  # what cannot be deleted does no harm
        return index


def _finished(path: Path, made_from: str, files: Sequence[Sequence[str]], sources: Sequence[Path]) -> Index | None:
    """The index of this input. One of an older format, or a damaged one, or of files that are others now, counts as none."""
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
    """Whether a part is of these files as they are now."""
    for row, paths in zip(_read([shard]), files):
        records = np.array(row.files, np.int64).reshape(-1, 4)
        if changed_file(records, list(map(str, paths))[: len(records)], gone_too=True) is not None:
            return False
    return True


def _in_processes(
    todo: Sequence[tuple[Path, Sequence[Any]]], work: Callable[[Any], ImageRow], workers: int, bar: Any
) -> None:
    # spawn: forking a process that has threads (PyTorch's, OpenCV's) can hang the child
    context = multiprocessing.get_context("spawn")
    waiting, jobs = iter(todo), set[Future[int]]()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        try:
            while True:
                # Two a process, one of them in the queue: an interrupt finds little left to finish.
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
                "a preparation process was killed from outside, out of memory perhaps; run the same command again, it "
                "goes on where it was (with fewer workers=)"
            ) from None
        except BaseException:
            with _interrupt_held():  # a second one, out of impatience, would leave the processes behind
                pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and never reaches a process started in it: that would print its traceback."""
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
    """A pool's workers wait for work for ever when the process that gave it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do_chunk(shard: Path, chunk: Sequence[Any], work: Callable[[Any], ImageRow]) -> int:
    rows = [work(item) for item in chunk]
    with appearing_whole(shard) as unfinished:
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
