"""Boxes against a plain flood fill; scribbles by what a line through the middle of an object must be."""

import cv2
import numpy as np
import pytest

from fss_svf.data import annotation
from fss_svf.data.annotation import annotate

KINDS = ("mask", "bbox", "scribble")


def grown(height, width, seed, share=0.5, ignored=0.1):
    """A mask of smooth blobs, some of it ignored. Read-only, as Pillow's arrays are."""
    random = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(random.random((height, width)).astype(np.float32), (0, 0), 1 + 5 * random.random())
    mask = (smooth > np.quantile(smooth, 1 - share)).astype(np.uint8)
    mask[cv2.GaussianBlur(smooth[::-1], (0, 0), 1) > np.quantile(smooth, 1 - ignored)] = 255
    mask.setflags(write=False)
    return mask


def spiral(size, gap):
    """A line of one pixel that winds inwards."""
    mask = np.zeros((size, size), np.uint8)
    y, x, dy, dx, side = 0, 0, 0, 1, size - 1
    for turn in range(2 * (size // gap)):
        for _ in range(side):
            mask[y, x] = 1
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
        side -= gap if turn and turn % 2 == 0 else 0
        if side <= 0:
            break
    return mask


def masks():
    random = np.random.default_rng(0)
    y, x = np.mgrid[:150, :200]
    yield "empty", np.zeros((40, 50))
    yield "full", np.ones((150, 200))
    yield "ignored", np.full((40, 50), 255)
    yield "1x1", np.ones((1, 1))
    yield "1x1 background", np.zeros((1, 1))
    yield "1xN", np.ones((1, 3000))
    yield "Nx1", np.arange(3000)[:, None] % 1000 < 900
    yield "2x3", np.array([[0, 1, 255], [1, 0, 0]])
    yield "one pixel", (y == 3) & (x == 7)
    yield "one pixel of background", (y != 3) | (x != 7)
    yield "corner pixel", (y == 149) & (x == 199)
    yield "noise", random.random((150, 200)) < 0.5
    yield "sparse noise", random.random((150, 200)) < 0.1
    yield "dense noise", random.random((150, 200)) < 0.9
    yield "noise of all", random.choice(np.array([0, 1, 255]), (150, 200))
    yield "checkerboard", (y + x) % 2
    yield "dots", (y % 8 < 4) & (x % 8 < 4)
    yield "comb", (x % 2 == 0) | (y == 70)
    yield "comb of ignored", np.where(x % 2 == 0, 255, y < 75)
    yield "spiral", spiral(150, 2)
    yield "loose spiral", spiral(300, 20)
    yield "frame", (y == 0) | (y == 149) | (x == 0) | (x == 199)
    yield "diagonal", y == x
    yield "disc", np.hypot(y - 75, x - 100) < 60
    yield "ring", np.abs(np.hypot(y - 75, x - 100) - 55) < 8
    yield "two columns", np.where(x % 100 < 60, 1, 255)
    for seed in range(12):
        height, width = random.integers(5, 260, 2)
        yield f"blobs {seed}", grown(int(height), int(width), seed, (0.05, 0.3, 0.5, 0.8)[seed % 4])


MASKS = {name: np.asarray(mask).astype(np.uint8) for name, mask in masks()}


@pytest.fixture(params=MASKS)
def mask(request):
    return MASKS[request.param]


def components(region):
    """The 8-connected components of a bool array as sets of (y, x), by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(region)}
    found = []
    while left:
        front = [left.pop()]
        component = set(front)
        while front:
            y, x = front.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            component |= near
            front.extend(near)
        found.append(component)
    return found


def inside(component, shape):
    region = np.zeros(shape, bool)
    region[tuple(np.array(list(component)).T)] = True
    return region


# ---------------------------------------------------------------------------------------------------------------------
# Every kind


@pytest.mark.parametrize("kind", KINDS)
def test_shape_type_and_values_are_those_of_a_mask(mask, kind):
    before = mask.copy()
    mask.setflags(write=False)
    given = annotate(mask, kind)
    assert given.shape == mask.shape
    assert given.dtype == np.uint8
    assert np.isin(given, (0, 1, 255)).all()
    assert np.array_equal(mask, before)
    assert np.array_equal(annotate(mask, kind), given)


@pytest.mark.parametrize("kind", KINDS)
def test_foreground_is_annotated_where_there_is_one(mask, kind):
    assert (annotate(mask, kind) == 1).any() == (mask == 1).any()


@pytest.mark.parametrize("kind", KINDS)
def test_annotation_depends_on_the_mask_alone(kind):
    mask = grown(90, 120, 5)
    given = annotate(mask, kind)
    np.random.seed(1)  # noqa: NPY002
    cv2.setRNGSeed(1)
    annotate(MASKS["noise"], kind)
    assert np.array_equal(annotate(np.asfortranarray(mask), kind), given)
    assert np.array_equal(annotate(mask.repeat(2, 1)[:, ::2], kind), given)


def test_mask_is_returned_as_it_is(mask):
    assert np.array_equal(annotate(mask, "mask"), mask)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'points'"):
        annotate(MASKS["disc"], "points")


# ---------------------------------------------------------------------------------------------------------------------
# Boxes


def plain_boxes(mask):
    expected = np.zeros_like(mask)
    for component in components(mask == 1):
        y, x = zip(*component)
        expected[min(y) : max(y) + 1, min(x) : max(x) + 1] = 1
    expected[mask == 255] = 255
    return expected


def test_boxes_are_those_of_a_flood_fill(mask):
    assert np.array_equal(annotate(mask, "bbox"), plain_boxes(mask))


def test_box_is_no_larger_than_its_object():
    mask = np.zeros((7, 9), np.uint8)
    mask[2, 3:6] = mask[2:5, 4] = 1
    assert np.argwhere(annotate(mask, "bbox")).tolist() == [[y, x] for y in (2, 3, 4) for x in (3, 4, 5)]


def test_objects_that_touch_by_a_corner_are_one():
    mask = np.zeros((6, 6), np.uint8)
    mask[1, 1] = mask[2, 2] = mask[4, 4] = 1
    assert np.argwhere(annotate(mask, "bbox")).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2], [4, 4]]


def test_box_at_the_border_ends_with_the_image():
    mask = np.zeros((6, 8), np.uint8)
    mask[0, 7] = mask[1, 6] = mask[5, 0] = 1
    expected = np.zeros_like(mask)
    expected[:2, 6:] = expected[5, 0] = 1
    assert np.array_equal(annotate(mask, "bbox"), expected)


def test_ignored_pixels_stay_ignored_and_join_nothing():
    """VOC's void border: over the box of its object, and outside it."""
    mask = np.zeros((9, 12), np.uint8)
    cv2.circle(mask, (4, 4), 3, 255, -1)
    cv2.circle(mask, (4, 4), 2, 1, -1)
    mask[4, 8:10] = (255, 1)  # beyond the void
    given = annotate(mask, "bbox")
    assert np.array_equal(given == 255, mask == 255)
    box = np.zeros_like(mask, bool)
    box[2:7, 2:7] = box[4, 9] = True
    assert np.array_equal(given == 1, box & (mask != 255))
    assert ((given == 1) & (mask == 0)).sum() == 4 - (mask[[2, 2, 6, 6], [2, 6, 2, 6]] == 255).sum()


def test_boxes_of_instances_stand_for_the_components():
    mask = np.zeros((8, 10), np.uint8)
    mask[2:6, 1:9] = 1  # two that touch, of which one is partly hidden
    mask[0, 0] = 1  # of no instance
    mask[4, 4] = 255
    boxes = np.array([[2, 1, 6, 5], [1, 4, 7, 9]])
    expected = np.zeros_like(mask)
    expected[2:6, 1:5] = expected[1:7, 4:9] = 1
    expected[4, 4] = 255
    assert np.array_equal(annotate(mask, "bbox", boxes), expected)
    assert np.array_equal(annotate(mask, "bbox", boxes.astype(np.uint16)), expected)


def test_boxes_of_instances_are_cut_to_the_image():
    mask = np.zeros((6, 8), np.uint8)
    given = annotate(mask, "bbox", np.array([[-3, -2, 2, 3], [4, 6, 20, 30]]))
    expected = np.zeros_like(mask)
    expected[:2, :3] = expected[4:, 6:] = 1
    assert np.array_equal(given, expected)


def test_no_instance_is_no_box():
    assert not annotate(MASKS["disc"], "bbox", np.zeros((0, 4), int)).any()


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 4)])
def test_boxes_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(n, 4\)"):
        annotate(MASKS["disc"], "bbox", np.zeros(shape, int))


@pytest.mark.parametrize("kind", ["mask", "scribble"])
def test_only_boxes_read_the_boxes(kind):
    mask = MASKS["disc"]
    assert np.array_equal(annotate(mask, kind, np.array([[0, 0, 9, 9]])), annotate(mask, kind))


# ---------------------------------------------------------------------------------------------------------------------
# Scribbles: where they are


def test_scribbles_stay_in_their_regions(mask):
    drawn = annotate(mask, "scribble")
    assert (mask[drawn == 1] == 1).all()
    assert (mask[drawn == 0] == 0).all()
    assert (drawn == 0).any() == (mask == 0).any()


def test_every_object_that_is_not_tiny_has_a_scribble_up_to_twenty(mask):
    drawn = annotate(mask, "scribble") == 1
    objects = components(mask == 1)
    largest = max(map(len, objects), default=0)
    marked = [any(drawn[pixel] for pixel in component) for component in objects]
    not_tiny = [10 * len(component) >= largest for component in objects]
    assert sum(marked) == min(20, sum(not_tiny))
    assert all(large for large, line in zip(not_tiny, marked) if line)
    # Of more than twenty the largest.
    skipped = max((len(c) for c, line in zip(objects, marked) if not line), default=0)
    assert skipped <= min((len(c) for c, line in zip(objects, marked) if line), default=0)


def test_background_has_one_scribble_in_its_largest_component(mask):
    drawn = annotate(mask, "scribble") == 0
    marked = [len(component) for component in components(mask == 0) if any(drawn[pixel] for pixel in component)]
    assert marked == [max(map(len, components(mask == 0)))] if (mask == 0).any() else not marked


def test_tenth_of_the_largest_object_is_not_tiny():
    mask = np.zeros((60, 60), np.uint8)
    mask[5:15, 5:25] = 1
    mask[30:34, 5:10] = 1
    mask[40, 5:24] = 1
    drawn = annotate(mask, "scribble") == 1
    assert drawn[5:15].any()
    assert drawn[30:34].any()
    assert not drawn[40].any()


def test_tiny_objects_are_their_own_scribbles():
    mask = np.zeros((375, 500), np.uint8)
    mask[100:103, 100:103] = mask[200, 50:57] = mask[0, 499] = 1
    assert np.array_equal(annotate(mask, "scribble") == 1, mask == 1)


def test_tiny_is_relative_to_the_line():
    mask = np.zeros((750, 1000), np.uint8)
    mask[300, 300:318] = mask[300:319, 309] = 1  # 36 pixels, as a line of 6 has; no line would follow all three arms
    assert np.array_equal(annotate(mask, "scribble") == 1, mask == 1)
    mask[319, 309] = 1
    assert 12 < (annotate(mask, "scribble") == 1).sum() < 36


def test_background_scribble_keeps_out_of_holes():
    mask = np.zeros((100, 140), np.uint8)
    cv2.circle(mask, (70, 50), 30, 1, 8)
    drawn = annotate(mask, "scribble")
    y, x = np.argwhere(drawn == 0).T
    assert (np.hypot(y - 50, x - 70) > 30).all()
    assert np.hypot(*(np.argwhere(drawn == 1) - [50, 70]).T).max() < 35


# ---------------------------------------------------------------------------------------------------------------------
# Scribbles: what they look like


def line_of(mask):
    """The foreground's scribble as a bool array, which is one line."""
    drawn = annotate(mask, "scribble") == 1
    assert len(components(drawn)) == 1
    return drawn


@pytest.mark.parametrize("turn", [0, 25, 45, 90, 150])
def test_bar_has_its_axis(turn):
    mask = np.zeros((400, 500), np.uint8)
    along = np.array([np.cos(np.radians(turn)), np.sin(np.radians(turn))])
    ends = [tuple(np.round([250, 200] + side * 150 * along).astype(int).tolist()) for side in (-1, 1)]
    cv2.line(mask, *ends, 1, 60)
    points = np.argwhere(line_of(mask))[:, ::-1] - [250, 200]
    at, off = points @ along, points @ [-along[1], along[0]]
    # Within a third of the way from the axis to the border but for the ends, which it does not reach.
    assert np.abs(off[np.abs(at) < 100]).max() <= 10
    assert 100 < at.max() < 170
    assert -170 < at.min() < -100


def test_bent_object_has_a_bent_scribble():
    """Three quarters of a ring: along the arc, not across the gap."""
    mask = np.zeros((300, 300), np.uint8)
    cv2.ellipse(mask, (150, 150), (100, 100), 0, 0, 270, 1, 40)
    y, x = (np.argwhere(line_of(mask)) - 150).T
    assert np.abs(np.hypot(y, x) - 100).max() < 12
    angle = (np.degrees(np.arctan2(y, x)) + 45) % 360 - 45
    assert angle.min() < 20
    assert angle.max() > 250
    assert not ((angle > 290) | (angle < -20)).any()


@pytest.mark.parametrize("gap", [8, 12, 20])
def test_narrow_gap_is_gone_round(gap):
    """A hairpin of two bars, the gap between them hardly wider than a cell."""
    mask = np.zeros((160, 500), np.uint8)
    mask[20:110, 50:450] = 1
    mask[58 : 58 + gap, 50:410] = 0
    y, x = np.argwhere(annotate(mask, "scribble") == 1).T
    assert np.ptp(x[y < 58]) > 300
    assert np.ptp(x[y > 58]) > 300


def test_round_object_has_a_scribble_through_its_centre():
    mask = np.zeros((300, 400), np.uint8)
    cv2.circle(mask, (180, 160), 90, 1, -1)
    points = np.argwhere(line_of(mask)) - [160, 180]
    radius = np.hypot(*points.T)
    assert radius.min() < 10
    assert 35 < radius.max() < 75
    assert np.hypot(*np.ptp(points, axis=0)) > 90


def test_thin_branches_do_not_draw_the_scribble():
    """A body with many legs: the line is along the body."""
    mask = np.zeros((300, 500), np.uint8)
    mask[100:160, 50:450] = 1
    for x in range(60, 440, 40):
        mask[160:250, x : x + 6] = 1
    y, x = np.argwhere(line_of(mask)).T
    assert y.max() < 160
    assert np.ptp(x) > 280


def test_image_border_is_a_border():
    mask = np.zeros((300, 500), np.uint8)
    mask[200:, :] = 1
    y, x = np.argwhere(line_of(mask)).T
    assert 220 < y.min() < y.max() < 280
    assert np.ptp(x) > 350
    y, x = np.argwhere(annotate(mask, "scribble") == 0).T
    assert 40 < y[(x > 150) & (x < 350)].min() < y[(x > 150) & (x < 350)].max() < 160


@pytest.mark.parametrize("name", ["loose spiral", "frame", "diagonal"])
def test_line_of_one_pixel_is_followed(name):
    """Cells, in which the scribble is sought, are wider than these objects."""
    mask = MASKS[name]
    assert (annotate(mask, "scribble") == 1).sum() > 0.4 * mask.sum()


def test_large_frame_of_one_pixel_is_followed():
    mask = np.zeros((1500, 2000), np.uint8)
    mask[[0, -1]] = mask[:, [0, -1]] = 1
    assert (annotate(mask, "scribble") == 1).sum() > 0.4 * mask.sum()


def test_region_that_its_line_misses_has_a_pixel(monkeypatch):
    mask = np.zeros((100, 200), np.uint8)
    mask[[10, -10]] = mask[:, [5, -5]] = 1
    monkeypatch.setattr(annotation, "_long_path", lambda depth: np.full((3, 2), [50, 20.0]))
    drawn = annotation._line(mask == 1, 1)
    assert np.argwhere(drawn & (mask == 1)).tolist() == np.argwhere(drawn).tolist() != []


@pytest.mark.parametrize(("longer", "width"), [(60, 1), (250, 2), (500, 3), (640, 4), (1000, 6)])
def test_line_width_is_three_pixels_of_five_hundred(longer, width):
    mask = np.zeros((longer * 3 // 4, longer), np.uint8)
    mask[longer // 4 : longer // 2, longer // 10 : -longer // 10] = 1
    columns = line_of(mask)[:, longer * 3 // 8 : longer * 5 // 8].sum(axis=0)
    assert np.median(columns) == width


# ---------------------------------------------------------------------------------------------------------------------
# The work


def test_work_is_bounded(mask, monkeypatch):
    """Few lines whatever the mask, each sought among few cells."""
    long_path, sought = annotation._long_path, []

    def count(depth):
        sought.append(depth)
        return long_path(depth)

    monkeypatch.setattr(annotation, "_long_path", count)
    annotate(mask, "scribble")
    assert len(sought) <= 21
    assert all(max(depth.shape) <= 200 for depth in sought)
    assert all((depth > 0).sum() <= 4000 for depth in sought)


def test_work_does_not_grow_with_the_image(monkeypatch):
    """Beyond the passes over its pixels."""
    long_path, cells = annotation._long_path, []

    def count(depth):
        cells.append((depth > 0).sum())
        return long_path(depth)

    monkeypatch.setattr(annotation, "_long_path", count)
    mask = grown(120, 160, 3, 0.4, 0.0)
    for scale in (4, 8, 16):
        annotate(mask.repeat(scale, 0).repeat(scale, 1), "scribble")
    lines = len(cells) // 3
    assert lines >= 2
    for line in range(lines):
        small, *larger = cells[line::lines]
        assert max(larger) <= 1.3 * small
