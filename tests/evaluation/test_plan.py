"""All episodes of an evaluation are known before it starts: shots share them, coverage is told, files replace them."""

import logging
from dataclasses import replace

import pytest

from fss_svf.config import EpisodeFiles, Protocol
from fss_svf.data.dataset import DatasetOptions
from fss_svf.data.fold import Fold
from fss_svf.data.index import ImageRow, Index
from fss_svf.evaluation.plan import make_plan
from tests.one_line import data_error

NONE = EpisodeFiles(None, None)


def plan_of(index, options, *arguments):
    return make_plan(index, Fold(options, index.class_names, 0), *arguments)


def protocol(**changes):
    values = {"name": "test", "episodes": 30, "runs": 2, "seed": 5, "queries": "in_order", "resize": "pad",
              "label": "original", "never_drawn": "error"}  # fmt: skip
    return Protocol(**{**values, **changes})


@pytest.fixture
def options(tmp_path):
    return DatasetOptions(tmp_path, tmp_path / "prepared", "contiguous", 10, True, "skip", "mask")


@pytest.fixture
def index():
    """8 classes; fold 0 tests a and b, which have 9 and 4 images."""
    rows = [ImageRow(f"a{i}", 9, 9, {1: 20}) for i in range(9)] + [ImageRow(f"b{i}", 9, 9, {2: 20}) for i in range(4)]
    return Index.from_rows(rows, list("abcdefgh"), "test")


def test_shots_share_queries_and_first_supports(index, options):
    plan = plan_of(index, options, (1, 3), protocol(), NONE)
    assert (plan.classes, plan.left_out, plan.source) == ((1, 2), (), {})
    for one, three in zip(plan.episodes[1], plan.episodes[3]):
        assert (one.shot, three.shot, len(one)) == (1, 3, 30)
        assert one.seed == three.seed
        for a, b in zip(one.specs, three.specs):
            assert (a.query, a.class_id, a.supports) == (b.query, b.class_id, b.supports[:1])
    assert [e.seed for e in plan.episodes[1]] == [5, 6]
    assert plan.episodes[1][0].specs != plan.episodes[1][1].specs


def test_what_the_largest_shot_leaves_out_is_left_out_of_all(index, options):
    plan = plan_of(index, options, (1, 5), protocol(), NONE)
    assert (plan.classes, plan.left_out) == ((1,), (2,))
    assert {spec.class_id for spec in plan.episodes[1][0].specs} == {1}


def test_coverage_is_told(index, options, caplog):
    with caplog.at_level(logging.INFO):
        plan_of(index, options, (1,), protocol(), NONE)
    assert "seed 5: 30 episodes, 8 (b) to 22 (a) a class" in caplog.text


def test_class_that_is_never_drawn(index, options, caplog):
    """In order, the first five episodes show a alone."""
    with data_error("1 of 2 classes are never drawn in 5 episodes: b", "protocol.episodes", "leave_out", "zero"):
        plan_of(index, options, (1,), protocol(episodes=5), NONE)
    for choice in ("leave_out", "zero"):
        caplog.clear()
        plan = plan_of(index, options, (1,), protocol(episodes=5, never_drawn=choice), NONE)
        assert plan.classes == (1, 2)
        assert f"never drawn, {choice.replace('_', ' ')}: b" in caplog.text


def test_saved_episodes_are_evaluated_again(index, options, tmp_path):
    path = tmp_path / "episodes.csv"
    drawn = plan_of(index, options, (1, 3), protocol(), EpisodeFiles(path, None))
    loaded = make_plan(
        index,
        Fold(options, index.class_names, 0),
        (1, 3),
        protocol(seed=99, episodes=7, runs=1),
        EpisodeFiles(None, path),
    )
    for shot in (1, 3):
        assert [e.specs for e in loaded.episodes[shot]] == [e.specs for e in drawn.episodes[shot]]
    assert (loaded.protocol.seed, loaded.protocol.runs, loaded.protocol.episodes) == (5, 2, 30)
    assert drawn.protocol == protocol()
    # Written and read back they are one measurement; without a file the protocol alone tells them.
    assert list(loaded.source) == ["episodes"]
    assert loaded.source == drawn.source
    assert plan_of(index, options, (1, 3), protocol(), NONE).source == {}


def test_file_of_a_fold_with_a_class_too_small(index, options, tmp_path):
    """What was left out when the file was written is left out again."""
    path = tmp_path / "episodes.csv"
    drawn = plan_of(index, options, (5,), protocol(), EpisodeFiles(path, None))
    loaded = plan_of(index, options, (5,), protocol(), EpisodeFiles(None, path))
    assert (loaded.classes, loaded.left_out) == (drawn.classes, drawn.left_out) == ((1,), (2,))
    with data_error("never drawn", "add to it"):
        make_plan(
            index,
            Fold(replace(options, too_few_images="error"), index.class_names, 0),
            (5,),
            protocol(),
            EpisodeFiles(None, path),
        )


def test_seeds_of_unequal_length(index, options, tmp_path):
    path = tmp_path / "episodes.csv"
    plan_of(index, options, (1,), protocol(), EpisodeFiles(path, None))
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")  # the last of the second seed
    with data_error(path, "equally many"):
        plan_of(index, options, (1,), protocol(), EpisodeFiles(None, path))
