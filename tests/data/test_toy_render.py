"""The toy dataset: its contract, and that colour does not give its classes away."""

from collections import defaultdict
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fss_svf.data.toy_render import CLASS_NAMES, STYLES, _object, render
from fss_svf.data.toy_things import PARTS

Renders = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]

SQUARE = np.ones((3, 3), np.uint8)
CLASSES = range(1, len(CLASS_NAMES) + 1)


@pytest.fixture(scope="module")
def renders() -> Renders:
    return [render(seed=7, number=number) for number in range(400)]


def of_class(label: NDArray[np.uint8]) -> list[int]:
    return [int(value) for value in np.unique(label) if value in CLASSES]


def is_object(label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (label > 0) & (label < 255)


def test_render_is_a_function_of_seed_and_number(renders: Renders) -> None:
    image, label = render(seed=7, number=3)  # the fixture drew others before and after
    assert np.array_equal(image, renders[3][0])
    assert np.array_equal(label, renders[3][1])
    for seed, number in [(7, 4), (8, 3), (3, 7)]:
        other, _ = render(seed, number)
        assert other.shape != image.shape or not np.array_equal(other, image)


def test_render_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    render(seed=7, number=0)
    assert str(np.random.get_state(legacy=False)) == str(before)  # noqa: NPY002


def test_shapes_and_types(renders: Renders) -> None:
    for image, label in renders:
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == (*label.shape, 3)
        assert max(label.shape) == 200
        assert min(label.shape) >= 140
    assert {label.shape[0] < label.shape[1] for _, label in renders} == {True, False}


def test_label_values(renders: Renders) -> None:
    for _, label in renders:
        assert set(np.unique(label)) <= {0, *CLASSES, 255}
        assert 1 <= len(of_class(label)) <= 3


def test_every_class_has_a_fair_share(renders: Renders) -> None:
    images = np.bincount([value for _, label in renders for value in of_class(label)], minlength=21)[1:]
    assert images.min() > images.mean() / 2
    assert images.max() < images.mean() * 1.6


def test_sizes_of_objects(renders: Renders) -> None:
    areas = [np.count_nonzero(label == value) for _, label in renders for value in of_class(label)]
    assert min(areas) >= 100
    assert 2000 < np.median(areas) < 5000
    covered = np.mean([is_object(label).mean() for _, label in renders])
    assert 0.08 < covered < 0.35


def test_a_seam_of_ignore_parts_objects_from_all_else(renders: Renders) -> None:
    for _, label in renders:
        for value in of_class(label):
            around = cv2.dilate((label == value).astype(np.uint8), SQUARE) > 0
            assert set(np.unique(label[around])) <= {value, 255}


def test_the_seam_is_thin(renders: Renders) -> None:
    far, total = 0, 0
    for _, label in renders:
        distance = cv2.distanceTransform((~is_object(label)).astype(np.uint8), cv2.DIST_C, 3)
        far += np.count_nonzero(distance[label == 255] > 2)
        total += np.count_nonzero(label == 255)
    assert far < 0.02 * total  # tips, and where an object hides all of another but its seam


def test_outlines_fill_their_square_and_no_more() -> None:
    for name, parts in PARTS.items():
        points = np.concatenate([part.points for part in parts])
        low, high = points.min(0), points.max(0)
        assert np.allclose(low, -high), name
        assert (high - low).max() == pytest.approx(2), name
        assert {part.tone for part in parts} <= {"main", "second", "light", "dark"}


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_style_paints_its_object_and_nothing_else(style: str) -> None:
    """Else the label would be wrong. A shadow may darken what is beside it."""
    rng = np.random.default_rng(0)
    for number in range(1, 21):
        thing = replace(_object(rng, (200, 200), number), style=style)
        before = np.full((200, 200, 3), 0.5, np.float32)
        after = before.copy()
        STYLES[style](rng, after, thing)
        changed = (after != before).any(axis=2)
        inside = thing.cover > 0
        if style == "shaded":
            assert after[~inside].max() <= 0.5
        else:
            assert not changed[~inside].any()
        assert changed[thing.cover > 191].mean() > 0.9


def test_mean_colour_does_not_name_the_class(renders: Renders) -> None:
    found = [(n, v, image[label == v].mean(0)) for n, (image, label) in enumerate(renders) for v in of_class(label)]
    numbers, values, colours = (np.array(column) for column in zip(*found, strict=True))

    centres = np.stack([colours[values == value].mean(0) for value in CLASSES])
    spread = np.mean([colours[values == value].std(0).mean() for value in CLASSES])
    assert centres.std(0).mean() < spread / 3

    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    distances[numbers[:, None] == numbers[None]] = np.inf  # an image's own light would tell its objects from others'
    hits = values[distances.argmin(1)] == values
    assert hits.mean() < 0.10  # chance is 0.05


def test_matching_colours_fails_at_one_shot(renders: Renders) -> None:
    """A pixel is foreground where its colour is nearer to the support's mean foreground than to its background."""
    homes: dict[int, list[int]] = defaultdict(list)
    for number, (_, label) in enumerate(renders):
        for value in of_class(label):
            homes[value].append(number)
    ious = []
    for value in CLASSES:
        overlap = union = 0
        for support, query in zip(homes[value][:-1], homes[value][1:], strict=True):
            image, label = renders[support]
            ours = image[label == value].mean(0)
            rest = image[(label != value) & (label != 255)].mean(0)
            image, label = renders[query]
            guess = np.linalg.norm(image - ours, axis=2) < np.linalg.norm(image - rest, axis=2)
            truth, valid = label == value, label != 255
            overlap += np.count_nonzero(guess & truth & valid)
            union += np.count_nonzero((guess | truth) & valid)
        ious.append(overlap / union)
    assert np.mean(ious) < 0.3
