"""Which images make up an episode: a pure function of its number, within the rules of fold, area and filter."""

import multiprocessing
import random
from collections import Counter

import numpy as np
import pytest

from fss_svf.data.dataset import DatasetOptions
from fss_svf.data.episodes import EpisodeSampler
from fss_svf.data.fold import Fold
from fss_svf.data.index import ImageRow, Index
from tests.one_line import data_error

ORDERS = ("in_order", "random", "shuffled_epochs", "by_class", "balanced")
MIN_AREA = 100


def index_of(*areas, classes=20):
    """An index of one image an argument: its areas by class."""
    rows = [ImageRow(f"image{i}", 50, 50, dict(area)) for i, area in enumerate(areas)]
    return Index.from_rows(rows, [f"class{c}" for c in range(1, classes + 1)], "made-up")


def crowded_index(images=200, classes=20, seed=3):
    """Images of one to four classes, with areas on both sides of MIN_AREA."""
    draw = np.random.default_rng(seed)
    areas = []
    for _ in range(images):
        present = 1 + draw.choice(classes, size=draw.integers(1, 5), replace=False)
        areas.append({int(c): int(draw.integers(1, 4 * MIN_AREA)) for c in present})
    return index_of(*areas, classes=classes)


def sampler(index, classes, shot=1, seed=0, order="random", keep=None, **more):
    keep = np.ones(len(index), bool) if keep is None else keep
    return EpisodeSampler(index, classes, keep, shot, seed, order, MIN_AREA, **more)


def options(tmp_path, **changes):
    values = {
        "class_partition": "contiguous",
        "min_area": MIN_AREA,
        "filter_novel": True,
        "too_few_images": "error",
        "support_annotation": "mask",
    }
    return DatasetOptions(tmp_path, tmp_path, **{**values, **changes})


# ---------------------------------------------------------------------------------------------------------------------
# A pure function of (index, split, seed, number)


@pytest.mark.parametrize("order", ORDERS)
def test_episode_depends_on_its_number_alone(order):
    index = crowded_index()
    first = sampler(index, range(1, 11), shot=3, order=order)
    numbers = list(range(3 * len(first)))
    specs = [first[n] for n in numbers]
    assert [spec.number for spec in specs] == numbers

    # Asked in another order, of a fresh sampler, while another sampler is at work and global generators move.
    other, busy = sampler(index, range(1, 11), shot=3, order=order), sampler(index, range(5, 15), seed=9, order=order)
    shuffled = random.Random(0).sample(numbers, len(numbers))
    again = {}
    for n in shuffled:
        _ = busy[n]
        np.random.seed(n)  # noqa: NPY002
        again[n] = other[n]
    assert [again[n] for n in numbers] == specs


def test_episode_is_the_same_in_another_process():
    drawn = sampler(crowded_index(), range(1, 11), shot=3, order="shuffled_epochs")
    numbers = [400, 3, 0, 177]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(drawn.__getitem__, numbers) == [drawn[n] for n in numbers]


@pytest.mark.parametrize("order", ORDERS[1:])
def test_seeds_and_numbers_give_other_episodes(order):
    index = crowded_index()
    picks = [
        [sampler(index, range(1, 11), seed=seed, order=order)[n].query for n in range(100)] for seed in (0, 1, 2**31)
    ]
    assert len({tuple(pick) for pick in picks}) == 3
    assert len(set(picks[0])) > 30


def test_numbers_start_at_zero():
    with pytest.raises(IndexError):
        _ = sampler(crowded_index(), range(1, 11))[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Query, class and supports


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shot", [1, 5])
def test_every_episode_keeps_the_rules(order, shot):
    index, classes = crowded_index(), (2, 3, 5, 7, 11, 13)
    keep = np.random.default_rng(0).random(len(index)) < 0.9
    drawn = sampler(index, classes, shot=shot, order=order, keep=keep)
    for n in range(3000):
        spec = drawn[n]
        assert spec.class_id in classes
        assert spec.query not in spec.supports
        assert len(set(spec.supports)) == shot
        assert index.areas[spec.query, spec.class_id] > 0
        assert (index.areas[spec.query, list(classes)] >= MIN_AREA).any()
        assert (index.areas[list(spec.supports), spec.class_id] >= MIN_AREA).all()
        assert keep[[spec.query, *spec.supports]].all()


def test_listed_are_images_with_a_class_that_is_large_enough():
    listed = [{1: MIN_AREA}, {1: 5, 2: MIN_AREA}, {2: 900, 9: 900}, {1: 150, 2: 1}]
    unlisted = [{1: MIN_AREA - 1}, {9: 900}, {}, {1: 99, 2: 99}]
    drawn = sampler(index_of(*listed, *unlisted), (1, 2))
    assert drawn.queries.tolist() == [0, 1, 2, 3]
    assert len(drawn) == 4
    keep = np.array([True, False] + [True] * 6)
    assert sampler(index_of(*listed, {2: 400}, *unlisted[1:]), (1, 2), keep=keep).queries.tolist() == [0, 2, 3, 4]


def test_class_is_drawn_evenly_from_all_in_the_query():
    """A class of one pixel counts as much as one of 2,000; a class of another fold does not count."""
    query = {1: 2000, 2: 1, 3: MIN_AREA, 4: MIN_AREA - 1, 9: 2000}
    others = [{c: MIN_AREA} for c in (1, 2, 3, 4) for _ in range(3)]
    drawn = sampler(index_of(query, *others), (1, 2, 3, 4), order="in_order")
    classes = Counter(drawn[13 * n].class_id for n in range(3000))  # the query of each is image 0
    assert set(classes) == {1, 2, 3, 4}
    assert np.abs(np.array(list(classes.values())) / 750 - 1).max() < 0.14  # four deviations


@pytest.mark.parametrize("place", [0, 1, 4])
def test_supports_are_drawn_evenly(place):
    """Every place among the supports, the first one too."""
    drawn = sampler(index_of(*[{1: MIN_AREA}] * 11), (1,), shot=5, order="in_order")
    supports = Counter(drawn[11 * n].supports[place] for n in range(4000))
    assert set(supports) == set(range(1, 11))  # the query is image 0
    assert np.abs(np.array(list(supports.values())) / 400 - 1).max() < 0.2


def test_support_of_fewer_shots_is_the_first_of_more():
    index = crowded_index()
    shots = {shot: sampler(index, range(1, 11), shot=shot, order="shuffled_epochs") for shot in (1, 2, 5, 8)}
    for n in range(500):
        most = shots[8][n]
        for shot, drawn in shots.items():
            spec = drawn[n]
            assert (spec.query, spec.class_id, spec.supports) == (most.query, most.class_id, most.supports[:shot])


# ---------------------------------------------------------------------------------------------------------------------
# Orders


def test_shuffled_epochs_show_every_query_once():
    index = crowded_index()
    drawn = sampler(index, range(1, 11), order="shuffled_epochs")
    size = len(drawn)
    epochs = [[drawn[epoch * size + i].query for i in range(size)] for epoch in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == drawn.queries.tolist()
    other_seed = sampler(index, range(1, 11), seed=1, order="shuffled_epochs")
    epochs.append([other_seed[i].query for i in range(size)])
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_epochs_repeat_queries_but_not_supports():
    drawn = sampler(crowded_index(), range(1, 11), order="shuffled_epochs")
    by_query = [{drawn[e * len(drawn) + i].query: drawn[e * len(drawn) + i] for i in range(len(drawn))} for e in (0, 1)]
    same = [by_query[0][q].supports == by_query[1][q].supports for q in by_query[0]]
    assert np.mean(same) < 0.2


def test_in_order_walks_the_list_again_and_again():
    drawn = sampler(crowded_index(), range(1, 11), order="in_order")
    walked = [drawn[n].query for n in range(2 * len(drawn) + 5)]
    assert walked == [*drawn.queries, *drawn.queries, *drawn.queries[:5]]


def test_random_queries_are_independent():
    drawn = sampler(crowded_index(), range(1, 11), order="random")
    size = len(drawn)
    counts = Counter(drawn[n].query for n in range(20 * size))
    assert set(counts) == set(drawn.queries.tolist())
    # Poisson with mean 20; an order that shows each query equally often would have no spread.
    assert 3 < np.std(list(counts.values())) < 6
    assert len({drawn[n].query for n in range(size)}) < 0.75 * size


def uneven_index():
    """Classes 1, 2, 3 and 5 in 40, 11, 5 and 20 images that are large enough, some of two classes; class 4 is none of
    the sampler's."""
    both = [{1: MIN_AREA, 2: MIN_AREA}] * 6 + [{1: MIN_AREA, 3: MIN_AREA - 1, 4: 900}] * 4
    return index_of(*both, *[{1: 900}] * 30, *[{2: 900}] * 5, *[{3: 900}] * 5, *[{5: 300}] * 20)


def test_by_class_draws_a_class_and_then_one_of_its_images():
    drawn = sampler(uneven_index(), (1, 2, 3, 5), order="by_class")
    specs = [drawn[n] for n in range(8000)]
    assert np.abs(np.array(list(Counter(s.class_id for s in specs).values())) / 2000 - 1).max() < 0.08
    for c, eligible in ((1, range(40)), (2, [*range(6), *range(40, 45)]), (3, range(45, 50)), (5, range(50, 70))):
        # Not an image with less of the class than a support has.
        queries = Counter(s.query for s in specs if s.class_id == c)
        assert set(queries) == set(eligible)
        each = 2000 / len(eligible)
        assert np.abs(np.array(list(queries.values())) - each).max() < 5 * each**0.5


def test_balanced_takes_classes_in_turn_and_every_image_before_any_again():
    index, classes = uneven_index(), (1, 2, 3, 5)
    walks = {}
    for seed in (0, 1):
        drawn = sampler(index, classes, shot=2, seed=seed, order="balanced")
        specs = [drawn[n] for n in range(4 * 120)]
        assert [s.class_id for s in specs] == [1, 2, 3, 5] * 120
        for c in classes:
            eligible = np.flatnonzero(index.areas[:, c] >= MIN_AREA).tolist()
            queries = [s.query for s in specs if s.class_id == c]
            passes = [queries[i : i + len(eligible)] for i in range(0, 120, len(eligible))]
            full = [p for p in passes if len(p) == len(eligible)]
            assert len(full) >= 3
            assert all(sorted(p) == eligible for p in full)
            assert len(set(passes[-1])) == len(passes[-1])
            assert full[0] != full[1] != full[2]  # in another order each time
            walks[seed, c] = queries
    assert all(walks[0, c] != walks[1, c] for c in classes)


@pytest.mark.parametrize("order", ["by_class", "balanced"])
def test_several_ways_when_the_class_comes_first(order):
    index = crowded_index()
    drawn, one = (sampler(index, range(1, 11), shot=2, order=order, way=way) for way in (3, 1))
    for n in range(300):
        spec, alone = drawn[n], one[n]
        assert spec.query == alone.query
        assert alone.class_id in spec.class_ids
        assert len(set(spec.class_ids)) == 3
        assert len({spec.query, *spec.supports}) == 7


# ---------------------------------------------------------------------------------------------------------------------
# Too few images


def few():
    """Class 1 has three large images, class 2 has two, class 3 one, class 4 none."""
    large = [{1: MIN_AREA}] * 3 + [{2: MIN_AREA}] * 2 + [{3: MIN_AREA}]
    return index_of(*large, {1: MIN_AREA - 1, 2: MIN_AREA - 1, 4: 5})


def test_too_few_images_are_counted():
    with data_error(
        "fold 0, val", "2-shot", "need 3 images", f"{MIN_AREA} px", "class2 has 2, class3 has 1, class4 has 0",
        "dataset.min_area", "too_few_images=skip",
    ) as caught:  # fmt: skip
        sampler(few(), (1, 2, 3, 4), shot=2, what="fold 0, val")
    assert "class1" not in caught.message


def test_skip_leaves_out_those_classes_and_no_other():
    drawn = sampler(few(), (1, 2, 3, 4), shot=1, too_few_images="skip")
    assert drawn.skipped == (3, 4)
    assert drawn.classes == (1, 2)
    assert drawn.queries.tolist() == [0, 1, 2, 3, 4]
    assert {drawn[n].class_id for n in range(500)} == {1, 2}
    assert sampler(few(), (1, 2), shot=1, too_few_images="skip").skipped == ()


def test_skipped_class_in_a_query_of_another_is_never_drawn():
    index = index_of(*[{1: MIN_AREA, 2: MIN_AREA}] * 2, *[{1: MIN_AREA}] * 3)
    drawn = sampler(index, (1, 2), shot=2, too_few_images="skip")
    assert drawn.skipped == (2,)
    assert {drawn[n].class_id for n in range(200)} == {1}


@pytest.mark.parametrize("shot", [1, 2, 5])
def test_as_many_images_as_shots_are_one_too_few(shot):
    """Such a class would have a query and one support short: drawing on would never end."""
    index = index_of(*[{1: MIN_AREA}] * shot)
    with data_error(f"need {shot + 1} images", f"class1 has {shot}"):
        sampler(index, (1,), shot=shot)
    with data_error(f"no class has the {shot + 1} images"):
        sampler(index, (1,), shot=shot, too_few_images="skip")
    enough = sampler(index_of(*[{1: MIN_AREA}] * (shot + 1)), (1,), shot=shot)
    for n in range(50):
        spec = enough[n]
        assert {spec.query, *spec.supports} == set(range(shot + 1))


def test_images_left_out_do_not_count():
    index = index_of(*[{1: MIN_AREA}] * 3)
    with data_error("class1 has 1"):
        sampler(index, (1,), keep=np.array([True, False, False]))


def test_no_class_at_all():
    with data_error("no class has the"):
        sampler(few(), ())


def test_no_supports_asked():
    """The base learner's training draws images alone: one image a class will do."""
    drawn = sampler(few(), (1, 2, 3), shot=0, order="shuffled_epochs")
    assert sorted(drawn[n].query for n in range(6)) == [0, 1, 2, 3, 4, 5]
    assert drawn[0].supports == ()


# ---------------------------------------------------------------------------------------------------------------------
# Folds and the filter of novel classes


def test_train_shows_base_classes_and_val_novel_ones(tmp_path):
    index = crowded_index(400)
    for partition, novel in (("contiguous", {6, 7, 8, 9, 10}), ("mod4", {2, 6, 10, 14, 18})):
        chosen = options(tmp_path, class_partition=partition)
        drawn = Fold(chosen, index.class_names, 1).sampler(index, "val", 1, 0, "random")
        assert {drawn[n].class_id for n in range(400)} == novel == set(Fold(chosen, index.class_names, 1).novel)
        drawn = Fold(chosen, index.class_names, 1).sampler(index, "train", 1, 0, "random")
        assert {drawn[n].class_id for n in range(800)} == set(range(1, 21)) - novel
        assert set(Fold(chosen, index.class_names, 1).base) == set(range(1, 21)) - novel


def test_filter_drops_an_image_for_one_novel_pixel(tmp_path):
    """Fold 0 of 20 classes in blocks: 1 to 5 are novel."""
    index = index_of({6: 900}, {6: 900, 5: 1}, {7: 900, 20: 900}, {1: 900}, {}, {6: 900, 1: 1, 2: 1})
    filtered = options(tmp_path)
    assert Fold(filtered, index.class_names, 0).usable(index, "train").tolist() == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    assert Fold(filtered, index.class_names, 1).usable(index, "train").tolist() == [
        False,
        False,
        False,
        True,
        True,
        False,
    ]
    # Tests are about novel classes, and without the filter novel objects train as background.
    assert Fold(filtered, index.class_names, 0).usable(index, "val").all()
    assert Fold(options(tmp_path, filter_novel=False), index.class_names, 0).usable(index, "train").all()


@pytest.mark.parametrize("filter_novel", [True, False])
def test_filter_reaches_queries_and_supports(tmp_path, filter_novel):
    index = crowded_index(600)
    drawn = Fold(options(tmp_path, filter_novel=filter_novel), index.class_names, 0).sampler(
        index, "train", 3, 0, "random"
    )
    specs = [drawn[n] for n in range(1000)]
    novel = index.areas[:, 1:6].any(axis=1)
    queries, supports = {s.query for s in specs}, {image for s in specs for image in s.supports}
    assert novel[list(queries)].any() == novel[list(supports)].any() == (not filter_novel)


def test_options_reach_the_sampler(tmp_path):
    index = few()
    chosen = options(tmp_path, too_few_images="skip", min_area=MIN_AREA)
    drawn = Fold(chosen, index.class_names, 0).sampler(index, "val", 2, 7, "in_order")
    assert (drawn.classes, drawn.skipped, drawn.shot, drawn.seed, drawn.order) == ((1,), (2, 3, 4, 5), 2, 7, "in_order")
    with data_error("fold 0, val", "class2 has 2"):
        Fold(options(tmp_path), index.class_names, 0).sampler(index, "val", 2, 7, "in_order")
    lower = Fold(options(tmp_path, min_area=5, too_few_images="skip"), index.class_names, 0).sampler(
        index, "val", 2, 7, "in_order"
    )
    assert lower.classes == (1, 2)


def test_classes_may_be_narrowed_so_that_all_shots_show_the_same(tmp_path):
    """With skip, more shots leave out more classes; given their classes, fewer shots draw the same episodes."""
    index = index_of(*[{1: MIN_AREA}] * 6, *[{2: MIN_AREA}] * 3, *[{1: MIN_AREA, 2: 1}] * 2)
    chosen = options(tmp_path, too_few_images="skip")
    most = Fold(chosen, index.class_names, 0).sampler(index, "val", 5, 0, "random")
    assert most.classes == (1,)
    assert Fold(chosen, index.class_names, 0).sampler(index, "val", 1, 0, "random").classes == (1, 2)
    one = Fold(chosen, index.class_names, 0).sampler(index, "val", 1, 0, "random", classes=most.classes)
    for n in range(200):
        assert (one[n].query, one[n].class_id) == (most[n].query, 1)
        assert one[n].supports == most[n].supports[:1]
