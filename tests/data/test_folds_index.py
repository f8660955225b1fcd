"""Folds of classes, and the index: its queries, its hash, its file."""

import dataclasses
import json

import numpy as np
import pytest

from fss_svf.data.index import FORMAT, ImageRow, Index
from fss_svf.data.partition import novel_classes
from tests.one_line import data_error

CLASSES = ("cat", "dog", "cow")
ROWS = (
    ImageRow("2007_000032", 40, 60, {1: 500, 3: 7}),
    ImageRow("sub/größe.x", 60, 40, {2: 2048}),
    ImageRow("empty", 33, 33, {}),
)


@pytest.fixture
def index():
    return Index.from_rows(ROWS, CLASSES, "made-from")


# ---------------------------------------------------------------------------------------------------------------------
# Folds


@pytest.mark.parametrize("partition", ["contiguous", "mod4"])
@pytest.mark.parametrize("num_classes", [20, 80, 6, 3])
def test_folds_are_disjoint_and_complete(num_classes, partition):
    every = set(range(1, num_classes + 1))
    folds = [novel_classes(num_classes, fold, partition) for fold in range(4)]
    assert sorted(c for novel in folds for c in novel) == sorted(every)
    for novel in folds:
        assert list(novel) == sorted(novel)
        assert abs(len(novel) - num_classes / 4) < 1


def test_contiguous_folds_are_blocks():
    for i in range(4):
        assert novel_classes(20, i, "contiguous") == tuple(range(5 * i + 1, 5 * i + 6))
    assert novel_classes(80, 3, "contiguous") == tuple(range(61, 81))


def test_mod4_folds_are_every_fourth_class():
    assert novel_classes(20, 2, "mod4") == (3, 7, 11, 15, 19)
    for i in range(4):
        assert novel_classes(80, i, "mod4") == tuple(i + 1 + 4 * k for k in range(20))


# ---------------------------------------------------------------------------------------------------------------------
# Index


def test_rows_become_columns(index):
    assert len(index) == 3
    assert index.names.tolist() == ["2007_000032", "sub/größe.x", "empty"]
    assert index.sizes.tolist() == [[40, 60], [60, 40], [33, 33]]
    assert index.areas.tolist() == [[0, 500, 0, 7], [0, 0, 2048, 0], [0, 0, 0, 0]]
    assert [index.class_name(c) for c in (1, 2, 3)] == list(CLASSES)


def test_having_counts_an_area_that_is_just_enough(index):
    assert index.having([1, 2]).tolist() == [True, True, False]
    assert index.having([2, 3], min_area=2048).tolist() == [False, True, False]
    assert index.having([2, 3], min_area=2049).tolist() == [False, False, False]
    assert index.having([]).tolist() == [False, False, False]


def test_file_gives_back_the_same_index(index, tmp_path):
    path = tmp_path / "index.npz"
    index.save(path)
    loaded = Index.load(path)
    for field in ("names", "sizes", "areas"):
        assert np.array_equal(getattr(loaded, field), getattr(index, field))
        assert getattr(loaded, field).dtype == getattr(index, field).dtype
    assert loaded.class_names == index.class_names
    assert loaded.fingerprint == "made-from"
    assert loaded.hash == index.hash
    assert [p.name for p in tmp_path.iterdir()] == ["index.npz"]


def test_hash_tells_every_change_of_an_answer(index):
    def change(row, **values):
        rows = list(ROWS)
        rows[row] = dataclasses.replace(ROWS[row], **values)
        return Index.from_rows(rows, CLASSES, "made-from").hash

    hashes = [
        index.hash,
        change(0, name="2007_000033"),
        change(0, height=41),
        change(0, height=60, width=40),
        change(0, areas={1: 501, 3: 7}),
        change(0, areas={2: 500, 3: 7}),
        change(2, areas={1: 1}),
        Index.from_rows(ROWS[::-1], CLASSES, "made-from").hash,
        Index.from_rows(ROWS[:2], CLASSES, "made-from").hash,
        Index.from_rows(ROWS, ("cat", "cow", "dog"), "made-from").hash,
    ]
    assert len(set(hashes)) == len(hashes)
    # Where the same content came from does not matter.
    assert Index.from_rows(ROWS, CLASSES, "elsewhere").hash == index.hash


BOXES = (
    ((3, 0, 0, 2, 4), (1, 5, 6, 30, 40), (3, 1, 1, 3, 3)),
    (),
    ((2, 0, 0, 33, 33),),
)


@pytest.fixture
def boxed():
    rows = [dataclasses.replace(row, boxes=boxes) for row, boxes in zip(ROWS, BOXES)]
    return Index.from_rows(rows, CLASSES, "made-from")


def test_boxes_of_a_class_in_an_image(boxed, tmp_path):
    boxed.save(tmp_path / "index.npz")
    for index in (boxed, Index.load(tmp_path / "index.npz")):
        assert index.boxes_of(0, 3).tolist() == [[0, 0, 2, 4], [1, 1, 3, 3]]
        assert index.boxes_of(0, 1).tolist() == [[5, 6, 30, 40]]
        assert index.boxes_of(2, 2).tolist() == [[0, 0, 33, 33]]
        for image, class_id in ((0, 2), (1, 1), (2, 3)):
            assert index.boxes_of(image, class_id).shape == (0, 4)
        assert index.boxes.dtype == np.int32


def test_without_instances_there_are_no_boxes(index, tmp_path):
    index.save(tmp_path / "index.npz")
    assert index.boxes_of(0, 1) is None
    assert Index.load(tmp_path / "index.npz").boxes_of(0, 1) is None


def test_hash_of_an_index_without_boxes_stays(index):
    """Checkpoints and results of earlier versions hold it."""
    assert index.hash == "2737898d89ed3cf2"


def test_hash_covers_boxes(index, boxed, tmp_path):
    def change(image, boxes):
        rows = [dataclasses.replace(row, boxes=boxes if i == image else BOXES[i]) for i, row in enumerate(ROWS)]
        return Index.from_rows(rows, CLASSES, "made-from").hash

    hashes = [
        index.hash,
        boxed.hash,
        change(2, ((2, 0, 0, 33, 32),)),
        change(2, ((1, 0, 0, 33, 33),)),
        change(2, ()),
        change(1, BOXES[2]),
    ]
    assert len(set(hashes)) == len(hashes)
    boxed.save(tmp_path / "index.npz")
    assert Index.load(tmp_path / "index.npz").hash == boxed.hash


@pytest.mark.parametrize("boxes", [np.zeros((2, 5), np.int32), np.zeros(6, np.int32),
                                   np.array([[1, *[1] * 5], [0, *[1] * 5]], np.int32)])  # fmt: skip
def test_damaged_boxes(boxed, tmp_path, boxes):
    path = tmp_path / "index.npz"
    boxed.save(path)
    _overwrite_meta(path, boxes=boxes)
    with data_error(path, "damaged", "boxes"):
        Index.load(path)


def test_class_number_of_a_box_out_of_range():
    with data_error("2007_000032", "class 4", "1..3"):
        Index.from_rows([ImageRow("2007_000032", 40, 60, {}, ((4, 0, 0, 1, 1),))], CLASSES, "made-from")


def test_failed_save_leaves_the_old_file(index, tmp_path, monkeypatch):
    path = tmp_path / "index.npz"
    index.save(path)

    def full_disk(file, **arrays):
        file.write(b"half a f")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        Index.from_rows(ROWS[:1], CLASSES, "new").save(path)
    assert Index.load(path).hash == index.hash


def test_missing_file_is_told_apart_from_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        Index.load(tmp_path / "index.npz")


def _overwrite_meta(path, **changes):
    """Save the npz at `path` again with other entries in its meta, or other arrays."""
    with np.load(path) as z:
        arrays = {key: z[key] for key in z.files}
    meta = json.loads(str(arrays["meta"]))
    for key, value in changes.items():
        if key in arrays:
            arrays[key] = value
        else:
            meta[key] = value
    arrays["meta"] = np.array(json.dumps(meta))
    np.savez(path, **arrays)


def _write_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>504</html>"),
    "flipped bytes": lambda path: path.write_bytes(path.read_bytes().replace(b"2\0", b"3\0", 1)),
    # Flipped bits in a zip's header, just before the time, read as a method of compression nobody knows.
    "unknown compression": lambda path: path.write_bytes(path.read_bytes().replace(b"\0\0\0\0!\0", b"\x2a\0\0\0!\0")),
    "an array alone": lambda path: _write_array(path),
    "without sizes": lambda path: np.savez(path, meta=np.array(json.dumps({"format": FORMAT, "classes": []}))),
    "meta of another kind": lambda path: np.savez(path, meta=np.array("[1]")),
    "class beyond the list": lambda path: _overwrite_meta(path, classes=["cat"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file(index, tmp_path, damage):
    path = tmp_path / "index.npz"
    index.save(path)
    before = path.read_bytes()
    DAMAGES[damage](path)
    assert path.read_bytes() != before
    with data_error(path, "damaged", "delete it and run 'fss-svf prepare'"):
        Index.load(path)


def test_file_of_another_format(index, tmp_path):
    path = tmp_path / "index.npz"
    index.save(path)
    _overwrite_meta(path, format=FORMAT - 1)
    with data_error(path, f"format {FORMAT - 1}", f"expected {FORMAT}", "fss-svf prepare"):
        Index.load(path)


@pytest.mark.parametrize("number", [0, 4, 254])
def test_class_number_out_of_range(number):
    with data_error("2007_000032", f"class {number}", "1..3"):
        Index.from_rows([ImageRow("2007_000032", 40, 60, {number: 9})], CLASSES, "made-from")
