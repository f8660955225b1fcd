"""Episodes as a file: the same episodes come back, another program's table is read, every mistake names its line."""

import csv

import numpy as np
import pytest

from fss_svf.data.episodes import EpisodeSampler, EpisodeSpec
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.manifest import EpisodeList, load_episodes, save_episodes
from tests.one_line import data_error

CLASSES = (1, 2, 3)


@pytest.fixture
def index():
    random = np.random.default_rng(0)
    rows = [
        ImageRow(f"photo, {i}", 40, 60, {int(c): 50 for c in random.choice([1, 2, 3, 4], 2, replace=False)})
        for i in range(60)
    ]
    return Index.from_rows(rows, ["cat", "dog, small", "cow", "sheep"], "test")


def lists(index, shot=5, seeds=(7, 8), count=40):
    every = np.ones(len(index), bool)
    return [EpisodeList.drawn(EpisodeSampler(index, CLASSES, every, shot, s, "random", 10), count) for s in seeds]


def test_file_gives_back_the_same_episodes(index, tmp_path):
    saved = lists(index)
    save_episodes(tmp_path / "new" / "episodes.csv", saved)
    loaded = load_episodes(tmp_path / "new" / "episodes.csv", index, CLASSES, 5)
    assert [(e.seed, e.shot, e.specs) for e in loaded] == [(e.seed, e.shot, e.specs) for e in saved]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["episodes.csv"]


def test_fewer_shots_take_the_first_supports(index, tmp_path):
    saved = lists(index)
    save_episodes(tmp_path / "e.csv", saved)
    for loaded, whole in zip(load_episodes(tmp_path / "e.csv", index, CLASSES, 2), saved):
        assert [s.supports for s in loaded.specs] == [s.supports[:2] for s in whole.specs]
        assert loaded.specs == whole.first_supports(2).specs
        assert whole.first_supports(2).shot == 2


def test_table_is_readable_by_others(index, tmp_path):
    save_episodes(tmp_path / "e.csv", lists(index, shot=2, count=3))
    rows = list(csv.DictReader((tmp_path / "e.csv").open()))
    assert list(rows[0]) == ["seed", "number", "class", "class_name", "query", "support_1", "support_2"]
    assert len(rows) == 6
    assert [row["seed"] for row in rows] == ["7"] * 3 + ["8"] * 3
    for row in rows:
        assert index.class_names[int(row["class"]) - 1] == row["class_name"]
        assert {row["query"], row["support_1"], row["support_2"]} <= set(index.names.tolist())


def test_images_are_found_by_name_in_an_index_of_another_order(index, tmp_path):
    save_episodes(tmp_path / "e.csv", lists(index))
    order = np.random.default_rng(1).permutation(len(index))
    other = Index.from_rows(
        [ImageRow(str(index.names[i]), 40, 60, {c: int(a) for c, a in enumerate(index.areas[i]) if a}) for i in order],
        index.class_names,
        "test",
    )
    for mine, theirs in zip(load_episodes(tmp_path / "e.csv", other, CLASSES, 5), lists(index)):
        assert [other.names[s.query] for s in mine.specs] == [index.names[s.query] for s in theirs.specs]


def test_coverage_counts_classes_that_are_never_drawn(index):
    spec = EpisodeSpec(0, (2,), int(np.flatnonzero(index.areas[:, 2])[0]), (1,))
    episodes = EpisodeList(index, 1, 0, (spec, spec))
    assert episodes.coverage(CLASSES) == {1: 0, 2: 2, 3: 0}


def good_row(index):
    spec = lists(index, shot=2, count=1)[0][0]
    return [
        7,
        0,
        spec.class_id,
        index.class_name(spec.class_id),
        *(index.names[i] for i in (spec.query, *spec.supports)),
    ]


HEAD = ["seed", "number", "class", "class_name", "query", "support_1", "support_2"]


def write(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("query", "nowhere", ["'nowhere' is not in the dataset's index"]),
        ("support_2", "nowhere", ["'nowhere' is not in the dataset's index"]),
        ("class", 9, ["class 9"]),
        ("class", "cat", ["'cat'"]),
        ("class_name", "horse", ["is not 'horse'"]),
        ("number", "one", ["'one'"]),
        ("seed", "x", ["'x'"]),
        ("support_2", "", ["1 supports, 2 are needed"]),
    ],
)
def test_wrong_cell_names_its_line(index, tmp_path, column, value, words):
    bad = good_row(index)
    bad[HEAD.index(column)] = value
    path = write(tmp_path / "e.csv", HEAD, good_row(index), bad)
    with data_error(path, "line 3", *words):
        load_episodes(path, index, CLASSES, 2)


def test_class_that_is_not_tested_in_this_fold(index, tmp_path):
    row = good_row(index)
    path = write(tmp_path / "e.csv", HEAD, row)
    with data_error("line 2", "not novel in this fold"):
        load_episodes(path, index, [c for c in CLASSES if c != row[2]], 2)


def test_query_among_its_supports(index, tmp_path):
    row = good_row(index)
    row[6] = row[4]
    with data_error("line 2", "must be different images"):
        load_episodes(write(tmp_path / "e.csv", HEAD, row), index, CLASSES, 2)


def test_image_without_the_class(index, tmp_path):
    row = good_row(index)
    row[5] = str(index.names[np.flatnonzero(index.areas[:, row[2]] == 0)[0]])
    with data_error("line 2", "contains no dog"):
        load_episodes(write(tmp_path / "e.csv", HEAD, row), index, CLASSES, 2)


def test_files_that_are_no_table(index, tmp_path):
    path = tmp_path / "e.csv"
    with data_error(path, "no such file", "episodes.save"):
        load_episodes(path, index, CLASSES, 1)
    for content, words in (
        (b"", ["expected the columns seed, number", "found none"]),
        (b"number,class\n1,2\n", ["expected the columns seed, number", "found number, class"]),
        (",".join(HEAD).encode() + b"\n", ["contains no episode"]),
        (b"\xff\xfe\x00\x01", ["cannot be read"]),
    ):
        path.write_bytes(content)
        with data_error(path, *words):
            load_episodes(path, index, CLASSES, 1)
    with data_error(tmp_path, "cannot be read"):
        load_episodes(tmp_path, index, CLASSES, 1)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([1, 1], ["line 3", "episode 0, expected 1"]),
        ([1, 3], ["line 3", "episode 2, expected 1"]),
    ],
)
def test_lines_that_are_missing_or_twice(index, tmp_path, rows, words):
    save_episodes(tmp_path / "e.csv", lists(index, shot=2, seeds=(7,), count=5))
    lines = (tmp_path / "e.csv").read_text().splitlines()
    (tmp_path / "e.csv").write_text("\n".join([lines[0], *(lines[i] for i in rows)]) + "\n")
    with data_error(tmp_path / "e.csv", *words):
        load_episodes(tmp_path / "e.csv", index, CLASSES, 2)


def test_other_programs_habits(index, tmp_path):
    """A byte order mark is read over; columns in another order, more cells than columns and a negative seed are told."""
    save_episodes(tmp_path / "e.csv", lists(index, shot=2))
    text = (tmp_path / "e.csv").read_text()
    (tmp_path / "bom.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert [e.specs for e in load_episodes(tmp_path / "bom.csv", index, CLASSES, 2)] == [
        e.specs for e in lists(index, shot=2)
    ]
    (tmp_path / "e.csv").write_text(text.replace("support_1,support_2", "support_2,support_1"))
    with data_error("expected the columns", "found seed"):
        load_episodes(tmp_path / "e.csv", index, CLASSES, 2)
    (tmp_path / "e.csv").write_text(text.replace("\n", ",x\n").replace("support_2,x", "support_2"))
    with data_error("line 2", "more cells"):
        load_episodes(tmp_path / "e.csv", index, CLASSES, 2)
    row = good_row(index)
    row[0] = -1
    with data_error("line 2", "negative"):
        load_episodes(write(tmp_path / "e.csv", HEAD, row), index, CLASSES, 2)
    with data_error(tmp_path, "cannot be written"):
        save_episodes(tmp_path, lists(index))
