"""Instances files as other tools than COCO's write them: read rightly, or refused in a line that names the entry."""

import copy
import gzip
import json
import random

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from fss_svf.data.coco_annotations import Annotations
from fss_svf.data.coco_fields import as_crowd, as_id, as_side, image_file
from fss_svf.data.coco_files import existing_files
from fss_svf.errors import DataError
from tests.data.test_coco import (
    BUS,
    CAT,
    CATEGORIES,
    DOG,
    IMAGES,
    LISTED,
    blob,
    box,
    compressed_rle,
    content,
    dataset,
    plain_rle,
    write_images,
)  # fmt: skip
from tests.one_line import data_error


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "coco"
    write_images(root / "images")
    return root


@pytest.fixture
def read(root):
    """read(content) is the Annotations of that file."""

    def read(value):
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        (root / "instances.json").write_bytes(raw)
        return Annotations(root / "instances.json")

    return read


def prepare(root, value, **options):
    (root / "instances.json").write_text(json.dumps(value))
    data = dataset(root, **options)
    data.prepare(0)
    return data.split("train")


def edited(key, place, **changes):
    """The usual file with one entry changed; a value of `...` takes the key out."""
    value = content()
    entry = value[key][place]
    entry.update(changes)
    for name in [name for name, new in changes.items() if new is ...]:
        del entry[name]
    return value


# ---------------------------------------------------------------------------------------------------------------------
# The file


WHOLE = json.dumps(content())


@pytest.mark.parametrize(
    "raw",
    [WHOLE[:-40], WHOLE[:-1], WHOLE[: WHOLE.index('"dog"') + 2], WHOLE[: WHOLE.index("40, ") + 1], "", '{"a": tr',
     '{"a": "\\u00', json.dumps({"images": [{"file_name": "größe"}]}, ensure_ascii=False).encode()[:31]],
    ids=["in an entry", "last letter", "in a word", "in a number", "empty", "in a constant", "in an escape", "in a letter"],
)  # fmt: skip
def test_half_a_download(read, root, raw):
    with data_error(root / "instances.json", "not a complete JSON file", "half a download"):
        read(raw if isinstance(raw, bytes) else raw.encode())


WRONG_FILES = {
    "comma too many": (WHOLE.replace("]}", "],}", 1).encode(), ["not a complete JSON file"]),
    "page of an error": (b"<html>404</html>", ["not a complete JSON file"]),
    "two files in one": (WHOLE.encode() * 2, ["not a complete JSON file", "Extra data"]),
    "latin-1": (WHOLE.replace("bus", "gr\xf6\xdfe").encode("latin-1"), ["not a complete JSON file", "utf-8"]),
    "compressed": (gzip.compress(WHOLE.encode()), ["compressed", "unpack"]),
    "nested without end": (b"[" * 200_000, ["nested too deeply"]),
    "number of 5,000 digits": (WHOLE.replace("90", "9" * 5000).encode(), ["not a complete JSON file"]),
    "results": ([{"image_id": 1, "category_id": 7, "score": 0.5}], ["a list", '"images"']),
    "number": (3, ["not an object"]),
    "captions": (edited("annotations", 3, segmentation=..., category_id=..., caption="a cat"),
                 ["annotation 4", "segmentation", "not a file of instances"]),
    "panoptic": ({**content(), "annotations": [{"file_name": "a.png", "image_id": 3, "segments_info": []}]},
                 ["entry 1", "not a file of instances"]),
    "no images": ({k: v for k, v in content().items() if k != "images"}, ['no "images"', "'annotations'"]),
    "no categories": ({k: v for k, v in content().items() if k != "categories"}, ['no "categories"']),
    "no annotations": ({k: v for k, v in content().items() if k != "annotations"}, ['no "annotations"']),
    "annotations by image": ({**content(), "annotations": {"1": []}}, ['"annotations"', "expected a list"]),
    "null images": ({**content(), "images": None}, ['"images" is None', "expected a list"]),
    "empty annotations": ({**content(), "annotations": []}, ["no annotations"]),
    "empty images": ({**content(), "images": []}, ['"images" lists the image of no annotation', "annotation 1 of image"]),
    "empty categories": ({**content(), "categories": []}, ['"categories" is empty']),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_file_of_another_kind(read, root, kind):
    raw, words = WRONG_FILES[kind]
    with data_error(root / "instances.json", *words) as result:
        read(raw)
    assert "half a download" not in result.message


def test_file_that_cannot_be_opened(root):
    (root / "instances.json").mkdir()
    with data_error(root / "instances.json", "cannot be read"):
        Annotations(root / "instances.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_file_as_windows_writes_it(read, encoding):
    found = read(json.dumps(content(), ensure_ascii=False).encode(encoding))
    assert [image[:4] for image in found.images] == [image[:4] for image in read(content()).images]


# ---------------------------------------------------------------------------------------------------------------------
# Ids and sizes


def test_as_id():
    assert [as_id(value) for value in (7, 7.0, "7", "-3", "0")] == [7, 7, 7, -3, 0]
    # Texts of digits that no number is written as are texts.
    assert [as_id(value) for value in ("007", "a", "-0", "7.0", " 7")] == ["007", "a", "-0", "7.0", " 7"]
    for value in (None, True, 7.5, float("nan"), float("inf"), "", [], {}):
        assert as_id(value) is None


def test_as_side_and_as_crowd():
    assert [as_side(value) for value in (80, 80.0, "80", 0, -1, 80.5, "wide", None, True)] == [80] * 3 + [None] * 6
    assert [as_crowd(value) for value in (None, 0, False, "0", 0.0)] == [False] * 5
    assert [as_crowd(value) for value in (1, True, "1", 1.0)] == [True] * 4
    for value in (2, "yes", [], "false", 0.5):
        with pytest.raises(ValueError, match="iscrowd is"):
            as_crowd(value)


def retyped(value, types):
    """The file with ids and sizes of other types, chosen at random for every field."""
    rng = random.Random(0)
    value = copy.deepcopy(value)
    for key, fields in (("images", ("id", "height", "width")), ("annotations", ("image_id", "category_id", "iscrowd")),
                        ("categories", ("id",))):  # fmt: skip
        for entry in value[key]:
            entry.update({field: rng.choice(types)(entry[field]) for field in fields})
    return value


@pytest.mark.parametrize("types", [[float], [str], [int, float, str]])
@pytest.mark.parametrize("mask_mode", ["full", "first_polygon"])
def test_ids_and_sizes_of_other_types(root, types, mask_mode):
    before = prepare(root, content(), mask_mode=mask_mode).index
    after = prepare(root, retyped(content(), types), mask_mode=mask_mode).index
    assert after.hash == before.hash
    assert after.class_names == ("dog", "cat", "bus")


def test_classes_of_numbers_come_before_those_of_texts(read):
    categories = [{"id": "b", "name": "x"}, {"id": "10", "name": "y"}, {"id": 9, "name": "z"}, {"id": "a", "name": "w"}]
    value = {**content(), "categories": categories}
    value["annotations"] = [{**a, "category_id": "a", "image_id": 100} for a in value["annotations"]]
    assert read(value).class_names == ("z", "y", "w", "x")


ENTRIES = {
    "image id": ("images", 2, {"id": None}, ['entry 3 of "images"', "id is None"]),
    "image without id": ("images", 2, {"id": ...}, ['entry 3 of "images"', "id is None"]),
    "image without name": ("images", 2, {"file_name": ...}, ["image 98", "no file_name"]),
    "null name": ("images", 2, {"file_name": None}, ["image 98", "file_name is None"]),
    "number as name": ("images", 2, {"file_name": 5}, ["image 98", "file_name is 5"]),
    "no height": ("images", 2, {"height": ...}, ["image 98", "height is None"]),
    "width in words": ("images", 2, {"width": "wide"}, ["image 98", "width is 'wide'"]),
    "no width at all": ("images", 2, {"width": 0}, ["image 98", "width is 0"]),
    "image_id": ("annotations", 3, {"image_id": None}, ["annotation 4", "image_id is None"]),
    "no image_id": ("annotations", 3, {"image_id": ...}, ["annotation 4", "image_id is None"]),
    "list as image_id": ("annotations", 3, {"image_id": [1]}, ["annotation 4", "image_id is [1]"]),
    "category": ("annotations", 3, {"category_id": 4712}, ["annotation 4", "category_id is 4712", "2, 7, 90"]),
    "no category": ("annotations", 3, {"category_id": ...}, ["annotation 4", "category_id is None"]),
    "crowd": ("annotations", 3, {"iscrowd": "maybe"}, ["annotation 4", "iscrowd is 'maybe'", "0 or 1"]),
    "text as id": ("annotations", 3, {"id": "x\ny", "iscrowd": 7}, [r"annotation 'x\ny'", "iscrowd is 7"]),
    "no id": ("annotations", 3, {"id": ..., "iscrowd": 7}, ['entry 4 of "annotations"', "iscrowd is 7"]),
    "category id": ("categories", 1, {"id": True}, ['entry 2 of "categories"', "id is True"]),
    "category name": ("categories", 1, {"name": None}, ["category 2", "name is None"]),
    "blank name": ("categories", 1, {"name": " "}, ["category 2", "name is ' '"]),
    "no category name": ("categories", 1, {"name": ...}, ["category 2", "name is None"]),
    "same id as text": ("categories", 1, {"id": "7"}, ["two categories", "7", "'cat'", "'dog'", "correct"]),
    "same category name": ("categories", 1, {"name": "cat"}, ["two categories", "7", "2", "'cat'", "correct"]),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_entry_is_named(read, root, kind):
    key, place, changes, words = ENTRIES[kind]
    with data_error(root / "instances.json", *words):
        read(edited(key, place, **changes))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("entry", [None, 5, "cat", [1], {}])
def test_entry_that_is_none(read, root, key, entry):
    value = content()
    value[key].insert(1, entry)
    with data_error(root / "instances.json") as result:
        read(value)
    assert "entry 2" in result.message or (key == "images" and entry == {} and "image None" in result.message)


def test_ids_of_annotations_do_not_matter(root):
    """They name an annotation in messages only; pycocotools would draw one of the same id twice and the other not."""
    before = prepare(root, content()).index.hash
    for ids in ([1] * 12, [None] * 12, ["a"] * 12):
        value = content()
        for annotation, new in zip(value["annotations"], ids):
            annotation["id"] = new
        assert prepare(root, value).index.hash == before


def test_more_classes_than_a_label_holds(root):
    categories = CATEGORIES + [{"id": 100 + i, "name": f"c{i}"} for i in range(252)]
    with data_error(root / "instances.json", "255 categories", "254"):
        prepare(root, {**content(), "categories": categories})


# ---------------------------------------------------------------------------------------------------------------------
# Image files


def test_image_file():
    for name, file in (
        ("a.jpg", "a.jpg"),
        ("./a//b.JPG", "a/b.JPG"),
        (r"sub\a.png", "sub/a.png"),
        ("ä é.jpeg", "ä é.jpeg"),
    ):
        assert image_file(name, None) == file
    assert image_file(None, "http://images.cocodataset.org/train2017/0042.jpg") == "0042.jpg"


@pytest.mark.parametrize("name", ["a", "a.gif", "a.jpg.txt", ".jpg", "/tmp/a.jpg", "../a.jpg", "sub/../../a.jpg", "a\0.jpg",
                                  r"C:\data\a.jpg", "c:a.jpg", r"\\server\a.jpg", "http://host/a.jpg", "file:///a.jpg",
                                  "a\nb.jpg", "\ud800.jpg"])  # fmt: skip
def test_file_name_that_is_no_image_below_the_folder(read, root, name):
    with data_error(root / "instances.json", "image 100", "file_name", "; "):
        read(edited("images", 0, file_name=name))


def test_images_of_other_endings(root):
    """One is found by its own name in every run, also beside another image of that name."""
    before = prepare(root, content())
    value = content()
    ending = {"a.jpg": "a.png", "x.y.jpg": "x.y.JPG", "sub/b.jpg": "sub/b.jpeg", "other/b.jpg": "other/b.BMP"}
    for image in value["images"]:
        new = ending.get(image["file_name"], image["file_name"])
        with Image.open(root / "images" / image["file_name"]) as picture:
            Image.fromarray(255 - np.asarray(picture)).save(root / "images" / new)
        image["file_name"] = new.replace("/", "\\")
    after = prepare(root, value)
    assert after.index.hash != before.index.hash  # of other pictures
    assert after.index.areas.tolist() == before.index.areas.tolist()
    for number, name in enumerate(LISTED):
        assert after.image_path(number) == root / "images" / ending.get(f"{name}.jpg", f"{name}.jpg")
        assert np.array_equal(after.label(number), before.label(number))
    # And back, through the same folder.
    back = prepare(root, content())
    assert [back.image_path(n) for n in range(len(LISTED))] == [before.image_path(n) for n in range(len(LISTED))]


def test_damaged_file_names(root):
    value = content()
    (root / "images" / "a.jpg").rename(root / "images" / "a.png")
    value["images"][0]["file_name"] = "a.png"
    prepare(root, value)
    (names,) = root.glob("prepared/*/files-*.json")
    names.write_text("{")
    with data_error(names, "delete it", "prepare"):
        dataset(root).split("train")


def test_two_images_of_one_label(read, root):
    """They would be drawn into one file."""
    for name in ("a.png", "./a.png", "a.JPG"):
        with data_error(root / "instances.json", 100, 99, "a.jpg", "only in their ending", "rename"):
            read(edited("images", 1, file_name=name))


def test_accents_of_another_machine(root):
    """macOS writes a letter and its accent as two characters."""
    composed, two = "gr\u00f6\u00dfe/\u00e9.jpg", "gro\u0308\u00dfe/e\u0301.jpg"
    before = prepare(root, content()).index
    for listed, there in ((composed, two), (two, composed), (composed, composed)):
        value = edited("images", 0, file_name=listed)
        path = root / "images" / there
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((root / "images" / "a.jpg").read_bytes())
        split = prepare(root, value)
        assert np.array_equal(split.index.areas, before.areas)
        assert split.image(0).shape == (40, 60, 3)
        path.unlink()
    assert existing_files(root / "images", [composed, "a.jpg", "b.jpg"]) == [None, "a.jpg", None]


def test_coco_url_in_place_of_file_name(root):
    before = prepare(root, content([IMAGES[0]])).index
    value = content([IMAGES[0]])
    value["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/" + value["images"][0].pop("file_name")
    assert prepare(root, value).index.hash == before.hash


def test_names_that_begin_with_the_image_folder(root):
    value = content()
    for image in value["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    with data_error(root / "images", "first images/a.jpg", "dataset.train.images"):
        prepare(root, value)


def test_image_that_is_listed_twice(root):
    """Word for word it is one; as two ids its instances would be drawn into two labels of one name."""
    once = prepare(root, content()).index
    twice = content()
    twice["images"].append(dict(twice["images"][0]))
    assert prepare(root, twice).index.hash == once.hash

    for changes, words in (
        ({"id": 4711}, ["a.jpg", 4711, 100, "listed as two images"]),
        ({"id": 4711, "file_name": "./a.jpg"}, ["a.jpg", 4711, 100, "listed as two images"]),
        ({"height": 41}, ["id 100", "two sizes"]),
        ({"file_name": "c.jpg"}, ["id 100", "a.jpg and c.jpg"]),
        ({"file_name": "c.jpg", "id": "100"}, ["id 100", "a.jpg and c.jpg"]),
    ):
        twice["images"][-1] = {**twice["images"][0], **changes}
        with data_error(root / "instances.json", *words):
            prepare(root, twice)


# ---------------------------------------------------------------------------------------------------------------------
# What is left out


NO_MASK = [[], None, {}, ..., [[]], [[10, 20, 30, 40]], [[1, 2]], [[], [5, 5, 6, 6]]]


@pytest.mark.parametrize("segmentation", NO_MASK)
@pytest.mark.parametrize("mask_mode", ["full", "first_polygon"])
def test_annotation_without_a_mask_is_left_out(root, caplog, segmentation, mask_mode):
    """Four numbers are two points, which have no area; pycocotools takes them for a box where they come first."""
    before = prepare(root, content(), mask_mode=mask_mode)
    value = content()
    wrong = {"image_id": 100, "category_id": BUS, "iscrowd": 0, "bbox": [3, 4, 9, 9], "segmentation": segmentation}
    for place, new in ((0, 777), (5, 778)):
        value["annotations"].insert(place, {**wrong, "id": new})
    if segmentation is ...:
        for annotation in value["annotations"]:
            if annotation["segmentation"] is ...:
                del annotation["segmentation"]
    assert not caplog.records
    after = prepare(root, value, mask_mode=mask_mode)
    assert after.index.hash == before.index.hash
    assert np.array_equal(after.label(0), before.label(0))
    (record,) = caplog.records
    for words in (
        str(root / "instances.json"),
        "2 of 14 annotations",
        "left out",
        "background",
        "annotation 777 of a.jpg",
    ):
        assert words in record.getMessage()


def test_file_of_boxes_alone(read, root):
    value = content()
    for annotation in value["annotations"]:
        del annotation["segmentation"]
    with data_error(root / "instances.json", "no annotation has a mask", "annotation 1", "boxes", "export"):
        read(value)


def test_image_whose_only_annotation_has_no_mask(root):
    """It is none of the annotated images then, and need not be there."""
    value = content([*IMAGES, ("gone.jpg", 9, 9, [(CAT, None, 0)])])
    assert prepare(root, value).index.names.tolist() == LISTED


def test_annotation_of_an_image_that_is_not_listed(root, caplog):
    before = prepare(root, content()).index.hash
    value = content()
    value["annotations"].insert(2, {**value["annotations"][0], "id": 99, "image_id": 4711})
    assert prepare(root, value).index.hash == before
    (record,) = caplog.records
    for words in ("1 of 13 annotations", '"images" does not list', "left out", "annotation 99 of image 4711"):
        assert words in record.getMessage()


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("polygon", [[], [3, 4], [10, 20, 30, 40]])
def test_polygons_without_area_are_left_out(root, caplog, place, polygon):
    """Wherever they stand. By pycocotools, which draws nothing of them unless they come first."""
    parts = [box(10, 5, 20, 10), box(30, 20, 9, 9)]
    parts.insert(place, polygon)
    value = content([("a.jpg", 40, 60, [(CAT, parts, 0)])])
    split = prepare(root, value)
    reference = content([("a.jpg", 40, 60, [(CAT, [p for p in parts if p != polygon], 0)])])
    (root / "reference.json").write_text(json.dumps(reference))
    coco = COCO(root / "reference.json")
    assert np.array_equal(split.label(0), 2 * coco.annToMask(coco.dataset["annotations"][0]))
    (record,) = caplog.records
    assert "1 of 1 annotations" in record.getMessage()
    assert "annotation 1 of a.jpg" in record.getMessage()
    # The first that is a polygon is the first polygon.
    first = prepare(root, value, mask_mode="first_polygon")
    assert first.index.areas[0].tolist() == [0, 0, 200, 0]


@pytest.mark.parametrize("mask_mode", ["full", "first_polygon"])
def test_nothing_is_left_to_draw(root, mask_mode):
    outside = content([("a.jpg", 40, 60, [(CAT, [box(200, 200, 5, 5)], 0)])])
    with data_error(root / "instances.json", "no annotation covers a pixel") as result:
        prepare(root, outside, mask_mode=mask_mode)
    assert ("first_polygon" in result.message) == (mask_mode == "first_polygon")
    crowds = content([IMAGES[-1]])
    if mask_mode == "full":
        assert prepare(root, crowds).index.areas.any()
    else:
        with data_error(root / "instances.json", "first_polygon draws no crowds"):
            prepare(root, crowds, mask_mode=mask_mode)


# ---------------------------------------------------------------------------------------------------------------------
# Segmentations


@pytest.mark.parametrize("mask_mode", ["full", "first_polygon"])
@pytest.mark.parametrize("segmentation", [[["a", "b", "c", "d", "e", "f"]], 5, "x", True, [1, 2, 9, 2, 9, 9],
                                          [[1, 2, None, 2, 9, 9]], [[[1, 2], [9, 2], [9, 9]]], [[1, 2], [9, 2], [9, 9]],
                                          [[1, 2, 9, 2, 9, 9, 5]], [box(1, 1, 9, 9), [1, 2, 9]], [None], [{"counts": [1]}],
                                          [[1, 2, float("nan"), 2, 9, 9]], [[1, 2, float("inf"), 2, 9, 9]],
                                          [[1, 2, 1e9, 2, 9, 9]], [[1, 2, 10**400, 2, 9, 9]]])  # fmt: skip
def test_segmentation_that_cannot_be_drawn(root, mask_mode, segmentation):
    value = content([("a.jpg", 40, 60, [(CAT, segmentation, 0)])])
    value["annotations"][0]["id"] = 777
    with data_error("annotation 777", "segmentation"):
        prepare(root, value, mask_mode=mask_mode)
    assert not list(root.rglob("*.png"))


WHOLE_RUN = compressed_rle(blob(40, 60))["counts"]


@pytest.mark.parametrize(
    "rle",
    [{"counts": [5, 10], "size": [40, 60]}, {"counts": [5, -10, 2405], "size": [40, 60]},
     {"counts": [2390, 20], "size": [40, 60]}, {"counts": [], "size": [40, 60]},
     {"counts": WHOLE_RUN[:-3], "size": [40, 60]}, {"counts": "", "size": [40, 60]},
     {"counts": "oooo", "size": [40, 60]}, {"counts": "ö", "size": [40, 60]}, {"counts": [2400]}, {"size": [40, 60]},
     {"counts": 5, "size": [40, 60]}, {"counts": [2400, None], "size": [40, 60]}, {"counts": ["2400"], "size": [40, 60]},
     {"counts": [[2400], [1, 2]], "size": [40, 60]}, {"counts": [0.5, 2399.5], "size": [40, 60]},
     {"counts": [2**62, 2**62, 2**62, 2**62 + 2400], "size": [40, 60]}, {"counts": [10**400], "size": [40, 60]},
     {"counts": [0, 2400], "size": [60, 40]}, {"counts": [0, 2400], "size": 2400}, {"counts": [0, 2400], "size": None},
     {"counts": [float("inf"), 5.0], "size": [40, 60]}],
)  # fmt: skip
def test_run_lengths_that_are_wrong(root, rle):
    """pycocotools takes what is missing from memory that happens to be there."""
    value = content([("a.jpg", 40, 60, [(CAT, rle, 1)])])
    value["annotations"][0]["id"] = 777
    with data_error("annotation 777", "a.jpg", "segmentation cannot be drawn", "correct or remove"):
        prepare(root, value)


def test_run_lengths_as_fractions_write_them(root):
    """5.0 is a whole number."""
    rle = plain_rle(blob(40, 60))
    as_floats = {"counts": [float(n) for n in rle["counts"]], "size": [40.0, 60.0]}
    split = prepare(root, content([("a.jpg", 40, 60, [(DOG, as_floats, 0)])]))
    assert np.array_equal(split.label(0), blob(40, 60))


# ---------------------------------------------------------------------------------------------------------------------
# Anything else

ODD = [
    None, True, 0, -1, 5, 7.0, 2.5, float("nan"), 1e300, 10**30, "", "7", "x", "a.jpg", [], [1], [[]], [[1, 2]], {},
    {"a": 1}, {"segmentation": []}, {"file_name": "a.jpg"}, {"counts": [1, [2]]}, {"image_id": 1, "category_id": 1},
]  # fmt: skip


def test_any_value_in_any_place_is_read_or_refused_in_one_line(read):
    """Every field of the file in turn is replaced by every odd value, or taken out."""
    small = content([IMAGES[0], IMAGES[3]])
    for key in small:
        assert_read_or_refused(read, [{**small, key: odd} for odd in ODD])
        for field in small[key][0]:
            assert_read_or_refused(read, [changed(small, key, field, odd) for odd in [*ODD, ...]])


def changed(value, key, field, new):
    value = copy.deepcopy(value)
    value[key][0][field] = new
    if new is ...:
        del value[key][0][field]
    return value


def assert_read_or_refused(read, values):
    for value in values:
        try:
            read(value)
        except DataError as error:
            message = str(error)
        else:
            continue
        assert "\n" not in message
        assert "half a download" not in message
