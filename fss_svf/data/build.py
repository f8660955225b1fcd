"""Building an index in parallel, so that a kill in the middle loses one chunk of work and no more."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from fss_svf.console import progress
from fss_svf.data.index import ImageRow, Index
from fss_svf.errors import DataError

CHUNK = 64


def fingerprint(*parts: object) -> str:
    """16 hex digits over whatever an index depends on."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def build_index(
    path: Path,
    items: Sequence[Any],
    work: Callable[[Any], ImageRow],
    class_names: Sequence[str],
    made_from: str,
    workers: int,
    title: str,
    written: Callable[[Any], bool] = lambda _: True,
) -> Index:
    """Apply `work` to every item, and save the rows as the index at `path`; nothing is done when it is there already.

    `work` must be picklable and is called in `workers` processes (0: in this one). Finished chunks are kept beside the
    index until it is whole, under the fingerprint `made_from`: a preparation of the same input goes on from them.
    `written` tells whether the files that `work` makes of an item are there; work whose files were deleted is redone.
    """
    whole = all(map(written, items))
    if whole and path.exists() and Index.load(path).fingerprint == made_from:
        return Index.load(path)
    # From here until everything is written anew there is no index, or it would describe files that are being replaced.
    path.unlink(missing_ok=True)
    shards = path.with_suffix(".parts") / made_from
    shards.mkdir(parents=True, exist_ok=True)
    chunks = [(shards / f"{start:08d}.json", items[start : start + CHUNK]) for start in range(0, len(items), CHUNK)]
    todo = [(shard, chunk) for shard, chunk in chunks if not (shard.exists() and all(map(written, chunk)))]
    with progress(len(items), title, "image") as bar:
        bar.update(len(items) - sum(len(chunk) for _, chunk in todo))
        if workers == 0:
            for shard, chunk in todo:
                bar.update(_do_chunk(shard, chunk, work))
        else:
            _in_processes(todo, work, workers, bar)
    rows = [ImageRow(n, h, w, {int(c): a for c, a in areas.items()}) for n, h, w, areas in _read(chunks)]
    index = Index.from_rows(rows, class_names, made_from)
    index.save(path)
    shutil.rmtree(path.with_suffix(".parts"))
    return index


def _in_processes(todo: Sequence[tuple[Path, Any]], work: Callable[[Any], ImageRow], workers: int, bar: Any) -> None:
    # spawn: forking a process that has threads (PyTorch's, OpenCV's) can hang the child
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(_do_chunk, shard, chunk, work) for shard, chunk in todo]
        try:
            for job in as_completed(jobs):
                bar.update(job.result())
        except BrokenProcessPool:
            raise DataError(
                "a preparation process was killed from outside, out of memory perhaps; run the same command again, it "
                "goes on where it was (with fewer workers=)"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _do_chunk(shard: Path, chunk: Sequence[Any], work: Callable[[Any], ImageRow]) -> int:
    rows = [work(item) for item in chunk]
    partial = shard.with_suffix(".partial")
    partial.write_text(json.dumps([[row.name, row.height, row.width, row.areas] for row in rows]))
    partial.replace(shard)
    return len(chunk)


def _read(chunks: Sequence[tuple[Path, Any]]) -> list[Any]:
    rows: list[Any] = []
    for shard, _ in chunks:
        try:
            rows += json.loads(shard.read_text())
        except ValueError:
            raise DataError(f"{shard}: damaged; delete it and prepare again") from None
    return rows
