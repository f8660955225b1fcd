"""From numbers to batches: the same tensors whoever makes them, and errors that arrive as themselves."""

import dataclasses
import pickle
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from fss_svf.config import Augment
from fss_svf.data.augment import EvalTransform, binary_mask
from fss_svf.data.fold import Fold
from fss_svf.data.index import Index
from fss_svf.data.loader import batches
from fss_svf.data.loading import (
    BaseLabels,
    EvalImageBatch,
    EvalImages,
    LabelBatch,
    LabelledImages,
    TrainEpisodes,
    base_label_lookup,
    collate_episodes,
    collate_labels,
)
from fss_svf.data.manifest import EpisodeList
from fss_svf.data.toy import Toy
from fss_svf.episode import Episode
from tests.conftest import toy_options
from tests.one_line import data_error

SIZE = 97
AUGMENT = Augment(scale=(0.9, 1.1), rotate=10, blur=0.5, flip=0.5, keep_foreground=0.85, rotate_probability=0.5)
# Of crops larger than an image: the image lies in them whole and as it was.
UNCHANGED = Augment(scale=(1, 1), rotate=0, blur=0, flip=0, keep_foreground=0, rotate_probability=0)


def makers(root):
    """One maker of each kind, its collate function, and a list of numbers it can make."""
    options = toy_options(root)
    train, val = (Toy(options).split(split) for split in ("train", "val"))
    episodes = Fold(options, train.index.class_names, 0).sampler(train.index, "train", 2, 5, "shuffled_epochs")
    tests = EpisodeList.drawn(Fold(options, val.index.class_names, 0).sampler(val.index, "val", 1, 5, "in_order"), 30)
    wanted = [(spec.supports[0], [(spec.class_id, spec.class_ids)]) for spec in tests.specs]
    images = Fold(options, train.index.class_names, 0).sampler(train.index, "train", 0, 5, "shuffled_epochs")
    return {
        "train": (TrainEpisodes(train, episodes, SIZE, AUGMENT), collate_episodes, range(40, 50)),
        "base": (
            TrainEpisodes(train, episodes, SIZE, AUGMENT, base=episodes.classes),
            collate_episodes,
            range(40, 50),
        ),
        "eval": (
            EvalImages(val, wanted, EvalTransform(SIZE, "pad")),
            list,
            [7, 3, 3, 0, 21, 5, 4],
        ),
        "labels": (BaseLabels(train, images, SIZE, AUGMENT), collate_labels, range(8)),
        "resized": (
            LabelledImages(val, np.arange(3, 12), images.classes, EvalTransform(SIZE, "pad")),
            collate_labels,
            range(9),
        ),
    }


def tensors(batch):
    """Every tensor of a batch, as one list."""
    if isinstance(batch, list):
        return [tensor for item in batch for tensor in tensors(item)]
    found = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return [tensor for tensor in found if tensor is not None]


def equal(one, other):
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------------------------------------------------------------
# The same batches whoever makes them


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("kind", ["train", "base", "eval", "labels", "resized"])
def test_batches_do_not_depend_on_workers_or_batch_size(toy_root, kind):
    make, collate, numbers = makers(toy_root)[kind]
    whole = collate([make(number) for number in numbers])
    for workers, batch_size in [(0, 3), (1, 4), (4, 1), (4, 3)]:
        # A maker of its own: nothing is shared but the files.
        fresh = makers(toy_root)[kind][0]
        parts = list(batches(fresh, collate, numbers, batch_size, workers))
        assert len(parts) == -(-len(numbers) // batch_size)
        assert equal(collate(parts), whole)


@pytest.mark.parametrize("kind", ["train", "base", "eval", "labels", "resized"])
def test_makers_can_be_pickled(toy_root, kind):
    """Where workers are spawned and not forked (macOS, Python 3.14), they get the maker by pickle."""
    make, _, numbers = makers(toy_root)[kind]
    assert equal(pickle.loads(pickle.dumps(make))(numbers[0]), make(numbers[0]))


def test_later_numbers_do_not_need_the_earlier_ones(toy_root):
    """A resumed run starts at any number."""
    make, collate, _ = makers(toy_root)["train"]
    parts = list(batches(make, collate, range(10), 1, 0))
    resumed = list(batches(make, collate, range(6, 10), 1, 0))
    assert all(equal(a, b) for a, b in zip(parts[6:], resumed, strict=True))
    assert not torch.equal(parts[0].query_image, parts[1].query_image)


def test_global_generators_are_left_alone(toy_root):
    make, collate, _ = makers(toy_root)["train"]
    before = torch.get_rng_state(), str(np.random.get_state(legacy=False))  # noqa: NPY002
    list(batches(make, collate, range(3), 2, 0))
    list(batches(make, collate, range(3), 2, 1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state(legacy=False)) == before[1]  # noqa: NPY002


# ---------------------------------------------------------------------------------------------------------------------
# What is in them


def test_training_episode(toy_root):
    make, _, _ = makers(toy_root)["train"]
    masks = []
    for number in range(30):
        episode, spec = make(number), make.sampler[number]
        assert episode.query_image.shape == (1, 3, SIZE, SIZE)
        assert episode.support_images.shape == (1, 2, 3, SIZE, SIZE)
        assert episode.support_masks.shape == (1, 2, SIZE, SIZE)
        assert episode.query_mask.shape == (1, SIZE, SIZE)
        assert (episode.class_id.tolist(), episode.number.tolist()) == ([spec.class_id], [number])
        assert episode.class_id.dtype == episode.number.dtype == torch.int64
        for tensor in (episode.query_image, episode.support_images, episode.support_masks, episode.query_mask):
            assert tensor.dtype == torch.uint8
        masks += [episode.query_mask[0], *episode.support_masks[0]]
    assert {int(value) for mask in masks for value in mask.unique()} == {0, 1, 255}
    # keep_foreground: hardly a mask lost its object.
    assert np.mean([bool((mask == 1).any()) for mask in masks]) > 0.95


def middle(label, size=225):
    """Where an image of the label's size lies in a larger crop that leaves it UNCHANGED."""
    top, left = ((size - side) // 2 for side in label.shape)
    return np.s_[top : top + label.shape[0], left : left + label.shape[1]]


def test_training_episode_holds_the_images_of_its_spec(toy_root):
    make = makers(toy_root)["train"][0]
    make = TrainEpisodes(make.split, make.sampler, 225, UNCHANGED)
    episode, spec = make(12), make.sampler[12]
    images = [episode.query_image[0], *episode.support_images[0]]
    masks = [episode.query_mask[0], *episode.support_masks[0]]
    for image, mask, number in zip(images, masks, (spec.query, *spec.supports), strict=True):
        source, label = make.split.pair(number)
        window = middle(label)
        assert np.array_equal(image.numpy().transpose(1, 2, 0)[window], source)
        assert np.array_equal(mask.numpy()[window], binary_mask(label, spec.class_id))
        assert (mask == 255).sum() == 225**2 - label.size + (label == 255).sum()


def test_augmentation_differs_between_the_images_of_an_episode(toy_root):
    """One image as query here and as support there must not be cut alike."""
    make = makers(toy_root)["train"][0]
    seen = {}
    for number in range(40):
        episode, spec = make(number), make.sampler[number]
        for image, source in zip([episode.query_image[0], *episode.support_images[0]], (spec.query, *spec.supports)):
            seen.setdefault(source, []).append(image.numpy().tobytes())
    repeated = [crops for crops in seen.values() if len(crops) > 1]
    assert len(repeated) > 10
    assert all(len(set(crops)) == len(crops) for crops in repeated)


@pytest.mark.parametrize("kind", [TrainEpisodes, BaseLabels])
def test_augmentation_differs_between_seeds(toy_root, kind):
    options = toy_options(toy_root)
    split = Toy(options).split("train")
    # In order: the image of a number is the same for every seed.
    samplers = [
        Fold(options, split.index.class_names, 0).sampler(split.index, "train", 0, seed, "in_order") for seed in (5, 6)
    ]
    for number in range(3):
        assert samplers[0][number].query == samplers[1][number].query
        one, other = (tensors(kind(split, sampler, SIZE, AUGMENT)(number))[0] for sampler in samplers)
        assert not torch.equal(one, other)


def test_an_image_to_evaluate_keeps_its_label_and_has_a_mask_a_class(toy_root):
    make = makers(toy_root)["eval"][0]
    split, transform, supports = make.split, make.transform, [(1, (1,)), (3, (3, 1))]
    found = EvalImages(split, [(4, ()), (7, supports)], transform)
    for place, number in enumerate((4, 7)):
        image, label = split.pair(number)
        made = found(place)
        assert np.array_equal(made.label.numpy(), label)
        resized, resized_label = transform(image, label)
        assert np.array_equal(made.image.numpy().transpose(1, 2, 0), resized)
        assert np.array_equal(made.resized.numpy(), resized_label)
        assert made.masks.shape == (2 * place, SIZE, SIZE)
    batch = EvalImageBatch.collate([found(0), made])
    assert len(batch) == 2
    assert torch.equal(batch.images[1], made.image)
    assert torch.equal(batch.masks, made.masks)
    assert torch.equal(batch.resized[1], made.resized)
    assert all(map(torch.equal, batch.labels(), (found(0).label, made.label)))
    for mask, (class_id, class_ids) in zip(made.masks, supports, strict=True):
        expected = np.where(resized_label == class_id, 1, 0)
        expected[resized_label == 255] = 255
        for other in set(class_ids) - {class_id}:
            expected[resized_label == other] = 255
        assert np.array_equal(mask.numpy(), expected)


def test_base_label_lookup():
    index = Index.from_rows([], [f"class {c}" for c in range(254)], "made up")
    lookup = base_label_lookup(index, (9, 2, 5))
    expected = {0: 0, 1: 0, 2: 1, 3: 0, 5: 2, 9: 3, 10: 0, 254: 0, 255: 255}
    assert {label: int(lookup[label]) for label in expected} == expected
    assert lookup.dtype == np.uint8
    assert np.count_nonzero(lookup) == 4
    # All classes of COCO, and one alone.
    assert base_label_lookup(index, range(1, 81))[:82].tolist() == [*range(81), 0]
    assert base_label_lookup(index, (254,))[254] == 1


def test_base_labels_show_every_image_once_an_epoch(toy_root):
    make = makers(toy_root)["labels"][0]
    make = BaseLabels(make.split, make.sampler, 225, UNCHANGED)
    base = tuple(range(6, 21))
    assert make.sampler.classes == base
    shown = []
    for number in range(len(make.sampler)):
        batch = make(number)
        assert batch.images.shape == (1, 3, 225, 225)
        assert batch.labels.shape == (1, 225, 225)
        assert batch.images.dtype == batch.labels.dtype == torch.uint8
        image, label = make.split.pair(make.sampler[number].query)
        # The filter left no novel object; class 6 is now 1, class 20 is 15.
        assert not np.isin(label, range(1, 6)).any()
        expected = np.where((label > 0) & (label < 255), label - 5, label)
        assert np.array_equal(batch.labels[0].numpy()[middle(label)], expected)
        assert np.array_equal(batch.images[0].numpy().transpose(1, 2, 0)[middle(label)], image)
        shown.append(batch.images.numpy().tobytes())
    assert len(set(shown)) == len(shown) == len(make.sampler)


def test_labelled_images_turn_novel_classes_into_background(toy_root):
    make = makers(toy_root)["resized"][0]
    novel = 0
    for position in range(9):
        batch = make(position)
        image, label = make.split.pair(3 + position)
        novel += int(np.isin(label, range(1, 6)).sum())
        expected = np.where((label > 5) & (label < 255), label - 5, np.where(label == 255, 255, 0)).astype(np.uint8)
        resized, resized_label = make.transform(image, expected)
        assert np.array_equal(batch.images[0].numpy().transpose(1, 2, 0), resized)
        assert np.array_equal(batch.labels[0].numpy(), resized_label)
    assert novel > 0


# ---------------------------------------------------------------------------------------------------------------------
# Episode


def episode(b=2, k=3, h=9, w=8, **changes):
    values = {
        "query_image": torch.randint(0, 256, (b, 3, h, w), dtype=torch.uint8),
        "support_images": torch.randint(0, 256, (b, k, 3, h, w), dtype=torch.uint8),
        "support_masks": torch.zeros(b, k, h, w, dtype=torch.uint8),
    }
    return Episode(**{**values, **changes})


def test_episode_knows_its_shot_and_size():
    assert (episode().shot, episode().size) == (3, (9, 8))
    # The supports may be of another size than the query.
    assert episode(query_image=torch.zeros(2, 3, 5, 6)).size == (5, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"query_image": torch.zeros(3, 9, 8)},
        {"query_image": torch.zeros(2, 1, 9, 8)},
        {"query_image": torch.zeros(1, 3, 9, 8)},
        {"support_images": torch.zeros(2, 3, 9, 8)},
        {"support_images": torch.zeros(2, 3, 4, 9, 8)},
        {"support_images": torch.zeros(2, 2, 3, 9, 8)},
        {"support_masks": torch.zeros(2, 3, 8, 9)},
        {"support_masks": torch.zeros(2, 9, 8)},
        {"support_masks": torch.zeros(2, 3, 1, 9, 8)},
    ],
)
def test_episode_refuses_other_shapes(wrong):
    with pytest.raises(ValueError, match=r"expected query_image \(B,3,H,W\)"):
        episode(**wrong)


def test_normalized_episode():
    """Value / 255, less ImageNet's mean, by its deviation; masks and numbers stay."""
    before = episode(class_id=torch.tensor([4, 5]))
    after = before.normalized()
    for channel, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        for name in ("query_image", "support_images"):
            image, expected = getattr(after, name), getattr(before, name)
            assert image.dtype == torch.float32
            expected = (expected.select(-3, channel).double() / 255 - mean) / deviation
            assert torch.allclose(image.select(-3, channel).double(), expected, atol=1e-5)
    assert torch.equal(after.support_masks, before.support_masks)
    assert torch.equal(after.class_id, before.class_id)
    assert after.query_mask is None
    assert before.query_image.dtype == torch.uint8
    again = after.normalized()
    assert torch.equal(again.query_image, after.query_image)
    assert torch.equal(again.support_images, after.support_images)


def test_border_of_a_crop_is_zero_once_normalised():
    border = torch.tensor([round(255 * mean) for mean in (0.485, 0.456, 0.406)], dtype=torch.uint8)
    after = episode(query_image=border.view(1, 3, 1, 1).expand(2, 3, 9, 8)).normalized()
    assert after.query_image.abs().max() < 0.01


# ---------------------------------------------------------------------------------------------------------------------
# Errors on the way


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("damage", ["truncated", "missing", "other size"])
def test_error_of_a_file_arrives_as_itself(toy_root, tmp_path, workers, damage):
    root = tmp_path / "toy"
    shutil.copytree(toy_root, root)
    make, collate, _ = makers(root)["eval"]
    bad, good = make.wanted[0][0], make.wanted[1][0]
    assert bad != good
    name = make.split.index.names[bad]
    path = root / "JPEGImages" / f"{name}.jpg"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        words = [path, "damaged", "replace"]
    elif damage == "missing":
        path.unlink()
        words = [path, "no such file"]
    else:
        shutil.copy(_of_another_size(make.split, bad), path)
        words = [root / "SegmentationClass" / f"{name}.png", "label of", "for an image of"]
    loaded = batches(make, collate, [1, 1, 0, 1], 2, workers)
    assert len(next(loaded)) == 2
    with data_error(*words):
        next(loaded)


def _of_another_size(split, number):
    sizes = split.index.sizes
    return split.images / f"{split.index.names[np.flatnonzero((sizes != sizes[number]).any(axis=1))[0]]}.jpg"


def _fail(number, at):
    if number == at:
        raise ZeroDivisionError("a bug")
    return LabelBatch(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4))


@pytest.mark.parametrize("workers", [0, 1])
def test_bug_is_not_swallowed(workers):
    loaded = batches(partial(_fail, at=2), collate_labels, range(4), 2, workers)
    next(loaded)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        next(loaded)
