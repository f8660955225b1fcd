"""episodes.csv: what is written is read again, and a damaged file is one line that names its place."""

import dataclasses

import numpy as np
import pytest

from fss_svf.data.episodes import EpisodeSpec
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.manifest import EpisodeList
from fss_svf.evaluation.episode_table import (
    EpisodeNames,
    EpisodeTable,
    empty_table,
    load_episode_table,
    save_episode_table,
    total_counts,
)
from tests.made_up import CLASSES, made_up_table
from tests.one_line import data_error


def equal(one, other):
    in_the_file = [f.name for f in dataclasses.fields(EpisodeTable) if f.name not in ("further", "base")]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in (*in_the_file, "predicted"))


@pytest.fixture
def of_two_ways():
    """Class 2 (fish; chips) is not in the first query and is counted as nothing in the second; class 3 is never drawn."""
    rows = [ImageRow(name, 9, 9, {1: 20}) for name in ('a,"1"', "b;2", "c", "dé")]
    index = Index.from_rows(rows, ("cat", "fish; chips", "cow"), "test")
    specs = (EpisodeSpec(0, (2, 1), 0, (1, 2)), EpisodeSpec(1, (1, 2), 3, (0, 1)))
    table = empty_table(EpisodeList(index, 1, 321, specs), (1, 2, 3), ["meta"])
    table.measured[1, 1] = True
    table.counts[0, :3] = (71, 75), (6, 10), (5, 9)
    table.counts[1, :4] = (58, 67), (3, 12), (3, 8), (0, 4)
    table.true[0, 0], table.true[1, :2] = 7, (5, 4)
    return table


def test_table_of_a_run(of_two_ways):
    t = of_two_ways
    assert (t.seed, t.classes, len(t)) == (321, ("cat", "fish; chips", "cow"), 2)
    assert t.names[0] == EpisodeNames(("fish; chips", "cat"), 'a,"1"', ("b;2", "c"))
    assert t.measured.tolist() == [[True, False, False], [True, True, False]]
    assert t.counted.tolist() == [81, 70]
    assert t.counts.shape == t.further["meta"].shape == (2, 5, 2)
    assert t.counts.dtype == t.further["meta"].dtype == np.int64
    assert t.episodes == {"cat": 2, "fish; chips": 1, "cow": 0}
    assert total_counts([t, t]) == {
        "cat": {"intersection": 16, "union": 34, "episodes": 4},
        "fish; chips": {"intersection": 0, "union": 8, "episodes": 2},
        "cow": {"intersection": 0, "union": 0, "episodes": 0},
    }


def test_round_trip(of_two_ways, tmp_path):
    path = tmp_path / "episodes.csv"
    save_episode_table(path, [of_two_ways])
    assert path.read_text(encoding="utf-8").splitlines()[1:] == [
        '321,0,"""fish; chips"";cat","a,""1""","""b;2"";c",;5,;9,;7,;7,6,10,81',
        '321,1,"cat;""fish; chips""",dé,"""a,""""1"""""";""b;2""",3;0,8;4,5;4,6;0,3,12,70',
    ]
    (read,) = load_episode_table(path, of_two_ways.classes)
    assert equal(read, of_two_ways)

    random = np.random.default_rng(0)
    tables = [made_up_table(random, n, seed=seed) for n, seed in ((40, 9), (25, 4))]
    save_episode_table(path, tables)
    read = load_episode_table(path, CLASSES)
    assert len(read) == 2
    assert all(map(equal, read, tables))
    assert [p.name for p in tmp_path.iterdir()] == ["episodes.csv"]


def test_a_failing_write_leaves_the_old_file(of_two_ways, tmp_path):
    path = tmp_path / "episodes.csv"
    path.write_text("old")
    with pytest.raises(AttributeError):
        save_episode_table(path, [of_two_ways, None])
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def sizes(damaged):
    return lambda text: text.replace(",40,40,", f",{damaged},", 1)


DAMAGES = [
    ("line 4: expected 12 cells, found 7", lambda text: text[: text.index("s2") + 8]),
    ("line 4: the file is cut here", lambda text: text[:-1]),
    ("line 3: episode 2, expected 1", lambda text: text.replace("7,1,", "7,2,", 1)),
    ("line 3: episode 0, expected 1", lambda text: text.replace("7,1,", "7,0,", 1)),
    ("line 1: expected the columns seed, number, class,", lambda text: text.replace("query", "image", 1)),
    ("line 1: expected the columns", lambda text: ""),
    ("holds no episode", lambda text: text.split("\n")[0] + "\n"),
    ("line 2: class 'cat' is none of those that its result.json measures", lambda text: text.replace("dog", "cat", 1)),
    ("line 2: 1 classes, 1 intersections, 2 unions", lambda text: text.replace(",30,50,", ",30,50;50,", 1)),
    ("line 2: expected a whole number >= 0, got '-3'", lambda text: text.replace(",30,50,", ",-3,50,", 1)),
    ("line 2: expected a whole number >= 0, got ''", lambda text: text.replace(",30,50,", ",,50,", 1)),
    ("line 2: expected a whole number >= 0, got '3e1'", lambda text: text.replace(",30,50,", ",3e1,50,", 1)),
    ("line 2: intersection 60, union 50 and 90 counted pixels", lambda text: text.replace(",30,50,", ",60,50,", 1)),
    ("line 2: intersection 30, union 50 and 49 counted pixels", lambda text: text.replace(",90\n", ",49\n", 1)),
    ("line 2: 39 true and 42 predicted pixels cannot be with intersection 30, union 50", sizes("39,42")),
    ("line 2: 20 true and 60 predicted pixels cannot be", sizes("20,60")),
    ("line 2: 1 classes, 2 and 1 sizes of masks", sizes("40;1,40")),
    ("line 2: expected a whole number >= 0, got ''", sizes(",80")),
    ("line 4: ", lambda text: text.replace("q2", '"q2', 1)),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGES, ids=[message for message, _ in DAMAGES])
def test_damaged_file_names_its_line(message, damage, tmp_path):
    path = tmp_path / "episodes.csv"
    rows = [f"7,{n},dog,q{n},s{n},30,50,40,40,30,50,90" for n in range(3)]
    header = "seed,number,class,query,supports,intersection,union,true,predicted,"
    header += "foreground_intersection,foreground_union,counted"
    whole = "\n".join([header, *rows]) + "\n"
    path.write_text(whole)
    assert len(load_episode_table(path, ["dog"])[0]) == 3
    path.write_text(damage(whole))
    with data_error(path, message, "evaluate again"):
        load_episode_table(path, ["dog"])


def test_a_file_of_version_0_1_has_no_sizes_and_is_read(of_two_ways, tmp_path):
    path, older = tmp_path / "episodes.csv", dataclasses.replace(of_two_ways, true=None)
    save_episode_table(path, [older])
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    assert header == (
        "seed,number,class,query,supports,intersection,union,foreground_intersection,foreground_union,counted"
    )
    assert rows[1] == '321,1,"cat;""fish; chips""",dé,"""a,""""1"""""";""b;2""",3;0,8;4,3,12,70'
    (read,) = load_episode_table(path, of_two_ways.classes)
    assert read.true is read.predicted is None
    assert np.array_equal(read.counts, of_two_ways.counts)


def test_missing_or_unreadable_file(tmp_path):
    with data_error("nowhere.csv: no such file; evaluate again"):
        load_episode_table(tmp_path / "nowhere.csv", CLASSES)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with data_error("bytes.csv: cannot be read as a table of episodes"):
        load_episode_table(tmp_path / "bytes.csv", CLASSES)
