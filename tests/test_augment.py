"""The evaluation resizing against a plain version of it, and the one warp of the training augmentation."""

import cv2
import numpy as np
import pytest

from fss_svf.config import Augment
from fss_svf.data.augment import EvalTransform, TrainTransform, binary_mask

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
# Training: what is drawn

DRAWS = 2000


def distance_from_uniform(values, low, high):
    """The largest gap between the share of values below x and that of a uniform distribution (Kolmogorov-Smirnov).

    Of 2,000 uniform draws it exceeds 0.044 once in a thousand times; the seeds here are fixed.
    """
    values = np.sort(values)
    assert values[0] >= low
    assert values[-1] <= high
    expected = (values - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())


@pytest.fixture(scope="module")
def draws():
    """Scale, angle in degrees, flip and crop corner (x, y) of many warps of a 200 x 150 image, from their matrices."""
    transform = TrainTransform(97, augment((0.9, 1.2), 10, 0.5, 0.5, 0.85))
    label = np.zeros((150, 200), np.uint8)
    label[:20] = 255  # ignored pixels are no foreground: nothing holds the crop
    found = []
    for seed in range(DRAWS):
        warp = transform._warp(label, np.random.default_rng(seed))
        turn = warp[:, :2]
        flip = np.linalg.det(turn) < 0
        scale = np.sqrt(abs(np.linalg.det(turn)))
        assert np.allclose(turn @ turn.T, scale**2 * np.eye(2))  # neither stretched nor sheared
        if flip:
            turn = np.diag([-1, 1]) @ turn
        angle = np.degrees(np.arctan2(turn[0, 1], turn[0, 0]))
        # The centre of the image goes to the centre of the scaled image, less the corner of the crop.
        size = np.array([200, 150])
        centre = size * scale / 2
        if flip:
            centre[0] = size[0] * scale - 1 - centre[0]
        corner = centre - (warp[:, :2] @ (size / 2) + warp[:, 2])
        assert np.allclose(corner, np.round(corner))
        found.append((scale, angle, flip, *np.round(corner)))
    return np.array(found).T


def test_scale_is_uniform(draws):
    assert distance_from_uniform(draws[0], 0.9, 1.2) < 0.04


def test_angle_is_uniform(draws):
    assert distance_from_uniform(draws[1], -10, 10) < 0.04


def test_rotation_has_its_probability():
    label = np.zeros((33, 33), np.uint8)
    transform = TrainTransform(33, augment(rotate=10, rotate_probability=0.3))
    warps = [transform._warp(label, np.random.default_rng(seed)) for seed in range(DRAWS)]
    angles = np.degrees([np.arctan2(warp[0, 1], warp[0, 0]) for warp in warps])
    assert abs((angles != 0).mean() - 0.3) < 0.04
    assert distance_from_uniform(angles[angles != 0], -10, 10) < 0.08  # of some 600 draws


def test_flip_has_its_probability(draws):
    assert abs(draws[2].mean() - 0.5) < 0.04
    label = np.zeros((33, 33), np.uint8)
    rare = TrainTransform(33, augment(flip=0.1))
    flipped = [rare._warp(label, np.random.default_rng(seed))[0, 0] < 0 for seed in range(DRAWS)]
    assert abs(np.mean(flipped) - 0.1) < 0.03


@pytest.mark.parametrize(("axis", "length"), [(3, 200), (4, 150)])
def test_corner_of_the_crop_is_uniform_in_its_room(draws, axis, length):
    room = length * draws[0] - 97
    place = draws[axis] / room
    assert draws[axis].min() >= 0
    assert (draws[axis] <= room + 0.5).all()
    # Whole pixels of a room of 38 at least: a step is up to 1 / 38.
    assert distance_from_uniform(np.clip(place, 0, 1), 0, 1) < 0.05


def test_draws_do_not_depend_on_each_other(draws):
    correlation = np.corrcoef([*draws[:3], draws[3] / (200 * draws[0] - 97), draws[4] / (150 * draws[0] - 97)])
    assert np.abs(correlation - np.eye(5)).max() < 0.08


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
    # 31 tries fail once in a thousand times; the corner is rounded after the look, which may cost one of 20 columns.
    assert (kept(0.85) >= 0.8).mean() >= 0.99
    assert (kept(1.0) >= 0.95).mean() >= 0.99
    # No more is asked than that.
    assert 0.05 < (kept(0.85) < 1).mean() < 0.4


def test_large_foreground_is_kept_too():
    """Of a large object only a sample of pixels is looked at."""
    share = kept(0.85, rows=slice(80, 160), columns=slice(20, 100))
    assert (share >= 0.83).mean() >= 0.98
    assert (kept(0.0, rows=slice(80, 160), columns=slice(20, 100)) >= 0.83).mean() < 0.3


def test_crop_is_random_where_nothing_is_to_be_kept():
    share = kept(0.0)
    assert (share == 0).mean() > 0.5
    assert (share == 1).mean() > 0.1


class Counting(np.random.Generator):
    """A generator that counts its draws of a crop's corner."""

    crops = 0

    def uniform(self, low=0.0, high=1.0, size=None):
        self.crops += size is not None
        return super().uniform(low, high, size)


@pytest.mark.parametrize(("keep", "tries"), [(0.85, 31), (0.0, 1)])
def test_crop_that_cannot_keep_its_foreground_is_drawn_31_times(keep, tries):
    image, label = noise(240, 240)[0], np.ones((240, 240), np.uint8)
    random = Counting(np.random.PCG64(0))
    _, mask = TrainTransform(97, augment(keep_foreground=keep))(image, label, random)
    assert random.crops == tries
    assert (mask == 1).all()
