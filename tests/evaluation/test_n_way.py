"""Episodes of several classes at once: how they are drawn, loaded, counted, trained on and evaluated."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fss_svf.config import Augment, EpisodeFiles
from fss_svf.data.augment import EvalTransform, query_mask, support_mask
from fss_svf.data.episodes import EpisodeSpec
from fss_svf.data.fold import Fold
from fss_svf.data.index import ImageRow, Index
from fss_svf.data.loader import batches
from fss_svf.data.loading import TrainEpisodes, collate_episodes
from fss_svf.data.manifest import EpisodeList
from fss_svf.data.toy import Toy
from fss_svf.errors import ConfigError
from fss_svf.evaluation.metric import count_masks, scores
from fss_svf.evaluation.plan import make_plan
from tests.conftest import TOY, toy_options
from tests.data.test_episodes import MIN_AREA, ORDERS, crowded_index, index_of, sampler
from tests.data.test_loading import equal
from tests.evaluation.test_plan import NONE, protocol
from tests.one_line import data_error
from tests.plain_evaluation import EvalEpisodes, mask_at_label

CLASSES = tuple(range(1, 11))

# ---------------------------------------------------------------------------------------------------------------------
# Drawing


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("way", "shot"), [(2, 1), (3, 2), (10, 1)])
def test_every_episode_keeps_the_rules(order, way, shot):
    index = crowded_index()
    drawn = sampler(index, CLASSES, shot=shot, order=order, way=way)
    one = sampler(index, CLASSES, shot=shot, order=order)
    for n in range(500):
        spec = drawn[n]
        assert (spec.way, spec.shot, spec.number) == (way, shot, n)
        assert set(spec.class_ids) <= set(CLASSES)
        assert len(set(spec.class_ids)) == way
        # The query and its class are those of the episode of one class.
        assert spec.query == one[n].query
        assert one[n].class_id in spec.class_ids
        assert len({spec.query, *spec.supports}) == 1 + way * shot
        for i, class_id in enumerate(spec.class_ids):
            of_way = list(spec.supports[i * shot : (i + 1) * shot])
            assert (index.areas[of_way, class_id] >= MIN_AREA).all()


def test_episode_depends_on_its_number_alone():
    index = crowded_index()
    first, again = (sampler(index, CLASSES, shot=2, order="random", way=3) for _ in range(2))
    specs = [first[n] for n in range(100)]
    assert [again[n] for n in reversed(range(100))] == specs[::-1]
    assert specs != [sampler(index, CLASSES, shot=2, order="random", way=3, seed=1)[n] for n in range(100)]


def test_ways_and_places_are_drawn_evenly():
    """The query's class is any of the ways, and each of the other classes is as likely."""
    index = index_of(*[{c: MIN_AREA} for c in CLASSES for _ in range(8)])
    drawn = sampler(index, CLASSES, order="random", way=3)
    places, others = np.zeros(3), np.zeros(11)
    for n in range(3000):
        spec = drawn[n]
        own = int(index.areas[spec.query].argmax())
        places[spec.class_ids.index(own)] += 1
        others[[c for c in spec.class_ids if c != own]] += 1
    assert np.abs(places / 1000 - 1).max() < 0.12
    assert np.abs(others[1:] / 600 - 1).max() < 0.2


def test_support_of_fewer_shots_is_the_first_of_more():
    """Also where the classes share most of their images, so that one way takes what another would."""
    index = index_of(*[{1: MIN_AREA, 2: MIN_AREA, 3: MIN_AREA}] * 16)
    shots = {shot: sampler(index, (1, 2, 3), shot=shot, way=3) for shot in (1, 2, 5)}
    for n in range(200):
        for shot, drawn in shots.items():
            assert drawn[n] == shots[5][n].first_supports(shot)
    assert EpisodeSpec(0, (4, 2), 9, (1, 2, 3, 4)).first_supports(1).supports == (1, 3)


def test_as_many_images_as_supports_in_all_are_one_too_few():
    """Two ways of the same images: a query and 2 x 2 supports."""
    shared = {1: MIN_AREA, 2: MIN_AREA}
    with data_error("2-way 2-shot episodes need 5 images of each class", "class1 has 4", "class2 has 4"):
        sampler(index_of(*[shared] * 4), (1, 2), shot=2, way=2)
    enough = sampler(index_of(*[shared] * 5), (1, 2), shot=2, way=2)
    for n in range(50):
        assert {enough[n].query, *enough[n].supports} == set(range(5))


def test_more_ways_than_classes():
    index = index_of(*[{1: MIN_AREA, 2: MIN_AREA}] * 9)
    with pytest.raises(ConfigError, match=r"way=3: fold 0, val has 2 classes to draw from; set way=2 or less"):
        sampler(index, (1, 2), way=3, what="fold 0, val")
    # Class 3 is in the index alone: left out, it is one too few.
    with pytest.raises(ConfigError, match=r"way=3: fold 0, val, without the classes of too few images, has 2 classes"):
        sampler(index, (1, 2, 3), way=3, what="fold 0, val", too_few_images="skip")


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def test_masks_of_an_episode():
    label = np.array([[0, 3, 7, 9, 255]], np.uint8)
    assert query_mask(label, (7, 3)).tolist() == [[0, 2, 1, 0, 255]]
    assert support_mask(label, 7, (7, 3)).tolist() == [[0, 255, 1, 0, 255]]
    assert support_mask(label, 3, (7, 3)).tolist() == [[0, 1, 255, 0, 255]]
    assert support_mask(label, 3, (3,)).tolist() == [[0, 1, 0, 0, 255]]


AUGMENT = Augment((0.9, 1.1), 10, 0.5, 0.5, 0.85, 0.5)


def makers(root, annotation="mask", way=2, shot=2):
    options = toy_options(root)
    train, val = (Toy(options).split(split) for split in ("train", "val"))
    training = Fold(options, train.index.class_names, 0).sampler(
        train.index, "train", shot, 5, "shuffled_epochs", way=way
    )
    testing = Fold(options, val.index.class_names, 0).sampler(val.index, "val", shot, 5, "in_order", way=way)
    return {
        "train": (TrainEpisodes(train, training, 97, AUGMENT, annotation), collate_episodes),
        "eval": EvalEpisodes(val, EpisodeList.drawn(testing, 200), EvalTransform(97, "pad"), annotation),
    }


def test_batches_do_not_depend_on_workers_or_batch_size(toy_root):
    make, collate = makers(toy_root)["train"]
    numbers = range(3, 10)
    whole = collate([make(number) for number in numbers])
    for workers, batch_size in [(0, 3), (1, 4), (2, 2)]:
        fresh = makers(toy_root)["train"][0]
        assert equal(collate(list(batches(fresh, collate, numbers, batch_size, workers))), whole)


def test_training_episodes(toy_root):
    make, collate = makers(toy_root, way=3)["train"]
    batch = collate([make(n) for n in range(24)])
    assert (batch.way, batch.shot) == (3, 2)
    assert batch.support_images.shape == (24, 3, 2, 3, 97, 97)
    assert batch.support_masks.shape == (24, 3, 2, 97, 97)
    assert batch.class_id.tolist() == [list(make.sampler[n].class_ids) for n in range(24)]
    assert batch.class_id.dtype == torch.int64
    assert set(batch.query_mask.unique().tolist()) == {0, 1, 2, 3, 255}
    assert set(batch.support_masks.unique().tolist()) == {0, 1, 255}
    # A support shows the class of its own way.
    assert (batch.support_masks == 1).any(-1).any(-1).float().mean() > 0.95


def test_evaluation_episodes_are_labelled_by_way(toy_root):
    make = makers(toy_root)["eval"]
    several, areas = 0, make.split.index.areas
    holds_two = [n for n in range(200) if all(areas[(spec := make.episodes[n]).query, list(spec.class_ids)])]
    for number in [*range(40), *holds_two[:5]]:
        batch, spec = make(number), make.episodes[number]
        label = make.split.label(spec.query)
        expected = np.zeros_like(label)
        for way, class_id in enumerate(spec.class_ids, 1):
            expected[label == class_id] = way
        expected[label == 255] = 255
        assert np.array_equal(batch.original_mask.numpy(), expected)
        several += {1, 2} <= set(expected.flat)
        for way, class_id in enumerate(spec.class_ids):
            for k in range(2):
                image, label = make.split.pair(spec.supports[2 * way + k])
                mask = support_mask(label, class_id, spec.class_ids)
                image, mask = make.transform(image, mask)
                assert np.array_equal(batch.episode.support_images[0, way, k].numpy().transpose(1, 2, 0), image)
                assert np.array_equal(batch.episode.support_masks[0, way, k].numpy(), mask)
    assert several > 0


@pytest.mark.parametrize("annotation", ["bbox", "scribble"])
def test_each_way_is_annotated_for_its_own_class(toy_root, annotation):
    by_mask, annotated = (makers(toy_root, kind)["eval"] for kind in ("mask", annotation))
    shared = 0
    for number in range(40):
        spec = by_mask.episodes[number]
        for way in (1, 2):
            mask, given = (make.support(spec, 0, way)[1] for make in (by_mask, annotated))
            other = mask == 255
            shared += other.any()
            # The other way's object is neither object nor background here, however it is annotated.
            assert (given[other] == 255).all()
            assert (given == 1).any()
            if annotation == "bbox":
                assert (given[mask == 1] == 1).all()
            else:
                assert (mask[given == 1] == 1).all()
    assert shared > 0


# ---------------------------------------------------------------------------------------------------------------------
# Counting


def plain(episodes, classes):
    """As PANet counts, pixel by pixel: a class in the episodes whose query holds it."""
    tally = {c: [0, 0] for c in classes}
    pooled = [[0, 0], [0, 0]]
    for ways, held, said, mask in episodes:
        for p, t in zip(said.flatten().tolist(), mask.flatten().tolist()):
            if t == 255:
                continue
            for way, class_id in enumerate(ways, 1):
                if class_id in held:
                    tally[class_id][0] += p == way and t == way
                    tally[class_id][1] += p == way or t == way
            for value in (False, True):
                pooled[value][0] += (p > 0) == value and (t > 0) == value
                pooled[value][1] += (p > 0) == value or (t > 0) == value
    ious = [i / u for i, u in tally.values() if u]
    return sum(ious) / len(ious), sum(i / u for i, u in pooled) / 2


@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_plain_loops(seed):
    random = np.random.default_rng(seed)
    counts, episodes = np.zeros((2 + 6, 2), np.int64), []
    for _ in range(12):
        ways = [int(c) for c in random.permutation([1, 2, 4, 6])[:3]]
        said, mask = (torch.from_numpy(random.integers(0, 4, (9, 7), dtype=np.uint8)) for _ in range(2))
        absent = int(random.integers(1, 5))  # of three ways: in one episode of four none
        mask[mask == absent] = 0
        mask[random.random((9, 7)) < 0.1] = 255
        held = {way: c for way, c in enumerate(ways, 1) if way != absent}
        of_ways = count_masks(said[None], mask, ways=3)[0].numpy()
        counts[:2] += of_ways[:2]
        for way, c in held.items():
            counts[1 + c] += of_ways[1 + way]
        episodes.append((ways, set(held.values()), said, mask))
    miou, fb_iou = plain(episodes, (1, 2, 4, 6))
    found = scores(counts[None], zero=False)
    assert found.miou[0] == pytest.approx(miou, abs=1e-12)
    assert found.fb_iou[0] == pytest.approx(fb_iou, abs=1e-12)


def test_an_episode_is_measured_for_the_classes_its_query_holds():
    index = index_of({1: MIN_AREA, 3: 1}, *[{c: MIN_AREA} for c in (1, 2, 3) for _ in range(3)])
    spec = EpisodeSpec(0, (3, 2, 1), 0, (7, 4, 1))
    episodes = EpisodeList(index, 1, 0, (spec,))
    assert episodes.measured(spec) == {1: 3, 3: 1}
    assert episodes.coverage((1, 2, 3)) == {1: 1, 2: 0, 3: 1}


@pytest.mark.parametrize("label", ["resized", "original"])
def test_prediction_is_the_largest_of_all_channels_in_the_size_of_the_label(toy_root, label):
    """Logits that are the label itself come back as the label."""
    make = makers(toy_root)["eval"]
    chosen, seen = protocol(label=label, resize="pad"), set()
    for one in map(make, range(8)):
        mask = one.episode.query_mask.long()
        logits = torch.nn.functional.one_hot(mask * (mask != 255), 3).movedim(-1, 1).float()
        found = mask_at_label(logits, one, chosen)
        expected = one.episode.query_mask[0] if label == "resized" else one.original_mask
        assert found.shape == expected.shape
        wrong = (found != expected) & (expected != 255)
        assert not wrong.any() if label == "resized" else wrong.float().mean() < 0.06  # at borders, enlarged
        seen |= set(found.unique().tolist())
    assert seen == {0, 1, 2}


# ---------------------------------------------------------------------------------------------------------------------
# Evaluations and training


def test_plan_of_several_ways(tmp_path):
    options = toy_options(tmp_path, too_few_images="skip", min_area=10)
    rows = [ImageRow(f"{c}{i}", 9, 9, {c: 20}) for c in (1, 2, 3) for i in range(12)]
    index = Index.from_rows(rows, [f"class{c}" for c in range(1, 21)], "test")
    plan = make_plan(index, Fold(options, index.class_names, 0), (1, 5), protocol(), NONE, way=2)
    assert (plan.way, plan.classes, plan.left_out, plan.source) == (2, (1, 2, 3), (4, 5), {"way": 2})
    for one, five in zip(plan.episodes[1], plan.episodes[5]):
        assert (one.shot, five.shot) == (1, 5)
        assert [s.first_supports(1) for s in five.specs] == list(one.specs)
    for files, key in (
        (EpisodeFiles(tmp_path / "e.csv", None), "save"),
        (EpisodeFiles(None, tmp_path / "e.csv"), "load"),
    ):
        with pytest.raises(ConfigError, match=rf"episodes\.{key}=.*e\.csv: a file holds episodes of one class"):
            make_plan(index, Fold(options, index.class_names, 0), (1,), protocol(), files, way=2)


SMALL = ("dataset=toy", *TOY[1:], "backbone=tiny", "backbone.width=8", "recipe=panet", "recipe.size=65",
         "recipe.max_steps=3", "recipe.batch_size=2", "protocol=panet", "protocol.never_drawn=leave_out",
         "validate.every=3", "validate.episodes=6", "workers=0", "log_every=1")  # fmt: skip


@pytest.mark.long  # an evaluation and its tables are in test_ways.py
@pytest.mark.parametrize("tuning", ["full", "svf"])
def test_train_and_evaluate_two_ways(fss, toy_root, tmp_path, tuning):
    toy = f"dataset.root={toy_root}"
    status, _, err = fss("train", *SMALL, toy, "method=panet", "way=2", f"tuning={tuning}")
    assert status == 0, err  # a loss that is not finite ends a training
    run = next(tmp_path.glob("outputs/train/*/*"))
    evaluate = ("evaluate", f"checkpoint={run}", "protocol.episodes=12", "workers=0", "pictures=2")
    for name, more in (("two", ()), ("one", ("way=1",)), ("svf_protocol", ("protocol=svf",))):
        status, _, err = fss(*evaluate, f"name={name}", "shot=[1,2]", *more)
        assert status == 0, err
    results = {}
    for name in ("two", "one", "svf_protocol"):
        found = [json.loads(p.read_text()) for p in tmp_path.glob(f"outputs/evaluate/{name}/*/*/result.json")]
        results[name] = {r["shot"]: r for r in found}
    for name, way in (("two", 2), ("one", 1), ("svf_protocol", 2)):
        for shot in (1, 2):
            r = results[name][shot]
            assert (r["way"], r["checkpoint"]["way"]) == (way, 2)
            assert 0 < r["fb_iou"] < 1
            assert 0 <= r["miou"] <= 1
            # A query of several of its episode's classes counts for each.
            assert sum(r["episodes_per_class"].values()) >= r["num_episodes"] == 12
    assert results["two"][1]["protocol_hash"] != results["one"][1]["protocol_hash"]
    assert "way" not in results["one"][1]["data"]
    pictures = {
        name: Image.open(next(tmp_path.glob(f"outputs/evaluate/{name}/*/1shot/episodes.png"))) for name in results
    }
    assert pictures["two"].width - pictures["one"].width == 66  # one support more
    assert np.asarray(pictures["two"]).std() > 10
    status, out, _ = fss("report")
    assert status == 0
    assert "2 classes at once" in out
    assert "2-way 1-shot, panet" in out


def test_refusals(fss, toy_root):
    toy = f"dataset.root={toy_root}"
    panet = ("train", *SMALL, toy, "method=panet", "tuning=full")
    untrained = ("evaluate", "backbone=tiny", *TOY, toy, "size=65", "way_rule=joint")
    for arguments, message in (
        (("train", *SMALL, toy, "method=baseline", "way=2"), "or way=1; `fss-svf evaluate way=2` takes any method"),
        (("train", *SMALL, toy, "method=panet", "tuning=full", "way=2", "protocol.shots=vote"), "=vote is of one class"),
        ((*untrained, "method=prototype", "way=2"), "way_rule=joint: Prototype segments one class at a time"),
            ((*untrained, "method=panet"), "way_rule=joint: way=1 has no classes to join"),
            (("evaluate", "way_rule=best"), "way_rule: expected"),
        ((*panet, "way=0"), "way: expected a whole number >= 1, got 0"),
        ((*panet, "way=6"), "way=6: fold 0, val has 5 classes to draw from; set way=5 or less"),
        (("evaluate", "way=0"), "way: expected null or a whole number >= 1, got 0"),
    ):  # fmt: skip
        status, _, err = fss(*arguments)
        assert status == 1
        assert message in err.splitlines()[-1]
        assert "Traceback" not in err
