"""The preparation in processes: killed, interrupted, checked, remade; and what its processes cost."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_svf.config import PrepareConfig
from fss_svf.data import build, toy
from fss_svf.data.images import write_label
from fss_svf.data.index import FORMAT, ImageRow, Index
from fss_svf.data.prepare import prepare
from fss_svf.errors import ConfigError, DataError
from fss_svf.lock import locked
from fss_svf.machine import cores
from fss_svf.registry import Choice
from tests.conftest import toy_options
from tests.data.test_coco import CAT, DOG, box, content, dataset, label_files, write_images
from tests.one_line import data_error

REPOSITORY = Path(__file__).parents[2]
IMAGES = [
    (f"{i:02d}.jpg", 20, 30, [(CAT, [box(1, 2, 5 + i % 20, 6)], 0), (DOG, [box(3, 3, 4, 9)], 0)]) for i in range(60)
]
PARTS = "prepared/instances-full/index.parts"

# A preparation of two processes that takes two seconds after their start. Processes import it without its last block.
SLOW_PREPARATION = """
import signal, sys, time
from pathlib import Path
from fss_svf.data import build, coco

draw_image = coco.draw_image

def slowly(images, labels, mask_mode, item):
    time.sleep(0.05)
    return draw_image(images, labels, mask_mode, item)

if __name__ == "__main__":
    from tests.data.test_coco import dataset
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored, as by nohup
    coco.draw_image, build.CHUNK = slowly, 2
    try:
        dataset(Path(sys.argv[1])).prepare(2)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "coco"
    write_images(root / "images", IMAGES)
    (root / "instances.json").write_text(json.dumps(content(IMAGES)))
    return root


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("kind", ["killed", "interrupted", "interrupted at the start"])
def test_stopped_preparation_goes_on_to_the_same_end(root, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(build, "CHUNK", 2)
    at_once = kind == "interrupted at the start"
    whole = dataset(root).prepare(0)["train"]
    labels = label_files(root)
    (root / "prepared").rename(root / "prepared_before")

    (tmp_path / "slow.py").write_text(SLOW_PREPARATION)
    process = subprocess.Popen([sys.executable, tmp_path / "slow.py", root], env={**os.environ, "PYTHONPATH": REPOSITORY},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)  # fmt: skip
    try:
        while not (at_once and list(root.glob(f"{PARTS}/*"))) and len(list(root.glob(f"{PARTS}/*/*.json"))) < 3:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.005)
        time.sleep(0.1 * at_once)  # the workers begin
        if kind == "killed":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches the workers too
        # Ends when nobody holds the output open: the workers of a killed preparation end by themselves.
        output = process.communicate(timeout=10)[0]
    finally:
        process.kill()
    assert "Traceback" not in output
    assert ("interrupted" in output) == (kind != "killed")

    parts = list(root.glob(f"{PARTS}/*/*.json"))
    finished = {row[0] for part in parts for row in json.loads(part.read_text())}
    assert at_once or 6 <= len(finished) < len(IMAGES)
    with pytest.raises(DataError, match="not prepared"):
        dataset(root).split("train")
    drawn = {name: (root / f"prepared/instances-full/labels/{name}.png").stat() for name in finished}
    (root / "prepared/instances-full/labels/0123abcd.partial").write_bytes(b"half a l")  # if killed while it writes

    resumed = dataset(root).prepare(0)["train"]
    assert resumed.hash == whole.hash
    assert label_files(root) == labels  # and nothing else in the folder
    assert not (root / PARTS).exists()
    for name, before in drawn.items():
        after = (root / f"prepared/instances-full/labels/{name}.png").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), name


def test_processes_need_no_torch():
    """They import what draws. PyTorch would take 400 MB and two seconds of each."""
    modules = ", ".join(f"fss_svf.data.{name}" for name in ("coco", "voc", "toy", "binary", "folder"))
    command = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


def test_provenance_of_a_preparation_needs_no_torch():
    command = "import fss_svf.data.prepare, sys; from fss_svf.provenance import provenance; provenance(); "
    command += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


def test_two_processes_may_write_one_file(tmp_path):
    """Of a killed preparation a worker may still draw what the next one draws."""
    label = (np.arange(200 * 300) % 251).astype(np.uint8).reshape(200, 300)
    items = [("a", tmp_path)] * 40
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_label(tmp_path / "a.png", label), range(200)))
        list(pool.map(lambda _: build._do_chunk(tmp_path / "part.json", items, row_of), range(200)))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), label)
    assert len(json.loads((tmp_path / "part.json").read_text())) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "part.json"]


# ---------------------------------------------------------------------------------------------------------------------
# build_index


def row_of(item):
    name, log = item
    with (log / "log.txt").open("a") if log.name == "log" else open(os.devnull, "a") as file:
        file.write(f"{name}\n")
    return ImageRow(name, 10, 20, {1: 7}, ((1, 0, 0, 4, 5), (1, 6, 6, 8, 9)))


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """build(...) makes an index of five items in chunks of two; `build.log()` are the names worked on since the last."""
    monkeypatch.setattr(build, "CHUNK", 2)
    log = tmp_path / "log"
    log.mkdir()
    path = tmp_path / "index.npz"
    items = [(name, log) for name in "abcde"]

    def run(workers=0, work=row_of, **others):
        return build.build_index(path, items, work, ["cat"], "made", workers, "test", **others)

    def read_log():
        file = log / "log.txt"
        names = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        return names

    run.log, run.path = read_log, path
    return run


def refuse(index):
    raise DataError(f"{len(index)} images; expected more")


def test_index_is_checked_before_it_is_saved(builder):
    with data_error("5 images; expected more"):
        builder(check=refuse)
    assert not builder.path.exists()
    assert builder.log() == list("abcde")
    # The work itself is kept.
    checked = []
    assert builder(check=checked.append).hash == Index.load(builder.path).hash
    assert builder.log() == []
    assert [len(index) for index in checked] == [5]


def test_index_that_was_there_is_checked_too(builder):
    builder()
    with data_error("5 images; expected more"):
        builder(check=refuse)
    assert builder.path.exists()


def test_one_preparation_at_a_time(builder, tmp_path):
    """The second says so and touches nothing; one that has nothing to do needs no lock."""
    (tmp_path / "list.txt").write_text("a")
    made_from = {"sources": [tmp_path / "list.txt"]}
    builder(**made_from)
    before = builder.path.read_bytes()
    builder.log()
    with locked(builder.path.parent):
        assert len(builder(**made_from)) == 5
        (tmp_path / "list.txt").write_text("b")
        with pytest.raises(ConfigError, match="another process prepares this dataset; end it, or wait"):
            builder(**made_from)
    assert builder.log() == []
    assert builder.path.read_bytes() == before
    builder(**made_from)


# ---------------------------------------------------------------------------------------------------------------------
# The verb


def config(root, **changes):
    """Of a toy of three images."""
    return PrepareConfig("toy", False, 0, Choice("toy", toy_options(root, train_images=2, val_images=1, **changes)))


@pytest.mark.parametrize("full", ["write_label", "index"])
def test_full_disk(tmp_path, monkeypatch, full):
    """One line with the way out; the next run goes on to the end that it would have had."""
    prepare(config(tmp_path / "whole"), tmp_path)

    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*((toy, "write_label") if full == "write_label" else (np, "savez")), no_room)
        with data_error(tmp_path / "toy" / "prepared", "No space left", "dataset.prepared=", "same command"):
            prepare(config(tmp_path / "toy"), tmp_path)
    assert not list((tmp_path / "toy").rglob("*partial*"))
    prepare(config(tmp_path / "toy"), tmp_path)
    for index in ("train", "val"):
        made, whole = (Index.load(tmp_path / root / "prepared" / f"{index}.npz") for root in ("toy", "whole"))
        assert made.hash == whole.hash


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with data_error(tmp_path / "file" / "x", "cannot be written", "dataset.prepared="):
        prepare(config(tmp_path / "toy", prepared=tmp_path / "file" / "x"), tmp_path)
    with data_error(tmp_path / "file" / "toy", "cannot be written", "dataset.root="):
        prepare(config(tmp_path / "file" / "toy"), tmp_path)


def older(path):
    with np.load(path) as z:
        arrays = {key: z[key] for key in z.files if key != "boxes"}
    meta = json.loads(str(arrays.pop("meta")))
    np.savez(path, **arrays, meta=np.array(json.dumps({**meta, "format": FORMAT - 1})))


@pytest.mark.parametrize(
    "change", [older, lambda path: path.write_bytes(path.read_bytes()[:-99])], ids=["older", "cut"]
)
def test_index_that_cannot_be_read_is_made_anew(builder, change):
    before = builder().hash
    change(builder.path)
    with pytest.raises(DataError):
        Index.load(builder.path)
    builder.log()
    assert builder().hash == Index.load(builder.path).hash == before
    assert builder.log() == list("abcde")


def fail_at_e(item):
    if item[0] == "e":
        raise DataError("e: damaged; replace it")
    return row_of(item)


@pytest.mark.parametrize(("changed", "value"), [("CHUNK", 3), ("FORMAT", FORMAT + 1)])
def test_parts_of_another_version_are_passed_by(builder, monkeypatch, changed, value):
    """Read as the new one's they would give images twice, or rows of another form."""
    with pytest.raises(DataError):
        builder(work=fail_at_e)
    builder.log()
    monkeypatch.setattr(build, changed, value)
    assert builder().names.tolist() == list("abcde")
    assert builder.log() == list("abcde")


def test_boxes_come_through_the_parts(builder):
    """From other processes as from this one."""
    expected = Index.from_rows([row_of((name, Path("/"))) for name in "abcde"], ["cat"], "made")
    assert builder(workers=1).hash == expected.hash
    assert Index.load(builder.path).boxes_of(4, 1).tolist() == [[0, 0, 4, 5], [6, 6, 8, 9]]


def pid_of(item):
    time.sleep(0.05)
    return ImageRow(f"{item[0]}-{os.getpid()}", 1, 1, {})


def test_workers_none_is_a_process_a_core(builder, monkeypatch):
    monkeypatch.setattr(build, "cores", lambda: 1)
    monkeypatch.setattr(build, "CHUNK", 1)
    pids = {name.split("-")[1] for name in builder(workers=None, work=pid_of).names}
    assert len(pids) == 1
    assert str(os.getpid()) not in pids


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_cores_are_those_of_this_process():
    command = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from fss_svf.machine import cores; "
        "print(cores())"
    )
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "1\n"
    assert cores() == len(os.sched_getaffinity(0))
