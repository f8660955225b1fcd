"""The evaluation resizing against a plain version of it, and the one warp of the training augmentation.

Step by step the training augmentation is in scripts/bench_loader.py, with which it is compared here too.
"""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fss_svf.config import Augment
from fss_svf.data.augment import EvalTransform, TrainTransform, binary_mask
from fss_svf.episode import normalize
from fss_svf.errors import ConfigError

MEAN = np.array([0.485, 0.456, 0.406]) * 255


def augment(scale=(1.0, 1.0), rotate=0.0, blur=0.0, flip=0.0, keep_foreground=0.0, rotate_probability=1.0):
    return Augment(
        scale=scale,
        rotate=rotate,
        rotate_probability=rotate_probability,
        blur=blur,
        flip=flip,
        keep_foreground=keep_foreground,
    )


def noise(height, width, seed=0):
    """Image and label of smooth noise, so that a shift by one pixel shows in both. Read-only, as Pillow's arrays are."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    image = np.ascontiguousarray(image.repeat(6, 0).repeat(6, 1)[:height, :width])
    label = random.choice(np.array([0, 3, 20, 255], np.uint8), (height // 5 + 1, width // 5 + 1))
    label = np.ascontiguousarray(label.repeat(5, 0).repeat(5, 1)[:height, :width])
    image.setflags(write=False)
    label.setflags(write=False)
    return image, label


def coordinates(height, width):
    """An image whose red is its column and whose green is its row; and a label of ones."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], 2).astype(np.uint8), np.ones((height, width), np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Masks


def test_binary_mask():
    label = np.array([[0, 3, 255], [4, 3, 0]], np.uint8)
    mask = binary_mask(label, 3)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 1, 255], [0, 1, 0]]
    assert label.tolist() == [[0, 3, 255], [4, 3, 0]]


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def plain_eval(image, label, size):
    """`pad` as PFENet's find_new_hw says it, with the interpolation written out: pixels are squares, not points."""
    height, width = label.shape
    ratio = size / max(height, width)
    sides = [size if side == max(height, width) else int(side * ratio) for side in (height, width)]
    new_h, new_w = (side - side % 8 for side in sides)

    def neighbours(old, new):
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(at.astype(int), old - 2)
        return low, low + 1, at - low

    top, bottom, down = neighbours(height, new_h)
    left, right, across = neighbours(width, new_w)
    across, down = across[None, :, None], down[:, None, None]
    source = image.astype(float)
    upper = source[top][:, left] * (1 - across) + source[top][:, right] * across
    lower = source[bottom][:, left] * (1 - across) + source[bottom][:, right] * across
    new_image = np.zeros((size, size, 3))
    new_image[:new_h, :new_w] = upper * (1 - down) + lower * down
    new_label = np.full((size, size), 255)
    rows, columns = np.arange(new_h) * height // new_h, np.arange(new_w) * width // new_w
    new_label[:new_h, :new_w] = label[rows][:, columns]
    return new_image, new_label, (new_h, new_w)


# (width, height) as datasets say it, and the inner (height, width) worked out by hand
SIZES = {
    (500, 375): (352, 472),
    (375, 500): (472, 352),
    (333, 500): (472, 312),
    (97, 240): (472, 184),
    (240, 240): (472, 472),
    (50, 60): (472, 392),
}


@pytest.mark.parametrize("size", SIZES)
def test_padded_evaluation_is_that_of_the_plain_version(size):
    image, label = noise(size[1], size[0])
    transform = EvalTransform(473, "pad")
    new_image, new_label = transform(image, label)
    expected_image, expected_label, inner = plain_eval(image, label, 473)
    assert inner == transform.inner(*label.shape) == SIZES[size]
    assert new_image.shape == (473, 473, 3)
    assert new_image.dtype == new_label.dtype == np.uint8
    assert np.abs(new_image - expected_image).max() <= 1.01  # OpenCV interpolates in whole numbers
    assert np.array_equal(new_label, expected_label)
    height, width = inner
    assert not new_image[height:].any()
    assert not new_image[:, width:].any()
    assert (new_label[height:] == 255).all()
    assert (new_label[:, width:] == 255).all()


@pytest.mark.parametrize(
    ("shape", "size"), [((3000, 4000), 97), ((20, 30), 97), ((641, 640), 641), ((5, 500), 97), ((500, 5), 97)]
)
def test_padded_evaluation_at_other_sizes(shape, size):
    transform = EvalTransform(size, "pad")
    height, width = transform.inner(*shape)
    assert height % 8 == width % 8 == 0
    assert min(height, width) >= 8  # a sliver of an image keeps something
    assert size - 8 < max(height, width) <= size
    new_image, new_label = transform(np.full((*shape, 3), 9, np.uint8), np.ones(shape, np.uint8))
    assert (new_image == 9).all(axis=2).sum() == (new_label == 1).sum() == height * width


@pytest.mark.parametrize("size", SIZES)
def test_padding_after_normalisation_is_exactly_zero(size):
    """The network's input is what black padding gives inside the image, to the bit, and 0 outside it."""
    image, label = noise(size[1], size[0])
    black, its_label = EvalTransform(473, "pad")(image, label)
    zeros, label = EvalTransform(473, "pad", "after_normalisation")(image, label)
    assert np.array_equal(label, its_label)
    assert zeros.dtype == np.float32
    images = [torch.from_numpy(x).permute(2, 0, 1) for x in (black, zeros)]
    black, zeros = (normalize(x) for x in images)
    assert zeros is images[1]  # float input is not normalised again
    height, width = SIZES[size]
    assert torch.equal(zeros[:, :height, :width], black[:, :height, :width])
    for padding in (zeros[:, height:], zeros[:, :, width:]):
        assert not padding.any()
    assert (black[:, height:] < -1.7).all()


def test_squashed_evaluation_fills_the_square():
    image, label = coordinates(120, 200)
    new_image, new_label = EvalTransform(97, "squash")(image, label)
    assert new_image.shape == (97, 97, 3)
    assert new_label.shape == (97, 97)
    assert (new_label == 1).all()
    ramp = (np.arange(97) + 0.5) / 97
    assert np.abs(new_image[50, 1:-1, 0] - (ramp * 200 - 0.5)[1:-1]).max() <= 1
    assert np.abs(new_image[1:-1, 50, 1] - (ramp * 120 - 0.5)[1:-1]).max() <= 1


# ---------------------------------------------------------------------------------------------------------------------
# Training: the warp as a whole


def test_plain_crop_is_a_window_of_the_image():
    image, label = coordinates(120, 200)
    transform = TrainTransform(97, augment())
    corners = set()
    for seed in range(50):
        crop, mask = transform(image, label, np.random.default_rng(seed))
        x, y = (int(value) for value in crop[0, 0, :2])
        assert np.array_equal(crop, image[y : y + 97, x : x + 97])
        assert (mask == 1).all()
        corners.add((x, y))
    assert len(corners) > 45


def test_flipped_crop_is_a_mirrored_window():
    image, label = coordinates(120, 200)
    for seed in range(20):
        crop, mask = TrainTransform(97, augment(flip=1.0))(image, label, np.random.default_rng(seed))
        x, y = (int(value) for value in crop[0, -1, :2])
        assert np.array_equal(crop, image[y : y + 97, x : x + 97][:, ::-1])
        assert (mask == 1).all()


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_image_smaller_than_the_crop_is_padded_evenly(flip):
    """With ImageNet's mean, which normalises to zero, and ignored pixels."""
    image, label = noise(50, 60)
    label = np.where(label == 255, 0, label)
    crop, mask = TrainTransform(97, augment(flip=flip))(image, label, np.random.default_rng(0))
    inside = mask != 255
    top, left = np.argwhere(inside)[0]
    assert (top, left) in [(y, x) for y in (23, 24) for x in (18, 19)]
    assert inside[top : top + 50, left : left + 60].all()
    assert inside.sum() == 50 * 60
    assert np.array_equal(mask[inside].reshape(50, 60), label[:, ::-1] if flip else label)
    assert np.array_equal(crop[inside].reshape(50, 60, 3), image[:, ::-1] if flip else image)
    assert np.abs(crop[~inside] - MEAN).max() <= 0.5


def test_only_the_shorter_side_is_padded():
    image, label = coordinates(50, 200)
    crop, mask = TrainTransform(97, augment())(image, label, np.random.default_rng(0))
    rows = (mask == 1).all(axis=1)
    assert rows.sum() == 50
    assert (mask[~rows] == 255).all()
    assert abs(int(np.flatnonzero(rows)[0]) - 23.5) <= 1
    x = int(crop[rows][0, 0, 0])
    assert np.array_equal(crop[rows], image[:, x : x + 97])


def test_image_and_label_stay_together():
    """The red of the warped image is where the warped label says it is."""
    label = np.zeros((120, 160), np.uint8)
    cv2.fillPoly(label, [np.array([[50, 30], [120, 45], [100, 95], [75, 60], [45, 85]])], 7)
    image = np.where(label[..., None] == 7, np.array([255, 0, 0]), np.array([0, 90, 160])).astype(np.uint8)
    transform = TrainTransform(97, augment((0.8, 1.25), 30, 0.5, 0.5, 0.85))
    areas = []
    for seed in range(60):
        crop, mask = transform(image, label, np.random.default_rng(seed))
        red = (crop[..., 0] > 190) & (crop[..., 1] < 60)
        overlap, union = (red & (mask == 7)).sum(), (red | (mask == 7)).sum()
        assert overlap / union > 0.9
        assert set(np.unique(mask)) <= {0, 7, 255}
        # And the border's colour is where the label is ignored, but for a pixel's blur.
        beyond = cv2.erode((mask == 255).astype(np.uint8), np.ones((7, 7))) > 0
        assert np.abs(crop[beyond] - MEAN).max(initial=0) <= 1
        areas.append(union)
    assert min(areas) > 1000


def test_result_depends_on_the_generator_alone():
    image, label = noise(120, 160)
    transform = TrainTransform(97, augment((0.9, 1.1), 10, 0.5, 0.5, 0.85))
    results = []
    for seed, global_seed in ((5, 0), (5, 1), (6, 0)):
        np.random.seed(global_seed)  # noqa: NPY002
        cv2.setRNGSeed(global_seed)
        results.append(transform(image, label, np.random.default_rng(seed)))
    assert all(np.array_equal(a, b) for a, b in zip(results[0], results[1]))
    assert not np.array_equal(results[0][0], results[2][0])


def test_inputs_are_left_as_they_were():
    image, label = noise(120, 160)
    before = image.copy(), label.copy()
    outputs = [TrainTransform(97, augment((0.9, 1.1), 10, 1, 1, 0.85))(image, label, np.random.default_rng(0))]
    outputs += [EvalTransform(size, resize)(image, label) for size in (97, 160) for resize in ("pad", "squash")]
    assert np.array_equal(image, before[0])
    assert np.array_equal(label, before[1])
    for new_image, new_label in outputs:
        assert new_image.flags.writeable
        assert not np.shares_memory(new_image, image)
        assert not np.shares_memory(new_label, label)


# ---------------------------------------------------------------------------------------------------------------------
# Training: squashed (PANet)

SQUASH = Augment((1, 1), rotate=0, blur=0, flip=0.5, keep_foreground=0, rotate_probability=0, fit="squash")


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (97, 97), (60, 300)])
def test_squashed_image_is_whole_and_fills_the_square(shape):
    image, label = noise(*shape)
    resized = cv2.resize(image, (97, 97), interpolation=cv2.INTER_LINEAR)
    nearest = cv2.resize(label, (97, 97), interpolation=cv2.INTER_NEAREST_EXACT)
    # The pixel under each one's middle. Where that is a border of two, in one row and one column, either will do.
    at = [((np.arange(97) + 0.5) * side / 97).astype(int) for side in shape]
    beside_middle = np.delete(np.arange(97), 48)
    assert np.array_equal(nearest[np.ix_(beside_middle, beside_middle)], label[np.ix_(*(a[beside_middle] for a in at))])
    flips = 0
    for seed in range(200):
        new_image, new_label = TrainTransform(97, SQUASH)(image, label, np.random.default_rng(seed))
        flipped = not np.array_equal(new_label, nearest)
        expected = (resized[:, ::-1], nearest[:, ::-1]) if flipped else (resized, nearest)
        assert np.abs(new_image.astype(int) - expected[0]).max() <= 1
        assert np.array_equal(new_label, expected[1])
        flips += flipped
    assert 70 < flips < 130


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (0.9, 1.1)}, r"scale: expected \[1, 1\] with fit=squash \(or fit=crop\), got \(0.9, 1.1\)"),
        ({"rotate": 10}, "rotate: expected 0 with fit=squash"),
        ({"blur": 0.5}, "blur: expected 0 with fit=squash"),
        ({"keep_foreground": 0.85}, "keep_foreground: expected 0 with fit=squash"),
    ],
)
def test_squash_refuses_what_it_would_not_do(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(SQUASH, **changes)


# ---------------------------------------------------------------------------------------------------------------------
# Training: what is drawn

DRAWS = 2000


def distance_from_uniform(values, low, high, slack=0.0):
    """The largest gap between the share of values below x and that of a uniform distribution (Kolmogorov-Smirnov).

    Of 2,000 uniform draws it exceeds 0.044 once in a thousand times; the seeds here are fixed.
    slack: how far outside a value may be, where it is measured.
    """
    values = np.sort(values)
    assert values[0] >= low - slack
    assert values[-1] <= high + slack
    expected = (values - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())


def measured(transform, label, draws):
    """Scale, angle in degrees, flip, crop corner (x, y) and share of the foreground kept, each (draws,) float.

    Measured in what the chain makes of an image that holds its own coordinates; blue is 0 on it, and not beyond it.
    """
    height, width = label.shape
    # With some noise, so that the rounding of whole numbers cancels out.
    ramp = 1.2 * np.mgrid[:height, :width][::-1] + np.random.default_rng(0).uniform(0, 2, (2, height, width))
    image = np.stack([*ramp, np.zeros((height, width))], 2).round().astype(np.uint8)
    found = []
    for seed in range(draws):
        crop, mask = transform(image, label, np.random.default_rng(seed))
        # Not at the sides, where the blur mixes or mirrors.
        inner = cv2.erode((crop[..., 2] < 0.5).astype(np.uint8), np.ones((5, 5)), borderValue=0)
        at = np.argwhere(inner)[::2, ::-1]
        known = np.c_[at, np.ones(len(at))]
        source = (crop[at[:, 1], at[:, 0], :2] - 1) / 1.2
        inverse = np.linalg.solve(known.T @ known, known.T @ source).T
        warp = np.linalg.inv(inverse[:, :2])
        flip = np.linalg.det(warp) < 0
        scale = np.sqrt(abs(np.linalg.det(warp)))
        assert np.allclose(warp @ warp.T, scale**2 * np.eye(2), atol=0.01)  # but for whole pixels
        turn = np.diag([-1, 1]) @ warp if flip else warp
        angle = np.degrees(np.arctan2(turn[0, 1], turn[0, 0]))
        # The scaled image turns about its centre, which a flip then moves.
        size = np.round(np.array([width, height]) * np.linalg.norm(warp, axis=0))
        centre = (size / 2 + 0.5) * np.array([width, height]) / size - 0.5
        corner = size / 2 - warp @ (centre - inverse[:, 2])
        if flip:
            corner[0] -= 1
        share = ((mask > 0) & (mask < 255)).sum() / max(1, ((label > 0) & (label < 255)).sum()) / scale**2
        found.append((scale, angle, flip, *corner, share))
    return np.array(found).T


@pytest.fixture(scope="module")
def draws():
    """Of crops that no foreground holds; ignored pixels are none."""
    label = np.zeros((150, 200), np.uint8)
    label[:20] = 255
    found = measured(TrainTransform(97, augment((0.9, 1.2), 10, 0.5, 0.5, 0.85)), label, DRAWS)
    corner = np.round(found[3:5])
    assert np.abs(found[3:5] - corner).max() < 0.4
    found[3:5] = corner
    return found


def test_scale_is_uniform(draws):
    assert distance_from_uniform(draws[0], 0.9, 1.2, slack=0.002) < 0.04


def test_angle_is_uniform(draws):
    assert distance_from_uniform(draws[1], -10, 10, slack=0.1) < 0.04


def test_rotation_has_its_probability():
    transform = TrainTransform(65, augment(rotate=10, rotate_probability=0.3))
    angles = measured(transform, np.zeros((65, 65), np.uint8), 1000)[1]
    turned = np.abs(angles) > 0.3  # three in a hundred turns are smaller
    assert abs(turned.mean() - 0.97 * 0.3) < 0.045
    assert distance_from_uniform(np.abs(angles[turned]), 0.3, 10, slack=0.1) < 0.1  # of some 300 draws


def test_flip_has_its_probability(draws):
    assert abs(draws[2].mean() - 0.5) < 0.04
    rare = TrainTransform(65, augment(flip=0.1))
    flips = measured(rare, np.zeros((65, 65), np.uint8), 1000)[2]
    assert abs(flips.mean() - 0.1) < 0.03


@pytest.mark.parametrize(("axis", "length"), [(3, 200), (4, 150)])
def test_corner_of_the_crop_is_uniform_in_its_room(draws, axis, length):
    room = np.round(length * draws[0]) - 97
    assert draws[axis].min() == 0
    assert (draws[axis] <= room).all()
    assert (draws[axis] == room).any()
    # Each of 0..room has the same chance; spread over its step, the place is uniform.
    place = (draws[axis] + np.random.default_rng(0).random(DRAWS)) / (room + 1)
    assert distance_from_uniform(place, 0, 1) < 0.04


def test_draws_do_not_depend_on_each_other(draws):
    correlation = np.corrcoef([*draws[:3], draws[3] / (200 * draws[0] - 97), draws[4] / (150 * draws[0] - 97)])
    assert np.abs(correlation - np.eye(5)).max() < 0.08


# ---------------------------------------------------------------------------------------------------------------------
# Training: the plain chain


@pytest.fixture(scope="module")
def plain():
    """PlainTransform of scripts/bench_loader.py, up to its normalisation."""
    path = Path(__file__).parents[2] / "scripts" / "bench_loader.py"
    spec = importlib.util.spec_from_file_location("bench_loader", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)

    def make(size, options):
        chain = module.PlainTransform(size, options)
        return lambda image, label, random: chain.warped(np.float32(image), label, random)

    return make


def distance_between(one, other):
    """The largest gap between the shares of both samples below x (two-sample Kolmogorov-Smirnov)."""
    values = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (one, other)]
    return np.abs(shares[0] - shares[1]).max()


def test_draws_are_distributed_as_those_of_the_plain_chain(plain):
    """With an object that holds many crops back, and half of the images not turned at all."""
    label = np.zeros((150, 200), np.uint8)
    label[10:50, 130:190] = 3
    label[8:10, 130:190] = 255
    options = augment((0.9, 1.1), 10, 0.5, 0.5, 0.85, rotate_probability=0.5)
    count = 1000
    draws = [measured(make(97, options), label, count) for make in (TrainTransform, plain)]
    for sample in draws:
        # What is whole or zero is measured with an error.
        sample[1, np.abs(sample[1]) < 0.3] = 0
        sample[3:5] = np.round(sample[3:5])
    limit = 1.95 * np.sqrt(2 / count)  # exceeded once in a thousand times
    for name, ours, expected in zip(("scale", "angle", "flip", "left", "top", "share kept"), *draws):
        assert distance_between(ours, expected) < limit, name
    # And the crops of turned, of flipped and of large images among themselves.
    for chosen in (lambda d: d[1] != 0, lambda d: d[2] == 1, lambda d: d[0] > 1):
        ours, expected = (d[:, chosen(d)] for d in draws)
        for row in range(6):
            assert distance_between(ours[row], expected[row]) < limit * np.sqrt(2.2), row


class Highest(np.random.Generator):
    """Draws the largest number, and nothing where a probability is asked for but 1."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return high

    def random(self):
        return 0.999

    def integers(self, low, high=None):
        return (low if high is None else high) - 1


@pytest.mark.parametrize("shape", [(150, 200), (150, 90), (60, 70)])
@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("blur", [0, 1])
@pytest.mark.parametrize(("scale", "angle"), [(1.0, 0), (1.1, 0), (0.8, 0), (1.0, 8), (1.1, 10), (0.9, -9)])
def test_pixels_are_those_of_the_plain_chain(plain, shape, flip, blur, scale, angle):
    """The same draws give the same crop: also where it is padded, and where the turned image left its frame.

    Of scaled sizes that are whole numbers; to others the plain chain rounds the size, but not the scale.
    """
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8), (0, 0), 3)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    label = (image[..., 0] > 128).astype(np.uint8)
    options = augment((scale, scale), angle, blur, flip)
    crop, mask = TrainTransform(97, options)(image, label, Highest(np.random.PCG64(0)))
    expected, expected_mask = plain(97, options)(image, label, Highest(np.random.PCG64(0)))
    assert ((mask == 255) != (expected_mask == 255)).mean() < 0.01
    # OpenCV's resizing by nearest neighbour shifts the label against its image by up to half a pixel of the source, so
    # the chain is asked for the label as an image.
    as_image = np.repeat(255 * label[..., None], 3, axis=2)
    drawn = plain(97, augment((scale, scale), angle, 0, flip))(as_image, label, Highest(np.random.PCG64(0)))[0]
    assert ((mask == 1) != (drawn[..., 0] > 127.5)).mean() < 0.025
    differences = np.abs(crop - expected)
    assert differences.mean() < 1
    # One interpolation is sharper than two. At the side of a crop the blur here cannot see what was cut off.
    inner = cv2.erode((mask != 255).astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
    inner |= cv2.erode((mask == 255).astype(np.uint8), np.ones((5, 5))) > 0
    twice = scale != 1 and angle
    assert differences[inner].max() < (7 if twice else 2)
    if scale == 1:
        assert np.array_equal(mask, expected_mask)


def test_blur_has_its_probability_and_spares_the_label():
    image, label = noise(33, 33)
    blurred = cv2.GaussianBlur(image, (5, 5), 0)
    transform = TrainTransform(33, augment(blur=0.3))
    count = 0
    for seed in range(1000):
        crop, mask = transform(image, label, np.random.default_rng(seed))
        assert np.array_equal(mask, label)
        is_blurred = np.array_equal(crop, blurred)
        assert is_blurred or np.array_equal(crop, image)
        count += is_blurred
    assert abs(count / 1000 - 0.3) < 0.06


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.9])
@pytest.mark.parametrize("flip", [0, 1])
def test_hardly_turned_image_is_the_one_that_is_not_turned(scale, flip):
    """A turned image is warped, another is resized: to the same place."""
    image = cv2.GaussianBlur(noise(75, 88)[0], (0, 0), 3)
    label = (image[..., 0] > 128).astype(np.uint8)
    crops, masks = zip(
        *(
            TrainTransform(97, augment((scale, scale), angle, 0, flip))(image, label, Highest(np.random.PCG64(0)))
            for angle in (0, 1e-5)
        )
    )
    inner = cv2.erode((masks[0] != 255).astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
    assert np.abs(crops[0].astype(int) - crops[1])[inner].max() <= 3
    assert np.array_equal(masks[0] == 255, masks[1] == 255)
    assert (masks[0] != masks[1]).mean() < 0.005


# ---------------------------------------------------------------------------------------------------------------------
# Training: the foreground


def kept(keep_foreground, rows=slice(110, 130), columns=slice(20, 40), seeds=300):
    """The share of an object near a side that each of many crops keeps; a random crop holds the default 1 time in 5."""
    label = np.zeros((240, 240), np.uint8)
    label[:, 200:] = 255  # ignored pixels are not to be kept
    label[rows, columns] = 5
    transform = TrainTransform(129, augment(flip=0.5, keep_foreground=keep_foreground))
    image = np.zeros((240, 240, 3), np.uint8)
    crops = (transform(image, label, np.random.default_rng(seed))[1] for seed in range(seeds))
    return np.array([(crop == 5).sum() for crop in crops]) / (label == 5).sum()


def test_crop_keeps_the_foreground_where_it_can():
    # 31 tries fail once in a thousand times.
    assert (kept(0.85) >= 0.85).mean() >= 0.99
    assert (kept(1.0) == 1).mean() >= 0.99
    # No more is asked than that.
    assert 0.05 < (kept(0.85) < 1).mean() < 0.4


def test_large_foreground_is_kept_too():
    share = kept(0.85, rows=slice(80, 160), columns=slice(20, 100))
    assert (share >= 0.85).mean() >= 0.98
    assert (kept(0.0, rows=slice(80, 160), columns=slice(20, 100)) >= 0.83).mean() < 0.3


def test_crop_is_random_where_nothing_is_to_be_kept():
    share = kept(0.0)
    assert (share == 0).mean() > 0.5
    assert (share == 1).mean() > 0.1


def test_what_is_asked_is_what_the_turned_label_shows():
    """Foreground that the turn moved out of the image is no crop's fault: the first crop, which shows the rest, stays."""
    label = np.zeros((97, 97), np.uint8)
    label[:12, :12] = label[-12:, -12:] = 1
    random = Counting(np.random.PCG64(0))
    _, mask = TrainTransform(96, augment(rotate=40, keep_foreground=0.9))(noise(97, 97)[0], label, random)
    assert (mask == 1).sum() < 0.5 * (label == 1).sum()
    assert random.crops == 1


class Counting(np.random.Generator):
    """A generator that counts its draws of a crop's corner, and turns as far as it may."""

    corners = 0

    def integers(self, *arguments):
        self.corners += 1
        return super().integers(*arguments)

    def uniform(self, low=0.0, high=1.0, size=None):
        return high

    @property
    def crops(self):
        return self.corners / 2


@pytest.mark.parametrize(("keep", "tries"), [(0.85, 31), (0.0, 1)])
def test_crop_that_cannot_keep_its_foreground_is_drawn_31_times(keep, tries):
    image, label = noise(240, 240)[0], np.ones((240, 240), np.uint8)
    random = Counting(np.random.PCG64(0))
    _, mask = TrainTransform(97, augment(keep_foreground=keep))(image, label, random)
    assert random.crops == tries
    assert (mask == 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# Threads


def test_import_leaves_the_threads_of_opencv():
    """Only a loader's worker calls tame_threads()."""
    code = (
        "import cv2; cv2.setNumThreads(2); from fss_svf.data.augment import tame_threads; "
        "assert cv2.getNumThreads() == 2; tame_threads(); assert cv2.getNumThreads() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
